//! The state of one ledger group: every accepted message that has not ended, and the events.
//!
//! `apply` is pure: two ledgers that applied the same commands are equal, on any machine.
//! Effects are hints to the leader; a new leader finds its work by reading the state.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use postroad_core::{
    Address, AttemptNumber, BounceClass, DeliveryId, DeliveryState, Epoch, FinalState, MessageId, Outcome,
    OutcomeKind, Party, PoolId, Retry, SourceId, TenantId, Timestamp, retry::Attempts,
};

use crate::{
    command::{
        Accept, Assign, AttemptId, Change, Command, Content, Effect, Key, RECIPIENTS_MAX, Refusal, Reply,
        Report, SourceGrant, TEXT_BYTES_MAX,
    },
    ended::EndedIds,
    event::{AcceptedEvent, AttemptEvent, Event, EventKind, EventLog, NextState, Retried},
    pages::Pages,
    row::{Body, BodyRef, Message, PendingChange, Recipient, State},
    stage::Stage,
};

/// The receiver refused the delivery for good.
const BOUNCED: NextState = NextState::Ended(FinalState::Bounced);

/// Bounds of a ledger: the same on every replica of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of unread events kept; at the bound the oldest are dropped, leaving a gap.
    pub event_bytes_max: u64,
    /// Chunks staged at a time.
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
    /// The time of the last command; never goes back.
    pub(crate) now: Timestamp,
    pub(crate) messages: Pages<Message>,
    pub(crate) sites: Sites,
    pub(crate) ended: EndedIds,
    pub(crate) stage: Stage,
    pub(crate) events: EventLog,
    /// The highest epoch seen of each source.
    pub(crate) epochs: BTreeMap<SourceId, Epoch>,
    pub(crate) index: Index,
}

/// Indexes that can be rebuilt from the rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub(crate) slots: BTreeMap<MessageId, u32>,
    /// Deliveries assigned to each source, by id, so that every replica iterates in the same order.
    pub(crate) assigned: BTreeMap<SourceId, BTreeSet<DeliveryId>>,
    /// Their number per source and site.
    pub(crate) lanes: BTreeMap<(SourceId, u32), u32>,
    /// Messages of each tenant.
    pub(crate) tenants: BTreeMap<TenantId, u64>,
    pub(crate) counts: Counts,
}

/// How many deliveries are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Queued or deferred.
    pub queued: u64,
    /// With an outbound node.
    pub sending: u64,
    /// Held.
    pub held: u64,
}

/// Site names, each kept once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sites {
    /// Each name, and how many recipients use it.
    pub(crate) rows: Pages<(Arc<str>, u32)>,
    slots: BTreeMap<Arc<str>, u32>,
}

impl Sites {
    /// Returns the slot of a name, and counts one more use.
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

