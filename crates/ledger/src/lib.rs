//! The queue's state machine and its dispatcher, as pure values.
//!
//! [`Ledger::apply`] takes committed commands one by one and gives equal state on every replica.
//! Only the leader has a [`Dispatcher`]: it decides what is assigned next, and is rebuilt from the ledger's state.
//! Neither knows a clock, a disk or a socket.

pub mod command;
pub mod dispatch;
pub mod event;
pub mod lanes;
pub mod summary;

mod codec;
mod ended;
mod finished;
mod index;
mod ledger;
mod names;
mod pages;
mod query;
mod row;
mod selection;
mod snapshot;
mod stage;

pub use codec::Corrupt;
pub use dispatch::Dispatcher;
pub use ended::REMEMBERED_FOR;
pub use finished::{DeliveryFacts, Finished};
pub use index::Counts;
pub use ledger::{Ledger, Limits};
pub use query::{AssignedView, DeliveryView, MessageView};
pub use row::BodyRef;
pub use selection::{FIRST, Page, Selected, Selection};
pub use snapshot::Snapshot;
pub use stage::STAGED_FOR;
