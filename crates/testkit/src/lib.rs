//! What tests stand on: a receiver with scripted misbehaviour, a fake DNS, a cluster to break.

pub mod dialogue;
pub mod dns;
pub mod sink;

pub use sink::{Ledger, Script, Sink, SinkConfig};
