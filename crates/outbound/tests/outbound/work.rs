//! The session with the leader: pending attempts, recalls, and reports sent again.

use std::{sync::Arc, time::Duration};

use postroad_core::{ByteSize, OutcomeKind};
use postroad_directory::{Caps, Rate};
use postroad_outbound::pending_attempts::LISTED_PER_FRAME_MAX;
use postroad_proto::queue::{ReportAck, queue_frame::Frame};
use postroad_testkit::{
    Script,
    sink::{Phase, Rule},
};

use crate::{
    node::{SOURCE, Setup, sink},
    queue::{assignment, attempt_id},
};

/// A script that delays every message.
fn slow(millis: u64) -> Script {
    Script::default().with_rule(Rule { delay_ms: millis, ..Rule::reply(Phase::Mail, "250 2.1.0 ok") })
}

fn one_connection() -> Caps {
    Caps { connections_max: Some(1), ..Caps::default() }
}

#[tokio::test]
async fn a_recalled_attempt_is_given_back_only_before_its_start() {
    let sink = sink(slow(2_000)).await;
    let node = Setup { caps: one_connection(), ..Setup::default() }.start_routed(&sink).await;
    for message in 1..=2 {
        node.assign(message, "example.test", &["a@example.test"]).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    node.queue.recall(vec![attempt_id(1, 0, node.epoch), attempt_id(2, 0, node.epoch)]).await;
    let answers =
        node.queue.until("answers", |seen| (seen.answers.len() == 2).then(|| seen.answers.clone())).await;
    let started = |message| {
        let id = attempt_id(message, 0, node.epoch);
        answers.iter().find(|answer| answer.attempt.as_ref() == Some(&id)).unwrap().started
    };
    assert_eq!((started(1), started(2)), (true, false));
    node.queue.report(1, 0).await;
    node.stop().await;
    assert_eq!(sink.ledger().count(), 1);
}

#[tokio::test]
async fn a_new_session_lists_pending_attempts_and_nothing_is_sent_twice() {
    let sink = sink(slow(1_000)).await;
    let node = Setup { caps: one_connection(), ..Setup::default() }.start_routed(&sink).await;
    node.queue.set_acknowledges(false);
    node.assign(1, "example.test", &["a@example.test"]).await;
    node.queue.report(1, 0).await;
    node.assign(2, "example.test", &["a@example.test"]).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.queue.break_session();
    let hello = node.queue.until("second hello", |seen| seen.hellos.get(1).cloned()).await;
    let mut held: Vec<_> = hello.pending.iter().map(|id| id.message_id.clone()).collect();
    held.sort();
    assert_eq!(held, [crate::queue::message_id(1), crate::queue::message_id(2)]);
    // The leader assigns both again, as one might that has missed the list.
    node.queue.set_acknowledges(true);
    for message in 1..=2 {
        node.assign(message, "example.test", &["a@example.test"]).await;
    }
    node.queue.report(2, 0).await;
    // The unacknowledged outcome is reported again.
    node.queue
        .until("repeated report", |seen| {
            let of_first = |report: &&postroad_proto::queue::Report| {
                report.attempt.as_ref() == Some(&attempt_id(1, 0, node.epoch))
            };
            (seen.reports.iter().filter(of_first).count() == 2).then_some(())
        })
        .await;
    node.stop().await;
    assert_eq!(sink.ledger().count(), 2);
}

#[tokio::test]
async fn more_attempts_are_pending_than_one_frame_lists() {
    let sink = sink(slow(60_000)).await;
    let node = Setup { caps: one_connection(), ..Setup::default() }.start_routed(&sink).await;
    let many: Vec<String> = (0..100).map(|number| format!("{number}@example.test")).collect();
    let recipients: Vec<&str> = many.iter().map(String::as_str).collect();
    let messages = LISTED_PER_FRAME_MAX / 100 * 2 + 1;
    let one = |message| assignment(message as u128, SOURCE, node.epoch, "example.test", &recipients);
    node.queue.assign((1..=messages).map(one).collect()).await;
    // Assignments are admitted in order: when the last is recalled, all are pending.
    node.queue.recall(vec![attempt_id(messages as u128, 99, node.epoch)]).await;
    node.queue.until("answer", |seen| seen.answers.first().cloned()).await;
    node.queue.break_session();
    let hello = node.queue.until("second hello", |seen| {
        seen.hellos.get(1).filter(|hello| hello.pending.len() >= messages * 100 - 1).cloned()
    });
    let hello = hello.await;
    assert_eq!((hello.pending.len(), hello.more_pending), (messages * 100 - 1, false));
    node.stop().await;
}

#[tokio::test]
async fn acknowledgements_and_recalls_do_not_wait_for_the_content_budget() {
    let slow = Rule { delay_ms: 60_000, ..Rule::reply(Phase::Recipient, "250 2.1.5 ok") };
    let busy = postroad_testkit::sink::Receiver { rules: vec![slow], ..Default::default() };
    let sink = sink(Script::default().with_domain("busy.test", busy)).await;
    let mut setup = Setup::default();
    setup.config.content_bytes_max = ByteSize::mib(16);
    let node = setup.start_routed(&sink).await;
    for message in 1..=6 {
        node.queue.set_acknowledges(message < 6);
        node.assign(message, "quick.test", &["a@quick.test"]).await;
        node.queue.report(message, 0).await;
    }
    // Six MiB each: two fit into the budget.
    let content = bytes::Bytes::from("0123456789abcd\r\n".repeat(6 << 16));
    for message in 7..=10 {
        let mut large = assignment(message, SOURCE, node.epoch, "busy.test", &["a@busy.test"]);
        large.content = content.clone();
        node.queue.assign(vec![large]).await;
    }
    node.queue.until("eight admitted frames", |seen| (seen.admitted == 8).then_some(())).await;
    // Other frames are handled meanwhile.
    node.queue.recall(vec![attempt_id(10, 0, node.epoch)]).await;
    let answer = node.queue.until("answer", |seen| seen.answers.first().cloned()).await;
    assert_eq!((answer.attempt, answer.started), (Some(attempt_id(10, 0, node.epoch)), false));
    let last = node.queue.seen(|seen| seen.report_frames as u64);
    node.queue.send(Frame::ReportAck(ReportAck { through: last })).await;
    node.queue.recall(vec![attempt_id(7, 0, node.epoch)]).await;
    node.queue.until("second answer", |seen| seen.answers.get(1).cloned()).await;
    node.queue.break_session();
    let hello = node.queue.until("second hello", |seen| seen.hellos.get(1).cloned()).await;
    let mut held: Vec<_> = hello.pending.into_iter().map(|id| id.message_id).collect();
    held.sort();
    assert_eq!(held, [crate::queue::message_id(7), crate::queue::message_id(8)]);
    node.stop().await;
}

#[tokio::test]
async fn a_leader_of_a_lower_term_is_refused() {
    let sink = sink(Script::default()).await;
    let node = Setup::default().start_routed(&sink).await;
    node.queue.set_term(5);
    node.queue.until("hello in term 5", |seen| (seen.hellos.len() == 2).then_some(())).await;
    node.assign(1, "example.test", &["a@example.test"]).await;
    node.queue.report(1, 0).await;
    let hellos = node.queue.seen(|seen| seen.hellos.len());
    node.queue.set_term(4);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        node.queue.seen(|seen| seen.hellos.len()),
        hellos,
        "a session was opened with a leader of an old term"
    );
    node.queue.set_term(6);
    let term =
        node.queue.until("hello in term 6", |seen| seen.hellos.get(hellos).map(|hello| hello.term)).await;
    assert_eq!(term, 5);
    node.stop().await;
}

