use std::future::Future;

use bytes::Bytes;
use postroad_core::{Address, Domain, Reply};
use postroad_smtp::{
    client::{Extension, TlsUse},
    reply::ReplyError,
};

use super::*;
use crate::testing::{Raw, peer, run_with_few_descriptors};

mod aborted;
mod with_our_server;

const ALL: [Phase; 6] =
    [Phase::Greeting, Phase::Hello, Phase::Mail, Phase::Recipient, Phase::Data, Phase::Message];

fn config(limit: Duration) -> ClientConfig {
    let timeouts = Timeouts {
        greeting: limit,
        hello: limit,
        start_tls: limit,
        envelope: limit,
        data: limit,
        write: limit,
        message: limit,
        reset: limit,
        quit: limit,
    };
    ClientConfig { helo: Domain::parse("c.example").unwrap(), tls: TlsUse::Opportunistic, timeouts }
}

const PATIENT: Duration = Duration::from_secs(10);
const HASTY: Duration = Duration::from_millis(250);

fn message() -> Transaction {
    Transaction {
        sender: Some(Address::parse("a@b.example").unwrap()),
        recipients: vec![Address::parse("c@d.example").unwrap()],
        content: vec![Bytes::from_static(b"From: a@b.example\r\n\r\n"), Bytes::from_static(b".hi\r\n")],
        smtputf8: false,
        eight_bit: false,
    }
}

/// More than the buffers of two sockets hold.
fn large() -> Bytes {
    Bytes::from(format!("{}\r\n", "x".repeat(998)).repeat(20_000))
}

/// The replies of a well-behaved server.
fn good_reply(phase: Phase) -> &'static str {
    match phase {
        Phase::Greeting => "220 s.example\r\n",
        Phase::Hello => "250 s.example\r\n",
        Phase::Data => "354 go\r\n",
        _ => "250 ok\r\n",
    }
}

/// Plays a well-behaved server up to the command of `phase`, which is left unanswered.
async fn play_until(server: &mut Raw, phase: Phase) {
    for each in ALL {
        match each {
            Phase::Greeting => {}
            Phase::Message => drop(server.until("\r\n.\r\n").await),
            _ => drop(server.until("\r\n").await),
        }
        if each == phase {
            return;
        }
        server.send(good_reply(each)).await;
    }
}

/// Reads a large message to its final dot without keeping it.
async fn discard_message(server: &mut Raw) {
    let (mut buffer, mut end) = (vec![0; 1 << 20], Vec::new());
    while !end.ends_with(b"\r\n.\r\n") {
        let read = server.stream.read(&mut buffer).await.unwrap();
        assert!(read > 0, "the client closed before the final dot");
        end.extend_from_slice(&buffer[read.saturating_sub(5)..read]);
        end.drain(..end.len().saturating_sub(5));
    }
}

/// The end of a session.
#[derive(Debug, PartialEq)]
enum SessionResult {
    NotOpen(Ended),
    Recipient(RecipientResult),
}

/// Lets a server misbehave in `phase`; returns the result on the client side.
async fn session_with<F>(
    phase: Phase,
    limit: Duration,
    misbehave: impl FnOnce(Raw) -> F + Send + 'static,
) -> SessionResult
where
    F: Future<Output = ()> + Send + 'static,
{
    let (stream, server) = peer(move |mut server| async move {
        play_until(&mut server, phase).await;
        misbehave(server).await;
    })
    .await;
    let opened = Connection::open(stream, config(limit), &ClientTls::opportunistic(), "s.example").await;
    let result = match opened {
        Err(ended) => SessionResult::NotOpen(ended),
        Ok(mut connection) => {
            let delivery = connection.deliver(message(), pending()).await;
            assert!(!delivery.stale, "nothing is stale on a new connection");
            assert!(phase == Phase::Message || !connection.is_usable(), "{phase:?}");
            let [result] = <[RecipientResult; 1]>::try_from(delivery.results).unwrap();
            SessionResult::Recipient(result)
        }
    };
    server.abort();
    result
}

fn lost(phase: Phase, lost: Lost) -> SessionResult {
    match phase {
        Phase::Greeting | Phase::Hello => SessionResult::NotOpen(Ended::Lost(phase, lost)),
        Phase::Message => SessionResult::Recipient(RecipientResult::Unknown(lost)),
        _ => SessionResult::Recipient(RecipientResult::NotSent(lost)),
    }
}

#[tokio::test]
async fn d_001_a_silent_server_times_out_in_every_phase() {
    for phase in ALL {
        let start = postroad_env::now();
        let result = session_with(phase, HASTY, |server| async move {
            tokio::time::sleep(PATIENT).await;
            drop(server);
        })
        .await;
        assert_eq!(result, lost(phase, Lost::TimedOut(phase)));
        assert!(postroad_env::since(start) < HASTY * 8, "{phase:?} took {:?}", postroad_env::since(start));
    }
}

