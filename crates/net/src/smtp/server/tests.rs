use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use postroad_smtp::server::Message;
use postroad_telemetry::testing::{Counters, LogLines};
use tokio::{sync::Semaphore, task::JoinHandle};

use super::*;
use crate::testing::{PATIENCE, Raw, wait_until};

mod descriptors;
mod tls;
mod tolerated;

/// Accepts everything, and keeps the messages.
struct AcceptAll {
    messages: Mutex<Vec<Message>>,
    /// Number of messages that the policy was asked about.
    asked: AtomicUsize,
    /// One permit for each answer to a message.
    answers: Semaphore,
    refuses: bool,
}

impl Policy for AcceptAll {
    type Identity = &'static str;

    fn network_identity(&self, _: IpAddr) -> Option<&'static str> {
        Some("trusted")
    }

    async fn decide(&self, _: Session<'_, &'static str>, question: Question) -> Answer<&'static str> {
        match question {
            Question::Message(message) => {
                self.asked.fetch_add(1, Ordering::Relaxed);
                self.answers.acquire().await.unwrap().forget();
                assert!(!message.content.starts_with(b"From: panic"), "a panic that the test provokes");
                self.messages.lock().push(*message);
                Answer::Reply(Reply::new(250, 0, 0, "queued"))
            }
            Question::Authenticate(_) => Answer::Identity("known"),
            Question::Sender(_) | Question::Recipient(_) => Answer::Yes,
        }
    }

    fn accepting(&self) -> Result<(), Reply> {
        if self.refuses { Err(Reply::new(421, 3, 2, "the queue has no leader")) } else { Ok(()) }
    }
}

impl AcceptAll {
    fn new(answers: usize) -> Self {
        Self {
            messages: Mutex::default(),
            asked: AtomicUsize::new(0),
            answers: Semaphore::new(answers),
            refuses: false,
        }
    }
}

struct Server {
    address: SocketAddr,
    policy: Arc<AcceptAll>,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start(config: ListenerConfig) -> Self {
        Self::with_policy(config, AcceptAll::new(1000)).await
    }

    async fn with_policy(config: ListenerConfig, policy: AcceptAll) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (policy, shutdown) = (Arc::new(policy), CancellationToken::new());
        let serving = tokio::spawn(serve(listener, config, Arc::clone(&policy), shutdown.clone()));
        Self { address, policy, shutdown, serving }
    }

    /// Connects and reads the greeting.
    async fn greeted(&self) -> Raw {
        let mut client = Raw::connect(self.address).await;
        client.expect("220 localhost ESMTP").await;
        client
    }

    fn messages(&self) -> usize {
        self.policy.messages.lock().len()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        time::timeout(PATIENCE, self.serving).await.expect("the listener ends").unwrap();
    }
}

const ENVELOPE: &str = "EHLO c.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n";
const CONTENT: &str = "From: a@b.example\r\n\r\nhi\r\n";

/// Goes through an envelope up to the 354.
async fn begin_message<S: crate::testing::ByteStream>(client: &mut Raw<S>) {
    client.ask(ENVELOPE, "250-").await;
    for start in ["250 2.1.0", "250 2.1.5", "354 "] {
        client.expect(start).await;
    }
}

fn quick() -> ListenerConfig {
    let mut config = ListenerConfig::default();
    config.server.command_timeout = Duration::from_millis(300);
    config
}

#[tokio::test]
async fn messages_are_accepted_one_after_another() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut client = server.greeted().await;
    for number in 1..=3 {
        begin_message(&mut client).await;
        client.ask(format!("{CONTENT}..{number}\r\n.\r\n"), "250 2.0.0").await;
    }
    client.ask("QUIT\r\n", "221 ").await;
    client.expect_end().await;
    let messages = std::mem::take(&mut *server.policy.messages.lock());
    assert_eq!(messages.len(), 3);
    assert_eq!(messages[2].content, format!("{CONTENT}.3\r\n"));
    server.stop().await;
}

#[tokio::test]
async fn a_large_message_is_accepted_and_the_next_small_one_too() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut client = server.greeted().await;
    begin_message(&mut client).await;
    let body = format!("{}\r\n", "x".repeat(98)).repeat(50_000);
    client.ask(format!("{CONTENT}{body}.\r\n"), "250 2.0.0").await;
    assert_eq!(server.policy.messages.lock()[0].content.len(), CONTENT.len() + body.len());
    begin_message(&mut client).await;
    client.ask(format!("{CONTENT}.\r\n"), "250 2.0.0").await;
    server.stop().await;
}

