//! The commands of a ledger, and its replies.
//!
//! A command carries everything it needs: times, ids and the leader's choices are inside.

use std::sync::Arc;

use postroad_core::{
    Address, AttemptNumber, DeliveryId, Epoch, MessageId, NodeId, Outcome, PoolId, SourceId, TenantId,
    Timestamp,
};

use crate::Finished;

/// One change of the ledger's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A message and its envelope; the ledger becomes responsible for every recipient.
    Accept(Box<Accept>),
    /// Assigns a delivery to the owner of a source.
    Assign(Assign),
    /// An attempt ended.
    Report(Box<Report>, NextTry),
    /// The owner returned an attempt without starting it; it does not count.
    Return(AttemptId),
    /// The owner does not return a recalled attempt: it has started.
    Started(AttemptId),
    /// Ends attempts of a source under epochs below `below` as unknown: their owner can no longer report them.
    Reclaim {
        /// The source that changed hands.
        source: SourceId,
        /// Its new epoch.
        below: Epoch,
        /// When these deliveries are due again.
        next_try: NextTry,
        /// When those are due again that an earlier attempt has left unknown too: their owner fails again and again.
        repeated_at: Timestamp,
    },
    /// Somebody changes deliveries of a message that have not ended.
    Change(Box<ChangeRequest>),
    /// Expires deliveries that are past their message's expiry and not assigned.
    Expire(Vec<DeliveryId>),
    /// A consumer has read events up to and including this one.
    Consume {
        /// At most 64 bytes.
        consumer: Box<str>,
        /// The last event it has read.
        through: u64,
    },
    /// A chunk of the content of a message that follows.
    StageChunk {
        /// The id the message will have.
        message: MessageId,
        /// Position of the chunk, from 0.
        number: u32,
        /// The chunk's body in the entry that carries this command.
        slot: u32,
    },
}

/// A change of the deliveries of one message, which a person or a program asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeRequest {
    /// The message.
    pub message: MessageId,
    /// Which of its deliveries.
    pub which: Which,
    /// What is to be done.
    pub action: Action,
    /// Who asked, for the record; empty where that is not known, at most [`ACTOR_BYTES_MAX`].
    pub actor: Box<str>,
}

/// Which deliveries of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those of every recipient.
    Every,
    /// Those of these recipients, by position in the envelope; at least one.
    Recipients(Box<[u32]>),
}

/// What somebody does with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ends it.
    Cancel,
    /// Holds it until it is released.
    Hold,
    /// Releases it where it is held, due at once.
    Release,
    /// Makes it due at once where it is queued or deferred, also where its lane waits.
    Retry,
}

/// The most bytes of the name of somebody who asked for a change.
pub const ACTOR_BYTES_MAX: usize = 128;

/// A message as ingress hands it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// Names the message; a second accept of one id changes nothing.
    pub id: MessageId,
    /// Whose message it is.
    pub tenant: TenantId,
    /// The reverse path; `None` for the null sender.
    pub sender: Option<Address>,
    /// At least one, at most [`RECIPIENTS_MAX`].
    pub recipients: Vec<NewRecipient>,
    /// Where the content is.
    pub content: Content,
    /// Bytes of the content.
    pub size: u32,
    /// An address needs SMTPUTF8.
    pub smtputf8: bool,
    /// The content holds bytes above 127.
    pub eight_bit: bool,
    /// No attempt starts at or after this.
    pub expires_at: Timestamp,
    /// The `Subject` field, shown to people; kept in the event only.
    pub subject: Box<str>,
    /// The login or key and the address it came in from; kept in the event only.
    pub origin: Box<str>,
    /// W3C traceparent, empty without a trace.
    pub traceparent: Box<str>,
}

/// The most recipients of one message; ingress splits campaigns.
pub const RECIPIENTS_MAX: usize = 10_000;

/// The most bytes of a text that people read.
pub const TEXT_BYTES_MAX: usize = 256;

/// Where the content of a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// This body of the entry that carries the accept.
    Slot(u32),
    /// This many chunks staged under the message's id.
    Staged(u32),
}

