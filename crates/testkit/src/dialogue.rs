//! Dialogues: files that say what an SMTP client sends and what it must be answered.
//!
//! ```text
//! # A comment.
//! @ recipients-max 2         a setting of the server, before the first step
//! S: 220 *                   a line that must come; `*` stands for anything
//! C: EHLO client.test        a line that is sent
//! S: 250...                  a whole reply, of as many lines as it has
//! C*3: RCPT TO:<r{n}@x.test> a line that is sent three times, numbered from 1
//! S*3: 250 *                 a line that must come three times
//! R: a\r\n.\r                bytes that are sent, with escapes: \r \n \t \0 \\ \xNN
//! --                         what follows goes into another segment
//! TLS                        the client begins TLS
//! WAIT 301                   the clock moves on by seconds
//! SHUTDOWN                   the server shuts down
//! TAKEN a@b.c > d@e.f g@h.i  a message was taken, with this envelope; `<>` for the null sender
//! NOTHING TAKEN              no message was taken that has not been named
//! END                        the server has closed the connection
//! ```
//!
//! Lines and bytes that are sent without a line expected between them go out in one segment.

mod bare;
mod live;
mod play;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub use bare::Bare;
pub use live::{Listener, Live};
pub use play::{Outcome, Peer, TestPolicy, Told, play};

/// A dialogue that was read.
#[derive(Clone, Debug)]
pub struct Dialogue {
    /// Where it stands.
    pub path: PathBuf,
    /// What the server must be like.
    pub settings: Settings,
    /// The steps, each with its line.
    pub steps: Vec<(usize, Step)>,
}

/// What the server must be like for a dialogue; the default is a submission service that trusts the client's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The client is nobody we know until it logs in: `@ anonymous`.
    pub anonymous: bool,
    /// The service takes the mail of others: `@ relay`.
    pub relay: bool,
    /// There is TLS from the start: `@ tls`.
    pub implicit_tls: bool,
    /// STARTTLS cannot be had: `@ no-starttls`.
    pub no_starttls: bool,
    /// Forgives nothing: `@ strict`.
    pub strict: bool,
    /// Bytes of a message: `@ size-max N`.
    pub size_max: Option<u64>,
    /// Recipients of a transaction: `@ recipients-max N`.
    pub recipients_max: Option<usize>,
    /// Only the session as a value can do this, because it moves the clock: `@ bare-only`.
    pub bare_only: bool,
    /// The policy must be that of tests, or the listener patient with whoever speaks first: `@ test-listener`.
    pub test_listener: bool,
}

impl Settings {
    const DEFAULT: Self = Self {
        anonymous: false,
        relay: false,
        implicit_tls: false,
        no_starttls: false,
        strict: false,
        size_max: None,
        recipients_max: None,
        bare_only: false,
        test_listener: false,
    };

    /// Returns true when `postroad dev` behaves so.
    #[must_use]
    pub fn are_usual(&self) -> bool {
        *self == Self::DEFAULT
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The client sends bytes.
    Send(Vec<u8>),
    /// What was to be sent goes out as a segment.
    Flush,
    /// A line must come.
    Line(String),
    /// A reply with this code must come.
    Reply(String),
    /// The client begins TLS.
    Tls,
    /// The clock moves on.
    Wait(Duration),
    /// The server shuts down.
    Shutdown,
    /// A message was taken.
    Taken(Envelope),
    /// No other message was taken.
    NothingTaken,
    /// The server has closed the connection.
    End,
}

/// The envelope of a message that was taken; the null sender is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The reverse path.
    pub sender: String,
    /// The recipients.
    pub recipients: Vec<String>,
}

/// Why a dialogue could not be read, or was not kept to.
#[derive(Debug, thiserror::Error)]
pub enum DialogueError {
    /// The file cannot be read.
    #[error("cannot read `{0}`")]
    Read(PathBuf, #[source] std::io::Error),
    /// A line is none of a dialogue.
    #[error("{path}:{line}: not a step of a dialogue")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Its line.
        line: usize,
    },
    /// The server did something else.
    #[error("{path}:{line}: {what}\n{told}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// Its line.
        line: usize,
        /// What was expected and what came.
        what: String,
        /// What was said until then.
        told: String,
    },
}

impl Dialogue {
    /// Reads a dialogue from a file.
    ///
    /// # Errors
    /// The file cannot be read, or holds a line that is none of a dialogue.
    pub fn read(path: &Path) -> Result<Self, DialogueError> {
        let text =
            std::fs::read_to_string(path).map_err(|error| DialogueError::Read(path.to_owned(), error))?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, DialogueError> {
        let mut settings = Settings::DEFAULT;
        let mut steps = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(place, line)| (place + 1, line)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let understood = match line.strip_prefix("@ ") {
                Some(setting) => take_setting(&mut settings, setting).then(Vec::new),
                None => parse_step(line),
            };
            let malformed = || DialogueError::Malformed { path: path.to_owned(), line: number };
            steps.extend(understood.ok_or_else(malformed)?.into_iter().map(|step| (number, step)));
        }
        Ok(Self { path: path.to_owned(), settings, steps })
    }
}

