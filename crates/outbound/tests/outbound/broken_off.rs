//! What is reported of a transaction whose source is given up while it is under way.

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

/// What a receiver is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Greeting,
    Hello,
    Mail,
    Recipient,
    Data,
    /// It reads no more of the message.
    Body,
    Message,
}

/// A receiver that answers well until it falls silent.
struct Receiver {
    address: SocketAddr,
    silent: oneshot::Receiver<()>,
    /// Ends with the connection, and tells whether the message was whole.
    whole: JoinHandle<bool>,
}

impl Receiver {
    async fn start(at: At) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, silent) = oneshot::channel();
        let whole = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = Vec::new();
            answer_until(&mut stream, at, &mut heard).await;
            tell.send(()).unwrap();
            // A reset is as good an end as any.
            let _ = stream.read_to_end(&mut heard).await;
            heard.ends_with(b"\r\n.\r\n")
        });
        Self { address, silent, whole }
    }

    async fn start_node(&self) -> Node {
        let (host, port) = (self.address.ip().to_string().into(), self.address.port());
        Setup::default().start(Some(Route { pattern: Pattern::Any, host, port })).await
    }
}

async fn answer_until(stream: &mut TcpStream, at: At, heard: &mut Vec<u8>) {
    let turns = [
        (At::Greeting, "", "220 r.example\r\n"),
        (At::Hello, "\r\n", "250 r.example\r\n"),
        (At::Mail, "\r\n", "250 ok\r\n"),
        (At::Recipient, "\r\n", "250 ok\r\n"),
        (At::Data, "\r\n", "354 go\r\n"),
        (At::Body, "x", ""),
        (At::Message, "\r\n.\r\n", ""),
    ];
    for (turn, until, reply) in turns {
        while !until.is_empty() && !heard.windows(until.len()).any(|part| part == until.as_bytes()) {
            assert!(stream.read_buf(heard).await.unwrap() > 0, "the client went before {turn:?}");
        }
        if turn == at {
            return;
        }
        if !reply.is_empty() {
            heard.clear();
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    }
}

async fn assign(node: &Node, at: At) {
    let mut one = assignment(1, SOURCE, node.epoch, "example.test", &["a@example.test"]);
    if at == At::Body {
        // More than the buffers of two sockets hold.
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
async fn r_31_r_34_a_transaction_that_is_broken_off_is_unknown_only_after_the_dot() {
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
