//! Plays the client of a dialogue against a server, whatever that is.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use parking_lot::Mutex;
use postroad_core::Reply;
use postroad_smtp::server::{Answer, Question};

use super::{Dialogue, DialogueError, Envelope, Step};

/// The server of a dialogue.
pub trait Peer {
    /// Sends bytes as one segment.
    fn send(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>>;
    /// Returns the next line without its CRLF; `None` when the server has closed the connection.
    fn line(&mut self) -> impl Future<Output = io::Result<Option<String>>>;
    /// Begins TLS.
    fn start_tls(&mut self) -> impl Future<Output = io::Result<()>>;
    /// Moves the clock; false when it is not ours.
    fn wait(&mut self, duration: Duration) -> bool;
    /// Shuts the server down; false when it is not ours.
    fn shut_down(&mut self) -> bool;
    /// Returns the next envelope that was taken; the outer `None` when that cannot be seen.
    fn taken(&mut self) -> Option<Option<Envelope>>;
}

/// Whether a dialogue could be played to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every step was as the dialogue has it.
    Kept,
    /// The server lets no test move its clock or shut it down: the rest was not played.
    NotPlayable,
}

/// Plays a dialogue.
///
/// # Errors
/// The server did something else than the dialogue has.
pub async fn play(dialogue: &Dialogue, peer: &mut impl Peer) -> Result<Outcome, DialogueError> {
    let mut player = Player { peer, segment: Vec::new(), told: String::new() };
    for (line, step) in &dialogue.steps {
        let done = player.step(step).await;
        match done.map_err(|what| (what, std::mem::take(&mut player.told))) {
            Ok(true) => {}
            Ok(false) => return Ok(Outcome::NotPlayable),
            Err((what, told)) => {
                return Err(DialogueError::Broken { path: dialogue.path.clone(), line: *line, what, told });
            }
        }
    }
    Ok(Outcome::Kept)
}

struct Player<'a, P> {
    peer: &'a mut P,
    segment: Vec<u8>,
    told: String,
}

impl<P: Peer> Player<'_, P> {
    /// True when the step was as it must be, false when the peer cannot do it.
    async fn step(&mut self, step: &Step) -> Result<bool, String> {
        if let Step::Send(bytes) = step {
            self.segment.extend_from_slice(bytes);
            return Ok(true);
        }
        self.flush().await?;
        match step {
            Step::Send(_) | Step::Flush => {}
            Step::Line(pattern) => {
                let line = self.line().await?.ok_or_else(|| format!("expected `{pattern}`, got the end"))?;
                if !matches(pattern, &line) {
                    return Err(format!("expected `{pattern}`, got `{line}`"));
                }
            }
            Step::Reply(code) => self.reply(code).await?,
            Step::End => {
                if let Some(line) = self.line().await? {
                    return Err(format!("expected the end, got `{line}`"));
                }
            }
            Step::Tls => self.peer.start_tls().await.map_err(|error| format!("TLS fails: {error}"))?,
            Step::Wait(duration) => return Ok(self.peer.wait(*duration)),
            Step::Shutdown => return Ok(self.peer.shut_down()),
            Step::Taken(expected) => match self.peer.taken() {
                Some(Some(taken)) if taken != *expected => {
                    return Err(format!("expected {expected:?} to be taken, it was {taken:?}"));
                }
                Some(None) => return Err("no message was taken".to_owned()),
                _ => {}
            },
            Step::NothingTaken => {
                if let Some(Some(taken)) = self.peer.taken() {
                    return Err(format!("{taken:?} was taken"));
                }
            }
        }
        Ok(true)
    }

    async fn flush(&mut self) -> Result<(), String> {
        if self.segment.is_empty() {
            return Ok(());
        }
        let segment = std::mem::take(&mut self.segment);
        self.tell("C", &segment.escape_ascii().to_string());
        self.peer.send(&segment).await.map_err(|error| format!("cannot send: {error}"))
    }

    async fn line(&mut self) -> Result<Option<String>, String> {
        let line = self.peer.line().await.map_err(|error| format!("cannot read: {error}"))?;
        self.tell("S", line.as_deref().unwrap_or("(the end)"));
        Ok(line)
    }

    async fn reply(&mut self, code: &str) -> Result<(), String> {
        loop {
            let line = self.line().await?.ok_or_else(|| format!("expected {code}, got the end"))?;
            if !line.starts_with(code) {
                return Err(format!("expected {code}, got `{line}`"));
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }

    /// Keeps the last of what was said, for the error.
    fn tell(&mut self, who: &str, text: &str) {
        const KEPT: usize = 4 << 10;
        let text: String = text.chars().take(300).collect();
        self.told.push_str(&format!("{who}: {text}\n"));
        if self.told.len() > KEPT {
            let cut = self.told.len() - KEPT;
            let line_end = self.told[self.told.ceil_char_boundary(cut)..].find('\n').unwrap_or(0);
            self.told.drain(..=self.told.ceil_char_boundary(cut) + line_end);
        }
    }
}

/// `*` stands for any text.
fn matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|start| line.strip_prefix(start)) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(between) = last.replace(part) {
            let Some(place) = rest.find(between) else { return false };
            rest = &rest[place + between.len()..];
        }
    }
    last.map_or(rest.is_empty(), |end| rest.ends_with(end))
}

