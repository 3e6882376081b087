//! Shared read barriers: one proof of leadership serves all requests that wait.

use postroad_raft::{Group, Machine, ProposeError};
use tokio::sync::{mpsc, oneshot};

/// Requests that may wait for a barrier; more wait for a place.
const WAITING_MAX: usize = 1024;

type Waiting = oneshot::Sender<Result<(), ProposeError>>;

/// A handle to wait for barriers. A clone is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Barrier {
    waiting: mpsc::Sender<Waiting>,
}

/// Runs the barriers.
#[derive(Debug)]
pub(crate) struct Worker<M: Machine> {
    group: Group<M>,
    waiting: mpsc::Receiver<Waiting>,
}

impl Barrier {
    pub(crate) fn new<M: Machine>(group: Group<M>) -> (Self, Worker<M>) {
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        (Self { waiting: sender }, Worker { group, waiting })
    }

    /// Returns once this node has proven, after the call, that it leads, and has applied all that was committed before.
    ///
    /// # Errors
    /// As of [`Group::read_barrier`].
    pub(crate) async fn pass(&self) -> Result<(), ProposeError> {
        let (sender, passed) = oneshot::channel();
        self.waiting.send(sender).await.map_err(|_| ProposeError::Stopped)?;
        passed.await.unwrap_or(Err(ProposeError::Stopped))
    }
}

impl<M: Machine> Worker<M> {
    /// Works until no [`Barrier`] is left.
    pub(crate) async fn run(mut self) {
        let mut waiting = Vec::new();
        while self.waiting.recv_many(&mut waiting, WAITING_MAX).await > 0 {
            let passed = self.group.read_barrier().await;
            for sender in waiting.drain(..) {
                // The caller may be gone; a dropped answer is harmless.
                let _ = sender.send(passed.clone());
            }
        }
    }
}