/// A recipient of a new message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRecipient {
    /// The mailbox.
    pub address: Address,
    /// The normalised MX set, or the domain.
    pub site: Box<str>,
    /// The pool whose sources may deliver it.
    pub pool: PoolId,
    /// No attempt starts before this.
    pub not_before: Timestamp,
    /// The source the leader has already chosen; ignored where the assignment is not possible.
    pub grant: Option<SourceGrant>,
}

/// Who owns a source, as the leader knew when it assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceGrant {
    /// The source.
    pub source: SourceId,
    /// The source's epoch: the fence of its ownership.
    pub epoch: Epoch,
    /// Its owner.
    pub node: NodeId,
}

/// Assigns one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assign {
    /// The delivery.
    pub delivery: DeliveryId,
    /// Must be the next number of the delivery.
    pub attempt: AttemptNumber,
    /// To which owner.
    pub grant: SourceGrant,
}

/// Names one attempt, with the epoch it was assigned under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttemptId {
    /// The delivery.
    pub delivery: DeliveryId,
    /// Which attempt at it.
    pub attempt: AttemptNumber,
    /// The source's epoch.
    pub epoch: Epoch,
}

/// When a delivery is due again if an attempt does not end it. The leader decides it when it proposes the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextTry {
    /// From the retry schedule.
    pub at: Timestamp,
    /// How many copies the receiver may have before the delivery stops; 0 for any number.
    pub copies_max: u8,
}

/// The outcome of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which attempt.
    pub id: AttemptId,
    /// How it ended.
    pub outcome: Outcome,
    /// Host and address that answered; at most [`TEXT_BYTES_MAX`].
    pub remote: Box<str>,
    /// TLS version and cipher, empty for plaintext; at most [`TEXT_BYTES_MAX`].
    pub tls: Box<str>,
    /// When the attempt started, by the owner's clock.
    pub started_at: Timestamp,
    /// When it ended, by the owner's clock.
    pub ended_at: Timestamp,
}

/// The result of a command: equal on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The message is in the ledger, by this command or by an earlier one of the same id.
    Accepted,
    /// The message is not in the ledger, and the command changed nothing.
    Refused(Refusal),
    /// The change was made, or there was nothing to change.
    Done,
    /// One result for each recipient that was asked for, in that order; for every one, in the order of the envelope.
    Changed(Vec<Change>),
    /// There is no such message, or it has ended.
    NotFound,
}

/// Why a message or a chunk is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The id is older than ids of ended messages are kept: it might be a second copy.
    TooOld,
    /// A staged chunk is missing or was dropped.
    ChunkMissing,
    /// Too many chunks are staged.
    StageFull,
    /// No recipients, too many, one that does not exist, or a text that is too long.
    Invalid,
}

/// The result of a cancel, hold, release or retry for one recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It took effect.
    Done,
    /// The delivery was in that state already, or is not in a state that this changes: held for a retry, not held for a
    /// release.
    Unchanged,
    /// The delivery has ended.
    AlreadyEnded,
    /// An attempt is under way: it is recalled, and the change takes effect unless that attempt ends the delivery.
    InFlight,
}

/// A hint for the leader. A new leader finds the same by reading the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A delivery is queued or deferred, to be assigned from `due` on.
    Queued {
        /// Where it is in the ledger.
        key: Key,
        /// Not before this.
        due: Timestamp,
    },
    /// A delivery was assigned.
    Assigned {
        /// Where it is in the ledger.
        key: Key,
        /// Which attempt.
        id: AttemptId,
        /// To which owner.
        grant: SourceGrant,
    },
    /// A delivery is no longer assigned: its lane has room.
    Freed {
        /// From which source.
        source: SourceId,
        /// To which site.
        site: Arc<str>,
    },
    /// The owner of this attempt is asked to return it.
    Recall {
        /// Which attempt.
        id: AttemptId,
        /// To which owner it was assigned.
        grant: SourceGrant,
    },
    /// A message ended for every recipient and has left the ledger: its content is no longer needed.
    Finished(Box<Finished>),
}

/// The position of a delivery in a ledger, valid until its message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The message's slot; slots are reused.
    pub slot: u32,
    /// The recipient's position in the envelope.
    pub recipient: u32,
}
