//! The types generated from `/proto`, and every conversion between them and Postroad's own.
//!
//! Everything that arrives over the wire or from the log is converted and checked here, once.
//! The layers above do not check generated types again.

/// Generated code: documented in `/proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
mod generated {
    pub mod directory {
        tonic::include_proto!("postroad.directory.v1");
    }
    pub mod log {
        tonic::include_proto!("postroad.log.v1");
    }
    pub mod node {
        tonic::include_proto!("postroad.node.v1");
    }
    pub mod raft {
        tonic::include_proto!("postroad.raft.v1");
    }
    pub mod queue {
        tonic::include_proto!("postroad.queue.v1");
    }
    pub mod submission {
        tonic::include_proto!("postroad.submission.v1");
    }
}

mod convert;
pub mod directory;
mod event;
pub mod log;
mod selection;
mod submit;
mod view;
mod waiting;
mod work;

pub use convert::{Malformed, message_id, parse_message_id};
pub use event::{parse_change, parse_final_state};
pub use generated::{node, queue, raft, submission};
pub use selection::{CHANGED_MESSAGES_MAX, CHANGED_RECIPIENTS_MAX};
pub use submit::{CONTENT_BYTES_MAX, parse_submission};
pub use waiting::{LANES_PER_FRAME_MAX, ReportedLane, parse_lane_report};

/// The largest gRPC frame between roles: one Raft entry of 1 MiB and its envelope, with room to spare; with what the leader
/// adds it fits a frame between queue nodes.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// The descriptors of every file in `/proto`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
