//! Decides what is assigned next: the leader's queues, rebuilt from the ledger when a node becomes leader.
//!
//! Due deliveries wait in a ready queue per (pool, site), where tenants take turns by bytes.
//! Deliveries that a person wants to be retried now go first, also into a lane whose window is closed.
//! A lane (source × site) has a window, set by the source's owner; assigned deliveries fill it, and assignments that are
//! proposed and not applied yet. A queue whose lanes are full leaves the round until one has room, so a slow site delays
//! only itself. What an operator has suspended has no room.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    sync::Arc,
};

use postroad_core::{AttemptNumber, DeliveryId, NodeId, PoolId, SourceId, TenantId, Timestamp};

use crate::{
    Ledger,
    command::{Assign, Effect, Key, SourceGrant},
    row::{Message, Recipient, State},
};

mod stale;
mod suspended;
mod waiting;

pub use waiting::{WaitReason, Waiting};

use suspended::Suspended;

/// Bytes of one tenant before the next one's turn: deficit round robin (Shreedhar and Varghese, 1995).
const TURN_BYTES: u64 = 64 << 10;

/// Deliveries of one queue before the next one's turn.
const TURN_DELIVERIES: usize = 32;

/// The least room of a lane for deliveries that a person wants to be retried now, also while its window is closed.
const RETRY_NOW_WINDOW: u32 = 16;

/// Stale entries that are passed at the front of a queue, where only its first delivery is asked for.
const STALE_PASSED_MAX: usize = 64;

/// Deliveries that become ready in one poll.
const DUE_AT_ONCE: usize = 10_000;

/// The leader's queues of deliveries to assign.
#[derive(Debug, Default)]
pub struct Dispatcher {
    /// Deliveries that are not due yet.
    later: BTreeSet<(Timestamp, Key)>,
    /// Deliveries that a person wants to be retried now: they go before all others.
    retry_now: VecDeque<Key>,
    ready: BTreeMap<QueueId, ReadyQueue>,
    /// Queues that are not empty and may have a lane with room.
    round: VecDeque<QueueId>,
    /// Deliveries whose assignment has been proposed and not applied yet.
    proposed: BTreeSet<Key>,
    /// Room reserved by proposals that have not been applied yet.
    reserved: BTreeMap<(SourceId, Arc<str>), u32>,
    sources: BTreeMap<SourceId, Source>,
    pools: BTreeMap<PoolId, Pool>,
    suspended: Suspended,
    /// Where the search for stale entries goes on.
    stale_from: Option<stale::Place>,
}

type QueueId = (PoolId, Arc<str>);

/// Room reserved in one lane, until the proposal has been applied or has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a reservation that is not released is lost until the leader changes"]
pub struct Reservation {
    source: SourceId,
    site: Arc<str>,
    key: Option<Key>,
}

/// What to propose next.
#[derive(Debug, Default)]
pub struct DueWork {
    /// Deliveries to assign.
    pub assigns: Vec<(Assign, Reservation)>,
    /// Deliveries that reached the head of their queue after their expiry.
    pub expired: Vec<DeliveryId>,
}

impl DueWork {
    /// Returns the number of deliveries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.assigns.len() + self.expired.len()
    }

    /// Returns true when there is nothing to propose.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The most deliveries that may be assigned and not yet reported, per lane of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// For every other site.
    pub default: u32,
    /// By site.
    pub sites: BTreeMap<Box<str>, u32>,
}

#[derive(Debug)]
struct Source {
    grant: SourceGrant,
    pools: Vec<PoolId>,
    /// Nothing is assigned before the owner has set its windows.
    windows: Option<Windows>,
}

#[derive(Debug, Default)]
struct Pool {
    members: Vec<Member>,
}

/// A source's share of a pool, by smooth weighted round robin.
#[derive(Debug)]
struct Member {
    source: SourceId,
    weight: u32,
    current: i64,
}

#[derive(Debug, Default)]
struct ReadyQueue {
    tenants: BTreeMap<TenantId, Share>,
    /// Every tenant with a share, once; an empty share is removed at its turn.
    turns: VecDeque<TenantId>,
    len: usize,
    in_round: bool,
}

#[derive(Debug, Default)]
struct Share {
    keys: VecDeque<Key>,
    deficit: u64,
}

/// A source of a pool, and its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weighted {
    /// The source.
    pub source: SourceId,
    /// Its weight among the pool's sources; 0 for none.
    pub weight: u32,
}

