//! The queue role: hosts the Raft groups, assigns deliveries to outbound nodes, and serves the other roles.
//!
//! Group 0 is the directory, every other group a ledger.
//! `ledger` and `directory` decide what a command does, `raft` commits it; this crate turns requests into commands, and
//! committed commands into answers and assignments.

mod actor;
mod clock;
pub mod config;
pub mod directory;
mod error;
mod leaders;
mod ledger;
pub mod metrics;
mod node;
mod nodes;
mod service;
mod transport;
mod waiting;

pub use config::{ElectionConfig, LeaseConfig, QueueConfig, RetryConfig};
pub use error::StartError;
pub use node::{Queue, QueueDeps, Replicas};
pub use postroad_raft::Voter;
