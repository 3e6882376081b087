//! A message as the ledger keeps it in memory: small, because there may be millions.

use std::time::Duration;

use postroad_core::{
    Address, AttemptNumber, DeliveryState, Epoch, FinalState, MessageId, NodeId, Outcome, OutcomeKind,
    PoolId, Retry, SourceId, TenantId, Timestamp, retry::Attempts,
};

use crate::{
    codec::{Corrupt, Put, Take},
    command::SourceGrant,
    event::{put_outcome, take_final_state, take_flag, take_outcome},
};

/// A message and its recipients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) id: MessageId,
    pub(crate) tenant: TenantId,
    pub(crate) size: u32,
    pub(crate) accepted_at: Timestamp,
    pub(crate) expires_at: Timestamp,
    pub(crate) body: Body,
    /// The reverse path as text, empty for the null sender; parsed when it was accepted.
    pub(crate) sender: Box<str>,
    pub(crate) traceparent: Box<str>,
    pub(crate) recipients: Box<[Recipient]>,
    /// Recipients that have not ended.
    pub(crate) open: u32,
    pub(crate) smtputf8: bool,
    pub(crate) eight_bit: bool,
}

/// One recipient of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recipient {
    /// The mailbox as text; parsed when it was accepted.
    pub(crate) address: Box<str>,
    pub(crate) last: Option<Box<Outcome>>,
    pub(crate) state: State,
    /// Slot of the site's name.
    pub(crate) site: u32,
    pub(crate) pool: PoolId,
    /// The number of the last attempt that was assigned.
    pub(crate) attempt: u32,
    /// Attempts that were given back without being started.
    pub(crate) given_back: u32,
    /// Attempts that count for the retry schedule.
    pub(crate) counted: u32,
    /// The highest attempt whose outcome its owner reported.
    pub(crate) reported: u32,
    /// When the attempt with the last outcome ended: milliseconds after the message was accepted.
    pub(crate) last_after: u32,
    /// Attempts that ended as unknown: the receiver may have a copy of each.
    pub(crate) unknown: u8,
    /// Attempts whose outcome asks for a retry at long distance.
    pub(crate) distant: u8,
    /// Attempts in a row that failed on our side.
    pub(crate) internal: u8,
    /// A person asked for this attempt: it need not wait for a lane that waits. Until the attempt ends or is given back.
    pub(crate) retry_now: bool,
}

/// The state of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// To be assigned from `due` on: queued before its first attempt, deferred after one.
    Queued { due: Timestamp },
    /// Its current attempt is with the owner of a source.
    Sending { source: SourceId, epoch: Epoch, node: NodeId, pending: PendingChange },
    /// Not assigned until it is released.
    Held { by: ActorNumber },
    /// Ended.
    Ended(FinalState),
}

/// A change asked for while an attempt is under way; it takes effect unless that attempt ends the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PendingChange {
    None,
    Hold { by: ActorNumber },
    Cancel { by: ActorNumber },
}

/// Who asked for a change, as the number of a name that the ledger keeps; 0 where that is not known.
///
/// Of 16 bits, so that a state needs no more memory: beyond as many names at a time, the event alone has the name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ActorNumber(u16);

impl ActorNumber {
    pub(crate) const NOBODY: Self = Self(0);

    /// How many names have a number: slots are reused, so none is higher.
    pub(crate) const COUNT: usize = u16::MAX as usize;

    pub(crate) fn of_slot(slot: u32) -> Self {
        Self(u16::try_from(slot + 1).expect("no more names are kept than there are numbers"))
    }

    pub(crate) fn slot(self) -> Option<u32> {
        u32::from(self.0).checked_sub(1)
    }
}

/// Where the content is: entries of the log, by index and slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Whole(BodyRef),
    Chunks(Box<[BodyRef]>),
}

/// One slot of one entry of the group's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BodyRef {
    /// The entry's index in the log.
    pub index: u64,
    /// The slot in the entry.
    pub slot: u32,
}

impl Body {
    pub(crate) fn parts(&self) -> &[BodyRef] {
        match self {
            Self::Whole(part) => std::slice::from_ref(part),
            Self::Chunks(parts) => parts,
        }
    }
}

