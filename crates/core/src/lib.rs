//! Types that all other crates share: addresses, ids, replies, outcomes, time and sizes.
//!
//! These are plain values, parsed once at the edge and valid from then on.
//! This crate has no I/O, no clock and no randomness: callers pass in the time and random numbers.

pub mod address;
pub mod delivery_state;
pub mod domain;
pub mod duration;
pub mod id;
pub mod outcome;
pub mod recipients;
pub mod reply;
pub mod retry;
pub mod scope;
pub mod size;
pub mod text;
pub mod time;

pub use address::{Address, AddressError, Host, Irregularity};
pub use delivery_state::{DeliveryState, FinalState};
pub use domain::{Domain, DomainError};
pub use duration::DurationText;
pub use id::{
    AttemptNumber, ClusterId, DeliveryId, Epoch, GroupId, MessageId, NodeId, PoolId, SourceId, TenantId,
};
pub use outcome::{BounceClass, LaneEffect, Outcome, OutcomeKind, Party, Retry};
pub use recipients::Recipients;
pub use reply::{EnhancedCode, Reply};
pub use retry::RetrySchedule;
pub use scope::Scope;
pub use size::ByteSize;
pub use time::Timestamp;
