//! The events of a ledger: numbered without a gap, kept until every consumer has read them.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use postroad_core::{
    Address, AttemptNumber, BounceClass, DeliveryId, Epoch, FinalState, LaneEffect, MessageId, NodeId,
    Outcome, OutcomeKind, Party, Retry, SourceId, TenantId, Timestamp,
};

use crate::{
    codec::{Corrupt, Put, Take},
    command::Action,
};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number in the group; the first is 1.
    pub sequence: u64,
    /// The ledger's time when it happened.
    pub at: Timestamp,
    /// What happened, and to what.
    pub kind: EventKind,
}

/// What happened, and to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The ledger took responsibility for a message.
    Accepted(Box<AcceptedEvent>),
    /// An attempt ended.
    Attempt(Box<AttemptEvent>),
    /// A delivery ended by itself, without an attempt.
    Ended(DeliveryId, FinalState),
    /// Somebody changed a delivery, or asked for a change while an attempt was under way.
    Changed(Box<ChangedEvent>),
    /// The events from this one to `through` were dropped, because the bound was reached before every consumer read them.
    Gap {
        /// The last one dropped.
        through: u64,
    },
}

/// Somebody changed a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedEvent {
    /// The delivery.
    pub delivery: DeliveryId,
    /// What changed.
    pub what: Changed,
    /// Who asked for it; empty where that is not known.
    pub actor: Box<str>,
}

/// What somebody changed of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It ended.
    Cancelled,
    /// It is held.
    Held,
    /// It is no longer held, and due at this time.
    Released(Timestamp),
    /// It is due at once.
    Retried(Retried),
    /// An attempt is under way: a hold or cancel takes effect unless that attempt ends the delivery; a release takes
    /// back the hold.
    Requested(Action),
}

/// A queued or deferred delivery became due at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retried {
    /// When it is due.
    pub due: Timestamp,
    /// An attempt has ended: it stays deferred. Otherwise it stays queued.
    pub deferred: bool,
}

/// A message was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedEvent {
    /// The message.
    pub message: MessageId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The reverse path.
    pub sender: Option<Address>,
    /// Every recipient, in the order of the envelope.
    pub recipients: Box<[Address]>,
    /// Bytes of the content.
    pub size: u32,
    /// The `Subject` field.
    pub subject: Box<str>,
    /// Who submitted it.
    pub origin: Box<str>,
}

/// An attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptEvent {
    /// The delivery.
    pub delivery: DeliveryId,
    /// Which attempt at it.
    pub attempt: AttemptNumber,
    /// Its number among those that were not given back unstarted: what people see, without holes.
    pub number: u32,
    /// From which source.
    pub source: SourceId,
    /// Under which epoch.
    pub epoch: Epoch,
    /// By which node.
    pub node: NodeId,
    /// How it ended.
    pub outcome: Outcome,
    /// Host and address that answered.
    pub remote: Box<str>,
    /// TLS version and cipher.
    pub tls: Box<str>,
    /// When it started; zero where the owner did not report.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// What the attempt changed.
    pub next_state: NextState,
}

/// The state of a delivery after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextState {
    /// Deferred until this time.
    Retry(Timestamp),
    /// Ended.
    Ended(FinalState),
    /// Held.
    Held,
    /// Not changed: the report came late.
    Unchanged,
}

impl Event {
    pub(crate) fn put(&self, out: &mut impl Put) {
        out.u64(self.sequence);
        out.time(self.at);
        match &self.kind {
            EventKind::Accepted(event) => {
                out.u8(1);
                event.put(out);
            }
            EventKind::Attempt(event) => {
                out.u8(2);
                event.put(out);
            }
            EventKind::Ended(delivery, end) => {
                out.u8(3);
                put_delivery(out, *delivery);
                out.u8(end.code());
            }
            EventKind::Changed(event) => {
                out.u8(4);
                event.put(out);
            }
            EventKind::Gap { through } => {
                out.u8(6);
                out.u64(*through);
            }
        }
    }

