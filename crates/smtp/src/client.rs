//! The client's side of a session: transactions in, commands and outcomes out.
//!
//! Like the server's session it never waits: it consumes replies, collects what is to be sent,
//! and says what it needs next. What it tells of each recipient is exact, also when the connection breaks:
//! before the final dot nothing was delivered, after it nobody knows.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use postroad_core::{Address, Reply};

use crate::{
    data::stuff,
    reply::{ReplyError, ReplyReader},
};

mod argument;

#[cfg(test)]
mod tests;

use argument::CommandLine;

/// How a session is to go.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Our name: the one the source's address resolves to.
    pub helo: postroad_core::Domain,
    /// Whether to use TLS.
    pub tls: TlsUse,
    /// How long each phase may take.
    pub timeouts: Timeouts,
}

/// Whether to use STARTTLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsUse {
    /// Not even when it is offered.
    Never,
    /// When it is offered.
    Opportunistic,
    /// Always; a server that does not offer it is not used.
    Required,
}

/// Bounds of waiting, for each phase of its own. RFC 5321 4.5.3.2 gives the lowest values that are safe.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the greeting.
    pub greeting: Duration,
    /// For the reply to EHLO or HELO.
    pub hello: Duration,
    /// For the reply to STARTTLS, and for the handshake.
    pub start_tls: Duration,
    /// For each reply to MAIL and RCPT.
    pub envelope: Duration,
    /// For the reply to DATA.
    pub data: Duration,
    /// For any progress while the message is written.
    pub write: Duration,
    /// For the reply to the final dot: giving up early makes duplicates.
    pub message: Duration,
    /// For the reply to RSET.
    pub reset: Duration,
    /// For the reply to QUIT.
    pub quit: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            greeting: seconds(120),
            hello: seconds(120),
            start_tls: seconds(60),
            envelope: seconds(300),
            data: seconds(120),
            write: seconds(180),
            message: seconds(600),
            reset: seconds(5),
            quit: seconds(2),
        }
    }
}

/// One message for some recipients.
///
/// Addresses have been parsed, so none can bring a line end into a command (S-403):
/// ```compile_fail,E0308
/// fn inject(transaction: &mut postroad_smtp::client::Transaction) {
///     transaction.recipients = vec!["a@b.example>\r\nRCPT TO:<c@d.example"];
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Transaction {
    /// The reverse path.
    pub sender: Option<Address>,
    /// At least one.
    pub recipients: Vec<Address>,
    /// Header and body, in parts that are not joined.
    pub content: Vec<Bytes>,
    /// An address or a header needs SMTPUTF8.
    pub smtputf8: bool,
    /// The content holds bytes above 127.
    pub eight_bit: bool,
}

/// Where in a session something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The greeting.
    Greeting,
    /// EHLO or HELO.
    Hello,
    /// STARTTLS.
    StartTls,
    /// MAIL.
    Mail,
    /// RCPT.
    Recipient,
    /// DATA, before the message.
    Data,
    /// The reply to the final dot.
    Message,
}

/// What the session needs next.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Bytes, before the deadline, after what is in [`ClientSession::take_output`] has been sent.
    Read(Instant),
    /// TLS: [`ClientSession::tls_established`]. No byte may be buffered.
    StartTls,
    /// Nothing: a transaction may be started, or the session ended with [`ClientSession::quit`].
    Idle,
    /// The fate of each recipient of the transaction, in its order. The session may go on.
    Done(Vec<Fate>),
    /// The connection is of no use any more.
    Ended(Ended),
}

/// What became of one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The server's reply decided, in this phase; delivered only by a 2xx to the message.
    Reply(Phase, Reply),
    /// The connection was lost before the final dot: not delivered.
    NotSent(Lost),
    /// The connection was lost after the final dot: perhaps delivered.
    Unknown(Lost),
    /// The server lacks an extension without which the message cannot be sent as it is.
    Unsupported(Extension),
    /// The content has a bare CR or LF: it never leaves.
    BareNewline,
}

/// How a connection was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The server closed it, or it broke.
    Closed,
    /// A deadline passed in this phase.
    TimedOut(Phase),
    /// The server sent something that is no reply.
    Protocol(ReplyError),
    /// We broke it off ourselves.
    Withdrawn,
}

