//! The metrics of the directory and its leases.

use postroad_telemetry::Metric;

/// Every metric recorded here.
pub const CATALOGUE: &[Metric] = &[
    Metric::gauge(REVISION, "Revision of the directory that this node has applied", &[]),
    Metric::gauge(WATCHES, "Processes that follow the directory at this node", &[]),
    Metric::gauge(UNOWNED, "Sources that no outbound node owns, as the directory's leader sees it", &[]),
    Metric::counter(DECISIONS, "Decisions of the directory's leader about leases", &["decision"]),
];

const REVISION: &str = "postroad_queue_directory_revision";
const WATCHES: &str = "postroad_queue_directory_watches";
const UNOWNED: &str = "postroad_queue_sources_unowned";
const DECISIONS: &str = "postroad_queue_lease_decisions_total";

pub(super) fn revision(revision: u64) {
    metrics::gauge!(REVISION).set(revision as f64);
}

pub(super) fn unowned(sources: usize) {
    metrics::gauge!(UNOWNED).set(sources as f64);
}

pub(super) fn decision(decision: &'static str) {
    metrics::counter!(DECISIONS, "decision" => decision).increment(1);
}

/// Counts a watch for as long as it lives.
#[derive(Debug)]
pub(super) struct Watching(());

impl Watching {
    pub(super) fn start() -> Self {
        metrics::gauge!(WATCHES).increment(1.0);
        Self(())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        metrics::gauge!(WATCHES).decrement(1.0);
    }
}
