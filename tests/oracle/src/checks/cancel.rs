//! I7, for cancels: after a cancel is acknowledged as done, no transaction for that recipient begins, and the delivery
//! ends as cancelled.
//!
//! A cancel that was answered as in flight, failed or got no answer promises nothing. Memory: the transactions of each
//! delivery.

use postroad_core::{DeliveryId, FinalState};

use crate::{
    facts::{Facts, Seen},
    history::{Change, ChangeAnswer, ChangeResult},
    verdict::{Judgement, Subject},
};

pub(super) fn check(facts: &Facts<'_>, into: &mut Judgement) {
    let transactions = facts.transactions_by_delivery();
    for change in facts.changes.values().filter(|change| change.begun.what.change == Change::Cancel) {
        let Some(Seen { number, at, what: ChangeAnswer::Results(results) }) = change.answer else { continue };
        let message = change.begun.what.message;
        for (recipient, result) in change.begun.what.recipients.iter().zip(results) {
            into.judged += 1;
            let delivery = DeliveryId { message, recipient: *recipient };
            ended(facts, delivery, *result, number, into);
            if *result != ChangeResult::Done {
                continue;
            }
            let address = facts.recipients(message).and_then(|all| all.get(*recipient as usize));
            let of_delivery = address.and_then(|address| transactions.get(&(message, &**address)));
            for transaction in
                of_delivery.into_iter().flatten().filter(|transaction| transaction.mail.at > at)
            {
                let mail = transaction.mail;
                let sentence = format!("`{delivery}` was cancelled at {at}, and sent at {}", mail.at);
                into.violated(Subject::Delivery(delivery), [number, mail.number], sentence);
            }
        }
    }
}

/// A delivery that is said to have ended has an end, and a cancelled one this end.
fn ended(facts: &Facts<'_>, delivery: DeliveryId, result: ChangeResult, answer: usize, into: &mut Judgement) {
    let subject = Subject::Delivery(delivery);
    let end = facts.deliveries.get(&delivery).and_then(|delivery| delivery.ends().next());
    match (result, end) {
        (ChangeResult::Done, Some((event, state))) if state != FinalState::Cancelled => {
            let sentence = format!("`{delivery}` was acknowledged as cancelled, and ended as {state}");
            into.violated(subject, [answer, event.number], sentence);
        }
        (ChangeResult::Done | ChangeResult::AlreadyEnded, None) => {
            let is_known = facts.accepted.contains_key(&delivery.message)
                && !facts.groups_with_gaps.contains(&delivery.message.group());
            if facts.is_complete() && is_known {
                let sentence = format!("`{delivery}` was acknowledged as ended, and has no end");
                into.violated(subject, [answer], sentence);
            }
        }
        _ => {}
    }
}
