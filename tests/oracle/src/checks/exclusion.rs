//! I5: two nodes never send one delivery or use one source at a time, and an attempt of an older epoch decides nothing.
//!
//! A transaction lasts from `MAIL` to the last command or message that arrived: a connection whose node is gone may stay
//! open for long, and that harms nobody. Memory: the transactions of each delivery, the epoch of each source.

mod sources;

use std::collections::{BTreeMap, BTreeSet};

use postroad_core::{AttemptNumber, DeliveryId, Epoch, GroupId, OutcomeKind, SourceId};

use crate::{
    facts::{Facts, Seen, Transaction},
    history::{Attempt, EventKind, NextState, RecordNumber},
    verdict::{Judgement, Subject},
};

pub(super) fn check(facts: &Facts<'_>, into: &mut Judgement) {
    for ((message, address), transactions) in facts.transactions_by_delivery() {
        into.judged += 1;
        for (place, later) in transactions.iter().enumerate() {
            for earlier in &transactions[..place] {
                if overlap(earlier, later) && are_of_two_nodes(earlier, later) {
                    let subject = facts
                        .delivery_to(message, address)
                        .map_or(Subject::Message(message), Subject::Delivery);
                    let sentence = format!(
                        "`{message}` for `{address}` was sent from `{}` and `{}` at a time",
                        earlier.mail.what.source, later.mail.what.source
                    );
                    into.violated(subject, [earlier.mail.number, later.mail.number], sentence);
                }
            }
        }
    }
    let attempts = attempts(facts);
    epochs(&attempts, into);
    sources::check(facts, &attempts, into);
}

/// `later` begins while `earlier` is active.
fn overlap(earlier: &Transaction<'_>, later: &Transaction<'_>) -> bool {
    later.mail.at < earlier.active_until
}

fn are_of_two_nodes(one: &Transaction<'_>, other: &Transaction<'_>) -> bool {
    match (one.mail.what.node, other.mail.what.node) {
        (Some(one), Some(other)) => one != other,
        _ => one.mail.what.source != other.mail.what.source,
    }
}

/// An attempt as the ledger decided on it, in the order of its group.
struct Decided<'a> {
    group: GroupId,
    attempt: Seen<&'a Attempt>,
    /// The report of an attempt that ended before: it does not say which source it came from.
    is_late: bool,
}

fn attempts<'a>(facts: &Facts<'a>) -> Vec<Decided<'a>> {
    let mut attempts: Vec<(GroupId, u64, Seen<&Attempt>)> = Vec::new();
    for delivery in facts.deliveries.values() {
        for event in &delivery.events {
            if let EventKind::Attempt(attempt) = &event.what.kind {
                let attempt = Seen { number: event.number, at: event.at, what: attempt };
                attempts.push((event.what.group, event.what.sequence, attempt));
            }
        }
    }
    attempts.sort_by_key(|(group, sequence, _)| (*group, *sequence));
    let mut reclaimed = BTreeSet::<(DeliveryId, AttemptNumber)>::new();
    let decided = attempts.into_iter().map(|(group, _, attempt)| {
        let Attempt { delivery, attempt: number, outcome, next, .. } = attempt.what;
        let is_late = *next == NextState::Unchanged || reclaimed.contains(&(*delivery, *number));
        if *outcome == OutcomeKind::Unknown {
            reclaimed.insert((*delivery, *number));
        }
        Decided { group, attempt, is_late }
    });
    decided.collect()
}

fn epochs(attempts: &[Decided<'_>], into: &mut Judgement) {
    let mut newest = BTreeMap::<(GroupId, SourceId), (Epoch, RecordNumber)>::new();
    for Decided { group, attempt, is_late } in attempts {
        into.judged += 1;
        if *is_late {
            continue;
        }
        let Attempt { delivery, attempt: number, source, epoch, outcome, .. } = attempt.what;
        let (seen, since) = newest.entry((*group, *source)).or_insert((*epoch, attempt.number));
        if *epoch > *seen {
            (*seen, *since) = (*epoch, attempt.number);
        } else if *epoch < *seen && *outcome != OutcomeKind::Unknown {
            let sentence = format!(
                "attempt {number} at `{delivery}` has epoch {epoch} of source {source}, older than {seen}, and decided `{outcome}`"
            );
            into.violated(Subject::Delivery(*delivery), [*since, attempt.number], sentence);
        }
    }
}
