//! What a queue node counts.

use std::sync::atomic::Ordering;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use postroad_core::{GroupId, OutcomeKind};
use postroad_proto::queue::SubmitStatus;
use postroad_raft::DiskStatus;
use postroad_storage::{Log, Room};
use postroad_telemetry::Metric;

/// Everything this crate records.
pub const CATALOGUE: &[Metric] = &[
    Metric::counter("postroad_queue_submissions_total", "Submissions answered, by result", &["result"]),
    Metric::counter("postroad_queue_assigned_total", "Deliveries assigned to outbound nodes", &["group"]),
    Metric::counter("postroad_queue_finished_total", "Messages that ended for every recipient", &["group"]),
    Metric::counter("postroad_queue_reports_total", "Attempts reported, by outcome", &["outcome"]),
    Metric::counter(
        "postroad_queue_unconfirmed_total",
        "Deliveries stopped because the receiver may have as many copies as are allowed and never confirmed one",
        &["group"],
    ),
    Metric::counter(
        "postroad_queue_reclaims_total",
        "Sources whose unreported attempts were given up",
        &["group"],
    ),
    Metric::counter(
        "postroad_queue_unreadable_contents_total",
        "Contents that could not be read for an attempt",
        &["group"],
    ),
    Metric::histogram(
        "postroad_queue_commit_seconds",
        "From proposing an entry to having applied it",
        &["group"],
    ),
    Metric::histogram("postroad_queue_entry_commands", "Commands in one entry", &["group"]),
    Metric::gauge("postroad_queue_leading", "1 while this node leads the group", &["group"]),
    Metric::gauge("postroad_queue_term", "The group's term as this node knows it", &["group"]),
    Metric::gauge("postroad_queue_applied_index", "The last entry applied", &["group"]),
    Metric::gauge("postroad_queue_messages", "Messages that have not ended", &["group"]),
    Metric::gauge(
        "postroad_queue_deliveries",
        "Deliveries that have not ended, by state",
        &["group", "state"],
    ),
    Metric::gauge(
        "postroad_queue_ready_deliveries",
        "Deliveries that are due and wait for a lane with room; the leader knows",
        &["group"],
    ),
    Metric::gauge(
        "postroad_queue_oldest_message_seconds",
        "Age of the oldest message that has not ended",
        &["group"],
    ),
    Metric::gauge(
        "postroad_queue_event_bytes",
        "Events kept for consumers that have not read them",
        &["group"],
    ),
    Metric::gauge("postroad_queue_events_unread", "Events the control role has not consumed", &["group"]),
    Metric::gauge("postroad_queue_sessions", "Outbound nodes connected to the group's leader", &["group"]),
    Metric::gauge("postroad_queue_waiting_bytes", "Submissions that wait to be committed", &["group"]),
    Metric::gauge(
        "postroad_queue_disk_full",
        "1 while the disk has only the room that is kept for what frees room",
        &[],
    ),
    Metric::gauge(
        "postroad_queue_disk_refused",
        "1 while this node does not count, because its disk is not the one it had, or an old copy",
        &[],
    ),
    Metric::counter("postroad_queue_log_body_bytes_total", "Contents handed to the log", &[]),
    Metric::counter("postroad_queue_log_written_bytes_total", "Everything written to the log", &[]),
    Metric::counter(
        "postroad_queue_log_moved_bytes_total",
        "Contents moved because they outlived their segment",
        &[],
    ),
    Metric::counter("postroad_queue_log_batches_total", "Writes to the log, each with one sync", &[]),
];

/// The handles of one ledger group.
#[derive(Clone)]
pub(crate) struct LedgerMetrics {
    pub(crate) assigned: Counter,
    pub(crate) finished: Counter,
    pub(crate) unconfirmed: Counter,
    pub(crate) reclaims: Counter,
    pub(crate) unreadable: Counter,
    pub(crate) commit: Histogram,
    pub(crate) commands: Histogram,
    pub(crate) applied: Gauge,
    pub(crate) messages: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) assigned_now: Gauge,
    pub(crate) held: Gauge,
    pub(crate) ready: Gauge,
    pub(crate) oldest: Gauge,
    pub(crate) event_bytes: Gauge,
    pub(crate) unread: Gauge,
    pub(crate) sessions: Gauge,
    pub(crate) waiting_bytes: Gauge,
}

