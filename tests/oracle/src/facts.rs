//! The records of each submission, transaction and delivery side by side, as the checks need them.
//!
//! Decides nothing: it only collects. Memory: references into the history, a few for each record.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use postroad_core::{DeliveryId, FinalState, GroupId, MessageId, OutcomeKind, SourceId};

use crate::history::{
    Attempt, ChangeAnswer, ChangeRequested, Counts, Event, EventKind, Fault, History, Mail, Message, Micros,
    NextState, NodeChange, OpenDeliveries, Phase, Rcpt, RecordNumber, StateHash, SubmitAnswer, Submitted,
    What,
};

/// A part of a record, with its number and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen<T> {
    /// The record's number.
    pub number: RecordNumber,
    /// When.
    pub at: Micros,
    /// What.
    pub what: T,
}

/// A history contradicts itself, so that its writer has a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryError {
    /// The record.
    pub number: RecordNumber,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl fmt::Display for HistoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {}: {}", self.number, self.problem)
    }
}

impl std::error::Error for HistoryError {}

/// A submission and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Submission<'a> {
    /// How it began.
    pub begun: Seen<&'a Submitted>,
    /// How it ended, if it has.
    pub answer: Option<Seen<&'a SubmitAnswer>>,
}

impl Submission<'_> {
    /// Returns the id that the client got.
    #[must_use]
    pub fn accepted_as(&self) -> Option<MessageId> {
        match self.answer?.what {
            SubmitAnswer::Accepted { message } => Some(*message),
            _ => None,
        }
    }

    /// Returns true when the client cannot know whether the message was stored.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        match self.answer.map(|answer| answer.what) {
            Some(SubmitAnswer::Accepted { .. } | SubmitAnswer::Refused { .. }) => false,
            Some(SubmitAnswer::Failed { .. } | SubmitAnswer::TimedOut | SubmitAnswer::ConnectionLost)
            | None => true,
        }
    }
}

/// A change of deliveries and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// How it began.
    pub begun: Seen<&'a ChangeRequested>,
    /// How it ended, if it has.
    pub answer: Option<Seen<&'a ChangeAnswer>>,
}

/// A transaction at a receiver.
#[derive(Clone, Debug)]
pub struct Transaction<'a> {
    /// Its beginning.
    pub mail: Seen<&'a Mail>,
    /// Its recipients, with their replies.
    pub rcpts: Vec<Seen<&'a Rcpt>>,
    /// Its end, if there was a message.
    pub message: Option<Seen<&'a Message>>,
    /// Whether the reply to the message was read, where that is known.
    pub read: Option<bool>,
    /// When the last command or message of the sender arrived.
    pub active_until: Micros,
}

impl<'a> Transaction<'a> {
    /// Returns the message, where the receiver knows it.
    #[must_use]
    pub fn id(&self) -> Option<MessageId> {
        self.message.and_then(|message| message.what.message).or(self.mail.what.message)
    }

    /// Returns true when the receiver took responsibility for `rcpt`.
    fn is_copy_for(&self, rcpt: &Rcpt) -> bool {
        is_positive(rcpt.code) && self.message.is_some_and(|message| is_positive(message.what.code))
    }
}

fn is_positive(code: u16) -> bool {
    (200..300).contains(&code)
}

/// One delivery: a message for one recipient.
#[derive(Clone, Debug, Default)]
pub struct Delivery<'a> {
    /// Its events, in the order of their numbers, each once.
    pub events: Vec<Seen<&'a Event>>,
}

impl<'a> Delivery<'a> {
    /// Returns the events that end it.
    pub fn ends(&self) -> impl Iterator<Item = (Seen<&'a Event>, FinalState)> + '_ {
        self.events.iter().filter_map(|event| Some((*event, end_of(&event.what.kind)?)))
    }

    /// Returns its attempts.
    pub fn attempts(&self) -> impl Iterator<Item = Seen<&'a Attempt>> + '_ {
        self.events.iter().filter_map(|event| match &event.what.kind {
            EventKind::Attempt(attempt) => Some(Seen { number: event.number, at: event.at, what: attempt }),
            _ => None,
        })
    }

    /// Returns its attempts that ended `unknown`.
    pub fn unknown_attempts(&self) -> impl Iterator<Item = Seen<&'a Attempt>> + '_ {
        self.attempts().filter(|attempt| attempt.what.outcome == OutcomeKind::Unknown)
    }

    /// Returns true when its last event leaves it held.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let mut held = self.events.iter().filter_map(|event| match &event.what.kind {
            EventKind::Held { .. } | EventKind::Attempt(Attempt { next: NextState::Held, .. }) => Some(true),
            EventKind::Released { .. }
            | EventKind::Retried { .. }
            | EventKind::Ended { .. }
            | EventKind::Attempt(Attempt { next: NextState::Retry | NextState::Ended(_), .. }) => Some(false),
            _ => None,
        });
        held.next_back().unwrap_or(false)
    }
}

