//! Why an outbound node does not start.

use std::{io, path::PathBuf};

/// Why an outbound node does not start. All of it is local; nothing was claimed or sent.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error("`{key}`: {expected}")]
    Config {
        /// The setting.
        key: &'static str,
        /// What it should be.
        expected: String,
    },
    /// The data directory cannot be read or written.
    #[error("cannot use the data directory `{directory}`")]
    DataDirectory {
        /// Which one.
        directory: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// Another process runs on the data directory.
    #[error("another process uses the data directory `{0}`")]
    Locked(PathBuf),
    /// The file that names the earlier run of this node holds something else.
    #[error("`{0}` does not hold the incarnation of this node")]
    Incarnation(PathBuf),
    /// The data directory belongs to another node.
    #[error("`{directory}` is the data directory of node `{found}`, not of node `{node}`")]
    OtherNode {
        /// Which one.
        directory: PathBuf,
        /// Whose it is.
        found: u64,
        /// Who we are.
        node: u64,
    },
}
