//! The client side of an SMTP session: transactions in, commands and results out.
//!
//! Like the server session it never waits: it consumes replies, buffers output and returns what it needs next.
//! Every recipient gets an exact result, even when the connection breaks:
//! before the final dot it is not delivered, after it the result is unknown.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use postroad_core::{Address, Reply};

use crate::{
    data::dot_stuff,
    reply::{ReplyError, ReplyReader},
};

mod argument;

#[cfg(test)]
mod tests;

use argument::CommandLine;

/// The settings of a session.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Our EHLO name, to which the source's address resolves.
    pub helo: postroad_core::Domain,
    /// Whether to use TLS.
    pub tls: TlsUse,
    /// The timeout of each phase.
    pub timeouts: Timeouts,
}

/// Whether to use STARTTLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsUse {
    /// Do not use STARTTLS.
    Never,
    /// Use STARTTLS when the server offers it.
    Opportunistic,
    /// End the session when the server does not offer STARTTLS.
    Required,
}

/// Timeouts of each phase. RFC 5321 4.5.3.2 gives minimum values.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the greeting.
    pub greeting: Duration,
    /// For the reply to EHLO or HELO.
    pub hello: Duration,
    /// For the reply to STARTTLS, and again for the handshake.
    pub start_tls: Duration,
    /// For each reply to MAIL and RCPT.
    pub envelope: Duration,
    /// For the reply to DATA.
    pub data: Duration,
    /// For progress while the message is written.
    pub write: Duration,
    /// For the reply to the final dot. Giving up early causes duplicates.
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

/// One message and its recipients.
///
/// Addresses are parsed values, so none can inject a line end into a command (C-101):
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
    /// Header and body, in parts.
    pub content: Vec<Bytes>,
    /// An address or the header needs SMTPUTF8.
    pub smtputf8: bool,
    /// The content has bytes above 127.
    pub eight_bit: bool,
}

/// The phase of a session in which something happened.
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
    /// Hand [`ClientSession::take_output`] to the system, then call [`ClientSession::written`].
    ///
    /// Only then is there a deadline for the reply: however slowly the server reads, it has its full time to answer.
    Write,
    /// Read bytes before the deadline.
    Read(Instant),
    /// Do a TLS handshake and call [`ClientSession::tls_established`]. The input must be empty.
    StartTls,
    /// Start a transaction, or end the session with [`ClientSession::quit`].
    Idle,
    /// The transaction ended with one result per recipient, in order. The session may continue.
    Done(Vec<RecipientResult>),
    /// The session is over; close the connection.
    Ended(Ended),
}

/// The result of a transaction for one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecipientResult {
    /// The server replied in this phase. Only a 2xx to the message means delivered.
    Reply(Phase, Reply),
    /// The connection was lost before the final dot: not delivered.
    NotSent(Lost),
    /// The connection was lost after the final dot: perhaps delivered.
    Unknown(Lost),
    /// The server lacks an extension that the message needs.
    Unsupported(Extension),
    /// The content has a bare CR or LF and is never sent.
    BareNewline,
}

/// How a connection was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The server closed the connection, or it broke.
    Closed,
    /// The server did not answer in time in this phase.
    TimedOut(Phase),
    /// The server sent an invalid reply.
    Protocol(ReplyError),
    /// Our side aborted the transaction.
    Aborted,
}

/// An SMTP extension that a message can need.
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
    /// The server refused the session with this reply in this phase.
    Refused(Phase, Reply),
    /// TLS is required and the server does not offer it.
    NoTls,
    /// Plaintext followed the 220 to STARTTLS, where only the handshake may: somebody may have injected it (S-402).
    ///
    /// Asking this host again without TLS would give the attacker what it wants.
    Injected,
    /// The connection was lost in this phase.
    Lost(Phase, Lost),
    /// The server ended an idle session.
    Idle,
}

/// The extensions that the server announced. EHLO inside TLS announces them again.
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
    /// RFC 1870: the announced limit; `Some(0)` without a limit.
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
    reply: ReplyDue,
    transactions: u32,
    /// Every reply, while somebody wants to see them.
    record: Option<Vec<(Phase, Reply)>>,
}

