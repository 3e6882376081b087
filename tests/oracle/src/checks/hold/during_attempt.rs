//! What the events of a delivery say of holds that were asked for during an attempt.
//!
//! Such a hold takes effect when the attempt ends, unless the attempt ends the delivery, and no other attempt ends before
//! somebody releases it. A group with dropped events is not judged: a release may be among them.

use postroad_core::{AttemptNumber, DeliveryId};

use super::{Hold, changes_of, release_begins};
use crate::{
    facts::{Delivery, Facts, Seen},
    history::{
        Attempt, Change, ChangeAnswer, ChangeResult, Event, EventKind, Micros, NextState, RecordNumber,
    },
    verdict::{Judgement, Subject},
};

/// Judges the events, and returns the holds that took effect.
pub(super) fn check(facts: &Facts<'_>, into: &mut Judgement) -> Vec<(DeliveryId, Hold)> {
    let mut holds = Vec::new();
    for (id, delivery) in &facts.deliveries {
        if facts.groups_with_gaps.contains(&id.message.group()) {
            continue;
        }
        let mut reading = Reading { id: *id, state: State::Free, last: AttemptNumber(0), held: Vec::new() };
        for event in &delivery.events {
            reading.apply(*event, into);
        }
        let began = hold_begins(facts, *id);
        let until = release_begins(facts, *id, began);
        holds.extend(reading.held.into_iter().map(|(since, proof)| (*id, Hold { since, proof, until })));
    }
    answered(facts, into);
    holds
}

/// What the events so far say.
enum State {
    Free,
    /// A hold was asked for during the attempt that is under way.
    Requested(RecordNumber),
    Held(RecordNumber),
}

struct Reading {
    id: DeliveryId,
    state: State,
    /// The highest attempt that has ended.
    last: AttemptNumber,
    /// When holds were seen to take effect, and the records.
    held: Vec<(Micros, RecordNumber)>,
}

impl Reading {
    fn apply(&mut self, event: Seen<&Event>, into: &mut Judgement) {
        match &event.what.kind {
            EventKind::Attempt(attempt) => self.attempt_ended(attempt, event, into),
            EventKind::Requested { change: Change::Hold, .. } => {
                into.judged += 1;
                self.state = State::Requested(event.number);
            }
            // A cancel that was asked for takes the place of a hold, and a release takes it back.
            EventKind::Requested { .. } | EventKind::Released { .. } | EventKind::Ended { .. } => {
                self.state = State::Free;
            }
            EventKind::Held { .. } => self.take_effect(event),
            EventKind::Retried { .. } | EventKind::Accepted { .. } | EventKind::Gap { .. } => {}
        }
    }

    fn attempt_ended(&mut self, attempt: &Attempt, event: Seen<&Event>, into: &mut Judgement) {
        let is_later = attempt.attempt > self.last;
        self.last = self.last.max(attempt.attempt);
        let (id, number) = (self.id, attempt.attempt);
        match (&self.state, attempt.next) {
            (State::Requested(asked), NextState::Retry) => {
                let sentence = format!(
                    "a hold of `{id}` was asked for during attempt {number}, and was forgotten when the attempt ended"
                );
                into.violated(Subject::Delivery(id), [*asked, event.number], sentence);
                self.state = State::Free;
            }
            (State::Held(since), next) if is_later || next == NextState::Retry => {
                let sentence =
                    format!("`{id}` is held, and attempt {number} ended before anybody released it");
                into.violated(Subject::Delivery(id), [*since, event.number], sentence);
                self.state = State::Free;
            }
            (State::Requested(_), NextState::Held) => self.take_effect(event),
            (_, NextState::Held) => self.state = State::Held(event.number),
            (_, NextState::Ended(_) | NextState::Retry) => self.state = State::Free,
            // The report of an earlier attempt came late.
            (_, NextState::Unchanged) => {}
        }
    }

    fn take_effect(&mut self, event: Seen<&Event>) {
        if matches!(self.state, State::Requested(_)) {
            self.held.push((event.at, event.number));
        }
        self.state = State::Held(event.number);
    }
}

/// Returns when the first hold began that may have been asked for during an attempt.
fn hold_begins(facts: &Facts<'_>, delivery: DeliveryId) -> Micros {
    let holds = changes_of(facts, delivery).filter(|change| {
        change.begun.what.change == Change::Hold
            && result_of(change, delivery).is_none_or(|result| result == ChangeResult::InFlight)
    });
    holds.map(|change| change.begun.at).min().unwrap_or_default()
}

/// Returns what the client knows of a change of one delivery.
fn result_of(change: &crate::facts::Change<'_>, delivery: DeliveryId) -> Option<ChangeResult> {
    let ChangeAnswer::Results(results) = change.answer?.what else { return None };
    let place = change.begun.what.recipients.iter().position(|recipient| *recipient == delivery.recipient)?;
    results.get(place).copied()
}

/// A hold that was answered as in flight was asked for in an event.
fn answered(facts: &Facts<'_>, into: &mut Judgement) {
    if !facts.is_complete() || facts.events.is_empty() {
        return;
    }
    for change in facts.changes.values().filter(|change| change.begun.what.change == Change::Hold) {
        let message = change.begun.what.message;
        if facts.groups_with_gaps.contains(&message.group()) {
            continue;
        }
        for recipient in &change.begun.what.recipients {
            let id = DeliveryId { message, recipient: *recipient };
            if result_of(change, id) != Some(ChangeResult::InFlight) {
                continue;
            }
            into.judged += 1;
            if !facts.deliveries.get(&id).is_some_and(has_request) {
                let sentence = format!(
                    "a hold of `{id}` was answered as during an attempt, and no event says that it was asked for"
                );
                let proof = [Some(change.begun.number), change.answer.map(|answer| answer.number)];
                into.violated(Subject::Delivery(id), proof.into_iter().flatten(), sentence);
            }
        }
    }
}

/// A delivery that is to be cancelled after its attempt needs no hold.
fn has_request(delivery: &Delivery<'_>) -> bool {
    delivery.events.iter().any(|event| {
        matches!(event.what.kind, EventKind::Requested { change: Change::Hold | Change::Cancel, .. })
    })
}
