//! Aborted transactions: their results, and that nothing more is sent.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::{testing::ByteStream, tls::ServerTls};

const ABORTED: Lost = Lost::Aborted;

/// Opens a connection to a server that runs `script` after EHLO.
async fn open<F>(script: impl FnOnce(Raw) -> F + Send + 'static) -> (Connection, tokio::task::JoinHandle<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (stream, server) = peer(move |mut server| async move {
        play_until(&mut server, Phase::Hello).await;
        server.send(good_reply(Phase::Hello)).await;
        script(server).await;
    })
    .await;
    let opened = Connection::open(stream, config(PATIENT), &ClientTls::opportunistic(), "s.example").await;
    (opened.unwrap(), server)
}

/// Reads commands up to that of `phase`, and accepts all before it.
async fn accept_commands_before(server: &mut Raw, phase: Phase) {
    for each in [Phase::Mail, Phase::Recipient, Phase::Data, Phase::Message] {
        server.until(if each == Phase::Message { "\r\n.\r\n" } else { "\r\n" }).await;
        if each == phase {
            return;
        }
        server.send(good_reply(each)).await;
    }
}

/// Reads until the client has closed, and checks that it did not finish the message.
async fn expect_no_end(mut stream: impl ByteStream) {
    let mut rest = Vec::new();
    // A reset is fine too.
    let _ = stream.read_to_end(&mut rest).await;
    assert!(!rest.ends_with(b"\r\n.\r\n"), "the end of the message was sent");
}

/// Ready once the flag is set. Never wakes its task: only a poll learns of it.
fn when(flag: &AtomicBool) -> impl Future<Output = ()> {
    poll_fn(|_| if flag.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending })
}

#[tokio::test]
async fn r_31_a_transaction_aborted_before_mail_sends_nothing() {
    let (mut connection, server) = open(|mut server| async move { server.expect_end().await }).await;
    let delivery = connection.deliver(message(), async {}).await;
    assert_eq!(
        delivery,
        Delivery { results: vec![RecipientResult::NotSent(ABORTED)], stale: false, not_started: true }
    );
    assert!(!connection.is_usable());
    drop(connection);
    server.await.unwrap();
}