/// An extension a message can need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// RFC 6531.
    Smtputf8,
    /// RFC 6152.
    EightBitMime,
}

/// Why a session ended outside a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// After QUIT.
    Quit,
    /// The server refused to talk to us, with this reply in this phase.
    Refused(Phase, Reply),
    /// TLS is required and not offered.
    NoTls,
    /// The connection was lost in this phase.
    Lost(Phase, Lost),
    /// The server ended an idle session.
    Idle,
}

/// What the server said it can do; forgotten when TLS begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 3207.
    pub start_tls: bool,
    /// RFC 1870: announced; `Some(0)` without a limit.
    pub size: Option<u64>,
}

/// One session over one connection.
#[derive(Debug)]
pub struct ClientSession {
    config: ClientConfig,
    state: State,
    capabilities: Capabilities,
    tls: bool,
    reader: ReplyReader,
    output: Vec<Bytes>,
    deadline: Instant,
    transactions: u32,
}

#[derive(Debug)]
enum State {
    Greeting,
    Ehlo,
    Helo,
    StartTls,
    Handshake,
    Idle,
    Envelope(Box<Running>),
    Message(Box<Running>),
    Resetting,
    Quitting,
    Ended(Ended),
}

/// A transaction under way.
#[derive(Debug)]
struct Running {
    transaction: Transaction,
    /// The content as it goes over the wire.
    wire: Vec<Bytes>,
    /// What the replies said so far, by recipient.
    fates: Vec<Option<Fate>>,
    /// Commands that are sent and not answered, by the next to be.
    expected: Expected,
    /// MAIL, RCPT and DATA went out together.
    pipelined: bool,
    /// Some reply has come.
    answered: bool,
    /// The reply to DATA was not 354: no content is wanted.
    data_refused: bool,
}

/// The command whose reply comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Mail,
    Recipient(usize),
    Data,
}

impl ClientSession {
    /// Makes a session on a connection that has just been made.
    #[must_use]
    pub fn new(config: ClientConfig, now: Instant) -> Self {
        Self {
            deadline: now + config.timeouts.greeting,
            config,
            state: State::Greeting,
            capabilities: Capabilities::default(),
            tls: false,
            reader: ReplyReader::default(),
            output: Vec::new(),
            transactions: 0,
        }
    }

    /// Goes on as far as `input` allows; consumes from its front.
    pub fn poll(&mut self, now: Instant, input: &mut BytesMut) -> Output {
        loop {
            match &self.state {
                State::Ended(ended) => return Output::Ended(ended.clone()),
                State::Handshake => return Output::StartTls,
                // Nothing may come unasked but a farewell.
                State::Idle if input.is_empty() => return Output::Idle,
                _ => {}
            }
            match self.reader.read(input) {
                Ok(Some(reply)) => {
                    if let Some(fates) = self.handle(now, reply, input) {
                        return Output::Done(fates);
                    }
                }
                Ok(None) => return Output::Read(self.deadline),
                Err(error) => {
                    if let Some(fates) = self.lose(Lost::Protocol(error)) {
                        return Output::Done(fates);
                    }
                }
            }
        }
    }