impl Dispatcher {
    /// Builds the queues of a new leader from the ledger. Nothing is assigned until pools and windows are set.
    #[must_use]
    pub fn rebuild(ledger: &Ledger) -> Self {
        let rows = ledger.messages.iter().flat_map(|(slot, message)| {
            let recipients = (0..).zip(&message.recipients);
            recipients.map(move |(recipient, row)| (Key { slot, recipient }, row.state))
        });
        let waiting = rows.filter_map(|(key, state)| match state {
            State::Queued { due } => Some((due, key)),
            _ => None,
        });
        // Collected at once: far faster for a million than inserting one by one.
        Self { later: waiting.collect(), ..Self::default() }
    }

    /// Sets the pools and the owners of sources.
    ///
    /// Keeps the windows of sources whose owner and epoch are unchanged.
    pub fn set_pools(&mut self, pools: &BTreeMap<PoolId, Vec<Weighted>>, owners: &[SourceGrant]) {
        let mut old = std::mem::take(&mut self.sources);
        self.pools.clear();
        for (id, members) in pools {
            let member =
                |member: &Weighted| Member { source: member.source, weight: member.weight, current: 0 };
            let members = members.iter().filter(|member| member.weight > 0).map(member).collect();
            self.pools.insert(*id, Pool { members });
        }
        for grant in owners {
            let is_member =
                |pool: &&PoolId| self.pools[pool].members.iter().any(|m| m.source == grant.source);
            let pools = self.pools.keys().filter(is_member).copied().collect();
            let windows =
                old.remove(&grant.source).filter(|source| source.grant == *grant).and_then(|s| s.windows);
            self.sources.insert(grant.source, Source { grant: *grant, pools, windows });
        }
        self.wake_all();
    }

    /// Sets the windows of a source; those from another owner or epoch are ignored.
    pub fn set_windows(&mut self, grant: SourceGrant, windows: Windows) {
        let Some(source) = self.sources.get_mut(&grant.source).filter(|source| source.grant == grant) else {
            return;
        };
        source.windows = Some(windows);
        let pools = source.pools.clone();
        let queues = self.ready.keys().filter(|(pool, _)| pools.contains(pool)).cloned();
        queues.collect::<Vec<_>>().into_iter().for_each(|queue| self.wake(queue));
    }

    /// Stops assigning to a node that cannot be reached, until it sets its windows again.
    pub fn clear_windows_of(&mut self, owner: NodeId) {
        self.sources.values_mut().filter(|source| source.grant.node == owner).for_each(|s| s.windows = None);
    }

    /// Handles the effect of an applied command.
    pub fn handle(&mut self, ledger: &Ledger, effect: &Effect) {
        match effect {
            Effect::Queued { key, due } if *due > ledger.now() => {
                self.later.insert((*due, *key));
            }
            Effect::Queued { key, .. } => self.make_ready(ledger, *key),
            Effect::Freed { source, site } => self.wake_lane(*source, site),
            Effect::Assigned { .. } | Effect::Recall { .. } | Effect::Finished(_) => {}
        }
    }

    /// Chooses a source for a delivery that is about to be accepted, so that accept and assign are one commit.
    ///
    /// `None` when other deliveries wait for the same lanes, there is no room, or it is suspended.
    pub fn offer(
        &mut self,
        ledger: &Ledger,
        tenant: TenantId,
        pool: PoolId,
        site: &str,
    ) -> Option<(SourceGrant, Reservation)> {
        if self.suspended.tenant(tenant).is_some() {
            return None;
        }
        let site: Arc<str> = site.into();
        if self.ready.get(&(pool, site.clone())).is_some_and(|queue| queue.len > 0) {
            return None;
        }
        let grant = self.choose(ledger, pool, &site, 0)?;
        Some((grant, self.reserve(grant, site, None)))
    }

    /// Moves deliveries that are due by `now` into the ready queues, and takes up to `max` from them to propose.
    ///
    /// Every reservation must be released with [`Dispatcher::release_reservation`] when the proposal has been applied or has failed.
    pub fn poll(&mut self, ledger: &Ledger, now: Timestamp, max: usize) -> DueWork {
        self.take_due(ledger, now);
        let mut work = DueWork::default();
        self.serve_retries(ledger, now, max, &mut work);
        while work.len() < max
            && let Some(id) = self.round.pop_front()
        {
            let turn = TURN_DELIVERIES.min(max - work.len());
            let has_room = self.serve(ledger, now, &id, turn, &mut work);
            let Some(queue) = self.ready.get_mut(&id) else { continue };
            queue.in_round = has_room && queue.len > 0;
            if queue.len == 0 {
                self.ready.remove(&id);
            } else if queue.in_round {
                self.round.push_back(id);
            }
        }
        work
    }

