//! Mutations of random legal histories: each kind is a fault of a cluster, and each is found.
//!
//! A mutation says where it can be made and what it breaks; where it cannot be made, it is not counted.

use std::collections::{BTreeMap, BTreeSet};

use postroad_core::{
    DeliveryId, Epoch, FinalState, GroupId, MessageId, NodeId, OutcomeKind, SourceId, TenantId,
};
use postroad_oracle::{
    Bounds, Facts, History, Invariant, Micros, Record, What,
    facts::{Transaction, delivery_of, end_of, message_of},
    history::*,
    judge,
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};

use crate::legal::{build, plans};

const HISTORIES: usize = 40;
const TRIES: usize = 3;

/// Returns the mutated history, if there is a place for it; `pick` chooses among the places.
type Mutate = fn(&History, usize) -> Option<History>;

/// The name, what it is, and the invariants of which one must be violated.
const MUTATIONS: &[(&str, Mutate, &[Invariant])] = &[
    ("an event is lost", drop_event, &[Invariant::OneEnd, Invariant::NoLoss, Invariant::Conservation]),
    ("two events are swapped", swap_events, &[Invariant::OneEnd]),
    ("an event number is left out", skip_number, &[Invariant::OneEnd]),
    ("an event is rewritten", rewrite_event, &[Invariant::OneEnd]),
    ("a message is accepted twice", accept_twice, &[Invariant::OneEnd]),
    ("an attempt ends twice", attempt_twice, &[Invariant::OneEnd]),
    ("a delivery ends twice", end_twice, &[Invariant::OneEnd]),
    ("an event follows the end", event_after_end, &[Invariant::OneEnd]),
    ("a delivery never ends", never_ends, &[Invariant::NoLoss]),
    ("an acknowledged message is forgotten", forget_message, &[Invariant::NoLoss]),
    ("a refused copy counts as delivered", delivered_without_copy, &[Invariant::NoLoss]),
    ("a refused message is stored", refuse_stored, &[Invariant::NoGhosts]),
    ("a message that nobody submitted arrives", ghost, &[Invariant::NoGhosts]),
    ("a message is stored under two ids", store_twice, &[Invariant::NoGhosts]),
    ("a copy goes to a stranger", wrong_recipient, &[Invariant::NoGhosts]),
    ("a copy is doubled", double_copy, &[Invariant::ExplainedCopies]),
    ("an unknown attempt is forgotten", forget_unknown, &[Invariant::ExplainedCopies]),
    ("two copies differ", copies_differ, &[Invariant::ExplainedCopies]),
    ("two nodes send at a time", overlap, &[Invariant::MutualExclusion]),
    ("an old epoch decides", old_epoch, &[Invariant::MutualExclusion]),
    ("an epoch has two nodes", two_owners, &[Invariant::MutualExclusion]),
    ("a cancelled delivery is sent", send_after_cancel, &[Invariant::Cancel]),
    ("a cancelled delivery ends otherwise", cancel_ends_otherwise, &[Invariant::Cancel]),
    ("a held delivery is sent", send_while_held, &[Invariant::Hold]),
    ("a hold is forgotten after an attempt", forget_hold, &[Invariant::Hold]),
    ("a delivery is sent that was held after an attempt", send_after_hold, &[Invariant::Hold]),
    ("a message is sent before its time", too_early, &[Invariant::Hold]),
    ("a message is sent after its deadline", too_late, &[Invariant::Hold]),
    ("a body is altered", alter_body, &[Invariant::Integrity]),
    ("two bodies are mixed up", mix_bodies, &[Invariant::Integrity]),
    ("an event is of another tenant", wrong_tenant, &[Invariant::Integrity]),
    ("a recipient is lost", lose_recipient, &[Invariant::Integrity]),
    ("a replica differs", replica_differs, &[Invariant::Agreement]),
    ("a delivery is counted twice", count_twice, &[Invariant::Conservation]),
    ("a replica forgets a delivery", miscount_open, &[Invariant::Conservation]),
    ("an acknowledgement is forgotten", forget_answer, &[Invariant::Answered]),
    ("an acknowledgement is late", late_answer, &[Invariant::Answered]),
    ("a change has no answer", forget_change_answer, &[Invariant::Answered]),
];

