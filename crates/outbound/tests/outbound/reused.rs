//! What a receiver says over a connection that has carried a message before.

use postroad_core::{BounceClass, OutcomeKind};
use postroad_proto::queue::Report;

use crate::receiver::{At, CLOSES, Receiver};

const SITE: &str = "route:sink:25";

/// Delivers one message, and returns the report of a second one that meets `reply` at MAIL over the same connection;
/// a new connection would take it.
async fn second_report(reply: &'static str) -> (Report, u32) {
    let receiver = Receiver::start(move |seen, at| {
        (at == At::Mail && seen.connection == 1 && seen.messages == 1).then_some(reply)
    });
    let receiver = receiver.await;
    let node = receiver.start_node().await;
    for message in 1..=2 {
        node.assign(message, SITE, &["a@example.test"]).await;
        node.queue.report(message, 0).await;
    }
    let report = node.queue.report(2, 0).await;
    if report.kind == u32::from(OutcomeKind::PolicyBlock.code()) {
        // The lane has heard what was said.
        node.queue.window(1, SITE, |window| window == 0).await;
    }
    node.stop().await;
    (report, receiver.connections())
}

#[tokio::test]
async fn d_036_a_host_that_says_slow_down_over_a_reused_connection_is_not_asked_again_at_once() {
    let (report, connections) = second_report("450 4.7.1 too many messages from your IP, slow down").await;
    assert_eq!(report.bounce_class, u32::from(BounceClass::RateLimited.code()), "{report:?}");
    assert_eq!((report.code, connections), (450, 1));
}

#[tokio::test]
async fn d_036_a_host_that_blocks_us_by_421_over_a_reused_connection_is_not_asked_again_at_once() {
    let blocked = "421 4.7.1 Client host [198.51.100.7] blocked using zen.spamhaus.org";
    let (report, connections) = second_report(blocked).await;
    assert_eq!(report.bounce_class, u32::from(BounceClass::SpamBlock.code()), "{report:?}");
    assert_eq!((report.code, connections), (421, 1));
}

#[tokio::test]
async fn d_036_a_421_without_a_reason_over_a_reused_connection_is_followed_by_a_new_one() {
    let (report, connections) = second_report("421 4.3.2 closing connection").await;
    assert_eq!(report.kind, u32::from(OutcomeKind::Delivered.code()), "{report:?}");
    assert_eq!(connections, 2);
}

#[tokio::test]
async fn d_036_a_reused_connection_that_is_closed_within_the_envelope_is_followed_by_a_new_one() {
    let (report, connections) = second_report(CLOSES).await;
    assert_eq!(report.kind, u32::from(OutcomeKind::Delivered.code()), "{report:?}");
    assert_eq!(connections, 2);
}
