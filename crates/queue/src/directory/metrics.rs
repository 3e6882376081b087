//! The metrics of the directory and its leases.

use postroad_core::Scope;
use postroad_directory::View;
use postroad_telemetry::Label;

const DECISIONS: [&str; 4] = ["claim", "grant", "release", "revoke"];
const DECISION: Label = Label::one_of("decision", &DECISIONS);
const SCOPE: Label = Label::one_of("scope", Scope::KINDS);

postroad_telemetry::catalogue! {
    /// Revision of the directory that this node has applied
    gauge REVISION = "postroad_queue_directory_revision" [];
    /// Processes that watch the directory on this node
    gauge WATCHES = "postroad_queue_directory_watches" [];
    /// Sources that no outbound node owns, as the leader of the directory sees it
    gauge UNOWNED = "postroad_queue_sources_unowned" [];
    /// Decisions about leases that the leader of the directory made
    counter LEASE_DECISIONS = "postroad_queue_lease_decisions_total" [DECISION];
    /// Suspensions in force that this node has applied, by what they stop
    gauge SUSPENSIONS = "postroad_queue_suspensions" [SCOPE];
    /// Calls to suspend that were refused because there are too many suspensions
    counter SUSPENSIONS_FULL = "postroad_queue_suspensions_full_total" [];
}

pub(super) fn revision(revision: u64) {
    REVISION.with([]).set(revision as f64);
}

pub(super) fn unowned(sources: usize) {
    UNOWNED.with([]).set(sources as f64);
}

pub(super) fn suspensions(view: &View) {
    for kind in Scope::KINDS {
        let count = view.suspensions().filter(|suspension| suspension.scope.kind() == *kind).count();
        SUSPENSIONS.with([kind]).set(count as f64);
    }
}

pub(super) fn suspensions_full() {
    SUSPENSIONS_FULL.with([]).increment(1);
}

/// Shows every counter at zero: `rate` misses the first event of a counter that appears with it.
pub(super) fn show_counters() {
    SUSPENSIONS_FULL.with([]).increment(0);
    for decision in DECISIONS {
        LEASE_DECISIONS.with([decision]).increment(0);
    }
}

pub(super) fn decision(decision: &'static str) {
    LEASE_DECISIONS.with([decision]).increment(1);
}

/// Counts a watch for as long as it lives.
#[derive(Debug)]
pub(super) struct Watching(());

impl Watching {
    pub(super) fn start() -> Self {
        WATCHES.with([]).increment(1.0);
        Self(())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        WATCHES.with([]).decrement(1.0);
    }
}