    /// Takes what is to be sent, in order; empty when there is nothing.
    pub fn take_output(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.output)
    }

    /// Starts a transaction on an idle session; returns the fates at once where nothing needs to be sent.
    ///
    /// # Panics
    /// The session is not idle, or there is no recipient.
    pub fn start(&mut self, now: Instant, transaction: Transaction) -> Option<Vec<Fate>> {
        assert!(matches!(self.state, State::Idle), "a transaction starts on an idle session");
        assert!(!transaction.recipients.is_empty(), "a transaction has a recipient");
        let all = |fate: Fate| Some(vec![fate; transaction.recipients.len()]);
        if transaction.smtputf8 && !self.capabilities.smtputf8 {
            return all(Fate::Unsupported(Extension::Smtputf8));
        }
        if transaction.eight_bit && !self.capabilities.eight_bit_mime {
            return all(Fate::Unsupported(Extension::EightBitMime));
        }
        let Ok(wire) = stuff(&transaction.content) else { return all(Fate::BareNewline) };
        let mut lines = CommandLine::mail(&transaction, &self.capabilities);
        let pipelined = self.capabilities.pipelining;
        if pipelined {
            transaction.recipients.iter().for_each(|recipient| lines.recipient(recipient));
            lines.data();
        }
        self.output.push(lines.finish());
        self.deadline = now + self.config.timeouts.envelope;
        self.state = State::Envelope(Box::new(Running {
            wire,
            fates: vec![None; transaction.recipients.len()],
            expected: Expected::Mail,
            pipelined,
            answered: false,
            data_refused: false,
            transaction,
        }));
        None
    }

    /// TLS is there: what the server said before counts no longer (RFC 3207 4.2).
    pub fn tls_established(&mut self, now: Instant) {
        self.tls = true;
        self.say_hello(now);
    }

    /// The connection was closed or broke, or the deadline passed; returns the fates of a transaction under way.
    pub fn lost(&mut self, timed_out: bool) -> Option<Vec<Fate>> {
        let lost = if timed_out { Lost::TimedOut(self.phase()) } else { Lost::Closed };
        self.lose(lost)
    }

    /// Nothing more may be said; returns the fates of a transaction under way.
    ///
    /// They take for sent what has been taken from [`ClientSession::take_output`].
    pub fn withdraw(&mut self) -> Option<Vec<Fate>> {
        let unsaid = !self.take_output().is_empty();
        let ended = Ended::Lost(self.phase(), Lost::Withdrawn);
        match std::mem::replace(&mut self.state, State::Ended(ended)) {
            State::Message(running) if !unsaid => Some(running.finish(&Fate::Unknown(Lost::Withdrawn))),
            State::Envelope(running) | State::Message(running) => {
                Some(running.finish(&Fate::NotSent(Lost::Withdrawn)))
            }
            State::Ended(ended) => {
                self.state = State::Ended(ended);
                None
            }
            _ => None,
        }
    }

    /// Says goodbye to an idle server.
    pub fn quit(&mut self, now: Instant) {
        if matches!(self.state, State::Idle) {
            self.output.push(Bytes::from_static(b"QUIT\r\n"));
            self.deadline = now + self.config.timeouts.quit;
            self.state = State::Quitting;
        }
    }

    /// Returns how many transactions have been finished.
    #[must_use]
    pub fn transactions(&self) -> u32 {
        self.transactions
    }

    /// Returns true when the server has answered nothing of the transaction under way:
    /// on a session used before, its connection had gone stale and the message may be sent on another at once.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        matches!(&self.state, State::Envelope(running) if !running.answered)
    }

    /// Returns what the server can do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn phase(&self) -> Phase {
        match &self.state {
            State::Greeting => Phase::Greeting,
            State::Ehlo | State::Helo => Phase::Hello,
            State::StartTls | State::Handshake => Phase::StartTls,
            State::Envelope(running) => match running.expected {
                Expected::Mail => Phase::Mail,
                Expected::Recipient(_) => Phase::Recipient,
                Expected::Data => Phase::Data,
            },
            State::Message(_) => Phase::Message,
            State::Idle | State::Resetting | State::Quitting | State::Ended(_) => Phase::Mail,
        }
    }

    /// Ends the session; returns the fates of a transaction under way.
    fn lose(&mut self, lost: Lost) -> Option<Vec<Fate>> {
        let phase = self.phase();
        let ended = Ended::Lost(phase, lost);
        match std::mem::replace(&mut self.state, State::Ended(ended)) {
            State::Envelope(running) => Some(running.finish(&Fate::NotSent(lost))),
            State::Message(running) => Some(running.finish(&Fate::Unknown(lost))),
            State::Quitting => {
                self.state = State::Ended(Ended::Quit);
                None
            }
            State::Idle | State::Resetting => {
                self.state = State::Ended(Ended::Idle);
                None
            }
            State::Ended(ended) => {
                self.state = State::Ended(ended);
                None
            }
            _ => None,
        }
    }

    fn handle(&mut self, now: Instant, reply: Reply, input: &BytesMut) -> Option<Vec<Fate>> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Greeting if reply.code == 220 => self.say_hello(now),
            State::Greeting => self.refuse(Phase::Greeting, reply),
            State::Ehlo => self.after_ehlo(now, reply),
            State::Helo if reply.code == 250 => self.become_idle(),
            State::Helo => self.refuse(Phase::Hello, reply),
            State::StartTls => self.after_start_tls(reply, input),
            State::Envelope(running) => return self.after_envelope(now, running, reply),
            State::Message(mut running) => {
                // The connection may go, the reply to the dot has been given.
                self.after_transaction(now, reply.code, true);
                running.decide_open(&Fate::Reply(Phase::Message, reply));
                return Some(running.finish(&Fate::NotSent(Lost::Closed)));
            }
            State::Resetting if reply.is_positive() => self.state = State::Idle,
            State::Quitting => self.state = State::Ended(Ended::Quit),
            // An unasked reply is a farewell, whatever its code.
            State::Idle | State::Resetting => self.state = State::Ended(Ended::Idle),
            State::Handshake => unreachable!("no reply is read while the handshake is due"),
            State::Ended(ended) => self.state = State::Ended(ended),
        }
        None
    }

    fn say_hello(&mut self, now: Instant) {
        self.capabilities = Capabilities::default();
        self.output.push(CommandLine::hello("EHLO", &self.config.helo));
        self.deadline = now + self.config.timeouts.hello;
        self.state = State::Ehlo;
    }

    fn after_ehlo(&mut self, now: Instant, reply: Reply) {
        // D-038: a server that does not know EHLO is asked with HELO, but never after TLS has been used.
        if reply.is_permanent() && !self.tls && self.config.tls != TlsUse::Required {
            self.output.push(CommandLine::hello("HELO", &self.config.helo));
            self.deadline = now + self.config.timeouts.hello;
            self.state = State::Helo;
            return;
        }
        if reply.code != 250 {
            return self.refuse(Phase::Hello, reply);
        }
        self.capabilities = Capabilities::parse(&reply.text);
        match (self.config.tls, self.capabilities.start_tls && !self.tls) {
            (TlsUse::Opportunistic | TlsUse::Required, true) => {
                self.output.push(Bytes::from_static(b"STARTTLS\r\n"));
                self.deadline = now + self.config.timeouts.start_tls;
                self.state = State::StartTls;
            }
            (TlsUse::Required, false) if !self.tls => self.state = State::Ended(Ended::NoTls),
            _ => self.become_idle(),
        }
    }

    fn after_start_tls(&mut self, reply: Reply, input: &BytesMut) {
        if reply.code != 220 {
            return self.refuse(Phase::StartTls, reply);
        }
        // S-402: an byte that came before the handshake is not the server's.
        self.state = if input.is_empty() {
            State::Handshake
        } else {
            State::Ended(Ended::Lost(Phase::StartTls, Lost::Protocol(ReplyError::Malformed)))
        };
    }

    fn become_idle(&mut self) {
        self.state = State::Idle;
    }

    fn refuse(&mut self, phase: Phase, reply: Reply) {
        self.state = State::Ended(Ended::Refused(phase, reply));
    }

    /// Takes the reply to MAIL, RCPT or DATA.
    fn after_envelope(&mut self, now: Instant, mut running: Box<Running>, reply: Reply) -> Option<Vec<Fate>> {
        running.answered = true;
        if reply.code == 421 {
            let phase = running.phase();
            running.decide_open(&Fate::Reply(phase, reply));
            self.state = State::Ended(Ended::Idle);
            self.transactions += 1;
            return Some(running.finish(&Fate::NotSent(Lost::Closed)));
        }
        running.take_envelope_reply(reply);
        match running.next_expected() {
            Next::Reply(expected) => {
                running.expected = expected;
                if !running.pipelined {
                    self.output.push(running.command(expected));
                }
                let timeouts = &self.config.timeouts;
                self.deadline =
                    now + if expected == Expected::Data { timeouts.data } else { timeouts.envelope };
                self.state = State::Envelope(running);
                None
            }
            Next::Content => {
                self.output.append(&mut running.wire);
                self.deadline = now + self.config.timeouts.message;
                self.state = State::Message(running);
                None
            }
            Next::EmptyContent => {
                // RFC 2920 3.1: the server said 354 though it took no recipient; an empty message gets us out.
                self.output.push(Bytes::from_static(b".\r\n"));
                self.deadline = now + self.config.timeouts.message;
                self.state = State::Message(running);
                None
            }
            Next::Done => {
                self.after_transaction(now, 250, false);
                Some(running.finish(&Fate::NotSent(Lost::Closed)))
            }
        }
    }

    /// Makes the session ready for the next transaction; one that failed half-way is reset (D-032).
    fn after_transaction(&mut self, now: Instant, code: u16, complete: bool) {
        self.transactions += 1;
        if code == 421 {
            self.state = State::Ended(Ended::Idle);
        } else if complete && (200..300).contains(&code) {
            self.state = State::Idle;
        } else {
            self.output.push(Bytes::from_static(b"RSET\r\n"));
            self.deadline = now + self.config.timeouts.reset;
            self.state = State::Resetting;
        }
    }
}

