//! I8: no transaction begins before a message's time, after its deadline, or while the delivery is held.
//!
//! A hold counts from its acknowledgement, or from the event that says that it took effect after an attempt, until somebody
//! begins to release the delivery: that release may take effect even if it fails, and one that failed before the hold began
//! may take effect after it. Who asks to release or retry a delivery wants it sent at once, whatever its time.
//! Memory: the transactions of each delivery.

mod during_attempt;

use std::collections::BTreeMap;

use postroad_core::{DeliveryId, MessageId};

use crate::{
    facts::{self, Facts, Seen},
    history::{Change, ChangeAnswer, ChangeResult, Micros, RecordNumber, Submitted},
    verdict::{Bounds, Judgement, Subject},
};

pub(super) fn check(facts: &Facts<'_>, bounds: &Bounds, into: &mut Judgement) {
    let submitted = submitted_by_message(facts);
    let mut holds = holds_by_answers(facts);
    for (delivery, hold) in during_attempt::check(facts, into) {
        holds.entry(delivery).or_default().push(hold);
    }
    for ((message, address), transactions) in facts.transactions_by_delivery() {
        let Some(delivery) = facts.delivery_to(message, address) else {
            into.undecided += 1;
            continue;
        };
        let subject = Subject::Delivery(delivery);
        for transaction in transactions {
            into.judged += 1;
            let Seen { number, at, .. } = transaction.mail;
            for begun in submitted.get(&message).into_iter().flatten() {
                if let Some(not_before) = begun.what.not_before
                    && at.after(bounds.slack) < not_before
                    && hurry_begins(facts, delivery) > at
                {
                    let sentence =
                        format!("`{delivery}` is to be sent from {not_before} on, and was sent at {at}");
                    into.violated(subject, [begun.number, number], sentence);
                }
                if let Some(deadline) = begun.what.deadline
                    && at > deadline.after(bounds.slack)
                {
                    let sentence =
                        format!("`{delivery}` is to be sent until {deadline}, and was sent at {at}");
                    into.violated(subject, [begun.number, number], sentence);
                }
            }
            let held =
                holds.get(&delivery).into_iter().flatten().find(|hold| hold.since < at && at < hold.until);
            if let Some(Hold { since, proof, .. }) = held {
                let sentence = format!("`{delivery}` is held since {since}, and was sent at {at}");
                into.violated(subject, [*proof, number], sentence);
            }
        }
    }
}

/// The submissions that ask for a time, with the message that each became as far as its client knows.
fn submitted_by_message<'a>(facts: &Facts<'a>) -> BTreeMap<MessageId, Vec<Seen<&'a Submitted>>> {
    let mut timed = BTreeMap::<_, Vec<_>>::new();
    for submission in facts.submissions.values() {
        let begun = submission.begun;
        let is_timed = begun.what.not_before.is_some() || begun.what.deadline.is_some();
        if let Some(message) = submission.accepted_as().or(begun.what.message)
            && is_timed
        {
            timed.entry(message).or_default().push(begun);
        }
    }
    timed
}

/// A delivery that is held.
struct Hold {
    since: Micros,
    /// The answer or the event that says so.
    proof: RecordNumber,
    until: Micros,
}

fn holds_by_answers(facts: &Facts<'_>) -> BTreeMap<DeliveryId, Vec<Hold>> {
    let mut holds = BTreeMap::<_, Vec<_>>::new();
    for change in facts.changes.values().filter(|change| change.begun.what.change == Change::Hold) {
        let Some(Seen { number, at, what: ChangeAnswer::Results(results) }) = change.answer else { continue };
        let message = change.begun.what.message;
        for (recipient, result) in change.begun.what.recipients.iter().zip(results) {
            if *result == ChangeResult::Done {
                let delivery = DeliveryId { message, recipient: *recipient };
                let until = release_begins(facts, delivery, change.begun.at);
                holds.entry(delivery).or_default().push(Hold { since: at, proof: number, until });
            }
        }
    }
    holds
}

/// Returns when somebody first began to ask for the delivery at once.
fn hurry_begins(facts: &Facts<'_>, delivery: DeliveryId) -> Micros {
    let wants = |change: Change| matches!(change, Change::Release | Change::Retry);
    first_begin(changes_of(facts, delivery).filter(|change| wants(change.begun.what.change)))
}

/// Returns when the first release began that may take effect after a hold that began at `hold`.
fn release_begins(facts: &Facts<'_>, delivery: DeliveryId, hold: Micros) -> Micros {
    let is_over = |change: &facts::Change<'_>| {
        change
            .answer
            .is_some_and(|answer| matches!(answer.what, ChangeAnswer::Results(_)) && answer.at < hold)
    };
    let releases = changes_of(facts, delivery).filter(|change| change.begun.what.change == Change::Release);
    first_begin(releases.filter(|change| !is_over(change)))
}

fn changes_of<'b, 'a>(
    facts: &'b Facts<'a>,
    delivery: DeliveryId,
) -> impl Iterator<Item = &'b facts::Change<'a>> {
    facts.changes.values().filter(move |change| {
        let begun = change.begun.what;
        begun.message == delivery.message && begun.recipients.contains(&delivery.recipient)
    })
}

fn first_begin<'b, 'a: 'b>(changes: impl Iterator<Item = &'b facts::Change<'a>>) -> Micros {
    changes.map(|change| change.begun.at).min().unwrap_or(Micros(u64::MAX))
}
