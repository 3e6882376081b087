//! What a queue node counts.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use postroad_core::{GroupId, NodeId, OutcomeKind};
use postroad_net::Role;
use postroad_proto::queue::SubmitStatus;
use postroad_raft::{DiskStatus, Replication};
use postroad_storage::{Log, Room};
use postroad_telemetry::{Counter, Depths, Gauge, Histogram, Label};

const ROLE: Label = Label::one_of("role", &["ingress", "queue", "outbound", "control"]);
const GROUP: Label = Label::few("group", "the numbers of the groups; 0 is the directory");
const FOLLOWER: Label = Label::few("follower", "the ids of queue nodes");
const RESULT: Label = Label::one_of("result", &SUBMIT_RESULTS);
const CAUSE: Label = Label::one_of("cause", &["malformed", "too_many"]);
const OUTCOME: Label = Label::one_of("outcome", OutcomeKind::NAMES);
const STATE: Label = Label::one_of("state", &["queued", "sending", "held"]);
const SITE: Label =
    Label::ranked("site", "the sites of receivers: a normalised set of MX hosts, or a domain");
const TENANT: Label = Label::ranked("tenant", "the names of tenants");
const POOL: Label = Label::ranked("pool", "the names of pools");

const SUBMIT_RESULTS: [&str; 8] = [
    "accepted",
    "not_leader",
    "unavailable",
    "unknown",
    "storage_full",
    "too_old",
    "chunk_missing",
    "invalid",
];

pub use crate::directory::metrics::CATALOGUE as DIRECTORY_CATALOGUE;

postroad_telemetry::catalogue! {
    /// Submissions answered, by result
    counter SUBMISSIONS = "postroad_queue_submissions_total" [RESULT];
    /// Deliveries assigned to outbound nodes
    counter ASSIGNED = "postroad_queue_assigned_total" [GROUP];
    /// Messages that ended for every recipient
    counter FINISHED = "postroad_queue_finished_total" [GROUP];
    /// Attempts reported, by outcome
    counter REPORTS = "postroad_queue_reports_total" [OUTCOME];
    /// Deliveries stopped because the receiver may have as many copies as are allowed and never confirmed one
    counter UNCONFIRMED = "postroad_queue_unconfirmed_total" [GROUP];
    /// Sources whose unreported attempts ended as unknown, because the source changed hands
    counter RECLAIMS = "postroad_queue_reclaims_total" [GROUP];
    /// Message bodies that were unreadable when an attempt needed them
    counter UNREADABLE = "postroad_queue_unreadable_contents_total" [GROUP];
    /// Reports of lanes that were dropped because they are malformed, or because an outbound node has more lanes than a leader keeps
    counter LANES_DROPPED = "postroad_queue_lane_reports_dropped_total" [GROUP, CAUSE];
    /// Time from proposing a log entry to having applied it
    histogram COMMIT = "postroad_queue_commit_seconds" [GROUP];
    /// Commands in one log entry
    histogram COMMANDS = "postroad_queue_entry_commands" [GROUP];
    /// 1 while this node leads the group
    gauge LEADING = "postroad_queue_leading" [GROUP];
    /// The term of the group as this node knows it
    gauge TERM = "postroad_queue_term" [GROUP];
    /// Queue nodes that vote in the group; on the leader
    gauge VOTERS = "postroad_queue_voters" [GROUP];
    /// Voters that answered the leader within the last second or three heartbeats, the leader among them; on the leader
    gauge ANSWERING = "postroad_queue_voters_answering" [GROUP];
    /// Bytes of the log that a follower has not confirmed; on the leader
    gauge FOLLOWER_BEHIND = "postroad_queue_follower_behind_bytes" [GROUP, FOLLOWER];
    /// The last log entry applied
    gauge APPLIED = "postroad_queue_applied_index" [GROUP];
    /// Messages that have not ended
    gauge MESSAGES = "postroad_queue_messages" [GROUP];
    /// Deliveries that have not ended, by state; those that are deferred count as queued
    gauge DELIVERIES = "postroad_queue_deliveries" [GROUP, STATE];
    /// Deliveries that have not ended, by site; on the leader
    ranked_gauge SITE_DELIVERIES = "postroad_queue_site_deliveries" [GROUP, SITE];
    /// Deliveries that have not ended, by tenant; on the leader
    ranked_gauge TENANT_DELIVERIES = "postroad_queue_tenant_deliveries" [GROUP, TENANT];
    /// Deliveries that are due and wait for a lane with room; on the leader
    gauge READY = "postroad_queue_ready_deliveries" [GROUP];
    /// Deliveries that are due and wait for a lane with room, by pool; on the leader
    ranked_gauge POOL_READY = "postroad_queue_pool_ready_deliveries" [GROUP, POOL];
    /// Time for which the delivery that has waited longest for a lane with room has been due, without what is suspended; on the leader
    gauge LONGEST_WAIT = "postroad_queue_longest_wait_seconds" [GROUP];
    /// Age of the oldest message that has not ended
    gauge OLDEST = "postroad_queue_oldest_message_seconds" [GROUP];
    /// Bytes of events that are kept because control has not read them
    gauge EVENT_BYTES = "postroad_queue_event_bytes" [GROUP];
    /// Bytes of events that control has not read, as a share of queue.event_bytes_max; beyond 1 the oldest are dropped
    gauge EVENT_FILL = "postroad_queue_event_fill_ratio" [GROUP];
    /// Events that control has not read
    gauge UNREAD = "postroad_queue_unread_events" [GROUP];
    /// Outbound nodes that are connected to the leader of the group
    gauge SESSIONS = "postroad_queue_sessions" [GROUP];
    /// Bytes of submissions that wait to be committed
    gauge WAITING_BYTES = "postroad_queue_waiting_bytes" [GROUP];
    /// 1 while the disk has only the room that is reserved for what frees room: no mail is accepted
    gauge DISK_FULL = "postroad_queue_disk_full" [];
    /// 1 while the other queue nodes refuse the disk of this one: it is not the one they know, or an old copy of it
    gauge DISK_REFUSED = "postroad_queue_disk_refused" [];
    /// Bytes of message bodies given to the log
    counter LOG_BODY_BYTES = "postroad_queue_log_body_bytes_total" [];
    /// Bytes written to the log, all of them
    counter LOG_WRITTEN_BYTES = "postroad_queue_log_written_bytes_total" [];
    /// Bytes of message bodies that were moved because they outlived their segment
    counter LOG_MOVED_BYTES = "postroad_queue_log_moved_bytes_total" [];
    /// Writes to the log, each with one sync
    counter LOG_BATCHES = "postroad_queue_log_batches_total" [];
    /// Nodes that announced themselves to this queue node within the last 90 seconds, by role
    gauge NODES = "postroad_queue_announced_nodes" [ROLE];
    /// Announcements of nodes that this queue node does not list, because as many as it keeps are running
    counter ANNOUNCEMENTS_REFUSED = "postroad_queue_announcements_refused_total" [];
}

