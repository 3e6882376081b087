//! The deliveries of each tenant that a replica counts as open are those that its events accepted and did not end.

use std::collections::{BTreeMap, BTreeSet};

use postroad_core::{DeliveryId, GroupId, MessageId, TenantId};

use crate::{
    facts::{Facts, Seen, delivery_of, end_of},
    history::{Event, EventKind, OpenDeliveries},
    verdict::{Judgement, Subject},
};

pub(super) fn check(facts: &Facts<'_>, into: &mut Judgement) {
    let mut counts = BTreeMap::<GroupId, Vec<Seen<&OpenDeliveries>>>::new();
    for open in &facts.open {
        counts.entry(open.what.group).or_default().push(*open);
    }
    let mut events = events_by_group(facts);
    for (group, mut counts) in counts {
        counts.sort_by_key(|counts| counts.what.event);
        let events = events.remove(&group).unwrap_or_default();
        let has_gap = facts.groups_with_gaps.contains(&group);
        let mut so_far = Open::default();
        let mut unread = events.values().peekable();
        for counts in counts {
            while let Some(event) = unread.next_if(|event| event.sequence <= counts.what.event) {
                so_far.apply(event);
            }
            if has_gap || so_far.events < counts.what.event {
                into.undecided += 1;
                continue;
            }
            into.judged += 1;
            so_far.compare(counts, into);
        }
    }
}

/// The events of each group by number, each as it was read first.
fn events_by_group<'a>(facts: &Facts<'a>) -> BTreeMap<GroupId, BTreeMap<u64, &'a Event>> {
    let mut groups = BTreeMap::<_, BTreeMap<_, _>>::new();
    for event in &facts.events {
        groups.entry(event.what.group).or_default().entry(event.what.sequence).or_insert(event.what);
    }
    groups
}

/// What the events of a group so far leave open.
#[derive(Default)]
struct Open {
    /// How many events; their numbers begin at 1.
    events: u64,
    messages: BTreeMap<MessageId, TenantId>,
    ended: BTreeSet<DeliveryId>,
    tenants: BTreeMap<TenantId, u64>,
}

impl Open {
    fn apply(&mut self, event: &Event) {
        self.events += 1;
        if let EventKind::Accepted { message, tenant, recipients } = &event.kind {
            self.messages.insert(*message, *tenant);
            *self.tenants.entry(*tenant).or_default() += recipients.len() as u64;
            return;
        }
        let Some(delivery) = delivery_of(&event.kind).filter(|_| end_of(&event.kind).is_some()) else {
            return;
        };
        if let Some(tenant) = self.messages.get(&delivery.message)
            && self.ended.insert(delivery)
        {
            let open = self.tenants.entry(*tenant).or_default();
            *open = open.saturating_sub(1);
        }
    }

    fn compare(&self, counts: Seen<&OpenDeliveries>, into: &mut Judgement) {
        let OpenDeliveries { group, node, event, tenants } = counts.what;
        let counted: BTreeMap<TenantId, u64> = tenants.iter().map(|of| (of.tenant, of.open)).collect();
        let mut all: Vec<TenantId> = self.tenants.keys().chain(counted.keys()).copied().collect();
        all.sort_unstable();
        all.dedup();
        for tenant in all {
            let by_events = self.tenants.get(&tenant).copied().unwrap_or(0);
            let by_replica = counted.get(&tenant).copied().unwrap_or(0);
            if by_events != by_replica {
                let sentence = format!(
                    "tenant {tenant}: node {node} counts {by_replica} open deliveries in group {group} after event {event}, the events {by_events}"
                );
                into.violated(Subject::Tenant(tenant), [counts.number], sentence);
            }
        }
    }
}