    pub(crate) fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        let (sequence, at) = (from.u64()?, from.time()?);
        let kind = match from.u8()? {
            1 => EventKind::Accepted(Box::new(AcceptedEvent::take(from)?)),
            2 => EventKind::Attempt(Box::new(AttemptEvent::take(from)?)),
            3 => EventKind::Ended(take_delivery(from)?, take_final_state(from)?),
            4 => EventKind::Changed(Box::new(ChangedEvent::take(from)?)),
            6 => EventKind::Gap { through: from.u64()? },
            _ => return Err(Corrupt),
        };
        Ok(Self { sequence, at, kind })
    }

    /// The last number this event covers: its own, or the end of the gap.
    fn through(&self) -> u64 {
        match self.kind {
            EventKind::Gap { through } => through,
            _ => self.sequence,
        }
    }
}

impl ChangedEvent {
    fn put(&self, out: &mut impl Put) {
        put_delivery(out, self.delivery);
        out.text(&self.actor);
        match self.what {
            Changed::Cancelled => out.u8(1),
            Changed::Held => out.u8(2),
            Changed::Released(due) => {
                out.u8(3);
                out.time(due);
            }
            Changed::Retried(retried) => {
                out.u8(4);
                out.time(retried.due);
                out.u8(u8::from(retried.deferred));
            }
            Changed::Requested(action) => out.u8(match action {
                Action::Cancel => 5,
                Action::Hold => 6,
                Action::Release => 7,
                Action::Retry => 8,
            }),
        }
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        Ok(Self {
            delivery: take_delivery(from)?,
            actor: from.text()?.into(),
            what: match from.u8()? {
                1 => Changed::Cancelled,
                2 => Changed::Held,
                3 => Changed::Released(from.time()?),
                4 => Changed::Retried(Retried { due: from.time()?, deferred: take_flag(from)? }),
                5 => Changed::Requested(Action::Cancel),
                6 => Changed::Requested(Action::Hold),
                7 => Changed::Requested(Action::Release),
                8 => Changed::Requested(Action::Retry),
                _ => return Err(Corrupt),
            },
        })
    }
}

impl AcceptedEvent {
    fn put(&self, out: &mut impl Put) {
        out.id(self.message);
        out.u32(self.tenant.0);
        out.u8(u8::from(self.sender.is_some()));
        if let Some(sender) = &self.sender {
            out.text(sender.as_str());
        }
        out.count(self.recipients.len());
        for recipient in &self.recipients {
            out.text(recipient.as_str());
        }
        out.u32(self.size);
        out.text(&self.subject);
        out.text(&self.origin);
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        Ok(Self {
            message: from.id()?,
            tenant: TenantId(from.u32()?),
            sender: from.option(Take::address)?,
            recipients: (0..from.count(4)?).map(|_| from.address()).collect::<Result<_, _>>()?,
            size: from.u32()?,
            subject: from.text()?.into(),
            origin: from.text()?.into(),
        })
    }
}

impl AttemptEvent {
    fn put(&self, out: &mut impl Put) {
        put_delivery(out, self.delivery);
        out.u32(self.attempt.0);
        out.u32(self.number);
        out.u32(self.source.0);
        out.u64(self.epoch.0);
        out.u64(self.node.0);
        put_outcome(out, &self.outcome);
        out.text(&self.remote);
        out.text(&self.tls);
        out.time(self.started_at);
        out.time(self.ended_at);
        match self.next_state {
            NextState::Retry(due) => {
                out.u8(1);
                out.time(due);
            }
            NextState::Ended(end) => {
                out.u8(2);
                out.u8(end.code());
            }
            NextState::Held => out.u8(3),
            NextState::Unchanged => out.u8(4),
        }
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        Ok(Self {
            delivery: take_delivery(from)?,
            attempt: AttemptNumber(from.u32()?),
            number: from.u32()?,
            source: SourceId(from.u32()?),
            epoch: Epoch(from.u64()?),
            node: NodeId(from.u64()?),
            outcome: take_outcome(from)?,
            remote: from.text()?.into(),
            tls: from.text()?.into(),
            started_at: from.time()?,
            ended_at: from.time()?,
            next_state: match from.u8()? {
                1 => NextState::Retry(from.time()?),
                2 => NextState::Ended(take_final_state(from)?),
                3 => NextState::Held,
                4 => NextState::Unchanged,
                _ => return Err(Corrupt),
            },
        })
    }
}

