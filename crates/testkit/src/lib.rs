//! Tools for tests: a receiver with scripted misbehaviour, a fake DNS, clusters of real processes.

pub mod checker;
pub mod client;
pub mod cluster;
pub mod dev;
pub mod dialogue;
pub mod dns;
pub mod exposition;
pub mod failover;
pub mod history;
pub mod operator;
pub mod process;
pub mod queue;
pub mod sink;
pub mod transcript;

pub use sink::{Ledger, Script, Sink, SinkConfig};
