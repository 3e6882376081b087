//! The configuration of a cluster as a replicated state machine: pure.
//!
//! [`Directory::apply`] takes committed commands one by one and gives equal state on every replica.
//! All roles read a [`View`], which is updated by [`Delta`]s.
//! Neither knows a clock, a disk or a socket; the leader's lease manager decides when a lease ends.

pub mod change;
pub mod item;

mod advice;
mod codec;
mod delta;
mod directory;
mod plan;
mod snapshot;
mod valid;
mod view;

pub use advice::Warning;
pub use change::{
    Change, Command, Done, Put, PutCredential, PutLimits, PutPool, PutSource, PutSuspension, PutTenant,
    Refusal, Reply, ScopeName,
};
pub use codec::Corrupt;
pub use delta::{Delta, TooOld};
pub use directory::Directory;
pub use item::{
    Caps, Credential, Item, ItemName, Kind, LaneLimits, Limits, OutboundNode, Owner, Pattern, Pool, Rate,
    Route, Secret, SenderDomains, Source, Suspension, Tenant,
};
pub use view::View;