/// When the next reply is due.
#[derive(Clone, Copy, Debug)]
enum ReplyDue {
    /// This long after the last byte of the output was handed to the system (D-045).
    AfterWrite(Duration),
    /// At this time.
    At(Instant),
}

#[derive(Debug)]
enum State {
    Greeting,
    Ehlo,
    Helo,
    StartTls,
    Handshake,
    Idle,
    Envelope(Box<ActiveTransaction>),
    Message(Box<ActiveTransaction>),
    Resetting,
    Quitting,
    Ended(Ended),
}

/// The transaction in progress.
#[derive(Debug)]
struct ActiveTransaction {
    transaction: Transaction,
    /// The content in wire form.
    wire: Vec<Bytes>,
    /// Results known so far, by recipient.
    results: Vec<Option<RecipientResult>>,
    /// The command that the next reply answers.
    expected: Expected,
    /// MAIL, RCPT and DATA were sent together.
    pipelined: bool,
    /// At least one command of this transaction was answered.
    answered: bool,
    /// The reply to DATA was not 354: send no content.
    data_refused: bool,
}

/// The command that the next reply answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Mail,
    Recipient(usize),
    Data,
}

impl ClientSession {
    /// Makes a session on a new connection.
    #[must_use]
    pub fn new(config: ClientConfig, now: Instant) -> Self {
        Self {
            reply: ReplyDue::At(now + config.timeouts.greeting),
            config,
            state: State::Greeting,
            capabilities: Capabilities::default(),
            tls: false,
            reader: ReplyReader::default(),
            output: Vec::new(),
            transactions: 0,
            record: None,
        }
    }

    /// Keeps every reply with its phase until [`ClientSession::take_record`] is called.
    #[must_use]
    pub fn recorded(self) -> Self {
        Self { record: Some(Vec::new()), ..self }
    }

    /// Stops keeping replies; returns those that were kept.
    pub fn take_record(&mut self) -> Vec<(Phase, Reply)> {
        self.record.take().unwrap_or_default()
    }

    /// Consumes from the front of `input` and returns what the session needs next.
    pub fn poll(&mut self, now: Instant, input: &mut BytesMut) -> Output {
        loop {
            match &self.state {
                State::Ended(ended) => return Output::Ended(ended.clone()),
                State::Handshake => return Output::StartTls,
                // While idle, the server may send only a farewell such as 421.
                State::Idle if input.is_empty() => return Output::Idle,
                _ => {}
            }
            match self.reader.read(input) {
                Ok(Some(reply)) => {
                    let phase = self.phase();
                    if let Some(record) = &mut self.record {
                        record.push((phase, reply.clone()));
                    }
                    if let Some(results) = self.handle(now, reply, input) {
                        return Output::Done(results);
                    }
                }
                // A line that is no reply, such as an empty one after the last reply.
                Ok(None) if matches!(self.state, State::Idle) && input.is_empty() => return Output::Idle,
                Ok(None) => return self.next_io(),
                Err(error) => {
                    if let Some(results) = self.end_session(Lost::Protocol(error)) {
                        return Output::Done(results);
                    }
                }
            }
        }
    }

    fn next_io(&self) -> Output {
        match self.reply {
            ReplyDue::AfterWrite(_) => Output::Write,
            ReplyDue::At(deadline) => Output::Read(deadline),
        }
    }

    /// The system has taken the last byte of the output at `now`; the time for the reply begins.
    pub fn written(&mut self, now: Instant) {
        if let ReplyDue::AfterWrite(limit) = self.reply {
            self.reply = ReplyDue::At(now + limit);
        }
    }

    /// Sets how long the reply to the buffered output may take; without output it is counted from `now`.
    fn expect_reply_within(&mut self, now: Instant, limit: Duration) {
        self.reply =
            if self.output.is_empty() { ReplyDue::At(now + limit) } else { ReplyDue::AfterWrite(limit) };
    }