#[tokio::test]
async fn an_assignment_of_another_epoch_is_given_back() {
    let sink = sink(Script::default()).await;
    let node = Setup::default().start_routed(&sink).await;
    let stale = assignment(1, SOURCE, node.epoch - 1, "example.test", &["a@example.test"]);
    let foreign = assignment(2, postroad_core::SourceId(9), node.epoch, "example.test", &["a@example.test"]);
    node.queue.assign(vec![stale, foreign]).await;
    let answers =
        node.queue.until("answers", |seen| (seen.answers.len() == 2).then(|| seen.answers.clone())).await;
    assert!(answers.iter().all(|answer| !answer.started));
    node.stop().await;
    assert_eq!(sink.ledger().count(), 0);
}

#[tokio::test]
async fn rates_hold_for_a_lane() {
    let rates = [Rate { messages: 5, per: Duration::from_secs(1) }];
    let caps = Caps { rates: Some(rates.into()), ..Caps::default() };
    let sink = sink(Script::default()).await;
    let node = Setup { caps, ..Setup::default() }.start_routed(&sink).await;
    for message in 1..=12 {
        node.assign(message, "example.test", &["a@example.test"]).await;
    }
    let mut started = Vec::new();
    for message in 1..=12 {
        let report = node.queue.report(message, 0).await;
        assert_eq!(report.kind, u32::from(OutcomeKind::Delivered.code()), "{report:?}");
        started.push(report.started_at_millis);
    }
    started.sort_unstable();
    // A slow machine only makes the times between them longer.
    let fifth_after = |first: usize| started[first + 5] - started[first];
    assert!(started[10] - started[0] >= 1_990, "{started:?}");
    assert!((0..7).all(|first| fifth_after(first) >= 900), "{started:?}");
    node.stop().await;
}