impl Message {
    pub(crate) fn sender(&self) -> Option<Address> {
        (!self.sender.is_empty()).then(|| parsed(&self.sender))
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.id(self.id);
        out.u32(self.tenant.0);
        out.u32(self.size);
        out.time(self.accepted_at);
        out.time(self.expires_at);
        out.u8(u8::from(self.smtputf8) | u8::from(self.eight_bit) << 1);
        out.count(self.body.parts().len());
        for part in self.body.parts() {
            out.u64(part.index);
            out.u32(part.slot);
        }
        out.text(&self.sender);
        out.text(&self.traceparent);
        out.count(self.recipients.len());
        for recipient in &self.recipients {
            recipient.put(out);
        }
    }

    pub(crate) fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        let (id, tenant, size) = (from.id()?, TenantId(from.u32()?), from.u32()?);
        let (accepted_at, expires_at) = (from.time()?, from.time()?);
        let flags = from.u8()?;
        let body = take_body(from)?;
        let sender: Box<str> = from.text()?.into();
        if !sender.is_empty() {
            Address::parse(&sender).map_err(|_| Corrupt)?;
        }
        let traceparent = from.text()?.into();
        let recipients =
            (0..from.count(30)?).map(|_| Recipient::take(from)).collect::<Result<Box<[_]>, _>>()?;
        let open = recipients.iter().filter(|recipient| recipient.is_open()).count();
        // A message without open recipients is not kept.
        if open == 0 || flags > 3 {
            return Err(Corrupt);
        }
        Ok(Self {
            id,
            tenant,
            size,
            accepted_at,
            expires_at,
            body,
            sender,
            traceparent,
            recipients,
            open: u32::try_from(open).map_err(|_| Corrupt)?,
            smtputf8: flags & 1 != 0,
            eight_bit: flags & 2 != 0,
        })
    }
}

fn take_body(from: &mut Take<'_>) -> Result<Body, Corrupt> {
    let part = |from: &mut Take<'_>| Ok(BodyRef { index: from.u64()?, slot: from.u32()? });
    match from.count(12)? {
        0 => Err(Corrupt),
        1 => part(from).map(Body::Whole),
        count => (0..count).map(|_| part(from)).collect::<Result<_, _>>().map(Body::Chunks),
    }
}

impl Recipient {
    pub(crate) fn address(&self) -> Address {
        parsed(&self.address)
    }

    pub(crate) fn attempts(&self) -> Attempts {
        Attempts { counted: self.counted, unknown: self.unknown, internal: self.internal }
    }

    /// Counts the outcome of an attempt, that long after the acceptance; one that comes too late to change the delivery
    /// only takes back its number.
    pub(crate) fn count(&mut self, outcome: &Outcome, after: Duration, changes_delivery: bool) {
        if !outcome.is_counted() {
            self.counted = self.counted.saturating_sub(1);
        }
        if !changes_delivery {
            return;
        }
        self.retry_now = false;
        self.distant = self.distant.saturating_add(u8::from(matches!(outcome.retry, Retry::Distant { .. })));
        self.unknown = self.unknown.saturating_add(u8::from(outcome.kind == OutcomeKind::Unknown));
        self.internal = match outcome.kind {
            OutcomeKind::Internal => self.internal.saturating_add(1),
            _ => 0,
        };
        self.last = Some(Box::new(outcome.clone()));
        self.last_after = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
    }

    /// Returns the state in the words that people read.
    pub(crate) fn delivery_state(&self) -> DeliveryState {
        match self.state {
            State::Queued { .. } if self.last.is_none() => DeliveryState::Queued,
            State::Queued { .. } => DeliveryState::Deferred,
            State::Sending { .. } => DeliveryState::Sending,
            State::Held { .. } => DeliveryState::Held,
            State::Ended(end) => DeliveryState::Final(end),
        }
    }

    /// Returns when the attempt with the last outcome ended, of a message accepted at that time.
    pub(crate) fn last_at(&self, accepted_at: Timestamp) -> Timestamp {
        accepted_at.after(Duration::from_millis(self.last_after.into()))
    }

    /// Returns how many attempts have ended: as many as the record shows. One under way may still be given back.
    pub(crate) fn attempted(&self) -> u32 {
        let under_way = u32::from(matches!(self.state, State::Sending { .. }));
        self.attempt.saturating_sub(self.given_back).saturating_sub(under_way)
    }

