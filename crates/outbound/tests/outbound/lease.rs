//! Nothing is sent after the end of the lease, and a new incarnation replaces the previous one.

use std::{sync::Arc, time::Duration};

use postroad_core::{ByteSize, Domain, NodeId, OutcomeKind, SourceId};
use postroad_directory::{Command, Put, PutSource};
use postroad_proto::queue::RecallAnswer;
use postroad_testkit::{
    Script,
    sink::{Phase, Receiver, Rule},
};

use crate::{
    node::{Node, SOURCE, Setup, sink},
    queue::{assignment, attempt_id},
};

fn short_lease() -> Setup {
    // Two seconds of drift and margin leave two.
    Setup { lease: Duration::from_secs(4), ..Setup::default() }
}

/// A script that delays the reply in one phase.
fn delays(phase: Phase, secs: u64, reply: &str) -> Script {
    Script::default().with_rule(Rule { delay_ms: secs * 1000, ..Rule::reply(phase, reply) })
}

#[tokio::test]
async fn r_31_the_dot_is_not_sent_after_the_end_of_the_lease() {
    let sink = sink(delays(Phase::Data, 4, "354 at last")).await;
    let node = short_lease().start_routed(&sink).await;
    node.assign(1, "example.test", &["a@example.test"]).await;
    node.queue.set_renews(false);
    let report = node.queue.report(1, 0).await;
    assert_eq!(report.kind, u32::from(OutcomeKind::Internal.code()), "{report:?}");
    node.queue.window(1, "any.example", |window| window == 0).await;
    assert!(!node.health.is_ready());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(sink.ledger().count(), 0, "the message was sent after the end of the lease");

    // The directory answers again, and no other node had the source meanwhile.
    sink.set_script(Script::default());
    node.queue.set_renews(true);
    let (epoch, _) = node.queue.window(1, "any.example", |window| window > 0).await;
    assert_eq!(epoch, node.epoch);
    node.assign(2, "example.test", &["a@example.test"]).await;
    let report = node.queue.report(2, 0).await;
    assert_eq!(report.kind, u32::from(OutcomeKind::Delivered.code()), "{report:?}");
    node.stop().await;
}

#[tokio::test]
async fn r_31_nothing_is_started_without_a_lease() {
    let sink = sink(Script::default()).await;
    let node = short_lease().start_routed(&sink).await;
    node.queue.set_renews(false);
    node.queue.window(1, "any.example", |window| window == 0).await;
    node.assign(1, "example.test", &["a@example.test"]).await;
    let answer = node.queue.until("answer", |seen| seen.answers.first().cloned()).await;
    assert!(!answer.started);
    node.stop().await;
    assert_eq!(sink.ledger().count(), 0);
}

