//! I12: ledgers, metrics, events and clients count the same deliveries, and each has one state.
//!
//! A replica counts what is open exactly as the events do up to its last one, at any time. Totals are judged once all is
//! quiet. What clients know is a range: of a submission whose outcome is unknown, the message may be stored or not.
//! Memory: one row of counts for each tenant, and the counts of replicas.

mod clients;
mod replicas;

use std::collections::BTreeMap;

use postroad_core::{FinalState, MessageId, TenantId};

use crate::{
    facts::{Facts, Seen},
    history::{Counter, Counts, EventKind},
    verdict::{Judgement, Subject},
};

/// Accepted, open, and one number for each final state.
type Row = [u64; 7];

const NAMES: [&str; 7] = ["accepted", "open", "delivered", "bounced", "expired", "cancelled", "suppressed"];

pub(super) fn check(facts: &Facts<'_>, into: &mut Judgement) {
    replicas::check(facts, into);
    let Some(quiet) = facts.complete_since else {
        into.undecided += facts.counts.len() as u64;
        return;
    };
    let events = rows_of_events(facts);
    if let Some(events) = &events {
        let accepted = |tenant| events.get(&tenant).map_or(0, |row| row[0]);
        clients::check(facts, accepted, into);
    }
    let mut last = BTreeMap::<(TenantId, Counter), Seen<&Counts>>::new();
    for counts in facts.counts.iter().filter(|counts| counts.at >= quiet) {
        last.insert((counts.what.tenant, counts.what.by), *counts);
    }
    for ((tenant, by), counts) in last {
        into.judged += 1;
        let subject = Subject::Tenant(tenant);
        let row = row_of(counts.what);
        let name = name_of(by);
        let states: u64 = row[1..].iter().sum();
        if row[0] != states {
            let sentence = format!(
                "tenant {tenant}: the {name} count {} accepted recipients, and {states} in some state",
                row[0]
            );
            into.violated(subject, [counts.number], sentence);
        }
        let Some(events) = &events else { continue };
        let expected = events.get(&tenant).copied().unwrap_or_default();
        for ((name_of_state, counted), expected) in NAMES.iter().zip(row).zip(expected) {
            if counted != expected {
                let sentence = format!(
                    "tenant {tenant}: the {name} count {counted} {name_of_state}, the events {expected}"
                );
                into.violated(subject, [counts.number], sentence);
            }
        }
    }
}

fn name_of(by: Counter) -> &'static str {
    match by {
        Counter::Ledger => "ledgers",
        Counter::Metrics => "metrics",
    }
}

fn row_of(counts: &Counts) -> Row {
    let Counts { accepted, open, delivered, bounced, expired, cancelled, suppressed, .. } = *counts;
    [accepted, open, delivered, bounced, expired, cancelled, suppressed]
}

/// Returns what the events count for each tenant, unless some were dropped or there are none.
fn rows_of_events(facts: &Facts<'_>) -> Option<BTreeMap<TenantId, Row>> {
    if facts.events.is_empty() || !facts.groups_with_gaps.is_empty() {
        return None;
    }
    let mut rows = BTreeMap::<TenantId, Row>::new();
    let mut tenants = BTreeMap::<MessageId, TenantId>::new();
    for (message, events) in &facts.accepted {
        let EventKind::Accepted { tenant, recipients, .. } = &events[0].what.kind else { continue };
        tenants.insert(*message, *tenant);
        let row = rows.entry(*tenant).or_default();
        row[0] += recipients.len() as u64;
        row[1] += recipients.len() as u64;
    }
    for (delivery, facts) in &facts.deliveries {
        let Some(tenant) = tenants.get(&delivery.message) else { continue };
        let Some((_, end)) = facts.ends().next() else { continue };
        let row = rows.entry(*tenant).or_default();
        row[1] = row[1].saturating_sub(1);
        row[column(end)] += 1;
    }
    Some(rows)
}

fn column(end: FinalState) -> usize {
    match end {
        FinalState::Delivered => 2,
        FinalState::Bounced => 3,
        FinalState::Expired => 4,
        FinalState::Cancelled => 5,
        FinalState::Suppressed => 6,
    }
}
