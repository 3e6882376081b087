//! Transactions that are broken off: how far each was, and that nothing more is said.

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

const WITHDRAWN: Lost = Lost::Withdrawn;

/// Opens a connection whose server does what `script` says once it may be used.
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

/// Takes commands, answering all before `phase` well.
async fn take_commands(server: &mut Raw, phase: Phase) {
    for each in [Phase::Mail, Phase::Recipient, Phase::Data, Phase::Message] {
        server.until(if each == Phase::Message { "\r\n.\r\n" } else { "\r\n" }).await;
        if each == phase {
            return;
        }
        server.send(good_reply(each)).await;
    }
}

/// Reads until the client is gone, and checks that it did not finish the message.
async fn expect_no_end(mut stream: impl ByteStream) {
    let mut rest = Vec::new();
    // A reset is as good an end as any.
    let _ = stream.read_to_end(&mut rest).await;
    assert!(!rest.ends_with(b"\r\n.\r\n"), "the end of the message was sent");
}

/// Ready once the flag is set, and never a reason to be polled: who asks learns it, and nobody else.
fn when(flag: &AtomicBool) -> impl Future<Output = ()> {
    poll_fn(|_| if flag.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending })
}

#[tokio::test]
async fn r_31_before_mail_nothing_is_said_at_all() {
    let (mut connection, server) = open(|mut server| async move { server.expect_end().await }).await;
    let delivery = connection.deliver(message(), async {}).await;
    assert_eq!(delivery, Delivery { fates: vec![Fate::NotSent(WITHDRAWN)], stale: false, withheld: true });
    assert!(!connection.is_usable());
    drop(connection);
    server.await.unwrap();
}

/// Whoever has the end of a message may have taken it, at whatever point it was broken off.
#[tokio::test]
async fn r_31_no_message_is_called_unsent_whose_end_was_handed_over() {
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
        let Delivery { fates, .. } = connection.deliver(message(), until).await;
        drop(connection);
        server.await.unwrap();
        let is_unsent = matches!(fates[..], [Fate::NotSent(_)]);
        assert!(!is_unsent || !end_seen.load(Ordering::SeqCst), "{polls} polls: {fates:?}");
        if matches!(&fates[..], [Fate::Reply(Phase::Message, reply)] if reply.is_positive()) {
            return;
        }
    }
}

#[tokio::test]
async fn r_31_the_reply_to_a_reset_is_not_waited_for() {
    let reset = CancellationToken::new();
    let seen = reset.clone();
    let (mut connection, server) = open(move |mut server| async move {
        take_commands(&mut server, Phase::Mail).await;
        server.send("550 5.7.1 no\r\n").await;
        assert_eq!(server.until("\r\n").await, "RSET\r\n");
        seen.cancel();
        server.expect_end().await;
    })
    .await;
    connection.deliver(message(), pending()).await;
    assert!(connection.is_usable());
    let delivery = connection.deliver(message(), reset.cancelled()).await;
    assert_eq!(delivery, Delivery { fates: vec![Fate::NotSent(WITHDRAWN)], stale: false, withheld: true });
    drop(connection);
    server.await.unwrap();
}

#[tokio::test]
async fn r_31_a_wait_for_any_reply_is_broken_off_at_once() {
    for phase in [Phase::Mail, Phase::Recipient, Phase::Data, Phase::Message] {
        let over = CancellationToken::new();
        let seen = over.clone();
        let (mut connection, server) = open(move |mut server| async move {
            take_commands(&mut server, phase).await;
            seen.cancel();
            server.until("no client says this").await;
        })
        .await;
        let delivery = connection.deliver(message(), over.cancelled()).await;
        let fate = if phase == Phase::Message { Fate::Unknown(WITHDRAWN) } else { Fate::NotSent(WITHDRAWN) };
        assert_eq!(delivery, Delivery { fates: vec![fate], stale: false, withheld: false }, "{phase:?}");
        assert!(!connection.is_usable());
        drop(connection);
        server.await.unwrap();
    }
}

#[tokio::test]
async fn r_31_it_is_asked_again_right_before_the_message_is_written() {
    let over = Arc::new(AtomicBool::new(false));
    let set = over.clone();
    let (mut connection, server) = open(move |mut server| async move {
        take_commands(&mut server, Phase::Data).await;
        // Nothing wakes the client but the reply itself.
        set.store(true, Ordering::SeqCst);
        server.send(good_reply(Phase::Data)).await;
        let rest = server.until("no client says this").await;
        assert_eq!(rest, "", "the message was sent");
    })
    .await;
    let delivery = connection.deliver(message(), when(&over)).await;
    assert_eq!(delivery.fates, [Fate::NotSent(WITHDRAWN)]);
    assert!(!delivery.withheld);
    drop(connection);
    server.await.unwrap();
}

#[tokio::test]
async fn r_31_a_message_whose_rest_waits_for_a_slow_reader_is_not_finished() {
    for woken in [true, false] {
        let (over, token) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let (set, cancel) = (over.clone(), token.clone());
        let (mut connection, server) = open(move |mut server| async move {
            take_commands(&mut server, Phase::Data).await;
            server.send(good_reply(Phase::Data)).await;
            server.until("xxx").await;
            set.store(true, Ordering::SeqCst);
            if woken {
                cancel.cancel();
            }
            // It reads on, which wakes a client that waits for room.
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
        assert_eq!(delivery.fates, [Fate::NotSent(WITHDRAWN)]);
        drop(connection);
        server.await.unwrap();
    }
}

#[tokio::test]
async fn r_31_the_rest_of_a_tls_record_is_not_the_end_of_a_message() {
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
    assert_eq!(delivery.fates, [Fate::NotSent(WITHDRAWN)]);
    drop(connection);
    server.await.unwrap();
}

#[tokio::test]
async fn r_31_a_reply_to_the_message_that_has_come_counts() {
    let over = Arc::new(AtomicBool::new(false));
    let set = over.clone();
    let (mut connection, server) = open(move |mut server| async move {
        take_commands(&mut server, Phase::Message).await;
        // On one thread, the client sees both or neither.
        server.send("250 2.0.0 queued\r\n").await;
        set.store(true, Ordering::SeqCst);
        server.until("no client says this").await;
    })
    .await;
    let delivery = connection.deliver(message(), when(&over)).await;
    assert_eq!(delivery.fates, [Fate::Reply(Phase::Message, Reply::new(250, 0, 0, "queued"))]);
    drop(connection);
    server.await.unwrap();
}
