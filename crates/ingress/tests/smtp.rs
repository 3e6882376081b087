//! The SMTP service as clients see it: who may send what, and when they get 250.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use postroad_core::MessageId;
use postroad_directory::{Change, Command, ItemName, Kind};
use postroad_proto::queue::SubmitStatus;
use support::{
    FakeQueue, MESSAGE_SIZE_MAX, Mode, Rig, Smtp, directory, eventually, message_id,
    smtp::{auth_plain, base64},
};

const CONTENT: &str = "From: anna@a.example\r\nDate: then\r\nMessage-ID: <x@y>\r\n\r\nhi\r\n";

#[tokio::test]
async fn s_044_the_queue_has_stored_the_message_when_the_client_gets_250() {
    let rig = Rig::start().await;
    let mut client = Smtp::login(rig.implicit, "anna", "secret").await;
    let content = "From: Anna <anna@a.example>\r\nSubject: Hello\r\n there\r\nBcc: secret@b.example\r\n\r\nhi\r\n..dot\r\n";
    let recipients = ["b@b.example", "c@routed.example", "\"d d\"@B.example"];
    let reply = client.mail("anna@a.example", &recipients, content, "250 2.0.0 accepted ").await;

    let (submission, stored) = rig.last();
    let id = message_id(&submission);
    assert_eq!(reply, format!("250 2.0.0 accepted {id}\r\n"));
    let date = id.at().civil().to_rfc5322();
    // S-044, S-041 and S-042 byte for byte, with dot-stuffing removed.
    let expected = format!(
        "Received: from client.test ([127.0.0.1]) by mx.test\r\n\
         \twith ESMTPSA (TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n\tid {id}; {date}\r\n\
         Message-ID: <{id}@mx.test>\r\nDate: {date}\r\n\
         From: Anna <anna@a.example>\r\nSubject: Hello\r\n there\r\n\r\nhi\r\n.dot\r\n"
    );
    assert_eq!(stored, expected);
    assert_eq!(submission.size_bytes, stored.len() as u64);
    assert_eq!(submission.sender.as_deref(), Some("anna@a.example"));
    let stored_recipients: Vec<(&str, &str)> = submission
        .recipients
        .iter()
        .map(|recipient| (recipient.address.as_str(), recipient.site.as_str()))
        .collect();
    let sites = ["b.example", "route:10.0.0.1:2525", "b.example"];
    assert_eq!(stored_recipients, recipients.into_iter().zip(sites).collect::<Vec<_>>());
    assert_eq!(
        (submission.subject.as_str(), submission.origin.as_str()),
        ("Hello there", "login anna from 127.0.0.1")
    );
    assert_eq!((submission.eight_bit, submission.smtputf8, submission.chunks), (false, false, 0));
    assert_eq!(submission.expires_at_millis, 0, "the queue decides when a message expires");
    rig.stop().await;
}

#[tokio::test]
async fn s_044_a_name_that_is_not_ascii_never_reaches_the_header() {
    let rig = Rig::start().await;
    let mut client = Smtp::login(rig.implicit, "anna", "secret").await;
    client.command("EHLO b\u{fc}cher.example", "250").await;
    client.mail("anna@a.example", &["b@b.example"], CONTENT, "250 2.0.0").await;
    let (submission, stored) = rig.last();
    assert!(stored.starts_with("Received: from xn--bcher-kva.example ([127.0.0.1])"), "{stored}");
    assert!(stored.is_ascii() && !submission.eight_bit && !submission.smtputf8);
    rig.stop().await;
}

#[tokio::test]
async fn s_034_a_message_that_cannot_be_stored_is_not_accepted() {
    let rig = Rig::start().await;
    let mut client = Smtp::login(rig.implicit, "anna", "secret").await;
    for (status, reply) in [
        (SubmitStatus::StorageFull, "452 4.3.1"),
        (SubmitStatus::Unavailable, "451 4.3.0"),
        (SubmitStatus::NotLeader, "451 4.3.0"),
        (SubmitStatus::Invalid, "554 5.6.0"),
    ] {
        rig.queue.mode.send_replace(Mode::Answer(status));
        client.mail("a@a.example", &["b@b.example"], CONTENT, reply).await;
    }
    assert!(rig.queue.accepted().is_empty());
    rig.queue.mode.send_replace(Mode::Accept);
    client.mail("a@a.example", &["b@b.example"], CONTENT, "250 2.0.0").await;
    rig.stop().await;
}