/// Returns how an event ends a delivery.
#[must_use]
pub fn end_of(event: &EventKind) -> Option<FinalState> {
    match event {
        EventKind::Ended { state, .. } => Some(*state),
        EventKind::Attempt(Attempt { next: NextState::Ended(state), .. }) => Some(*state),
        _ => None,
    }
}

/// Returns the delivery that an event is about.
#[must_use]
pub fn delivery_of(event: &EventKind) -> Option<DeliveryId> {
    match event {
        EventKind::Attempt(Attempt { delivery, .. })
        | EventKind::Ended { delivery, .. }
        | EventKind::Held { delivery }
        | EventKind::Released { delivery }
        | EventKind::Retried { delivery }
        | EventKind::Requested { delivery, .. } => Some(*delivery),
        EventKind::Accepted { .. } | EventKind::Gap { .. } => None,
    }
}

/// Returns the message that an event is about.
#[must_use]
pub fn message_of(event: &EventKind) -> Option<MessageId> {
    match event {
        EventKind::Accepted { message, .. } => Some(*message),
        _ => delivery_of(event).map(|delivery| delivery.message),
    }
}

/// The records of a history, by what they are about.
#[derive(Clone, Debug, Default)]
pub struct Facts<'a> {
    /// By their numbers.
    pub submissions: BTreeMap<u64, Submission<'a>>,
    /// By their numbers.
    pub changes: BTreeMap<u64, Change<'a>>,
    /// By their numbers.
    pub transactions: BTreeMap<u64, Transaction<'a>>,
    /// Every event that was read, in the order of reading, repetitions included.
    pub events: Vec<Seen<&'a Event>>,
    /// The events that say that a message was accepted, each once.
    pub accepted: BTreeMap<MessageId, Vec<Seen<&'a Event>>>,
    /// What the events say of each delivery.
    pub deliveries: BTreeMap<DeliveryId, Delivery<'a>>,
    /// Groups of which events were dropped before they were read.
    pub groups_with_gaps: BTreeSet<GroupId>,
    /// The submissions of each token.
    pub submissions_by_token: BTreeMap<&'a str, Vec<u64>>,
    /// The submissions of each id that its client knew before the answer.
    pub submissions_by_id: BTreeMap<MessageId, Vec<u64>>,
    /// The submissions that were acknowledged with an id; more than one only where a client tried again.
    pub acknowledged: BTreeMap<MessageId, Vec<u64>>,
    /// The sources whose addresses are known.
    pub sources: BTreeMap<&'a str, SourceId>,
    /// Nodes that started and ended.
    pub nodes: Vec<Seen<&'a NodeChange>>,
    /// Faults that began and ended.
    pub faults: Vec<Seen<&'a Fault>>,
    /// The hashes of replicas.
    pub hashes: Vec<Seen<&'a StateHash>>,
    /// The counts of deliveries.
    pub counts: Vec<Seen<&'a Counts>>,
    /// What replicas count as not ended.
    pub open: Vec<Seen<&'a OpenDeliveries>>,
    /// When the last record was made.
    pub end: Micros,
    /// Since when the history is complete, if it is.
    pub complete_since: Option<Micros>,
    /// When the last phase of liveness began, and when all was to be quiet.
    pub liveness: Option<(Micros, Micros)>,
}