/// How many deliveries each site has, in each group.
pub(crate) static SITES: Depths = Depths::new(&SITE_DELIVERIES);
/// How many deliveries each tenant has, in each group.
pub(crate) static TENANTS: Depths = Depths::new(&TENANT_DELIVERIES);
/// How many due deliveries each pool has, in each group.
pub(crate) static POOLS: Depths = Depths::new(&POOL_READY);

/// The handles of one ledger group.
#[derive(Clone)]
pub(crate) struct LedgerMetrics {
    pub(crate) assigned: Counter,
    pub(crate) finished: Counter,
    pub(crate) unconfirmed: Counter,
    pub(crate) reclaims: Counter,
    pub(crate) unreadable: Counter,
    pub(crate) lanes_malformed: Counter,
    pub(crate) lanes_too_many: Counter,
    pub(crate) commit: Histogram,
    pub(crate) commands: Histogram,
    pub(crate) applied: Gauge,
    pub(crate) messages: Gauge,
    pub(crate) queued: Gauge,
    pub(crate) sending: Gauge,
    pub(crate) held: Gauge,
    pub(crate) ready: Gauge,
    pub(crate) longest_wait: Gauge,
    pub(crate) oldest: Gauge,
    pub(crate) event_bytes: Gauge,
    pub(crate) event_fill: Gauge,
    pub(crate) unread: Gauge,
    pub(crate) sessions: Gauge,
    pub(crate) waiting_bytes: Gauge,
}