#[tokio::test]
async fn s_034_messages_beyond_the_memory_for_them_get_452() {
    let rig = Rig::start().await;
    rig.queue.mode.send_replace(Mode::Silence);
    // Three of these need more memory than there is.
    let content = content_of(MESSAGE_SIZE_MAX - 1000, "a@a.example");
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(Smtp::login(rig.implicit, "anna", "secret").await);
    }
    let refused = async {
        loop {
            for client in &mut clients {
                client.command("MAIL FROM:<a@a.example>", "250 2.1.0").await;
                client.command("RCPT TO:<b@b.example>", "250 2.1.5").await;
                client.command("DATA", "354 ").await;
                client.send(&content).await;
            }
            for client in &mut clients {
                client.send(".\r\n").await;
            }
            for client in &mut clients {
                let reply = client.read_reply("45").await;
                if reply.starts_with("452 4.3.1") {
                    return;
                }
                // The queue did not answer before the next message was complete.
                assert!(reply.starts_with("451 4.3.0"), "{reply}");
            }
        }
    };
    tokio::time::timeout(6 * support::PATIENCE, refused).await.expect("one of three is refused");
    rig.stop().await;
}

#[tokio::test]
async fn s_034_new_clients_get_421_after_a_long_time_without_a_leader() {
    let rig = Rig::start().await;
    rig.queue.leading.send_replace(false);
    eventually("unready", || !rig.health.is_ready()).await;
    // Within the submit timeout clients are still greeted.
    drop(Smtp::connect(rig.submission).await);
    let refused = async {
        loop {
            let mut client = Smtp::on_stream(tokio::net::TcpStream::connect(rig.submission).await.unwrap());
            if client.read_reply("").await.starts_with("421 4.3.2") {
                return;
            }
        }
    };
    tokio::time::timeout(support::PATIENCE, refused).await.expect("refused");
    rig.queue.leading.send_replace(true);
    eventually("ready", || rig.health.is_ready()).await;
    drop(Smtp::connect(rig.submission).await);
    rig.stop().await;
}

#[tokio::test]
async fn s_035_an_unknown_outcome_gets_451_and_is_stored_once() {
    let rig = Rig::start().await;
    rig.queue.mode.send_replace(Mode::Silence);
    let mut client = Smtp::login(rig.implicit, "anna", "secret").await;
    client.mail("a@a.example", &["b@b.example"], CONTENT, "451 4.3.0").await;
    // Stored once, however often it was proposed.
    assert_eq!(rig.queue.accepted().len(), 1);
    rig.stop().await;
}

#[tokio::test]
async fn s_039_unauthenticated_clients_can_neither_submit_nor_relay() {
    let rig = Rig::start().await;
    let mut client = Smtp::connect(rig.submission).await;
    client.command("EHLO x.y", "250").await;
    client.command("MAIL FROM:<a@a.example>", "530 5.7.0").await;
    let mut client = Smtp::connect(rig.relay).await;
    client.command("EHLO x.y", "250").await;
    client.command("MAIL FROM:<a@a.example>", "250 2.1.0").await;
    client.command("RCPT TO:<b@b.example>", "550 5.7.1").await;
    client.command("DATA", "554 5.5.1").await;
    rig.stop().await;
}