/// What policy was told by the sessions of a dialogue.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<Mutex<VecDeque<Envelope>>>);

impl Told {
    /// Returns the next envelope that was taken.
    #[must_use]
    pub fn next(&self) -> Option<Envelope> {
        self.0.lock().pop_front()
    }

    /// Returns how many messages were taken and not asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Returns true when no message was taken that was not asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

/// The policy that dialogues are written for.
///
/// It knows the login `demo` with the password `demo-loopback-only`; `down` makes its backend fail.
/// Mail to the domain `refused.test` is relaying, mail from `refused.test` somebody else's.
/// A message with the subject `reply CODE X.Y.Z` gets that reply.
#[derive(Clone, Debug, Default)]
pub struct TestPolicy {
    /// The messages that were taken.
    pub told: Told,
}

impl TestPolicy {
    /// Answers a question.
    #[must_use]
    pub fn decide(&self, question: Question) -> Answer<()> {
        match question {
            Question::Authenticate(credentials) => match (&*credentials.login, &**credentials.secret) {
                ("demo", "demo-loopback-only") => Answer::Identity(()),
                ("down", _) => Answer::Reply(Reply::new(454, 7, 0, "authentication is out of order")),
                _ => Answer::Reply(Reply::new(535, 7, 8, "authentication failed")),
            },
            Question::Sender(mail) => {
                let domain = mail.sender.as_ref().map_or("", |sender| sender.domain_text());
                yes_unless_refused(domain, "not your domain")
            }
            Question::Recipient(address) => yes_unless_refused(address.domain_text(), "relaying denied"),
            Question::Message(message) => {
                if let Some(reply) = wished_reply(&message.content) {
                    return Answer::Reply(reply);
                }
                let sender =
                    message.mail.sender.map_or_else(String::new, |sender| sender.as_str().to_owned());
                let recipients = message.recipients.iter().map(|r| r.as_str().to_owned()).collect();
                self.told.0.lock().push_back(Envelope { sender, recipients });
                Answer::Reply(Reply::new(250, 0, 0, "queued"))
            }
        }
    }
}

fn yes_unless_refused(domain: &str, text: &'static str) -> Answer<()> {
    if domain == "refused.test" { Answer::Reply(Reply::new(550, 7, 1, text)) } else { Answer::Yes }
}

fn wished_reply(content: &[u8]) -> Option<Reply> {
    let text = String::from_utf8_lossy(content);
    let wish = text.lines().find_map(|line| line.strip_prefix("Subject: reply "))?;
    let (code, enhanced) = wish.split_once(' ')?;
    let mut parts = enhanced.split('.').skip(1).map(|part| part.parse::<u16>().ok());
    Some(Reply::new(code.parse().ok()?, parts.next()??, parts.next()??, "as you wish"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, line, expected) in [
            ("250 ok", "250 ok", true),
            ("250 ok", "250 okay", false),
            ("250 *", "250 okay", true),
            ("*ok*", "250 okay", true),
            ("2*o*y", "250 okay", true),
            ("2*z*y", "250 okay", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, line), expected, "{pattern} {line}");
        }
    }

    #[test]
    fn a_message_wishes_its_reply() {
        assert_eq!(wished_reply(b"Subject: reply 451 4.3.0\r\n"), Some(Reply::new(451, 3, 0, "as you wish")));
    }
}
