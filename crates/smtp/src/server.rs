//! The server side of an SMTP session: commands in, replies and policy questions out.
//!
//! The session never waits. It consumes input, buffers replies, and returns what it needs next:
//! more bytes, the answer to a question, TLS, or the end of the connection.
//! The same session serves listeners, tests and the fuzzer.
//!
//! Where the RFCs allow several reply codes, tests fix our choice.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use postroad_core::{Address, ByteSize, Recipients, Reply};
use zeroize::Zeroizing;

use crate::{
    command::{Command, CommandError, Mail, Parsed},
    data::{DataDecoder, Decoded},
    headers,
    tolerance::{Syntax, Tolerance, Tolerances, Tolerant},
};

mod auth;

pub use auth::{Credentials, Mechanism};

/// What a listener offers and accepts.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Our name in the greeting and in replies to EHLO.
    pub hostname: Box<str>,
    /// Who may send to whom: submission or relay.
    pub service: Service,
    /// Largest message in bytes, without dot-stuffing; 0 for no limit.
    pub message_size_max: u64,
    /// Most recipients of one transaction; RFC 5321 4.5.3.1.8 requires at least 100.
    pub recipients_max: usize,
    /// Senders, recipients and messages in a row that may be refused to a client with an identity before 421.
    ///
    /// Refusals to other clients count as errors.
    pub refusals_max: u32,
    /// The listener has a certificate: STARTTLS is offered.
    pub tls_available: bool,
    /// Who may deviate from the syntax.
    pub tolerant: Tolerant,
    /// How long the client may take for one command, counted from the end of the previous one.
    pub command_timeout: Duration,
    /// How long the client may take to send a message.
    pub data_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            hostname: "localhost".into(),
            service: Service::Submission,
            message_size_max: 26_214_400,
            recipients_max: 1000,
            refusals_max: 1000,
            tls_available: false,
            tolerant: Tolerant::Known,
            // RFC 5321 4.5.3.2.7.
            command_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(1800),
        }
    }
}

/// Who may use a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// `submission`: clients log in, or are in a trusted network, and may send to any domain (RFC 6409).
    Submission,
    /// `relay`: clients need no login; policy decides on each recipient.
    Relay,
}

/// RFC 5321 4.5.3.1.4: a command line with its CRLF, before any extension is in use.
const LINE_BYTES_PLAIN: usize = 512;
/// The limit after EHLO: extensions add parameters.
const LINE_BYTES_EXTENDED: usize = 4096;
/// RFC 4954 4: an AUTH response.
const LINE_BYTES_AUTH: usize = 12_288;
/// How much of an overlong line is discarded before the connection is closed.
const DISCARD_BYTES_MAX: usize = 64 << 10;
const ERRORS_MAX: u32 = 20;
const JUNK_MAX: u32 = 100;
const AUTH_FAILURES_MAX: u32 = 3;
/// RFC 5321 6.3 asks for at least 100 `Received` fields before a loop is assumed; like Postfix we allow 50.
const HOPS_MAX: usize = 50;

/// The client of a session.
#[derive(Clone, Debug)]
pub struct Peer<I> {
    /// The client's address.
    pub ip: IpAddr,
    /// The TLS of a connection that began with TLS.
    pub tls: Option<TlsInfo>,
    /// The identity of the client's network, if that is a credential. A later login replaces it.
    pub identity: Option<I>,
}

/// TLS version and cipher of a connection, as `TLSv1.3 TLS_AES_128_GCM_SHA256`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsInfo(pub Box<str>);

/// What the session needs next.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Send [`ServerSession::take_replies`], then read more bytes before the deadline.
    Read(Instant),
    /// Answer the question with [`ServerSession::answer`].
    Ask(Question),
    /// Send the replies, do a TLS handshake and call [`ServerSession::tls_established`]. The input must be empty.
    StartTls,
    /// Send the replies and close; keep reading for a while, so that the client receives them.
    Close,
    /// The client sent QUIT: send the replies and close.
    Quit,
}