enum Next {
    Reply(Expected),
    Content,
    EmptyContent,
    Done,
}

impl Running {
    fn phase(&self) -> Phase {
        match self.expected {
            Expected::Mail => Phase::Mail,
            Expected::Recipient(_) => Phase::Recipient,
            Expected::Data => Phase::Data,
        }
    }

    fn take_envelope_reply(&mut self, reply: Reply) {
        let positive = reply.code / 100 == 2;
        match self.expected {
            Expected::Mail if !positive => self.decide_open(&Fate::Reply(Phase::Mail, reply)),
            Expected::Recipient(place) if !positive && self.fates[place].is_none() => {
                self.fates[place] = Some(Fate::Reply(Phase::Recipient, reply));
            }
            Expected::Mail | Expected::Recipient(_) => {}
            Expected::Data if reply.code == 354 => {}
            Expected::Data => {
                self.data_refused = true;
                self.decide_open(&Fate::Reply(Phase::Data, reply));
            }
        }
    }

    /// What follows the reply that has just been taken.
    fn next_expected(&self) -> Next {
        let any_open = self.fates.iter().any(Option::is_none);
        match self.expected {
            // Commands that are out already are answered, whatever became of those before.
            Expected::Mail if self.pipelined || any_open => Next::Reply(Expected::Recipient(0)),
            Expected::Recipient(place) if place + 1 < self.fates.len() => {
                Next::Reply(Expected::Recipient(place + 1))
            }
            Expected::Recipient(_) if self.pipelined || any_open => Next::Reply(Expected::Data),
            Expected::Mail | Expected::Recipient(_) => Next::Done,
            Expected::Data if any_open => Next::Content,
            Expected::Data if self.data_refused => Next::Done,
            Expected::Data => Next::EmptyContent,
        }
    }

