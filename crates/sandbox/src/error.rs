//! What can go wrong.

use std::{io, net::SocketAddr, path::PathBuf};

/// Why the sandbox did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} for the sandbox")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The directory of captures cannot be read or written.
    #[error("cannot use the sandbox's directory `{path}`")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}