    /// Returns the number of an attempt among those that were not given back: without holes, for people.
    ///
    /// For a late report this assumes that none was given back since.
    pub(crate) fn number_of(&self, attempt: AttemptNumber) -> u32 {
        attempt.0.saturating_sub(self.given_back).max(1)
    }

    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.state, State::Ended(_))
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.text(&self.address);
        out.u32(self.site);
        out.u32(self.pool.0);
        out.u32(self.attempt);
        out.u32(self.given_back);
        out.u32(self.counted);
        out.u32(self.reported);
        out.u8(self.unknown);
        out.u8(self.distant);
        out.u8(self.internal);
        out.u8(u8::from(self.retry_now));
        out.u8(u8::from(self.last.is_some()));
        if let Some(last) = &self.last {
            put_outcome(out, last);
        }
        out.u32(self.last_after);
        match self.state {
            State::Queued { due } => {
                out.u8(1);
                out.time(due);
            }
            State::Sending { source, epoch, node, pending } => {
                out.u8(2);
                out.u32(source.0);
                out.u64(epoch.0);
                out.u64(node.0);
                pending.put(out);
            }
            State::Held { by } => {
                out.u8(3);
                by.put(out);
            }
            State::Ended(end) => {
                out.u8(4);
                out.u8(end.code());
            }
        }
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        let address: Box<str> = from.text()?.into();
        Address::parse(&address).map_err(|_| Corrupt)?;
        Ok(Self {
            address,
            site: from.u32()?,
            pool: PoolId(from.u32()?),
            attempt: from.u32()?,
            given_back: from.u32()?,
            counted: from.u32()?,
            reported: from.u32()?,
            unknown: from.u8()?,
            distant: from.u8()?,
            internal: from.u8()?,
            retry_now: take_flag(from)?,
            last: from.option(take_outcome)?.map(Box::new),
            last_after: from.u32()?,
            state: match from.u8()? {
                1 => State::Queued { due: from.time()? },
                2 => State::Sending {
                    source: SourceId(from.u32()?),
                    epoch: Epoch(from.u64()?),
                    node: NodeId(from.u64()?),
                    pending: PendingChange::take(from)?,
                },
                3 => State::Held { by: ActorNumber::take(from)? },
                4 => State::Ended(take_final_state(from)?),
                _ => return Err(Corrupt),
            },
        })
    }
}

impl PendingChange {
    fn put(self, out: &mut Vec<u8>) {
        match self {
            Self::None => out.u8(0),
            Self::Hold { by } => {
                out.u8(1);
                by.put(out);
            }
            Self::Cancel { by } => {
                out.u8(2);
                by.put(out);
            }
        }
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        Ok(match from.u8()? {
            0 => Self::None,
            1 => Self::Hold { by: ActorNumber::take(from)? },
            2 => Self::Cancel { by: ActorNumber::take(from)? },
            _ => return Err(Corrupt),
        })
    }
}

impl ActorNumber {
    fn put(self, out: &mut Vec<u8>) {
        out.u16(self.0);
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        from.u16().map(Self)
    }
}

impl State {
    /// Returns who asked for what the state says, so that the name is kept.
    pub(crate) fn actor(self) -> ActorNumber {
        match self {
            Self::Held { by }
            | Self::Sending { pending: PendingChange::Hold { by } | PendingChange::Cancel { by }, .. } => by,
            Self::Queued { .. } | Self::Sending { .. } | Self::Ended(_) => ActorNumber::NOBODY,
        }
    }

    /// Replaces the number of the actor, where there is one.
    pub(crate) fn set_actor(&mut self, number: ActorNumber) {
        if let Self::Held { by }
        | Self::Sending { pending: PendingChange::Hold { by } | PendingChange::Cancel { by }, .. } = self
        {
            *by = number;
        }
    }

    pub(crate) fn assigned(grant: SourceGrant) -> Self {
        Self::Sending {
            source: grant.source,
            epoch: grant.epoch,
            node: grant.node,
            pending: PendingChange::None,
        }
    }
}

fn parsed(text: &str) -> Address {
    Address::parse(text).expect("an address is kept as the text it was parsed from")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There may be millions of rows.
    #[test]
    fn a_recipient_takes_no_more_memory_than_it_did() {
        assert_eq!(size_of::<State>(), 24);
        assert_eq!(size_of::<Recipient>(), 80);
    }
}
