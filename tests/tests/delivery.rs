//! The whole path: a client, `postroad dev`, and a receiver that records every copy.

use std::time::Duration;

use postroad_core::MessageId;
use postroad_testkit::{
    Script, Sink, SinkConfig,
    checker::{Acknowledged, Findings},
    client::{Submitted, submit},
    dev::Dev,
    sink::{Action, Phase, Receiver, Rule, body_hash},
};

/// The longest that a test waits for a condition.
const PATIENCE: Duration = Duration::from_secs(60);

async fn sink(script: Script) -> Sink {
    Sink::start(SinkConfig { script, ..SinkConfig::default() }).await.expect("loopback has a free port")
}

async fn dev_to(sink: &Sink) -> Dev {
    let route = format!("*={}", sink.address());
    Dev::start(&["--route", &route]).await.unwrap_or_else(|error| panic!("{error:#}"))
}

async fn acknowledged(dev: &Dev, recipients: &[&str], body: &str) -> Acknowledged {
    let content = format!("From: <a@example.test>\r\nSubject: whole path\r\n\r\n{body}");
    match submit(dev.smtp(), "a@example.test", recipients, &content).await {
        Submitted::Acknowledged(message) => message,
        other => panic!("{other:?}"),
    }
}

async fn finish(dev: Dev, sink: &Sink, messages: &[Acknowledged]) -> Findings {
    let mut findings = Findings::new(messages, &sink.ledger().copies());
    if !findings.duplicates.is_empty() {
        findings.explain(dev.http()).await.unwrap_or_else(|error| panic!("{error:#}"));
    }
    assert_eq!(sink.ledger().bare_newlines(), 0, "bare CR or LF on the wire");
    let log = dev.stop(Duration::from_secs(60)).await;
    if let Err(error) = findings.require_exactly_once() {
        panic!("{error:#}\n{log}");
    }
    findings
}

#[tokio::test]
async fn s_112_and_s_114_a_message_arrives_as_it_was_accepted() {
    let sink = sink(Script::default()).await;
    let dev = dev_to(&sink).await;
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
        messages.push((acknowledged(&dev, &["b@one.test"], body).await, body_hash(whole.as_bytes())));
    }
    assert!(sink.ledger().wait_for_count(messages.len() as u64, PATIENCE).await, "all arrive");
    for (message, hash) in &messages {
        let copies = sink.ledger().copies_of(message.id, "b@one.test");
        assert_eq!(copies.iter().map(|copy| copy.body_hash).collect::<Vec<_>>(), [*hash]);
    }
    finish(dev, &sink, &messages.into_iter().map(|(message, _)| message).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn every_recipient_gets_one_copy() {
    let sink = sink(Script::default()).await;
    let dev = dev_to(&sink).await;
    let mut messages = Vec::new();
    for number in 0..50 {
        let (a, b) = (format!("a{number}@one.test"), format!("b{number}@two.test"));
        messages.push(acknowledged(&dev, &[&a, &b, "same@three.test"], "hello\r\n").await);
    }
    assert!(sink.ledger().wait_for_count(150, PATIENCE).await, "all arrive");
    let findings = finish(dev, &sink, &messages).await;
    assert_eq!(findings, Findings::default());
}

#[tokio::test]
async fn a_node_killed_between_250_and_delivery_delivers_after_its_restart() {
    // The receiver reads the message and does not reply until the node is dead.
    let stall = Rule { then: Action::Stall, ..Rule::reply(Phase::Message, "250 ok") };
    let stalling =
        Script::default().with_domain("slow.test", Receiver { rules: vec![stall], ..Receiver::default() });
    let sink = sink(stalling).await;
    let mut dev = dev_to(&sink).await;
    let messages = [
        acknowledged(&dev, &["a@slow.test"], "first\r\n").await,
        acknowledged(&dev, &["b@slow.test"], "second\r\n").await,
    ];
    assert!(sink.ledger().wait_for_count(2, PATIENCE).await, "both are being sent");
    dev.process().kill().await.expect("it was running");
    sink.set_script(Script::default());
    dev.process().start_again().expect("it has ended");
    dev.process().wait_ready(PATIENCE).await.unwrap_or_else(|error| panic!("{error:#}"));
    assert!(
        sink.ledger().wait_for_count(4, PATIENCE).await,
        "the outcome of both is unknown, so they are sent again"
    );
    wait_until_ended(&dev, &messages).await;
    let findings = finish(dev, &sink, &messages).await;
    assert_eq!(findings.duplicates.len(), 2);
}

/// Waits until control's history has the final outcome of each delivery.
async fn wait_until_ended(dev: &Dev, messages: &[Acknowledged]) {
    let ended = async {
        for message in messages {
            while !is_delivered(dev, message.id).await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the history is complete in time");
}

async fn is_delivered(dev: &Dev, id: MessageId) -> bool {
    let Ok(record) = postroad_testkit::checker::record(dev.http(), id).await else { return false };
    record.deliveries.iter().all(|delivery| delivery.state == "delivered")
}
