//! The text form is read back as it was written, and nothing else is read.

use postroad_core::{AttemptNumber, Epoch, FinalState, GroupId, NodeId, OutcomeKind, SourceId, TenantId};
use postroad_oracle::{History, Micros, Phase, Record, What, history::*, text};

use crate::build::{Script, attempt, delivery, id, submitted};

/// One record of every kind.
fn every_kind() -> History {
    let whole = Submitted {
        message: Some(id(1)),
        not_before: Some(Micros(1)),
        deadline: Some(Micros(2)),
        content_hash: Some(u64::MAX),
        ..submitted(1)
    };
    let mail = Mail { transaction: 9, source: "::1".into(), node: None, message: Some(id(1)) };
    let script = Script::new()
        .phase(Phase::Safety)
        .push(What::Submitted(whole))
        .refuse(1)
        .submit(2)
        .accept(2)
        .submit(3)
        .fail(3)
        .submit(4)
        .answer(4, SubmitAnswer::TimedOut)
        .submit(5)
        .answer(5, SubmitAnswer::ConnectionLost)
        .ask(1, 2, Change::Retry)
        .result(1, ChangeResult::Unchanged)
        .ask(2, 2, Change::Release)
        .change_answer(2, ChangeAnswer::ConnectionLost)
        .push(What::PolicyChanged(PolicyChanged { revision: 3, what: "pool".into() }))
        .copy(1, 2)
        .push(What::Mail(mail))
        .push(What::Closed(Closed { transaction: 9 }))
        .accepted(2);
    let kinds = [
        EventKind::Attempt(attempt(2, 1, OutcomeKind::PolicyBlock, NextState::Retry)),
        EventKind::Attempt(attempt(2, 2, OutcomeKind::Unknown, NextState::Ended(FinalState::Bounced))),
        EventKind::Ended { delivery: delivery(2, 0), state: FinalState::Suppressed },
        EventKind::Held { delivery: delivery(2, 0) },
        EventKind::Released { delivery: delivery(2, 0) },
        EventKind::Retried { delivery: delivery(2, 0) },
        EventKind::Requested { delivery: delivery(2, 0), change: Change::Cancel },
        EventKind::Gap { through: 99 },
    ];
    kinds
        .into_iter()
        .fold(script, Script::event)
        .node(1, Role::Control, false)
        .fault(&[1, 2], true)
        .fault(&[], false)
        .phase(Phase::Liveness { within: Micros(5) })
        .hash((1, 2), 3, 4)
        .counts(Counter::Metrics, [1, 0, 1])
        .quiet()
        .history()
}

#[test]
fn a_history_is_read_back() {
    let history = every_kind();
    let text = text::write(&history);
    assert_eq!(text.lines().count(), history.records.len() + 1);
    assert_eq!(text::read(&text).expect("it was written so"), history);
}

/// Histories are kept with the runs that they are of; this line was written by version 1.
#[test]
fn version_1_is_written_as_it_always_was() {
    let attempt = Attempt {
        delivery: delivery(7, 3),
        attempt: AttemptNumber(2),
        source: SourceId(21),
        epoch: Epoch(5),
        node: NodeId(22),
        outcome: OutcomeKind::Unknown,
        next: NextState::Ended(FinalState::Expired),
    };
    let event = Event {
        node: NodeId(11),
        group: GroupId(1),
        sequence: 4,
        ledger_millis: 8,
        kind: EventKind::Attempt(attempt),
    };
    let records = vec![
        Record { at: Micros(12), what: What::Event(event) },
        Record { at: Micros(13), what: What::Submitted(Submitted { tenant: TenantId(4), ..submitted(1) }) },
        Record { at: Micros(14), what: What::Phase(Phase::Quiet) },
    ];
    let expected = r#"{"postroad_history":1}
{"at":12,"what":{"event":{"node":11,"group":1,"sequence":4,"ledger_millis":8,"kind":{"attempt":{"delivery":"01M85FM9MN00080000000000007/3","attempt":2,"source":21,"epoch":5,"node":22,"outcome":"unknown","next":{"ended":"expired"}}}}}}
{"at":13,"what":{"submitted":{"submission":1,"node":1,"tenant":4,"token":"t1","recipients":["a@x.test"],"content_hash":1}}}
{"at":14,"what":{"phase":"quiet"}}
"#;
    let expected = expected.replace("01M85FM9MN00080000000000007", &id(7).to_string());
    assert_eq!(text::write(&History::new(records)), expected);
}

#[test]
fn what_is_no_history_is_refused() {
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let error = text::read(text).expect_err("it is no history").to_string();
        assert!(error.contains(expected), "{error}");
    }
    check("", "expected `{\"postroad_history\":1}`");
    check("{\"postroad_history\":2}\n", "found `{\"postroad_history\":2}`");
    check("{\"postroad_history\":1,\"more\":1}\n", "expected");
    let of = |line: &str| format!("{}{line}\n", text::header());
    check(&of("x"), "line 2 is not a record");
    check(&of(r#"{"at":1,"what":{"later":{}}}"#), "line 2");
    check(&of(r#"{"at":1,"what":{"closed":{"transaction":1,"more":1}}}"#), "line 2");
    check(&of(r#"{"at":1,"what":{"closed":{"transaction":1}},"more":1}"#), "line 2");
    check(&of(r#"{"at":1,"what":{"state_hash":{"group":65536,"index":1,"node":1,"hash":1}}}"#), "line 2");
    check(&of(""), "line 2");
    assert!(text::read(&of(r#"{"at":1,"what":{"closed":{"transaction":1}}}"#)).is_ok());
}

#[test]
fn records_may_be_in_any_order() {
    let history = every_kind();
    let backwards: String = history.records.iter().rev().map(text::line).collect();
    assert_eq!(text::read(&format!("{}{backwards}", text::header())).expect("it is a history"), history);
}

#[test]
fn a_story_is_in_words() {
    let history = every_kind();
    for record in &history.records {
        let line = record.to_string();
        assert!(
            line.starts_with(&format!("{:>16}  ", record.at.to_string())) && !line.contains('\n'),
            "{line}"
        );
    }
    let facts = postroad_oracle::Facts::new(&history).expect("it does not contradict itself");
    let story = postroad_oracle::story::of_message(&history, &facts, id(2));
    let lines: Vec<String> =
        story.iter().map(|number| history.records[number - 1].what.to_string()).collect();
    assert_eq!(lines[0], "client: submission 2 of token `t2` to `a@x.test` begins, node 1");
    assert!(
        lines.iter().any(|line| line.starts_with("receiver: transaction 1 begins from 192.0.2.21, node 21"))
    );
    assert!(!lines.iter().any(|line| line.contains("submission 3")), "{lines:?}");
}
