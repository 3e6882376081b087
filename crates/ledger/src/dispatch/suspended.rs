//! What an operator has suspended is not assigned; it goes on being accepted, and expires.
//!
//! A suspended pool, site or source leaves lanes without room. A suspended tenant shares its queues with others, so its
//! deliveries are parked beside them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use postroad_core::{NodeId, PoolId, Scope, SourceId, TenantId};

use super::{Dispatcher, QueueId, Share, is_retry};
use crate::{Ledger, command::Key};

/// The scopes that are suspended, and the due deliveries of suspended tenants.
#[derive(Debug, Default)]
pub(super) struct Suspended {
    scopes: BTreeSet<Scope>,
    pub(super) parked: BTreeMap<TenantId, BTreeMap<QueueId, VecDeque<Key>>>,
    /// Deliveries that a person asked to be retried: they wait in their queue too, and go first once they are resumed.
    pub(super) retries: BTreeSet<Key>,
}

impl Suspended {
    pub(super) fn tenant(&self, tenant: TenantId) -> Option<Scope> {
        self.find(|| [Some(Scope::Tenant(tenant))])
    }

    /// Returns what keeps a whole queue.
    pub(super) fn queue(&self, pool: PoolId, site: &Arc<str>) -> Option<Scope> {
        self.find(|| [Some(Scope::Pool(pool)), Some(Scope::Site(site.clone()))])
    }

    /// Returns what keeps one lane.
    pub(super) fn lane(&self, source: SourceId, node: Option<NodeId>, site: &Arc<str>) -> Option<Scope> {
        let lane = || Scope::Lane { source, site: site.clone() };
        self.find(|| [Some(Scope::Source(source)), Some(lane()), node.map(Scope::Node)])
    }

    /// Nothing is looked up while nothing is suspended: this is asked for every assignment.
    fn find<const N: usize>(&self, scopes: impl FnOnce() -> [Option<Scope>; N]) -> Option<Scope> {
        if self.scopes.is_empty() {
            return None;
        }
        scopes().into_iter().flatten().find(|scope| self.scopes.contains(scope))
    }

    /// Keeps a due delivery until its tenant is resumed.
    pub(super) fn park(&mut self, tenant: TenantId, queue: QueueId, key: Key) {
        self.parked.entry(tenant).or_default().entry(queue).or_default().push_back(key);
    }

    /// Returns how many deliveries of each queue are parked.
    pub(super) fn parked_counts(&self) -> impl Iterator<Item = (&QueueId, usize)> {
        self.parked.values().flatten().map(|(queue, keys)| (queue, keys.len()))
    }
}

impl Dispatcher {
    /// Sets what is suspended. Takes time by the number of queues, and by the deliveries that a person asked to be retried.
    pub fn set_suspended(&mut self, ledger: &Ledger, scopes: BTreeSet<Scope>) {
        if scopes == self.suspended.scopes {
            return;
        }
        let before = std::mem::replace(&mut self.suspended.scopes, scopes);
        self.resume_tenants();
        let new = self.suspended.scopes.difference(&before).filter_map(tenant_of).collect();
        self.park_tenants(&new);
        self.wake_all();
        self.resume_retries(ledger);
    }

    fn resume_tenants(&mut self) {
        let is_resumed = |tenant: &TenantId| self.suspended.tenant(*tenant).is_none();
        let resumed: Vec<TenantId> = self.suspended.parked.keys().copied().filter(is_resumed).collect();
        for tenant in resumed {
            for (queue, keys) in self.suspended.parked.remove(&tenant).unwrap_or_default() {
                self.ready.entry(queue).or_default().append(tenant, keys);
            }
        }
    }

    fn park_tenants(&mut self, tenants: &BTreeSet<TenantId>) {
        if tenants.is_empty() {
            return;
        }
        for (id, queue) in &mut self.ready {
            let parked: Vec<TenantId> =
                queue.tenants.keys().copied().filter(|tenant| tenants.contains(tenant)).collect();
            for tenant in parked {
                let Some(Share { keys, .. }) = queue.remove(tenant) else { continue };
                self.suspended.parked.entry(tenant).or_default().insert(id.clone(), keys);
            }
        }
        // A queue in the round is removed at its turn.
        self.ready.retain(|_, queue| queue.len > 0 || queue.in_round);
    }

    /// Keeps a delivery that a person asked to be retried, where what is suspended may be in its way.
    ///
    /// Returns true when it was kept already: then it waits in its queue too.
    pub(super) fn keep_retry(&mut self, key: Key) -> bool {
        if self.suspended.scopes.is_empty() {
            self.suspended.retries.remove(&key)
        } else {
            !self.suspended.retries.insert(key)
        }
    }

    /// Tries the kept retries again: those that are still suspended stay kept.
    fn resume_retries(&mut self, ledger: &Ledger) {
        let retries = &mut self.suspended.retries;
        retries.retain(|key| is_retry(ledger, *key));
        // Those of an earlier call may still be there.
        self.retry_now.retain(|key| !retries.contains(key));
        self.retry_now.extend(&*retries);
    }
}

fn tenant_of(scope: &Scope) -> Option<TenantId> {
    match scope {
        Scope::Tenant(tenant) => Some(*tenant),
        _ => None,
    }
}
