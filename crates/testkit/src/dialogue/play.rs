//! Plays the client of a dialogue against a server.

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
    /// Advances the clock; false when the server has its own.
    fn wait(&mut self, duration: Duration) -> bool;
    /// Shuts the server down; false when that is not possible.
    fn shut_down(&mut self) -> bool;
    /// Returns the envelope of the next accepted message; the outer `None` when that cannot be observed.
    fn accepted(&mut self) -> Option<Option<Envelope>>;
}

/// How far a dialogue was played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every step was as expected.
    Passed,
    /// The server's clock cannot be advanced, or it cannot be shut down: the remaining steps were not played.
    NotPlayable,
}

/// Plays a dialogue.
///
/// # Errors
/// The server did not behave as expected.
pub async fn play(dialogue: &Dialogue, peer: &mut impl Peer) -> Result<Outcome, DialogueError> {
    let mut player = Player { peer, segment: Vec::new(), transcript: String::new() };
    for (line, step) in &dialogue.steps {
        let done = player.step(step).await;
        match done.map_err(|what| (what, std::mem::take(&mut player.transcript))) {
            Ok(true) => {}
            Ok(false) => return Ok(Outcome::NotPlayable),
            Err((what, transcript)) => {
                return Err(DialogueError::Broken {
                    path: dialogue.path.clone(),
                    line: *line,
                    what,
                    transcript,
                });
            }
        }
    }
    Ok(Outcome::Passed)
}

struct Player<'a, P> {
    peer: &'a mut P,
    segment: Vec<u8>,
    transcript: String,
}

impl<P: Peer> Player<'_, P> {
    /// Returns true when the step was as expected, false when the peer cannot play it.
    async fn step(&mut self, step: &Step) -> Result<bool, String> {
        if let Step::Send(bytes) = step {
            self.segment.extend_from_slice(bytes);
            return Ok(true);
        }
        self.flush().await?;
        match step {
            Step::Send(_) | Step::Flush => {}
            Step::Line(pattern) => {
                let line = self
                    .line()
                    .await?
                    .ok_or_else(|| format!("expected `{pattern}`, got the end of the connection"))?;
                if !matches(pattern, &line) {
                    return Err(format!("expected `{pattern}`, got `{line}`"));
                }
            }
            Step::Reply(code) => self.reply(code).await?,
            Step::End => {
                if let Some(line) = self.line().await? {
                    return Err(format!("expected the end of the connection, got `{line}`"));
                }
            }
            Step::Tls => self.peer.start_tls().await.map_err(|error| format!("TLS failed: {error}"))?,
            Step::Wait(duration) => return Ok(self.peer.wait(*duration)),
            Step::Shutdown => return Ok(self.peer.shut_down()),
            Step::Taken(expected) => match self.peer.accepted() {
                Some(Some(accepted)) if accepted != *expected => {
                    return Err(format!("expected {expected:?} to be accepted, got {accepted:?}"));
                }
                Some(None) => return Err("no message was accepted".to_owned()),
                _ => {}
            },
            Step::NothingTaken => {
                if let Some(Some(accepted)) = self.peer.accepted() {
                    return Err(format!("{accepted:?} was accepted"));
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
        self.record("C", &segment.escape_ascii().to_string());
        self.peer.send(&segment).await.map_err(|error| format!("cannot send: {error}"))
    }

    async fn line(&mut self) -> Result<Option<String>, String> {
        let line = self.peer.line().await.map_err(|error| format!("cannot read: {error}"))?;
        self.record("S", line.as_deref().unwrap_or("(end of connection)"));
        Ok(line)
    }

    async fn reply(&mut self, code: &str) -> Result<(), String> {
        loop {
            let line = self
                .line()
                .await?
                .ok_or_else(|| format!("expected {code}, got the end of the connection"))?;
            if !line.starts_with(code) {
                return Err(format!("expected {code}, got `{line}`"));
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }

    /// Adds to the transcript, of which the last part is kept.
    fn record(&mut self, who: &str, text: &str) {
        const KEPT: usize = 4 << 10;
        let text: String = text.chars().take(300).collect();
        self.transcript.push_str(&format!("{who}: {text}\n"));
        if self.transcript.len() > KEPT {
            let cut = self.transcript.len() - KEPT;
            let line_end = self.transcript[self.transcript.ceil_char_boundary(cut)..].find('\n').unwrap_or(0);
            self.transcript.drain(..=self.transcript.ceil_char_boundary(cut) + line_end);
        }
    }
}

/// `*` matches any text.
fn matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|start| line.strip_prefix(start)) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(between) = last.replace(part) {
            let Some(index) = rest.find(between) else { return false };
            rest = &rest[index + between.len()..];
        }
    }
    last.map_or(rest.is_empty(), |end| rest.ends_with(end))
}

/// The envelopes of the messages that a policy has accepted.
#[derive(Clone, Debug, Default)]
pub struct AcceptedMessages(Arc<Mutex<VecDeque<Envelope>>>);

impl AcceptedMessages {
    /// Removes and returns the next envelope.
    #[must_use]
    pub fn next(&self) -> Option<Envelope> {
        self.0.lock().pop_front()
    }

    /// Returns how many envelopes were not removed yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Returns true when all envelopes were removed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

/// The policy that dialogues are written for.
///
/// The login is `demo` with the password `demo-loopback-only`; the login `down` gets a temporary failure.
/// Recipients and senders in the domain `refused.test` are refused.
/// A message with the subject `reply CODE X.Y.Z` gets that reply.
#[derive(Clone, Debug, Default)]
pub struct TestPolicy {
    /// The accepted messages.
    pub accepted: AcceptedMessages,
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
                accept_unless_refused(domain, "not your domain")
            }
            Question::Recipient(address) => accept_unless_refused(address.domain_text(), "relaying denied"),
            Question::Message(message) => {
                if let Some(reply) = requested_reply(&message.content) {
                    return Answer::Reply(reply);
                }
                let sender =
                    message.mail.sender.map_or_else(String::new, |sender| sender.as_str().to_owned());
                let recipients = message.recipients.iter().map(|r| r.as_str().to_owned()).collect();
                self.accepted.0.lock().push_back(Envelope { sender, recipients });
                Answer::Reply(Reply::new(250, 0, 0, "queued"))
            }
        }
    }
}

fn accept_unless_refused(domain: &str, text: &'static str) -> Answer<()> {
    if domain == "refused.test" { Answer::Reply(Reply::new(550, 7, 1, text)) } else { Answer::Yes }
}

fn requested_reply(content: &[u8]) -> Option<Reply> {
    let text = String::from_utf8_lossy(content);
    let request = text.lines().find_map(|line| line.strip_prefix("Subject: reply "))?;
    let (code, enhanced) = request.split_once(' ')?;
    let mut parts = enhanced.split('.').skip(1).map(|part| part.parse::<u16>().ok());
    Some(Reply::new(code.parse().ok()?, parts.next()??, parts.next()??, "as you wish"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_matches_anything() {
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
    fn a_message_can_request_its_reply() {
        assert_eq!(
            requested_reply(b"Subject: reply 451 4.3.0\r\n"),
            Some(Reply::new(451, 3, 0, "as you wish"))
        );
    }
}
