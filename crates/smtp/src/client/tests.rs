//! The session without a connection, and its results when it is aborted.

use postroad_core::Domain;
use proptest::prelude::*;

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
    /// Makes a session with a server that has not greeted yet.
    fn new(tls: TlsUse) -> Self {
        let now = postroad_env::now();
        let helo = Domain::parse("c.example").unwrap();
        let config = ClientConfig { helo, tls, timeouts: Timeouts::default() };
        Self { session: ClientSession::new(config, now), input: BytesMut::new(), now }
    }

    /// Opens a session with a server that announces `extensions`, and starts a transaction.
    fn start(extensions: &str, recipients: &[&str]) -> Self {
        let mut driver = Self::new(TlsUse::Never);
        driver.receive("220 s.example\r\n");
        assert_eq!(driver.sent(), "EHLO c.example\r\n");
        assert_eq!(driver.receive(&format!("250-s.example\r\n250 {extensions}\r\n")), Output::Idle);
        assert_eq!(driver.session.start(driver.now, message(recipients)), None);
        driver
    }

    /// Goes through whole turns: what the client sends, and the replies to it.
    fn play(&mut self, turns: &[(&str, &str)]) -> Output {
        let mut output = Output::Idle;
        for (sends, receives) in turns {
            assert_eq!(self.sent(), *sends);
            output = self.receive(receives);
        }
        output
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

fn message(recipients: &[&str]) -> Transaction {
    Transaction {
        sender: Some(Address::parse("a@b.example").unwrap()),
        recipients: recipients.iter().map(|text| Address::parse(text).unwrap()).collect(),
        content: vec![Bytes::from_static(b"hi\r\n")],
        smtputf8: false,
        eight_bit: false,
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
        helo: Domain::parse("c.example").unwrap(),
        tls: TlsUse::Never,
        timeouts: Timeouts::default(),
    };
    let mut session = ClientSession::new(config, postroad_env::now());
    assert_eq!(session.abort(), None);
    let ended = Ended::Lost(Phase::Greeting, Lost::Aborted);
    assert_eq!(session.poll(postroad_env::now(), &mut BytesMut::new()), Output::Ended(ended));
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

const TWO: [&str; 2] = ["c@d.example", "e@f.example"];
const RCPT_TWO: &str = "RCPT TO:<e@f.example>\r\n";

fn refused(phase: Phase, code: u16, text: &'static str) -> RecipientResult {
    RecipientResult::Reply(phase, Reply::plain(code, text))
}

#[test]
fn s_017_a_quoted_local_part_is_sent_byte_for_byte() {
    for quoted in [r#""a@b"@c.example"#, r#""a\"b"@c.example"#, r#""a b>\\"@c.example"#] {
        let mut driver = Driver::start("HELP", &[quoted]);
        driver.play(&[(MAIL, "250 ok\r\n")]);
        assert_eq!(driver.sent(), format!("RCPT TO:<{quoted}>\r\n"));
    }
}

#[test]
fn s_403_extensions_announced_before_tls_are_forgotten() {
    let mut driver = Driver::new(TlsUse::Opportunistic);
    driver.receive("220 s.example\r\n");
    let announced = "250-s.example\r\n250-PIPELINING\r\n250-SMTPUTF8\r\n250-SIZE 1000\r\n250 STARTTLS\r\n";
    driver.play(&[("EHLO c.example\r\n", announced)]);
    assert_eq!(driver.play(&[("STARTTLS\r\n", "220 go\r\n")]), Output::StartTls);
    driver.session.tls_established(driver.now);
    assert_eq!(driver.session.capabilities(), Capabilities::default());
    assert_eq!(driver.play(&[("EHLO c.example\r\n", "250 s.example\r\n")]), Output::Idle);
    assert_eq!(driver.session.capabilities(), Capabilities::default());
    let unsupported = vec![RecipientResult::Unsupported(Extension::Smtputf8)];
    let needs_smtputf8 = Transaction { smtputf8: true, ..message(&TWO[..1]) };
    assert_eq!(driver.session.start(driver.now, needs_smtputf8), Some(unsupported));
    // Neither pipelined nor with a size.
    assert_eq!(driver.session.start(driver.now, message(&TWO)), None);
    assert_eq!(driver.sent(), MAIL);
}

#[test]
fn d_038_a_greeting_without_esmtp_gets_ehlo_and_a_refused_ehlo_gets_helo() {
    for refusal in ["500 5.5.1 what?\r\n", "502 no\r\n", "550 no\r\n"] {
        let mut driver = Driver::new(TlsUse::Opportunistic);
        driver.receive("220 hello there\r\n");
        driver.play(&[("EHLO c.example\r\n", refusal)]);
        assert_eq!(driver.play(&[("HELO c.example\r\n", "250 s.example\r\n")]), Output::Idle);
    }
    let mut driver = Driver::new(TlsUse::Opportunistic);
    driver.receive("220 hello there\r\n");
    let later = driver.play(&[("EHLO c.example\r\n", "451 later\r\n")]);
    assert_eq!(later, Output::Ended(Ended::Refused(Phase::Hello, Reply::plain(451, "later"))));
}

#[test]
fn d_033_a_refused_mail_is_the_result_of_every_recipient() {
    let expected = vec![refused(Phase::Mail, 550, "no"); 2];
    let mut driver = Driver::start("HELP", &TWO);
    assert_eq!(driver.play(&[(MAIL, "550 no\r\n")]), Output::Done(expected.clone()));
    let mut driver = Driver::start("PIPELINING", &TWO);
    let pipelined = format!("{MAIL}{RCPT}{RCPT_TWO}DATA\r\n");
    let replies = "550 no\r\n503 MAIL first\r\n503 MAIL first\r\n503 MAIL first\r\n";
    assert_eq!(driver.play(&[(&pipelined, replies)]), Output::Done(expected));
}

#[test]
fn d_033_data_is_sent_for_an_accepted_recipient_only() {
    let mut driver = Driver::start("HELP", &TWO);
    let none = driver.play(&[(MAIL, "250 ok\r\n"), (RCPT, "550 no\r\n"), (RCPT_TWO, "551 no\r\n")]);
    let results = vec![refused(Phase::Recipient, 550, "no"), refused(Phase::Recipient, 551, "no")];
    assert_eq!(none, Output::Done(results));
    assert_eq!(driver.sent(), "RSET\r\n");
    let mut driver = Driver::start("HELP", &TWO);
    driver.play(&[(MAIL, "250 ok\r\n"), (RCPT, "550 no\r\n"), (RCPT_TWO, "250 ok\r\n")]);
    assert_eq!(driver.sent(), "DATA\r\n");
    // DATA was sent in the same group: whatever a server makes of it, it gets no content.
    let mut driver = Driver::start("PIPELINING", &TWO);
    let pipelined = format!("{MAIL}{RCPT}{RCPT_TWO}DATA\r\n");
    driver.play(&[(&pipelined, "250 ok\r\n550 no\r\n551 no\r\n354 go\r\n")]);
    assert_eq!(driver.sent(), ".\r\n");
}

#[test]
fn d_033_the_replies_before_a_close_are_exact_when_they_were_pipelined() {
    for (replies, first, second) in [
        ("250 ok\r\n550 no\r\n", Some(550), None),
        ("250 ok\r\n250 ok\r\n550 no\r\n", None, Some(550)),
        ("250 ok\r\n551 no\r\n550 no\r\n", Some(551), Some(550)),
        ("250 ok\r\n", None, None),
    ] {
        let mut driver = Driver::start("PIPELINING", &TWO);
        driver.sent();
        driver.receive(replies);
        let result = |code: Option<u16>| match code {
            Some(code) => refused(Phase::Recipient, code, "no"),
            None => RecipientResult::NotSent(Lost::Closed),
        };
        let expected = vec![result(first), result(second)];
        assert_eq!(driver.session.connection_lost(false), Some(expected), "{replies:?}");
    }
}

#[test]
fn d_032_rset_follows_every_transaction_that_failed() {
    let envelope = [(MAIL, "250 ok\r\n"), (RCPT, "250 ok\r\n"), ("DATA\r\n", "354 go\r\n")];
    for failed in 0..4 {
        let mut driver = Driver::start("HELP", &TWO[..1]);
        driver.play(&envelope[..failed]);
        let sends = [MAIL, RCPT, "DATA\r\n", CONTENT][failed];
        for refusal in ["450 later\r\n", "554 no\r\n"] {
            assert!(matches!(driver.play(&[(sends, refusal)]), Output::Done(_)), "{sends:?} {refusal:?}");
            assert_eq!(driver.play(&[("RSET\r\n", "250 ok\r\n")]), Output::Idle);
            assert_eq!(driver.session.start(driver.now, message(&TWO[..1])), None);
            driver.play(&envelope[..failed]);
        }
    }
}

#[test]
fn d_041_a_pipelined_group_is_one_write() {
    let mut driver = Driver::start("PIPELINING", &TWO);
    let group = driver.session.take_output();
    assert_eq!(group, [format!("{MAIL}{RCPT}{RCPT_TWO}DATA\r\n")]);
}

proptest! {
    /// EHLO, MAIL with SIZE, and RCPT: a value that parses ends no line and begins no other one.
    #[test]
    fn c_101_an_argument_never_ends_its_line(text in "(\"(\\PC|\\\\\\PC|[\r\n\0 ]){0,6}\"|[a-z\r\n.]{1,6})@[a-z\r\n\0 .\u{fc}]{1,6}|\\PC{0,12}") {
        let is_one_line = |line: &[u8]| {
            line.strip_suffix(b"\r\n").is_some_and(|line| !line.iter().any(u8::is_ascii_control))
        };
        if let Ok(address) = Address::parse(&text) {
            let transaction = Transaction { sender: Some(address.clone()), ..message(&TWO) };
            let peer = Capabilities { size: Some(0), ..Capabilities::default() };
            prop_assert!(is_one_line(&CommandLine::mail(&transaction, &peer).finish()));
            let mut line = CommandLine::default();
            line.recipient(&address);
            prop_assert!(is_one_line(&line.finish()));
        }
        if let Ok(name) = Domain::parse(text.rsplit('@').next().unwrap_or_default()) {
            prop_assert!(is_one_line(&CommandLine::ehlo("EHLO", &name)));
        }
    }
}
