//! Dialogues: files with the lines that an SMTP client sends and the replies that it must get.
//!
//! ```text
//! # A comment.
//! @ recipients-max 2         a setting of the server, before the first step
//! S: 220 *                   the client expects a line; `*` matches anything
//! C: EHLO client.test        the client sends a line
//! S: 250...                  the client expects a reply with this code, of any number of lines
//! C*3: RCPT TO:<r{n}@x.test> the client sends a line three times, numbered from 1
//! S*3: 250 *                 the client expects a line three times
//! R: a\r\n.\r                the client sends bytes, with escapes: \r \n \t \0 \\ \xNN
//! --                         what follows goes into another segment
//! TLS                        the client begins TLS
//! WAIT 301                   the clock advances by this many seconds
//! SHUTDOWN                   the server shuts down
//! TAKEN a@b.c > d@e.f g@h.i  the server has accepted a message with this envelope; `<>` for the null sender
//! NOTHING TAKEN              the server has accepted no other message
//! END                        the server has closed the connection
//! ```
//!
//! Lines and bytes without an expected line between them are sent in one segment.

mod bare;
mod live;
mod play;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub use bare::BareSession;
pub use live::{Listener, LiveSession};
pub use play::{AcceptedMessages, Outcome, Peer, TestPolicy, play};

/// A parsed dialogue.
#[derive(Clone, Debug)]
pub struct Dialogue {
    /// Its file.
    pub path: PathBuf,
    /// The server's settings.
    pub settings: Settings,
    /// The steps, each with its line number.
    pub steps: Vec<(usize, Step)>,
}

/// The server's settings for a dialogue; the default is a submission service that trusts the client's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The client must log in: `@ anonymous`.
    pub anonymous: bool,
    /// The service is `relay`: `@ relay`.
    pub relay: bool,
    /// TLS from the first byte: `@ tls`.
    pub implicit_tls: bool,
    /// No STARTTLS: `@ no-starttls`.
    pub no_starttls: bool,
    /// Strict syntax: `@ strict`.
    pub strict: bool,
    /// The message size limit in bytes: `@ size-max N`.
    pub size_max: Option<u64>,
    /// The recipient limit: `@ recipients-max N`.
    pub recipients_max: Option<usize>,
    /// The refusal limit of clients with an identity: `@ refusals-max N`.
    pub refusals_max: Option<u32>,
    /// Needs a session without a network, because it moves the clock: `@ bare-only`.
    pub bare_only: bool,
    /// Needs the test policy, or a listener that waits before its greeting: `@ test-listener`.
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
        refusals_max: None,
        bare_only: false,
        test_listener: false,
    };

    /// Returns true when the dialogue needs no special settings, so that `postroad dev` can play it.
    #[must_use]
    pub fn are_default(&self) -> bool {
        *self == Self::DEFAULT
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The client sends bytes.
    Send(Vec<u8>),
    /// The client sends the pending bytes as one segment.
    Flush,
    /// The client expects a line.
    Line(String),
    /// The client expects a reply with this code.
    Reply(String),
    /// The client begins TLS.
    Tls,
    /// The clock advances.
    Wait(Duration),
    /// The server shuts down.
    Shutdown,
    /// The server has accepted a message.
    Taken(Envelope),
    /// The server has accepted no other message.
    NothingTaken,
    /// The server has closed the connection.
    End,
}

/// The envelope of an accepted message; the null sender is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The reverse path.
    pub sender: String,
    /// The recipients.
    pub recipients: Vec<String>,
}

/// Why a dialogue could not be read, or failed.
#[derive(Debug, thiserror::Error)]
pub enum DialogueError {
    /// The file cannot be read.
    #[error("cannot read `{0}`")]
    Read(PathBuf, #[source] std::io::Error),
    /// A line is malformed.
    #[error("{path}:{line}: not a step of a dialogue")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line number.
        line: usize,
    },
    /// The server did not behave as expected.
    #[error("{path}:{line}: {what}\n{transcript}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line number.
        line: usize,
        /// What was expected and what came.
        what: String,
        /// The conversation until then.
        transcript: String,
    },
}

impl Dialogue {
    /// Reads a dialogue from a file.
    ///
    /// # Errors
    /// The file cannot be read, or a line is malformed.
    pub fn read(path: &Path) -> Result<Self, DialogueError> {
        let text =
            std::fs::read_to_string(path).map_err(|error| DialogueError::Read(path.to_owned(), error))?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, DialogueError> {
        let mut settings = Settings::DEFAULT;
        let mut steps = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let parsed = match line.strip_prefix("@ ") {
                Some(setting) => apply_setting(&mut settings, setting).then(Vec::new),
                None => parse_step(line),
            };
            let malformed = || DialogueError::Malformed { path: path.to_owned(), line: number };
            steps.extend(parsed.ok_or_else(malformed)?.into_iter().map(|step| (number, step)));
        }
        Ok(Self { path: path.to_owned(), settings, steps })
    }
}

fn apply_setting(settings: &mut Settings, setting: &str) -> bool {
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
        "refusals-max" => settings.refusals_max = value.parse().ok(),
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
    while let Some(index) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..index]);
        let (byte, len) = match rest.as_bytes().get(index + 1)? {
            b'r' => (b'\r', 2),
            b'n' => (b'\n', 2),
            b't' => (b'\t', 2),
            b'0' => (0, 2),
            b'\\' => (b'\\', 2),
            b'x' => (u8::from_str_radix(rest.get(index + 2..index + 4)?, 16).ok()?, 4),
            _ => return None,
        };
        bytes.push(byte);
        rest = &rest[index + len..];
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
    fn steps_are_parsed() {
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
