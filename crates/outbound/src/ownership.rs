//! Claims this node's sources, and renews the lease on them.

use std::{sync::Arc, time::Duration};

use postroad_cluster::{CallError, Claim, DirectoryClient};
use postroad_core::{Epoch, NodeId, SourceId};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    error::StartError,
    incarnation::Incarnation,
    lease::{BootTime, Lease, LeaseTerms},
    metrics::OutboundMetrics,
};

/// Makes the claim of this node at the directory.
#[derive(Debug)]
pub(crate) struct Ownership {
    /// The node.
    pub(crate) node: NodeId,
    /// Its incarnation.
    pub(crate) incarnation: Incarnation,
    /// Calls the directory's leader.
    pub(crate) directory: DirectoryClient,
    /// The lease that the directory grants.
    pub(crate) lease: Arc<Lease>,
    /// The incarnation whose claim was granted; `None` without one.
    pub(crate) claimed_incarnation: watch::Sender<Option<u64>>,
    /// The sources that the directory asked to release in its last answer to a renewal.
    pub(crate) to_release: watch::Sender<Vec<(SourceId, Epoch)>>,
}

/// The pause before the next renewal after a failed one.
const RENEW_RETRY_AFTER: Duration = Duration::from_millis(100);

/// How long one request may take.
const CLAIM_WITHIN: Duration = Duration::from_secs(5);
/// The longest pause before the next claim; the directory may ask for a shorter one.
const CLAIM_RETRY_AFTER_MAX: Duration = Duration::from_secs(5);
/// How long the release of all sources may take when the node stops.
const RELEASE_ALL_WITHIN: Duration = Duration::from_secs(2);

/// Why renewing ended.
enum RenewalEnd {
    /// The node stops.
    Stopped,
    /// The directory has revoked this incarnation: another one has claimed, or the lease had ended.
    Superseded,
}

impl Ownership {
    /// Claims and renews until `stop`, then releases all sources.
    ///
    /// # Errors
    /// A new incarnation had to begin and could not be written: no source may be used.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), StartError> {
        loop {
            let Some(terms) = self.claim(&stop).await else { return Ok(()) };
            match self.renew(terms, &stop).await {
                RenewalEnd::Stopped => break,
                RenewalEnd::Superseded => {}
            }
            self.lease.revoked();
            self.claimed_incarnation.send_replace(None);
            // All attempts of this incarnation are aborted; the next one starts empty.
            self.incarnation.begin_next(postroad_env::random())?;
        }
        self.lease.revoked();
        let released =
            self.directory.release(self.node, self.incarnation.current(), RELEASE_ALL_WITHIN).await;
        match released {
            Ok(()) => tracing::info!(node = %self.node, "sources released"),
            Err(error) => {
                tracing::warn!(%error, "cannot release the sources: other nodes get them when the lease has ended")
            }
        }
        Ok(())
    }

    /// Claims until the claim is granted; `None` when the node stops first.
    async fn claim(&self, stop: &CancellationToken) -> Option<LeaseTerms> {
        let (current, replaces) = (self.incarnation.current(), self.incarnation.replaces());
        loop {
            let sent = BootTime::now();
            let claim = self.directory.claim(self.node, current, replaces, CLAIM_WITHIN);
            let claimed = tokio::select! {
                () = stop.cancelled() => return None,
                claimed = claim => claimed,
            };
            let wait = match claimed {
                Ok(Claim::InForce { lease, revision }) => {
                    let terms = LeaseTerms { length: lease, ..LeaseTerms::default() };
                    self.lease.renewed(sent, &terms);
                    self.claimed_incarnation.send_replace(Some(current));
                    tracing::info!(node = %self.node, incarnation = current, revision, "claim granted");
                    return Some(terms);
                }
                Ok(Claim::Wait(wait)) => {
                    tracing::info!(node = %self.node, ?wait, "claim must wait: an earlier incarnation of this node may still be running");
                    wait.min(CLAIM_RETRY_AFTER_MAX)
                }
                Err(CallError::Refused { code, message }) => {
                    tracing::error!(node = %self.node, %code, message, "claim refused");
                    CLAIM_RETRY_AFTER_MAX
                }
                Err(error) => {
                    tracing::debug!(%error, "claim failed");
                    Duration::ZERO
                }
            };
            tokio::select! {
                () = stop.cancelled() => return None,
                () = time::sleep(wait) => {}
            }
        }
    }

    /// Renews every third of the lease. A failed renewal is retried soon, while the lease still runs.
    async fn renew(&self, mut terms: LeaseTerms, stop: &CancellationToken) -> RenewalEnd {
        let node = self.node;
        let mut pause = terms.renew_after();
        loop {
            tokio::select! {
                () = stop.cancelled() => return RenewalEnd::Stopped,
                () = time::sleep(pause) => {}
            }
            pause = terms.renew_after();
            let sent = BootTime::now();
            let within = terms.renew_after();
            match self.directory.renew(node, self.incarnation.current(), within).await {
                Ok(renewed) => {
                    terms.length = renewed.lease;
                    self.lease.renewed(sent, &terms);
                    self.to_release.send_replace(renewed.to_release);
                }
                Err(CallError::Refused { code: Code::FailedPrecondition, message }) => {
                    tracing::error!(%node, message, "the directory has revoked this node's sources");
                    return RenewalEnd::Superseded;
                }
                Err(error) => {
                    tracing::warn!(%node, %error, "cannot renew the lease");
                    pause = RENEW_RETRY_AFTER;
                }
            }
        }
    }
}

/// Notifies the watchers when the lease ends; runs until dropped.
pub(crate) async fn watch_lease(lease: Arc<Lease>, metrics: Arc<OutboundMetrics>) {
    let mut valid = lease.watch();
    loop {
        time::sleep(lease.check()).await;
        metrics.lease_remaining.set(lease.remaining().unwrap_or_default().as_secs_f64());
        if valid.has_changed().unwrap_or(false) && !*valid.borrow_and_update() {
            metrics.lease_ends.increment(1);
            tracing::error!("the lease has ended: no mail is sent until the directory renews it");
        }
    }
}