#[tokio::test]
async fn c_104_no_way_of_writing_an_address_relays_for_a_stranger() {
    let rig = Rig::start().await;
    let senders = ["a@a.example", "", "a@mx.test", "postmaster@mx.test", "a@[127.0.0.1]", "b@b.example"];
    let recipients = [
        "b@b.example",
        "b@B.EXAMPLE",
        "b%b.example@mx.test",
        "b%b.example@[127.0.0.1]",
        "b%b.example%c.example@mx.test",
        "\"b%b.example\"@mx.test",
        "b.example!b",
        "b.example!b@mx.test",
        "mx.test!b.example!b@mx.test",
        "@mx.test:b@b.example",
        "@mx.test,@c.example:b@b.example",
        "@[127.0.0.1]:b@b.example",
        "\"b@b.example\"",
        "\"b@b.example\"@mx.test",
        "b@b.example@mx.test",
        "b@b.example@[127.0.0.1]",
        "b@[192.0.2.1]",
        "b@[IPv6:::ffff:192.0.2.1]",
        "b",
        "postmaster@b.example",
    ];
    // Commands of other programs that would make a client another one.
    let pretences =
        ["RSET", "XCLIENT ADDR=127.0.0.8 NAME=gateway.example", "PROXY TCP4 127.0.0.8 127.0.0.1 1 25"];
    let sends_as = senders.map(|sender| ("RSET", sender, recipients[0]));
    let sends_to = recipients.map(|recipient| ("RSET", senders[0], recipient));
    let pretends = pretences.map(|pretence| (pretence, senders[0], recipients[0]));
    for (pretence, sender, recipient) in sends_as.into_iter().chain(sends_to).chain(pretends) {
        let mut client = Smtp::connect(rig.relay).await;
        client.command("EHLO x.y", "250").await;
        client.command(pretence, "").await;
        client.command(&format!("MAIL FROM:<{sender}>"), "250 2.1.0").await;
        client.command(&format!("RCPT TO:<{recipient}>"), "5").await;
        client.command("DATA", "554 5.5.1").await;
    }
    // After a failed login.
    let mut client = Smtp::secure(rig.implicit).await;
    client.command(&auth_plain("anna", "wrong"), "535 5.7.8").await;
    client.command("MAIL FROM:<a@a.example>", "530 5.7.0").await;
    assert!(rig.queue.accepted().is_empty());
    rig.stop().await;
}

