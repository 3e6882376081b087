//! What can be read from a ledger: a message and its deliveries, what is assigned, what has expired, the events.

use std::sync::Arc;

use postroad_core::{
    Address, AttemptNumber, DeliveryId, DeliveryState, Epoch, MessageId, Outcome, PoolId, SourceId, TenantId,
    Timestamp, retry::Attempts,
};

use crate::{
    command::{AttemptId, Key, SourceGrant},
    event::Event,
    index::Counts,
    ledger::Ledger,
    row::{BodyRef, Message, PendingChange, Recipient, State},
};

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
    /// When it ended, while there is such an outcome.
    pub last_at: Option<Timestamp>,
    /// Who holds it, or asked for a change while it is being sent; empty where that is not known.
    pub actor: Box<str>,
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
    /// The pool whose sources may send it.
    pub pool: PoolId,
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
            deliveries: message
                .recipients
                .iter()
                .map(|recipient| self.delivery_view(message, recipient))
                .collect(),
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
            pool: recipient.pool,
        })
    }

    /// Returns what the retry schedule needs to know about a delivery, while its message has not ended.
    #[must_use]
    pub fn attempts(&self, delivery: DeliveryId) -> Option<Attempts> {
        self.recipient(self.key(delivery)?).map(Recipient::attempts)
    }

    pub(crate) fn delivery_view(&self, message: &Message, recipient: &Recipient) -> DeliveryView {
        let (due_at, grant) = match recipient.state {
            State::Queued { due } => (Some(due), None),
            State::Sending { source, epoch, node, .. } => (None, Some(SourceGrant { source, epoch, node })),
            State::Held { .. } | State::Ended(_) => (None, None),
        };
        let state = recipient.delivery_state();
        DeliveryView {
            address: recipient.address(),
            site: self.sites.name(recipient.site).clone(),
            pool: recipient.pool,
            state,
            due_at,
            grant,
            attempts: recipient.attempted(),
            last: recipient.last.as_deref().cloned(),
            last_at: recipient.last.is_some().then(|| recipient.last_at(message.accepted_at)),
            actor: self.actor_name(recipient.state.actor()),
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
            let ended = (0..).zip(&message.recipients).filter(|(_, recipient)| {
                matches!(recipient.state, State::Queued { .. } | State::Held { .. })
            });
            found.extend(ended.map(|(recipient, _)| DeliveryId { message: *id, recipient }));
        }
        (found, rest.next().map(|(id, _)| *id))
    }

    /// Returns the events from number `from` on; dropped ones are one [`crate::event::EventKind::Gap`].
    pub fn events(&self, from: u64) -> impl Iterator<Item = &Event> {
        self.events.from(from)
    }

    /// Returns the number of the first event that is kept, and that of the next one.
    #[must_use]
    pub fn event_range(&self) -> (u64, u64) {
        (self.events.first(), self.events.next())
    }

    /// Returns the number of the last event that was dropped before it was read, while its gap is kept.
    #[must_use]
    pub fn dropped_through(&self) -> Option<u64> {
        self.events.dropped_through()
    }

    /// Returns how many chunks wait for the rest of their messages.
    #[must_use]
    pub fn staged_chunks(&self) -> usize {
        self.stage.parts().count()
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

    /// Returns how many deliveries of each site have not ended; a site may be named with none.
    pub fn open_by_site(&self) -> impl Iterator<Item = (&str, u64)> {
        let open = |slot: u32| self.index.open_by_site.get(slot as usize).copied().unwrap_or(0);
        self.sites.rows.iter().map(move |(slot, (name, _))| (&**name, u64::from(open(slot))))
    }

    /// Returns how many deliveries of each tenant have not ended.
    pub fn open_by_tenant(&self) -> impl Iterator<Item = (TenantId, u64)> {
        self.index.open_by_tenant.iter().map(|(tenant, open)| (*tenant, *open))
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
