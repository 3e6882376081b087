//! I8: no transaction begins before a message's time, after its deadline, or while the delivery is held.
//!
//! A hold counts from its acknowledgement until somebody begins to release the delivery: that release may take effect
//! even if it fails. Who asks to release or retry a delivery wants it sent at once, whatever its time.
//! Memory: the transactions of each delivery.

use std::collections::BTreeMap;

use postroad_core::{DeliveryId, MessageId};

use crate::{
    facts::{Facts, Seen},
    history::{Change, ChangeAnswer, ChangeResult, Micros, RecordNumber, Submitted},
    verdict::{Bounds, Judgement, Subject},
};

pub(super) fn check(facts: &Facts<'_>, bounds: &Bounds, into: &mut Judgement) {
    let submitted = submitted_by_message(facts);
    let holds = holds(facts);
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
                    && asked_for(facts, delivery, Micros(0), HURRY) > at
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
            if let Some(Hold { since, answer, .. }) = held {
                let sentence = format!("`{delivery}` is held since {since}, and was sent at {at}");
                into.violated(subject, [*answer, number], sentence);
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
    answer: RecordNumber,
    until: Micros,
}

fn holds(facts: &Facts<'_>) -> BTreeMap<DeliveryId, Vec<Hold>> {
    let mut holds = BTreeMap::<_, Vec<_>>::new();
    for change in facts.changes.values().filter(|change| change.begun.what.change == Change::Hold) {
        let Some(Seen { number, at, what: ChangeAnswer::Results(results) }) = change.answer else { continue };
        let message = change.begun.what.message;
        for (recipient, result) in change.begun.what.recipients.iter().zip(results) {
            if *result == ChangeResult::Done {
                let delivery = DeliveryId { message, recipient: *recipient };
                let until = asked_for(facts, delivery, change.begun.at, &[Change::Release]);
                holds.entry(delivery).or_default().push(Hold { since: at, answer: number, until });
            }
        }
    }
    holds
}

/// Changes that make a delivery due at once.
const HURRY: &[Change] = &[Change::Release, Change::Retry];

/// Returns when somebody first began to ask for one of these changes of the delivery after `since`.
fn asked_for(facts: &Facts<'_>, delivery: DeliveryId, since: Micros, changes: &[Change]) -> Micros {
    let asked = facts.changes.values().map(|change| change.begun).filter(|begun| {
        changes.contains(&begun.what.change)
            && begun.what.message == delivery.message
            && begun.what.recipients.contains(&delivery.recipient)
            && begun.at >= since
    });
    asked.map(|begun| begun.at).min().unwrap_or(Micros(u64::MAX))
}
