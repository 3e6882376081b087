//! The session without a connection, and its results when it is aborted.

use super::*;

const MAIL: &str = "MAIL FROM:<a@b.example>\r\n";
const RCPT: &str = "RCPT TO:<c@d.example>\r\n";
const CONTENT: &str = "hi\r\n.\r\n";

/// A session driven by hand.
struct Driver {
    session: ClientSession,
    input: BytesMut,
    now: Instant,
}

impl Driver {
    /// Opens a session with a server that announces `extensions`, and starts a transaction.
    fn start(extensions: &str, recipients: &[&str]) -> Self {
        let now = Instant::now();
        let config = ClientConfig {
            helo: postroad_core::Domain::parse("c.example").unwrap(),
            tls: TlsUse::Never,
            timeouts: Timeouts::default(),
        };
        let mut driver = Self { session: ClientSession::new(config, now), input: BytesMut::new(), now };
        driver.receive("220 s.example\r\n");
        assert_eq!(driver.sent(), "EHLO c.example\r\n");
        assert_eq!(driver.receive(&format!("250-s.example\r\n250 {extensions}\r\n")), Output::Idle);
        let transaction = Transaction {
            sender: Some(Address::parse("a@b.example").unwrap()),
            recipients: recipients.iter().map(|text| Address::parse(text).unwrap()).collect(),
            content: vec![Bytes::from_static(b"hi\r\n")],
            smtputf8: false,
            eight_bit: false,
        };
        assert_eq!(driver.session.start(now, transaction), None);
        driver
    }

    fn receive(&mut self, bytes: &str) -> Output {
        self.input.extend_from_slice(bytes.as_bytes());
        self.session.poll(self.now, &mut self.input)
    }

    fn sent(&mut self) -> String {
        let output = self.session.take_output();
        self.session.written(self.now);
        String::from_utf8(output.concat()).unwrap()
    }
}

/// Plays a dialogue of client commands and server replies, aborts, and checks the result of the one recipient.
fn check(extensions: &str, dialogue: &[(&str, &str)], expected: &RecipientResult) {
    let mut driver = Driver::start(extensions, &["c@d.example"]);
    for (sends, receives) in dialogue {
        assert_eq!(driver.sent(), *sends);
        assert!(matches!(driver.receive(receives), Output::Read(_) | Output::Write), "{receives:?}");
    }
    assert_eq!(driver.session.abort().as_deref(), Some(std::slice::from_ref(expected)), "{dialogue:?}");
    assert_eq!(driver.sent(), "", "nothing more is sent");
    assert!(matches!(driver.receive(""), Output::Ended(Ended::Lost(_, Lost::Aborted))));
    assert_eq!(driver.session.abort(), None);
}

#[test]
fn r_31_a_transaction_aborted_before_the_final_dot_is_not_sent() {
    let not_sent = RecipientResult::NotSent(Lost::Aborted);
    let turns = [(MAIL, "250 ok\r\n"), (RCPT, "250 ok\r\n"), ("DATA\r\n", "354 go\r\n")];
    for turn in 0..=turns.len() {
        check("HELP", &turns[..turn], &not_sent);
    }
    let pipelined = format!("{MAIL}{RCPT}DATA\r\n");
    check("PIPELINING", &[], &not_sent);
    for replies in ["", "250 ok\r\n", "250 ok\r\n250 ok\r\n", "250 ok\r\n250 ok\r\n354 go\r\n"] {
        check("PIPELINING", &[(&pipelined, replies)], &not_sent);
    }
}

#[test]
fn r_31_a_transaction_aborted_after_the_final_dot_is_unknown() {
    let turns =
        [(MAIL, "250 ok\r\n"), (RCPT, "250 ok\r\n"), ("DATA\r\n", "354 go\r\n"), (CONTENT, "250-half a")];
    check("HELP", &turns, &RecipientResult::Unknown(Lost::Aborted));
}

#[test]
fn r_31_replies_before_the_abort_still_count() {
    let mut driver = Driver::start("PIPELINING", &["c@d.example", "e@f.example"]);
    driver.sent();
    driver.receive("250 ok\r\n550 5.1.1 nobody\r\n");
    let refused = RecipientResult::Reply(Phase::Recipient, Reply::new(550, 1, 1, "nobody"));
    assert_eq!(driver.session.abort(), Some(vec![refused, RecipientResult::NotSent(Lost::Aborted)]));
}

#[test]
fn a_session_without_a_transaction_can_be_aborted() {
    let config = ClientConfig {
        helo: postroad_core::Domain::parse("c.example").unwrap(),
        tls: TlsUse::Never,
        timeouts: Timeouts::default(),
    };
    let mut session = ClientSession::new(config, Instant::now());
    assert_eq!(session.abort(), None);
    let ended = Ended::Lost(Phase::Greeting, Lost::Aborted);
    assert_eq!(session.poll(Instant::now(), &mut BytesMut::new()), Output::Ended(ended));
}

#[test]
fn d_045_the_time_for_the_reply_to_the_final_dot_begins_when_its_last_byte_was_written() {
    let mut driver = Driver::start("HELP", &["c@d.example"]);
    for replies in ["250 ok\r\n", "250 ok\r\n"] {
        driver.sent();
        driver.receive(replies);
    }
    assert_eq!(driver.sent(), "DATA\r\n");
    assert_eq!(driver.receive("354 go\r\n"), Output::Write);
    assert!(!driver.session.take_output().is_empty());
    // The server reads slowly: writing takes longer than it may take to reply.
    let limit = Timeouts::default().message;
    driver.now += limit + Duration::from_secs(55);
    assert_eq!(driver.receive(""), Output::Write);
    driver.session.written(driver.now);
    let deadline = driver.now + limit;
    assert_eq!(driver.receive(""), Output::Read(deadline));
    // And it thinks for nearly as long as it may. A part of a reply does not extend the deadline (D-002).
    driver.now += limit - Duration::from_secs(1);
    assert_eq!(driver.receive("250 2.0"), Output::Read(deadline));
    assert!(matches!(driver.receive(".0 queued\r\n"), Output::Done(_)));
}

#[test]
fn d_045_the_time_for_every_reply_begins_when_its_command_was_written() {
    let mut driver = Driver::start("HELP", &["c@d.example"]);
    let timeouts = Timeouts::default();
    let turns =
        [("250 ok\r\n", timeouts.envelope), ("250 ok\r\n", timeouts.envelope), ("354 go\r\n", timeouts.data)];
    for (reply, limit) in turns {
        driver.now += Duration::from_secs(3600);
        assert_eq!(driver.receive(""), Output::Write);
        driver.sent();
        assert_eq!(driver.receive(""), Output::Read(driver.now + limit));
        driver.receive(reply);
    }
}

#[test]
fn d_044_an_empty_line_after_a_reply_does_not_delay_the_next_transaction() {
    let mut driver = Driver::start("HELP", &["c@d.example"]);
    for (_, reply) in [(MAIL, "250 ok\r\n"), (RCPT, "250 ok\r\n"), ("DATA\r\n", "354 go\r\n")] {
        driver.sent();
        driver.receive(reply);
    }
    driver.sent();
    let Output::Done(results) = driver.receive("\r\n250 2.0.0 taken\r\n\r\n") else { panic!("no result") };
    let taken = RecipientResult::Reply(Phase::Message, Reply::new(250, 0, 0, "taken"));
    assert_eq!(results, [taken]);
    assert_eq!(driver.receive(""), Output::Idle);
    assert_eq!(driver.session.irregular_replies(), 1);
}
