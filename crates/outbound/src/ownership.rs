//! Claims this node's sources when it starts, and keeps the lease on them.

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

/// Speaks for this node at the directory.
#[derive(Debug)]
pub(crate) struct Ownership {
    /// The node.
    pub(crate) node: NodeId,
    /// Which run of it.
    pub(crate) incarnation: Incarnation,
    /// The directory's leader.
    pub(crate) directory: DirectoryClient,
    /// What the directory grants.
    pub(crate) lease: Arc<Lease>,
    /// The run whose claim stands.
    pub(crate) tenure: watch::Sender<Option<u64>>,
    /// What the directory has asked for with the last renewal.
    pub(crate) asked: watch::Sender<Vec<(SourceId, Epoch)>>,
}

/// How long after a renewal that failed the next one is tried.
const RENEW_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How long to ask before the next try.
const CLAIM_WITHIN: Duration = Duration::from_secs(5);
/// The longest wait for a claim that does not stand yet; the directory may tell a shorter one.
const CLAIM_AGAIN_AFTER_MAX: Duration = Duration::from_secs(5);
const RELEASE_WITHIN: Duration = Duration::from_secs(2);

/// Why renewing ended.
enum Renewing {
    /// The node stops.
    Stopped,
    /// Another run of this node has claimed, or the directory took this one for dead.
    Superseded,
}

impl Ownership {
    /// Claims and renews until `stop`, then lets go of everything.
    ///
    /// # Errors
    /// A new run had to begin and could not be written down: nothing may be used any more.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), StartError> {
        loop {
            let Some(terms) = self.claim(&stop).await else { return Ok(()) };
            match self.renew(terms, &stop).await {
                Renewing::Stopped => break,
                Renewing::Superseded => {}
            }
            self.lease.revoked();
            self.tenure.send_replace(None);
            // Everything of this run is aborted; the next one starts from nothing.
            self.incarnation.renew(rand::random())?;
        }
        self.lease.revoked();
        let released = self.directory.release(self.node, self.incarnation.current(), RELEASE_WITHIN).await;
        match released {
            Ok(()) => tracing::info!(node = %self.node, "sources released"),
            Err(error) => {
                tracing::warn!(%error, "sources not released: others get them when the lease is over")
            }
        }
        Ok(())
    }

    /// Claims until it stands; `None` when the node stops first.
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
                    self.tenure.send_replace(Some(current));
                    tracing::info!(node = %self.node, incarnation = current, revision, "claim granted");
                    return Some(terms);
                }
                Ok(Claim::Wait(wait)) => {
                    tracing::info!(node = %self.node, ?wait, "an earlier run of this node may be alive");
                    wait.min(CLAIM_AGAIN_AFTER_MAX)
                }
                Err(CallError::Refused { code, message }) => {
                    tracing::error!(node = %self.node, %code, message, "claim refused");
                    CLAIM_AGAIN_AFTER_MAX
                }
                Err(error) => {
                    tracing::debug!(%error, "claim not answered");
                    Duration::ZERO
                }
            };
            tokio::select! {
                () = stop.cancelled() => return None,
                () = time::sleep(wait) => {}
            }
        }
    }

    /// Renews every third of the lease. A renewal that fails is tried again at once: the lease runs on meanwhile.
    async fn renew(&self, mut terms: LeaseTerms, stop: &CancellationToken) -> Renewing {
        let node = self.node;
        let mut pause = terms.renew_after();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Renewing::Stopped,
                () = time::sleep(pause) => {}
            }
            pause = terms.renew_after();
            let sent = BootTime::now();
            let within = terms.renew_after();
            match self.directory.renew(node, self.incarnation.current(), within).await {
                Ok(renewed) => {
                    terms.length = renewed.lease;
                    self.lease.renewed(sent, &terms);
                    self.asked.send_replace(renewed.to_release);
                }
                Err(CallError::Refused { code: Code::FailedPrecondition, message }) => {
                    tracing::error!(%node, message, "the directory has given this node's sources up");
                    return Renewing::Superseded;
                }
                Err(error) => {
                    tracing::warn!(%node, %error, "lease not renewed");
                    pause = RENEW_AGAIN_AFTER;
                }
            }
        }
    }
}

/// Tells everyone when the lease ends; runs until dropped.
pub(crate) async fn watch_lease(lease: Arc<Lease>, metrics: Arc<OutboundMetrics>) {
    let mut held = lease.watch();
    loop {
        time::sleep(lease.check()).await;
        metrics.lease_remaining.set(lease.remaining().unwrap_or_default().as_secs_f64());
        if held.has_changed().unwrap_or(false) && !*held.borrow_and_update() {
            metrics.lease_ends.increment(1);
            tracing::error!("the lease is over: nothing is sent until the directory answers");
        }
    }
}
