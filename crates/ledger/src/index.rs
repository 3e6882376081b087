//! What is looked up and counted without reading every row.

use std::collections::{BTreeMap, BTreeSet};

use postroad_core::{DeliveryId, MessageId, SourceId, TenantId};

use crate::row::State;

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
    /// Deliveries that have not ended, by the slot of their site.
    pub(crate) open_by_site: Vec<u32>,
    /// Deliveries that have not ended, by tenant.
    pub(crate) open_by_tenant: BTreeMap<TenantId, u64>,
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

impl Index {
    /// Counts a delivery that has not ended.
    pub(crate) fn opened(&mut self, tenant: TenantId, site: u32) {
        let site = site as usize;
        if self.open_by_site.len() <= site {
            self.open_by_site.resize(site + 1, 0);
        }
        self.open_by_site[site] += 1;
        *self.open_by_tenant.entry(tenant).or_default() += 1;
    }

    /// Counts the end of a delivery.
    pub(crate) fn closed(&mut self, tenant: TenantId, site: u32) {
        self.open_by_site[site as usize] -= 1;
        let open = self.open_by_tenant.get_mut(&tenant).expect("what ends was counted");
        *open -= 1;
        if *open == 0 {
            self.open_by_tenant.remove(&tenant);
        }
    }

    pub(crate) fn enter_message(&mut self, tenant: TenantId) {
        *self.tenants.entry(tenant).or_default() += 1;
    }

    pub(crate) fn leave_message(&mut self, tenant: TenantId) {
        let messages = self.tenants.get_mut(&tenant).expect("a message that is here was entered");
        *messages -= 1;
        if *messages == 0 {
            self.tenants.remove(&tenant);
        }
    }

    pub(crate) fn enter(&mut self, delivery: DeliveryId, site: u32, state: State) {
        match state {
            State::Queued { .. } => self.counts.queued += 1,
            State::Held { .. } => self.counts.held += 1,
            State::Ended(_) => {}
            State::Sending { source, .. } => {
                self.counts.sending += 1;
                self.assigned.entry(source).or_default().insert(delivery);
                *self.lanes.entry((source, site)).or_default() += 1;
            }
        }
    }

    pub(crate) fn leave(&mut self, delivery: DeliveryId, site: u32, state: State) {
        match state {
            State::Queued { .. } => self.counts.queued -= 1,
            State::Held { .. } => self.counts.held -= 1,
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