#[tokio::test]
async fn d_002_a_reply_sent_byte_by_byte_does_not_extend_its_deadline() {
    for phase in ALL {
        let result = session_with(phase, HASTY, |mut server| async move {
            loop {
                if server.stream.write_all(b"2").await.is_err() {
                    return;
                }
                tokio::time::sleep(HASTY / 10).await;
            }
        })
        .await;
        assert_eq!(result, lost(phase, Lost::TimedOut(phase)));
    }
}

#[tokio::test]
async fn d_037_a_reply_over_a_limit_ends_the_session() {
    const TOO_LONG: Lost = Lost::Protocol(ReplyError::TooLong);
    for reply in
        ["2".repeat(5000), "250-ok\r\n".repeat(101), format!("250-{}\r\n", "a".repeat(4000)).repeat(17)]
    {
        for phase in ALL {
            let reply = reply.clone();
            let result = session_with(phase, PATIENT, move |mut server| async move {
                let _ = server.stream.write_all(reply.as_bytes()).await;
                // The client closes; it does not wait for the end of such a reply.
                server.until("never sent").await;
            })
            .await;
            assert_eq!(result, lost(phase, TOO_LONG));
        }
    }
}

#[tokio::test]
async fn d_003_a_server_that_does_not_read_the_message_times_out() {
    let (stream, server) = peer(|mut server| async move {
        play_until(&mut server, Phase::Data).await;
        server.send("354 go\r\n").await;
        tokio::time::sleep(PATIENT).await;
    })
    .await;
    let mut connection =
        Connection::open(stream, config(PATIENT), &ClientTls::opportunistic(), "s.example").await.unwrap();
    let body = large();
    connection.timeouts.write = HASTY;
    let transaction = Transaction { content: vec![body], ..message() };
    let delivery = connection.deliver(transaction, pending()).await;
    assert_eq!(delivery.results, [RecipientResult::NotSent(Lost::TimedOut(Phase::Message))]);
    server.abort();
}

#[tokio::test]
async fn d_045_a_server_that_reads_slowly_has_its_full_time_to_reply() {
    const LIMIT: Duration = Duration::from_secs(3);
    let (stream, server) = peer(|mut server| async move {
        play_until(&mut server, Phase::Data).await;
        server.send("354 go\r\n").await;
        // The message does not fit into the buffers: it is not written before this has passed.
        tokio::time::sleep(LIMIT + LIMIT / 2).await;
        discard_message(&mut server).await;
        server.send("250 2.0.0 queued\r\n").await;
    })
    .await;
    let mut config = config(PATIENT);
    config.timeouts.message = LIMIT;
    let mut connection =
        Connection::open(stream, config, &ClientTls::opportunistic(), "s.example").await.unwrap();
    let delivery = connection.deliver(Transaction { content: vec![large()], ..message() }, pending()).await;
    assert!(
        matches!(&delivery.results[..], [RecipientResult::Reply(Phase::Message, reply)] if reply.code == 250),
        "{delivery:?}"
    );
    server.await.unwrap();
}

#[tokio::test]
async fn d_032_a_421_in_any_phase_is_reported_and_ends_the_session() {
    for phase in ALL {
        let result = session_with(phase, PATIENT, |mut server| async move {
            server.send("421 4.3.2 not now\r\n").await;
        })
        .await;
        let reply = Reply::new(421, 3, 2, "not now");
        let expected = match phase {
            Phase::Greeting | Phase::Hello => SessionResult::NotOpen(Ended::Refused(phase, reply)),
            _ => SessionResult::Recipient(RecipientResult::Reply(phase, reply)),
        };
        assert_eq!(result, expected);
    }
}

#[tokio::test]
async fn d_034_a_close_before_a_reply_is_not_sent_or_unknown() {
    for phase in ALL {
        let result = session_with(phase, PATIENT, |server| async move { drop(server) }).await;
        assert_eq!(result, lost(phase, Lost::Closed));
    }
}

#[tokio::test]
async fn d_043_a_reset_before_a_reply_is_not_sent_or_unknown() {
    for phase in ALL {
        let result = session_with(phase, PATIENT, |server| async move { server.reset() }).await;
        assert_eq!(result, lost(phase, Lost::Closed));
    }
}

#[tokio::test]
async fn d_043_a_server_that_closes_its_half_after_the_greeting_is_lost() {
    let (stream, server) = peer(|mut server| async move {
        server.send("220 s.example\r\n").await;
        server.stream.shutdown().await.unwrap();
        server.until("never sent").await;
    })
    .await;
    let opened = Connection::open(stream, config(PATIENT), &ClientTls::opportunistic(), "s.example").await;
    assert_eq!(opened.unwrap_err(), Ended::Lost(Phase::Hello, Lost::Closed));
    server.await.unwrap();
}