#[tokio::test]
async fn a_revoked_source_is_no_longer_used() {
    let sink = sink(delays(Phase::Data, 3, "354 at last")).await;
    let node = Setup::default().start_routed(&sink).await;
    node.assign(1, "example.test", &["a@example.test"]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let incarnation = node.queue.seen(|seen| seen.claims[0].incarnation);
    node.queue.apply(&Command::Revoke { node: NodeId(7), incarnation });
    let report = node.queue.report(1, 0).await;
    assert_eq!(report.kind, u32::from(OutcomeKind::Internal.code()), "{report:?}");
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(sink.ledger().count(), 0);
    node.stop().await;
}

#[tokio::test]
async fn a_new_incarnation_names_the_previous_one() {
    let sink = sink(Script::default()).await;
    let home = Arc::new(tempfile::TempDir::new().unwrap());
    let mut before = None;
    for _ in 0..3 {
        let node = Setup { home: home.clone(), ..Setup::default() }.start_routed(&sink).await;
        let claim = node.queue.seen(|seen| seen.claims[0]);
        assert_eq!((claim.node, claim.replaces), (7, before));
        assert_ne!(Some(claim.incarnation), before);
        before = Some(claim.incarnation);
        node.stop().await;
    }
}

#[tokio::test]
async fn a_superseded_incarnation_is_followed_by_a_new_one() {
    let sink = sink(Script::default()).await;
    let node = short_lease().start_routed(&sink).await;
    let first = node.queue.seen(|seen| seen.claims[0]);
    // The directory revokes the incarnation, as after the end of its lease.
    node.queue.forget_claims();
    let second = node.queue.until("second claim", |seen| seen.claims.last().copied()).await;
    assert_eq!(second.replaces, Some(first.incarnation));
    let hello = node.queue.until("hello", |seen| {
        seen.hellos.last().filter(|hello| hello.incarnation == second.incarnation).cloned()
    });
    hello.await;
    let new_epoch = node.queue.until("a new epoch", |seen| {
        let source = seen.windows.last()?.sources.first()?;
        (source.epoch > node.epoch && source.default_window > 0).then_some(source.epoch)
    });
    new_epoch.await;
    node.stop().await;
}

#[tokio::test]
async fn r_33_a_source_requested_for_another_node_is_released_after_all_attempts_are_reported() {
    let sink = sink(delays(Phase::Mail, 1, "250 2.1.0 ok")).await;
    let caps = postroad_directory::Caps { connections_max: Some(1), ..Default::default() };
    let node = Setup { caps, ..short_lease() }.start_routed(&sink).await;
    for message in 1..=3 {
        node.assign(message, "example.test", &["a@example.test"]).await;
    }
    node.queue.request_release(&[(SOURCE, node.epoch)]);
    node.queue.window(SOURCE.0, "any.example", |window| window == 0).await;
    // An assignment that arrives now is not started.
    node.assign(4, "other.test", &["a@other.test"]).await;
    node.queue.until("release", |seen| seen.released_sources.first().copied()).await;
    let (reports, back) = node.queue.seen(|seen| (seen.reports.clone(), seen.answers.clone()));
    assert_eq!(reports.len() + back.len(), 4, "{reports:?} {back:?}");
    assert!(reports.iter().all(|report| report.kind == u32::from(OutcomeKind::Delivered.code())));
    assert!(back.len() > 1 && back.iter().all(|answer| !answer.started));
    assert_eq!(sink.ledger().count(), reports.len() as u64);

    // The node keeps running, and may own the source again under another epoch.
    sink.set_script(Script::default());
    let incarnation = node.queue.seen(|seen| seen.claims[0].incarnation);
    let node_id = NodeId(7);
    node.queue.apply(&Command::Grant { source: SOURCE, node: node_id, incarnation });
    let (epoch, _) = node.queue.window(SOURCE.0, "any.example", |window| window > 0).await;
    assert!(epoch > node.epoch);
    let again = assignment(5, SOURCE, epoch, "example.test", &["a@example.test"]);
    node.queue.assign(vec![again]).await;
    assert_eq!(node.queue.report(5, 0).await.kind, u32::from(OutcomeKind::Delivered.code()));
    // Each of them asks for the old epoch again.
    two_renewals(&node).await;
    node.queue.window(SOURCE.0, "any.example", |window| window > 0).await;
    assert_eq!(node.queue.seen(|seen| seen.released_sources.len()), 1, "an epoch is released once");
    node.stop().await;
}

#[tokio::test]
async fn r_33_and_r_34_a_stalled_transaction_is_aborted_before_its_source_is_released() {
    let sink = sink(delays(Phase::Mail, 60, "250 2.1.0 ok")).await;
    let node = short_lease().start_routed(&sink).await;
    node.assign(1, "example.test", &["a@example.test"]).await;
    node.queue.request_release(&[(SOURCE, node.epoch)]);
    node.queue.until("release", |seen| seen.released_sources.first().copied()).await;
    let (reports, back) = node.queue.seen(|seen| (seen.reports.clone(), seen.answers.len()));
    assert_eq!(reports.len() + back, 1);
    assert!(
        reports.iter().all(|report| report.kind == u32::from(OutcomeKind::Internal.code())),
        "{reports:?}"
    );
    node.stop().await;
}

#[tokio::test]
async fn r_33_a_source_is_not_released_while_its_assignments_wait_for_the_budget() {
    let slow = Rule { delay_ms: 60_000, ..Rule::reply(Phase::Recipient, "250 2.1.5 ok") };
    let busy = Receiver { rules: vec![slow], ..Receiver::default() };
    let sink = sink(Script::default().with_domain("busy.test", busy)).await;
    // The contents keep this one thread busy for longer than a short lease lasts.
    let mut setup = Setup { lease: Duration::from_secs(9), ..Setup::default() };
    setup.config.content_bytes_max = ByteSize::mib(16);
    setup.config.connections_initial = 1;
    let node = setup.start_routed(&sink).await;
    let (other, other_epoch) = second_source(&node).await;
    // Six MiB each: two fit into the budget; the third waits, and so do all after it.
    for message in 1..=3 {
        let mut large = assignment(message, other, other_epoch, "busy.test", &["a@busy.test"]);
        large.content = bytes::Bytes::from("0123456789abcd\r\n".repeat(6 << 16));
        node.queue.assign(vec![large]).await;
    }
    for message in 4..=5 {
        node.assign(message, "example.test", &["a@example.test"]).await;
    }
    // Frames arrive in order: when the last one is given back, the one before it has arrived.
    node.queue.recall(vec![attempt_id(5, 0, node.epoch)]).await;
    given_back(&node, 5).await;
    node.queue.request_release(&[(SOURCE, node.epoch)]);
    node.queue.window(SOURCE.0, "any.example", |window| window == 0).await;
    two_renewals(&node).await;
    assert_eq!(node.queue.seen(|seen| seen.released_sources.len()), 0, "the fourth is still unread");
    // The second has not been started: giving it back frees budget.
    node.queue.recall(vec![attempt_id(2, 0, other_epoch)]).await;
    node.queue.until("release", |seen| seen.released_sources.first().copied()).await;
    given_back(&node, 4).await;
    node.stop().await;
}

async fn two_renewals(node: &Node) {
    let renewals = node.queue.seen(|seen| seen.renewals);
    node.queue.until("two renewals", |seen| (seen.renewals >= renewals + 2).then_some(())).await;
}

async fn given_back(node: &Node, message: u128) {
    let id = attempt_id(message, 0, node.epoch);
    let is_it = |answer: &&RecallAnswer| answer.attempt.as_ref() == Some(&id) && !answer.started;
    node.queue.until("attempt given back", |seen| seen.answers.iter().find(is_it).cloned()).await;
}

/// Gives the node one more source; returns it and its epoch.
async fn second_source(node: &Node) -> (SourceId, u64) {
    let source = SourceId(SOURCE.0 + 1);
    let helo = Domain::parse("two.postroad.example").unwrap();
    let put = PutSource { name: "two".into(), address: None, helo, nodes: Vec::new() };
    node.queue.put(Put::Source(put));
    let incarnation = node.queue.seen(|seen| seen.claims[0].incarnation);
    node.queue.apply(&Command::Grant { source, node: NodeId(7), incarnation });
    let (epoch, _) = node.queue.window(source.0, "any.example", |window| window > 0).await;
    (source, epoch)
}
