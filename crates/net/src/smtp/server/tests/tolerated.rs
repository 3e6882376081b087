//! Deviations from the syntax are counted where they are accepted.

use postroad_smtp::tolerance::Tolerant;

use super::*;

const TOLERATED: &str = "postroad_net_smtp_tolerated_total";

/// Sends MAIL and RCPT with a stray space each.
async fn check(tolerant: Tolerant, replies: [&str; 2], count: u64) {
    let counters = Counters::default();
    let _recording = counters.record();
    let mut config = ListenerConfig::default();
    config.server.tolerant = tolerant;
    let server = Server::start(config).await;
    let mut client = server.greeted().await;
    client.ask("EHLO c.example\r\n", "250-").await;
    client.ask("MAIL FROM: <a@b.example>\r\n", replies[0]).await;
    client.ask("MAIL FROM:<a@b.example>\r\n", "").await;
    client.ask("RCPT TO: <c@d.example>\r\n", replies[1]).await;
    client.ask("RCPT TO:<c@d.example>\r\n", "250 2.1.5").await;
    assert_eq!(counters.read(TOLERATED), count);
    client.ask("QUIT\r\n", "221 ").await;
    server.stop().await;
}

#[tokio::test]
async fn s_013_a_stray_space_that_is_accepted_is_counted() {
    check(Tolerant::Known, ["250 2.1.0", "250 2.1.5"], 2).await;
    check(Tolerant::Nobody, ["501 5.5.4", "501 5.5.4"], 0).await;
}