pub(crate) fn take_final_state(from: &mut Take<'_>) -> Result<FinalState, Corrupt> {
    FinalState::from_code(from.u8()?).ok_or(Corrupt)
}

pub(crate) fn take_flag(from: &mut Take<'_>) -> Result<bool, Corrupt> {
    match from.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Corrupt),
    }
}

fn put_delivery(out: &mut impl Put, delivery: DeliveryId) {
    out.id(delivery.message);
    out.u32(delivery.recipient);
}

fn take_delivery(from: &mut Take<'_>) -> Result<DeliveryId, Corrupt> {
    Ok(DeliveryId { message: from.id()?, recipient: from.u32()? })
}

pub(crate) fn put_outcome(out: &mut impl Put, outcome: &Outcome) {
    out.u8(outcome.kind.code());
    out.u8(outcome.class.map_or(0, BounceClass::code));
    out.u16(outcome.code);
    out.text(&outcome.text);
    out.u8(outcome.party.map_or(0, Party::code));
    let (retry, tries_max) = outcome.retry.codes();
    out.u8(retry);
    out.u8(tries_max);
    out.u8(outcome.lane.code());
    out.u8(u8::from(outcome.suppress));
    out.text(&outcome.rule);
}

pub(crate) fn take_outcome(from: &mut Take<'_>) -> Result<Outcome, Corrupt> {
    let kind = OutcomeKind::from_code(from.u8()?).ok_or(Corrupt)?;
    let class = match from.u8()? {
        0 => None,
        code => Some(BounceClass::from_code(code).ok_or(Corrupt)?),
    };
    Ok(Outcome {
        kind,
        class,
        code: from.u16()?,
        text: from.text()?.into(),
        party: match from.u8()? {
            0 => None,
            code => Some(Party::from_code(code).ok_or(Corrupt)?),
        },
        retry: Retry::from_codes(from.u8()?, from.u8()?).ok_or(Corrupt)?,
        lane: LaneEffect::from_code(from.u8()?).ok_or(Corrupt)?,
        suppress: from.u8()? != 0,
        rule: from.text()?.into(),
    })
}

const EVENTS_PER_PAGE: usize = 128;

/// The events that a consumer has not read yet, and the cursors of the consumers.
#[derive(Clone, Debug)]
pub(crate) struct EventLog {
    pages: VecDeque<Arc<Vec<Event>>>,
    /// The number of the next event.
    next: u64,
    /// Encoded bytes of the events kept.
    bytes: u64,
    bytes_max: u64,
    /// The next event of each consumer.
    cursors: BTreeMap<Box<str>, u64>,
    /// A hash over every event ever appended: equal on equal replicas.
    hash: u64,
}