/// A question to the policy.
#[derive(Debug, PartialEq, Eq)]
pub enum Question {
    /// Are these credentials valid?
    Authenticate(Credentials),
    /// May this client send with this reverse path?
    Sender(Mail),
    /// May this client send to this recipient?
    Recipient(Address),
    /// Store this complete message. The client gets the reply, so a 250 means that it is stored.
    Message(Box<Message>),
}

/// A complete message and its envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The arguments of MAIL.
    pub mail: Mail,
    /// The recipients that policy accepted, in order.
    pub recipients: Recipients,
    /// Header and body, with dot-stuffing removed.
    pub content: Bytes,
    /// How far the client may deviate from the syntax.
    pub syntax: Syntax,
}

/// The answer of the policy.
#[derive(Clone, Debug)]
pub enum Answer<I> {
    /// Accepts a sender or a recipient.
    Yes,
    /// The credentials are valid and belong to this identity.
    Identity(I),
    /// Send this reply. It may be positive only for a message.
    Reply(Reply),
}

/// One session, from the greeting to the close.
#[derive(Debug)]
pub struct ServerSession<I> {
    config: Arc<ServerConfig>,
    peer: Peer<I>,
    hello: Option<Hello>,
    /// AUTH has succeeded: a second AUTH is refused (RFC 4954 4).
    logged_in: bool,
    /// The smaller of the listener's and the client's own limit; 0 for none.
    message_size_max: u64,
    state: State,
    replies: BytesMut,
    deadline: Instant,
    errors: u32,
    /// Refusals since the last accepted message, of a client with an identity.
    refusals: u32,
    junk: u32,
    auth_failures: u32,
    tolerated: Vec<Tolerance>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hello {
    name: Box<str>,
    extended: bool,
}

/// The state of the session, with the data that is valid in it.
#[derive(Debug)]
enum State {
    /// The greeting has not been sent.
    New,
    /// No transaction.
    Ready,
    /// MAIL was accepted.
    Transaction(Envelope),
    /// The client is sending the message.
    Data { envelope: Envelope, decoder: DataDecoder, until: Instant },
    /// The client must respond to an AUTH challenge.
    Auth(auth::Exchange),
    /// An overlong line is being discarded.
    Discarding { discarded: usize, of_auth: bool, then: Box<State> },
    /// The policy has not answered yet.
    AwaitingAnswer(PendingQuestion),
    /// STARTTLS was accepted; the handshake is due.
    StartingTls,
    /// The session is over.
    Closed,
    /// The session is over after QUIT.
    Quit,
}

#[derive(Debug)]
enum PendingQuestion {
    Credentials,
    Sender(Mail),
    Recipient(Envelope, Address),
    Message,
}

#[derive(Debug)]
struct Envelope {
    mail: Mail,
    recipients: Recipients,
    /// How many times a recipient was named again.
    repeated: usize,
}

impl<I> ServerSession<I> {
    /// Makes a session with a client that has just connected.
    #[must_use]
    pub fn new(config: Arc<ServerConfig>, peer: Peer<I>, now: Instant) -> Self {
        Self {
            deadline: now + config.command_timeout,
            message_size_max: config.message_size_max,
            config,
            peer,
            hello: None,
            logged_in: false,
            state: State::New,
            replies: BytesMut::with_capacity(256),
            errors: 0,
            refusals: 0,
            junk: 0,
            auth_failures: 0,
            tolerated: Vec::new(),
        }
    }

    /// Consumes from the front of `input` and returns what the session needs next.
    pub fn poll(&mut self, now: Instant, input: &mut BytesMut) -> Output {
        loop {
            match std::mem::replace(&mut self.state, State::Closed) {
                State::New => self.greet(input),
                State::Closed => return Output::Close,
                State::Quit if input.is_empty() => return Output::Quit,
                State::Quit => return Output::Close,
                State::StartingTls => {
                    self.state = State::StartingTls;
                    return Output::StartTls;
                }
                State::AwaitingAnswer(question) => {
                    self.state = State::AwaitingAnswer(question);
                    // The driver does not poll before it has answered.
                    return Output::Read(self.deadline);
                }
                State::Data { envelope, decoder, until } => {
                    match self.receive(envelope, decoder, until, input) {
                        Some(output) => return output,
                        None => continue,
                    }
                }
                State::Discarding { discarded, of_auth, then } => {
                    if let Some(output) = self.discard(discarded, of_auth, then, input) {
                        return output;
                    }
                }
                state => match self.next_line(now, state, input) {
                    Ok(line) => {
                        if let Some(question) = self.handle_line(now, &line, input) {
                            return Output::Ask(question);
                        }
                    }
                    Err(Some(output)) => return output,
                    Err(None) => {}
                },
            }
        }
    }