impl LedgerMetrics {
    pub(crate) fn new(group: GroupId) -> Self {
        let group = group.to_string();
        let deliveries = |state: &'static str| gauge!("postroad_queue_deliveries", "group" => group.clone(), "state" => state);
        Self {
            assigned: counter!("postroad_queue_assigned_total", "group" => group.clone()),
            finished: counter!("postroad_queue_finished_total", "group" => group.clone()),
            unconfirmed: counter!("postroad_queue_unconfirmed_total", "group" => group.clone()),
            reclaims: counter!("postroad_queue_reclaims_total", "group" => group.clone()),
            unreadable: counter!("postroad_queue_unreadable_contents_total", "group" => group.clone()),
            commit: histogram!("postroad_queue_commit_seconds", "group" => group.clone()),
            commands: histogram!("postroad_queue_entry_commands", "group" => group.clone()),
            applied: gauge!("postroad_queue_applied_index", "group" => group.clone()),
            messages: gauge!("postroad_queue_messages", "group" => group.clone()),
            waiting: deliveries("waiting"),
            assigned_now: deliveries("assigned"),
            held: deliveries("held"),
            ready: gauge!("postroad_queue_ready_deliveries", "group" => group.clone()),
            oldest: gauge!("postroad_queue_oldest_message_seconds", "group" => group.clone()),
            event_bytes: gauge!("postroad_queue_event_bytes", "group" => group.clone()),
            unread: gauge!("postroad_queue_events_unread", "group" => group.clone()),
            sessions: gauge!("postroad_queue_sessions", "group" => group.clone()),
            waiting_bytes: gauge!("postroad_queue_waiting_bytes", "group" => group),
        }
    }
}

/// Says whether this node leads a group, the directory among them, and in which term.
pub(crate) fn leadership(group: GroupId, leading: bool, term: u64) {
    let group = group.to_string();
    gauge!("postroad_queue_leading", "group" => group.clone()).set(f64::from(u8::from(leading)));
    gauge!("postroad_queue_term", "group" => group).set(term as f64);
}

/// The handles of the node's log.
pub(crate) struct LogMetrics {
    pub(crate) full: Gauge,
    pub(crate) body_bytes: Counter,
    pub(crate) written_bytes: Counter,
    pub(crate) moved_bytes: Counter,
    pub(crate) batches: Counter,
}

impl LogMetrics {
    pub(crate) fn new() -> Self {
        Self {
            full: gauge!("postroad_queue_disk_full"),
            body_bytes: counter!("postroad_queue_log_body_bytes_total"),
            written_bytes: counter!("postroad_queue_log_written_bytes_total"),
            moved_bytes: counter!("postroad_queue_log_moved_bytes_total"),
            batches: counter!("postroad_queue_log_batches_total"),
        }
    }

    pub(crate) fn observe(&self, log: &Log) {
        let stats = log.stats();
        self.full.set(f64::from(u8::from(log.room() != Room::Plenty)));
        self.body_bytes.absolute(stats.body_bytes.load(Ordering::Relaxed));
        self.written_bytes.absolute(stats.written_bytes.load(Ordering::Relaxed));
        self.moved_bytes.absolute(stats.survivor_bytes.load(Ordering::Relaxed));
        self.batches.absolute(stats.batches.load(Ordering::Relaxed));
    }
}

/// What others make of the node's disk.
pub(crate) struct DiskMetrics(Gauge);

impl DiskMetrics {
    pub(crate) fn new() -> Self {
        Self(gauge!("postroad_queue_disk_refused"))
    }

    pub(crate) fn observe(&self, status: DiskStatus) {
        self.0.set(f64::from(u8::from(status != DiskStatus::Accepted)));
    }
}

/// One counter for each way a submission is answered.
#[derive(Clone)]
pub(crate) struct SubmitMetrics(Vec<(SubmitStatus, Counter)>);

impl SubmitMetrics {
    pub(crate) fn new() -> Self {
        let named = [
            (SubmitStatus::Accepted, "accepted"),
            (SubmitStatus::NotLeader, "not_leader"),
            (SubmitStatus::Unavailable, "unavailable"),
            (SubmitStatus::Unknown, "unknown"),
            (SubmitStatus::StorageFull, "storage_full"),
            (SubmitStatus::TooOld, "too_old"),
            (SubmitStatus::ChunkMissing, "chunk_missing"),
            (SubmitStatus::Invalid, "invalid"),
        ];
        let counter = |result: &'static str| counter!("postroad_queue_submissions_total", "result" => result);
        Self(named.into_iter().map(|(status, result)| (status, counter(result))).collect())
    }

    pub(crate) fn count(&self, status: SubmitStatus) {
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| *known == status) {
            counter.increment(1);
        }
    }
}

/// One counter for each outcome.
#[derive(Clone)]
pub(crate) struct ReportMetrics(Vec<(OutcomeKind, Counter)>);

impl ReportMetrics {
    pub(crate) fn new() -> Self {
        let counter = |kind: &OutcomeKind| {
            (*kind, counter!("postroad_queue_reports_total", "outcome" => kind.as_str()))
        };
        Self(OutcomeKind::ALL.iter().map(counter).collect())
    }

    pub(crate) fn count(&self, kind: OutcomeKind) {
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| *known == kind) {
            counter.increment(1);
        }
    }
}