    /// Takes the buffered output, in order, possibly none.
    pub fn take_output(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.output)
    }

    /// Starts a transaction on an idle session; returns results at once if the message cannot be sent.
    ///
    /// # Panics
    /// The session is not idle, or there is no recipient.
    pub fn start(&mut self, now: Instant, transaction: Transaction) -> Option<Vec<RecipientResult>> {
        assert!(matches!(self.state, State::Idle), "a transaction starts on an idle session");
        assert!(!transaction.recipients.is_empty(), "a transaction has a recipient");
        let all = |result: RecipientResult| Some(vec![result; transaction.recipients.len()]);
        if transaction.smtputf8 && !self.capabilities.smtputf8 {
            return all(RecipientResult::Unsupported(Extension::Smtputf8));
        }
        if transaction.eight_bit && !self.capabilities.eight_bit_mime {
            return all(RecipientResult::Unsupported(Extension::EightBitMime));
        }
        let Ok(wire) = dot_stuff(&transaction.content) else { return all(RecipientResult::BareNewline) };
        let mut lines = CommandLine::mail(&transaction, &self.capabilities);
        let pipelined = self.capabilities.pipelining;
        if pipelined {
            transaction.recipients.iter().for_each(|recipient| lines.recipient(recipient));
            lines.data();
        }
        self.output.push(lines.finish());
        self.expect_reply_within(now, self.config.timeouts.envelope);
        self.state = State::Envelope(Box::new(ActiveTransaction {
            wire,
            results: vec![None; transaction.recipients.len()],
            expected: Expected::Mail,
            pipelined,
            answered: false,
            data_refused: false,
            transaction,
        }));
        None
    }

    /// The handshake is done; the session starts again with EHLO (RFC 3207 4.2).
    pub fn tls_established(&mut self, now: Instant) {
        self.tls = true;
        self.send_ehlo(now);
    }

    /// The server, or somebody on the way, sent plaintext where the handshake was due.
    pub fn plaintext_instead_of_handshake(&mut self) {
        self.state = State::Ended(Ended::Injected);
    }

    /// The connection was lost or the deadline passed; returns the results of a transaction in progress.
    pub fn connection_lost(&mut self, timed_out: bool) -> Option<Vec<RecipientResult>> {
        let lost = if timed_out { Lost::TimedOut(self.phase()) } else { Lost::Closed };
        self.end_session(lost)
    }

    /// Aborts the session; returns the results of a transaction in progress.
    ///
    /// Output already taken with [`ClientSession::take_output`] counts as sent.
    pub fn abort(&mut self) -> Option<Vec<RecipientResult>> {
        let unsaid = !self.take_output().is_empty();
        let ended = Ended::Lost(self.phase(), Lost::Aborted);
        match std::mem::replace(&mut self.state, State::Ended(ended)) {
            State::Message(active) if !unsaid => {
                Some(active.finish(&RecipientResult::Unknown(Lost::Aborted)))
            }
            State::Envelope(active) | State::Message(active) => {
                Some(active.finish(&RecipientResult::NotSent(Lost::Aborted)))
            }
            State::Ended(ended) => {
                self.state = State::Ended(ended);
                None
            }
            _ => None,
        }
    }

    /// Sends QUIT if the session is idle.
    pub fn quit(&mut self, now: Instant) {
        if matches!(self.state, State::Idle) {
            self.output.push(Bytes::from_static(b"QUIT\r\n"));
            self.expect_reply_within(now, self.config.timeouts.quit);
            self.state = State::Quitting;
        }
    }

    /// Returns the number of finished transactions.
    #[must_use]
    pub fn transactions(&self) -> u32 {
        self.transactions
    }

    /// Returns true when the server has not answered any command of the transaction in progress.
    /// On a reused connection that means it was stale, and the message may be sent on another at once.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        matches!(&self.state, State::Envelope(active) if !active.answered)
    }

    /// Returns how many replies of this session broke the rules and were understood (D-044).
    #[must_use]
    pub fn irregular_replies(&self) -> u64 {
        self.reader.irregular()
    }

    /// Returns the extensions that the server announced.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn phase(&self) -> Phase {
        match &self.state {
            State::Greeting => Phase::Greeting,
            State::Ehlo | State::Helo => Phase::Hello,
            State::StartTls | State::Handshake => Phase::StartTls,
            State::Envelope(active) => active.phase(),
            State::Message(_) => Phase::Message,
            State::Idle | State::Resetting | State::Quitting | State::Ended(_) => Phase::Mail,
        }
    }

    /// Ends the session; returns the results of a transaction in progress.
    fn end_session(&mut self, lost: Lost) -> Option<Vec<RecipientResult>> {
        let phase = self.phase();
        let ended = Ended::Lost(phase, lost);
        match std::mem::replace(&mut self.state, State::Ended(ended)) {
            State::Envelope(active) => Some(active.finish(&RecipientResult::NotSent(lost))),
            State::Message(active) => Some(active.finish(&RecipientResult::Unknown(lost))),
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

    fn handle(&mut self, now: Instant, reply: Reply, input: &BytesMut) -> Option<Vec<RecipientResult>> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Greeting if reply.code == 220 => self.send_ehlo(now),
            State::Greeting => self.refuse(Phase::Greeting, reply),
            State::Ehlo => self.after_ehlo(now, reply),
            State::Helo if reply.code == 250 => self.state = State::Idle,
            State::Helo => self.refuse(Phase::Hello, reply),
            State::StartTls => self.after_start_tls(reply, input),
            State::Envelope(active) => return self.after_envelope(now, active, reply),
            State::Message(mut active) => {
                // The reply to the final dot decides; losing the connection now changes nothing.
                self.after_transaction(now, reply.code, true);
                active.set_undecided(&RecipientResult::Reply(Phase::Message, reply));
                return Some(active.finish(&RecipientResult::NotSent(Lost::Closed)));
            }
            State::Resetting if reply.is_positive() => self.state = State::Idle,
            State::Quitting => self.state = State::Ended(Ended::Quit),
            // An unexpected reply is a farewell, whatever its code.
            State::Idle | State::Resetting => self.state = State::Ended(Ended::Idle),
            State::Handshake => unreachable!("no reply is read before the handshake"),
            State::Ended(ended) => self.state = State::Ended(ended),
        }
        None
    }

    fn send_ehlo(&mut self, now: Instant) {
        self.capabilities = Capabilities::default();
        self.output.push(CommandLine::ehlo("EHLO", &self.config.helo));
        self.expect_reply_within(now, self.config.timeouts.hello);
        self.state = State::Ehlo;
    }

    fn after_ehlo(&mut self, now: Instant, reply: Reply) {
        // D-038: fall back to HELO when the server refuses EHLO, but never inside TLS.
        if reply.is_permanent() && !self.tls && self.config.tls != TlsUse::Required {
            self.output.push(CommandLine::ehlo("HELO", &self.config.helo));
            self.expect_reply_within(now, self.config.timeouts.hello);
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
                self.expect_reply_within(now, self.config.timeouts.start_tls);
                self.state = State::StartTls;
            }
            (TlsUse::Required, false) if !self.tls => self.state = State::Ended(Ended::NoTls),
            _ => self.state = State::Idle,
        }
    }

    fn after_start_tls(&mut self, reply: Reply, input: &BytesMut) {
        if reply.code != 220 {
            return self.refuse(Phase::StartTls, reply);
        }
        // S-402: a byte received before the handshake may have been injected.
        self.state = if input.is_empty() { State::Handshake } else { State::Ended(Ended::Injected) };
    }

    fn refuse(&mut self, phase: Phase, reply: Reply) {
        self.state = State::Ended(Ended::Refused(phase, reply));
    }

    /// Handles the reply to MAIL, RCPT or DATA.
    fn after_envelope(
        &mut self,
        now: Instant,
        mut active: Box<ActiveTransaction>,
        reply: Reply,
    ) -> Option<Vec<RecipientResult>> {
        active.answered = true;
        if reply.code == 421 {
            let phase = active.phase();
            active.set_undecided(&RecipientResult::Reply(phase, reply));
            self.state = State::Ended(Ended::Idle);
            self.transactions += 1;
            return Some(active.finish(&RecipientResult::NotSent(Lost::Closed)));
        }
        active.record_envelope_reply(reply);
        match active.next_expected() {
            Next::Reply(expected) => {
                active.expected = expected;
                if !active.pipelined {
                    self.output.push(active.command(expected));
                }
                let timeouts = &self.config.timeouts;
                let limit = if expected == Expected::Data { timeouts.data } else { timeouts.envelope };
                self.expect_reply_within(now, limit);
                self.state = State::Envelope(active);
                None
            }
            Next::Content => {
                self.output.append(&mut active.wire);
                self.expect_reply_within(now, self.config.timeouts.message);
                self.state = State::Message(active);
                None
            }
            Next::EmptyContent => {
                // RFC 2920 3.1: 354 although no recipient was accepted; an empty message ends DATA.
                self.output.push(Bytes::from_static(b".\r\n"));
                self.expect_reply_within(now, self.config.timeouts.message);
                self.state = State::Message(active);
                None
            }
            Next::Done => {
                self.after_transaction(now, 250, false);
                Some(active.finish(&RecipientResult::NotSent(Lost::Closed)))
            }
        }
    }

    /// Prepares the session for the next transaction; sends RSET after a failed one (D-032).
    fn after_transaction(&mut self, now: Instant, code: u16, complete: bool) {
        self.transactions += 1;
        if code == 421 {
            self.state = State::Ended(Ended::Idle);
        } else if complete && (200..300).contains(&code) {
            self.state = State::Idle;
        } else {
            self.output.push(Bytes::from_static(b"RSET\r\n"));
            self.expect_reply_within(now, self.config.timeouts.reset);
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

impl ActiveTransaction {
    fn phase(&self) -> Phase {
        match self.expected {
            Expected::Mail => Phase::Mail,
            Expected::Recipient(_) => Phase::Recipient,
            Expected::Data => Phase::Data,
        }
    }

    fn record_envelope_reply(&mut self, reply: Reply) {
        let positive = reply.code / 100 == 2;
        match self.expected {
            Expected::Mail if !positive => self.set_undecided(&RecipientResult::Reply(Phase::Mail, reply)),
            Expected::Recipient(index) if !positive && self.results[index].is_none() => {
                self.results[index] = Some(RecipientResult::Reply(Phase::Recipient, reply));
            }
            Expected::Mail | Expected::Recipient(_) => {}
            Expected::Data if reply.code == 354 => {}
            Expected::Data => {
                self.data_refused = true;
                self.set_undecided(&RecipientResult::Reply(Phase::Data, reply));
            }
        }
    }

    /// Returns the next step after the reply that was just recorded.
    fn next_expected(&self) -> Next {
        let any_undecided = self.results.iter().any(Option::is_none);
        match self.expected {
            // Pipelined commands are answered even when an earlier one failed.
            Expected::Mail if self.pipelined || any_undecided => Next::Reply(Expected::Recipient(0)),
            Expected::Recipient(index) if index + 1 < self.results.len() => {
                Next::Reply(Expected::Recipient(index + 1))
            }
            Expected::Recipient(_) if self.pipelined || any_undecided => Next::Reply(Expected::Data),
            Expected::Mail | Expected::Recipient(_) => Next::Done,
            Expected::Data if any_undecided => Next::Content,
            Expected::Data if self.data_refused => Next::Done,
            Expected::Data => Next::EmptyContent,
        }
    }

    fn set_undecided(&mut self, result: &RecipientResult) {
        self.results.iter_mut().filter(|known| known.is_none()).for_each(|open| *open = Some(result.clone()));
    }

    fn command(&self, expected: Expected) -> Bytes {
        let mut line = CommandLine::default();
        match expected {
            Expected::Recipient(index) => line.recipient(&self.transaction.recipients[index]),
            Expected::Data => line.data(),
            Expected::Mail => unreachable!("MAIL is sent when the transaction starts"),
        }
        line.finish()
    }

    fn finish(self, open: &RecipientResult) -> Vec<RecipientResult> {
        self.results.into_iter().map(|result| result.unwrap_or_else(|| open.clone())).collect()
    }
}

impl Capabilities {
    /// Parses the text of a reply to EHLO; ignores unknown keywords.
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
