//! Named pipes within one process.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::{io::duplex, sync::mpsc};

use super::NodeStream;

/// Buffer of each direction of a pipe.
const PIPE_BYTES: usize = 256 << 10;
/// Connections not yet accepted.
const BACKLOG: usize = 64;

/// The named listeners of one process; clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemoryNet {
    listeners: Arc<Mutex<BTreeMap<Box<str>, mpsc::Sender<NodeStream>>>>,
}

#[derive(Debug)]
pub(super) struct MemoryListener {
    pub(super) name: Box<str>,
    pub(super) incoming: mpsc::Receiver<NodeStream>,
}

impl MemoryNet {
    /// Makes a net without listeners.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn bind(&self, name: &str) -> io::Result<MemoryListener> {
        let mut listeners = self.listeners.lock();
        if listeners.get(name).is_some_and(|listener| !listener.is_closed()) {
            return Err(ErrorKind::AddrInUse.into());
        }
        let (sender, incoming) = mpsc::channel(BACKLOG);
        listeners.insert(name.into(), sender);
        Ok(MemoryListener { name: name.into(), incoming })
    }

    /// Connects to the listener of this name.
    ///
    /// # Errors
    /// No listener has this name.
    pub async fn connect(&self, name: &str) -> io::Result<NodeStream> {
        let listener = self.listeners.lock().get(name).cloned();
        let refused = || io::Error::from(ErrorKind::ConnectionRefused);
        let (ours, theirs) = duplex(PIPE_BYTES);
        let listener = listener.ok_or_else(refused)?;
        listener.send(NodeStream::memory(theirs)).await.map_err(|_| refused())?;
        Ok(NodeStream::memory(ours))
    }
}
