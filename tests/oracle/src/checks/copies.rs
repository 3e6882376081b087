//! I4: each copy beyond the first has an attempt that ended `unknown`, and something failed that explains such an end.
//!
//! Memory: the transactions of each delivery.

use postroad_core::MessageId;

use crate::{
    facts::{Facts, Transaction},
    history::Micros,
    verdict::{Judgement, Subject},
};

pub(super) fn check(facts: &Facts<'_>, into: &mut Judgement) {
    for ((message, address), transactions) in facts.transactions_by_delivery() {
        let copies: Vec<&Transaction<'_>> = Facts::copies(&transactions, address).collect();
        if copies.is_empty() {
            continue;
        }
        same_content(message, address, &copies, into);
        explained(facts, (message, address), &copies, &transactions, into);
    }
}

fn number(copy: &Transaction<'_>) -> usize {
    copy.message.map_or(copy.mail.number, |message| message.number)
}

fn subject(facts: &Facts<'_>, message: MessageId, address: &str) -> Subject {
    facts.delivery_to(message, address).map_or(Subject::Message(message), Subject::Delivery)
}

fn same_content(message: MessageId, address: &str, copies: &[&Transaction<'_>], into: &mut Judgement) {
    let hash = |copy: &Transaction<'_>| copy.message.and_then(|message| message.what.content_hash);
    for copy in &copies[1..] {
        if let (Some(first), Some(other)) = (hash(copies[0]), hash(copy))
            && first != other
        {
            let sentence = format!("two copies of `{message}` for `{address}` differ");
            into.violated(Subject::Message(message), [number(copies[0]), number(copy)], sentence);
        }
    }
}

fn explained(
    facts: &Facts<'_>,
    (message, address): (MessageId, &str),
    copies: &[&Transaction<'_>],
    transactions: &[&Transaction<'_>],
    into: &mut Judgement,
) {
    if copies.len() == 1 {
        into.judged += 1;
        return;
    }
    let delivery = facts.delivery_to(message, address).and_then(|id| facts.deliveries.get(&id));
    let unknown: Vec<usize> = delivery
        .into_iter()
        .flat_map(|delivery| delivery.unknown_attempts())
        .map(|attempt| attempt.number)
        .collect();
    let proof = || copies.iter().map(|copy| number(copy)).chain(unknown.iter().copied());
    let extra = copies.len() - 1;
    if extra > unknown.len() {
        // The events may not have been read yet, or were dropped.
        if !facts.is_complete()
            || facts.events.is_empty()
            || facts.groups_with_gaps.contains(&message.group())
        {
            into.undecided += 1;
            return;
        }
        into.judged += 1;
        let sentence = format!(
            "receivers have {} copies of `{message}` for `{address}`, and {} attempts ended `unknown`",
            copies.len(),
            unknown.len()
        );
        into.violated(subject(facts, message, address), proof(), sentence);
        return;
    }
    into.judged += 1;
    let last = copies[extra].mail.at;
    if !something_failed(facts, transactions, last) {
        let sentence = format!(
            "receivers have {} copies of `{message}` for `{address}`, although no node and no connection failed",
            copies.len()
        );
        into.violated(subject(facts, message, address), proof(), sentence);
    }
}

/// A node ended, a fault began, or a reply to this delivery is not known to have been read.
fn something_failed(facts: &Facts<'_>, transactions: &[&Transaction<'_>], before: Micros) -> bool {
    facts.nodes.iter().any(|node| !node.what.runs && node.at <= before)
        || facts.faults.iter().any(|fault| fault.what.on && fault.at <= before)
        || transactions.iter().any(|transaction| {
            transaction.mail.at < before && transaction.message.is_some() && transaction.read != Some(true)
        })
}
