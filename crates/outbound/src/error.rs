//! Why an outbound node does not start.

use std::{io, path::PathBuf};

/// Why an outbound node does not start. All causes are local; nothing was claimed or sent.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be read or written.
    #[error("cannot use the data directory `{directory}`")]
    DataDirectory {
        /// The directory.
        directory: PathBuf,
        /// The cause.
        #[source]
        error: io::Error,
    },
    /// Another process uses the data directory.
    #[error("another process uses the data directory `{0}`")]
    Locked(PathBuf),
    /// The file with the previous incarnation of this node is malformed.
    #[error("`{0}` does not contain the incarnation of this node")]
    Incarnation(PathBuf),
    /// The data directory belongs to another node.
    #[error("`{directory}` is the data directory of node `{found}`, not of node `{node}`")]
    OtherNode {
        /// The directory.
        directory: PathBuf,
        /// The node in its incarnation file.
        found: u64,
        /// This node.
        node: u64,
    },
}