    /// Takes the buffered replies, possibly none.
    pub fn take_replies(&mut self) -> Bytes {
        self.replies.split().freeze()
    }

    /// Answers the question that [`ServerSession::poll`] returned.
    ///
    /// # Panics
    /// No question is open, or the answer does not fit the question.
    pub fn answer(&mut self, now: Instant, answer: Answer<I>) {
        let State::AwaitingAnswer(question) = std::mem::replace(&mut self.state, State::Ready) else {
            panic!("an answer without a question");
        };
        self.deadline = now + self.config.command_timeout;
        match (question, answer) {
            (PendingQuestion::Credentials, Answer::Identity(identity)) => {
                self.peer.identity = Some(identity);
                self.logged_in = true;
                self.reply(&Reply::new(235, 7, 0, "authentication successful"));
            }
            (PendingQuestion::Credentials, Answer::Reply(reply)) => self.refuse_credentials(&reply),
            (PendingQuestion::Sender(mail), Answer::Yes) => {
                self.reply(&Reply::new(250, 1, 0, "sender ok"));
                self.state =
                    State::Transaction(Envelope { mail, recipients: Recipients::new(), repeated: 0 });
            }
            (PendingQuestion::Sender(_), Answer::Reply(reply)) => self.refusal_reply(&reply),
            (PendingQuestion::Recipient(mut envelope, address), Answer::Yes) => {
                self.reply(&Reply::new(250, 1, 5, "recipient ok"));
                envelope.recipients.insert(address);
                self.state = State::Transaction(envelope);
            }
            (PendingQuestion::Recipient(envelope, _), Answer::Reply(reply)) => {
                self.state = State::Transaction(envelope);
                self.refusal_reply(&reply);
            }
            (PendingQuestion::Message, Answer::Reply(reply)) if reply.is_positive() => {
                (self.junk, self.refusals) = (0, 0);
                self.reply(&reply);
            }
            (PendingQuestion::Message, Answer::Reply(reply)) => self.refusal_reply(&reply),
            (question, _) => panic!("not an answer to {question:?}"),
        }
        self.close_after_421();
    }

    /// The handshake is done; the session starts again (RFC 3207 4.2).
    pub fn tls_established(&mut self, now: Instant, tls: TlsInfo) {
        self.peer.tls = Some(tls);
        self.hello = None;
        self.state = State::Ready;
        self.deadline = now + self.config.command_timeout;
    }

    /// The deadline has passed.
    pub fn timed_out(&mut self) {
        self.reply(&Reply::new(421, 4, 2, format!("{} timed out", self.config.hostname)));
        self.state = State::Closed;
    }

    /// The server shuts down: an idle session ends now, one that is receiving a message ends after it.
    ///
    /// Returns true when the session has ended.
    pub fn shut_down(&mut self) -> bool {
        let busy = matches!(self.state, State::Data { .. } | State::AwaitingAnswer(PendingQuestion::Message));
        if !busy {
            self.reply(&Reply::new(421, 3, 2, format!("{} shutting down", self.config.hostname)));
            self.state = State::Closed;
        }
        !busy
    }

    /// Returns the identity of the client, if it is known.
    #[must_use]
    pub fn identity(&self) -> Option<&I> {
        self.peer.identity.as_ref()
    }

    /// Applies the message size limit of the identity, if it has one; the listener's limit holds too.
    pub fn limit_message_size(&mut self, own: Option<u64>) {
        self.message_size_max = match (self.config.message_size_max, own) {
            (listener, None | Some(0)) => listener,
            (0, Some(own)) => own,
            (listener, Some(own)) => listener.min(own),
        };
    }

    /// Returns true when the client has authenticated with AUTH; being in a trusted network is less.
    #[must_use]
    pub fn is_logged_in(&self) -> bool {
        self.logged_in
    }

