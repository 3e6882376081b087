//! The state of one ledger group: every accepted message that has not ended, and the record of what happened.
//!
//! `apply` is pure. Two ledgers that applied the same commands are equal, on whatever machine.
//! Effects are hints to the leader; a new leader finds its work by reading the state.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use postroad_core::{
    Address, AttemptNumber, DeliveryId, Epoch, MessageId, Outcome, OutcomeKind, PoolId, SourceId, TenantId,
    Timestamp,
};

use crate::{
    command::{
        Accept, Assign, AttemptId, Change, Command, Content, Effect, Key, Lane, RECIPIENTS_MAX, Refusal,
        Reply, Report, TEXT_BYTES_MAX,
    },
    ended::EndedIds,
    event::{AcceptedEvent, AttemptEvent, End, Event, EventKind, EventLog, Then},
    pages::Pages,
    row::{Body, BodyRef, Message, Recipient, State, Wish},
    stage::Stage,
};

/// Bounds of a ledger. Every replica of a group must be given the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of events kept for consumers that have not read them; at the bound the oldest are dropped, leaving a gap.
    pub event_bytes_max: u64,
    /// Chunks staged for messages that have not been accepted yet.
    pub staged_chunks_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { event_bytes_max: 256 << 20, staged_chunks_max: 4096 }
    }
}

/// The state of one ledger group.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub(crate) limits: Limits,
    /// The time of the last command: it never goes back.
    pub(crate) now: Timestamp,
    pub(crate) messages: Pages<Message>,
    pub(crate) sites: Sites,
    pub(crate) ended: EndedIds,
    pub(crate) stage: Stage,
    pub(crate) events: EventLog,
    /// The highest epoch each source was seen with.
    pub(crate) epochs: BTreeMap<SourceId, Epoch>,
    pub(crate) index: Index,
}

/// What can be rebuilt from the rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub(crate) slots: BTreeMap<MessageId, u32>,
    /// Deliveries assigned to each source, in the order of their ids so that every replica walks them alike.
    pub(crate) assigned: BTreeMap<SourceId, BTreeSet<DeliveryId>>,
    /// How many of them per source and site.
    pub(crate) lanes: BTreeMap<(SourceId, u32), u32>,
    pub(crate) counts: Counts,
}

/// How many deliveries are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// To be assigned, now or later.
    pub waiting: u64,
    /// With the owner of a source.
    pub assigned: u64,
    /// Kept from being assigned.
    pub held: u64,
}

/// Site names, each kept once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sites {
    /// Each name and how often it is used.
    pub(crate) rows: Pages<(Arc<str>, u32)>,
    slots: BTreeMap<Arc<str>, u32>,
}

impl Sites {
    /// Returns the slot of a name and counts one more use of it.
    pub(crate) fn intern(&mut self, name: &str) -> u32 {
        if let Some(slot) = self.slots.get(name) {
            self.rows.get_mut(*slot).expect("the index names rows that exist").1 += 1;
            return *slot;
        }
        let name: Arc<str> = name.into();
        let slot = self.rows.insert((name.clone(), 1));
        self.slots.insert(name, slot);
        slot
    }

    pub(crate) fn release(&mut self, slot: u32) {
        let (name, uses) = self.rows.get_mut(slot).expect("a row names a site that exists");
        *uses -= 1;
        if *uses == 0 {
            let name = name.clone();
            self.slots.remove(&name);
            self.rows.remove(slot);
        }
    }

    pub(crate) fn name(&self, slot: u32) -> &Arc<str> {
        &self.rows.get(slot).expect("a row names a site that exists").0
    }

    pub(crate) fn slot(&self, name: &str) -> Option<u32> {
        self.slots.get(name).copied()
    }
}