impl LedgerMetrics {
    pub(crate) fn new(group: GroupId) -> Self {
        let group = &*group.to_string();
        Self {
            assigned: ASSIGNED.with([group]),
            finished: FINISHED.with([group]),
            unconfirmed: UNCONFIRMED.with([group]),
            reclaims: RECLAIMS.with([group]),
            unreadable: UNREADABLE.with([group]),
            lanes_malformed: LANES_DROPPED.with([group, "malformed"]),
            lanes_too_many: LANES_DROPPED.with([group, "too_many"]),
            commit: COMMIT.with([group]),
            commands: COMMANDS.with([group]),
            applied: APPLIED.with([group]),
            messages: MESSAGES.with([group]),
            queued: DELIVERIES.with([group, "queued"]),
            sending: DELIVERIES.with([group, "sending"]),
            held: DELIVERIES.with([group, "held"]),
            ready: READY.with([group]),
            longest_wait: LONGEST_WAIT.with([group]),
            oldest: OLDEST.with([group]),
            event_bytes: EVENT_BYTES.with([group]),
            event_fill: EVENT_FILL.with([group]),
            unread: UNREAD.with([group]),
            sessions: SESSIONS.with([group]),
            waiting_bytes: WAITING_BYTES.with([group]),
        }
    }
}

/// Says whether this node leads a group, the directory among them, and in which term.
pub(crate) fn leadership(group: GroupId, leading: bool, term: u64) {
    let group = &*group.to_string();
    LEADING.with([group]).set(f64::from(u8::from(leading)));
    TERM.with([group]).set(term as f64);
}

/// How the other voters of one group follow: shown by the leader, and zero on the others.
pub(crate) struct ReplicationMetrics {
    group: String,
    voters: Gauge,
    answering: Gauge,
    /// Every follower that this node has replicated to.
    behind: BTreeMap<NodeId, Gauge>,
}

impl ReplicationMetrics {
    pub(crate) fn new(group: GroupId) -> Self {
        let group = group.to_string();
        let (voters, answering) = (VOTERS.with([&group]), ANSWERING.with([&group]));
        Self { group, voters, answering, behind: BTreeMap::new() }
    }

    pub(crate) fn observe(&mut self, replication: Option<Replication>) {
        let Replication { voters, answering, behind } = replication.unwrap_or_default();
        self.voters.set(voters as f64);
        self.answering.set(answering as f64);
        self.behind.values().for_each(|gauge| gauge.set(0.0));
        for (node, bytes) in behind {
            let make = || FOLLOWER_BEHIND.with([&self.group, &node.to_string()]);
            self.behind.entry(node).or_insert_with(make).set(bytes as f64);
        }
    }
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
            full: DISK_FULL.with([]),
            body_bytes: LOG_BODY_BYTES.with([]),
            written_bytes: LOG_WRITTEN_BYTES.with([]),
            moved_bytes: LOG_MOVED_BYTES.with([]),
            batches: LOG_BATCHES.with([]),
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
        Self(DISK_REFUSED.with([]))
    }

    pub(crate) fn observe(&self, status: DiskStatus) {
        self.0.set(f64::from(u8::from(status != DiskStatus::Accepted)));
    }
}

/// How many nodes of each role run, as far as this queue node knows.
pub(crate) struct NodeMetrics {
    running: [(Role, Gauge); 4],
    refused: Counter,
}

impl NodeMetrics {
    pub(crate) fn new() -> Self {
        let roles = [Role::Ingress, Role::Queue, Role::Outbound, Role::Control];
        let running = roles.map(|role| (role, NODES.with([role.name()])));
        Self { running, refused: ANNOUNCEMENTS_REFUSED.with([]) }
    }

    pub(crate) fn observe(&self, running: impl Fn(Role) -> usize) {
        for (role, gauge) in &self.running {
            gauge.set(running(*role) as f64);
        }
    }

    /// An announcement was refused because the list is full.
    pub(crate) fn refused(&self) {
        self.refused.increment(1);
    }
}

/// One counter for each way a submission is answered.
#[derive(Clone)]
pub(crate) struct SubmitMetrics(Vec<(SubmitStatus, Counter)>);

impl SubmitMetrics {
    pub(crate) fn new() -> Self {
        let statuses = [
            SubmitStatus::Accepted,
            SubmitStatus::NotLeader,
            SubmitStatus::Unavailable,
            SubmitStatus::Unknown,
            SubmitStatus::StorageFull,
            SubmitStatus::TooOld,
            SubmitStatus::ChunkMissing,
            SubmitStatus::Invalid,
        ];
        let named = statuses.into_iter().zip(SUBMIT_RESULTS);
        Self(named.map(|(status, result)| (status, SUBMISSIONS.with([result]))).collect())
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
        let counter = |kind: &OutcomeKind| (*kind, REPORTS.with([kind.as_str()]));
        Self(OutcomeKind::ALL.iter().map(counter).collect())
    }

    pub(crate) fn count(&self, kind: OutcomeKind) {
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| *known == kind) {
            counter.increment(1);
        }
    }
}