#[tokio::test]
async fn s_002_a_client_that_speaks_before_the_greeting_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = Raw::connect(listener.local_addr().unwrap()).await;
    client.send("EHLO spam.example\r\n").await;
    let shutdown = CancellationToken::new();
    let serving = serve(listener, ListenerConfig::default(), Arc::new(AcceptAll::new(1)), shutdown.clone());
    let serving = tokio::spawn(serving);
    client.expect("554 5.5.0").await;
    client.expect_end().await;
    shutdown.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn s_002_a_greeting_delay_catches_clients_that_speak_early() {
    let config = ListenerConfig { greeting_delay: Duration::from_millis(200), ..ListenerConfig::default() };
    let server = Server::start(config).await;
    let mut hasty = Raw::connect(server.address).await;
    let mut polite = Raw::connect(server.address).await;
    time::sleep(Duration::from_millis(50)).await;
    hasty.ask("EHLO spam.example\r\n", "554 5.5.0").await;
    hasty.expect_end().await;
    polite.expect("220 ").await;
    server.stop().await;
}

#[tokio::test]
async fn s_007_other_protocols_are_refused_at_once() {
    let server = Server::start(ListenerConfig::default()).await;
    let hello = b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03no line ends here";
    let others: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST / HTTP/1.1\r\n", b"SSH-2.0-x\r\n", hello];
    for bytes in others {
        let mut client = server.greeted().await;
        client.ask(bytes, "221 2.7.0").await;
        client.expect_end().await;
    }
    server.stop().await;
}

#[tokio::test]
async fn s_013_a_stray_space_is_accepted_and_counted() {
    let counters = Counters::default();
    let _recording = counters.record();
    let server = Server::start(ListenerConfig::default()).await;
    let mut client = server.greeted().await;
    client.ask("EHLO c.example\r\n", "250-").await;
    client.ask("MAIL FROM:<a@b.example>\r\n", "250 2.1.0").await;
    assert_eq!(counters.read("postroad_net_smtp_tolerated_total"), 0);
    client.ask("RSET\r\nMAIL FROM: <a@b.example>\r\n", "250 2.0.0").await;
    client.expect("250 2.1.0").await;
    client.ask("RCPT TO: <c@d.example>\r\n", "250 2.1.5").await;
    assert_eq!(counters.read("postroad_net_smtp_tolerated_total"), 2);
    server.stop().await;
}

#[tokio::test]
async fn s_031_an_idle_client_gets_421_and_is_closed() {
    let server = Server::start(quick()).await;
    let mut client = server.greeted().await;
    client.expect("421 4.4.2").await;
    client.expect_end().await;
    server.stop().await;
}

