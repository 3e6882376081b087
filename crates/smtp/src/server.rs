//! The server side of an SMTP session: commands in, replies and policy questions out.
//!
//! The session never waits. It consumes input, buffers replies, and returns what it needs next:
//! more bytes, the answer to a question, TLS, or the end of the connection.
//! The same session serves listeners, tests and the fuzzer.
//!
//! Where the RFCs allow several reply codes, tests fix our choice.

use std::{net::IpAddr, sync::Arc, time::Instant};

use bytes::{Bytes, BytesMut};
use postroad_core::{Address, Recipients, Reply};

use crate::{
    command::{Command, CommandError, Mail, Parsed},
    data::DataDecoder,
    tolerance::{Syntax, Tolerance, Tolerant},
};

mod auth;
mod config;
mod errors;
mod line;
mod message;
mod transaction;

#[cfg(test)]
mod tests;

pub use auth::{Credentials, Mechanism};
pub use config::{ServerConfig, Service};
pub use errors::SessionError;
use transaction::Envelope;

const ERRORS_MAX: u32 = 20;
const JUNK_MAX: u32 = 100;
/// Refusals that are kept until the driver takes them.
pub const REFUSED_KEPT_MAX: usize = 16;

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
    /// Errors since the last accepted message; of a client without identity, refusals too.
    errors: u32,
    /// Refusals since the last accepted message, of a client with an identity.
    refusals: u32,
    /// Commands that send no mail since the last accepted message.
    junk: u32,
    auth_failures: u32,
    tolerated: Vec<Tolerance>,
    refused: Vec<Reply>,
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
            refused: Vec::new(),
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

    /// Takes the replies by which the session itself refused something since this was last called; what the policy
    /// refused is not among them.
    ///
    /// At most [`REFUSED_KEPT_MAX`] are kept.
    pub fn take_refused(&mut self) -> Vec<Reply> {
        std::mem::take(&mut self.refused)
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
            (PendingQuestion::Sender(_), Answer::Reply(reply)) => self.policy_refusal(&reply),
            (PendingQuestion::Recipient(mut envelope, address), Answer::Yes) => {
                self.reply(&Reply::new(250, 1, 5, "recipient ok"));
                envelope.recipients.insert(address);
                self.state = State::Transaction(envelope);
            }
            (PendingQuestion::Recipient(envelope, _), Answer::Reply(reply)) => {
                self.state = State::Transaction(envelope);
                self.policy_refusal(&reply);
            }
            (PendingQuestion::Message, Answer::Reply(reply)) if reply.is_positive() => {
                (self.errors, self.refusals, self.junk) = (0, 0, 0);
                self.reply(&reply);
            }
            (PendingQuestion::Message, Answer::Reply(reply)) => self.policy_refusal(&reply),
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
        self.write(&SessionError::TimedOut.reply_with(&self.config.hostname));
        self.state = State::Closed;
    }

    /// The server shuts down: an idle session ends now, one that is receiving a message ends after it.
    ///
    /// Returns true when the session has ended.
    pub fn shut_down(&mut self) -> bool {
        let busy = matches!(self.state, State::Data { .. } | State::AwaitingAnswer(PendingQuestion::Message));
        if !busy {
            self.write(&SessionError::ShuttingDown.reply_with(&self.config.hostname));
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
            self.reply(&SessionError::NotATlsPort.reply());
        } else {
            self.reply(&SessionError::TooEarly.reply());
        }
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

    fn start_tls(&mut self, input: &BytesMut) {
        if self.peer.tls.is_some() {
            self.error_reply(&SessionError::TlsActive.reply());
        } else if !self.config.tls_available {
            self.error_reply(&SessionError::TlsUnavailable.reply());
        } else if input.is_empty() {
            self.reply(&Reply::new(220, 0, 0, "go ahead"));
            self.state = State::StartingTls;
        } else {
            // Commands sent in the clear must not run inside TLS (CVE-2011-0411).
            self.reply(&SessionError::PipelinedAfterStartTls.reply());
            self.state = State::Closed;
        }
    }

    fn refuse_command(&mut self, error: CommandError) {
        let reply = match error {
            CommandError::Unknown => SessionError::UnknownCommand.reply(),
            CommandError::NotImplemented => SessionError::NotImplemented.reply(),
            CommandError::NotUtf8 => SessionError::NotUtf8.reply(),
            CommandError::Syntax => SessionError::Syntax.reply(),
            CommandError::UnknownParameter => SessionError::UnknownParameter.reply(),
            // The command is understood; the address is refused.
            CommandError::SenderAddress => {
                return self.refusal_reply(&SessionError::BadSender.reply());
            }
            CommandError::RecipientAddress => {
                return self.refusal_reply(&SessionError::BadRecipient.reply());
            }
            CommandError::NeedsSmtputf8 => {
                return self.refusal_reply(&SessionError::NeedsSmtputf8.reply());
            }
            CommandError::OtherProtocol => {
                self.reply(&SessionError::OtherProtocol.reply());
                self.state = State::Closed;
                return;
            }
        };
        self.error_reply(&reply);
    }

    /// Replies to an error of the client; disconnects after too many.
    fn error_reply(&mut self, reply: &Reply) {
        self.reply(reply);
        self.count_error();
    }

    fn count_error(&mut self) {
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
        self.reply(reply);
        self.count_refusal();
    }

    /// The same for what the policy refused, which records that itself.
    fn policy_refusal(&mut self, reply: &Reply) {
        self.write(reply);
        self.count_refusal();
    }

    fn count_refusal(&mut self) {
        if self.peer.identity.is_none() {
            return self.count_error();
        }
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
        self.reply(&SessionError::TooManyErrors.reply());
        self.state = State::Closed;
    }

    fn close_after_421(&mut self) {
        // The policy may have answered with 421, which ends the session.
        let last_line = self.replies.rsplitn(3, |byte| *byte == b'\n').nth(1).unwrap_or(&[]);
        if last_line.starts_with(b"421") {
            self.state = State::Closed;
        }
    }

    /// Replies as the session itself decided, and keeps what it refused.
    fn reply(&mut self, reply: &Reply) {
        // A command that is not understood refuses no mail; an address that is malformed (5.1.x) does.
        let is_about_address = reply.enhanced.is_some_and(|code| code.subject == 1);
        let is_not_understood = (500..=504).contains(&reply.code) && !is_about_address;
        if reply.code >= 400 && !is_not_understood && self.refused.len() < REFUSED_KEPT_MAX {
            self.refused.push(reply.clone());
        }
        self.write(reply);
    }

    fn write(&mut self, reply: &Reply) {
        write_reply(&mut self.replies, reply);
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