#[test]
fn every_kind_of_mutation_is_found() {
    let mut runner = TestRunner::deterministic();
    let mut made = vec![0_u32; MUTATIONS.len()];
    for _ in 0..HISTORIES {
        let history = build(&plans().new_tree(&mut runner).expect("plans can be made").current());
        for ((name, mutate, broken), made) in MUTATIONS.iter().zip(&mut made) {
            for pick in 0..TRIES {
                let Some(mutated) = mutate(&history, pick * 7919) else { continue };
                assert_ne!(mutated, history, "{name}: nothing has changed");
                let verdict = judge(&mutated, &Bounds::default());
                let verdict = verdict.unwrap_or_else(|error| panic!("{name}: {error}"));
                let found: BTreeSet<Invariant> =
                    verdict.violations().map(|violation| violation.invariant).collect();
                let text = || postroad_oracle::text::write(&mutated);
                assert!(
                    broken.iter().any(|broken| found.contains(broken)),
                    "{name}: found {found:?} in\n{}",
                    text()
                );
                *made += 1;
            }
        }
    }
    for ((name, ..), made) in MUTATIONS.iter().zip(&made) {
        println!("{made:>4} found: {name}");
        assert!(*made >= 20, "{name}: made only {made} times");
    }
    println!("{} mutations of {} kinds, all found", made.iter().sum::<u32>(), MUTATIONS.len());
}

fn choose<T: Clone>(places: &[T], pick: usize) -> Option<T> {
    places.get(pick.checked_rem(places.len())?).cloned()
}

fn facts(history: &History) -> Facts<'_> {
    Facts::new(history).expect("a legal history does not contradict itself")
}

/// Returns the positions of records of which `wanted` is true.
fn places(history: &History, wanted: impl Fn(&What) -> bool) -> Vec<usize> {
    let records = history.records.iter().enumerate();
    records.filter(|(_, record)| wanted(&record.what)).map(|(place, _)| place).collect()
}

/// Changes the record at one of `places`.
fn edit(history: &History, places: &[usize], pick: usize, edit: impl FnOnce(&mut What)) -> Option<History> {
    let place = choose(places, pick)?;
    let mut mutated = history.clone();
    edit(&mut mutated.records[place].what);
    Some(mutated)
}

fn event(what: &What) -> Option<&Event> {
    match what {
        What::Event(event) => Some(event),
        _ => None,
    }
}

/// The positions of events that were read once and of which `wanted` is true.
fn events_read_once(history: &History, wanted: impl Fn(&EventKind) -> bool) -> Vec<usize> {
    let mut times = BTreeMap::<(GroupId, u64), usize>::new();
    for event in history.records.iter().filter_map(|record| event(&record.what)) {
        *times.entry((event.group, event.sequence)).or_default() += 1;
    }
    let is_wanted = |event: &Event| times[&(event.group, event.sequence)] == 1 && wanted(&event.kind);
    places(history, |what| event(what).is_some_and(is_wanted))
}

/// Adds to the number of every event of the group from `from` on.
fn renumber(history: &mut History, group: GroupId, from: u64, change: i64) {
    for record in &mut history.records {
        if let What::Event(event) = &mut record.what
            && event.group == group
            && event.sequence >= from
        {
            event.sequence = event.sequence.saturating_add_signed(change);
        }
    }
}

/// Adds an event after the one at `place`.
fn add_event(history: &History, place: usize, kind: EventKind) -> Option<History> {
    let mut mutated = history.clone();
    let Event { group, sequence, .. } = *event(&history.records[place].what)?;
    renumber(&mut mutated, group, sequence + 1, 1);
    let node = NodeId(11);
    let event = Event { node, group, sequence: sequence + 1, ledger_millis: 0, kind };
    let at = history.records[place].at;
    mutated.records.insert(place + 1, Record { at, what: What::Event(event) });
    Some(mutated)
}

fn drop_event(history: &History, pick: usize) -> Option<History> {
    let place = choose(&events_read_once(history, |_| true), pick)?;
    let mut mutated = history.clone();
    mutated.records.remove(place);
    Some(mutated)
}

