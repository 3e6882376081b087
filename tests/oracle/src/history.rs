//! What is recorded of a run, by an observer outside of the nodes.
//!
//! Times are the observer's own steady clock: nodes may have wrong clocks, and some tests give them wrong clocks.

use std::fmt;

use postroad_core::{
    AttemptNumber, DeliveryId, Epoch, FinalState, GroupId, MessageId, NodeId, OutcomeKind, SourceId, TenantId,
};
use serde::{Deserialize, Serialize};

use crate::serial::{delivery, number, number_option, text, text_option, word};

/// Microseconds since the start of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(pub u64);

impl Micros {
    /// Returns the time passed since `earlier`, zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }

    /// Returns this time plus `delay`.
    #[must_use]
    pub const fn after(self, delay: Self) -> Self {
        Self(self.0.saturating_add(delay.0))
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06} s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// The place of a record in its history; the first is 1.
pub type RecordNumber = usize;

/// The records of a run, in the order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The records; the number of a record is its position plus 1.
    pub records: Vec<Record>,
}

impl History {
    /// Makes a history of records in any order; those of equal time keep their order.
    #[must_use]
    pub fn new(mut records: Vec<Record>) -> Self {
        records.sort_by_key(|record| record.at);
        Self { records }
    }

    /// Returns the records with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (RecordNumber, &Record)> {
        (1..).zip(&self.records)
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// When the observer saw it.
    pub at: Micros,
    /// What it saw.
    pub what: What,
}

/// What the observer saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A client began to submit a message.
    Submitted(Submitted),
    /// A client learned the result of a submission, or gave up.
    SubmitAnswered(SubmitAnswered),
    /// A client asked for a change of deliveries.
    ChangeRequested(ChangeRequested),
    /// A client learned the result of a change, or gave up.
    ChangeAnswered(ChangeAnswered),
    /// The directory acknowledged a change of policy.
    PolicyChanged(PolicyChanged),
    /// An observer learned the address of a source.
    Source(SourceAddress),
    /// A receiver got `MAIL FROM`.
    Mail(Mail),
    /// A receiver got `RCPT TO`.
    Rcpt(Rcpt),
    /// A receiver got the end of a message and decided on it.
    Message(Message),
    /// A receiver knows whether its reply to the message was read; without this record nobody knows.
    Reply(Reply),
    /// A transaction ended without a message: reset, or the connection was closed.
    Closed(Closed),
    /// A consumer read an event of a ledger group.
    Event(Event),
    /// A node started or ended.
    Node(NodeChange),
    /// A fault began or ended.
    Fault(Fault),
    /// A phase of the run began.
    Phase(Phase),
    /// A replica's hash of its state.
    StateHash(StateHash),
    /// The number of deliveries in each state, as the ledgers or the metrics count them.
    Counts(Counts),
    /// The deliveries of a replica that have not ended.
    Open(OpenDeliveries),
}

/// A client began to submit a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submitted {
    /// The submission, unique in the history. A client that tries again begins another submission.
    pub submission: u64,
    /// The ingress node that was asked, where that is known.
    #[serde(with = "number_option", default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Whose message it is.
    #[serde(with = "number")]
    pub tenant: TenantId,
    /// A text that only this message contains; a retry of the same message has the same token.
    pub token: String,
    /// Recipients, in the order of the envelope.
    pub recipients: Vec<String>,
    /// A hash of the content that every copy must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_hash: Option<u64>,
    /// The message's id, where the client knows it before the answer.
    #[serde(with = "text_option", default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
    /// No attempt before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Micros>,
    /// No attempt after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Micros>,
}

/// A client learned the result of a submission, or gave up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubmitAnswered {
    /// The submission.
    pub submission: u64,
    /// The answer.
    pub answer: SubmitAnswer,
}

/// The result of a submission, as its client knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SubmitAnswer {
    /// 250 or OK.
    Accepted {
        /// The id in the answer.
        #[serde(with = "text")]
        message: MessageId,
    },
    /// 5xx, `INVALID_ARGUMENT` and the like: nothing was stored.
    Refused {
        /// The reply.
        reply: String,
    },
    /// 4xx or `UNAVAILABLE`: the commit may have been in doubt, so the message may have been stored.
    Failed {
        /// The reply.
        reply: String,
    },
    /// The client waited as long as it wanted: the message may have been stored.
    TimedOut,
    /// The connection ended: the message may have been stored.
    ConnectionLost,
}