#[test]
fn d_043_failed_connections_leak_no_file_descriptors() {
    run_with_few_descriptors("smtp::client::tests::child_process_with_failing_connections");
}

#[tokio::test]
#[ignore = "run by the test above, with few descriptors"]
async fn child_process_with_failing_connections() {
    for _ in 0..20 {
        for phase in ALL {
            session_with(phase, PATIENT, |server| async move { drop(server) }).await;
            session_with(phase, PATIENT, |server| async move { server.reset() }).await;
            session_with(phase, PATIENT, |mut server| async move {
                let _ = server.stream.shutdown().await;
                server.until("never sent").await;
            })
            .await;
        }
    }
}

#[tokio::test]
async fn d_034_a_close_or_reset_after_the_250_is_delivered() {
    for with_reset in [false, true] {
        let result = session_with(Phase::Message, PATIENT, move |mut server| async move {
            server.send("250 2.0.0 queued\r\n").await;
            if with_reset {
                tokio::time::sleep(Duration::from_millis(50)).await;
                server.reset();
            }
        })
        .await;
        assert_eq!(
            result,
            SessionResult::Recipient(RecipientResult::Reply(Phase::Message, Reply::new(250, 0, 0, "queued")))
        );
    }
}

#[tokio::test]
async fn d_034_a_message_not_written_to_its_end_is_not_sent_even_after_a_250() {
    let (stream, server) = peer(|mut server| async move {
        play_until(&mut server, Phase::Data).await;
        server.send("354 go\r\n").await;
        server.until("From").await;
        server.send("250 2.0.0 queued\r\n").await;
        server.reset();
    })
    .await;
    let mut connection =
        Connection::open(stream, config(PATIENT), &ClientTls::opportunistic(), "s.example").await.unwrap();
    let content = vec![Bytes::from_static(b"From: a@b.example\r\n\r\n"), large()];
    let delivery = connection.deliver(Transaction { content, ..message() }, pending()).await;
    assert_eq!(delivery.results, [RecipientResult::NotSent(Lost::Closed)]);
    server.await.unwrap();
}

#[tokio::test]
async fn d_032_a_refused_transaction_is_reset_before_the_next() {
    let (stream, server) = peer(|mut server| async move {
        play_until(&mut server, Phase::Recipient).await;
        server.send("550 5.1.1 nobody\r\n").await;
        assert_eq!(server.until("\r\n").await, "RSET\r\n");
        server.send("250 ok\r\n").await;
        for phase in [Phase::Mail, Phase::Recipient, Phase::Data] {
            server.until("\r\n").await;
            server.send(good_reply(phase)).await;
        }
        assert_eq!(server.until("\r\n.\r\n").await, "From: a@b.example\r\n\r\n..hi\r\n.\r\n");
        server.send("250 2.0.0 queued\r\n").await;
        assert_eq!(server.until("\r\n").await, "QUIT\r\n");
        server.send("221 bye\r\n").await;
        assert_eq!(server.until("\r\n").await, "");
    })
    .await;
    let mut connection =
        Connection::open(stream, config(PATIENT), &ClientTls::opportunistic(), "s.example").await.unwrap();
    let refused = connection.deliver(message(), pending()).await;
    let nobody = Reply::new(550, 1, 1, "nobody");
    assert_eq!(
        refused,
        Delivery {
            results: vec![RecipientResult::Reply(Phase::Recipient, nobody)],
            stale: false,
            not_started: false
        }
    );
    assert!(connection.is_usable());
    let taken = connection.deliver(message(), pending()).await;
    assert!(
        matches!(&taken.results[..], [RecipientResult::Reply(Phase::Message, reply)] if reply.code == 250)
    );
    assert_eq!(connection.transactions(), 2);
    connection.quit().await;
    server.await.unwrap();
}

#[tokio::test]
async fn d_031_a_connection_closed_while_idle_is_stale_and_the_message_may_be_sent_elsewhere() {
    for farewell in ["", "421 4.4.2 idle too long\r\n"] {
        for at_once in [true, false] {
            let (stream, server) = peer(move |mut server| async move {
                play_until(&mut server, Phase::Message).await;
                server.send("250 2.0.0 queued\r\n").await;
                if !at_once {
                    // The close crosses the next MAIL.
                    server.until("\r\n").await;
                }
                if at_once {
                    server.send(farewell).await;
                }
            })
            .await;
            let mut connection =
                Connection::open(stream, config(PATIENT), &ClientTls::opportunistic(), "s.example")
                    .await
                    .unwrap();
            connection.deliver(message(), pending()).await;
            if at_once {
                server.await.unwrap();
            }
            let delivery = connection.deliver(message(), pending()).await;
            assert_eq!(
                delivery,
                Delivery {
                    results: vec![RecipientResult::NotSent(Lost::Closed)],
                    stale: true,
                    not_started: false
                }
            );
            assert!(!connection.is_usable());
        }
    }
}