fn swap_events(history: &History, pick: usize) -> Option<History> {
    let place = choose(&events_read_once(history, |kind| matches!(kind, EventKind::Accepted { .. })), pick)?;
    let accepted = event(&history.records[place].what)?;
    let message = message_of(&accepted.kind);
    let next =
        events_read_once(history, |kind| delivery_of(kind).map(|delivery| delivery.message) == message);
    let next = *next.first()?;
    let (mut mutated, other) = (history.clone(), event(&history.records[next].what)?);
    let swapped = |one: &Event, kind: &Event| What::Event(Event { kind: kind.kind.clone(), ..one.clone() });
    mutated.records[place].what = swapped(accepted, other);
    mutated.records[next].what = swapped(other, accepted);
    Some(mutated)
}

fn skip_number(history: &History, pick: usize) -> Option<History> {
    let place = choose(&places(history, |what| event(what).is_some()), pick)?;
    let Event { group, sequence, .. } = *event(&history.records[place].what)?;
    let mut mutated = history.clone();
    renumber(&mut mutated, group, sequence, 1);
    Some(mutated)
}

fn rewrite_event(history: &History, pick: usize) -> Option<History> {
    let place = choose(&places(history, |what| event(what).is_some()), pick)?;
    let first = event(&history.records[place].what)?;
    let again = Event { node: NodeId(13), ledger_millis: first.ledger_millis + 1, ..first.clone() };
    let mut mutated = history.clone();
    let at = history.records.last()?.at;
    mutated.records.push(Record { at, what: What::Event(again) });
    Some(mutated)
}

fn accept_twice(history: &History, pick: usize) -> Option<History> {
    let place = choose(&events_read_once(history, |kind| matches!(kind, EventKind::Accepted { .. })), pick)?;
    add_event(history, place, event(&history.records[place].what)?.kind.clone())
}

fn attempt_twice(history: &History, pick: usize) -> Option<History> {
    let soft =
        |kind: &EventKind| matches!(kind, EventKind::Attempt(Attempt { outcome: OutcomeKind::Soft, .. }));
    let place = choose(&events_read_once(history, soft), pick)?;
    add_event(history, place, event(&history.records[place].what)?.kind.clone())
}

fn end_twice(history: &History, pick: usize) -> Option<History> {
    let place = choose(&events_read_once(history, |kind| end_of(kind).is_some()), pick)?;
    let delivery = delivery_of(&event(&history.records[place].what)?.kind)?;
    add_event(history, place, EventKind::Ended { delivery, state: FinalState::Expired })
}

fn event_after_end(history: &History, pick: usize) -> Option<History> {
    let place = choose(&events_read_once(history, |kind| end_of(kind).is_some()), pick)?;
    let delivery = delivery_of(&event(&history.records[place].what)?.kind)?;
    add_event(history, place, EventKind::Retried { delivery })
}

fn acknowledged(history: &History) -> BTreeSet<MessageId> {
    facts(history).acknowledged.keys().copied().collect()
}

fn never_ends(history: &History, pick: usize) -> Option<History> {
    let acknowledged = acknowledged(history);
    let ends = |kind: &EventKind| match kind {
        EventKind::Attempt(Attempt { delivery, next: NextState::Ended(_), .. }) => {
            acknowledged.contains(&delivery.message)
        }
        _ => false,
    };
    edit(history, &events_read_once(history, ends), pick, |what| {
        if let What::Event(Event { kind: EventKind::Attempt(attempt), .. }) = what {
            attempt.next = NextState::Retry;
        }
    })
}

fn forget_message(history: &History, pick: usize) -> Option<History> {
    let message = choose(&acknowledged(history).into_iter().collect::<Vec<_>>(), pick)?;
    let facts = facts(history);
    let transactions: BTreeSet<u64> = facts
        .transactions
        .iter()
        .filter(|(_, of)| of.id() == Some(message))
        .map(|(number, _)| *number)
        .collect();
    let mut mutated = history.clone();
    mutated.records.retain(|record| match &record.what {
        What::Event(event) => message_of(&event.kind) != Some(message),
        What::Mail(Mail { transaction, .. })
        | What::Rcpt(Rcpt { transaction, .. })
        | What::Message(Message { transaction, .. })
        | What::Reply(Reply { transaction, .. }) => !transactions.contains(transaction),
        _ => true,
    });
    // As if they had never been: the others are numbered without a gap.
    let mut numbers = BTreeMap::<GroupId, BTreeMap<u64, u64>>::new();
    for record in &mut mutated.records {
        if let What::Event(event) = &mut record.what {
            let of_group = numbers.entry(event.group).or_default();
            let next = of_group.len() as u64 + 1;
            event.sequence = *of_group.entry(event.sequence).or_insert(next);
        }
    }
    Some(mutated)
}

