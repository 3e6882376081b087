//! Releases sources that the directory wants to give to other nodes, or from this one because it is suspended: stops them,
//! reports their attempts, releases them.
//!
//! A source that is being released is not used again under its epoch, even if the release fails:
//! a release without an answer may have been committed.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use postroad_cluster::DirectoryClient;
use postroad_core::{Epoch, NodeId, SourceId};
use tokio::{sync::watch, time};

use crate::{lanes::Lanes, service::AttemptsByGroup};

/// Releases sources when the directory asks for them.
pub(crate) struct SourceReleases {
    pub(crate) node: NodeId,
    pub(crate) directory: DirectoryClient,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) by_group: AttemptsByGroup,
    /// The incarnation whose claim was granted; `None` without one.
    pub(crate) claimed_incarnation: watch::Receiver<Option<u64>>,
    /// The sources that the directory asked to release in its last answer to a renewal.
    pub(crate) to_release: watch::Receiver<Vec<(SourceId, Epoch)>>,
    /// How long transactions may take to finish.
    pub(crate) drain: Duration,
}

/// Sources that are released at a time.
const RELEASES_MAX: usize = 64;
/// How often to check whether all has ended.
const CHECK_EVERY: Duration = Duration::from_millis(20);
/// How long to wait for assignments that leaders sent before they received the closed windows; later ones end as unknown.
const LAST_ARRIVALS: Duration = Duration::from_millis(500);
/// How long outcomes may take to be committed, including those of assignments that wait for the content budget.
const REPORT_WITHIN: Duration = Duration::from_secs(30);
/// How long one request may take, and the pause before the next.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);
const RELEASE_RETRY_AFTER: Duration = Duration::from_millis(200);

impl SourceReleases {
    /// Runs until dropped.
    pub(crate) async fn run(mut self) {
        loop {
            let to_release = self.to_release.borrow_and_update().clone();
            let incarnation = *self.claimed_incarnation.borrow();
            if let Some(incarnation) = incarnation {
                self.release_all(incarnation, &to_release).await;
            }
            if self.to_release.changed().await.is_err() {
                // The role is stopping, and releases all sources itself.
                return std::future::pending().await;
            }
        }
    }

    /// Stops all of them first: a node that is suspended has many, and one that is slow to finish must not keep the others.
    async fn release_all(&self, incarnation: u64, sources: &[(SourceId, Epoch)]) {
        let mut stopped = sources.to_vec();
        stopped.retain(|(source, epoch)| self.lanes.stop_source(*source, *epoch));
        let releasing = stopped.into_iter().map(|(source, epoch)| self.release(incarnation, source, epoch));
        stream::iter(releasing).buffer_unordered(RELEASES_MAX).collect::<()>().await;
    }

    async fn release(&self, incarnation: u64, source: SourceId, epoch: Epoch) {
        tracing::info!(%source, "releasing source");
        if time::timeout(self.drain, self.wait_unused(source, epoch)).await.is_err() {
            tracing::warn!(%source, "aborting transactions that did not finish within the drain time");
        }
        self.lanes.abort_source(source, epoch);
        self.wait_unused(source, epoch).await;
        if time::timeout(REPORT_WITHIN, self.wait_reported(source, epoch)).await.is_err() {
            tracing::warn!(%source, "source released with unconfirmed attempts: they may end as unknown");
        }
        while *self.claimed_incarnation.borrow() == Some(incarnation) {
            match self.directory.release_source(self.node, incarnation, (source, epoch), RELEASE_WITHIN).await
            {
                Ok(()) => return tracing::info!(%source, "source released"),
                Err(error) => tracing::warn!(%source, %error, "source not released"),
            }
            time::sleep(RELEASE_RETRY_AFTER).await;
        }
    }

    async fn wait_unused(&self, source: SourceId, epoch: Epoch) {
        while self.lanes.is_used(source, epoch) {
            time::sleep(CHECK_EVERY).await;
        }
    }

    /// Waits until all attempts of a source are reported, and no more have arrived for [`LAST_ARRIVALS`].
    async fn wait_reported(&self, source: SourceId, epoch: Epoch) {
        let mut since = time::Instant::now();
        while since.elapsed() < LAST_ARRIVALS {
            if self.may_have_unreported(source, epoch) {
                since = time::Instant::now();
            }
            time::sleep(CHECK_EVERY).await;
        }
    }

    fn may_have_unreported(&self, source: SourceId, epoch: Epoch) -> bool {
        self.by_group.lock().values().any(|attempts| attempts.may_have_unreported(source, epoch))
    }
}