    fn decide_open(&mut self, fate: &Fate) {
        self.fates.iter_mut().filter(|known| known.is_none()).for_each(|open| *open = Some(fate.clone()));
    }

    fn command(&self, expected: Expected) -> Bytes {
        let mut line = CommandLine::default();
        match expected {
            Expected::Recipient(place) => line.recipient(&self.transaction.recipients[place]),
            Expected::Data => line.data(),
            Expected::Mail => unreachable!("MAIL is sent when the transaction starts"),
        }
        line.finish()
    }

    fn finish(self, open: &Fate) -> Vec<Fate> {
        self.fates.into_iter().map(|fate| fate.unwrap_or_else(|| open.clone())).collect()
    }
}

impl Capabilities {
    /// Reads the text of a reply to EHLO; what is not known is skipped.
    fn parse(text: &str) -> Self {
        let mut capabilities = Self::default();
        for line in text.lines().skip(1) {
            let mut words = line.split_ascii_whitespace();
            let keyword = words.next().unwrap_or("").to_ascii_uppercase();
            match keyword.as_str() {
                "PIPELINING" => capabilities.pipelining = true,
                "8BITMIME" => capabilities.eight_bit_mime = true,
                "SMTPUTF8" => capabilities.smtputf8 = true,
                "STARTTLS" => capabilities.start_tls = true,
                "SIZE" => {
                    capabilities.size = Some(words.next().and_then(|size| size.parse().ok()).unwrap_or(0))
                }
                _ => {}
            }
        }
        capabilities
    }
}