/// The transactions of deliveries with one copy only, of messages of which `wanted` is true.
fn single_copies<'a>(facts: &'a Facts<'a>, wanted: impl Fn(MessageId) -> bool) -> Vec<Transaction<'a>> {
    let mut found = Vec::new();
    for ((message, address), transactions) in facts.transactions_by_delivery() {
        let copies: Vec<_> = Facts::copies(&transactions, address).collect();
        let unknown =
            facts.delivery_to(message, address).and_then(|delivery| facts.deliveries.get(&delivery));
        let unknown = unknown.map_or(0, |delivery| delivery.unknown_attempts().count());
        if copies.len() == 1 && unknown == 0 && wanted(message) {
            found.push(copies[0].clone());
        }
    }
    found
}

fn delivered_without_copy(history: &History, pick: usize) -> Option<History> {
    let facts = facts(history);
    let copies = single_copies(&facts, |message| facts.acknowledged.contains_key(&message));
    let place = choose(&copies, pick)?.message?.number - 1;
    edit(history, &[place], 0, |what| {
        if let What::Message(message) = what {
            message.code = 451;
        }
    })
}

/// The numbers of submissions that were accepted and are the only ones of their tokens.
fn accepted_once(facts: &Facts<'_>) -> Vec<u64> {
    let is_only = |token: &str| facts.submissions_by_token[token].len() == 1;
    let accepted = facts
        .submissions
        .iter()
        .filter(|(_, of)| of.accepted_as().is_some() && is_only(&of.begun.what.token));
    accepted.map(|(number, _)| *number).collect()
}

fn refuse_stored(history: &History, pick: usize) -> Option<History> {
    let facts = facts(history);
    let number = choose(&accepted_once(&facts), pick)?;
    let place = facts.submissions[&number].answer?.number - 1;
    edit(history, &[place], 0, |what| {
        if let What::SubmitAnswered(answered) = what {
            answered.answer = SubmitAnswer::Refused { reply: "550 no".into() };
        }
    })
}

/// Adds a transaction like `like` at `at`, and changes it.
fn add_transaction(
    history: &History,
    like: &Transaction<'_>,
    at: Micros,
    change: impl Fn(&mut What),
) -> Option<History> {
    let numbers = [
        Some(like.mail.number),
        like.rcpts.first().map(|rcpt| rcpt.number),
        like.message.map(|of| of.number),
    ];
    let mut records = history.records.clone();
    for (step, number) in (0..).zip(numbers.into_iter().flatten()) {
        let mut what = history.records[number - 1].what.clone();
        let (What::Mail(Mail { transaction, .. })
        | What::Rcpt(Rcpt { transaction, .. })
        | What::Message(Message { transaction, .. })) = &mut what
        else {
            return None;
        };
        *transaction = u64::MAX;
        change(&mut what);
        records.push(Record { at: Micros(at.0 + step), what });
    }
    Some(History::new(records))
}

fn all_transactions<'a>(facts: &'a Facts<'a>) -> Vec<Transaction<'a>> {
    facts.transactions.values().cloned().collect()
}

fn ghost(history: &History, pick: usize) -> Option<History> {
    let facts = facts(history);
    let like = choose(&all_transactions(&facts), pick)?;
    add_transaction(history, &like, like.active_until, |what| {
        if let What::Message(message) = what {
            message.message = Some(MessageId::from_u128(7));
            message.token = Some("nobody's".into());
        }
    })
}

fn store_twice(history: &History, pick: usize) -> Option<History> {
    let facts = facts(history);
    let once: BTreeSet<MessageId> =
        accepted_once(&facts).iter().filter_map(|number| facts.submissions[number].accepted_as()).collect();
    let of_once: Vec<_> = all_transactions(&facts)
        .into_iter()
        .filter(|of| of.id().is_some_and(|id| once.contains(&id)))
        .collect();
    let like = choose(&of_once, pick)?;
    add_transaction(history, &like, like.active_until, |what| {
        if let What::Message(message) = what {
            message.message = Some(MessageId::from_u128(7));
        }
    })
}

fn wrong_recipient(history: &History, pick: usize) -> Option<History> {
    edit(history, &places(history, |what| matches!(what, What::Rcpt(_))), pick, |what| {
        if let What::Rcpt(rcpt) = what {
            rcpt.recipient = "stranger@x.test".into();
        }
    })
}

