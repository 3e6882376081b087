//! I3: the events of a group are numbered without a gap and never change; a delivery ends once, and nothing follows.
//!
//! Memory: a reference to each event.

use std::collections::BTreeMap;

use postroad_core::{AttemptNumber, DeliveryId, GroupId, MessageId, OutcomeKind};

use crate::{
    facts::{Facts, Seen, delivery_of, end_of},
    history::{Event, EventKind, RecordNumber},
    verdict::{Judgement, Subject},
};

pub(super) fn check(facts: &Facts<'_>, into: &mut Judgement) {
    let mut groups = BTreeMap::<GroupId, Group<'_>>::new();
    for event in &facts.events {
        groups.entry(event.what.group).or_default().read(*event, into);
    }
    for group in groups.values() {
        let mut deliveries = Deliveries::default();
        for event in group.events.values() {
            deliveries.apply(*event, into);
        }
    }
}

/// The events of one group, each as it was read first.
#[derive(Default)]
struct Group<'a> {
    events: BTreeMap<u64, Seen<&'a Event>>,
    /// The number after the highest one read.
    next: u64,
}

impl<'a> Group<'a> {
    fn read(&mut self, event: Seen<&'a Event>, into: &mut Judgement) {
        into.judged += 1;
        let Event { group, sequence, ledger_millis, kind, .. } = event.what;
        let expected = self.next.max(1);
        if *sequence > expected {
            let sentence =
                format!("group {group}: event {sequence} follows {}, {expected} is missing", expected - 1);
            into.violated(subject(event.what), [event.number], sentence);
        }
        let through = match kind {
            EventKind::Gap { through } => *through,
            _ => *sequence,
        };
        self.next = expected.max(through.saturating_add(1));
        // A gap may replace events that were read before it, too.
        let is_gap = matches!(kind, EventKind::Gap { .. });
        if is_gap && through < expected {
            return;
        }
        let place = if is_gap { expected.max(*sequence) } else { *sequence };
        let first = self.events.entry(place).or_insert(event);
        let was_gap = matches!(first.what.kind, EventKind::Gap { .. });
        let is_same = first.what.kind == *kind && first.what.ledger_millis == *ledger_millis;
        if !is_same && !is_gap && !was_gap {
            let sentence = format!("group {group}: event {sequence} was read with two contents");
            into.violated(subject(event.what), [first.number, event.number], sentence);
        }
    }
}

fn subject(event: &Event) -> Subject {
    match (delivery_of(&event.kind), &event.kind) {
        (Some(delivery), _) => Subject::Delivery(delivery),
        (None, EventKind::Accepted { message, .. }) => Subject::Message(*message),
        (None, _) => Subject::Group(event.group),
    }
}

/// What the events so far, in the order of their numbers, say of the deliveries of a group.
#[derive(Default)]
struct Deliveries {
    /// Messages, with the number of their recipients.
    accepted: BTreeMap<MessageId, (RecordNumber, usize)>,
    ended: BTreeMap<DeliveryId, RecordNumber>,
    /// The last attempt of each delivery, and whether it ended `unknown` and has no other outcome yet.
    attempts: BTreeMap<DeliveryId, (AttemptNumber, bool, RecordNumber)>,
    /// Events are missing, so that a delivery may have begun in between.
    has_gap: bool,
}

impl Deliveries {
    fn apply(&mut self, event: Seen<&Event>, into: &mut Judgement) {
        match &event.what.kind {
            EventKind::Gap { .. } => self.has_gap = true,
            EventKind::Accepted { message, recipients, .. } => {
                let before = self.accepted.insert(*message, (event.number, recipients.len()));
                if let Some((first, _)) = before {
                    let sentence = format!("`{message}` was accepted twice");
                    into.violated(Subject::Message(*message), [first, event.number], sentence);
                }
            }
            kind => {
                let delivery = delivery_of(kind).expect("all other events are about a delivery");
                self.apply_to(delivery, event, into);
            }
        }
    }

    fn apply_to(&mut self, delivery: DeliveryId, event: Seen<&Event>, into: &mut Judgement) {
        let subject = Subject::Delivery(delivery);
        let count = self.accepted.get(&delivery.message).map(|(_, count)| *count);
        let is_in_envelope = count.is_some_and(|count| (delivery.recipient as usize) < count);
        let may_be_in_gap = self.has_gap && count.is_none();
        if !is_in_envelope && !may_be_in_gap {
            let sentence = format!("`{delivery}` has an event before its message was accepted for it");
            into.violated(subject, [event.number], sentence);
        }
        if let Some(end) = self.ended.get(&delivery) {
            let what =
                if end_of(&event.what.kind).is_some() { "ended twice" } else { "has an event after its end" };
            into.violated(subject, [*end, event.number], format!("`{delivery}` {what}"));
            return;
        }
        if let EventKind::Attempt(attempt) = &event.what.kind {
            let is_unknown = attempt.outcome == OutcomeKind::Unknown;
            let (last, is_open, number) =
                self.attempts.get(&delivery).copied().unwrap_or((AttemptNumber(0), false, event.number));
            if attempt.attempt > last {
                self.attempts.insert(delivery, (attempt.attempt, is_unknown, event.number));
            } else if attempt.attempt == last && is_open {
                // The report came after the attempt was reclaimed.
                self.attempts.insert(delivery, (last, false, event.number));
            } else if attempt.attempt == last {
                let sentence = format!("attempt {last} at `{delivery}` ended twice");
                into.violated(subject, [number, event.number], sentence);
            }
            // A report of an earlier attempt, reclaimed too, may come at any time.
        }
        if end_of(&event.what.kind).is_some() {
            self.ended.insert(delivery, event.number);
        }
    }
}
