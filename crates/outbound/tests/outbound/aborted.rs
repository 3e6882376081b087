//! What is reported for a transaction that is aborted because its source is revoked.

use std::net::SocketAddr;

use bytes::Bytes;
use postroad_core::{NodeId, OutcomeKind};
use postroad_directory::{Command, Pattern, Route};
use postroad_proto::queue::AttemptId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

use crate::{
    node::{Node, SOURCE, Setup},
    queue::{assignment, attempt_id, message_id},
};

/// The step at which a receiver falls silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Greeting,
    Hello,
    Mail,
    Recipient,
    Data,
    /// It stops reading the message.
    Body,
    Message,
}

/// A receiver that answers normally until it falls silent.
struct Receiver {
    address: SocketAddr,
    silent: oneshot::Receiver<()>,
    /// Ends with the connection; true when the whole message was received.
    whole: JoinHandle<bool>,
}

impl Receiver {
    async fn start(at: At) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (fell_silent, silent) = oneshot::channel();
        let whole = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut received = Vec::new();
            answer_until(&mut stream, at, &mut received).await;
            fell_silent.send(()).unwrap();
            // The connection may end with a reset.
            let _ = stream.read_to_end(&mut received).await;
            received.ends_with(b"\r\n.\r\n")
        });
        Self { address, silent, whole }
    }

    async fn start_node(&self) -> Node {
        let (host, port) = (self.address.ip().to_string().into(), self.address.port());
        Setup::default().start(Some(Route { pattern: Pattern::Any, host, port })).await
    }
}

async fn answer_until(stream: &mut TcpStream, at: At, received: &mut Vec<u8>) {
    let steps = [
        (At::Greeting, "", "220 r.example\r\n"),
        (At::Hello, "\r\n", "250 r.example\r\n"),
        (At::Mail, "\r\n", "250 ok\r\n"),
        (At::Recipient, "\r\n", "250 ok\r\n"),
        (At::Data, "\r\n", "354 go\r\n"),
        (At::Body, "x", ""),
        (At::Message, "\r\n.\r\n", ""),
    ];
    for (step, until, reply) in steps {
        while !until.is_empty() && !received.windows(until.len()).any(|part| part == until.as_bytes()) {
            assert!(stream.read_buf(received).await.unwrap() > 0, "the client closed before {step:?}");
        }
        if step == at {
            return;
        }
        if !reply.is_empty() {
            received.clear();
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    }
}

async fn assign(node: &Node, at: At) {
    let mut one = assignment(1, SOURCE, node.epoch, "example.test", &["a@example.test"]);
    if at == At::Body {
        // More than fits into the buffers of two sockets.
        let part = Bytes::from(format!("{}\r\n", "x".repeat(998)).repeat(1000));
        node.queue.set_content(1, vec![part; 20]);
        (one.content, one.size_bytes) = (Bytes::new(), 20_000_000);
    } else {
        one.content = Bytes::from_static(b"From: a@b.example\r\n\r\nx\r\n");
    }
    node.queue.assign(vec![one]).await;
}

fn revoke(node: &Node) {
    let incarnation = node.queue.seen(|seen| seen.claims[0].incarnation);
    node.queue.apply(&Command::Revoke { node: NodeId(7), incarnation });
}

#[tokio::test]
async fn r_31_and_r_34_an_aborted_transaction_is_unknown_only_after_the_dot() {
    let internal = Some(OutcomeKind::Internal);
    let expected = [
        (At::Greeting, None),
        (At::Hello, None),
        (At::Mail, internal),
        (At::Recipient, internal),
        (At::Data, internal),
        (At::Body, internal),
        (At::Message, Some(OutcomeKind::Unknown)),
    ];
    for (at, kind) in expected {
        let receiver = Receiver::start(at).await;
        let node = receiver.start_node().await;
        assign(&node, at).await;
        receiver.silent.await.unwrap();
        revoke(&node);
        let is_it = |id: &Option<AttemptId>| id.as_ref().is_some_and(|id| id.message_id == message_id(1));
        let ended = node.queue.until("an end of the attempt", |seen| {
            let reported = seen.reports.iter().find(|report| is_it(&report.attempt));
            let given_back = seen.answers.iter().find(|answer| is_it(&answer.attempt));
            reported.map(|report| Some(report.kind)).or(given_back.map(|answer| {
                assert_eq!((&answer.attempt, answer.started), (&Some(attempt_id(1, 0, node.epoch)), false));
                None
            }))
        });
        assert_eq!(ended.await, kind.map(|kind| u32::from(kind.code())), "{at:?}");
        assert_eq!(receiver.whole.await.unwrap(), at == At::Message, "{at:?}");
        node.stop().await;
    }
}