fn take_setting(settings: &mut Settings, setting: &str) -> bool {
    let (name, value) = setting.split_once(' ').unwrap_or((setting, ""));
    match name {
        "anonymous" => settings.anonymous = true,
        "relay" => settings.relay = true,
        "tls" => settings.implicit_tls = true,
        "no-starttls" => settings.no_starttls = true,
        "strict" => settings.strict = true,
        "bare-only" => settings.bare_only = true,
        "test-listener" => settings.test_listener = true,
        "size-max" => settings.size_max = value.parse().ok(),
        "recipients-max" => settings.recipients_max = value.parse().ok(),
        _ => return false,
    }
    true
}

fn parse_step(line: &str) -> Option<Vec<Step>> {
    let one = |step| Some(vec![step]);
    match line {
        "--" => return one(Step::Flush),
        "TLS" => return one(Step::Tls),
        "SHUTDOWN" => return one(Step::Shutdown),
        "NOTHING TAKEN" => return one(Step::NothingTaken),
        "END" => return one(Step::End),
        _ => {}
    }
    if let Some(secs) = line.strip_prefix("WAIT ") {
        return one(Step::Wait(Duration::from_secs(secs.parse().ok()?)));
    }
    if let Some(envelope) = line.strip_prefix("TAKEN ") {
        return parse_envelope(envelope).map(|envelope| vec![Step::Taken(envelope)]);
    }
    let (head, text) = line.split_once(':')?;
    let text = text.strip_prefix(' ').unwrap_or(text);
    let (kind, times) = match head.split_once('*') {
        Some((kind, times)) => (kind, times.parse().ok()?),
        None => (head, 1),
    };
    (1..=times).map(|number| parse_line(kind, &text.replace("{n}", &format!("{number}")))).collect()
}

fn parse_line(kind: &str, text: &str) -> Option<Step> {
    match kind {
        "C" => Some(Step::Send(format!("{text}\r\n").into_bytes())),
        "R" => unescape(text).map(Step::Send),
        "S" => Some(match text.strip_suffix("...") {
            Some(code) if code.len() == 3 => Step::Reply(code.to_owned()),
            _ => Step::Line(text.to_owned()),
        }),
        _ => None,
    }
}

fn parse_envelope(text: &str) -> Option<Envelope> {
    let (sender, recipients) = text.split_once(" > ")?;
    let sender = if sender == "<>" { "" } else { sender };
    Some(Envelope {
        sender: sender.to_owned(),
        recipients: recipients.split(' ').map(ToOwned::to_owned).collect(),
    })
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..place]);
        let (byte, len) = match rest.as_bytes().get(place + 1)? {
            b'r' => (b'\r', 2),
            b'n' => (b'\n', 2),
            b't' => (b'\t', 2),
            b'0' => (0, 2),
            b'\\' => (b'\\', 2),
            b'x' => (u8::from_str_radix(rest.get(place + 2..place + 4)?, 16).ok()?, 4),
            _ => return None,
        };
        bytes.push(byte);
        rest = &rest[place + len..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(text: &str) -> Option<Vec<Step>> {
        let dialogue = Dialogue::parse(Path::new("x"), text).ok()?;
        Some(dialogue.steps.into_iter().map(|(_, step)| step).collect())
    }

    #[test]
    fn steps_are_read() {
        let send = |text: &str| Step::Send(text.into());
        assert_eq!(steps("C*2: R{n}"), Some(vec![send("R1\r\n"), send("R2\r\n")]));
        assert_eq!(steps(r"R: a\x00\r\\"), Some(vec![send("a\0\r\\")]));
        assert_eq!(
            steps("S: 250...\nS: 250 *"),
            Some(vec![Step::Reply("250".into()), Step::Line("250 *".into())])
        );
        assert_eq!(steps("# x\n\nC:"), Some(vec![send("\r\n")]));
        let envelope = Envelope { sender: String::new(), recipients: vec!["a@b".into(), "c@d".into()] };
        assert_eq!(steps("TAKEN <> > a@b c@d"), Some(vec![Step::Taken(envelope)]));
        for wrong in ["X: y", "@ nothing", r"R: \q", "WAIT long", "TAKEN a"] {
            assert_eq!(steps(wrong), None, "{wrong}");
        }
    }
}