#[tokio::test]
async fn s_305_a_network_credential_identifies_clients_in_it() {
    let rig = Rig::start().await;
    for (from, address, origin) in [
        ([127, 0, 0, 9], rig.submission, "network trusted from 127.0.0.9"),
        ([127, 0, 0, 8], rig.submission, "network gateway from 127.0.0.8"),
        ([127, 0, 0, 8], rig.relay, "network gateway from 127.0.0.8"),
    ] {
        let mut client = Smtp::connect_from(from, address).await;
        client.command("EHLO x.y", "250").await;
        client.mail("a@a.example", &["b@b.example"], CONTENT, "250 2.0.0").await;
        let (submission, stored) = rig.last();
        assert_eq!(submission.origin, origin);
        // RFC 3848: `ESMTPA` is for clients that used AUTH.
        assert!(stored.contains(" with ESMTP\r\n\tid "), "{stored}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn s_305_and_s_039_a_network_without_relay_counts_only_where_clients_submit() {
    let rig = Rig::start().await;
    let mut client = Smtp::connect_from([127, 0, 0, 9], rig.relay).await;
    client.command("EHLO x.y", "250").await;
    client.command("MAIL FROM:<a@a.example>", "250 2.1.0").await;
    client.command("RCPT TO:<b@b.example>", "550 5.7.1").await;
    rig.stop().await;
}

#[tokio::test]
async fn s_305_a_login_says_nothing_about_other_connections_of_its_address() {
    let rig = Rig::start().await;
    let mut known = Smtp::login(rig.implicit, "anna", "secret").await;
    known.mail("a@a.example", &["b@b.example"], CONTENT, "250 2.0.0").await;
    for address in [rig.implicit, rig.submission] {
        let mut other = match address == rig.implicit {
            true => Smtp::secure(address).await,
            false => Smtp::connect(address).await,
        };
        other.command("EHLO client.test", "250").await;
        other.command("MAIL FROM:<a@a.example>", "530 5.7.0").await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn s_012_and_s_040_senders_must_belong_to_the_tenant() {
    let rig = Rig::start().await;
    let mut client = Smtp::login(rig.implicit, "sam", "secret").await;
    let named = client.command("MAIL FROM:<a@evil.example>", "550 5.7.1").await;
    assert!(named.contains("`evil.example`"), "{named}");
    for sender in ["", "a@sub.shop.example", "a@[192.0.2.1]"] {
        client.command(&format!("MAIL FROM:<{sender}>"), "550 5.7.1").await;
    }
    let forged = "From: boss@evil.example\r\n\r\nhi\r\n";
    let named = client.mail("a@shop.example", &["b@b.example"], forged, "550 5.7.1").await;
    assert!(named.contains("`evil.example`"), "{named}");
    let ours = "From: a@SHOP.example\r\n\r\nhi\r\n";
    client.mail("a@Shop.Example", &["b@b.example"], ours, "250 2.0.0").await;

    let mut client = Smtp::login(rig.implicit, "anna", "secret").await;
    client.mail("", &["b@b.example"], forged, "250 2.0.0").await;
    assert_eq!(rig.last().0.sender, None);
    rig.stop().await;
}

#[tokio::test]
async fn d_020_address_literals_are_refused_as_recipients() {
    let rig = Rig::start().await;
    let mut client = Smtp::login(rig.implicit, "anna", "secret").await;
    client.command("MAIL FROM:<a@a.example>", "250 2.1.0").await;
    for recipient in ["b@[192.0.2.1]", "b@[IPv6:2001:db8::1]"] {
        client.command(&format!("RCPT TO:<{recipient}>"), "550 5.7.1").await;
    }
    client.command("RCPT TO:<b@b.example>", "250 2.1.5").await;
    rig.stop().await;
}

/// A message of exactly `bytes` bytes.
fn content_of(bytes: u64, from: &str) -> String {
    let mut content = format!("From: {from}\r\nDate: then\r\nMessage-ID: <x@y>\r\n\r\n");
    while (content.len() as u64) + 80 < bytes {
        content.push_str(&"x".repeat(70));
        content.push_str("\r\n");
    }
    let rest = usize::try_from(bytes).unwrap() - content.len();
    content.push_str(&"y".repeat(rest - 2));
    content.push_str("\r\n");
    content
}

#[tokio::test]
async fn s_201_the_size_limit_is_exact() {
    let rig = Rig::start().await;
    let mut client = Smtp::login(rig.implicit, "anna", "secret").await;
    let (fits, over) = (MESSAGE_SIZE_MAX, MESSAGE_SIZE_MAX + 1);
    client.command(&format!("MAIL FROM:<a@a.example> SIZE={over}"), "552 5.3.4").await;
    let content = content_of(fits, "a@a.example");
    client.mail("a@a.example", &["b@b.example"], &content, "250 2.0.0").await;
    // Larger than a log entry: it was sent in chunks, completely.
    let (submission, stored) = rig.last();
    assert!(submission.chunks == 5 && rig.queue.chunks() == 5, "{} chunks", submission.chunks);
    assert!(stored.ends_with(&content) && stored.len() as u64 == submission.size_bytes);
    let content = content_of(over, "a@a.example");
    client.mail("a@a.example", &["b@b.example"], &content, "552 5.3.4").await;

    // A tenant may have a smaller limit.
    let mut client = Smtp::login(rig.implicit, "sam", "secret").await;
    let capabilities = client.command("EHLO client.test", "250").await;
    assert!(capabilities.contains("250-SIZE 2000\r\n"), "{capabilities}");
    client.command("MAIL FROM:<a@shop.example> SIZE=2001", "552 5.3.4").await;
    for (bytes, reply) in [(2000, "250 2.0.0"), (2001, "552 5.3.4")] {
        let content = content_of(bytes, "a@shop.example");
        client.mail("a@shop.example", &["b@b.example"], &content, reply).await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn s_301_auth_is_refused_without_tls() {
    let rig = Rig::start().await;
    let mut client = Smtp::connect(rig.submission).await;
    let capabilities = client.command("EHLO x.y", "250").await;
    assert!(capabilities.contains("STARTTLS") && !capabilities.contains("AUTH"));
    client.command(&auth_plain("anna", "secret"), "538 5.7.11").await;
    rig.stop().await;
}

#[tokio::test]
async fn s_302_all_wrong_credentials_get_the_same_reply() {
    let rig = Rig::start().await;
    let mut replies = Vec::new();
    for (login, password) in
        [("anna", "wrong"), ("nobody", "secret"), ("far", "secret"), ("anna", "any-key "), ("any-key", "")]
    {
        let mut client = Smtp::secure(rig.implicit).await;
        replies.push(client.command(&auth_plain(login, password), "535 5.7.8").await);
    }
    replies.dedup();
    assert_eq!(replies.len(), 1, "{replies:?}");
    // Acting for another identity is refused too.
    let mut client = Smtp::secure(rig.implicit).await;
    client.command(&format!("AUTH PLAIN {}", base64("sam\0anna\0secret")), "535 5.7.8").await;
    client.command(&format!("AUTH PLAIN {}", base64("anna\0anna\0secret")), "235 2.7.0").await;
    rig.stop().await;
}

#[tokio::test]
async fn s_302_plain_and_login_with_and_without_an_initial_response() {
    let rig = Rig::start().await;
    let mut client = Smtp::secure(rig.implicit).await;
    client.command("AUTH PLAIN", "334 ").await;
    client.command(&base64("\0anna\0secret"), "235 2.7.0").await;
    // S-303.
    client.command(&auth_plain("anna", "secret"), "503 5.5.1").await;
    let mut client = Smtp::secure(rig.implicit).await;
    client.command("AUTH LOGIN", "334 ").await;
    client.command("*", "501 5.7.0").await;
    client.command(&format!("AUTH LOGIN {}", base64("anna")), "334 ").await;
    client.command(&base64("secret"), "235 2.7.0").await;
    rig.stop().await;
}

#[tokio::test]
async fn s_302_auth_fails_temporarily_before_the_directory_is_loaded() {
    let rig = Rig::unready(FakeQueue::new(Vec::new())).await;
    let mut client = Smtp::secure(rig.implicit).await;
    client.command(&auth_plain("anna", "secret"), "454 4.7.0").await;
    assert_eq!(rig.health.not_ready(), ["ingress"]);
    directory().iter().for_each(|command| rig.queue.apply(command));
    eventually("ready", || rig.health.is_ready()).await;
    client.command(&auth_plain("anna", "secret"), "235 2.7.0").await;
    rig.stop().await;
}

#[tokio::test]
async fn s_310_a_removed_credential_is_refused() {
    let rig = Rig::start().await;
    let mut client = Smtp::login(rig.implicit, "whatever", "any-key").await;
    client.mail("a@a.example", &["b@b.example"], CONTENT, "250 2.0.0").await;
    let key = ItemName::new(Kind::Credential, "any-key");
    rig.queue.apply(&Command::Change(vec![Change::Remove(key)]));
    let refused = async {
        loop {
            client.send("MAIL FROM:<a@a.example>\r\nRSET\r\n").await;
            let reply = client.read_reply("").await;
            client.read_reply("250 ").await;
            if reply.starts_with("530 5.7.0") {
                return;
            }
        }
    };
    tokio::time::timeout(support::PATIENCE, refused).await.expect("refused");
    let mut client = Smtp::secure(rig.implicit).await;
    client.command(&auth_plain("whatever", "any-key"), "535 5.7.8").await;
    rig.stop().await;
}

#[tokio::test]
async fn a_message_in_progress_may_finish_when_the_node_stops() {
    let rig = Rig::start().await;
    let mut client = Smtp::login(rig.implicit, "anna", "secret").await;
    client.command("MAIL FROM:<a@a.example>", "250 2.1.0").await;
    client.command("RCPT TO:<b@b.example>", "250 2.1.5").await;
    client.command("DATA", "354 ").await;
    client.send("From: a@a.example\r\n").await;
    rig.shutdown.cancel();
    eventually("unready", || !rig.health.is_ready()).await;
    let reply = client.command("\r\nhi\r\n.", "250 2.0.0 accepted ").await;
    let id: MessageId = reply.trim_end().rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(message_id(&rig.last().0), id);
    rig.stop().await;
}

#[tokio::test]
async fn s_210_smtputf8_is_required_of_the_next_hop_only_when_needed() {
    let rig = Rig::start().await;
    let mut client = Smtp::login(rig.implicit, "anna", "secret").await;
    for (header, needed) in [("From: a@a.example", false), ("From: \"\u{e9}\" <a@a.example>", true)] {
        client.command("MAIL FROM:<a@a.example> SMTPUTF8 BODY=8BITMIME", "250 2.1.0").await;
        client.command("RCPT TO:<b@b.example>", "250 2.1.5").await;
        client.command("DATA", "354 ").await;
        client.command(&format!("{header}\r\n\r\n\u{e9}\r\n."), "250 2.0.0").await;
        let submission = rig.last().0;
        assert_eq!((submission.smtputf8, submission.eight_bit), (needed, true), "{header}");
    }
    rig.stop().await;
}