fn double_copy(history: &History, pick: usize) -> Option<History> {
    let facts = facts(history);
    let like = choose(&single_copies(&facts, |_| true), pick)?;
    add_transaction(history, &like, Micros(like.active_until.0 + 100), |_| {})
}

/// Deliveries with several copies, by the first of them.
fn several_copies<'a>(facts: &'a Facts<'a>) -> Vec<(DeliveryId, Transaction<'a>)> {
    let mut found = Vec::new();
    for ((message, address), transactions) in facts.transactions_by_delivery() {
        let copies: Vec<_> = Facts::copies(&transactions, address).collect();
        if let Some(delivery) = facts.delivery_to(message, address)
            && copies.len() > 1
        {
            found.push((delivery, copies[0].clone()));
        }
    }
    found
}

fn forget_unknown(history: &History, pick: usize) -> Option<History> {
    let facts = facts(history);
    let (delivery, _) = choose(&several_copies(&facts), pick)?;
    let mut mutated = history.clone();
    for record in &mut mutated.records {
        if let What::Event(Event { kind: EventKind::Attempt(attempt), .. }) = &mut record.what
            && attempt.delivery == delivery
            && attempt.outcome == OutcomeKind::Unknown
        {
            attempt.outcome = OutcomeKind::Soft;
        }
    }
    Some(mutated)
}

fn copies_differ(history: &History, pick: usize) -> Option<History> {
    let facts = facts(history);
    let (_, copy) = choose(&several_copies(&facts), pick)?;
    edit(history, &[copy.message?.number - 1], 0, |what| {
        if let What::Message(message) = what {
            message.content_hash = Some(u64::MAX);
        }
    })
}

fn overlap(history: &History, pick: usize) -> Option<History> {
    let facts = facts(history);
    let like = choose(&all_transactions(&facts), pick)?;
    add_transaction(history, &like, Micros(like.mail.at.0 + 1), |what| {
        if let What::Mail(mail) = what {
            mail.node = Some(NodeId(99));
        }
    })
}

fn old_epoch(history: &History, pick: usize) -> Option<History> {
    let source = SourceId(21);
    let facts = facts(history);
    let mut attempts: Vec<_> = facts.deliveries.values().flat_map(|delivery| delivery.attempts()).collect();
    attempts.sort_by_key(|attempt| attempt.number);
    let mut seen = BTreeSet::new();
    let mut reclaimed = BTreeSet::new();
    let mut decisive = Vec::new();
    for attempt in attempts {
        let Attempt { delivery, attempt: which, outcome, .. } = attempt.what;
        if *outcome == OutcomeKind::Unknown {
            reclaimed.insert((*delivery, *which));
        } else if seen.contains(&delivery.message.group()) && !reclaimed.contains(&(*delivery, *which)) {
            decisive.push(attempt.number - 1);
        }
        seen.insert(delivery.message.group());
    }
    edit(history, &decisive, pick, |what| {
        if let What::Event(Event { kind: EventKind::Attempt(attempt), .. }) = what {
            (attempt.epoch, attempt.source) = (Epoch(0), source);
        }
    })
}

fn two_owners(history: &History, pick: usize) -> Option<History> {
    let facts = facts(history);
    let delivered = |kind: &EventKind| match kind {
        EventKind::Attempt(attempt) if attempt.next == NextState::Ended(FinalState::Delivered) => {
            let of_delivery = &facts.deliveries[&attempt.delivery];
            (of_delivery.unknown_attempts().count() == 0).then_some(attempt.epoch)
        }
        _ => None,
    };
    let all = history.records.iter().filter_map(|record| delivered(&event(&record.what)?.kind));
    let mut times = BTreeMap::<Epoch, usize>::new();
    all.for_each(|epoch| *times.entry(epoch).or_default() += 1);
    let places = events_read_once(history, |kind| delivered(kind).is_some_and(|epoch| times[&epoch] > 1));
    edit(history, &places, pick, |what| {
        if let What::Event(Event { kind: EventKind::Attempt(attempt), .. }) = what {
            attempt.node = NodeId(22);
        }
    })
}