    /// Returns the client's address.
    #[must_use]
    pub fn peer_ip(&self) -> IpAddr {
        self.peer.ip
    }

    /// Returns the EHLO or HELO name of the client, empty before that.
    #[must_use]
    pub fn helo(&self) -> &str {
        self.hello.as_ref().map_or("", |hello| &hello.name)
    }

    /// Returns true when the client sent EHLO.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.hello.as_ref().is_some_and(|hello| hello.extended)
    }

    /// Returns the TLS of the connection, if any.
    #[must_use]
    pub fn tls(&self) -> Option<&TlsInfo> {
        self.peer.tls.as_ref()
    }

    /// Takes the deviations from the syntax that were accepted since the last call.
    pub fn take_tolerated(&mut self) -> Vec<Tolerance> {
        std::mem::take(&mut self.tolerated)
    }

    fn syntax(&self) -> Syntax {
        match (self.config.tolerant, self.config.service) {
            (Tolerant::Nobody, _) => Syntax::Strict,
            (Tolerant::Everybody, _) => Syntax::LoggedIn,
            (Tolerant::Known, _) if self.logged_in => Syntax::LoggedIn,
            (Tolerant::Known, Service::Submission) => Syntax::Submission,
            (Tolerant::Known, Service::Relay) => Syntax::Stranger,
        }
    }

    /// Sends the greeting, or refuses a client that sent something before it.
    fn greet(&mut self, input: &BytesMut) {
        if input.is_empty() {
            self.reply(&Reply::plain(220, format!("{} ESMTP Postroad", self.config.hostname)));
            self.state = State::Ready;
        } else if input.starts_with(b"\x16\x03") {
            self.reply(&Reply::new(221, 7, 0, "this port expects plaintext SMTP"));
        } else {
            self.reply(&Reply::new(554, 5, 0, "SMTP synchronization error: wait for the greeting"));
        }
    }

    /// Takes the next line without its CRLF. The error is what the session needs first, or `None` when the state changed.
    fn next_line(
        &mut self,
        now: Instant,
        state: State,
        input: &mut BytesMut,
    ) -> Result<Bytes, Option<Output>> {
        // S-007: a TLS client waits for the answer to its hello, which may lack a line end.
        if input.starts_with(b"\x16\x03") {
            self.reply(&Reply::new(221, 7, 0, "this port expects plaintext SMTP"));
            return Err(None);
        }
        let bytes_max = self.line_bytes_max(&state, input);
        if let Some(end) = memchr::memchr(b'\n', &input[..input.len().min(bytes_max)]) {
            let line = input.split_to(end + 1);
            self.deadline = now + self.config.command_timeout;
            let Some(line) = line.strip_suffix(b"\r\n").filter(|line| !line.contains(&b'\r')) else {
                // We cannot know where the client thinks its lines end.
                self.reply(&Reply::new(521, 5, 2, "bare CR/LF not allowed"));
                return Err(None);
            };
            self.state = state;
            return Ok(Bytes::copy_from_slice(line));
        }
        if input.len() >= bytes_max {
            let of_auth = bytes_max == LINE_BYTES_AUTH;
            // RFC 4954 4: an exchange ends with a line that is too long.
            let then = if matches!(state, State::Auth(_)) { State::Ready } else { state };
            self.state = State::Discarding { discarded: 0, of_auth, then: Box::new(then) };
            return Err(None);
        }
        // The deadline counts from the end of the previous command; single bytes do not extend it.
        self.state = state;
        Err(Some(Output::Read(self.deadline)))
    }

    fn line_bytes_max(&self, state: &State, input: &[u8]) -> usize {
        match state {
            State::Auth(_) => LINE_BYTES_AUTH,
            // RFC 4954 4.3: an initial response counts too.
            _ if self.is_extended() && begins_auth(input) => LINE_BYTES_AUTH,
            _ if self.is_extended() => LINE_BYTES_EXTENDED,
            _ => LINE_BYTES_PLAIN,
        }
    }

