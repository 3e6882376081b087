//! What can happen to a ledger, and what it answers.
//!
//! A command carries everything it needs: times, ids and the leader's choices travel inside.

use std::sync::Arc;

use postroad_core::{
    Address, AttemptNumber, DeliveryId, Epoch, MessageId, NodeId, Outcome, PoolId, SourceId, TenantId,
    Timestamp,
};

/// One change of the ledger's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A message and its envelope; the ledger becomes responsible for every recipient.
    Accept(Box<Accept>),
    /// A delivery goes to the owner of a source.
    Assign(Assign),
    /// An attempt ended.
    Report(Box<Report>),
    /// The owner gave an attempt back without starting it; it does not count.
    Return(AttemptId),
    /// The owner will not give back a recalled attempt: it has started.
    Started(AttemptId),
    /// Attempts of a source under epochs below `below` will not be reported any more: they end as unknown.
    Reclaim {
        /// The source that changed hands.
        source: SourceId,
        /// Its new epoch.
        below: Epoch,
        /// When these deliveries are due again.
        retry_at: Timestamp,
    },
    /// Ends every delivery of a message that has not ended.
    Cancel(MessageId),
    /// Keeps a message's deliveries from being assigned until they are released.
    Hold(MessageId),
    /// Lets a message's held deliveries go on, at once.
    Release(MessageId),
    /// Ends deliveries that are past their message's expiry and not assigned.
    Expire(Vec<DeliveryId>),
    /// A consumer has read events up to and including this one.
    Consume {
        /// At most 64 bytes.
        consumer: Box<str>,
        /// The last event it has taken over.
        through: u64,
    },
    /// A piece of the content of a message that follows.
    StageChunk {
        /// The id the message will have.
        message: MessageId,
        /// Position of the piece, from 0.
        number: u32,
        /// Where the piece stands in the entry that carries this command.
        slot: u32,
    },
}

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
    /// For people; kept in the event only.
    pub subject: Box<str>,
    /// The login or key and the address it came in from; kept in the event only.
    pub origin: Box<str>,
    /// W3C traceparent, empty without a trace.
    pub traceparent: Box<str>,
}

/// More recipients than this in one message are refused; campaigns are split by ingress.
pub const RECIPIENTS_MAX: usize = 10_000;

/// Texts for people are at most this long.
pub const TEXT_BYTES_MAX: usize = 256;

/// Where the content of a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// In this slot of the entry that carries the accept.
    Slot(u32),
    /// In this many chunks that were staged under the message's id.
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
    /// The lane the leader has already chosen; without effect where it cannot be.
    pub assign: Option<Lane>,
}

/// The owner of a source, as the leader saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// The source.
    pub source: SourceId,
    /// Its epoch: the fence of its ownership.
    pub epoch: Epoch,
    /// Its owner.
    pub node: NodeId,
}

/// Assigns one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assign {
    /// What is assigned.
    pub delivery: DeliveryId,
    /// Must be the next number of the delivery.
    pub attempt: AttemptNumber,
    /// To whom.
    pub lane: Lane,
}

/// Names one attempt, with the fence it was made under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttemptId {
    /// The delivery.
    pub delivery: DeliveryId,
    /// Which attempt at it.
    pub attempt: AttemptNumber,
    /// The source's epoch.
    pub epoch: Epoch,
}

/// How an attempt went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which attempt.
    pub id: AttemptId,
    /// How it ended.
    pub outcome: Outcome,
    /// When the delivery is due again if the outcome does not end it; the leader counts it from its retry schedule.
    pub retry_at: Timestamp,
    /// Host and address that answered; at most [`TEXT_BYTES_MAX`].
    pub remote: Box<str>,
    /// TLS version and cipher, empty for plaintext; at most [`TEXT_BYTES_MAX`].
    pub tls: Box<str>,
    /// When the attempt started, by the owner's clock.
    pub started_at: Timestamp,
    /// When it ended, by the owner's clock.
    pub ended_at: Timestamp,
}

/// What a command came to. Every replica gives the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The ledger holds the message, by this command or by an earlier one of the same id.
    Accepted,
    /// The message is not held, and the command changed nothing.
    Refused(Refusal),
    /// The change was made, or there was nothing to change.
    Done,
    /// One result for each recipient of the message, in the order of the envelope.
    Changed(Vec<Change>),
    /// No such message: it never was, or it ended.
    NotFound,
}

/// Why a message or a chunk is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The id is older than ended ids are remembered: it might be a second copy.
    TooOld,
    /// A staged chunk is not there, or no longer.
    ChunkMissing,
    /// Too much is staged.
    StageFull,
    /// A bound is broken: no recipients, too many, or an over-long text.
    Invalid,
}

/// What became of a cancel, hold or release for one recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It took effect.
    Done,
    /// It was so already.
    Unchanged,
    /// The delivery has ended.
    AlreadyEnded,
    /// An attempt is assigned: it is recalled, and the change takes effect unless that attempt ends the delivery.
    InFlight,
}

/// A hint for the leader: what a new leader finds by reading the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A delivery waits to be assigned, from `due` on.
    Waiting {
        /// Where it is in the ledger.
        key: Key,
        /// No sooner than this.
        due: Timestamp,
    },
    /// A delivery was assigned.
    Assigned {
        /// Where it is in the ledger.
        key: Key,
        /// Which attempt.
        id: AttemptId,
        /// To whom.
        lane: Lane,
    },
    /// An assigned delivery is assigned no more: its lane has room.
    Freed {
        /// From which source.
        source: SourceId,
        /// To which site.
        site: Arc<str>,
    },
    /// The owner of this attempt is asked to give it back.
    Recall {
        /// Which attempt.
        id: AttemptId,
        /// To whom it was assigned.
        lane: Lane,
    },
    /// A message ended for every recipient, and its content is needed no more.
    Finished(MessageId),
}

/// Where a delivery is in one ledger, for as long as its message is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The message's slot; slots are used again.
    pub slot: u32,
    /// The recipient's position in the envelope.
    pub recipient: u32,
}