/// What is asked of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// End it.
    Cancel,
    /// Do not send it until it is released.
    Hold,
    /// Send it again.
    Release,
    /// Try it now.
    Retry,
}

/// A client asked for a change of deliveries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeRequested {
    /// The request, unique in the history.
    pub request: u64,
    /// The message.
    #[serde(with = "text")]
    pub message: MessageId,
    /// The recipients, by their positions in the envelope, all of them listed.
    pub recipients: Vec<u32>,
    /// What is asked.
    pub change: Change,
}

/// A client learned the result of a change, or gave up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeAnswered {
    /// The request.
    pub request: u64,
    /// The answer.
    pub answer: ChangeAnswer,
}

/// The result of a change, as its client knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAnswer {
    /// One result for each recipient, in the order of the request.
    Results(Vec<ChangeResult>),
    /// An error: the change may have been made.
    Failed,
    /// The client waited as long as it wanted: the change may have been made.
    TimedOut,
    /// The connection ended: the change may have been made.
    ConnectionLost,
}

/// What became of a change of one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeResult {
    /// It took effect.
    Done,
    /// The delivery has ended.
    AlreadyEnded,
    /// An attempt is under way; it takes effect unless that attempt ends the delivery.
    InFlight,
    /// Nothing to do.
    Unchanged,
}

/// The directory acknowledged a change of policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyChanged {
    /// The directory's revision after it.
    pub revision: u64,
    /// What changed, for people.
    pub what: String,
}

/// The address of a source, which no other source has and which does not change in the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceAddress {
    /// The source, as events name it.
    #[serde(with = "number")]
    pub source: SourceId,
    /// Its address, as receivers see it.
    pub address: String,
}

/// A receiver got `MAIL FROM`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    /// The transaction, unique in the history.
    pub transaction: u64,
    /// The address that it comes from.
    pub source: String,
    /// The outbound node, where the receiver knows it.
    #[serde(with = "number_option", default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The message, where the receiver knows it this early; without it, [`Message`] says it.
    #[serde(with = "text_option", default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
}

/// A receiver got `RCPT TO`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rcpt {
    /// The transaction.
    pub transaction: u64,
    /// The recipient.
    pub recipient: String,
    /// The reply.
    pub code: u16,
}

/// A receiver got the end of a message and decided on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// The transaction.
    pub transaction: u64,
    /// The id in its first `Received` field.
    #[serde(with = "text_option", default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
    /// The token that it contains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The hash of its content, made like that of the submission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_hash: Option<u64>,
    /// The reply; with 2xx the receiver has a copy for each recipient that it did not refuse.
    pub code: u16,
}

/// Whether the reply to a message was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// The transaction.
    pub transaction: u64,
    /// The sender has read it, or cannot have read it.
    pub read: bool,
}

/// A transaction ended without a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closed {
    /// The transaction.
    pub transaction: u64,
}

/// An event of a ledger group. A consumer may read one more than once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// The queue node that it was read from.
    #[serde(with = "number")]
    pub node: NodeId,
    /// The group.
    #[serde(with = "number")]
    pub group: GroupId,
    /// Its number in the group; the first is 1.
    pub sequence: u64,
    /// The ledger's time.
    pub ledger_millis: u64,
    /// What happened.
    pub kind: EventKind,
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EventKind {
    /// The ledger took responsibility for a message.
    Accepted {
        /// The message.
        #[serde(with = "text")]
        message: MessageId,
        /// Whose it is.
        #[serde(with = "number")]
        tenant: TenantId,
        /// Recipients, in the order of the envelope.
        recipients: Vec<String>,
    },
    /// An attempt ended.
    Attempt(Attempt),
    /// A delivery ended without an attempt; also by a cancel.
    Ended {
        /// The delivery.
        #[serde(with = "delivery")]
        delivery: DeliveryId,
        /// How.
        #[serde(with = "word")]
        state: FinalState,
    },
    /// It is not sent until it is released.
    Held {
        /// The delivery.
        #[serde(with = "delivery")]
        delivery: DeliveryId,
    },
    /// It is due again.
    Released {
        /// The delivery.
        #[serde(with = "delivery")]
        delivery: DeliveryId,
    },
    /// It is due at once.
    Retried {
        /// The delivery.
        #[serde(with = "delivery")]
        delivery: DeliveryId,
    },
    /// Somebody asked for a change while an attempt was under way.
    Requested {
        /// The delivery.
        #[serde(with = "delivery")]
        delivery: DeliveryId,
        /// What was asked.
        change: Change,
    },
    /// Events from this number on were dropped before they were read.
    Gap {
        /// The last one dropped.
        through: u64,
    },
}