    /// Discards an overlong line up to its end.
    fn discard(
        &mut self,
        discarded: usize,
        of_auth: bool,
        then: Box<State>,
        input: &mut BytesMut,
    ) -> Option<Output> {
        let room = DISCARD_BYTES_MAX - discarded;
        let searched = input.len().min(room);
        if let Some(end) = memchr::memchr(b'\n', &input[..searched]) {
            let _ = input.split_to(end + 1);
            self.state = *then;
            let detail = if of_auth { 6 } else { 2 };
            self.error_reply(&Reply::new(500, 5, detail, "line too long"));
            return None;
        }
        if searched == room {
            self.reply(&Reply::new(421, 7, 0, "line too long"));
            return None;
        }
        input.clear();
        self.state = State::Discarding { discarded: discarded + searched, of_auth, then };
        Some(Output::Read(self.deadline))
    }

    fn handle_line(&mut self, now: Instant, line: &[u8], input: &BytesMut) -> Option<Question> {
        if matches!(self.state, State::Auth(_)) {
            return self.continue_auth(line);
        }
        // `next_line` has applied the limit of the state.
        match Command::parse(line, self.syntax()) {
            Ok(Parsed { command, tolerated }) => {
                self.tolerated.extend(tolerated);
                self.handle(now, command, input)
            }
            Err(error) => {
                self.refuse_command(error);
                None
            }
        }
    }

    fn handle(&mut self, now: Instant, command: Command, input: &BytesMut) -> Option<Question> {
        match command {
            Command::Ehlo(name) => self.hello(Hello { name, extended: true }),
            Command::Helo(name) => self.hello(Hello { name, extended: false }),
            Command::Mail(mail) => return self.mail(*mail),
            Command::Recipient(address) => return self.recipient(address),
            Command::Data => self.data(now),
            Command::Reset => {
                self.state = State::Ready;
                self.junk_reply(&Reply::new(250, 0, 0, "ok"));
            }
            Command::Noop => self.junk_reply(&Reply::new(250, 0, 0, "ok")),
            Command::Verify => self.junk_reply(&Reply::new(
                252,
                0,
                0,
                "cannot VRFY user, but will accept message and attempt delivery",
            )),
            Command::Quit => {
                self.reply(&Reply::new(221, 0, 0, "bye"));
                self.state = State::Quit;
            }
            Command::StartTls => self.start_tls(input),
            Command::Auth { mechanism, initial } => return self.auth(&mechanism, initial, input),
        }
        None
    }

    fn hello(&mut self, hello: Hello) {
        let mut text = self.config.hostname.to_string();
        if hello.extended {
            let size = format!("SIZE {}", self.message_size_max);
            let offers_tls = self.config.tls_available && self.peer.tls.is_none();
            let offers_auth = self.peer.tls.is_some() && !self.logged_in;
            let capabilities = [
                ("PIPELINING", true),
                (size.as_str(), true),
                ("8BITMIME", true),
                ("SMTPUTF8", true),
                ("ENHANCEDSTATUSCODES", true),
                ("STARTTLS", offers_tls),
                ("AUTH PLAIN LOGIN", offers_auth),
            ];
            for (capability, _) in capabilities.into_iter().filter(|(_, offered)| *offered) {
                text.push('\n');
                text.push_str(capability);
            }
        }
        self.hello = Some(hello);
        self.state = State::Ready;
        self.junk_reply(&Reply::plain(250, text));
    }

    fn mail(&mut self, mail: Mail) -> Option<Question> {
        let limit = self.message_size_max;
        let refusal = if self.hello.is_none() {
            Some(Reply::new(503, 5, 1, "send EHLO first"))
        } else if matches!(self.state, State::Transaction(_)) {
            Some(Reply::new(503, 5, 1, "nested MAIL command"))
        } else if self.config.service == Service::Submission && self.peer.identity.is_none() {
            Some(Reply::new(530, 7, 0, "authentication required"))
        } else if limit != 0 && mail.size > limit {
            Some(Reply::new(
                552,
                3,
                4,
                format!("message exceeds the limit of {}", ByteSize(limit).in_words()),
            ))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.error_reply(&refusal);
            return None;
        }
        self.state = State::AwaitingAnswer(PendingQuestion::Sender(mail.clone()));
        Some(Question::Sender(mail))
    }

