//! What tests stand on: a receiver with scripted misbehaviour, a fake DNS, a cluster to break.

pub mod checker;
pub mod client;
pub mod cluster;
pub mod dev;
pub mod dialogue;
pub mod dns;
pub mod failover;
pub mod process;
pub mod sink;

pub use sink::{Ledger, Script, Sink, SinkConfig};
