//! The client of the cluster: who leads, and how to hand a message over exactly once.
//!
//! It knows the wire and nothing of what stands behind it.

pub mod leaders;
pub mod submit;

pub use leaders::{Endpoints, Leader, LeaderTable, LeaderWatch};
pub use submit::{SubmitConfig, SubmitError, Submitter};

/// The largest gRPC frame between nodes: one Raft entry of 1 MiB and its envelope, with room to spare.
pub const FRAME_OCTETS_MAX: usize = 8 << 20;
