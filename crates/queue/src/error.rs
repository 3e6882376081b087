//! Why a queue node does not start, and what it tells those it must refuse.

use std::io;

use postroad_core::NodeId;
use postroad_raft::ProposeError;
use tonic::{Status, metadata::MetadataValue};

/// Metadata of a refusal that names the node to ask instead.
pub(crate) const LEADER: &str = "postroad-leader";

/// Why a queue node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration does not hold together.
    #[error("{0}")]
    Config(String),
    /// The log cannot be opened; it has not been changed.
    #[error("the log cannot be opened")]
    Log(#[from] postroad_storage::OpenError),
    /// A group cannot be opened.
    #[error("a group cannot be opened")]
    Group(#[from] postroad_raft::OpenError),
    /// The address cannot be listened at.
    #[error("`{address}` cannot be listened at")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The operating system said no.
    #[error("the node cannot start")]
    Io(#[from] io::Error),
}

/// Whoever asks here should ask `leader`, if one is known.
pub(crate) fn not_leader(leader: Option<NodeId>) -> Status {
    let mut status = Status::unavailable("this node does not lead the group");
    if let Some(leader) = leader {
        status.metadata_mut().insert(LEADER, MetadataValue::from(leader.0));
    }
    status
}

/// What a refused proposal or read barrier is on the wire.
pub(crate) fn refused(error: &ProposeError) -> Status {
    match error {
        ProposeError::NotLeader { leader } => not_leader(*leader),
        ProposeError::Full => Status::resource_exhausted("the disk is full"),
        ProposeError::Unknown | ProposeError::Stopped => Status::unavailable(error.to_string()),
    }
}