impl Ledger {
    /// Makes an empty ledger.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            now: Timestamp::ZERO,
            messages: Pages::default(),
            sites: Sites::default(),
            ended: EndedIds::default(),
            stage: Stage::default(),
            events: EventLog::new(limits.event_bytes_max),
            epochs: BTreeMap::new(),
            index: Index::default(),
        }
    }

    /// Applies one command of the entry at `index`, proposed at `at`; hints for the leader are added to `effects`.
    ///
    /// Time never goes back: a command proposed earlier than the one before it counts as of the same time.
    pub fn apply(&mut self, index: u64, at: Timestamp, command: Command, effects: &mut Vec<Effect>) -> Reply {
        self.now = self.now.max(at);
        self.ended.forget_before(self.now);
        match command {
            Command::Accept(accept) => self.accept(index, *accept, effects),
            Command::Assign(assign) => self.assign(assign, effects),
            Command::Report(report) => self.report(*report, effects),
            Command::Return(id) => self.give_back(id, effects),
            Command::Started(_) => Reply::Done,
            Command::Reclaim { source, below, retry_at } => self.reclaim(source, below, retry_at, effects),
            Command::Cancel(id) => self.change(id, effects, Self::cancel),
            Command::Hold(id) => self.change(id, effects, Self::hold),
            Command::Release(id) => self.change(id, effects, Self::release),
            Command::Expire(deliveries) => self.expire(&deliveries, effects),
            Command::Consume { consumer, through } => {
                if self.events.consume(&consumer, through) {
                    Reply::Done
                } else {
                    Reply::Refused(Refusal::Invalid)
                }
            }
            Command::StageChunk { message, number, slot } => {
                let part = BodyRef { index, slot };
                match self.stage.put_chunk(self.now, message, number, part, self.limits.staged_chunks_max) {
                    Ok(()) => Reply::Done,
                    Err(refusal) => Reply::Refused(refusal),
                }
            }
        }
    }

    fn accept(&mut self, index: u64, accept: Accept, effects: &mut Vec<Effect>) -> Reply {
        if self.index.slots.contains_key(&accept.id) || self.ended.contains(accept.id) {
            return Reply::Accepted;
        }
        if accept.id.at() < EndedIds::oldest(self.now) {
            return Reply::Refused(Refusal::TooOld);
        }
        if !is_bounded(&accept) {
            return Reply::Refused(Refusal::Invalid);
        }
        let body = match accept.content {
            Content::Slot(slot) => Body::Whole(BodyRef { index, slot }),
            Content::Staged(chunks) => match self.stage.take_chunks(accept.id, chunks) {
                Some(parts) => Body::Chunks(parts),
                None => return Reply::Refused(Refusal::ChunkMissing),
            },
        };
        let lanes: Vec<Option<Lane>> = accept.recipients.iter().map(|recipient| recipient.assign).collect();
        let addresses = accept.recipients.iter().map(|recipient| recipient.address.clone()).collect();
        let message = self.new_message(&accept, body);
        let slot = self.messages.insert(message);
        self.index.slots.insert(accept.id, slot);
        let event = AcceptedEvent {
            message: accept.id,
            tenant: accept.tenant,
            sender: accept.sender,
            recipients: addresses,
            size: accept.size,
            subject: accept.subject,
            origin: accept.origin,
        };
        self.events.append(self.now, EventKind::Accepted(Box::new(event)));
        self.start_deliveries(slot, accept.id, &lanes, effects);
        Reply::Accepted
    }

    fn new_message(&mut self, accept: &Accept, body: Body) -> Message {
        let recipients: Box<[Recipient]> = accept
            .recipients
            .iter()
            .map(|recipient| Recipient {
                address: recipient.address.as_str().into(),
                last: None,
                state: State::Waiting { due: recipient.not_before.max(self.now) },
                site: self.sites.intern(&recipient.site),
                pool: recipient.pool,
                attempt: 0,
                counted: 0,
                settled: 0,
            })
            .collect();
        self.index.counts.waiting += recipients.len() as u64;
        Message {
            id: accept.id,
            tenant: accept.tenant,
            size: accept.size,
            accepted_at: self.now,
            expires_at: accept.expires_at,
            body,
            sender: accept.sender.as_ref().map_or("", Address::as_str).into(),
            traceparent: accept.traceparent.clone(),
            open: u32::try_from(recipients.len()).expect("recipients are bounded"),
            recipients,
            smtputf8: accept.smtputf8,
            eight_bit: accept.eight_bit,
        }
    }

    /// Assigns what the leader has already chosen a lane for, where that still holds, and lets the rest wait.
    fn start_deliveries(
        &mut self,
        slot: u32,
        id: MessageId,
        lanes: &[Option<Lane>],
        effects: &mut Vec<Effect>,
    ) {
        for (recipient, lane) in (0..).zip(lanes) {
            let delivery = DeliveryId { message: id, recipient };
            let assigned = lane.is_some_and(|lane| {
                let assign = Assign { delivery, attempt: AttemptNumber(1), lane };
                self.try_assign(assign, effects)
            });
            let state = self.recipient(Key { slot, recipient }).map(|recipient| recipient.state);
            if let (false, Some(State::Waiting { due })) = (assigned, state) {
                effects.push(Effect::Waiting { key: Key { slot, recipient }, due });
            }
        }
    }

    fn assign(&mut self, assign: Assign, effects: &mut Vec<Effect>) -> Reply {
        if self.try_assign(assign, effects) {
            return Reply::Done;
        }
        // The leader took it out of its queues; if it still waits, it must come back.
        if let Some(key) = self.key(assign.delivery)
            && let Some(Recipient { state: State::Waiting { due }, .. }) = self.recipient(key)
        {
            effects.push(Effect::Waiting { key, due: *due });
        }
        Reply::Done
    }

    /// Takes effect only if the delivery is ready, the attempt is the next one and the epoch is not older than one seen.
    fn try_assign(&mut self, assign: Assign, effects: &mut Vec<Effect>) -> bool {
        let Assign { delivery, attempt, lane } = assign;
        let Some(key) = self.key(delivery) else { return false };
        let message = self.messages.get(key.slot).expect("the index names rows that exist");
        let recipient = &message.recipients[key.recipient as usize];
        let ready = matches!(recipient.state, State::Waiting { due } if due <= self.now);
        let next = attempt.0 == recipient.attempt.saturating_add(1);
        let current = self.epochs.get(&lane.source).is_none_or(|seen| *seen <= lane.epoch);
        if !ready || !next || !current || message.expires_at <= self.now {
            return false;
        }
        self.epochs.insert(lane.source, lane.epoch);
        let recipient = self.recipient_mut(key);
        recipient.attempt = attempt.0;
        recipient.counted = recipient.counted.saturating_add(1);
        self.set_state(key, State::assigned(lane));
        effects.push(Effect::Assigned { key, id: AttemptId { delivery, attempt, epoch: lane.epoch }, lane });
        true
    }

    fn report(&mut self, report: Report, effects: &mut Vec<Effect>) -> Reply {
        let Some(key) = self.key(report.id.delivery) else { return Reply::NotFound };
        let recipient = self.recipient(key).expect("a key names a recipient that exists");
        let (state, settled, last_attempt) = (recipient.state, recipient.settled, recipient.attempt);
        let attempt = report.id.attempt.0;
        // An owner reports again when it has not seen the acknowledgement.
        if attempt <= settled || attempt > last_attempt {
            return Reply::Done;
        }
        self.recipient_mut(key).settled = attempt;
        if let State::Ended(_) = state {
            // Given up as unknown, and ended since by other means: nothing may follow an end in the record.
            return Reply::Done;
        }
        let lane = match state {
            State::Assigned { source, epoch, node, wish }
                if attempt == last_attempt && epoch == report.id.epoch =>
            {
                let then = self.after_attempt(key, wish, &report.outcome, report.retry_at);
                let lane = Lane { source, epoch, node };
                self.settle(key, lane, report, then, effects);
                return Reply::Done;
            }
            State::Assigned { source, node, .. } => Lane { source, epoch: report.id.epoch, node },
            _ => Lane { source: SourceId::default(), epoch: report.id.epoch, node: Default::default() },
        };
        // Late: the attempt was given up as unknown. Where the delivery waits, the truth still helps.
        let waits = matches!(state, State::Waiting { .. } | State::Held);
        let then = match report.outcome.kind {
            OutcomeKind::Delivered if waits => Then::Ended(End::Delivered),
            OutcomeKind::Hard if waits => Then::Ended(End::Bounced),
            _ => Then::Unchanged,
        };
        self.settle(key, lane, report, then, effects);
        Reply::Done
    }

    /// Decides what an attempt that was in time leads to.
    fn after_attempt(&self, key: Key, wish: Wish, outcome: &Outcome, retry_at: Timestamp) -> Then {
        let expires_at = self.messages.get(key.slot).map_or(Timestamp::ZERO, |message| message.expires_at);
        match (outcome.kind, wish) {
            (OutcomeKind::Delivered, _) => Then::Ended(End::Delivered),
            (OutcomeKind::Hard, _) => Then::Ended(End::Bounced),
            (_, Wish::Cancel) => Then::Ended(End::Cancelled),
            _ if expires_at <= self.now => Then::Ended(End::Expired),
            (_, Wish::Hold) => Then::Held,
            (_, Wish::Retry) => Then::Retry(retry_at.clamp(self.now, expires_at)),
        }
    }

    /// Writes an attempt into the record and does what follows from it.
    fn settle(&mut self, key: Key, lane: Lane, report: Report, then: Then, effects: &mut Vec<Effect>) {
        let delivery = report.id.delivery;
        let recipient = self.recipient_mut(key);
        // Nobody reported an unknown attempt that is reclaimed: its owner still may.
        let reported = report.started_at != Timestamp::ZERO || report.outcome.kind != OutcomeKind::Unknown;
        if reported {
            recipient.settled = recipient.settled.max(report.id.attempt.0);
        }
        if report.outcome.class == Some(postroad_core::BounceClass::TooManyRecipients) {
            recipient.counted = recipient.counted.saturating_sub(1);
        }
        if then != Then::Unchanged {
            recipient.last = Some(Box::new(report.outcome.clone()));
        }
        let event = AttemptEvent {
            delivery,
            attempt: report.id.attempt,
            source: lane.source,
            epoch: lane.epoch,
            node: lane.node,
            outcome: report.outcome,
            remote: report.remote,
            tls: report.tls,
            started_at: report.started_at,
            ended_at: report.ended_at,
            then,
        };
        self.events.append(self.now, EventKind::Attempt(Box::new(event)));
        match then {
            Then::Retry(due) => self.wait(key, due, effects),
            Then::Held => self.leave_lane(key, State::Held, effects),
            Then::Ended(end) => self.end(key, delivery, end, effects),
            Then::Unchanged => {}
        }
    }

    fn give_back(&mut self, id: AttemptId, effects: &mut Vec<Effect>) -> Reply {
        let Some(key) = self.key(id.delivery) else { return Reply::NotFound };
        let now = self.now;
        let recipient = self.recipient_mut(key);
        let State::Assigned { epoch, wish, .. } = recipient.state else { return Reply::Done };
        if epoch != id.epoch || recipient.attempt != id.attempt.0 {
            return Reply::Done;
        }
        recipient.counted = recipient.counted.saturating_sub(1);
        match wish {
            Wish::Retry => self.wait(key, now, effects),
            Wish::Hold => {
                self.events.append(now, EventKind::Held(id.delivery));
                self.leave_lane(key, State::Held, effects);
            }
            Wish::Cancel => {
                self.events.append(now, EventKind::Ended(id.delivery, End::Cancelled));
                self.end(key, id.delivery, End::Cancelled, effects);
            }
        }
        Reply::Done
    }

    fn reclaim(
        &mut self,
        source: SourceId,
        below: Epoch,
        retry_at: Timestamp,
        effects: &mut Vec<Effect>,
    ) -> Reply {
        let seen = self.epochs.entry(source).or_default();
        *seen = below.max(*seen);
        let assigned: Vec<DeliveryId> =
            self.index.assigned.get(&source).into_iter().flatten().copied().collect();
        for delivery in assigned {
            let key = self.key(delivery).expect("the index names deliveries that exist");
            let recipient = self.recipient(key).expect("a key names a recipient that exists");
            let State::Assigned { epoch, node, wish, .. } = recipient.state else { continue };
            if epoch >= below {
                continue;
            }
            let id = AttemptId { delivery, attempt: AttemptNumber(recipient.attempt), epoch };
            let outcome =
                Outcome::new(OutcomeKind::Unknown, None, 0, "the owner of the source did not report");
            let then = self.after_attempt(key, wish, &outcome, retry_at);
            let report = Report {
                id,
                outcome,
                retry_at,
                remote: "".into(),
                tls: "".into(),
                started_at: Timestamp::ZERO,
                ended_at: self.now,
            };
            self.settle(key, Lane { source, epoch, node }, report, then, effects);
        }
        Reply::Done
    }

    /// Applies a change to every recipient of a message.
    fn change(
        &mut self,
        id: MessageId,
        effects: &mut Vec<Effect>,
        one: fn(&mut Self, Key, DeliveryId, &mut Vec<Effect>) -> Change,
    ) -> Reply {
        let Some(slot) = self.index.slots.get(&id).copied() else { return Reply::NotFound };
        let count = self.messages.get(slot).map_or(0, |message| message.recipients.len());
        let changes = (0..)
            .take(count)
            .map(|recipient| {
                one(self, Key { slot, recipient }, DeliveryId { message: id, recipient }, effects)
            })
            .collect();
        Reply::Changed(changes)
    }

    fn cancel(&mut self, key: Key, delivery: DeliveryId, effects: &mut Vec<Effect>) -> Change {
        // The row goes when its last recipient ends, so the recipients after that one are gone with it.
        let Some(state) = self.recipient(key).map(|recipient| recipient.state) else {
            return Change::AlreadyEnded;
        };
        match state {
            State::Ended(_) => Change::AlreadyEnded,
            State::Assigned { .. } => self.wish(key, delivery, Wish::Cancel, effects),
            State::Waiting { .. } | State::Held => {
                self.events.append(self.now, EventKind::Ended(delivery, End::Cancelled));
                self.end(key, delivery, End::Cancelled, effects);
                Change::Done
            }
        }
    }

    fn hold(&mut self, key: Key, delivery: DeliveryId, effects: &mut Vec<Effect>) -> Change {
        let Some(state) = self.recipient(key).map(|recipient| recipient.state) else {
            return Change::AlreadyEnded;
        };
        match state {
            State::Ended(_) => Change::AlreadyEnded,
            State::Held => Change::Unchanged,
            State::Assigned { wish: Wish::Cancel, .. } => Change::InFlight,
            State::Assigned { .. } => self.wish(key, delivery, Wish::Hold, effects),
            State::Waiting { .. } => {
                self.events.append(self.now, EventKind::Held(delivery));
                self.set_state(key, State::Held);
                Change::Done
            }
        }
    }

    fn release(&mut self, key: Key, delivery: DeliveryId, effects: &mut Vec<Effect>) -> Change {
        let now = self.now;
        let Some(state) = self.recipient(key).map(|recipient| recipient.state) else {
            return Change::AlreadyEnded;
        };
        match state {
            State::Ended(_) => Change::AlreadyEnded,
            State::Waiting { .. } => Change::Unchanged,
            State::Held => {
                self.events.append(now, EventKind::Released(delivery, now));
                self.wait(key, now, effects);
                Change::Done
            }
            State::Assigned { source, epoch, node, wish: Wish::Hold } => {
                self.set_state(key, State::Assigned { source, epoch, node, wish: Wish::Retry });
                Change::Done
            }
            State::Assigned { wish: Wish::Cancel, .. } => Change::InFlight,
            State::Assigned { wish: Wish::Retry, .. } => Change::Unchanged,
        }
    }

    /// Notes what is to become of an assigned delivery, and asks its owner to give it back.
    fn wish(&mut self, key: Key, delivery: DeliveryId, wish: Wish, effects: &mut Vec<Effect>) -> Change {
        let recipient = self.recipient_mut(key);
        let attempt = AttemptNumber(recipient.attempt);
        if let State::Assigned { source, epoch, node, .. } = recipient.state {
            self.set_state(key, State::Assigned { source, epoch, node, wish });
            let id = AttemptId { delivery, attempt, epoch };
            effects.push(Effect::Recall { id, lane: Lane { source, epoch, node } });
        }
        Change::InFlight
    }

    fn expire(&mut self, deliveries: &[DeliveryId], effects: &mut Vec<Effect>) -> Reply {
        for delivery in deliveries {
            let Some(key) = self.key(*delivery) else { continue };
            let message = self.messages.get(key.slot).expect("the index names rows that exist");
            let state = message.recipients[key.recipient as usize].state;
            let waits = matches!(state, State::Waiting { .. } | State::Held);
            if waits && message.expires_at <= self.now {
                self.events.append(self.now, EventKind::Ended(*delivery, End::Expired));
                self.end(key, *delivery, End::Expired, effects);
            }
        }
        Reply::Done
    }

    fn wait(&mut self, key: Key, due: Timestamp, effects: &mut Vec<Effect>) {
        self.leave_lane(key, State::Waiting { due }, effects);
        effects.push(Effect::Waiting { key, due });
    }

    fn end(&mut self, key: Key, delivery: DeliveryId, end: End, effects: &mut Vec<Effect>) {
        self.leave_lane(key, State::Ended(end), effects);
        let message = self.messages.get_mut(key.slot).expect("a key names a row that exists");
        message.open -= 1;
        if message.open > 0 {
            return;
        }
        let message = self.messages.remove(key.slot).expect("a key names a row that exists");
        for recipient in &message.recipients {
            self.sites.release(recipient.site);
        }
        self.index.slots.remove(&delivery.message);
        if delivery.message.at() >= EndedIds::oldest(self.now) {
            self.ended.insert(delivery.message);
        }
        effects.push(Effect::Finished(delivery.message));
    }

    /// Changes the state, and tells the leader when that frees room in a lane.
    fn leave_lane(&mut self, key: Key, state: State, effects: &mut Vec<Effect>) {
        let before = self.recipient_mut(key).state;
        self.set_state(key, state);
        if let State::Assigned { source, .. } = before
            && let Some(recipient) = self.recipient(key)
        {
            effects.push(Effect::Freed { source, site: self.sites.name(recipient.site).clone() });
        }
    }

    /// Changes the state of a delivery and what is derived from it: nothing else does.
    fn set_state(&mut self, key: Key, state: State) {
        let message = self.messages.get_mut(key.slot).expect("a key names a row that exists");
        let delivery = DeliveryId { message: message.id, recipient: key.recipient };
        let recipient = &mut message.recipients[key.recipient as usize];
        let before = std::mem::replace(&mut recipient.state, state);
        let site = recipient.site;
        self.index.leave(delivery, site, before);
        self.index.enter(delivery, site, state);
    }

    /// Returns where a delivery is, while its message has not ended.
    #[must_use]
    pub fn key(&self, delivery: DeliveryId) -> Option<Key> {
        let slot = *self.index.slots.get(&delivery.message)?;
        let key = Key { slot, recipient: delivery.recipient };
        self.recipient(key).map(|_| key)
    }

    /// Returns how many deliveries to a site are assigned to a source.
    pub(crate) fn outstanding(&self, source: SourceId, site: &str) -> u32 {
        let lane = self.sites.slot(site).map(|site| (source, site));
        lane.and_then(|lane| self.index.lanes.get(&lane)).copied().unwrap_or(0)
    }

    fn recipient(&self, key: Key) -> Option<&Recipient> {
        self.messages.get(key.slot)?.recipients.get(key.recipient as usize)
    }

    fn recipient_mut(&mut self, key: Key) -> &mut Recipient {
        let message = self.messages.get_mut(key.slot).expect("a key names a row that exists");
        &mut message.recipients[key.recipient as usize]
    }
}