    /// Applies one command of the entry at `index`, proposed at `at`; adds hints for the leader to `effects`.
    ///
    /// Time never goes back: a command with an earlier time than the one before it gets the same time.
    pub fn apply(&mut self, index: u64, at: Timestamp, command: Command, effects: &mut Vec<Effect>) -> Reply {
        self.now = self.now.max(at);
        self.ended.forget_before(self.now);
        match command {
            Command::Accept(accept) => self.accept(index, *accept, effects),
            Command::Assign(assign) => self.assign(assign, effects),
            Command::Report(report) => self.report(*report, effects),
            Command::Return(id) => self.return_attempt(id, effects),
            Command::Started(_) => Reply::Done,
            Command::Reclaim { source, below, retry_at, copies_max } => {
                self.reclaim(source, below, retry_at, copies_max, effects)
            }
            Command::Cancel(id) => self.change(id, effects, Self::cancel),
            Command::Hold(id) => self.change(id, effects, Self::hold),
            Command::Release(id) => self.change(id, effects, Self::release),
            Command::Retry(id) => self.change(id, effects, Self::retry),
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
        let grants: Vec<Option<SourceGrant>> =
            accept.recipients.iter().map(|recipient| recipient.grant).collect();
        let addresses = accept.recipients.iter().map(|recipient| recipient.address.clone()).collect();
        let message = self.new_message(&accept, body);
        let slot = self.messages.insert(message);
        self.index.slots.insert(accept.id, slot);
        self.index.enter_message(accept.tenant);
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
        self.start_deliveries(slot, accept.id, &grants, effects);
        Reply::Accepted
    }

    fn new_message(&mut self, accept: &Accept, body: Body) -> Message {
        let recipients: Box<[Recipient]> = accept
            .recipients
            .iter()
            .map(|recipient| Recipient {
                address: recipient.address.as_str().into(),
                last: None,
                state: State::Queued { due: recipient.not_before.max(self.now) },
                site: self.sites.intern(&recipient.site),
                pool: recipient.pool,
                attempt: 0,
                given_back: 0,
                counted: 0,
                reported: 0,
                unknown: 0,
                distant: 0,
                internal: 0,
                retry_now: false,
            })
            .collect();
        self.index.counts.queued += recipients.len() as u64;
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

    /// Assigns the deliveries for which the leader has chosen a source, where that is still possible; queues the rest.
    fn start_deliveries(
        &mut self,
        slot: u32,
        id: MessageId,
        grants: &[Option<SourceGrant>],
        effects: &mut Vec<Effect>,
    ) {
        for (recipient, grant) in (0..).zip(grants) {
            let delivery = DeliveryId { message: id, recipient };
            let assigned = grant.is_some_and(|grant| {
                let assign = Assign { delivery, attempt: AttemptNumber(1), grant };
                self.try_assign(assign, effects)
            });
            let state = self.recipient(Key { slot, recipient }).map(|recipient| recipient.state);
            if let (false, Some(State::Queued { due })) = (assigned, state) {
                effects.push(Effect::Queued { key: Key { slot, recipient }, due });
            }
        }
    }

    fn assign(&mut self, assign: Assign, effects: &mut Vec<Effect>) -> Reply {
        if self.try_assign(assign, effects) {
            return Reply::Done;
        }
        // The leader took it out of its queues; if it is still queued, it must go back.
        if let Some(key) = self.key(assign.delivery)
            && let Some(Recipient { state: State::Queued { due }, .. }) = self.recipient(key)
        {
            effects.push(Effect::Queued { key, due: *due });
        }
        Reply::Done
    }

    /// Assigns only if the delivery is due, the attempt is the next one and the epoch is not older than one seen.
    fn try_assign(&mut self, assign: Assign, effects: &mut Vec<Effect>) -> bool {
        let Assign { delivery, attempt, grant } = assign;
        let Some(key) = self.key(delivery) else { return false };
        let message = self.messages.get(key.slot).expect("the index names rows that exist");
        let recipient = &message.recipients[key.recipient as usize];
        let ready = matches!(recipient.state, State::Queued { due } if due <= self.now);
        let next = attempt.0 == recipient.attempt.saturating_add(1);
        let current = self.epochs.get(&grant.source).is_none_or(|seen| *seen <= grant.epoch);
        if !ready || !next || !current || message.expires_at <= self.now {
            return false;
        }
        self.epochs.insert(grant.source, grant.epoch);
        let recipient = self.recipient_mut(key);
        recipient.attempt = attempt.0;
        recipient.counted = recipient.counted.saturating_add(1);
        self.set_state(key, State::assigned(grant));
        effects.push(Effect::Assigned {
            key,
            id: AttemptId { delivery, attempt, epoch: grant.epoch },
            grant,
        });
        true
    }

    fn report(&mut self, mut report: Report, effects: &mut Vec<Effect>) -> Reply {
        let Some(key) = self.key(report.id.delivery) else { return Reply::NotFound };
        let recipient = self.recipient(key).expect("a key names a recipient that exists");
        let (state, reported, last_attempt) = (recipient.state, recipient.reported, recipient.attempt);
        let attempt = report.id.attempt.0;
        // An owner repeats a report until it gets the acknowledgement.
        if attempt <= reported || attempt > last_attempt {
            return Reply::Done;
        }
        self.recipient_mut(key).reported = attempt;
        if let State::Ended(_) = state {
            // The attempt ended as unknown, and the delivery has ended since: no event may follow.
            return Reply::Done;
        }
        let grant = match state {
            State::Sending { source, epoch, node, pending }
                if attempt == last_attempt && epoch == report.id.epoch =>
            {
                let next_state =
                    self.after_attempt(key, pending, &report.outcome, report.retry_at, report.copies_max);
                if report.outcome.kind == OutcomeKind::Unknown && next_state == BOUNCED {
                    report.outcome.class = Some(BounceClass::Unconfirmed);
                }
                let grant = SourceGrant { source, epoch, node };
                self.record_attempt(key, grant, report, next_state, effects);
                return Reply::Done;
            }
            State::Sending { source, node, .. } => SourceGrant { source, epoch: report.id.epoch, node },
            _ => {
                SourceGrant { source: SourceId::default(), epoch: report.id.epoch, node: Default::default() }
            }
        };
        // Late: the attempt ended as unknown. Where the delivery waits, its real outcome still counts.
        let is_waiting = matches!(state, State::Queued { .. } | State::Held);
        let next_state = match (report.outcome.kind, report.outcome.retry) {
            (OutcomeKind::Delivered, _) if is_waiting => NextState::Ended(FinalState::Delivered),
            (_, Retry::Never) if is_waiting => BOUNCED,
            _ => NextState::Unchanged,
        };
        if report.outcome.kind != OutcomeKind::Unknown {
            let recipient = self.recipient_mut(key);
            recipient.unknown = recipient.unknown.saturating_sub(1);
        }
        self.record_attempt(key, grant, report, next_state, effects);
        Reply::Done
    }

    /// Decides the next state after an attempt that was reported in time.
    fn after_attempt(
        &self,
        key: Key,
        pending: PendingChange,
        outcome: &Outcome,
        retry_at: Timestamp,
        copies_max: u8,
    ) -> NextState {
        let expires_at = self.messages.get(key.slot).map_or(Timestamp::ZERO, |message| message.expires_at);
        let recipient = self.recipient(key).expect("a key names a recipient that exists");
        let copies = recipient.attempts().copies_after(outcome);
        let stops = outcome.kind == OutcomeKind::Unknown && copies_max > 0 && copies >= copies_max;
        match (outcome.kind, outcome.retry) {
            (OutcomeKind::Delivered, _) => return NextState::Ended(FinalState::Delivered),
            (_, Retry::Never) => return BOUNCED,
            _ => {}
        }
        match (outcome.retry, pending) {
            (_, PendingChange::Cancel) => NextState::Ended(FinalState::Cancelled),
            _ if expires_at <= self.now => NextState::Ended(FinalState::Expired),
            (Retry::Distant { tries_max }, _) if recipient.distant >= tries_max.get() => BOUNCED,
            // D-046: the receiver loses every reply to the final dot.
            _ if stops && outcome.party == Some(Party::Receiver) => BOUNCED,
            // Our own nodes failed each time, and perhaps nothing was sent: a person decides.
            _ if stops => NextState::Held,
            (_, PendingChange::Hold) => NextState::Held,
            (_, PendingChange::None) => NextState::Retry(retry_at.clamp(self.now, expires_at)),
        }
    }

    /// Adds an attempt to the events and changes the delivery's state.
    fn record_attempt(
        &mut self,
        key: Key,
        grant: SourceGrant,
        report: Report,
        next_state: NextState,
        effects: &mut Vec<Effect>,
    ) {
        let delivery = report.id.delivery;
        let recipient = self.recipient_mut(key);
        if next_state != NextState::Unchanged {
            recipient.retry_now = false;
        }
        // A reclaimed attempt was not reported by its owner, who still may.
        let by_owner = report.started_at != Timestamp::ZERO || report.outcome.kind != OutcomeKind::Unknown;
        if by_owner {
            recipient.reported = recipient.reported.max(report.id.attempt.0);
        }
        if !report.outcome.is_counted() {
            recipient.counted = recipient.counted.saturating_sub(1);
        }
        if next_state != NextState::Unchanged {
            let distant = matches!(report.outcome.retry, Retry::Distant { .. });
            let unknown = report.outcome.kind == OutcomeKind::Unknown;
            recipient.distant = recipient.distant.saturating_add(u8::from(distant));
            recipient.unknown = recipient.unknown.saturating_add(u8::from(unknown));
            let internal = report.outcome.kind == OutcomeKind::Internal;
            recipient.internal = if internal { recipient.internal.saturating_add(1) } else { 0 };
            recipient.last = Some(Box::new(report.outcome.clone()));
        }
        let event = AttemptEvent {
            delivery,
            attempt: report.id.attempt,
            number: recipient.number_of(report.id.attempt),
            source: grant.source,
            epoch: grant.epoch,
            node: grant.node,
            outcome: report.outcome,
            remote: report.remote,
            tls: report.tls,
            started_at: report.started_at,
            ended_at: report.ended_at,
            next_state,
        };
        self.events.append(self.now, EventKind::Attempt(Box::new(event)));
        match next_state {
            NextState::Retry(due) => self.queue_again(key, due, effects),
            NextState::Held => self.leave_lane(key, State::Held, effects),
            NextState::Ended(end) => self.end(key, delivery, end, effects),
            NextState::Unchanged => {}
        }
    }

    fn return_attempt(&mut self, id: AttemptId, effects: &mut Vec<Effect>) -> Reply {
        let Some(key) = self.key(id.delivery) else { return Reply::NotFound };
        let now = self.now;
        let recipient = self.recipient_mut(key);
        let State::Sending { epoch, pending, .. } = recipient.state else { return Reply::Done };
        if epoch != id.epoch || recipient.attempt != id.attempt.0 {
            return Reply::Done;
        }
        recipient.counted = recipient.counted.saturating_sub(1);
        recipient.given_back = recipient.given_back.saturating_add(1);
        recipient.retry_now = false;
        match pending {
            PendingChange::None => self.queue_again(key, now, effects),
            PendingChange::Hold => {
                self.events.append(now, EventKind::Held(id.delivery));
                self.leave_lane(key, State::Held, effects);
            }
            PendingChange::Cancel => {
                self.events.append(now, EventKind::Ended(id.delivery, FinalState::Cancelled));
                self.end(key, id.delivery, FinalState::Cancelled, effects);
            }
        }
        Reply::Done
    }

    fn reclaim(
        &mut self,
        source: SourceId,
        below: Epoch,
        retry_at: Timestamp,
        copies_max: u8,
        effects: &mut Vec<Effect>,
    ) -> Reply {
        let seen = self.epochs.entry(source).or_default();
        *seen = below.max(*seen);
        let assigned: Vec<DeliveryId> =
            self.index.assigned.get(&source).into_iter().flatten().copied().collect();
        for delivery in assigned {
            let key = self.key(delivery).expect("the index names deliveries that exist");
            let recipient = self.recipient(key).expect("a key names a recipient that exists");
            let State::Sending { epoch, node, pending, .. } = recipient.state else { continue };
            if epoch >= below {
                continue;
            }
            let id = AttemptId { delivery, attempt: AttemptNumber(recipient.attempt), epoch };
            let outcome =
                Outcome::new(OutcomeKind::Unknown, None, 0, "the outbound node did not report the outcome");
            let next_state = self.after_attempt(key, pending, &outcome, retry_at, copies_max);
            let report = Report {
                id,
                outcome,
                retry_at,
                copies_max,
                remote: "".into(),
                tls: "".into(),
                started_at: Timestamp::ZERO,
                ended_at: self.now,
            };
            self.record_attempt(key, SourceGrant { source, epoch, node }, report, next_state, effects);
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
        // The row is removed when its last open recipient ends, and the recipients after it with it.
        let Some(state) = self.recipient(key).map(|recipient| recipient.state) else {
            return Change::AlreadyEnded;
        };
        match state {
            State::Ended(_) => Change::AlreadyEnded,
            State::Sending { .. } => self.request_change(key, delivery, PendingChange::Cancel, effects),
            State::Queued { .. } | State::Held => {
                self.events.append(self.now, EventKind::Ended(delivery, FinalState::Cancelled));
                self.end(key, delivery, FinalState::Cancelled, effects);
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
            State::Sending { pending: PendingChange::Cancel, .. } => Change::InFlight,
            State::Sending { .. } => self.request_change(key, delivery, PendingChange::Hold, effects),
            State::Queued { .. } => {
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
            State::Queued { .. } => Change::Unchanged,
            State::Held => {
                self.events.append(now, EventKind::Released(delivery, now));
                self.queue_again(key, now, effects);
                Change::Done
            }
            State::Sending { source, epoch, node, pending: PendingChange::Hold } => {
                self.set_state(key, State::Sending { source, epoch, node, pending: PendingChange::None });
                Change::Done
            }
            State::Sending { pending: PendingChange::Cancel, .. } => Change::InFlight,
            State::Sending { pending: PendingChange::None, .. } => Change::Unchanged,
        }
    }

    fn retry(&mut self, key: Key, delivery: DeliveryId, effects: &mut Vec<Effect>) -> Change {
        let due = self.now;
        let Some(state) = self.recipient(key).map(|recipient| recipient.state) else {
            return Change::AlreadyEnded;
        };
        match state {
            State::Ended(_) => Change::AlreadyEnded,
            State::Held => Change::Unchanged,
            State::Sending { .. } => Change::InFlight,
            State::Queued { .. } => {
                let recipient = self.recipient_mut(key);
                if std::mem::replace(&mut recipient.retry_now, true) {
                    return Change::Unchanged;
                }
                let deferred = recipient.last.is_some();
                self.events.append(due, EventKind::Retried(delivery, Retried { due, deferred }));
                self.queue_again(key, due, effects);
                Change::Done
            }
        }
    }

    /// Remembers a change for an assigned delivery, and asks its owner to return it.
    fn request_change(
        &mut self,
        key: Key,
        delivery: DeliveryId,
        pending: PendingChange,
        effects: &mut Vec<Effect>,
    ) -> Change {
        let recipient = self.recipient_mut(key);
        let attempt = AttemptNumber(recipient.attempt);
        if let State::Sending { source, epoch, node, .. } = recipient.state {
            self.set_state(key, State::Sending { source, epoch, node, pending });
            let id = AttemptId { delivery, attempt, epoch };
            effects.push(Effect::Recall { id, grant: SourceGrant { source, epoch, node } });
        }
        Change::InFlight
    }

    fn expire(&mut self, deliveries: &[DeliveryId], effects: &mut Vec<Effect>) -> Reply {
        for delivery in deliveries {
            let Some(key) = self.key(*delivery) else { continue };
            let message = self.messages.get(key.slot).expect("the index names rows that exist");
            let state = message.recipients[key.recipient as usize].state;
            let is_waiting = matches!(state, State::Queued { .. } | State::Held);
            if is_waiting && message.expires_at <= self.now {
                self.events.append(self.now, EventKind::Ended(*delivery, FinalState::Expired));
                self.end(key, *delivery, FinalState::Expired, effects);
            }
        }
        Reply::Done
    }

    fn queue_again(&mut self, key: Key, due: Timestamp, effects: &mut Vec<Effect>) {
        self.leave_lane(key, State::Queued { due }, effects);
        effects.push(Effect::Queued { key, due });
    }

    fn end(&mut self, key: Key, delivery: DeliveryId, end: FinalState, effects: &mut Vec<Effect>) {
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
        self.index.leave_message(message.tenant);
        if delivery.message.at() >= EndedIds::oldest(self.now) {
            self.ended.insert(delivery.message);
        }
        effects.push(Effect::Finished(delivery.message));
    }

    /// Changes the state; an effect tells the leader if that frees room in a lane.
    fn leave_lane(&mut self, key: Key, state: State, effects: &mut Vec<Effect>) {
        let before = self.recipient_mut(key).state;
        self.set_state(key, state);
        if let State::Sending { source, .. } = before
            && let Some(recipient) = self.recipient(key)
        {
            effects.push(Effect::Freed { source, site: self.sites.name(recipient.site).clone() });
        }
    }

    /// Changes the state of a delivery and the indexes; the only place that does.
    fn set_state(&mut self, key: Key, state: State) {
        let message = self.messages.get_mut(key.slot).expect("a key names a row that exists");
        let delivery = DeliveryId { message: message.id, recipient: key.recipient };
        let recipient = &mut message.recipients[key.recipient as usize];
        let before = std::mem::replace(&mut recipient.state, state);
        recipient.retry_now &= matches!(state, State::Queued { .. } | State::Sending { .. });
        let site = recipient.site;
        self.index.leave(delivery, site, before);
        self.index.enter(delivery, site, state);
    }

    /// Returns the position of a delivery, while its message has not ended.
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
    pub(crate) fn enter_message(&mut self, tenant: TenantId) {
        *self.tenants.entry(tenant).or_default() += 1;
    }

    fn leave_message(&mut self, tenant: TenantId) {
        let messages = self.tenants.get_mut(&tenant).expect("a message that is here was entered");
        *messages -= 1;
        if *messages == 0 {
            self.tenants.remove(&tenant);
        }
    }

    pub(crate) fn enter(&mut self, delivery: DeliveryId, site: u32, state: State) {
        match state {
            State::Queued { .. } => self.counts.queued += 1,
            State::Held => self.counts.held += 1,
            State::Ended(_) => {}
            State::Sending { source, .. } => {
                self.counts.sending += 1;
                self.assigned.entry(source).or_default().insert(delivery);
                *self.lanes.entry((source, site)).or_default() += 1;
            }
        }
    }

    fn leave(&mut self, delivery: DeliveryId, site: u32, state: State) {
        match state {
            State::Queued { .. } => self.counts.queued -= 1,
            State::Held => self.counts.held -= 1,
            State::Ended(_) => {}
            State::Sending { source, .. } => {
                self.counts.sending -= 1;
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

/// A message and the state of its deliveries, for people and programs.
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

/// One recipient and the state of its delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryView {
    /// The mailbox.
    pub address: Address,
    /// The normalised MX set, or the domain.
    pub site: Arc<str>,
    /// The pool whose sources may deliver it.
    pub pool: PoolId,
    /// Its state.
    pub state: DeliveryState,
    /// When the next attempt is due, while it is queued or deferred.
    pub due_at: Option<Timestamp>,
    /// Who is sending it.
    pub grant: Option<SourceGrant>,
    /// Attempts that have ended; one that was given back unstarted is none.
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
    pub grant: SourceGrant,
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
    /// Its owner is asked to return it.
    pub recalled: bool,
    /// A person asked for it: its lane does not wait.
    pub retry_now: bool,
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
        let State::Sending { source, epoch, node, pending } = recipient.state else { return None };
        let delivery = DeliveryId { message: message.id, recipient: key.recipient };
        Some(AssignedView {
            id: AttemptId { delivery, attempt: AttemptNumber(recipient.attempt), epoch },
            grant: SourceGrant { source, epoch, node },
            tenant: message.tenant,
            sender: &message.sender,
            address: &recipient.address,
            site: self.sites.name(recipient.site),
            size: message.size,
            smtputf8: message.smtputf8,
            eight_bit: message.eight_bit,
            traceparent: &message.traceparent,
            content: message.body.parts(),
            recalled: pending != PendingChange::None,
            retry_now: recipient.retry_now,
        })
    }

    /// Returns what the retry schedule needs to know about a delivery, while its message has not ended.
    #[must_use]
    pub fn attempts(&self, delivery: DeliveryId) -> Option<Attempts> {
        self.recipient(self.key(delivery)?).map(Recipient::attempts)
    }

    fn delivery_view(&self, recipient: &Recipient) -> DeliveryView {
        let (state, due_at, grant) = match recipient.state {
            State::Queued { due } if recipient.last.is_none() => (DeliveryState::Queued, Some(due), None),
            State::Queued { due } => (DeliveryState::Deferred, Some(due), None),
            State::Sending { source, epoch, node, .. } => {
                (DeliveryState::Sending, None, Some(SourceGrant { source, epoch, node }))
            }
            State::Held => (DeliveryState::Held, None, None),
            State::Ended(end) => (DeliveryState::Final(end), None, None),
        };
        DeliveryView {
            address: recipient.address(),
            site: self.sites.name(recipient.site).clone(),
            pool: recipient.pool,
            state,
            due_at,
            grant,
            attempts: recipient.attempted(),
            last: recipient.last.as_deref().cloned(),
        }
    }

    /// Returns true when the message is in the ledger, or ended so recently that its id is kept.
    #[must_use]
    pub fn knows(&self, id: MessageId) -> bool {
        self.index.slots.contains_key(&id) || self.ended.contains(id)
    }

    /// Returns the deliveries assigned to a source, by id.
    pub fn assigned_to(&self, source: SourceId) -> impl Iterator<Item = DeliveryId> {
        self.index.assigned.get(&source).into_iter().flatten().copied()
    }

    /// Returns true when deliveries are assigned to a source, and neither this epoch nor a later one has been seen.
    #[must_use]
    pub fn has_work_below(&self, source: SourceId, epoch: Epoch) -> bool {
        self.index.assigned.contains_key(&source) && self.epochs.get(&source).is_none_or(|seen| *seen < epoch)
    }

    /// Returns the sources with assigned deliveries.
    pub fn sources_with_work(&self) -> impl Iterator<Item = SourceId> {
        self.index.assigned.keys().copied()
    }

    /// Examines up to `examined_max` messages from `from` on; returns the deliveries that have expired, and the id to go on
    /// from, `None` at the end.
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
                .filter(|(_, recipient)| matches!(recipient.state, State::Queued { .. } | State::Held));
            found.extend(ended.map(|(recipient, _)| DeliveryId { message: *id, recipient }));
        }
        (found, rest.next().map(|(id, _)| *id))
    }

    /// Returns the events from number `from` on; dropped ones are one [`EventKind::Gap`].
    pub fn events(&self, from: u64) -> impl Iterator<Item = &Event> {
        self.events.from(from)
    }

    /// Returns the number of the first event that is kept, and that of the next one.
    #[must_use]
    pub fn event_range(&self) -> (u64, u64) {
        (self.events.first(), self.events.next())
    }

    /// Returns the next event of a consumer, 0 for an unknown one.
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

    /// Returns the number of a tenant's messages that have not ended.
    #[must_use]
    pub fn messages_of(&self, tenant: TenantId) -> u64 {
        self.index.tenants.get(&tenant).copied().unwrap_or(0)
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

    /// Returns a hash of every event so far and the counts: equal on equal replicas.
    ///
    /// It is kept up to date, so reading it is cheap; a divergence shows at the next event.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        let Counts { queued, sending, held } = self.index.counts;
        [self.now.as_millis(), self.messages.len() as u64, queued, sending, held]
            .into_iter()
            .fold(self.events.hash(), |hash, word| {
                (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
            })
    }
}
