//! The queue role: hosts the groups, dispatches, and serves the other roles.
//!
//! Group 0 is the directory, every other one a ledger.
//! What a command does is decided in `ledger` and `directory`, what is agreed upon in `raft`;
//! here committed work is turned into streams, and streams into work to be committed.

mod clock;
pub mod config;
pub mod directory;
mod error;
mod leaders;
mod ledger;
pub mod metrics;
mod node;
mod service;
mod transport;

pub use config::{ElectionConfig, LeaseConfig, QueueConfig, RetryConfig};
pub use error::StartError;
pub use node::{Queue, QueueDeps};
pub use postroad_raft::Voter;