/// Changes of the kind that were answered as done, with the time of the answer.
fn answered_as_done(facts: &Facts<'_>, kind: Change) -> Vec<(DeliveryId, Micros)> {
    let done = ChangeAnswer::Results(vec![ChangeResult::Done]);
    let of_kind = facts.changes.values().filter(|change| change.begun.what.change == kind);
    of_kind
        .filter_map(|change| {
            let answer = change.answer.filter(|answer| *answer.what == done)?;
            let ChangeRequested { message, recipients, .. } = change.begun.what;
            let delivery = DeliveryId { message: *message, recipient: recipients[0] };
            facts.acknowledged.contains_key(message).then_some((delivery, answer.at))
        })
        .collect()
}

/// Sends a delivery shortly after `at`.
fn send(history: &History, delivery: DeliveryId, at: Micros) -> Option<History> {
    let address = facts(history).recipients(delivery.message)?[delivery.recipient as usize].clone();
    let transaction = u64::MAX;
    let message = Some(delivery.message);
    let mut records = history.records.clone();
    let whats = [
        What::Mail(Mail { transaction, source: "192.0.2.21".into(), node: Some(NodeId(21)), message }),
        What::Rcpt(Rcpt { transaction, recipient: address, code: 451 }),
        What::Closed(Closed { transaction }),
    ];
    records.extend((1..).zip(whats).map(|(step, what)| Record { at: Micros(at.0 + step), what }));
    Some(History::new(records))
}

fn send_after_cancel(history: &History, pick: usize) -> Option<History> {
    let (delivery, at) = choose(&answered_as_done(&facts(history), Change::Cancel), pick)?;
    send(history, delivery, at)
}

fn cancel_ends_otherwise(history: &History, pick: usize) -> Option<History> {
    let (cancelled, _) = choose(&answered_as_done(&facts(history), Change::Cancel), pick)?;
    let mut mutated = history.clone();
    for record in &mut mutated.records {
        if let What::Event(Event { kind: EventKind::Ended { delivery, state }, .. }) = &mut record.what
            && *delivery == cancelled
        {
            *state = FinalState::Expired;
        }
    }
    Some(mutated)
}

fn send_while_held(history: &History, pick: usize) -> Option<History> {
    let (delivery, at) = choose(&answered_as_done(&facts(history), Change::Hold), pick)?;
    send(history, delivery, at)
}

/// The positions of attempts that left their deliveries held, each read once.
fn held_after_attempt(history: &History) -> Vec<usize> {
    let facts = facts(history);
    events_read_once(history, |kind| {
        matches!(kind, EventKind::Attempt(Attempt { delivery, next: NextState::Held, .. })
            if facts.acknowledged.contains_key(&delivery.message))
    })
}

fn forget_hold(history: &History, pick: usize) -> Option<History> {
    edit(history, &held_after_attempt(history), pick, |what| {
        if let What::Event(Event { kind: EventKind::Attempt(attempt), .. }) = what {
            attempt.next = NextState::Retry;
        }
    })
}

fn send_after_hold(history: &History, pick: usize) -> Option<History> {
    let held = &history.records[choose(&held_after_attempt(history), pick)?];
    send(history, delivery_of(&event(&held.what)?.kind)?, held.at)
}

/// The positions of submissions whose messages were sent, and when that was first.
fn sent(facts: &Facts<'_>) -> Vec<(usize, Micros)> {
    let mut first = BTreeMap::<MessageId, Micros>::new();
    for transaction in facts.transactions.values() {
        let at =
            first.entry(transaction.id().expect("the id is known at the end")).or_insert(transaction.mail.at);
        *at = transaction.mail.at.min(*at);
    }
    let sent = facts.submissions.values().filter_map(|submission| {
        let at = first.get(&submission.accepted_as()?)?;
        Some((submission.begun.number - 1, *at))
    });
    sent.collect()
}

fn too_early(history: &History, pick: usize) -> Option<History> {
    let facts = facts(history);
    // Whose time somebody overruled may be sent at once.
    let overruled: BTreeSet<MessageId> =
        facts.changes.values().map(|change| change.begun.what.message).collect();
    let is_overruled = |place: &usize| {
        let submission = facts.submissions.values().find(|submission| submission.begun.number - 1 == *place);
        submission.and_then(|it| it.accepted_as()).is_some_and(|message| overruled.contains(&message))
    };
    let sent: Vec<_> = sent(&facts).into_iter().filter(|(place, _)| !is_overruled(place)).collect();
    let (place, at) = choose(&sent, pick)?;
    edit(history, &[place], 0, |what| {
        if let What::Submitted(submitted) = what {
            submitted.not_before = Some(Micros(at.0 + 1));
        }
    })
}