    /// Releases the room of a proposal that was applied, where the ledger counts it now, or that failed.
    ///
    /// With `failed`, the delivery returns to its queue.
    pub fn release_reservation(&mut self, ledger: &Ledger, reservation: Reservation, failed: bool) {
        let Reservation { source, site, key } = reservation;
        let lane = (source, site);
        if let Some(reserved) = self.reserved.get_mut(&lane) {
            *reserved -= 1;
            if *reserved == 0 {
                self.reserved.remove(&lane);
            }
        }
        if let Some(key) = key {
            self.proposed.remove(&key);
            if failed {
                self.make_ready(ledger, key);
            }
        }
        self.wake_lane(lane.0, &lane.1);
    }

    /// Returns when to poll again: now, at a time, or only after an event.
    #[must_use]
    pub fn next_wake(&self, now: Timestamp) -> Option<Timestamp> {
        let is_idle = self.round.is_empty() && self.retry_now.is_empty();
        if is_idle { self.later.first().map(|(due, _)| *due) } else { Some(now) }
    }

    /// Returns the node that owns a source.
    #[must_use]
    pub fn owner(&self, source: SourceId) -> Option<NodeId> {
        self.sources.get(&source).map(|owned| owned.grant.node)
    }

    /// Returns how many deliveries are due and wait for a lane with room.
    #[must_use]
    pub fn ready_count(&self) -> usize {
        let parked = self.suspended.parked_counts().map(|(_, count)| count);
        self.ready.values().map(|queue| queue.len).chain(parked).sum()
    }

    /// Returns how many deliveries of each pool are due and wait for a lane with room.
    #[must_use]
    pub fn ready_by_pool(&self) -> BTreeMap<PoolId, u64> {
        let mut pools = BTreeMap::new();
        let ready = self.ready.iter().map(|(id, queue)| (id, queue.len));
        for ((pool, _), count) in ready.chain(self.suspended.parked_counts()) {
            *pools.entry(*pool).or_default() += count as u64;
        }
        pools
    }

    /// Returns when the delivery was due that has waited longest for a lane with room, without what is suspended.
    ///
    /// Only the first entries of each queue of each tenant are looked at.
    #[must_use]
    pub fn longest_due(&self, ledger: &Ledger) -> Option<Timestamp> {
        let waiting = self.ready.iter().filter(|(id, _)| self.suspended_queue(id.0, &id.1).is_none());
        let shares = waiting.flat_map(|(id, queue)| queue.tenants.iter().map(move |share| (id, share)));
        let first_due = |(id, (tenant, share)): (&QueueId, (&TenantId, &Share))| {
            share.keys.iter().take(STALE_PASSED_MAX).find_map(|key| {
                let (_, recipient) = waiting_in(ledger, ledger.now(), id, *tenant, *key)?;
                match recipient.state {
                    State::Queued { due } => Some(due),
                    _ => None,
                }
            })
        };
        shares.filter_map(first_due).min()
    }

    /// Moves a bounded number, so that a new leader with many due deliveries still serves other commands.
    fn take_due(&mut self, ledger: &Ledger, now: Timestamp) {
        for _ in 0..DUE_AT_ONCE {
            let Some((_, key)) = self.later.first().copied().filter(|(due, _)| *due <= now) else { return };
            self.later.pop_first();
            self.make_ready(ledger, key);
        }
    }

    fn make_ready(&mut self, ledger: &Ledger, key: Key) {
        match queued(ledger, key) {
            Some((_, recipient)) if recipient.retry_now => {
                // Its entry in its queue may be gone.
                self.suspended.retries.remove(&key);
                self.retry_now.push_back(key);
            }
            Some(_) => self.push_ready(ledger, key),
            None => {}
        }
    }

    fn push_ready(&mut self, ledger: &Ledger, key: Key) {
        let Some((message, recipient)) = queued(ledger, key) else { return };
        let id = (recipient.pool, ledger.sites.name(recipient.site).clone());
        if self.suspended.tenant(message.tenant).is_some() {
            return self.suspended.park(message.tenant, id, key);
        }
        let queue = self.ready.entry(id.clone()).or_default();
        queue.push(message.tenant, key);
        self.wake(id);
    }

