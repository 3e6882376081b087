//! Why a queue node does not start, and the gRPC statuses of refused requests.

use std::io;

use postroad_core::NodeId;
use postroad_raft::ProposeError;
use tonic::{Status, metadata::MetadataValue};

/// The metadata of a refusal that names the leader.
pub(crate) const LEADER: &str = "postroad-leader";

/// Why a queue node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node is not one of the cluster's queue nodes.
    #[error("node `{0}` is not one of the configured queue nodes")]
    NotAVoter(NodeId),
    /// The log cannot be opened; it has not been changed.
    #[error("cannot open the log")]
    Log(#[from] postroad_storage::OpenError),
    /// A group cannot be opened.
    #[error("cannot open a Raft group")]
    Group(#[from] postroad_raft::OpenError),
    /// Cannot listen on the address.
    #[error("cannot listen on {address} (`queue.listen`)")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// An error of the operating system.
    #[error("cannot start the queue node")]
    Io(#[from] io::Error),
}

/// Refuses a request because another node leads; names it where it is known.
pub(crate) fn not_leader(leader: Option<NodeId>) -> Status {
    let mut status = Status::unavailable("this node is not the leader of the group");
    if let Some(leader) = leader {
        status.metadata_mut().insert(LEADER, MetadataValue::from(leader.0));
    }
    status
}

/// The gRPC status of a failed proposal or read barrier.
pub(crate) fn refused(error: &ProposeError) -> Status {
    match error {
        ProposeError::NotLeader { leader } => not_leader(*leader),
        ProposeError::Full => Status::resource_exhausted("the disk is full"),
        ProposeError::Unknown | ProposeError::Stopped => Status::unavailable(error.to_string()),
    }
}