#[tokio::test]
async fn rates_hold_across_a_restart_and_their_remainder_can_be_used() {
    let rates = [Rate { messages: 4, per: Duration::from_secs(3600) }];
    let caps = || Caps { rates: Some(rates.into()), ..Caps::default() };
    let sink = sink(Script::default()).await;
    let home = Arc::new(tempfile::TempDir::new().unwrap());
    let node = Setup { caps: caps(), home: home.clone(), ..Setup::default() }.start_routed(&sink).await;
    for message in 1..=3 {
        node.assign(message, "example.test", &["a@example.test"]).await;
        node.queue.report(message, 0).await;
    }
    let (before, _) = node.stop().await;
    let mut setup = Setup { caps: caps(), home, ..Setup::default() };
    setup.first_epoch = before.seen(|seen| seen.windows.last().unwrap().sources[0].epoch);
    let node = setup.start_routed(&sink).await;
    for message in 4..=5 {
        node.assign(message, "example.test", &["a@example.test"]).await;
    }
    node.queue.report(4, 0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(sink.ledger().count(), 4);
    node.stop().await;
}

#[tokio::test]
async fn r_34_a_stop_finishes_running_transactions_and_gives_back_the_rest() {
    let sink = sink(slow(2_000)).await;
    let node = Setup { caps: one_connection(), ..Setup::default() }.start_routed(&sink).await;
    for message in 1..=3 {
        node.assign(message, "example.test", &["a@example.test"]).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (queue, epoch) = (node.queue.clone(), node.epoch);
    let late = async {
        // An assignment that arrives while the node stops is not started, in any lane.
        queue.window(SOURCE.0, "other.test", |window| window == 0).await;
        queue.assign(vec![assignment(4, SOURCE, epoch, "other.test", &["a@other.test"])]).await;
    };
    tokio::join!(node.stop(), late);
    let report = queue.report(1, 0).await;
    assert_eq!(report.kind, u32::from(OutcomeKind::Delivered.code()));
    let given_back = queue.seen(|seen| seen.answers.iter().filter(|answer| !answer.started).count());
    assert_eq!((given_back, queue.seen(|seen| seen.released.len())), (3, 1));
    assert_eq!(sink.ledger().count(), 1);
}

#[tokio::test]
async fn collected_reports_are_sent_together() {
    let sink = sink(Script::default()).await;
    let node = Setup::default().start_routed(&sink).await;
    let one = |message| assignment(message, SOURCE, node.epoch, "example.test", &["a@example.test"]);
    node.queue.assign((1..=400).map(one).collect()).await;
    node.queue.until("400 reports", |seen| (seen.reports.len() == 400).then_some(())).await;
    assert!(node.queue.seen(|seen| seen.report_frames) <= 400);
    node.stop().await;
    assert_eq!(sink.ledger().count(), 400);
}
