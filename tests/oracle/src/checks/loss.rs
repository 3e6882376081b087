//! I1: each recipient of an acknowledged message ends, and one that ended as delivered is at a receiver.
//!
//! A held delivery has not ended, and nobody waits for it. A history without events is judged by the receivers alone.
//! A history without transactions may be one whose receivers were not recorded: then nothing proves a delivery.
//! Memory: the transactions of each delivery.

use std::collections::BTreeMap;

use postroad_core::{DeliveryId, FinalState, MessageId};

use crate::{
    facts::{Delivery, Facts, Submission, Transaction},
    history::Micros,
    verdict::{Judgement, Subject},
};

pub(super) fn check(facts: &Facts<'_>, into: &mut Judgement) {
    let transactions = facts.transactions_by_delivery();
    for (message, submissions) in &facts.acknowledged {
        let submission = &facts.submissions[&submissions[0]];
        let acknowledged = submission.answer.map_or(submission.begun.number, |answer| answer.number);
        for (recipient, address) in (0..).zip(&submission.begun.what.recipients) {
            let delivery = DeliveryId { message: *message, recipient };
            let has_copy = has_copy(&transactions, *message, address);
            match state(facts, delivery, submission, has_copy) {
                State::Judged => into.judged += 1,
                State::Undecided => into.undecided += 1,
                State::Lost { proof, what } => {
                    into.judged += 1;
                    let sentence = format!("`{delivery}` for `{address}` was acknowledged, and {what}");
                    into.violated(
                        Subject::Delivery(delivery),
                        std::iter::once(acknowledged).chain(proof),
                        sentence,
                    );
                }
            }
        }
    }
}

enum State {
    Judged,
    Undecided,
    Lost { proof: Option<usize>, what: &'static str },
}

fn state(facts: &Facts<'_>, id: DeliveryId, submission: &Submission<'_>, has_copy: bool) -> State {
    if submission.begun.what.not_before.is_some_and(|not_before| not_before > facts.end) {
        return State::Undecided;
    }
    if facts.events.is_empty() {
        return match (has_copy, facts.is_complete()) {
            (true, _) => State::Judged,
            (false, true) => State::Lost { proof: None, what: "no receiver has a copy" },
            (false, false) => State::Undecided,
        };
    }
    let delivery = facts.deliveries.get(&id);
    if let Some((event, end)) = delivery.and_then(|delivery| delivery.ends().next()) {
        let lost = |what| State::Lost { proof: Some(event.number), what };
        let is_unproven = end == FinalState::Delivered && !has_copy;
        if is_unproven && !facts.transactions.is_empty() {
            return lost("it ended as delivered, but no receiver has a copy");
        }
        if is_too_late(facts, submission, event.at) {
            return lost("it ended only after all was to be quiet");
        }
        return if is_unproven { State::Undecided } else { State::Judged };
    }
    if delivery.is_some_and(Delivery::is_held) {
        return State::Judged;
    }
    if !facts.is_complete() || facts.groups_with_gaps.contains(&id.message.group()) {
        return State::Undecided;
    }
    let what = match facts.accepted.contains_key(&id.message) {
        true => "it has not ended although all is quiet",
        false => "no event says that it was accepted",
    };
    State::Lost { proof: None, what }
}

/// An end that was read after the bound of the phase of liveness before which the message was acknowledged.
fn is_too_late(facts: &Facts<'_>, submission: &Submission<'_>, end: Micros) -> bool {
    let Some((begun, bound)) = facts.liveness else { return false };
    let is_from_before = submission.answer.is_some_and(|answer| answer.at <= begun);
    is_from_before
        && end > bound
        && submission.begun.what.not_before.is_none_or(|not_before| not_before <= begun)
}

fn has_copy(
    transactions: &BTreeMap<(MessageId, &str), Vec<&Transaction<'_>>>,
    message: MessageId,
    address: &str,
) -> bool {
    let of_delivery = transactions.get(&(message, address));
    of_delivery.is_some_and(|of_delivery| Facts::copies(of_delivery, address).next().is_some())
}