impl Index {
    pub(crate) fn enter(&mut self, delivery: DeliveryId, site: u32, state: State) {
        match state {
            State::Waiting { .. } => self.counts.waiting += 1,
            State::Held => self.counts.held += 1,
            State::Ended(_) => {}
            State::Assigned { source, .. } => {
                self.counts.assigned += 1;
                self.assigned.entry(source).or_default().insert(delivery);
                *self.lanes.entry((source, site)).or_default() += 1;
            }
        }
    }

    fn leave(&mut self, delivery: DeliveryId, site: u32, state: State) {
        match state {
            State::Waiting { .. } => self.counts.waiting -= 1,
            State::Held => self.counts.held -= 1,
            State::Ended(_) => {}
            State::Assigned { source, .. } => {
                self.counts.assigned -= 1;
                let assigned = self.assigned.get_mut(&source).expect("what is assigned was entered");
                assigned.remove(&delivery);
                if assigned.is_empty() {
                    self.assigned.remove(&source);
                }
                let lane = self.lanes.get_mut(&(source, site)).expect("what is assigned was entered");
                *lane -= 1;
                if *lane == 0 {
                    self.lanes.remove(&(source, site));
                }
            }
        }
    }
}

fn is_bounded(accept: &Accept) -> bool {
    let texts = [&accept.subject, &accept.origin, &accept.traceparent];
    (1..=RECIPIENTS_MAX).contains(&accept.recipients.len())
        && texts.iter().all(|text| text.len() <= TEXT_BYTES_MAX)
        && accept.recipients.iter().all(|recipient| (1..=TEXT_BYTES_MAX).contains(&recipient.site.len()))
}

