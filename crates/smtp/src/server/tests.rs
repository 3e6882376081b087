use super::*;

/// Runs a session of a trusted client to the end of `input` and returns the replies.
fn run(input: &str) -> String {
    let now = postroad_env::now();
    let peer = Peer { ip: IpAddr::from([127, 0, 0, 1]), tls: None, identity: Some(()) };
    let mut session = ServerSession::new(Arc::new(ServerConfig::default()), peer, now);
    let mut buffer = BytesMut::new();
    session.poll(now, &mut buffer);
    buffer.extend_from_slice(input.as_bytes());
    loop {
        match session.poll(now, &mut buffer) {
            Output::Read(_) | Output::Close | Output::Quit | Output::StartTls => break,
            Output::Ask(Question::Message(_)) => {
                session.answer(now, Answer::Reply(Reply::new(250, 0, 0, "queued")))
            }
            Output::Ask(_) => session.answer(now, Answer::Yes),
        }
    }
    String::from_utf8(session.take_replies().to_vec()).unwrap()
}

fn check(input: &str, expected: &[&str]) {
    let replies = run(input);
    let codes: Vec<&str> = replies.lines().filter(|line| line.as_bytes().get(3) == Some(&b' ')).collect();
    let starts = codes.len() == expected.len()
        && codes.iter().zip(expected).all(|(line, start)| line.starts_with(start));
    assert!(starts, "{input:?} gives {replies}");
}

/// A trusted network permits sending; a login, allowed once, replaces that identity.
#[test]
fn s_303_a_client_of_a_trusted_network_may_still_log_in_once() {
    let now = postroad_env::now();
    let tls = Some(TlsInfo("TLSv1.3".into()));
    let peer = Peer { ip: IpAddr::from([127, 0, 0, 1]), tls, identity: Some("network") };
    let mut session = ServerSession::new(Arc::new(ServerConfig::default()), peer, now);
    let mut buffer = BytesMut::new();
    session.poll(now, &mut buffer);
    let mut send = |line: &str| {
        buffer.extend_from_slice(line.as_bytes());
        if let Output::Ask(Question::Authenticate(_)) = session.poll(now, &mut buffer) {
            session.answer(now, Answer::Identity("login"));
        }
        String::from_utf8(session.take_replies().to_vec()).unwrap()
    };
    assert!(send("EHLO client.example\r\n").contains("AUTH PLAIN LOGIN"));
    assert!(send("AUTH PLAIN AGFiYwBkZWY=\r\n").starts_with("235"));
    assert!(!send("EHLO client.example\r\n").contains("AUTH"));
    assert!(send("AUTH PLAIN AGFiYwBkZWY=\r\n").starts_with("503 5.5.1"));
    assert_eq!(session.identity(), Some(&"login"));
}

#[test]
fn what_the_session_itself_refuses_is_kept_and_what_the_policy_refuses_is_not() {
    let now = postroad_env::now();
    let config = ServerConfig { recipients_max: 1, ..ServerConfig::default() };
    let peer = Peer { ip: IpAddr::from([127, 0, 0, 1]), tls: None, identity: Some(()) };
    let mut session = ServerSession::new(Arc::new(config), peer, now);
    let mut buffer = BytesMut::new();
    session.poll(now, &mut buffer);
    buffer.extend_from_slice(
        b"EHLO client.example\r\nNONSENSE\r\nMAIL FROM:<>\r\nMAIL FROM:<a@a.example>\r\n\
          RCPT TO:<b@b.example>\r\nRCPT TO:<@>\r\nRCPT TO:<c@b.example>\r\n",
    );
    while let Output::Ask(question) = session.poll(now, &mut buffer) {
        let is_null = matches!(&question, Question::Sender(mail) if mail.sender.is_none());
        let refusal = Answer::Reply(Reply::new(550, 7, 1, "not with the null sender"));
        session.answer(now, if is_null { refusal } else { Answer::Yes });
    }
    // Not the 500 for what is no command, nor the policy's 550.
    let codes: Vec<u16> = session.take_refused().iter().map(|reply| reply.code).collect();
    assert_eq!(codes, [501, 452]);
    assert!(session.take_refused().is_empty());
}