impl EventLog {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { pages: VecDeque::new(), next: 1, bytes: 0, bytes_max, cursors: BTreeMap::new(), hash: 0 }
    }

    pub(crate) fn append(&mut self, at: Timestamp, kind: EventKind) {
        let event = Event { sequence: self.next, at, kind };
        self.next += 1;
        let mut sum = Sum { hash: self.hash, bytes: 0 };
        event.put(&mut sum);
        self.hash = sum.hash;
        self.bytes += sum.bytes;
        self.push(event);
        while self.bytes > self.bytes_max && self.pages.len() > 1 {
            self.drop_oldest_page();
        }
    }

    fn push(&mut self, event: Event) {
        match self.pages.back_mut() {
            Some(page) if page.len() < EVENTS_PER_PAGE => Arc::make_mut(page).push(event),
            _ => {
                let mut page = Vec::with_capacity(EVENTS_PER_PAGE);
                page.push(event);
                self.pages.push_back(Arc::new(page));
            }
        }
    }

    /// Replaces the oldest page by a gap, merged with the gap before it.
    fn drop_oldest_page(&mut self) {
        let page = self.pages.pop_front().expect("the caller has seen a page");
        self.bytes -= page.iter().map(bytes).sum::<u64>();
        let (Some(first), Some(last)) = (page.first(), page.last()) else { return };
        let gap =
            Event { sequence: first.sequence, at: last.at, kind: EventKind::Gap { through: last.through() } };
        let next = self.pages.front_mut().expect("a page is only dropped when another follows");
        // If that page is dropped too, its first event is this gap, so the two are merged.
        self.bytes += bytes(&gap);
        Arc::make_mut(next).insert(0, gap);
    }

    /// Moves a consumer's cursor forward. Returns false for an invalid name or too many consumers.
    pub(crate) fn consume(&mut self, consumer: &str, through: u64) -> bool {
        const CONSUMERS_MAX: usize = 16;
        if consumer.is_empty() || consumer.len() > 64 {
            return false;
        }
        if !self.cursors.contains_key(consumer) && self.cursors.len() == CONSUMERS_MAX {
            return false;
        }
        let wanted = through.saturating_add(1).min(self.next);
        let cursor = self.cursors.entry(consumer.into()).or_insert(0);
        *cursor = wanted.max(*cursor);
        let read = self.cursors.values().copied().min().unwrap_or(0);
        while self.pages.front().is_some_and(|page| page.last().is_some_and(|event| event.through() < read)) {
            let page = self.pages.pop_front().expect("the loop has seen it");
            self.bytes -= page.iter().map(bytes).sum::<u64>();
        }
        true
    }

    /// Returns the events from number `from` on, a gap where they were dropped.
    pub(crate) fn from(&self, from: u64) -> impl Iterator<Item = &Event> {
        let skipped =
            self.pages.partition_point(|page| page.last().is_some_and(|event| event.through() < from));
        // Of the pages that are left only the first has events before `from`; each command asks for its own, the last ones.
        self.pages.range(skipped..).flat_map(move |page| {
            let read = page.partition_point(|event| event.through() < from);
            &page[read..]
        })
    }

    /// The number of the next event.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// The number of the first event that is kept.
    pub(crate) fn first(&self) -> u64 {
        self.pages.front().and_then(|page| page.first()).map_or(self.next, |event| event.sequence)
    }

    /// The number of the last event that was dropped, while the gap in its place is kept.
    pub(crate) fn dropped_through(&self) -> Option<u64> {
        match self.pages.front()?.first()?.kind {
            EventKind::Gap { through } => Some(through),
            _ => None,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn cursor(&self, consumer: &str) -> u64 {
        self.cursors.get(consumer).copied().unwrap_or(0)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.u64(self.next);
        out.u64(self.hash);
        out.count(self.cursors.len());
        for (consumer, cursor) in &self.cursors {
            out.text(consumer);
            out.u64(*cursor);
        }
        out.count(self.pages.iter().map(|page| page.len()).sum());
        for event in self.pages.iter().flat_map(|page| page.iter()) {
            event.put(out);
        }
    }

    pub(crate) fn take(from: &mut Take<'_>, bytes_max: u64) -> Result<Self, Corrupt> {
        let mut log = Self::new(bytes_max);
        log.next = from.u64()?;
        log.hash = from.u64()?;
        for _ in 0..from.count(12)? {
            let consumer = from.text()?.into();
            log.cursors.insert(consumer, from.u64()?);
        }
        let mut expected = None;
        for _ in 0..from.count(17)? {
            let event = Event::take(from)?;
            if expected.is_some_and(|expected| expected != event.sequence) || event.through() < event.sequence
            {
                return Err(Corrupt);
            }
            expected = Some(event.through().checked_add(1).ok_or(Corrupt)?);
            log.bytes += bytes(&event);
            log.push(event);
        }
        if expected.is_some_and(|expected| expected != log.next) {
            return Err(Corrupt);
        }
        Ok(log)
    }
}

fn bytes(event: &Event) -> u64 {
    let mut sum = Sum { hash: 0, bytes: 0 };
    event.put(&mut sum);
    sum.bytes
}

/// Counts and hashes the bytes put into it.
struct Sum {
    hash: u64,
    bytes: u64,
}

impl Put for Sum {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        // Like FNV, but on words: it only compares replicas and needs no strength against attacks.
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.hash =
                (self.hash.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
}