impl<'a> Facts<'a> {
    /// Collects the facts of a history.
    ///
    /// # Errors
    /// The history contradicts itself: an answer without its request, for example.
    pub fn new(history: &'a History) -> Result<Self, HistoryError> {
        let mut facts = Self::default();
        let mut read = BTreeSet::new();
        for (number, record) in history.numbered() {
            let at = record.at;
            facts.end = at;
            match &record.what {
                What::Phase(Phase::Safety) => (facts.complete_since, facts.liveness) = (None, None),
                What::Phase(Phase::Liveness { within }) => facts.liveness = Some((at, at.after(*within))),
                What::Phase(Phase::Quiet) => facts.complete_since = Some(at),
                What::Event(event) => {
                    let is_first = match event.kind {
                        // It may begin with events that were read before.
                        EventKind::Gap { through } => !read.contains(&(event.group, through)),
                        _ => read.insert((event.group, event.sequence)),
                    };
                    facts.add_event(Seen { number, at, what: event }, is_first);
                }
                other => facts.add(number, at, other).map_err(|problem| HistoryError { number, problem })?,
            }
        }
        let bound = facts.liveness.map(|(_, bound)| bound).filter(|bound| *bound <= facts.end);
        facts.complete_since = facts.complete_since.or(bound);
        for (number, submission) in &facts.submissions {
            let begun = submission.begun.what;
            facts.submissions_by_token.entry(&begun.token).or_default().push(*number);
            if let Some(message) = begun.message {
                facts.submissions_by_id.entry(message).or_default().push(*number);
            }
            if let Some(message) = submission.accepted_as() {
                facts.acknowledged.entry(message).or_default().push(*number);
            }
        }
        // A consumer may begin again at an earlier event.
        for delivery in facts.deliveries.values_mut() {
            delivery.events.sort_by_key(|event| event.what.sequence);
        }
        Ok(facts)
    }

    fn add(&mut self, number: RecordNumber, at: Micros, what: &'a What) -> Result<(), &'static str> {
        match what {
            What::Submitted(what) => {
                let begun = Seen { number, at, what };
                let before = self.submissions.insert(what.submission, Submission { begun, answer: None });
                require(before.is_none(), "the submission has begun before")
            }
            What::SubmitAnswered(what) => {
                let submission =
                    self.submissions.get_mut(&what.submission).ok_or("the submission has not begun")?;
                let before = submission.answer.replace(Seen { number, at, what: &what.answer });
                require(before.is_none(), "the submission has an answer")
            }
            What::ChangeRequested(what) => {
                let begun = Seen { number, at, what };
                let before = self.changes.insert(what.request, Change { begun, answer: None });
                require(before.is_none(), "the change has begun before")
            }
            What::ChangeAnswered(what) => {
                let change = self.changes.get_mut(&what.request).ok_or("the change has not begun")?;
                let before = change.answer.replace(Seen { number, at, what: &what.answer });
                require(before.is_none(), "the change has an answer")?;
                let asked = change.begun.what.recipients.len();
                let complete =
                    !matches!(&what.answer, ChangeAnswer::Results(results) if results.len() != asked);
                require(complete, "the answer does not have one result for each recipient")
            }
            What::Source(what) => {
                let before = self.sources.insert(&what.address, what.source);
                require(before.is_none_or(|before| before == what.source), "two sources have the address")
            }
            What::Node(what) => {
                self.nodes.push(Seen { number, at, what });
                Ok(())
            }
            What::Fault(what) => {
                self.faults.push(Seen { number, at, what });
                Ok(())
            }
            What::StateHash(what) => {
                self.hashes.push(Seen { number, at, what });
                Ok(())
            }
            What::Counts(what) => {
                self.counts.push(Seen { number, at, what });
                Ok(())
            }
            What::Open(what) => {
                self.open.push(Seen { number, at, what });
                Ok(())
            }
            What::PolicyChanged(_) | What::Phase(_) | What::Event(_) => Ok(()),
            _ => self.add_of_receiver(number, at, what),
        }
    }

    fn add_of_receiver(
        &mut self,
        number: RecordNumber,
        at: Micros,
        what: &'a What,
    ) -> Result<(), &'static str> {
        const NOT_BEGUN: &str = "the transaction has not begun";
        match what {
            What::Mail(what) => {
                let mail = Seen { number, at, what };
                let (rcpts, message, read) = (Vec::new(), None, None);
                let begun = Transaction { mail, rcpts, message, read, active_until: at };
                require(
                    self.transactions.insert(what.transaction, begun).is_none(),
                    "the transaction has begun before",
                )
            }
            What::Rcpt(what) => {
                let transaction = self.transactions.get_mut(&what.transaction).ok_or(NOT_BEGUN)?;
                transaction.rcpts.push(Seen { number, at, what });
                transaction.active_until = at;
                require(transaction.message.is_none(), "the transaction has ended")
            }
            What::Message(what) => {
                let transaction = self.transactions.get_mut(&what.transaction).ok_or(NOT_BEGUN)?;
                transaction.active_until = at;
                let before = transaction.message.replace(Seen { number, at, what });
                require(before.is_none(), "the transaction has ended")
            }
            What::Reply(what) => {
                let transaction = self.transactions.get_mut(&what.transaction).ok_or(NOT_BEGUN)?;
                transaction.read = Some(what.read);
                require(transaction.message.is_some(), "the transaction has no message")
            }
            What::Closed(what) => require(self.transactions.contains_key(&what.transaction), NOT_BEGUN),
            _ => Ok(()),
        }
    }