/// A message and where it stands, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageView {
    /// The message.
    pub id: MessageId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The reverse path.
    pub sender: Option<Address>,
    /// Bytes of the content.
    pub size: u32,
    /// When the ledger took responsibility.
    pub accepted_at: Timestamp,
    /// No attempt starts at or after this.
    pub expires_at: Timestamp,
    /// An address needs SMTPUTF8.
    pub smtputf8: bool,
    /// The content holds bytes above 127.
    pub eight_bit: bool,
    /// W3C traceparent, empty without a trace.
    pub traceparent: Box<str>,
    /// Where the content is, in order.
    pub content: Vec<BodyRef>,
    /// Every recipient, in the order of the envelope.
    pub deliveries: Vec<DeliveryView>,
}

/// One recipient and where its delivery stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryView {
    /// The mailbox.
    pub address: Address,
    /// The normalised MX set, or the domain.
    pub site: Arc<str>,
    /// The pool whose sources may deliver it.
    pub pool: PoolId,
    /// Where it stands.
    pub status: Status,
    /// Attempts that were started.
    pub attempts: u32,
    /// How the last attempt ended.
    pub last: Option<Outcome>,
}

/// An assigned delivery as the owner of its source needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AssignedView<'a> {
    /// Which attempt.
    pub id: AttemptId,
    /// The source, its epoch and its owner.
    pub lane: Lane,
    /// Whose message it is.
    pub tenant: TenantId,
    /// The reverse path, empty for the null sender.
    pub sender: &'a str,
    /// The mailbox.
    pub address: &'a str,
    /// The normalised MX set, or the domain.
    pub site: &'a str,
    /// Bytes of the content.
    pub size: u32,
    /// An address needs SMTPUTF8.
    pub smtputf8: bool,
    /// The content holds bytes above 127.
    pub eight_bit: bool,
    /// W3C traceparent, empty without a trace.
    pub traceparent: &'a str,
    /// Where the content is, in order.
    pub content: &'a [BodyRef],
    /// Its owner is asked to give it back.
    pub recalled: bool,
}

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is to be assigned, from this time on.
    Waiting(Timestamp),
    /// This attempt is with the owner of a source.
    Assigned(AttemptNumber, Lane),
    /// It is kept from being assigned.
    Held,
    /// It ended.
    Ended(End),
}

