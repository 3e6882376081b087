//! The client of the cluster: finding leaders, submitting each message exactly once, and watching the directory.
//!
//! It knows the wire, and nothing of the server.

pub mod call;
pub mod directory;
pub mod leaders;
pub mod nodes;
pub mod submit;
pub mod watch;

pub use call::{CallError, LeaderCalls};
pub use directory::{Applied, ApplyOptions, Claim, DirectoryClient, Renewed, SuspendOptions, Suspended};
pub use leaders::{Endpoints, Leader, LeaderTable, LeaderWatch};
pub use nodes::{AboutNode, AnnouncedNode, ClockDifference, NodeList, announce, list_nodes};
pub use submit::{SubmitConfig, SubmitError, Submitter};
pub use watch::DirectoryWatch;

pub use postroad_proto::FRAME_BYTES_MAX;
