//! Lines: where a command ends, and what happens to one that is too long.

use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::{Output, ServerSession, SessionError, State};

/// RFC 5321 4.5.3.1.4: a command line with its CRLF, before any extension is in use.
const LINE_BYTES_PLAIN: usize = 512;
/// The limit after EHLO: extensions add parameters.
const LINE_BYTES_EXTENDED: usize = 4096;
/// RFC 4954 4: an AUTH response.
const LINE_BYTES_AUTH: usize = 12_288;
/// How much of an overlong line is discarded before the connection is closed.
const DISCARD_BYTES_MAX: usize = 64 << 10;

impl<I> ServerSession<I> {
    /// Takes the next line without its CRLF. The error is what the session needs first, or `None` when the state changed.
    pub(super) fn next_line(
        &mut self,
        now: Instant,
        state: State,
        input: &mut BytesMut,
    ) -> Result<Bytes, Option<Output>> {
        // S-007: a TLS client waits for the answer to its hello, which may lack a line end.
        if input.starts_with(b"\x16\x03") {
            self.reply(&SessionError::NotATlsPort.reply());
            return Err(None);
        }
        let bytes_max = self.line_bytes_max(&state, input);
        if let Some(end) = memchr::memchr(b'\n', &input[..input.len().min(bytes_max)]) {
            let line = input.split_to(end + 1);
            self.deadline = now + self.config.command_timeout;
            let Some(line) = line.strip_suffix(b"\r\n").filter(|line| !line.contains(&b'\r')) else {
                // We cannot know where the client thinks its lines end.
                self.reply(&SessionError::BareNewlineInCommand.reply());
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
    pub(super) fn discard(
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
            let error = if of_auth { SessionError::AuthLineTooLong } else { SessionError::LineTooLong };
            self.error_reply(&error.reply());
            return None;
        }
        if searched == room {
            self.reply(&SessionError::LineWithoutEnd.reply());
            return None;
        }
        input.clear();
        self.state = State::Discarding { discarded: discarded + searched, of_auth, then };
        Some(Output::Read(self.deadline))
    }
}

fn begins_auth(input: &[u8]) -> bool {
    input.get(..5).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH "))
}