    fn recipient(&mut self, address: Address) -> Option<Question> {
        let mut envelope = match std::mem::replace(&mut self.state, State::Ready) {
            State::Transaction(envelope) => envelope,
            other => {
                self.state = other;
                self.error_reply(&Reply::new(503, 5, 1, "need MAIL command"));
                return None;
            }
        };
        if !envelope.mail.smtputf8 && !address.is_ascii() {
            self.state = State::Transaction(envelope);
            self.error_reply(&Reply::new(553, 6, 7, "address requires SMTPUTF8"));
            return None;
        }
        let repeats = envelope.recipients.has(&address);
        envelope.repeated += usize::from(repeats);
        if repeats && envelope.repeated <= self.config.recipients_max {
            // It is accepted already, and one delivery.
            self.state = State::Transaction(envelope);
            self.reply(&Reply::new(250, 1, 5, "recipient ok"));
            return None;
        }
        if repeats || envelope.recipients.len() >= self.config.recipients_max {
            // RFC 5321 4.5.3.1.10: the recipients before it stay valid.
            self.state = State::Transaction(envelope);
            self.refusal_reply(&Reply::new(452, 5, 3, "too many recipients"));
            return None;
        }
        self.state = State::AwaitingAnswer(PendingQuestion::Recipient(envelope, address.clone()));
        Some(Question::Recipient(address))
    }

