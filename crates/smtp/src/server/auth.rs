//! AUTH PLAIN (RFC 4616) and LOGIN: decodes base64 into credentials.

use base64::{Engine, engine::general_purpose::STANDARD};
use postroad_core::Reply;
use zeroize::Zeroizing;

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
            _ => return Step::Refused(Reply::new(504, 5, 4, "mechanism not supported")),
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
            return Step::Refused(Reply::new(501, 7, 0, "authentication cancelled"));
        }
        let decoded = STANDARD.decode(line).ok().map(Zeroizing::new);
        match decoded.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok()) {
            Some(text) => self.accept(Zeroizing::new(text)),
            None => Step::Refused(Reply::new(501, 5, 2, "invalid base64")),
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
        _ => Step::Refused(Reply::new(501, 5, 2, "malformed AUTH PLAIN response")),
    }
}
