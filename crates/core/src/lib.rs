//! The words every other crate speaks: addresses, ids, replies, outcomes, time and sizes.
//!
//! Everything here is a plain value that is parsed once, at the edge, and stays correct.
//! There is no I/O, no clock and no randomness: a caller that needs the time or a random number passes it in.

pub mod address;
pub mod delivery_state;
pub mod domain;
pub mod id;
pub mod outcome;
pub mod reply;
pub mod retry;
pub mod size;
pub mod time;

pub use address::{Address, AddressError, Host};
pub use delivery_state::{DeliveryState, FinalState};
pub use domain::{Domain, DomainError};
pub use id::{
    AttemptNumber, ClusterId, DeliveryId, Epoch, GroupId, MessageId, NodeId, PoolId, SourceId, TenantId,
};
pub use outcome::{BounceClass, Outcome, OutcomeKind};
pub use reply::{EnhancedCode, Reply};
pub use retry::RetrySchedule;
pub use size::ByteSize;
pub use time::Timestamp;