#[test]
fn a_pipelined_transaction_is_answered_in_order() {
    let mail = "MAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\nFrom: a@b.c\r\n\r\nhi\r\n.\r\nQUIT\r\n";
    let expected = ["220 ", "250 ", "250 2.1.0", "250 2.1.5", "354 ", "250 2.0.0", "221 2.0.0"];
    check(&format!("EHLO x.y\r\n{mail}"), &expected);
}

#[test]
fn s_007_a_tls_hello_on_a_plaintext_port_is_refused_at_once() {
    check("\x16\x03\x01 and no end of a line", &["220 ", "221 2.7.0"]);
    check("NOOP\r\n\x16\x03\x01\n", &["220 ", "250 ", "221 2.7.0"]);
}

#[test]
fn s_028_a_line_over_64_kib_ends_the_session_even_when_its_end_has_arrived() {
    let line = |bytes: usize| format!("EHLO x.y\r\n{}\r\nNOOP\r\n", "x".repeat(bytes));
    check(&line(60 << 10), &["220 ", "250 ", "500 5.5.2", "250 2.0.0"]);
    check(&line(70 << 10), &["220 ", "250 ", "421 4.7.0"]);
}

#[test]
fn s_028_what_is_over_the_limit_of_a_line_is_not_kept() {
    let now = postroad_env::now();
    let peer = Peer { ip: IpAddr::from([127, 0, 0, 1]), tls: None, identity: Some(()) };
    let mut session = ServerSession::new(Arc::new(ServerConfig::default()), peer, now);
    let mut buffer = BytesMut::new();
    session.poll(now, &mut buffer);
    buffer.extend_from_slice(b"EHLO x.y\r\n");
    session.poll(now, &mut buffer);
    for _ in 0..60 {
        buffer.extend_from_slice(&[b'x'; 1 << 10]);
        session.poll(now, &mut buffer);
        assert!(buffer.len() < 4096, "{} bytes of a line are kept", buffer.len());
    }
    session.take_replies();
    buffer.extend_from_slice(b"\r\nNOOP\r\n");
    session.poll(now, &mut buffer);
    let replies = String::from_utf8(session.take_replies().to_vec()).unwrap();
    assert_eq!(replies, "500 5.5.2 Line too long\r\n250 2.0.0 ok\r\n");
}

#[test]
fn s_028_and_s_302_a_line_of_auth_may_have_12_288_bytes() {
    let line = |bytes: usize| format!("EHLO x.y\r\nAUTH PLAIN {}\r\nNOOP\r\n", "x".repeat(bytes - 13));
    check(&line(12_288), &["220 ", "250 ", "538 5.7.11", "250 2.0.0"]);
    check(&line(12_289), &["220 ", "250 ", "500 5.5.6", "250 2.0.0"]);
}

#[test]
fn s_201_the_smaller_of_the_limits_of_listener_and_client_holds() {
    let now = postroad_env::now();
    for (listener, own, expected) in
        [(10, None, 10), (10, Some(5), 5), (10, Some(20), 10), (0, Some(5), 5), (0, None, 0)]
    {
        let config = ServerConfig { message_size_max: listener, ..ServerConfig::default() };
        let peer = Peer { ip: IpAddr::from([127, 0, 0, 1]), tls: None, identity: Some(()) };
        let mut session = ServerSession::new(Arc::new(config), peer, now);
        session.limit_message_size(own);
        let mut buffer = BytesMut::new();
        session.poll(now, &mut buffer);
        buffer.extend_from_slice(b"EHLO x.y\r\nMAIL FROM:<a@b.c> SIZE=6\r\n");
        session.poll(now, &mut buffer);
        let replies = String::from_utf8(session.take_replies().to_vec()).unwrap();
        assert!(replies.contains(&format!("-SIZE {expected}\r\n")), "{replies}");
        assert_eq!(replies.contains("552 5.3.4"), expected == 5, "{replies}");
    }
}

#[test]
fn s_101_a_smuggled_message_is_refused_after_the_true_end() {
    let smuggled = "From: a@b.c\r\n\r\nhi\n.\r\nMAIL FROM:<x@y.z>\r\n.\r\nNOOP\r\n";
    let mail = format!("HELO x.y\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\n{smuggled}");
    check(&mail, &["220 ", "250 ", "250 2.1.0", "250 2.1.5", "354 ", "550 5.5.2", "250 2.0.0"]);
}
