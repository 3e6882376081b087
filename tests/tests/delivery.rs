//! The whole path: a client, `postroad dev`, and a receiver that records every copy.

use std::time::Duration;

use postroad_core::NodeId;
use postroad_oracle::history::Role;
use postroad_testkit::{
    Script, Sink, SinkConfig,
    checker::Acknowledged,
    client::Submitted,
    dev::Dev,
    history::{Recorder, require_no_violation},
    sink::{Action, Phase, Receiver, Rule, body_hash},
};

/// The longest that a test waits for a condition.
const PATIENCE: Duration = Duration::from_secs(60);

async fn sink(script: Script) -> Sink {
    Sink::start(SinkConfig { script, ..SinkConfig::default() }).await.expect("loopback has a free port")
}

/// A running `postroad dev`, and the records of the run for the oracle.
struct Run {
    dev: Dev,
    recorder: Recorder,
}

async fn run_to(sink: &Sink) -> Run {
    let route = format!("*={}", sink.address());
    let dev = Dev::start(&["--route", &route]).await.unwrap_or_else(|error| panic!("{error:#}"));
    let recorder = Recorder::start(dev.operator()).await.unwrap_or_else(|error| panic!("{error:#}"));
    Run { dev, recorder }
}

async fn acknowledged(run: &Run, recipients: &[&str], body: &str) -> Acknowledged {
    let content = format!("From: <a@example.test>\r\nSubject: whole path\r\n\r\n{body}");
    match run.recorder.submit(run.dev.smtp(), "a@example.test", recipients, &content).await {
        Submitted::Acknowledged(message) => message,
        other => panic!("{other:?}"),
    }
}

/// Waits until every delivery has ended, and lets the oracle judge the run.
async fn finish(Run { dev, recorder }: Run, sink: &Sink) {
    let history = recorder.finish(&sink.ledger(), PATIENCE).await;
    assert_eq!(sink.ledger().bare_newlines(), 0, "bare CR or LF on the wire");
    let log = dev.stop(PATIENCE).await;
    if let Err(error) = history.and_then(|history| require_no_violation(&history)) {
        panic!("{error:#}\n{log}");
    }
}

#[tokio::test]
async fn s_112_and_s_114_a_message_arrives_as_it_was_accepted() {
    let sink = sink(Script::default()).await;
    let run = run_to(&sink).await;
    let long = "x".repeat(900);
    let bodies = [
        "",
        "\r\n",
        ".\r\n..\r\n.x\r\n\r\n.\r\n",
        "no line end",
        " trailing \t \r\n\t\r\n",
        "From the start\r\nFrom: not a header\r\n",
        "gr\u{fc}\u{df}e \u{2028}\u{85}\r\n",
        &format!("{long}\r\n").repeat(2000),
    ];
    let mut messages: Vec<(Acknowledged, u64)> = Vec::new();
    for body in bodies {
        // The wire adds a missing line end to the last line.
        let whole =
            if body.is_empty() || body.ends_with("\r\n") { body.to_owned() } else { format!("{body}\r\n") };
        messages.push((acknowledged(&run, &["b@one.test"], body).await, body_hash(whole.as_bytes())));
    }
    assert!(sink.ledger().wait_for_count(messages.len() as u64, PATIENCE).await, "all arrive");
    for (message, hash) in &messages {
        let copies = sink.ledger().copies_of(message.id, "b@one.test");
        assert_eq!(copies.iter().map(|copy| copy.body_hash).collect::<Vec<_>>(), [*hash]);
    }
    finish(run, &sink).await;
}

#[tokio::test]
async fn every_recipient_gets_one_copy() {
    let sink = sink(Script::default()).await;
    let run = run_to(&sink).await;
    for number in 0..50 {
        let (a, b) = (format!("a{number}@one.test"), format!("b{number}@two.test"));
        acknowledged(&run, &[&a, &b, "same@three.test"], "hello\r\n").await;
    }
    assert!(sink.ledger().wait_for_count(150, PATIENCE).await, "all arrive");
    finish(run, &sink).await;
    assert_eq!(sink.ledger().count(), 150);
}

#[tokio::test]
async fn a_node_killed_between_250_and_delivery_delivers_after_its_restart() {
    // The receiver reads the message and does not reply until the node is dead.
    let stall = Rule { then: Action::Stall, ..Rule::reply(Phase::Message, "250 ok") };
    let stalling =
        Script::default().with_domain("slow.test", Receiver { rules: vec![stall], ..Receiver::default() });
    let sink = sink(stalling).await;
    let mut run = run_to(&sink).await;
    acknowledged(&run, &["a@slow.test"], "first\r\n").await;
    acknowledged(&run, &["b@slow.test"], "second\r\n").await;
    assert!(sink.ledger().wait_for_count(2, PATIENCE).await, "both are being sent");
    run.dev.process().kill().await.expect("it was running");
    run.recorder.node(NodeId(1), Role::Queue, false);
    sink.set_script(Script::default());
    run.dev.process().start_again().expect("it has ended");
    run.recorder.node(NodeId(1), Role::Queue, true);
    run.dev.process().wait_ready(PATIENCE).await.unwrap_or_else(|error| panic!("{error:#}"));
    assert!(
        sink.ledger().wait_for_count(4, PATIENCE).await,
        "the outcome of both is unknown, so they are sent again"
    );
    finish(run, &sink).await;
    assert_eq!(sink.ledger().count(), 4);
}