#[tokio::test]
async fn c_220_a_command_sent_byte_by_byte_does_not_extend_its_deadline() {
    let server = Server::start(quick()).await;
    let client = server.greeted().await;
    let (mut reading, mut writing) = tokio::io::split(client.stream);
    let dripping = tokio::spawn(async move {
        while tokio::io::AsyncWriteExt::write_all(&mut writing, b"N").await.is_ok() {
            time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut replies = String::new();
    let hearing = tokio::io::AsyncReadExt::read_to_string(&mut reading, &mut replies);
    let _ = time::timeout(PATIENCE, hearing).await.expect("the connection is closed");
    assert!(replies.starts_with("421 4.4.2"), "{replies}");
    dripping.await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn s_032_on_shutdown_idle_sessions_get_421_and_a_message_may_finish() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut idle = server.greeted().await;
    let mut busy = server.greeted().await;
    begin_message(&mut busy).await;
    server.shutdown.cancel();
    idle.expect("421 4.3.2").await;
    idle.expect_end().await;
    busy.send(format!("{CONTENT}.\r\n")).await;
    busy.expect("250 2.0.0").await;
    busy.expect("421 4.3.2").await;
    busy.expect_end().await;
    assert_eq!(server.messages(), 1);
    server.stop().await;
}

#[tokio::test]
async fn s_032_connections_still_open_after_the_drain_timeout_are_cut_off() {
    let config = ListenerConfig { drain_timeout: Duration::from_millis(200), ..ListenerConfig::default() };
    let server = Server::with_policy(config, AcceptAll::new(0)).await;
    let mut sending = server.greeted().await;
    begin_message(&mut sending).await;
    let mut waiting = server.greeted().await;
    begin_message(&mut waiting).await;
    waiting.send(format!("{CONTENT}.\r\n")).await;
    let policy = Arc::clone(&server.policy);
    wait_until("policy is asked", || policy.asked.load(Ordering::Relaxed) == 1).await;
    server.stop().await;
    sending.expect_end().await;
    // No 250 without an answer of the policy, and nothing that was not answered is kept.
    waiting.expect_end().await;
    assert!(policy.messages.lock().is_empty());
}

#[tokio::test]
async fn s_033_clients_over_a_limit_get_421_and_are_closed() {
    let config =
        ListenerConfig { connections_max: 3, connections_per_network_max: 2, ..ListenerConfig::default() };
    let server = Server::start(config).await;
    let (first, _second) = (server.greeted().await, server.greeted().await);
    let mut refused = Raw::connect(server.address).await;
    refused.expect("421 4.7.0").await;
    refused.expect_end().await;
    let elsewhere = tokio::net::TcpSocket::new_v4().unwrap();
    elsewhere.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into()).unwrap();
    let mut third = Raw::new(elsewhere.connect(server.address).await.unwrap());
    third.expect("220 ").await;
    let mut refused = Raw::connect(server.address).await;
    refused.expect("421 4.3.2").await;
    refused.expect_end().await;
    drop(first);
    let mut again = String::new();
    while !again.starts_with("220 ") {
        again = Raw::connect(server.address).await.reply().await;
    }
    server.stop().await;
}

#[tokio::test]
async fn s_034_a_node_that_cannot_store_mail_sends_421_instead_of_the_greeting() {
    let policy = AcceptAll { refuses: true, ..AcceptAll::new(0) };
    let server = Server::with_policy(ListenerConfig::default(), policy).await;
    let mut client = Raw::connect(server.address).await;
    client.expect("421 4.3.2 the queue has no leader").await;
    client.expect_end().await;
    server.stop().await;
}

#[tokio::test]
async fn s_036_commands_after_quit_are_ignored() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut client = server.greeted().await;
    client.ask(format!("QUIT\r\n{ENVELOPE}QUIT\r\n"), "221 ").await;
    client.expect_end().await;
    server.stop().await;
}

#[tokio::test]
async fn s_037_a_client_that_left_before_the_250_has_its_message_accepted_once() {
    let counters = Counters::default();
    let lines = LogLines::default();
    let _recording = (counters.record(), lines.record());
    let server = Server::with_policy(ListenerConfig::default(), AcceptAll::new(0)).await;
    let mut client = server.greeted().await;
    begin_message(&mut client).await;
    client.send(format!("{CONTENT}.\r\n")).await;
    let policy = Arc::clone(&server.policy);
    wait_until("policy is asked", || policy.asked.load(Ordering::Relaxed) == 1).await;
    drop(client);
    time::sleep(Duration::from_millis(20)).await;
    server.policy.answers.add_permits(1);
    wait_until("it is counted", || counters.read("postroad_net_smtp_ack_undelivered_total") == 1).await;
    assert_eq!((server.messages(), lines.count("ack_undelivered")), (1, 1));
    server.stop().await;
}

#[tokio::test]
async fn s_038_nothing_is_kept_when_a_client_leaves_within_a_message() {
    let server = Server::start(ListenerConfig::default()).await;
    for ends_with_reset in [false, true] {
        let mut client = server.greeted().await;
        begin_message(&mut client).await;
        client.send(CONTENT).await;
        if ends_with_reset {
            client.reset();
        }
    }
    let policy = Arc::clone(&server.policy);
    server.stop().await;
    assert_eq!(policy.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn s_107_the_end_of_data_is_found_in_any_segmentation() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut client = server.greeted().await;
    client.stream.set_nodelay(true).unwrap();
    split_at_every_position(&server, &mut client).await;
    server.stop().await;
}

async fn split_at_every_position<S: crate::testing::ByteStream>(server: &Server, client: &mut Raw<S>) {
    let before = server.messages();
    let text = format!("{CONTENT}.\r\n");
    let positions: Vec<usize> = (text.len() - 5..text.len()).collect();
    for position in &positions {
        begin_message(client).await;
        client.send(&text[..*position]).await;
        time::sleep(Duration::from_millis(5)).await;
        client.ask(&text[*position..], "250 2.0.0").await;
    }
    assert_eq!(server.messages() - before, positions.len());
}

#[tokio::test]
async fn r_38_a_panic_costs_one_connection() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut other = server.greeted().await;
    let mut client = server.greeted().await;
    begin_message(&mut client).await;
    client.send("From: panic@b.example\r\n\r\n.\r\n").await;
    client.expect_end().await;
    begin_message(&mut other).await;
    other.ask(format!("{CONTENT}.\r\n"), "250 2.0.0").await;
    server.stop().await;
}
