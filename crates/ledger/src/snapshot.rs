//! Snapshots of a ledger: taken in microseconds, encoded in the background.

use std::{collections::BTreeMap, sync::Arc};

use postroad_core::{DeliveryId, Epoch, SourceId};

use crate::{
    codec::{Corrupt, Put, Take},
    ended::EndedIds,
    event::EventLog,
    ledger::{Ledger, Limits},
    pages::Pages,
    row::{ActorNumber, BodyRef, Message},
    stage::Stage,
};

/// The version of the layout; other versions are refused.
const VERSION: u16 = 3;

/// The state of a ledger at one moment. Pages are shared with the ledger until it writes to them.
#[derive(Clone, Debug)]
pub struct Snapshot(Parts);

#[derive(Clone, Debug)]
struct Parts {
    now: postroad_core::Timestamp,
    messages: Pages<Message>,
    sites: Pages<(Arc<str>, u32)>,
    actors: Pages<(Arc<str>, u32)>,
    ended: EndedIds,
    stage: Stage,
    events: EventLog,
    epochs: BTreeMap<SourceId, Epoch>,
}

impl Ledger {
    /// Takes a snapshot; costs a pointer per page.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(Parts {
            now: self.now,
            messages: self.messages.clone(),
            sites: self.sites.rows.clone(),
            actors: self.actors.rows.clone(),
            ended: self.ended.clone(),
            stage: self.stage.clone(),
            events: self.events.clone(),
            epochs: self.epochs.clone(),
        })
    }

    /// Makes a ledger from the bytes of a snapshot.
    ///
    /// # Errors
    /// The bytes are not those of a snapshot of a known version.
    pub fn restore(limits: Limits, bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut from = Take(bytes);
        if from.u16()? != VERSION {
            return Err(Corrupt);
        }
        let mut ledger = Self::new(limits);
        ledger.now = from.time()?;
        for _ in 0..from.count(12)? {
            ledger.epochs.insert(SourceId(from.u32()?), Epoch(from.u64()?));
        }
        ledger.ended = EndedIds::take(&mut from)?;
        ledger.stage = Stage::take(&mut from)?;
        ledger.events = EventLog::take(&mut from, limits.event_bytes_max)?;
        let sites = take_names(&mut from)?;
        let actors = take_names(&mut from)?;
        for _ in 0..from.count(60)? {
            let message = Message::take(&mut from)?;
            ledger.restore_message(message, &sites, &actors)?;
        }
        from.finish()?;
        Ok(ledger)
    }

    fn restore_message(
        &mut self,
        mut message: Message,
        sites: &[&str],
        actors: &[&str],
    ) -> Result<(), Corrupt> {
        let id = message.id;
        for (number, recipient) in (0..).zip(&mut message.recipients) {
            let name = sites.get(recipient.site as usize).ok_or(Corrupt)?;
            recipient.site = self.sites.intern(name);
            if let Some(actor) = recipient.state.actor().slot() {
                let name = actors.get(actor as usize).ok_or(Corrupt)?;
                recipient.state.set_actor(self.actor_number(name));
            }
            let delivery = DeliveryId { message: id, recipient: number };
            self.index.enter(delivery, recipient.site, recipient.state);
            if recipient.is_open() {
                self.index.opened(message.tenant, recipient.site);
            }
        }
        self.index.enter_message(message.tenant);
        let slot = self.messages.insert(message);
        match self.index.slots.insert(id, slot) {
            None => Ok(()),
            Some(_) => Err(Corrupt),
        }
    }
}

impl Snapshot {
    /// Writes the state as bytes that [`Ledger::restore`] reads.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.messages.len() * 192 + 4096);
        out.u16(VERSION);
        out.time(self.0.now);
        out.count(self.0.epochs.len());
        for (source, epoch) in &self.0.epochs {
            out.u32(source.0);
            out.u64(epoch.0);
        }
        self.0.ended.put(&mut out);
        self.0.stage.put(&mut out);
        self.0.events.put(&mut out);
        let sites = put_names(&self.0.sites, &mut out);
        let actors = put_names(&self.0.actors, &mut out);
        out.count(self.0.messages.len());
        for (_, message) in self.0.messages.iter() {
            let mut message = message.clone();
            for recipient in &mut message.recipients {
                recipient.site = sites[&recipient.site];
                if let Some(actor) = recipient.state.actor().slot() {
                    recipient.state.set_actor(ActorNumber::of_slot(actors[&actor]));
                }
            }
            message.put(&mut out);
        }
        out
    }

    /// Returns every part of the log that the state refers to, sorted.
    #[must_use]
    pub fn live_bodies(&self) -> Vec<BodyRef> {
        let messages = self.0.messages.iter().flat_map(|(_, message)| message.body.parts().iter().copied());
        let mut live: Vec<BodyRef> = messages.chain(self.0.stage.parts()).collect();
        live.sort_unstable();
        live
    }
}

/// Writes names and returns the number each slot has in the bytes.
fn put_names(names: &Pages<(Arc<str>, u32)>, out: &mut Vec<u8>) -> BTreeMap<u32, u32> {
    let mut rows: Vec<_> = names.iter().collect();
    // By name, so that equal states give equal bytes whatever their slots.
    rows.sort_unstable_by(|(_, (one, _)), (_, (other, _))| one.cmp(other));
    out.count(rows.len());
    rows.into_iter()
        .zip(0..)
        .map(|((slot, (name, _)), number)| {
            out.text(name);
            (slot, number)
        })
        .collect()
}

fn take_names<'a>(from: &mut Take<'a>) -> Result<Vec<&'a str>, Corrupt> {
    (0..from.count(4)?).map(|_| from.text()).collect()
}