    /// Takes deliveries to be retried now; those that are suspended, or whose lanes have no room even for these, wait like
    /// the others.
    fn serve_retries(&mut self, ledger: &Ledger, now: Timestamp, max: usize, work: &mut DueWork) {
        while work.len() < max
            && let Some(key) = self.retry_now.pop_front()
        {
            let Some((message, recipient)) = queued(ledger, key) else { continue };
            if self.proposed.contains(&key) {
                continue;
            }
            let next = Next::new(key, message, recipient);
            if next.expires_at <= now {
                work.expired.push(next.delivery);
                continue;
            }
            let site = ledger.sites.name(recipient.site).clone();
            let grant = match self.suspended.tenant(message.tenant) {
                None => self.choose(ledger, recipient.pool, &site, RETRY_NOW_WINDOW),
                Some(_) => None,
            };
            match grant {
                Some(grant) => work.assigns.push(self.propose(next, grant, site)),
                None if self.keep_retry(key) => {}
                None => self.push_ready(ledger, key),
            }
        }
    }

    /// Takes from one queue until it is empty, its turn is over or its lanes are full; returns false when they are full.
    fn serve(
        &mut self,
        ledger: &Ledger,
        now: Timestamp,
        id: &QueueId,
        turn: usize,
        work: &mut DueWork,
    ) -> bool {
        for _ in 0..turn {
            // A delivery leaves its queue only when a lane has room.
            if !self.has_room(ledger, id) {
                return false;
            }
            let Some(queue) = self.ready.get_mut(id) else { return true };
            let Some(next) = queue.pop(ledger, now, id, &self.proposed) else { return true };
            if next.expires_at <= now {
                work.expired.push(next.delivery);
                continue;
            }
            let Some(grant) = self.choose(ledger, id.0, &id.1, 0) else { return false };
            work.assigns.push(self.propose(next, grant, id.1.clone()));
        }
        true
    }

    fn has_room(&self, ledger: &Ledger, id: &QueueId) -> bool {
        if self.suspended.queue(id.0, &id.1).is_some() {
            return false;
        }
        self.members(id.0).iter().any(|member| self.room(ledger, member.source, &id.1, 0) > 0)
    }

    fn members(&self, pool: PoolId) -> &[Member] {
        self.pools.get(&pool).map_or(&[], |pool| &pool.members)
    }

    fn propose(&mut self, next: Next, grant: SourceGrant, site: Arc<str>) -> (Assign, Reservation) {
        self.proposed.insert(next.key);
        let assign = Assign { delivery: next.delivery, attempt: next.attempt, grant };
        (assign, self.reserve(grant, site, Some(next.key)))
    }

    /// Picks among the pool's sources with room, in proportion to their weights (smooth weighted round robin).
    ///
    /// A lane's window counts as `window_min` where it is smaller.
    fn choose(
        &mut self,
        ledger: &Ledger,
        pool: PoolId,
        site: &Arc<str>,
        window_min: u32,
    ) -> Option<SourceGrant> {
        if self.suspended.queue(pool, site).is_some() {
            return None;
        }
        let members = self.pools.get(&pool)?.members.iter().map(|member| member.source);
        let with_room: Vec<bool> =
            members.map(|source| self.room(ledger, source, site, window_min) > 0).collect();
        let pool = self.pools.get_mut(&pool)?;
        let mut candidates: Vec<&mut Member> = pool
            .members
            .iter_mut()
            .zip(with_room)
            .filter_map(|(member, room)| room.then_some(member))
            .collect();
        let total: i64 = candidates.iter().map(|member| i64::from(member.weight)).sum();
        for member in &mut candidates {
            member.current += i64::from(member.weight);
        }
        // The first of equals: the choice depends only on the weights.
        let best = candidates.into_iter().rev().max_by_key(|member| member.current)?;
        best.current -= total;
        self.sources.get(&best.source).map(|source| source.grant)
    }

    /// Returns how many more deliveries a lane may be assigned, if its queue is not suspended.
    fn room(&self, ledger: &Ledger, source: SourceId, site: &Arc<str>, window_min: u32) -> u32 {
        let Some(Source { grant, windows: Some(windows), .. }) = self.sources.get(&source) else { return 0 };
        if self.suspended.lane(source, Some(grant.node), site).is_some() {
            return 0;
        }
        let window = windows.sites.get(&**site).copied().unwrap_or(windows.default).max(window_min);
        let reserved = self.reserved.get(&(source, site.clone())).copied().unwrap_or(0);
        window.saturating_sub(ledger.outstanding(source, site).saturating_add(reserved))
    }

    fn reserve(&mut self, grant: SourceGrant, site: Arc<str>, key: Option<Key>) -> Reservation {
        *self.reserved.entry((grant.source, site.clone())).or_default() += 1;
        Reservation { source: grant.source, site, key }
    }

