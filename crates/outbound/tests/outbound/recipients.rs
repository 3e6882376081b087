//! Receivers that take fewer recipients in one transaction than a message has (D-035).

use std::time::Duration;

use postroad_core::{BounceClass, OutcomeKind};

use crate::{
    node::{Node, Setup},
    receiver::{At, Receiver, SILENCE},
};

const SITE: &str = "route:sink:25";

async fn assign_to(node: &Node, recipients: u32) {
    let addresses: Vec<String> = (0..recipients).map(|number| format!("{number}@example.test")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    node.assign(1, SITE, &addresses).await;
}

/// Sends one message to so many recipients, all of whom must get it.
async fn deliver_to(receiver: &Receiver, recipients: u32) {
    let node = receiver.start_node().await;
    assign_to(&node, recipients).await;
    for recipient in 0..recipients {
        let report = node.queue.report(1, recipient).await;
        assert_eq!(report.kind, u32::from(OutcomeKind::Delivered.code()), "{report:?}");
    }
    node.stop().await;
}

#[tokio::test]
async fn d_035_recipients_over_the_limit_are_sent_to_in_the_same_attempt() {
    let receiver = Receiver::start(|seen, at| {
        (at == At::Recipient && seen.recipients == 4).then_some("452 4.5.3 too many recipients")
    });
    deliver_to(&receiver.await, 10).await;
}

#[tokio::test]
async fn d_035_a_message_refused_for_its_recipients_is_sent_to_fewer_at_once() {
    for takes in [3, 1] {
        let receiver = Receiver::start(move |seen, at| {
            let is_refused = at == At::Message && seen.recipients > takes;
            is_refused.then_some("552 5.5.3 too many recipients, use separate transactions")
        });
        deliver_to(&receiver.await, 10).await;
    }
}

#[tokio::test]
async fn d_035_a_connection_ended_for_the_number_of_recipients_is_followed_by_one_with_half_as_many() {
    let receiver = Receiver::start(|seen, at| {
        (at == At::Recipient && seen.recipients == 4).then_some("421 4.5.3 too many recipients")
    });
    let receiver = receiver.await;
    deliver_to(&receiver, 10).await;
    // Ten and five are too many; two, two, two, two and two go over the third.
    assert_eq!(receiver.connections(), 3);
}

#[tokio::test]
async fn d_035_recipients_over_the_limit_follow_over_a_new_connection_where_one_takes_one_message() {
    let receiver = Receiver::start(|seen, at| match at {
        At::Mail if seen.messages == 1 => Some("421 4.7.0 one message on a connection"),
        At::Recipient if seen.recipients == 4 => Some("452 4.5.3 too many recipients"),
        _ => None,
    });
    let receiver = receiver.await;
    deliver_to(&receiver, 10).await;
    // Four, four and two.
    assert_eq!(receiver.connections(), 3);
}

#[tokio::test]
async fn d_035_recipients_over_the_limit_are_left_for_later_when_the_receiver_blocks_the_sender() {
    let receiver = Receiver::start(|seen, at| match at {
        At::Recipient if seen.recipients == 4 => Some("452 4.5.3 too many recipients"),
        At::Message => Some("421 4.7.1 Client host [198.51.100.7] blocked using zen.spamhaus.org"),
        _ => None,
    });
    let receiver = receiver.await;
    let node = receiver.start_node().await;
    assign_to(&node, 10).await;
    for recipient in 0..10 {
        let report = node.queue.report(1, recipient).await;
        let class = if recipient < 4 { BounceClass::SpamBlock } else { BounceClass::TooManyRecipients };
        assert_eq!(report.bounce_class, u32::from(class.code()), "{report:?}");
    }
    // One refusal pauses the lane.
    node.queue.window(1, SITE, |window| window == 0).await;
    node.stop().await;
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn d_035_recipients_over_the_limit_are_left_for_later_when_the_receiver_falls_silent() {
    let receiver = Receiver::start(|seen, at| match at {
        At::Recipient if seen.recipients == 1 => Some("452 4.5.3 too many recipients"),
        At::Message => Some(SILENCE),
        _ => None,
    });
    let receiver = receiver.await;
    let mut setup = Setup::default();
    setup.config.timeouts.message = Duration::from_millis(100);
    let node = receiver.start_node_with(setup).await;
    assign_to(&node, 10).await;
    for recipient in 0..10 {
        let report = node.queue.report(1, recipient).await;
        let kind = if recipient == 0 { OutcomeKind::Unknown } else { OutcomeKind::Soft };
        assert_eq!(report.kind, u32::from(kind.code()), "{report:?}");
    }
    node.stop().await;
    assert_eq!(receiver.connections(), 1);
}
