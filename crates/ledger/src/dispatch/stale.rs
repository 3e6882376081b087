//! Drops stale entries from the queues, in bounded steps.
//!
//! An entry becomes stale when its delivery expires, is cancelled or held, or is retried first. It is dropped when its turn
//! comes; where no turn comes, as in what is suspended, entries would collect, be counted as waiting, and all be passed at
//! once in the end.

use std::{
    collections::VecDeque,
    ops::{
        Bound::{Excluded, Unbounded},
        Range,
    },
};

use postroad_core::{TenantId, Timestamp};

use super::{Dispatcher, QueueId, is_retry, waiting_in};
use crate::{Ledger, command::Key};

/// Where the search goes on.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// At an entry of a ready queue, counted over its tenants.
    Queue(QueueId, usize),
    /// At an entry of a parked tenant, counted over its queues.
    Parked(TenantId, usize),
    /// At a kept retry.
    Retry(Key),
}

/// What a step came to.
struct Searched {
    entries: usize,
    dropped: usize,
}

impl Dispatcher {
    /// Searches about `max` entries and drops the stale ones; returns true when all have been searched.
    ///
    /// Entries that are moved or served between two steps may be passed over until the next search.
    pub fn drop_stale(&mut self, ledger: &Ledger, now: Timestamp, max: usize) -> bool {
        let mut left = max;
        while left > 0 {
            let place = self.stale_from.take().or_else(|| self.first_queue()).or_else(|| self.after_queues());
            let Some(place) = place else { return true };
            let (searched, next) = match place {
                Place::Queue(id, from) => self.search_queue(ledger, now, id, from..from + left),
                Place::Parked(tenant, from) => self.search_parked(ledger, now, tenant, from..from + left),
                Place::Retry(from) => self.search_retries(ledger, from, left),
            };
            self.stale_from = next;
            if self.stale_from.is_none() {
                return true;
            }
            // An empty queue costs something too.
            left = left.saturating_sub(searched.max(1));
        }
        false
    }

    fn search_queue(
        &mut self,
        ledger: &Ledger,
        now: Timestamp,
        id: QueueId,
        range: Range<usize>,
    ) -> (usize, Option<Place>) {
        let mut searched = Searched { entries: 0, dropped: 0 };
        if let Some(queue) = self.ready.get_mut(&id) {
            let shares = queue.tenants.iter_mut().map(|(tenant, share)| (&id, *tenant, &mut share.keys));
            searched = search(ledger, now, shares, range.clone());
            queue.len -= searched.dropped;
            // A queue in the round is removed at its turn.
            if queue.len == 0 && !queue.in_round {
                self.ready.remove(&id);
            }
        }
        let next = if searched.entries == range.len() {
            Some(Place::Queue(id, range.end - searched.dropped))
        } else {
            let next = self.ready.range::<QueueId, _>((Excluded(&id), Unbounded)).next();
            next.map(|(id, _)| Place::Queue(id.clone(), 0)).or_else(|| self.after_queues())
        };
        (searched.entries, next)
    }

    fn search_parked(
        &mut self,
        ledger: &Ledger,
        now: Timestamp,
        tenant: TenantId,
        range: Range<usize>,
    ) -> (usize, Option<Place>) {
        let parked = &mut self.suspended.parked;
        let mut searched = Searched { entries: 0, dropped: 0 };
        if let Some(queues) = parked.get_mut(&tenant) {
            let shares = queues.iter_mut().map(|(id, keys)| (id, tenant, keys));
            searched = search(ledger, now, shares, range.clone());
        }
        if searched.entries == range.len() {
            return (searched.entries, Some(Place::Parked(tenant, range.end - searched.dropped)));
        }
        if let Some(queues) = parked.get_mut(&tenant) {
            queues.retain(|_, keys| !keys.is_empty());
        }
        let next = parked.range((Excluded(tenant), Unbounded)).next();
        (searched.entries, next.map(|(tenant, _)| Place::Parked(*tenant, 0)).or_else(|| self.first_retry()))
    }

    fn search_retries(&mut self, ledger: &Ledger, from: Key, max: usize) -> (usize, Option<Place>) {
        let retries = &mut self.suspended.retries;
        let searched: Vec<Key> = retries.range(from..).take(max).copied().collect();
        for key in searched.iter().filter(|key| !is_retry(ledger, **key)) {
            retries.remove(key);
        }
        let next = searched.last().and_then(|last| retries.range((Excluded(*last), Unbounded)).next());
        (searched.len(), next.copied().map(Place::Retry))
    }

    fn first_queue(&self) -> Option<Place> {
        self.ready.first_key_value().map(|(id, _)| Place::Queue(id.clone(), 0))
    }

    fn after_queues(&self) -> Option<Place> {
        let parked = self.suspended.parked.first_key_value();
        parked.map(|(tenant, _)| Place::Parked(*tenant, 0)).or_else(|| self.first_retry())
    }

    fn first_retry(&self) -> Option<Place> {
        self.suspended.retries.first().copied().map(Place::Retry)
    }
}

/// Searches a range of the entries, counted over all shares.
fn search<'a>(
    ledger: &Ledger,
    now: Timestamp,
    shares: impl Iterator<Item = (&'a QueueId, TenantId, &'a mut VecDeque<Key>)>,
    range: Range<usize>,
) -> Searched {
    let (mut before, mut left) = (range.start, range.len());
    let mut dropped = 0;
    for (id, tenant, keys) in shares {
        let first = before.min(keys.len());
        before -= first;
        let end = keys.len().min(first + left);
        left -= end - first;
        dropped += drop_from(keys, first..end, |key| waiting_in(ledger, now, id, tenant, key).is_none());
        if left == 0 {
            break;
        }
    }
    Searched { entries: range.len() - left, dropped }
}

/// Drops entries of a range and keeps the order of the others; returns how many were dropped.
fn drop_from(keys: &mut VecDeque<Key>, range: Range<usize>, is_stale: impl Fn(Key) -> bool) -> usize {
    let mut kept = range.start;
    for at in range.clone() {
        if !is_stale(keys[at]) {
            keys.swap(kept, at);
            kept += 1;
        }
    }
    keys.drain(kept..range.end);
    range.end - kept
}