    fn wake_lane(&mut self, source: SourceId, site: &Arc<str>) {
        let pools = self.sources.get(&source).map(|source| source.pools.clone()).unwrap_or_default();
        pools.into_iter().for_each(|pool| self.wake((pool, site.clone())));
    }

    fn wake_all(&mut self) {
        let all: Vec<QueueId> = self.ready.keys().cloned().collect();
        all.into_iter().for_each(|queue| self.wake(queue));
    }

    fn wake(&mut self, id: QueueId) {
        if let Some(queue) = self.ready.get_mut(&id)
            && queue.len > 0
            && !queue.in_round
        {
            queue.in_round = true;
            self.round.push_back(id);
        }
    }
}

/// A delivery at the head of its queue.
struct Next {
    key: Key,
    delivery: DeliveryId,
    attempt: AttemptNumber,
    expires_at: Timestamp,
}

impl Next {
    fn new(key: Key, message: &Message, recipient: &Recipient) -> Self {
        Self {
            key,
            delivery: DeliveryId { message: message.id, recipient: key.recipient },
            attempt: AttemptNumber(recipient.attempt.saturating_add(1)),
            expires_at: message.expires_at,
        }
    }
}

impl ReadyQueue {
    fn push(&mut self, tenant: TenantId, key: Key) {
        let share = match self.tenants.entry(tenant) {
            Entry::Occupied(share) => share.into_mut(),
            Entry::Vacant(new) => {
                self.turns.push_back(tenant);
                new.insert(Share::default())
            }
        };
        share.keys.push_back(key);
        self.len += 1;
    }

    /// Adds deliveries behind those of the tenant that wait here.
    fn append(&mut self, tenant: TenantId, mut keys: VecDeque<Key>) {
        self.len += keys.len();
        match self.tenants.entry(tenant) {
            Entry::Occupied(share) => share.into_mut().keys.append(&mut keys),
            Entry::Vacant(new) => {
                self.turns.push_back(tenant);
                new.insert(Share { keys, deficit: 0 });
            }
        }
    }

    /// Removes a tenant's share, with its turn.
    fn remove(&mut self, tenant: TenantId) -> Option<Share> {
        let share = self.tenants.remove(&tenant)?;
        self.turns.retain(|turn| *turn != tenant);
        self.len -= share.keys.len();
        Some(share)
    }

    /// Takes the next delivery in turn; drops those that no longer wait in this queue, and those that wait for a later time:
    /// they have been tried since they came here.
    fn pop(
        &mut self,
        ledger: &Ledger,
        now: Timestamp,
        id: &QueueId,
        proposed: &BTreeSet<Key>,
    ) -> Option<Next> {
        while let Some(tenant) = self.turns.front().copied() {
            let share = self.tenants.get_mut(&tenant).expect("every tenant with a turn has a share");
            let Some(key) = share.keys.front().copied() else {
                self.turns.pop_front();
                self.tenants.remove(&tenant);
                continue;
            };
            let current = waiting_in(ledger, now, id, tenant, key).filter(|_| !proposed.contains(&key));
            if let Some((message, _)) = current
                && u64::from(message.size) > share.deficit
                && self.turns.len() > 1
            {
                share.deficit += TURN_BYTES;
                self.turns.rotate_left(1);
                continue;
            }
            share.keys.pop_front();
            self.len -= 1;
            let Some((message, recipient)) = current else { continue };
            share.deficit = share.deficit.saturating_sub(u64::from(message.size));
            return Some(Next::new(key, message, recipient));
        }
        None
    }
}

/// Returns the delivery of an entry of a ready queue; `None` for a stale one: its delivery waits elsewhere, is not due, or
/// waits no longer.
fn waiting_in<'a>(
    ledger: &'a Ledger,
    now: Timestamp,
    id: &QueueId,
    tenant: TenantId,
    key: Key,
) -> Option<(&'a Message, &'a Recipient)> {
    queued(ledger, key).filter(|(message, recipient)| {
        let is_here = recipient.pool == id.0 && **ledger.sites.name(recipient.site) == *id.1;
        let is_due = matches!(recipient.state, State::Queued { due } if due <= now.max(ledger.now()));
        is_here && is_due && message.tenant == tenant
    })
}

fn is_retry(ledger: &Ledger, key: Key) -> bool {
    queued(ledger, key).is_some_and(|(_, recipient)| recipient.retry_now)
}

fn queued(ledger: &Ledger, key: Key) -> Option<(&Message, &Recipient)> {
    let message = ledger.messages.get(key.slot)?;
    let recipient = message.recipients.get(key.recipient as usize)?;
    matches!(recipient.state, State::Queued { .. }).then_some((message, recipient))
}
