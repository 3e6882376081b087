//! The session without a connection, and what it tells when it is broken off.

use super::*;

const MAIL: &str = "MAIL FROM:<a@b.example>\r\n";
const RCPT: &str = "RCPT TO:<c@d.example>\r\n";
const CONTENT: &str = "hi\r\n.\r\n";

/// A session that is played by hand.
struct Played {
    session: ClientSession,
    input: BytesMut,
    now: Instant,
}

impl Played {
    /// Opens a session with a server that announces `extensions`, and starts a transaction.
    fn start(extensions: &str, recipients: &[&str]) -> Self {
        let now = Instant::now();
        let config = ClientConfig {
            helo: postroad_core::Domain::parse("c.example").unwrap(),
            tls: TlsUse::Never,
            timeouts: Timeouts::default(),
        };
        let mut played = Self { session: ClientSession::new(config, now), input: BytesMut::new(), now };
        played.hear("220 s.example\r\n");
        assert_eq!(played.said(), "EHLO c.example\r\n");
        assert_eq!(played.hear(&format!("250-s.example\r\n250 {extensions}\r\n")), Output::Idle);
        let transaction = Transaction {
            sender: Some(Address::parse("a@b.example").unwrap()),
            recipients: recipients.iter().map(|text| Address::parse(text).unwrap()).collect(),
            content: vec![Bytes::from_static(b"hi\r\n")],
            smtputf8: false,
            eight_bit: false,
        };
        assert_eq!(played.session.start(now, transaction), None);
        played
    }

    fn hear(&mut self, bytes: &str) -> Output {
        self.input.extend_from_slice(bytes.as_bytes());
        self.session.poll(self.now, &mut self.input)
    }

    fn said(&mut self) -> String {
        String::from_utf8(self.session.take_output().concat()).unwrap()
    }
}

/// Plays what the client says and hears in turn, breaks off, and checks the fate of the one recipient.
fn check(extensions: &str, dialogue: &[(&str, &str)], expected: &Fate) {
    let mut played = Played::start(extensions, &["c@d.example"]);
    for (says, hears) in dialogue {
        assert_eq!(played.said(), *says);
        assert!(matches!(played.hear(hears), Output::Read(_)), "{hears:?}");
    }
    assert_eq!(played.session.withdraw().as_deref(), Some(std::slice::from_ref(expected)), "{dialogue:?}");
    assert_eq!(played.said(), "", "nothing more is said");
    assert!(matches!(played.hear(""), Output::Ended(Ended::Lost(_, Lost::Withdrawn))));
    assert_eq!(played.session.withdraw(), None);
}

#[test]
fn r_31_a_transaction_that_is_broken_off_before_the_dot_was_not_sent() {
    let not_sent = Fate::NotSent(Lost::Withdrawn);
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
fn r_31_a_transaction_that_is_broken_off_after_the_dot_is_unknown() {
    let turns =
        [(MAIL, "250 ok\r\n"), (RCPT, "250 ok\r\n"), ("DATA\r\n", "354 go\r\n"), (CONTENT, "250-half a")];
    check("HELP", &turns, &Fate::Unknown(Lost::Withdrawn));
}

#[test]
fn r_31_what_was_replied_before_a_transaction_is_broken_off_still_counts() {
    let mut played = Played::start("PIPELINING", &["c@d.example", "e@f.example"]);
    played.said();
    played.hear("250 ok\r\n550 5.1.1 nobody\r\n");
    let refused = Fate::Reply(Phase::Recipient, Reply::new(550, 1, 1, "nobody"));
    assert_eq!(played.session.withdraw(), Some(vec![refused, Fate::NotSent(Lost::Withdrawn)]));
}

#[test]
fn a_session_without_a_transaction_is_broken_off_too() {
    let config = ClientConfig {
        helo: postroad_core::Domain::parse("c.example").unwrap(),
        tls: TlsUse::Never,
        timeouts: Timeouts::default(),
    };
    let mut session = ClientSession::new(config, Instant::now());
    assert_eq!(session.withdraw(), None);
    let ended = Ended::Lost(Phase::Greeting, Lost::Withdrawn);
    assert_eq!(session.poll(Instant::now(), &mut BytesMut::new()), Output::Ended(ended));
}