impl Ledger {
    /// Returns a message that has not ended.
    #[must_use]
    pub fn message(&self, id: MessageId) -> Option<MessageView> {
        let message = self.messages.get(*self.index.slots.get(&id)?)?;
        Some(MessageView {
            id,
            tenant: message.tenant,
            sender: message.sender(),
            size: message.size,
            accepted_at: message.accepted_at,
            expires_at: message.expires_at,
            smtputf8: message.smtputf8,
            eight_bit: message.eight_bit,
            traceparent: message.traceparent.clone(),
            content: message.body.parts().to_vec(),
            deliveries: message.recipients.iter().map(|recipient| self.delivery_view(recipient)).collect(),
        })
    }

    /// Returns a delivery that is assigned.
    #[must_use]
    pub fn assigned(&self, key: Key) -> Option<AssignedView<'_>> {
        let message = self.messages.get(key.slot)?;
        let recipient = message.recipients.get(key.recipient as usize)?;
        let State::Assigned { source, epoch, node, wish } = recipient.state else { return None };
        let delivery = DeliveryId { message: message.id, recipient: key.recipient };
        Some(AssignedView {
            id: AttemptId { delivery, attempt: AttemptNumber(recipient.attempt), epoch },
            lane: Lane { source, epoch, node },
            tenant: message.tenant,
            sender: &message.sender,
            address: &recipient.address,
            site: self.sites.name(recipient.site),
            size: message.size,
            smtputf8: message.smtputf8,
            eight_bit: message.eight_bit,
            traceparent: &message.traceparent,
            content: message.body.parts(),
            recalled: wish != Wish::Retry,
        })
    }

    /// Returns how many attempts at a delivery count for its retry schedule, while its message has not ended.
    #[must_use]
    pub fn attempts(&self, delivery: DeliveryId) -> Option<u32> {
        self.recipient(self.key(delivery)?).map(|recipient| recipient.counted)
    }

    fn delivery_view(&self, recipient: &Recipient) -> DeliveryView {
        DeliveryView {
            address: recipient.address(),
            site: self.sites.name(recipient.site).clone(),
            pool: recipient.pool,
            status: match recipient.state {
                State::Waiting { due } => Status::Waiting(due),
                State::Assigned { source, epoch, node, .. } => {
                    Status::Assigned(AttemptNumber(recipient.attempt), Lane { source, epoch, node })
                }
                State::Held => Status::Held,
                State::Ended(end) => Status::Ended(end),
            },
            attempts: recipient.counted,
            last: recipient.last.as_deref().cloned(),
        }
    }

    /// Returns true when the message is held or ended not longer ago than ids are remembered.
    #[must_use]
    pub fn knows(&self, id: MessageId) -> bool {
        self.index.slots.contains_key(&id) || self.ended.contains(id)
    }

    /// Returns what is assigned to a source, in the order of the ids.
    pub fn assigned_to(&self, source: SourceId) -> impl Iterator<Item = DeliveryId> {
        self.index.assigned.get(&source).into_iter().flatten().copied()
    }

    /// Returns true when something is assigned to a source, and nothing was seen of it under this epoch or a later one.
    #[must_use]
    pub fn has_work_below(&self, source: SourceId, epoch: Epoch) -> bool {
        self.index.assigned.contains_key(&source) && self.epochs.get(&source).is_none_or(|seen| *seen < epoch)
    }

    /// Returns the sources that something is assigned to.
    pub fn sources_with_work(&self) -> impl Iterator<Item = SourceId> {
        self.index.assigned.keys().copied()
    }

    /// Returns up to `examined_max` messages from `from` on that have expired, and the id to go on from; `None` at the end.
    #[must_use]
    pub fn expired(
        &self,
        from: MessageId,
        examined_max: usize,
        now: Timestamp,
    ) -> (Vec<DeliveryId>, Option<MessageId>) {
        let mut rest = self.index.slots.range(from..);
        let mut found = Vec::new();
        for (id, slot) in rest.by_ref().take(examined_max) {
            let Some(message) = self.messages.get(*slot).filter(|message| message.expires_at <= now) else {
                continue;
            };
            let ended = (0..)
                .zip(&message.recipients)
                .filter(|(_, recipient)| matches!(recipient.state, State::Waiting { .. } | State::Held));
            found.extend(ended.map(|(recipient, _)| DeliveryId { message: *id, recipient }));
        }
        (found, rest.next().map(|(id, _)| *id))
    }

    /// Returns the events from number `from` on; dropped ones show as one [`EventKind::Gap`].
    pub fn events(&self, from: u64) -> impl Iterator<Item = &Event> {
        self.events.from(from)
    }

    /// Returns the first event that is kept and the number the next one gets.
    #[must_use]
    pub fn event_range(&self) -> (u64, u64) {
        (self.events.first(), self.events.next())
    }

    /// Returns the next event a consumer wants, 0 for one that never came.
    #[must_use]
    pub fn cursor(&self, consumer: &str) -> u64 {
        self.events.cursor(consumer)
    }

    /// Returns the bytes of the events that are kept.
    #[must_use]
    pub fn event_bytes(&self) -> u64 {
        self.events.bytes()
    }

    /// Returns the number of messages that have not ended.
    #[must_use]
    pub fn message_count(&self) -> usize {
        self.messages.len()
    }

    /// Returns how many deliveries are in each state.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.index.counts
    }

    /// Returns when the oldest message that has not ended was accepted.
    #[must_use]
    pub fn oldest(&self) -> Option<Timestamp> {
        let (_, slot) = self.index.slots.first_key_value()?;
        self.messages.get(*slot).map(|message| message.accepted_at)
    }

    /// Returns the time of the last command.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Returns a number that is equal on replicas that went the same way: the fold of every event so far, and the counts.
    ///
    /// It costs nothing to ask; a divergence shows with the next event it leads to.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        let Counts { waiting, assigned, held } = self.index.counts;
        [self.now.as_millis(), self.messages.len() as u64, waiting, assigned, held]
            .into_iter()
            .fold(self.events.hash(), |hash, word| {
                (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
            })
    }
}
