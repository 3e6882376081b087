//! Hosts replicated state machines: entries are committed on a majority of disks and applied in order on every node.
//!
//! The only crate that knows openraft. The layer above proposes bytes, implements a [`Machine`] and sees who leads.

mod checkpoint;
mod disk_status;
mod group;
mod host;
mod machine;
mod membership;
mod network;
mod node;
mod reachability;
mod runtime;
mod service;
mod store;
mod types;
mod wire;

pub use disk_status::DiskStatus;
pub use group::{Committed, Group, GroupHandle, ProposeError, Replication, Status};
pub use machine::{Entry, Machine, MachineError, MachineSnapshot};
pub use membership::Caller;
pub use network::{Connect, Purpose};
pub use node::{Node, NodeConfig, OpenError, Timing, Voter};
pub use service::RaftServer;
