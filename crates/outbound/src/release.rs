//! Lets go of sources that others are to have: ends what is under way, reports it, and releases them.
//!
//! A source that is being left is not used again under its epoch, whatever becomes of the release:
//! nobody can tell whether one that was not answered has been committed.

use std::{sync::Arc, time::Duration};

use postroad_cluster::DirectoryClient;
use postroad_core::{Epoch, NodeId, SourceId};
use tokio::{sync::watch, time};

use crate::{lanes::Lanes, service::Desks};

/// Releases sources when the directory asks for them.
pub(crate) struct Leaving {
    pub(crate) node: NodeId,
    pub(crate) directory: DirectoryClient,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) desks: Desks,
    /// The run whose claim stands.
    pub(crate) tenure: watch::Receiver<Option<u64>>,
    /// What the directory has asked for with the last renewal.
    pub(crate) asked: watch::Receiver<Vec<(SourceId, Epoch)>>,
    /// How long transactions may go on.
    pub(crate) drain: Duration,
}

/// How often it is looked whether all has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What the leaders assigned before they heard of the closed windows comes within this, or ends as unknown.
const LAST_ARRIVALS: Duration = Duration::from_millis(500);
/// How long outcomes may take to be committed, and what waits for room may take to be looked at.
const REPORT_WITHIN: Duration = Duration::from_secs(30);
/// How long to ask before the next try, and how long to wait for it.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);
const RELEASE_AGAIN_AFTER: Duration = Duration::from_millis(200);

impl Leaving {
    /// Runs until dropped.
    pub(crate) async fn run(mut self) {
        loop {
            let asked = self.asked.borrow_and_update().clone();
            let run = *self.tenure.borrow();
            if let Some(run) = run {
                for (source, epoch) in asked {
                    self.let_go(run, source, epoch).await;
                }
            }
            if self.asked.changed().await.is_err() {
                // The role is being stopped, and releases everything.
                return std::future::pending().await;
            }
        }
    }

    async fn let_go(&self, run: u64, source: SourceId, epoch: Epoch) {
        if !self.lanes.leave(source, epoch) {
            return;
        }
        tracing::info!(%source, "a source is left to another node");
        if time::timeout(self.drain, self.unused(source, epoch)).await.is_err() {
            tracing::warn!(%source, "transactions were broken off at the drain bound");
        }
        self.lanes.abandon(source, epoch);
        self.unused(source, epoch).await;
        if time::timeout(REPORT_WITHIN, self.reported(source, epoch)).await.is_err() {
            tracing::warn!(%source, "not all of it was heard of and committed: attempts may end as unknown");
        }
        while *self.tenure.borrow() == Some(run) {
            match self.directory.release_source(self.node, run, (source, epoch), RELEASE_WITHIN).await {
                Ok(()) => return tracing::info!(%source, "source released"),
                Err(error) => tracing::warn!(%source, %error, "source not released"),
            }
            time::sleep(RELEASE_AGAIN_AFTER).await;
        }
    }

    async fn unused(&self, source: SourceId, epoch: Epoch) {
        while self.lanes.is_used(source, epoch) {
            time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until nothing of a source is owed, and nothing more has come for a while.
    async fn reported(&self, source: SourceId, epoch: Epoch) {
        let mut since = time::Instant::now();
        while since.elapsed() < LAST_ARRIVALS {
            if self.may_owe(source, epoch) {
                since = time::Instant::now();
            }
            time::sleep(LOOK_EVERY).await;
        }
    }

    fn may_owe(&self, source: SourceId, epoch: Epoch) -> bool {
        self.desks.lock().values().any(|desk| desk.may_owe(source, epoch))
    }
}