/// A server that has the end of a message may have accepted it, at whatever point we abort.
#[tokio::test]
async fn r_31_a_message_whose_end_was_sent_is_never_reported_as_not_sent() {
    for polls in 0.. {
        let end_seen = Arc::new(AtomicBool::new(false));
        let seen = end_seen.clone();
        let (mut connection, server) = open(move |mut server| async move {
            for phase in [Phase::Mail, Phase::Recipient, Phase::Data, Phase::Message] {
                let end = if phase == Phase::Message { "\r\n.\r\n" } else { "\r\n" };
                if !server.until(end).await.ends_with(end) {
                    return;
                }
                seen.fetch_or(phase == Phase::Message, Ordering::SeqCst);
                if server.stream.write_all(good_reply(phase).as_bytes()).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let mut left = polls;
        let until = poll_fn(|_| {
            left -= 1;
            if left < 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        let Delivery { results, .. } = connection.deliver(message(), until).await;
        drop(connection);
        server.await.unwrap();
        let is_unsent = matches!(results[..], [RecipientResult::NotSent(_)]);
        assert!(!is_unsent || !end_seen.load(Ordering::SeqCst), "{polls} polls: {results:?}");
        if matches!(&results[..], [RecipientResult::Reply(Phase::Message, reply)] if reply.is_positive()) {
            return;
        }
    }
}

#[tokio::test]
async fn r_31_an_abort_does_not_wait_for_the_reply_to_rset() {
    let reset = CancellationToken::new();
    let seen = reset.clone();
    let (mut connection, server) = open(move |mut server| async move {
        accept_commands_before(&mut server, Phase::Mail).await;
        server.send("550 5.7.1 no\r\n").await;
        assert_eq!(server.until("\r\n").await, "RSET\r\n");
        seen.cancel();
        server.expect_end().await;
    })
    .await;
    connection.deliver(message(), pending()).await;
    assert!(connection.is_usable());
    let delivery = connection.deliver(message(), reset.cancelled()).await;
    assert_eq!(
        delivery,
        Delivery { results: vec![RecipientResult::NotSent(ABORTED)], stale: false, not_started: true }
    );
    drop(connection);
    server.await.unwrap();
}

#[tokio::test]
async fn r_31_an_abort_ends_a_wait_for_any_reply_at_once() {
    for phase in [Phase::Mail, Phase::Recipient, Phase::Data, Phase::Message] {
        let over = CancellationToken::new();
        let seen = over.clone();
        let (mut connection, server) = open(move |mut server| async move {
            accept_commands_before(&mut server, phase).await;
            seen.cancel();
            server.until("never sent").await;
        })
        .await;
        let delivery = connection.deliver(message(), over.cancelled()).await;
        let result = if phase == Phase::Message {
            RecipientResult::Unknown(ABORTED)
        } else {
            RecipientResult::NotSent(ABORTED)
        };
        assert_eq!(
            delivery,
            Delivery { results: vec![result], stale: false, not_started: false },
            "{phase:?}"
        );
        assert!(!connection.is_usable());
        drop(connection);
        server.await.unwrap();
    }
}

#[tokio::test]
async fn r_31_the_abort_is_checked_immediately_before_the_message_is_written() {
    let over = Arc::new(AtomicBool::new(false));
    let set = over.clone();
    let (mut connection, server) = open(move |mut server| async move {
        accept_commands_before(&mut server, Phase::Data).await;
        // Nothing wakes the client but the reply itself.
        set.store(true, Ordering::SeqCst);
        server.send(good_reply(Phase::Data)).await;
        let rest = server.until("never sent").await;
        assert_eq!(rest, "", "the message was sent");
    })
    .await;
    let delivery = connection.deliver(message(), when(&over)).await;
    assert_eq!(delivery.results, [RecipientResult::NotSent(ABORTED)]);
    assert!(!delivery.not_started);
    drop(connection);
    server.await.unwrap();
}

#[tokio::test]
async fn r_31_an_aborted_message_is_not_finished_for_a_slow_reader() {
    for woken in [true, false] {
        let (over, token) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let (set, cancel) = (over.clone(), token.clone());
        let (mut connection, server) = open(move |mut server| async move {
            accept_commands_before(&mut server, Phase::Data).await;
            server.send(good_reply(Phase::Data)).await;
            server.until("xxx").await;
            set.store(true, Ordering::SeqCst);
            if woken {
                cancel.cancel();
            }
            // Reading on wakes a client that waits for buffer space.
            expect_no_end(server.stream).await;
        })
        .await;
        let until = async {
            tokio::select! {
                () = token.cancelled() => {}
                () = when(&over) => {}
            }
        };
        let transaction = Transaction { content: vec![large()], ..message() };
        let delivery = connection.deliver(transaction, until).await;
        assert_eq!(delivery.results, [RecipientResult::NotSent(ABORTED)]);
        drop(connection);
        server.await.unwrap();
    }
}

#[tokio::test]
async fn r_31_an_aborted_message_over_tls_is_not_finished() {
    let tls = ServerTls::self_signed(&["s.example".to_owned()]).unwrap();
    let over = CancellationToken::new();
    let cancel = over.clone();
    let (stream, server) = peer(move |mut server| async move {
        server.send("220 s.example\r\n").await;
        server.until("\r\n").await;
        server.send("250-s.example\r\n250 STARTTLS\r\n").await;
        server.until("\r\n").await;
        server.send("220 go\r\n").await;
        let mut server = Raw::new(tls.acceptor(&[]).accept(server.stream).await.unwrap());
        for phase in [Phase::Hello, Phase::Mail, Phase::Recipient, Phase::Data] {
            server.until("\r\n").await;
            server.send(good_reply(phase)).await;
        }
        server.until("xxx").await;
        cancel.cancel();
        expect_no_end(server.stream).await;
    })
    .await;
    let opened = Connection::open(stream, config(PATIENT), &ClientTls::opportunistic(), "s.example").await;
    let mut connection = opened.unwrap();
    let transaction = Transaction { content: vec![large()], ..message() };
    let delivery = connection.deliver(transaction, over.cancelled()).await;
    assert_eq!(delivery.results, [RecipientResult::NotSent(ABORTED)]);
    drop(connection);
    server.await.unwrap();
}

#[tokio::test]
async fn r_31_a_reply_that_arrived_before_the_abort_counts() {
    let over = Arc::new(AtomicBool::new(false));
    let set = over.clone();
    let (mut connection, server) = open(move |mut server| async move {
        accept_commands_before(&mut server, Phase::Message).await;
        // The runtime has one thread, so the client sees both or neither.
        server.send("250 2.0.0 queued\r\n").await;
        set.store(true, Ordering::SeqCst);
        server.until("never sent").await;
    })
    .await;
    let delivery = connection.deliver(message(), when(&over)).await;
    assert_eq!(delivery.results, [RecipientResult::Reply(Phase::Message, Reply::new(250, 0, 0, "queued"))]);
    drop(connection);
    server.await.unwrap();
}
