//! For each invariant: the violation, its nearest legal neighbour, and what cannot be known.

use postroad_core::{
    DeliveryId, Epoch, FinalState, GroupId, MessageId, NodeId, OutcomeKind, SourceId, TenantId,
};
use postroad_oracle::{Bounds, Invariant, Micros, Phase, What, history::*, judge};

use crate::build::{DELIVERED, Script, attempt, delivery, id, submitted};

#[derive(Clone, Copy, Debug)]
enum Expected {
    Holds,
    /// Violated once, with this in the sentence.
    Violated(&'static str),
    /// Violated more than once, the first time with this in the sentence.
    ViolatedOften(&'static str),
    /// Nothing is violated, and something could not be judged.
    Undecided,
}

use Expected::{Holds, Undecided, Violated, ViolatedOften};

#[track_caller]
fn check(invariant: Invariant, script: Script, expected: Expected) {
    let history = script.history();
    let verdict = judge(&history, &Bounds::default()).expect("the history does not contradict itself");
    let judgement = verdict.judgements.iter().find(|judgement| judgement.invariant == invariant);
    let judgement = judgement.expect("every invariant has a judgement");
    let violations = &judgement.violations;
    match expected {
        Holds => assert!(violations.is_empty() && judgement.judged > 0, "{judgement}\n{violations:?}"),
        Undecided => assert!(violations.is_empty() && judgement.undecided > 0, "{judgement}\n{violations:?}"),
        Violated(part) | ViolatedOften(part) => {
            let is_once = matches!(expected, Violated(_));
            assert_eq!(violations.len() == 1, is_once, "{judgement}\n{violations:?}");
            assert!(!violations.is_empty(), "{judgement}");
            assert!(violations[0].sentence.contains(part), "{}", violations[0]);
            assert!(!violations[0].proof.is_empty());
            assert!(violations[0].proof.iter().all(|number| (1..=history.records.len()).contains(number)));
        }
    }
}

fn script() -> Script {
    Script::new()
}

/// Message 1 was stored and delivered.
fn done() -> Script {
    script().stored(1).copy(1, 1).delivered(1, 1)
}

fn of_group(group: u16) -> MessageId {
    MessageId::new(id(1).at(), GroupId(group), 1)
}

const UNKNOWN: OutcomeKind = OutcomeKind::Unknown;

#[test]
fn i1_an_acknowledged_message_ends() {
    #[track_caller]
    fn check_i1(script: Script, expected: Expected) {
        check(Invariant::NoLoss, script, expected);
    }
    check_i1(done().quiet(), Holds);
    // Nothing is known of it.
    check_i1(
        script().stored(2).submit(1).accept(1).copy(2, 2).delivered(2, 1).quiet(),
        Violated("no event says"),
    );
    check_i1(script().stored(1).quiet(), Violated("has not ended"));
    check_i1(script().stored(1), Undecided);
    // Events were dropped: some after those that were read, or only these.
    let gap = |through| EventKind::Gap { through };
    check_i1(script().stored(1).numbered_event(GroupId(1), 1, gap(8)).quiet(), Undecided);
    check_i1(script().stored(1).numbered_event(GroupId(1), 1, gap(1)).quiet(), Violated("has not ended"));
    // A bound of liveness: before, at, and after it.
    let liveness = Phase::Liveness { within: Micros(3_000_000) };
    check_i1(script().stored(1).phase(liveness).wait_secs(2).quiet(), Violated("has not ended"));
    check_i1(script().stored(1).phase(liveness).wait_secs(2).node(1, Role::Ingress, true), Undecided);
    check_i1(
        script().stored(1).phase(liveness).wait_secs(3).node(1, Role::Ingress, true),
        Violated("has not ended"),
    );
    check_i1(script().stored(1).copy(1, 1).phase(liveness).wait_secs(2).delivered(1, 1), Holds);
    check_i1(
        script().stored(1).copy(1, 1).phase(liveness).wait_secs(4).delivered(1, 1),
        Violated("only after"),
    );
    // More faults: no longer complete.
    check_i1(script().stored(1).phase(liveness).wait_secs(4).phase(Phase::Safety), Undecided);
    // Delivered is more than a word.
    check_i1(
        script().stored(1).mail(1, 21).rcpt(1).message(1, 1, 451).delivered(1, 1),
        Violated("no receiver has a copy"),
    );
    check_i1(
        script().stored(1).mail(1, 21).rcpt(1).message(1, 1, 250).reply(1, false).delivered(1, 1),
        Holds,
    );
    // No transaction at all: the receivers may not have been recorded.
    check_i1(script().stored(1).delivered(1, 1).quiet(), Undecided);
    check_i1(script().stored(1).phase(liveness).wait_secs(4).delivered(1, 1).quiet(), Violated("only after"));
    check_i1(script().stored(1).cancelled(1).quiet(), Holds);
    // Not acknowledged: unknown, never absent, and never lost.
    let unanswered =
        |answer| script().stored(2).copy(2, 2).delivered(2, 1).submit(1).answer(1, answer).quiet();
    check_i1(unanswered(SubmitAnswer::TimedOut), Holds);
    check_i1(unanswered(SubmitAnswer::Failed { reply: "451 later".into() }), Holds);
    // Held deliveries wait for a person.
    let held = || script().stored(1).event(EventKind::Held { delivery: delivery(1, 0) });
    check_i1(held().quiet(), Holds);
    check_i1(
        held().event(EventKind::Released { delivery: delivery(1, 0) }).quiet(),
        Violated("has not ended"),
    );
    // Events may be gone.
    check_i1(script().stored(1).event(EventKind::Gap { through: 9 }).quiet(), Undecided);
    // Without events only receivers can say.
    let silent = || script().submit(1).accept(1);
    check_i1(silent().copy(1, 1).quiet(), Holds);
    check_i1(silent().quiet(), Violated("no receiver has a copy"));
    check_i1(silent(), Undecided);
}

#[test]
fn i2_what_is_stored_was_submitted_and_not_refused() {
    #[track_caller]
    fn check_i2(script: Script, expected: Expected) {
        check(Invariant::NoGhosts, script, expected);
    }
    check_i2(done(), Holds);
    check_i2(script().submit(1).refuse(1).copy(1, 1), Violated("was refused"));
    check_i2(script().submit(1).refuse(1).accepted(1), Violated("no submission"));
    check_i2(script().submit(1).fail(1).copy(1, 1).accepted(1), Holds);
    check_i2(script().submit(1).answer(1, SubmitAnswer::ConnectionLost).copy(1, 1), Holds);
    check_i2(script().submit(1).copy(1, 1), Holds);
    check_i2(script().copy(1, 1), Violated("nobody submitted it"));
    check_i2(script().accepted(1), Violated("no submission"));
    // Known ids.
    let known = |answer| {
        let begun = Submitted { message: Some(id(1)), ..submitted(1) };
        script().push(What::Submitted(begun)).answer(1, answer)
    };
    check_i2(known(SubmitAnswer::Refused { reply: "550".into() }).accepted(1), Violated("was refused"));
    check_i2(known(SubmitAnswer::TimedOut).accepted(1), Holds);
    // One submission, two messages.
    let under_two = |script: Script| {
        let other = Message {
            transaction: 2,
            message: Some(id(9)),
            token: Some("t1".into()),
            content_hash: None,
            code: 250,
        };
        script.copy(1, 1).mail(2, 21).rcpt(2).push(What::Message(other))
    };
    check_i2(under_two(script().submit(1).accept(1)), Violated("too often"));
    check_i2(under_two(script().submit(1).fail(1)), Violated("too often"));
    let again =
        || script().submit(1).fail(1).push(What::Submitted(Submitted { token: "t1".into(), ..submitted(2) }));
    check_i2(under_two(again().answer(2, SubmitAnswer::Accepted { message: id(1) })), Holds);
    check_i2(
        under_two(again().answer(2, SubmitAnswer::Refused { reply: "550".into() })),
        Violated("too often"),
    );
    // A stranger's address.
    let stranger = Rcpt { transaction: 1, recipient: "b@x.test".into(), code: 250 };
    check_i2(
        script().stored(1).mail(1, 21).push(What::Rcpt(stranger)).message(1, 1, 250),
        Violated("not in its envelope"),
    );
}

#[test]
fn i3_events_have_no_gap_and_a_delivery_ends_once() {
    #[track_caller]
    fn check_i3(script: Script, expected: Expected) {
        check(Invariant::OneEnd, script, expected);
    }
    let cancelled = || EventKind::Ended { delivery: delivery(1, 0), state: FinalState::Cancelled };
    let group = GroupId(1);
    check_i3(done(), Holds);
    check_i3(done().event(cancelled()), Violated("ended twice"));
    check_i3(done().delivered(1, 1), Violated("ended twice"));
    check_i3(done().event(EventKind::Held { delivery: delivery(1, 0) }), Violated("after its end"));
    check_i3(done().attempt(1, 2, UNKNOWN, NextState::Unchanged), Violated("after its end"));
    // Numbers.
    check_i3(script().numbered_event(group, 2, cancelled()), ViolatedOften("1 is missing"));
    check_i3(script().accepted(1).numbered_event(group, 3, cancelled()), Violated("2 is missing"));
    check_i3(script().accepted(1).numbered_event(GroupId(2), 1, EventKind::Gap { through: 8 }), Holds);
    check_i3(
        script().accepted(1).numbered_event(group, 2, EventKind::Gap { through: 8 }).numbered_event(
            group,
            9,
            cancelled(),
        ),
        Holds,
    );
    // The gap begins with an event that was read, and has others.
    let gap = |through| script().accepted(1).numbered_event(group, 1, EventKind::Gap { through });
    let of_another = EventKind::Held { delivery: delivery(2, 0) };
    check_i3(gap(8).numbered_event(group, 9, of_another.clone()), Holds);
    check_i3(gap(1).numbered_event(group, 2, of_another), Violated("before its message was accepted"));
    // Read again: the same is the same event, another is not.
    check_i3(script().accepted(1).event(cancelled()).numbered_event(group, 2, cancelled()), Holds);
    check_i3(
        script().accepted(1).event(cancelled()).numbered_event(
            group,
            2,
            EventKind::Held { delivery: delivery(1, 0) },
        ),
        Violated("two contents"),
    );
    // Order.
    check_i3(script().event(cancelled()).accepted(1), Violated("before its message was accepted"));
    check_i3(script().accepted(1).accepted(1), Violated("accepted twice"));
    let second = EventKind::Held { delivery: delivery(1, 1) };
    check_i3(script().accepted(1).event(second), Violated("before its message was accepted for it"));
    // Attempts: a reclaimed one may still be reported, once.
    let soft = OutcomeKind::Soft;
    check_i3(script().accepted(1).attempt(1, 1, UNKNOWN, NextState::Retry).delivered(1, 1), Holds);
    check_i3(
        script().accepted(1).attempt(1, 1, soft, NextState::Retry).attempt(1, 1, soft, NextState::Retry),
        Violated("ended twice"),
    );
    check_i3(
        script()
            .accepted(1)
            .attempt(1, 1, UNKNOWN, NextState::Retry)
            .attempt(1, 1, soft, NextState::Unchanged)
            .attempt(1, 1, soft, NextState::Unchanged),
        Violated("ended twice"),
    );
    check_i3(script().accepted(1).attempt(1, 3, soft, NextState::Retry), Holds);
}

#[test]
fn i4_a_second_copy_is_explained() {
    #[track_caller]
    fn check_i4(script: Script, expected: Expected) {
        check(Invariant::ExplainedCopies, script, expected);
    }
    let unread = || script().stored(1).mail(1, 21).rcpt(1).message(1, 1, 250).reply(1, false);
    check_i4(done().quiet(), Holds);
    check_i4(done().copy(2, 1).quiet(), Violated("0 attempts ended"));
    check_i4(done().copy(2, 1), Undecided);
    check_i4(unread().attempt(1, 1, UNKNOWN, NextState::Retry).copy(2, 1).delivered(1, 2).quiet(), Holds);
    check_i4(
        unread().attempt(1, 1, UNKNOWN, NextState::Retry).copy(2, 1).copy(3, 1).quiet(),
        Violated("3 copies"),
    );
    // The attempt says unknown, but nothing failed.
    let read = || script().stored(1).copy(1, 1).attempt(1, 1, UNKNOWN, NextState::Retry);
    check_i4(read().copy(2, 1).delivered(1, 2).quiet(), Violated("no node and no connection failed"));
    check_i4(read().node(21, Role::Outbound, false).copy(2, 1).delivered(1, 2).quiet(), Holds);
    check_i4(read().fault(&[21], true).copy(2, 1).delivered(1, 2).quiet(), Holds);
    check_i4(read().copy(2, 1).node(21, Role::Outbound, false).quiet(), Violated("no node"));
    // Not known whether the reply was read: that may be it.
    let open =
        script().stored(1).mail(1, 21).rcpt(1).message(1, 1, 250).attempt(1, 1, UNKNOWN, NextState::Retry);
    check_i4(open.copy(2, 1).quiet(), Holds);
    // A refusal is no copy.
    check_i4(script().stored(1).mail(1, 21).rcpt(1).message(1, 1, 451).copy(2, 1).quiet(), Holds);
    // Without events nothing explains it, and nothing says that it is not explained.
    check_i4(script().submit(1).accept(1).copy(1, 1).copy(2, 1).quiet(), Undecided);
    let other =
        Message { transaction: 2, message: Some(id(1)), token: None, content_hash: Some(7), code: 250 };
    let differs =
        unread().attempt(1, 1, UNKNOWN, NextState::Retry).mail(2, 21).rcpt(2).push(What::Message(other));
    check_i4(differs.quiet(), Violated("differ"));
}

#[test]
fn i5_one_node_at_a_time_and_no_old_epoch() {
    #[track_caller]
    fn check_i5(script: Script, expected: Expected) {
        check(Invariant::MutualExclusion, script, expected);
    }
    let first = || script().stored(1).mail(1, 21).rcpt(1);
    check_i5(first().message(1, 1, 250).mail(2, 22).rcpt(2).message(2, 1, 250), Holds);
    check_i5(first().mail(2, 22).rcpt(2).message(1, 1, 250).message(2, 1, 250), Violated("at a time"));
    check_i5(first().mail(2, 21).rcpt(2).message(1, 1, 250).message(2, 1, 250), Holds);
    // The connection of a dead node is open, and silent: it is not sending.
    let silent = Mail { transaction: 1, source: "192.0.2.21".into(), node: None, message: Some(id(1)) };
    let open = script().stored(1).push(What::Mail(silent)).rcpt(1).mail(2, 22).rcpt(2).message(2, 1, 250);
    check_i5(open.push(What::Closed(Closed { transaction: 1 })), Holds);
    // Epochs: message 2 was sent in epoch 6.
    let newer = |last: Attempt, before: Script| {
        let six = Attempt { epoch: Epoch(6), ..attempt(2, 1, OutcomeKind::Delivered, DELIVERED) };
        before.event(EventKind::Attempt(six)).event(EventKind::Attempt(last))
    };
    let two = || script().accepted(1).accepted(2);
    let delivered = attempt(1, 1, OutcomeKind::Delivered, DELIVERED);
    check_i5(newer(delivered.clone(), two()), Violated("epoch 5 of source 21, older than 6"));
    check_i5(newer(Attempt { epoch: Epoch(6), ..delivered }, two()), Holds);
    check_i5(newer(Attempt { source: SourceId(22), ..delivered }, two()), Holds);
    check_i5(newer(attempt(1, 1, UNKNOWN, NextState::Retry), two()), Holds);
    check_i5(newer(attempt(1, 1, OutcomeKind::Soft, NextState::Unchanged), two()), Holds);
    // Reclaimed before, so it is late.
    check_i5(newer(delivered, two().attempt(1, 1, UNKNOWN, NextState::Retry)), Holds);
}

#[test]
fn i5_a_source_is_used_by_one_node_at_a_time() {
    const SOURCE: &str = "192.0.2.99";
    #[track_caller]
    fn check_i5(script: Script, expected: Expected) {
        check(Invariant::MutualExclusion, script, expected);
    }
    let under = |number, node, epoch, outcome, next| {
        let (node, epoch) = (NodeId(node), Epoch(epoch));
        EventKind::Attempt(Attempt { node, epoch, ..attempt(number, 1, outcome, next) })
    };
    // Message `number` in the transaction of the same number.
    let sends = |script: Script, number, node| {
        script.mail_from(number, node, SOURCE).rcpt(number).message(number, number, 250)
    };
    let delivered = |script: Script, number, node, epoch| {
        sends(script, number, node).event(under(number, node, epoch, OutcomeKind::Delivered, DELIVERED))
    };
    let known = What::Source(SourceAddress { source: SourceId(21), address: SOURCE.into() });
    let stored = || script().push(known.clone()).stored(1).stored(2).stored(3);
    // Messages 1 and 2 of two nodes, and then message 3.
    let two_nodes = || delivered(delivered(stored(), 1, 21, 5), 2, 22, 6);
    check_i5(two_nodes().quiet(), Holds);
    check_i5(delivered(two_nodes(), 3, 22, 6).quiet(), Holds);
    check_i5(delivered(two_nodes(), 3, 21, 7).quiet(), Holds);
    let back = |epoch| {
        let reclaimed = under(3, 21, epoch, UNKNOWN, NextState::Retry);
        sends(two_nodes().event(reclaimed), 3, 21)
    };
    check_i5(back(5).quiet(), Violated("node 21 under epoch 5 later"));
    check_i5(back(7).quiet(), Holds);
    // It may be that of an attempt that was not read yet, or of another one that is known.
    check_i5(back(5), Holds);
    let another = Attempt { epoch: Epoch(7), ..attempt(3, 2, OutcomeKind::Delivered, DELIVERED) };
    check_i5(back(5).event(EventKind::Attempt(another)).quiet(), Holds);
    check_i5(back(5).event(EventKind::Gap { through: 99 }).quiet(), Undecided);
    // An attempt that its node had reported before is not the one.
    let soft = under(3, 22, 6, OutcomeKind::Soft, NextState::Retry);
    check_i5(sends(two_nodes().event(soft), 3, 22).quiet(), Undecided);
    // A final dot after another node began; what was never a message harms nobody.
    let dot_after = |second| {
        let begun = stored().mail_from(1, 21, SOURCE).rcpt(1).mail_from(2, 22, second);
        begun.message(1, 1, 250)
    };
    check_i5(dot_after(SOURCE), Violated("node 22 began to send from `192.0.2.99`"));
    check_i5(dot_after("192.0.2.98"), Holds);
    check_i5(stored().mail_from(1, 21, SOURCE).rcpt(1).mail_from(2, 22, SOURCE).rcpt(1), Holds);
    // An epoch has one node, also in another group, and a late report does not say which.
    let owners = |node, next| {
        let other = DeliveryId { message: of_group(2), recipient: 0 };
        let recipients = vec!["a@x.test".into()];
        let accepted = EventKind::Accepted { message: of_group(2), tenant: TenantId(1), recipients };
        let soft = attempt(1, 1, OutcomeKind::Soft, next);
        let soft = EventKind::Attempt(Attempt { delivery: other, node: NodeId(node), ..soft });
        done().event_of(GroupId(2), accepted).event_of(GroupId(2), soft)
    };
    check_i5(owners(21, NextState::Retry), Holds);
    check_i5(owners(22, NextState::Retry), Violated("nodes 21 and 22 sent from source 21 under epoch 5"));
    check_i5(owners(22, NextState::Unchanged), Holds);
}

#[test]
fn i7_nothing_is_sent_after_a_cancel() {
    #[track_caller]
    fn check_i7(script: Script, expected: Expected) {
        check(Invariant::Cancel, script, expected);
    }
    let asked = || script().stored(1).ask(1, 1, Change::Cancel);
    check_i7(asked().cancelled(1).result(1, ChangeResult::Done).quiet(), Holds);
    check_i7(asked().cancelled(1).result(1, ChangeResult::Done).copy(1, 1), Violated("cancelled at"));
    // Begun before the answer: it was under way.
    let under_way = asked().mail(1, 21).rcpt(1).cancelled(1).result(1, ChangeResult::Done);
    check_i7(under_way.message(1, 1, 250), Holds);
    check_i7(asked().result(1, ChangeResult::InFlight).copy(1, 1).delivered(1, 1), Holds);
    check_i7(asked().result(1, ChangeResult::Done).delivered(1, 1), Violated("ended as delivered"));
    check_i7(asked().result(1, ChangeResult::Done).quiet(), Violated("has no end"));
    check_i7(asked().result(1, ChangeResult::Done), Holds);
    check_i7(asked().result(1, ChangeResult::AlreadyEnded).quiet(), Violated("has no end"));
    check_i7(done().ask(1, 1, Change::Cancel).result(1, ChangeResult::AlreadyEnded).quiet(), Holds);
    // Unknown: it may be cancelled or not.
    let judged = || script().stored(2).ask(2, 2, Change::Cancel).cancelled(2).result(2, ChangeResult::Done);
    check_i7(
        judged().stored(1).ask(1, 1, Change::Cancel).change_answer(1, ChangeAnswer::TimedOut).copy(1, 1),
        Holds,
    );
    check_i7(judged().stored(1).ask(1, 1, Change::Cancel).copy(1, 1), Holds);
}

#[test]
fn i8_nothing_is_sent_too_early_too_late_or_held() {
    #[track_caller]
    fn check_i8(script: Script, expected: Expected) {
        check(Invariant::Hold, script, expected);
    }
    let timed = |not_before: Option<u64>, deadline: Option<u64>| {
        let (not_before, deadline) = (not_before.map(Micros), deadline.map(Micros));
        script().push(What::Submitted(Submitted { not_before, deadline, ..submitted(1) })).accept(1)
    };
    // `MAIL` is at 3 ms.
    check_i8(timed(Some(3000), None).copy(1, 1), Holds);
    check_i8(timed(Some(3001), None).copy(1, 1), Violated("from 0.003001 s on"));
    check_i8(timed(None, Some(3000)).copy(1, 1), Holds);
    check_i8(timed(None, Some(2999)).copy(1, 1), Violated("until 0.002999 s"));
    // Who asks for one of these wants it at once; what else is asked changes nothing.
    check_i8(timed(Some(9000), None).ask(1, 1, Change::Retry).copy(1, 1), Holds);
    check_i8(timed(Some(9000), None).ask(1, 1, Change::Release).copy(1, 1), Holds);
    check_i8(timed(Some(9000), None).ask(1, 1, Change::Cancel).copy(1, 1), Violated("from 0.009000 s on"));
    // Held.
    let held = || script().stored(1).ask(1, 1, Change::Hold);
    let release = |script: Script| script.ask(2, 1, Change::Release);
    check_i8(held().result(1, ChangeResult::Done).copy(1, 1), Violated("is held since"));
    check_i8(release(held().result(1, ChangeResult::Done)).copy(1, 1), Holds);
    check_i8(
        release(held().result(1, ChangeResult::Done)).change_answer(2, ChangeAnswer::Failed).copy(1, 1),
        Holds,
    );
    check_i8(held().mail(1, 21).result(1, ChangeResult::Done).rcpt(1).message(1, 1, 250), Holds);
    check_i8(held().result(1, ChangeResult::InFlight).copy(1, 1), Holds);
    check_i8(held().change_answer(1, ChangeAnswer::TimedOut).copy(1, 1), Holds);
    // Whose message it is nobody knows.
    check_i8(script().copy(1, 1), Undecided);
}

#[test]
fn i8_a_hold_asked_for_during_an_attempt_takes_effect_after_it() {
    #[track_caller]
    fn check_i8(script: Script, expected: Expected) {
        check(Invariant::Hold, script, expected);
    }
    let soft = OutcomeKind::Soft;
    let requested = |change| EventKind::Requested { delivery: delivery(1, 0), change };
    let in_flight = || {
        let hold = script().stored(1).mail(1, 21).rcpt(1).ask(1, 1, Change::Hold);
        hold.event(requested(Change::Hold)).result(1, ChangeResult::InFlight).message(1, 1, 451)
    };
    let held = || in_flight().attempt(1, 1, soft, NextState::Held);
    check_i8(held().quiet(), Holds);
    check_i8(in_flight().delivered(1, 1).quiet(), Holds);
    // The hold was forgotten, whether or not anything was sent after it.
    check_i8(in_flight().attempt(1, 1, soft, NextState::Retry), Violated("was forgotten"));
    check_i8(in_flight().attempt(1, 1, UNKNOWN, NextState::Retry).copy(2, 1), Violated("was forgotten"));
    // The report of another attempt is late, and ends nothing.
    check_i8(in_flight().attempt(1, 1, soft, NextState::Unchanged), Holds);
    // The hold was taken back, or the delivery is to be cancelled.
    let taken_back = |change| in_flight().event(requested(change)).attempt(1, 1, soft, NextState::Retry);
    check_i8(taken_back(Change::Release), Holds);
    check_i8(taken_back(Change::Cancel), Holds);
    // It took effect, and another attempt began.
    check_i8(held().copy(2, 1), Violated("is held since"));
    check_i8(held().ask(2, 1, Change::Release).copy(2, 1), Holds);
    check_i8(held().delivered(1, 2), Violated("attempt 2 ended before anybody released it"));
    check_i8(held().attempt(1, 1, soft, NextState::Retry), Violated("attempt 1 ended before"));
    check_i8(held().event(EventKind::Released { delivery: delivery(1, 0) }).delivered(1, 2), Holds);
    // The report of the attempt that was held came late, and says how it ended.
    check_i8(held().delivered(1, 1), Holds);
    // Its attempt was given back.
    let given_back = || in_flight().event(EventKind::Held { delivery: delivery(1, 0) });
    check_i8(given_back().copy(2, 1), Violated("is held since"));
    check_i8(given_back().quiet(), Holds);
    // A release that failed before may take effect after the hold.
    let release = script().stored(1).ask(2, 1, Change::Release).change_answer(2, ChangeAnswer::TimedOut);
    check_i8(release.ask(1, 1, Change::Hold).result(1, ChangeResult::Done).copy(1, 1), Holds);
    let release = script().stored(1).ask(2, 1, Change::Release).result(2, ChangeResult::Unchanged);
    check_i8(
        release.ask(1, 1, Change::Hold).result(1, ChangeResult::Done).copy(1, 1),
        Violated("is held since"),
    );
    // Nobody wrote down that it was asked for.
    let unwritten = || script().stored(1).ask(1, 1, Change::Hold).result(1, ChangeResult::InFlight);
    check_i8(unwritten().delivered(1, 1).quiet(), Violated("no event says that it was asked for"));
    check_i8(unwritten().copy(1, 1), Holds);
    // A release may be among dropped events.
    check_i8(in_flight().event(EventKind::Gap { through: 9 }).attempt(1, 1, soft, NextState::Retry), Holds);
}

#[test]
fn i10_what_arrives_is_what_was_submitted() {
    #[track_caller]
    fn check_i10(script: Script, expected: Expected) {
        check(Invariant::Integrity, script, expected);
    }
    let arrives = |message: Option<u64>, token: Option<&str>, content_hash| {
        let (message, token) = (message.map(id), token.map(Into::into));
        let message = Message { transaction: 1, message, token, content_hash, code: 250 };
        move |script: Script| script.mail(1, 21).rcpt(1).push(What::Message(message))
    };
    check_i10(done(), Holds);
    check_i10(arrives(Some(1), Some("t1"), Some(9))(script().stored(1)), Violated("hash 0000000000000001"));
    check_i10(arrives(Some(1), Some("t1"), None)(script().stored(1)), Holds);
    check_i10(arrives(Some(1), Some("t2"), None)(script().stored(1).stored(2)), Violated("with token `t1`"));
    check_i10(arrives(None, None, Some(9))(script().submit(1).accept(1)), Undecided);
    // Unknown to its client: the token tells what it must be.
    check_i10(arrives(Some(1), Some("t1"), Some(9))(script().submit(1).fail(1)), Violated("hash"));
    check_i10(arrives(Some(1), Some("t1"), Some(1))(script().submit(1).fail(1)), Holds);
    // Its event.
    let accepted = |tenant: u32, to: &str| {
        let recipients = vec![to.into()];
        let event = EventKind::Accepted { message: id(1), tenant: TenantId(tenant), recipients };
        script().submit(1).event(event).accept(1)
    };
    check_i10(accepted(1, "a@x.test"), Holds);
    check_i10(accepted(2, "a@x.test"), Violated("one of tenant 2"));
    check_i10(accepted(1, "b@x.test"), Violated("another envelope"));
    // One id for two messages, and for one message that was submitted again.
    let same = |token: &str| {
        let again = Submitted { token: token.into(), content_hash: None, ..submitted(2) };
        script().stored(1).push(What::Submitted(again)).answer(2, SubmitAnswer::Accepted { message: id(1) })
    };
    check_i10(same("t2"), Violated("with one id"));
    check_i10(same("t1"), Holds);
}

#[test]
fn i11_replicas_agree() {
    #[track_caller]
    fn check_i11(script: Script, expected: Expected) {
        check(Invariant::Agreement, script, expected);
    }
    check_i11(script().hash((1, 7), 11, 5).hash((1, 7), 12, 5), Holds);
    check_i11(
        script().hash((1, 7), 11, 5).hash((1, 7), 12, 6),
        Violated("nodes 11 and 12 differ after entry 7"),
    );
    check_i11(script().hash((1, 7), 11, 5).hash((1, 8), 12, 6), Holds);
    check_i11(script().hash((1, 7), 11, 5).hash((2, 7), 12, 6), Holds);
    check_i11(script().hash((1, 7), 11, 5).hash((1, 7), 11, 6), Violated("nodes 11 and 11"));
}

#[test]
fn i12_everybody_counts_the_same() {
    #[track_caller]
    fn check_i12(script: Script, expected: Expected) {
        check(Invariant::Conservation, script, expected);
    }
    check_i12(done().quiet().counts(Counter::Ledger, [1, 0, 1]), Holds);
    check_i12(done().quiet().counts(Counter::Ledger, [1, 0, 0]), ViolatedOften("0 in some state"));
    check_i12(
        done().quiet().counts(Counter::Metrics, [2, 1, 1]),
        ViolatedOften("the metrics count 2 accepted, the events 1"),
    );
    check_i12(done().counts(Counter::Ledger, [9, 9, 9]), Undecided);
    // Only the last counts after all is quiet are judged.
    check_i12(done().quiet().counts(Counter::Ledger, [1, 1, 0]).counts(Counter::Ledger, [1, 0, 1]), Holds);
    check_i12(script().quiet().counts(Counter::Ledger, [3, 1, 2]), Holds);
    check_i12(script().quiet().counts(Counter::Ledger, [3, 1, 1]), Violated("3 accepted recipients, and 2"));
    check_i12(done().event(EventKind::Gap { through: 9 }).quiet().counts(Counter::Ledger, [9, 0, 9]), Holds);
}

#[test]
fn i12_a_replica_counts_what_its_events_leave_open() {
    #[track_caller]
    fn check_i12(script: Script, expected: Expected) {
        check(Invariant::Conservation, script, expected);
    }
    // Event 1 accepts message 1, 2 ends it, and 3 accepts message 2.
    let two = || done().stored(2);
    check_i12(two().open(11, 1, 1).open(12, 2, 0).open(13, 3, 1), Holds);
    check_i12(two().open(11, 0, 0), Holds);
    check_i12(
        two().open(11, 2, 1),
        Violated("node 11 counts 1 open deliveries in group 1 after event 2, the events 0"),
    );
    check_i12(two().open(11, 1, 1).open(12, 3, 0), Violated("node 12 counts 0 open"));
    // A record may be older than the events that it counts.
    check_i12(script().open(11, 2, 0).stored(1).copy(1, 1).delivered(1, 1), Holds);
    check_i12(script().open(11, 2, 5).stored(1).copy(1, 1).delivered(1, 1), Violated("counts 5 open"));
    // Not read yet, or dropped.
    check_i12(two().open(11, 4, 9), Undecided);
    check_i12(two().event(EventKind::Gap { through: 9 }).open(11, 2, 9), Undecided);
}

#[test]
fn i12_clients_know_what_was_accepted() {
    #[track_caller]
    fn check_i12(script: Script, expected: Expected) {
        check(Invariant::Conservation, script, expected);
    }
    check_i12(done().quiet(), Holds);
    // Acknowledged, and no event says that it was accepted.
    check_i12(done().submit(2).accept(2).quiet(), Violated("accepted recipients, its clients 2 to 2"));
    // Accepted, and refused to its client; or without a known outcome.
    check_i12(
        done().submit(2).accepted(2).refuse(2).quiet(),
        Violated("2 accepted recipients, its clients 1 to 1"),
    );
    check_i12(done().submit(2).accepted(2).fail(2).quiet(), Holds);
    check_i12(done().submit(2).fail(2).quiet(), Holds);
    check_i12(
        done().submit(2).fail(2).accepted(2).accepted(3).quiet(),
        Violated("3 accepted recipients, its clients 1 to 2"),
    );
    // An id that is submitted twice is stored once.
    let known = |submission| {
        What::Submitted(Submitted { message: Some(id(2)), ..Submitted { submission, ..submitted(2) } })
    };
    let twice =
        done().push(known(2)).fail(2).push(known(3)).answer(3, SubmitAnswer::Accepted { message: id(2) });
    check_i12(twice.clone().accepted(2).quiet(), Holds);
    check_i12(twice.accepted(2).accepted(3).quiet(), Violated("3 accepted recipients, its clients 2 to 2"));
}

#[test]
fn i14_every_request_is_answered() {
    #[track_caller]
    fn check_i14(script: Script, expected: Expected) {
        check(Invariant::Answered, script, expected);
    }
    let later = |script: Script, seconds| script.wait_secs(seconds).node(12, Role::Queue, true);
    check_i14(script().submit(1).wait_secs(5).fail(1), Holds);
    check_i14(script().submit(1).wait_secs(6).fail(1), Violated("was answered after 6.001000 s"));
    check_i14(later(script().submit(1), 7), Violated("submission 1 has no answer after"));
    check_i14(later(script().submit(1), 4), Undecided);
    check_i14(script().submit(1).wait_secs(3).answer(1, SubmitAnswer::TimedOut), Undecided);
    check_i14(script().submit(1).wait_secs(8).answer(1, SubmitAnswer::TimedOut), Violated("has no answer"));
    check_i14(script().submit(1).answer(1, SubmitAnswer::ConnectionLost), Holds);
    // The node that was asked cannot answer; another one's fault is no excuse.
    let down = |node, role| script().node(node, role, false).submit(1).wait_secs(8).fail(1);
    check_i14(down(1, Role::Ingress), Undecided);
    check_i14(down(2, Role::Ingress), Violated("was answered after"));
    check_i14(down(11, Role::Queue), Violated("was answered after"));
    let cut = |nodes: &[u64]| script().fault(nodes, true).submit(1).wait_secs(8).fail(1);
    check_i14(cut(&[1]), Undecided);
    check_i14(cut(&[]), Undecided);
    check_i14(cut(&[11]), Violated("was answered after"));
    check_i14(
        script().fault(&[1], true).fault(&[1], false).submit(1).wait_secs(8).fail(1),
        Violated("was answered"),
    );
    let asked = || script().stored(1).ask(1, 1, Change::Hold);
    check_i14(asked().wait_secs(7).result(1, ChangeResult::Done), Violated("change 1 was answered"));
    check_i14(asked().result(1, ChangeResult::Done), Holds);
}

#[test]
fn i14_submissions_are_quick_away_from_faults() {
    let run = |before: Script, slow: u64| {
        (1..=200).fold(before, |script, number| {
            let script = script.submit(number);
            if number <= slow { script.wait_secs(2).fail(number) } else { script.fail(number) }
        })
    };
    let check_i14 = |script, expected| check(Invariant::Answered, script, expected);
    check_i14(run(script(), 1), Holds);
    check_i14(run(script(), 2), Holds);
    check_i14(run(script(), 3), Violated("99th percentile"));
    // All of the slow ones are within five seconds of a fault, or without a majority.
    check_i14(run(script().node(11, Role::Queue, false), 2), Holds);
    check_i14(run(script().node(11, Role::Queue, true).node(11, Role::Queue, false), 50), Holds);
    check_i14(run(script().fault(&[11], true), 50), Holds);
    check_i14(run(script().fault(&[11], true).fault(&[11], false), 50), Violated("99th percentile"));
}

#[test]
fn a_history_that_contradicts_itself_is_not_judged() {
    #[track_caller]
    fn check(script: Script, expected: &str) {
        let error = judge(&script.history(), &Bounds::default()).expect_err("it contradicts itself");
        assert_eq!(error.to_string(), expected);
    }
    check(script().accept(1), "record 1: the submission has not begun");
    check(script().submit(1).submit(1), "record 2: the submission has begun before");
    check(script().submit(1).accept(1).fail(1), "record 3: the submission has an answer");
    check(script().rcpt(1), "record 1: the transaction has not begun");
    check(script().mail(1, 21).mail(1, 21), "record 2: the transaction has begun before");
    check(script().copy(1, 1).message(1, 1, 250), "record 5: the transaction has ended");
    check(script().mail(1, 21).reply(1, true), "record 2: the transaction has no message");
    check(script().result(1, ChangeResult::Done), "record 1: the change has not begun");
    let answer = ChangeAnswer::Results(vec![ChangeResult::Done; 2]);
    check(
        script().ask(1, 1, Change::Hold).change_answer(1, answer),
        "record 2: the answer does not have one result for each recipient",
    );
}

#[test]
fn a_node_may_be_unknown_to_a_receiver() {
    let mail = |transaction, source: &str| {
        What::Mail(Mail { transaction, source: source.into(), node: None::<NodeId>, message: Some(id(1)) })
    };
    let two = |other: &str| {
        let script = script().stored(1).push(mail(1, "192.0.2.1")).rcpt(1).push(mail(2, other)).rcpt(2);
        script.message(1, 1, 250)
    };
    check(Invariant::MutualExclusion, two("192.0.2.2"), Violated("at a time"));
    check(Invariant::MutualExclusion, two("192.0.2.1"), Holds);
}