    fn add_event(&mut self, event: Seen<&'a Event>, is_first: bool) {
        self.events.push(event);
        if !is_first {
            return;
        }
        match &event.what.kind {
            EventKind::Accepted { message, .. } => self.accepted.entry(*message).or_default().push(event),
            EventKind::Gap { .. } => {
                self.groups_with_gaps.insert(event.what.group);
            }
            kind => {
                let delivery = delivery_of(kind).expect("all other events are about a delivery");
                self.deliveries.entry(delivery).or_default().events.push(event);
            }
        }
    }

    /// Returns the submissions of a token.
    pub fn of_token(&self, token: &str) -> impl Iterator<Item = &Submission<'a>> {
        let numbers = self.submissions_by_token.get(token).map_or(&[][..], |numbers| numbers);
        numbers.iter().map(|number| &self.submissions[number])
    }

    /// Returns the submissions whose client knew the id before the answer.
    pub fn of_known_id(&self, message: MessageId) -> impl Iterator<Item = &Submission<'a>> {
        let numbers = self.submissions_by_id.get(&message).map_or(&[][..], |numbers| numbers);
        numbers.iter().map(|number| &self.submissions[number])
    }

    /// Returns true when nothing more is to be expected.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete_since.is_some()
    }

    /// Returns the envelope of a message: as its client wrote it, or else as its event says.
    #[must_use]
    pub fn recipients(&self, message: MessageId) -> Option<&'a [String]> {
        let of_client = self.acknowledged.get(&message).and_then(|submissions| submissions.first());
        if let Some(number) = of_client {
            return self.submissions.get(number).map(|submission| &*submission.begun.what.recipients);
        }
        let event = self.accepted.get(&message)?.first()?;
        match &event.what.kind {
            EventKind::Accepted { recipients, .. } => Some(recipients),
            _ => None,
        }
    }

    /// Returns a delivery by the address that a receiver saw.
    #[must_use]
    pub fn delivery_to(&self, message: MessageId, address: &str) -> Option<DeliveryId> {
        let place = self.recipients(message)?.iter().position(|recipient| recipient == address)?;
        Some(DeliveryId { message, recipient: u32::try_from(place).ok()? })
    }

    /// Returns the transactions of each message and address, in the order of `MAIL`, whether they succeeded or not.
    #[must_use]
    pub fn transactions_by_delivery(&self) -> BTreeMap<(MessageId, &'a str), Vec<&Transaction<'a>>> {
        let mut found = BTreeMap::<_, Vec<_>>::new();
        for transaction in self.transactions.values() {
            let Some(message) = transaction.id() else { continue };
            for rcpt in &transaction.rcpts {
                found.entry((message, &*rcpt.what.recipient)).or_default().push(transaction);
            }
        }
        for transactions in found.values_mut() {
            transactions.sort_by_key(|transaction| transaction.mail.number);
            // A recipient that is named twice in one transaction gets one copy.
            transactions.dedup_by_key(|transaction| transaction.mail.number);
        }
        found
    }

    /// Returns the transactions with which a receiver took responsibility for `address`.
    pub fn copies<'b>(
        transactions: &'b [&'b Transaction<'a>],
        address: &'b str,
    ) -> impl Iterator<Item = &'b Transaction<'a>> {
        transactions.iter().copied().filter(move |transaction| {
            let of_address = |rcpt: &&Seen<&Rcpt>| rcpt.what.recipient == address;
            transaction.rcpts.iter().filter(of_address).any(|rcpt| transaction.is_copy_for(rcpt.what))
        })
    }
}

fn require(condition: bool, problem: &'static str) -> Result<(), &'static str> {
    if condition { Ok(()) } else { Err(problem) }
}