    fn data(&mut self, now: Instant) {
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Transaction(envelope) if !envelope.recipients.is_empty() => {
                self.reply(&Reply::plain(354, "end data with <CR><LF>.<CR><LF>"));
                let limit = self.message_size_max;
                let size_max = if limit == 0 { u64::MAX } else { limit };
                // The announced size is a hint and reserves at most 64 KiB.
                let expected = usize::try_from(envelope.mail.size.min(64 << 10)).unwrap_or(0).max(4 << 10);
                let decoder = DataDecoder::new(size_max, expected);
                self.state = State::Data { envelope, decoder, until: now + self.config.data_timeout };
            }
            State::Transaction(envelope) => {
                self.state = State::Transaction(envelope);
                self.error_reply(&Reply::new(554, 5, 1, "no valid recipients"));
            }
            other => {
                self.state = other;
                self.error_reply(&Reply::new(503, 5, 1, "need MAIL command"));
            }
        }
    }

    /// Receives the message; when it is complete and valid, asks policy to store it.
    fn receive(
        &mut self,
        envelope: Envelope,
        mut decoder: DataDecoder,
        until: Instant,
        input: &mut BytesMut,
    ) -> Option<Output> {
        if !decoder.decode(input) {
            self.state = State::Data { envelope, decoder, until };
            return Some(Output::Read(until));
        }
        self.state = State::Ready;
        let syntax = self.syntax();
        let mut tolerances = Tolerances::new(syntax);
        let lf_lines = syntax >= Tolerance::LfLines.least();
        let content = match if lf_lines { decoder.finish_tolerant() } else { decoder.finish() } {
            Decoded::Content(content) => content,
            Decoded::LfLines(content) => {
                tolerances.accept(Tolerance::LfLines);
                content
            }
            refused => {
                self.refusal_reply(&refusal_of(&refused, self.message_size_max));
                return None;
            }
        };
        let content = without_mbox_line(content, &mut tolerances);
        if let Some(refusal) = self.header_refusal(&content, &mut tolerances) {
            self.refusal_reply(&refusal);
            return None;
        }
        self.tolerated.extend(tolerances.into_accepted());
        self.state = State::AwaitingAnswer(PendingQuestion::Message);
        let Envelope { mail, recipients, .. } = envelope;
        Some(Output::Ask(Question::Message(Box::new(Message { mail, recipients, content, syntax }))))
    }

    fn header_refusal(&self, content: &[u8], tolerances: &mut Tolerances) -> Option<Reply> {
        let mut header = headers::summarise_tolerant(content);
        if header.spaced_names > 0 && !tolerances.accept(Tolerance::FieldName) {
            header = headers::summarise(content);
        }
        if header.received > HOPS_MAX {
            return Some(Reply::new(554, 4, 6, "too many hops"));
        }
        if self.config.service == Service::Relay {
            return None;
        }
        match (header.ended_by_text, header.from) {
            (true, _) => Some(Reply::new(554, 6, 0, "header contains a line that is not a field")),
            (false, 0) => Some(Reply::new(554, 6, 0, "message has no From field")),
            (false, 1) => None,
            (false, _) => Some(Reply::new(554, 6, 0, "message has more than one From field")),
        }
    }

    fn start_tls(&mut self, input: &BytesMut) {
        if self.peer.tls.is_some() {
            self.error_reply(&Reply::new(503, 5, 1, "TLS already active"));
        } else if !self.config.tls_available {
            self.error_reply(&Reply::new(454, 7, 0, "TLS not available"));
        } else if input.is_empty() {
            self.reply(&Reply::new(220, 0, 0, "go ahead"));
            self.state = State::StartingTls;
        } else {
            // Commands sent in the clear must not run inside TLS (CVE-2011-0411).
            self.reply(&Reply::new(554, 5, 0, "no pipelining after STARTTLS"));
            self.state = State::Closed;
        }
    }

    fn refuse_command(&mut self, error: CommandError) {
        let reply = match error {
            CommandError::Unknown => Reply::new(500, 5, 1, "unknown command"),
            CommandError::NotImplemented => Reply::new(502, 5, 1, "command not implemented"),
            CommandError::NotUtf8 => Reply::new(501, 5, 2, "command is not valid UTF-8"),
            CommandError::Syntax => Reply::new(501, 5, 4, "syntax error in arguments"),
            CommandError::SenderAddress => Reply::new(501, 1, 7, "bad sender address"),
            CommandError::RecipientAddress => Reply::new(501, 1, 3, "bad recipient address"),
            CommandError::UnknownParameter => Reply::new(555, 5, 4, "unknown parameter"),
            CommandError::NeedsSmtputf8 => Reply::new(553, 6, 7, "address requires SMTPUTF8"),
            CommandError::OtherProtocol => {
                self.reply(&Reply::new(221, 7, 0, "this is an SMTP server"));
                self.state = State::Closed;
                return;
            }
        };
        self.error_reply(&reply);
    }

    /// Replies to an error of the client; disconnects after too many.
    fn error_reply(&mut self, reply: &Reply) {
        self.reply(reply);
        self.errors += 1;
        if self.errors > ERRORS_MAX {
            self.close_with_421();
        }
    }

    /// Refuses a sender, a recipient or a message; disconnects after too many.
    ///
    /// A stranger who tries recipients is cut off like one who makes errors. A client with an identity may have
    /// a list with many bad addresses, so it has a limit of its own, which an accepted message resets.
    fn refusal_reply(&mut self, reply: &Reply) {
        if self.peer.identity.is_none() {
            return self.error_reply(reply);
        }
        self.reply(reply);
        self.refusals += 1;
        if self.refusals > self.config.refusals_max {
            self.close_with_421();
        }
    }

    /// Replies to a command that sends no mail; disconnects after too many in a row.
    fn junk_reply(&mut self, reply: &Reply) {
        self.reply(reply);
        self.junk += 1;
        if self.junk > JUNK_MAX {
            self.close_with_421();
        }
    }

    fn close_with_421(&mut self) {
        self.reply(&Reply::new(421, 7, 0, "Too many errors"));
        self.state = State::Closed;
    }

    fn close_after_421(&mut self) {
        // The policy may have answered with 421, which ends the session.
        let last_line = self.replies.rsplitn(3, |byte| *byte == b'\n').nth(1).unwrap_or(&[]);
        if last_line.starts_with(b"421") {
            self.state = State::Closed;
        }
    }

    fn reply(&mut self, reply: &Reply) {
        write_reply(&mut self.replies, reply);
    }
}

fn without_mbox_line(content: Bytes, tolerances: &mut Tolerances) -> Bytes {
    match headers::mbox_line_len(&content) {
        0 => content,
        len if tolerances.accept(Tolerance::MboxLine) => content.slice(len..),
        _ => content,
    }
}

fn begins_auth(input: &[u8]) -> bool {
    input.get(..5).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH "))
}