fn too_late(history: &History, pick: usize) -> Option<History> {
    let (place, at) = choose(&sent(&facts(history)), pick)?;
    edit(history, &[place], 0, |what| {
        if let What::Submitted(submitted) = what {
            (submitted.not_before, submitted.deadline) = (None, Some(Micros(at.0 - 1)));
        }
    })
}

fn messages(history: &History) -> Vec<usize> {
    places(history, |what| matches!(what, What::Message(_)))
}

fn alter_body(history: &History, pick: usize) -> Option<History> {
    edit(history, &messages(history), pick, |what| {
        if let What::Message(message) = what {
            message.content_hash = Some(u64::MAX);
        }
    })
}

fn mix_bodies(history: &History, pick: usize) -> Option<History> {
    let facts = facts(history);
    let of_acknowledged = |what: &What| match what {
        What::Message(message) => message.message.is_some_and(|id| facts.acknowledged.contains_key(&id)),
        _ => false,
    };
    let places = places(history, of_acknowledged);
    let What::Message(Message { token: own, .. }) = &history.records[choose(&places, pick)?].what else {
        return None;
    };
    let other = facts.submissions_by_token.keys().find(|token| Some(**token) != own.as_deref())?;
    edit(history, &places, pick, |what| {
        if let What::Message(message) = what {
            message.token = Some((*other).to_owned());
        }
    })
}

/// Changes every reading of the event that an acknowledged message was accepted.
fn change_accepted(
    history: &History,
    pick: usize,
    change: impl Fn(&mut TenantId, &mut Vec<String>),
) -> Option<History> {
    let all: Vec<MessageId> = acknowledged(history).into_iter().collect();
    let changed = choose(&all, pick)?;
    let mut mutated = history.clone();
    for record in &mut mutated.records {
        if let What::Event(Event { kind: EventKind::Accepted { message, tenant, recipients }, .. }) =
            &mut record.what
            && *message == changed
        {
            change(tenant, recipients);
        }
    }
    Some(mutated)
}

fn wrong_tenant(history: &History, pick: usize) -> Option<History> {
    change_accepted(history, pick, |tenant, _| tenant.0 += 1)
}

fn lose_recipient(history: &History, pick: usize) -> Option<History> {
    change_accepted(history, pick, |_, recipients| {
        recipients.pop();
    })
}

fn replica_differs(history: &History, pick: usize) -> Option<History> {
    edit(history, &places(history, |what| matches!(what, What::StateHash(_))), pick, |what| {
        if let What::StateHash(hash) = what {
            hash.hash += 1;
        }
    })
}

fn count_twice(history: &History, pick: usize) -> Option<History> {
    edit(history, &places(history, |what| matches!(what, What::Counts(_))), pick, |what| {
        if let What::Counts(counts) = what {
            counts.accepted += 1;
            counts.delivered += 1;
        }
    })
}

fn miscount_open(history: &History, pick: usize) -> Option<History> {
    let counts = |what: &What| matches!(what, What::Open(open) if !open.tenants.is_empty());
    edit(history, &places(history, counts), pick, |what| {
        if let What::Open(open) = what {
            open.tenants.pop();
            open.tenants.push(OpenOfTenant { tenant: TenantId(9), open: 1 });
        }
    })
}

fn forget_answer(history: &History, pick: usize) -> Option<History> {
    let place = choose(&places(history, |what| matches!(what, What::SubmitAnswered(_))), pick)?;
    let mut mutated = history.clone();
    mutated.records.remove(place);
    Some(mutated)
}

fn late_answer(history: &History, pick: usize) -> Option<History> {
    let place = choose(&places(history, |what| matches!(what, What::SubmitAnswered(_))), pick)?;
    let mut records = history.records.clone();
    records[place].at.0 += 7_000_000;
    Some(History::new(records))
}

fn forget_change_answer(history: &History, pick: usize) -> Option<History> {
    let place = choose(&places(history, |what| matches!(what, What::ChangeAnswered(_))), pick)?;
    let mut mutated = history.clone();
    mutated.records.remove(place);
    Some(mutated)
}
