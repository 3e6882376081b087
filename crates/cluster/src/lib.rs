//! The client of the cluster: who leads, how to hand a message over exactly once, and what the directory says.
//!
//! It knows the wire and nothing of what stands behind it.

pub mod call;
pub mod directory;
pub mod leaders;
pub mod submit;
pub mod watch;

pub use call::{CallError, LeaderCalls};
pub use directory::{Applied, Claim, DirectoryClient, Renewed};
pub use leaders::{Endpoints, Leader, LeaderTable, LeaderWatch};
pub use submit::{SubmitConfig, SubmitError, Submitter};
pub use watch::DirectoryWatch;

/// The largest gRPC frame between nodes: one Raft entry of 1 MiB and its envelope, with room to spare.
pub const FRAME_BYTES_MAX: usize = 8 << 20;