fn refusal_of(refused: &Decoded, limit: u64) -> Reply {
    match refused {
        Decoded::TooLarge => {
            Reply::new(552, 3, 4, format!("message exceeds the limit of {}", ByteSize(limit).in_words()))
        }
        Decoded::BareNewline => Reply::new(550, 5, 2, "bare CR/LF not allowed"),
        Decoded::Nul | Decoded::Content(_) | Decoded::LfLines(_) => {
            Reply::new(554, 6, 0, "NUL byte not allowed")
        }
    }
}

/// Writes a reply (RFC 5321 4.2.1) with the enhanced code on every line (RFC 2034 4).
pub fn write_reply(out: &mut BytesMut, reply: &Reply) {
    let mut lines = reply.text.split('\n').peekable();
    while let Some(line) = lines.next() {
        let separator = if lines.peek().is_some() { '-' } else { ' ' };
        let text = match reply.enhanced {
            Some(enhanced) => format!("{}{separator}{enhanced} {line}\r\n", reply.code),
            None => format!("{}{separator}{line}\r\n", reply.code),
        };
        out.extend_from_slice(text.as_bytes());
    }
}

impl<I> ServerSession<I> {
    fn auth(
        &mut self,
        mechanism: &str,
        initial: Option<Zeroizing<Box<str>>>,
        input: &BytesMut,
    ) -> Option<Question> {
        let refusal = if self.hello.is_none() {
            Some(Reply::new(503, 5, 1, "send EHLO first"))
        } else if self.peer.tls.is_none() {
            Some(Reply::new(538, 7, 11, "encryption required for the requested authentication mechanism"))
        } else if self.logged_in || matches!(self.state, State::Transaction(_)) {
            Some(Reply::new(503, 5, 1, "AUTH not permitted now"))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.error_reply(&refusal);
            return None;
        }
        // RFC 4954 4: AUTH must be the last command of a pipelined group.
        if !input.is_empty() {
            self.reply(&Reply::new(554, 5, 0, "no pipelining after AUTH"));
            self.state = State::Closed;
            return None;
        }
        let step = auth::Exchange::start(mechanism, initial.as_ref().map(|initial| &***initial));
        self.handle_auth_step(step)
    }

    fn continue_auth(&mut self, line: &[u8]) -> Option<Question> {
        let State::Auth(exchange) = std::mem::replace(&mut self.state, State::Ready) else {
            unreachable!("the caller has checked the state");
        };
        self.handle_auth_step(exchange.respond(line))
    }

    fn handle_auth_step(&mut self, step: auth::Step) -> Option<Question> {
        match step {
            auth::Step::Challenge(text, exchange) => {
                self.reply(&Reply::plain(334, text));
                self.state = State::Auth(exchange);
                None
            }
            auth::Step::Done(credentials) => {
                self.state = State::AwaitingAnswer(PendingQuestion::Credentials);
                Some(Question::Authenticate(credentials))
            }
            auth::Step::Refused(reply) => {
                self.error_reply(&reply);
                None
            }
        }
    }

    fn refuse_credentials(&mut self, reply: &Reply) {
        self.reply(reply);
        // A temporary failure of our side is not counted against the client.
        self.auth_failures += u32::from(reply.is_permanent());
        if self.auth_failures >= AUTH_FAILURES_MAX {
            self.reply(&Reply::new(421, 7, 0, "Too many authentication failures"));
            self.state = State::Closed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a session of a trusted client to the end of `input` and returns the replies.
    fn run(input: &str) -> String {
        let now = Instant::now();
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
        let now = Instant::now();
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
    fn s_302_a_line_of_auth_may_have_12_288_bytes() {
        let line = |bytes: usize| format!("EHLO x.y\r\nAUTH PLAIN {}\r\nNOOP\r\n", "x".repeat(bytes - 13));
        check(&line(12_288), &["220 ", "250 ", "538 5.7.11", "250 2.0.0"]);
        check(&line(12_289), &["220 ", "250 ", "500 5.5.6", "250 2.0.0"]);
    }

    #[test]
    fn s_201_the_smaller_of_the_limits_of_listener_and_client_holds() {
        let now = Instant::now();
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
}
