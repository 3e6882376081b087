//! AUTH PLAIN (RFC 4616) and LOGIN: the exchange with the client, from base64 to credentials.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use postroad_core::Reply;
use zeroize::Zeroizing;

use super::{PendingQuestion, Question, ServerSession, SessionError, State};

const AUTH_FAILURES_MAX: u32 = 3;

/// The SASL mechanism of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 4616.
    Plain,
    /// Obsolete and still common; described in draft-murchison-sasl-login.
    Login,
}

/// The credentials of a client. The secret is wiped when dropped.
#[derive(PartialEq, Eq)]
pub struct Credentials {
    /// The mechanism they came with.
    pub mechanism: Mechanism,
    /// The authorization identity the client requests; empty for its own.
    pub authorization: Box<str>,
    /// The login name.
    pub login: Box<str>,
    /// The password.
    pub secret: Zeroizing<Box<str>>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("mechanism", &self.mechanism)
            .field("login", &self.login)
            .finish_non_exhaustive()
    }
}

/// An exchange that waits for the client's response.
#[derive(Debug)]
pub(super) enum Exchange {
    Plain,
    LoginName,
    LoginSecret(Box<str>),
}

pub(super) enum Step {
    /// Send this base64 challenge and continue.
    Challenge(&'static str, Exchange),
    Done(Credentials),
    Refused(Reply),
}

/// `Username:` and `Password:` in base64.
const LOGIN_NAME: &str = "VXNlcm5hbWU6";
const LOGIN_SECRET: &str = "UGFzc3dvcmQ6";

impl Exchange {
    pub(super) fn start(mechanism: &str, initial: Option<&str>) -> Step {
        let (exchange, challenge) = match mechanism {
            "PLAIN" => (Self::Plain, ""),
            "LOGIN" => (Self::LoginName, LOGIN_NAME),
            _ => return Step::Refused(SessionError::UnknownMechanism.reply()),
        };
        match initial {
            // RFC 4954 4: `=` is an empty response.
            Some("=") => exchange.accept(Zeroizing::new(String::new())),
            Some(initial) => exchange.respond(initial.as_bytes()),
            None => Step::Challenge(challenge, exchange),
        }
    }

    pub(super) fn respond(self, line: &[u8]) -> Step {
        if line == b"*" {
            return Step::Refused(SessionError::AuthCancelled.reply());
        }
        let decoded = STANDARD.decode(line).ok().map(Zeroizing::new);
        match decoded.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok()) {
            Some(text) => self.accept(Zeroizing::new(text)),
            None => Step::Refused(SessionError::InvalidBase64.reply()),
        }
    }

    fn accept(self, text: Zeroizing<String>) -> Step {
        match self {
            Self::Plain => plain(&text),
            Self::LoginName => Step::Challenge(LOGIN_SECRET, Self::LoginSecret(text.as_str().into())),
            Self::LoginSecret(login) => Step::Done(Credentials {
                mechanism: Mechanism::Login,
                authorization: "".into(),
                login,
                secret: Zeroizing::new(text.as_str().into()),
            }),
        }
    }
}

/// RFC 4616 2: `[authzid] NUL authcid NUL passwd`.
fn plain(text: &str) -> Step {
    let parts: Vec<&str> = text.split('\0').collect();
    match parts[..] {
        [authorization, login, secret] if !login.is_empty() => Step::Done(Credentials {
            mechanism: Mechanism::Plain,
            authorization: authorization.into(),
            login: login.into(),
            secret: Zeroizing::new(secret.into()),
        }),
        _ => Step::Refused(SessionError::MalformedPlain.reply()),
    }
}

impl<I> ServerSession<I> {
    pub(super) fn auth(
        &mut self,
        mechanism: &str,
        initial: Option<Zeroizing<Box<str>>>,
        input: &BytesMut,
    ) -> Option<Question> {
        let refusal = if self.hello.is_none() {
            Some(SessionError::NoHello.reply())
        } else if self.peer.tls.is_none() {
            Some(SessionError::AuthNeedsTls.reply())
        } else if self.logged_in || matches!(self.state, State::Transaction(_)) {
            Some(SessionError::AuthNotNow.reply())
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.error_reply(&refusal);
            return None;
        }
        // RFC 4954 4: AUTH must be the last command of a pipelined group.
        if !input.is_empty() {
            self.reply(&SessionError::PipelinedAfterAuth.reply());
            self.state = State::Closed;
            return None;
        }
        let step = Exchange::start(mechanism, initial.as_ref().map(|initial| &***initial));
        self.handle_auth_step(step)
    }

    pub(super) fn continue_auth(&mut self, line: &[u8]) -> Option<Question> {
        let State::Auth(exchange) = std::mem::replace(&mut self.state, State::Ready) else {
            unreachable!("the caller has checked the state");
        };
        self.handle_auth_step(exchange.respond(line))
    }

    fn handle_auth_step(&mut self, step: Step) -> Option<Question> {
        match step {
            Step::Challenge(text, exchange) => {
                self.reply(&Reply::plain(334, text));
                self.state = State::Auth(exchange);
                None
            }
            Step::Done(credentials) => {
                self.state = State::AwaitingAnswer(PendingQuestion::Credentials);
                Some(Question::Authenticate(credentials))
            }
            Step::Refused(reply) => {
                self.error_reply(&reply);
                None
            }
        }
    }

    pub(super) fn refuse_credentials(&mut self, reply: &Reply) {
        self.write(reply);
        // A temporary failure of our side is not counted against the client.
        self.auth_failures += u32::from(reply.is_permanent());
        if self.auth_failures >= AUTH_FAILURES_MAX {
            self.reply(&SessionError::TooManyLogins.reply());
            self.state = State::Closed;
        }
    }
}