/// An attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// The delivery.
    #[serde(with = "delivery")]
    pub delivery: DeliveryId,
    /// Which attempt at it.
    #[serde(with = "number")]
    pub attempt: AttemptNumber,
    /// From which source.
    #[serde(with = "number")]
    pub source: SourceId,
    /// Under which epoch.
    #[serde(with = "number")]
    pub epoch: Epoch,
    /// By which outbound node.
    #[serde(with = "number")]
    pub node: NodeId,
    /// How it ended.
    #[serde(with = "word")]
    pub outcome: OutcomeKind,
    /// The delivery's next state.
    pub next: NextState,
}

/// The state of a delivery after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NextState {
    /// It waits for another attempt.
    Retry,
    /// It has ended.
    Ended(#[serde(with = "word")] FinalState),
    /// It is held.
    Held,
    /// As before: the report came late.
    Unchanged,
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Accepts mail.
    Ingress,
    /// A replica of the directory and the ledgers.
    Queue,
    /// Delivers.
    Outbound,
    /// Keeps the history.
    Control,
}

/// A node started or ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeChange {
    /// The node.
    #[serde(with = "number")]
    pub node: NodeId,
    /// What it is for.
    pub role: Role,
    /// It runs from now on; otherwise it was killed or lost power.
    pub runs: bool,
}

/// A fault began or ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Its name: the same when it begins and when it ends.
    pub name: String,
    /// The nodes that it concerns, or empty for all.
    #[serde(with = "crate::serial::nodes")]
    pub nodes: Vec<NodeId>,
    /// It begins.
    pub on: bool,
}

/// A phase of the run. A history is complete once nothing more is to be expected: after [`Phase::Quiet`], or after the
/// time of [`Phase::Liveness`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Phase {
    /// Faults may begin; only what must never happen is judged.
    Safety,
    /// No fault is active and all nodes run: all is quiet after this time.
    Liveness {
        /// The bound.
        within: Micros,
    },
    /// All is quiet: every delivery has ended or is held, and its events were read.
    Quiet,
}

/// A replica's hash of its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateHash {
    /// The group.
    #[serde(with = "number")]
    pub group: GroupId,
    /// The last entry that was applied.
    pub index: u64,
    /// The replica.
    #[serde(with = "number")]
    pub node: NodeId,
    /// The hash.
    pub hash: u64,
}

/// Where counts come from. The third source, the events, are in the history themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counter {
    /// The state of all ledgers.
    Ledger,
    /// The metrics of all nodes.
    Metrics,
}

/// The number of a tenant's deliveries in each state, over all groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Who counts.
    pub by: Counter,
    /// Whose deliveries.
    #[serde(with = "number")]
    pub tenant: TenantId,
    /// Every recipient of every message that was accepted.
    pub accepted: u64,
    /// Not ended.
    pub open: u64,
    /// Ended as delivered.
    pub delivered: u64,
    /// Ended as bounced.
    pub bounced: u64,
    /// Ended as expired.
    pub expired: u64,
    /// Ended as cancelled.
    pub cancelled: u64,
    /// Ended as suppressed.
    pub suppressed: u64,
}

/// The deliveries of a replica that have not ended, after an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenDeliveries {
    /// The group.
    #[serde(with = "number")]
    pub group: GroupId,
    /// The replica.
    #[serde(with = "number")]
    pub node: NodeId,
    /// The number of its last event; 0 before the first.
    pub event: u64,
    /// The tenants that have any.
    pub tenants: Vec<OpenOfTenant>,
}

/// The deliveries of a tenant that have not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenOfTenant {
    /// The tenant.
    #[serde(with = "number")]
    pub tenant: TenantId,
    /// How many.
    pub open: u64,
}