#[tokio::test]
async fn d_031_a_reused_connection_closed_after_a_part_of_the_message_was_sent_is_not_stale() {
    for phase in [Phase::Recipient, Phase::Data, Phase::Message] {
        let (stream, server) = peer(move |mut server| async move {
            play_until(&mut server, Phase::Message).await;
            server.send("250 2.0.0 queued\r\n").await;
            for each in [Phase::Mail, Phase::Recipient, Phase::Data, Phase::Message] {
                server.until(if each == Phase::Message { "\r\n.\r\n" } else { "\r\n" }).await;
                if each == phase {
                    return;
                }
                server.send(good_reply(each)).await;
            }
        })
        .await;
        let mut connection =
            Connection::open(stream, config(PATIENT), &ClientTls::opportunistic(), "s.example")
                .await
                .unwrap();
        connection.deliver(message(), pending()).await;
        let delivery = connection.deliver(message(), pending()).await;
        assert!(!delivery.stale, "{phase:?}");
        assert_eq!(SessionResult::Recipient(delivery.results[0].clone()), lost(phase, Lost::Closed));
        server.await.unwrap();
    }
}

#[tokio::test]
async fn a_message_that_the_server_does_not_support_costs_no_round_trip() {
    let (stream, server) = peer(|mut server| async move {
        play_until(&mut server, Phase::Hello).await;
        server.send(good_reply(Phase::Hello)).await;
        assert_eq!(server.until("\r\n").await, "QUIT\r\n");
    })
    .await;
    let mut connection =
        Connection::open(stream, config(HASTY), &ClientTls::opportunistic(), "s.example").await.unwrap();
    let delivery = connection.deliver(Transaction { smtputf8: true, ..message() }, pending()).await;
    assert_eq!(delivery.results, [RecipientResult::Unsupported(Extension::Smtputf8)]);
    assert!(connection.is_usable());
    let start = postroad_env::now();
    connection.quit().await;
    assert!(postroad_env::since(start) < PATIENT / 2, "QUIT has a short timeout");
    server.await.unwrap();
}

#[tokio::test]
async fn s_402_bytes_between_the_220_and_the_handshake_end_the_connection() {
    let (stream, server) = peer(|mut server| async move {
        server.send("220 s.example\r\n").await;
        server.until("\r\n").await;
        server.send("250-s.example\r\n250 STARTTLS\r\n").await;
        server.until("\r\n").await;
        server.send("220 go\r\n250-s.example\r\n250 SMTPUTF8\r\n").await;
        assert_eq!(server.until("never sent").await, "", "the client sends no TLS hello");
    })
    .await;
    let opened = Connection::open(stream, config(PATIENT), &ClientTls::opportunistic(), "s.example").await;
    assert_eq!(opened.unwrap_err(), Ended::Injected);
    server.await.unwrap();
}

#[tokio::test]
async fn s_402_bytes_in_the_clear_instead_of_a_handshake_end_the_connection() {
    let (stream, server) = peer(|mut server| async move {
        server.send("220 s.example\r\n").await;
        server.until("\r\n").await;
        server.send("250-s.example\r\n250 STARTTLS\r\n").await;
        server.until("\r\n").await;
        server.send("220 go\r\n").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.send("250-s.example\r\n250 SMTPUTF8\r\n").await;
        server.until("never sent").await;
    })
    .await;
    let opened = Connection::open(stream, config(PATIENT), &ClientTls::opportunistic(), "s.example").await;
    assert_eq!(opened.unwrap_err(), Ended::Injected);
    server.await.unwrap();
}

#[tokio::test]
async fn d_001_a_silent_server_times_out_during_the_handshake() {
    let (stream, server) = peer(|mut server| async move {
        server.send("220 s.example\r\n").await;
        server.until("\r\n").await;
        server.send("250-s.example\r\n250 STARTTLS\r\n").await;
        server.until("\r\n").await;
        server.send("220 go\r\n").await;
        tokio::time::sleep(PATIENT).await;
    })
    .await;
    let opened = Connection::open(stream, config(HASTY), &ClientTls::opportunistic(), "s.example").await;
    let timed_out = Lost::TimedOut(Phase::StartTls);
    assert_eq!(opened.unwrap_err(), Ended::Lost(Phase::StartTls, timed_out));
    server.abort();
}
