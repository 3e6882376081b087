//! The state of one ledger group: every accepted message that has not ended, and the events.
//!
//! `apply` is pure: two ledgers that applied the same commands are equal, on any machine.
//! Effects are hints to the leader; a new leader finds its work by reading the state.

use std::collections::BTreeMap;

use postroad_core::{
    Address, AttemptNumber, BounceClass, DeliveryId, Epoch, FinalState, MessageId, Outcome, OutcomeKind,
    Party, Retry, SourceId, Timestamp,
};

use crate::{
    command::{
        Accept, Assign, AttemptId, Change, Command, Content, Effect, Key, NextTry, RECIPIENTS_MAX, Refusal,
        Reply, Report, SourceGrant, TEXT_BYTES_MAX,
    },
    ended::EndedIds,
    event::{AcceptedEvent, AttemptEvent, EventKind, EventLog, NextState, Retried},
    finished::Finished,
    index::Index,
    pages::Pages,
    row::{Body, BodyRef, Message, PendingChange, Recipient, State},
    sites::Sites,
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

/// The outcome of an attempt that its owner can no longer report in time, and still may report late.
fn unreported(id: AttemptId, now: Timestamp) -> Report {
    let text = "the outbound node did not report the outcome";
    Report {
        id,
        outcome: Outcome::new(OutcomeKind::Unknown, None, 0, text),
        remote: "".into(),
        tls: "".into(),
        started_at: Timestamp::ZERO,
        ended_at: now,
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
            Command::Report(report, next_try) => self.report(*report, next_try, effects),
            Command::Return(id) => self.return_attempt(id, effects),
            Command::Started(_) => Reply::Done,
            Command::Reclaim { source, below, next_try, repeated_at } => {
                self.reclaim(source, below, next_try, repeated_at, effects)
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
        recipients.iter().for_each(|recipient| self.index.opened(accept.tenant, recipient.site));
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

    fn report(&mut self, mut report: Report, next_try: NextTry, effects: &mut Vec<Effect>) -> Reply {
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
                let next_state = self.after_attempt(key, pending, &mut report.outcome, next_try);
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
        let next_state = match (report.outcome.kind, report.outcome.retry, state) {
            (OutcomeKind::Delivered, ..) if is_waiting => NextState::Ended(FinalState::Delivered),
            (_, Retry::Never, _) if is_waiting => BOUNCED,
            // Nobody has a copy of it: it need not wait as long as one that somebody may have.
            (kind, _, State::Queued { due }) if kind != OutcomeKind::Unknown && next_try.at < due => {
                NextState::Retry(next_try.at.max(self.now))
            }
            _ => NextState::Unchanged,
        };
        if report.outcome.kind != OutcomeKind::Unknown {
            let recipient = self.recipient_mut(key);
            recipient.unknown = recipient.unknown.saturating_sub(1);
        }
        self.record_attempt(key, grant, report, next_state, effects);
        Reply::Done
    }

    /// Decides the next state after an attempt that ended; where the receiver may have as many copies as are allowed, the
    /// outcome gets the class for it.
    fn after_attempt(
        &self,
        key: Key,
        pending: PendingChange,
        outcome: &mut Outcome,
        next_try: NextTry,
    ) -> NextState {
        let expires_at = self.messages.get(key.slot).map_or(Timestamp::ZERO, |message| message.expires_at);
        let recipient = self.recipient(key).expect("a key names a recipient that exists");
        let NextTry { at, copies_max } = next_try;
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
            // D-046: no more copies than are allowed.
            _ if stops => {
                outcome.class = Some(BounceClass::Unconfirmed);
                match outcome.party {
                    // The receiver loses every reply to the final dot.
                    Some(Party::Receiver) => BOUNCED,
                    // Our own nodes failed each time, and perhaps nothing was sent: a person decides.
                    _ => NextState::Held,
                }
            }
            (_, PendingChange::Hold) => NextState::Held,
            (_, PendingChange::None) => NextState::Retry(at.clamp(self.now, expires_at)),
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
        let Report { id, outcome, remote, tls, started_at, ended_at } = report;
        let recipient = self.recipient_mut(key);
        recipient.count(&outcome, next_state != NextState::Unchanged);
        let delivery = id.delivery;
        let event = AttemptEvent {
            delivery,
            attempt: id.attempt,
            number: recipient.number_of(id.attempt),
            source: grant.source,
            epoch: grant.epoch,
            node: grant.node,
            outcome,
            remote,
            tls,
            started_at,
            ended_at,
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
        next_try: NextTry,
        repeated_at: Timestamp,
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
            let next_try = match recipient.unknown {
                0 => next_try,
                _ => NextTry { at: repeated_at, ..next_try },
            };
            let mut report = unreported(id, self.now);
            let next_state = self.after_attempt(key, pending, &mut report.outcome, next_try);
            let grant = SourceGrant { source, epoch, node };
            self.record_attempt(key, grant, report, next_state, effects);
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
        let sites = message.recipients.iter().map(|recipient| self.sites.release(recipient.site)).collect();
        self.index.slots.remove(&delivery.message);
        self.index.leave_message(message.tenant);
        if delivery.message.at() >= EndedIds::oldest(self.now) {
            self.ended.insert(delivery.message);
        }
        effects.push(Effect::Finished(Box::new(Finished { message, sites })));
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
        let (site, has_ended) = (recipient.site, !recipient.is_open());
        let tenant = message.tenant;
        self.index.leave(delivery, site, before);
        self.index.enter(delivery, site, state);
        if has_ended {
            self.index.closed(tenant, site);
        }
    }

    /// Returns the position of a delivery, while its message has not ended.
    #[must_use]
    pub fn key(&self, delivery: DeliveryId) -> Option<Key> {
        let slot = *self.index.slots.get(&delivery.message)?;
        let key = Key { slot, recipient: delivery.recipient };
        self.recipient(key).map(|_| key)
    }

    /// Returns how many deliveries of a lane are assigned and not yet reported.
    #[must_use]
    pub fn outstanding(&self, source: SourceId, site: &str) -> u32 {
        let lane = self.sites.slot(site).map(|site| (source, site));
        lane.and_then(|lane| self.index.lanes.get(&lane)).copied().unwrap_or(0)
    }

    pub(crate) fn recipient(&self, key: Key) -> Option<&Recipient> {
        self.messages.get(key.slot)?.recipients.get(key.recipient as usize)
    }

    fn recipient_mut(&mut self, key: Key) -> &mut Recipient {
        let message = self.messages.get_mut(key.slot).expect("a key names a row that exists");
        &mut message.recipients[key.recipient as usize]
    }
}

fn is_bounded(accept: &Accept) -> bool {
    let texts = [&accept.subject, &accept.origin, &accept.traceparent];
    (1..=RECIPIENTS_MAX).contains(&accept.recipients.len())
        && texts.iter().all(|text| text.len() <= TEXT_BYTES_MAX)
        && accept.recipients.iter().all(|recipient| (1..=TEXT_BYTES_MAX).contains(&recipient.site.len()))
}
