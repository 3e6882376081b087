//! Reads the replies of a server, within limits (RFC 5321 4.2).

use std::borrow::Cow;

use bytes::BytesMut;
use postroad_core::{Reply, reply::EnhancedCode};

/// RFC 5321 4.5.3.1.5 allows 512; real servers send more.
const LINE_BYTES_MAX: usize = 4 << 10;
const REPLY_BYTES_MAX: usize = 64 << 10;
const LINES_MAX: usize = 100;

/// Lines between reply lines that are none; a server that sends more of them does not speak SMTP.
const FOREIGN_LINES_MAX: usize = 20;

/// Why bytes are not a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// A line or the whole reply exceeds our limit.
    TooLong,
    /// More than a few lines have no reply code.
    Malformed,
}

impl std::fmt::Display for ReplyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TooLong => "the reply is too long",
            Self::Malformed => "the reply is malformed",
        })
    }
}

impl std::error::Error for ReplyError {}

/// Assembles the lines of one reply.
///
/// Servers and the filters in front of them break the rules of RFC 5321 4.2 in ways that leave the reply clear. After
/// the final dot a reply declared unreadable means a second copy of the message, so what is clear is understood: lines
/// that are no reply lines are passed over, and where the codes of lines differ the last line's counts, as in Postfix.
/// All that was said is in the text of the reply.
#[derive(Debug, Default)]
pub struct ReplyReader {
    lines: Vec<Line>,
    bytes: usize,
    foreign_lines: usize,
    irregular: u64,
}

/// One line as the server sent it, without control characters.
#[derive(Debug)]
struct Line {
    /// `None` for a line that is no reply line.
    code: Option<u16>,
    text: String,
}

impl ReplyReader {
    /// Consumes lines from the front of `input`; returns the reply once its last line has arrived.
    ///
    /// Invalid UTF-8 becomes replacement characters; control characters become spaces.
    ///
    /// # Errors
    /// The bytes are not a reply; the connection must be closed.
    pub fn read(&mut self, input: &mut BytesMut) -> Result<Option<Reply>, ReplyError> {
        while let Some(end) = memchr::memchr(b'\n', &input[..input.len().min(LINE_BYTES_MAX)]) {
            let line = input.split_to(end + 1);
            if let Some(code) = self.add_line(line.trim_ascii_end())? {
                return Ok(Some(self.finish(code)));
            }
        }
        if input.len() >= LINE_BYTES_MAX { Err(ReplyError::TooLong) } else { Ok(None) }
    }

    /// Returns how many replies broke the rules of RFC 5321 4.2 and were understood.
    #[must_use]
    pub fn irregular(&self) -> u64 {
        self.irregular
    }

    /// Adds one line; returns the code of a reply's last line.
    fn add_line(&mut self, line: &[u8]) -> Result<Option<u16>, ReplyError> {
        self.bytes += line.len() + 2;
        if self.bytes > REPLY_BYTES_MAX || self.lines.len() >= LINES_MAX {
            return Err(ReplyError::TooLong);
        }
        let (code, text, last) = match reply_line(line) {
            Some((code, text, last)) => (Some(code), text, last),
            None => (None, line, false),
        };
        if code.is_none() {
            self.foreign_lines += 1;
            if self.foreign_lines > FOREIGN_LINES_MAX {
                return Err(ReplyError::Malformed);
            }
        }
        let text =
            String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.lines.push(Line { code, text });
        Ok(code.filter(|_| last))
    }

    /// Makes the reply whose last line has this code.
    fn finish(&mut self, code: u16) -> Reply {
        let lines = std::mem::take(&mut self.lines);
        self.irregular += u64::from(lines.iter().any(|line| line.code != Some(code)));
        (self.bytes, self.foreign_lines) = (0, 0);
        let said = lines.iter().filter(|line| line.code.is_some() || !line.text.trim().is_empty());
        let mut reply = Reply { code, enhanced: None, text: "".into() };
        let mut texts = Vec::with_capacity(lines.len());
        for line in said {
            let (enhanced, text) = line.read(code);
            reply.enhanced = reply.enhanced.or(enhanced);
            texts.push(text);
        }
        reply.text = texts.join("\n").into();
        reply
    }
}

impl Line {
    /// Returns the enhanced code of the line, and its text as part of a reply with this code.
    fn read(&self, code: u16) -> (Option<EnhancedCode>, Cow<'_, str>) {
        match self.code {
            None => (None, self.text.trim().into()),
            // A line with another code keeps it: it is part of what was said.
            Some(other) if other != code => (None, format!("{other} {}", self.text).into()),
            Some(_) => {
                // An enhanced code of another class than the reply code is treated as text.
                let parsed = EnhancedCode::parse_prefix(&self.text)
                    .filter(|(enhanced, _)| u16::from(enhanced.class) == code / 100);
                let text = parsed.map_or(&*self.text, |(_, len)| self.text[len..].trim_start());
                (parsed.map(|(enhanced, _)| enhanced), text.into())
            }
        }
    }
}

/// Splits a reply line into code, text, and whether it is the last; `None` for any other line.
fn reply_line(line: &[u8]) -> Option<(u16, &[u8], bool)> {
    let (digits, rest) = line.split_at_checked(3)?;
    let code = code(digits)?;
    let last = match rest.first() {
        None | Some(b' ' | b'\t') => true,
        Some(b'-') => false,
        Some(_) => return None,
    };
    Some((code, rest.get(1..).unwrap_or(&[]), last))
}

/// RFC 5321 4.2: the first digit is 2 to 5; servers in use give second digits above 5 too.
fn code(digits: &[u8]) -> Option<u16> {
    let [first @ b'2'..=b'5', second @ b'0'..=b'9', third @ b'0'..=b'9'] = digits else { return None };
    let digit = |byte: &u8| u16::from(byte - b'0');
    Some(digit(first) * 100 + digit(second) * 10 + digit(third))
}

#[cfg(test)]
mod tests {
    use postroad_core::reply::enhanced;
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &str) -> Result<Option<Reply>, ReplyError> {
        ReplyReader::default().read(&mut BytesMut::from(bytes))
    }

    fn reply(code: u16, enhanced: Option<EnhancedCode>, text: &str) -> Result<Option<Reply>, ReplyError> {
        Ok(Some(Reply { code, enhanced, text: text.to_owned().into() }))
    }

    #[test]
    fn d_037_replies_of_real_servers_are_parsed() {
        assert_eq!(read("250 ok\r\n"), reply(250, None, "ok"));
        assert_eq!(read("250\r\n"), reply(250, None, ""));
        assert_eq!(read("250 ok\n"), reply(250, None, "ok"));
        assert_eq!(read("550 5.1.1 no\r\n"), reply(550, Some(enhanced(5, 1, 1)), "no"));
        assert_eq!(read("550-5.7.515 a\r\n550 5.7.515 b\r\n"), reply(550, Some(enhanced(5, 7, 515)), "a\nb"));
        assert_eq!(read("450 5.1.1 odd\r\n"), reply(450, None, "5.1.1 odd"));
        assert_eq!(read("250 a\u{1b}[2Jb\r\n"), reply(250, None, "a [2Jb"));
        assert_eq!(read("250-a\r\n"), Ok(None));
        let not_utf_8 = ReplyReader::default().read(&mut BytesMut::from(&b"550 5.1.1 J\xfcrgen\x00\r\n"[..]));
        assert_eq!(not_utf_8, reply(550, Some(enhanced(5, 1, 1)), "J\u{fffd}rgen "));
    }

    #[test]
    fn d_037_invalid_and_overlong_replies_are_errors() {
        for line in ["hello\r\n", "25\r\n", "\r\n", "650 a\r\n", "250_a\r\n"] {
            assert_eq!(read(&line.repeat(20)), Ok(None), "{line:?}");
            assert_eq!(read(&line.repeat(21)), Err(ReplyError::Malformed), "{line:?}");
        }
        assert_eq!(read(&"2".repeat(5000)), Err(ReplyError::TooLong));
        assert_eq!(read(&"250-a\r\n".repeat(101)), Err(ReplyError::TooLong));
        assert_eq!(read(&format!("250-{}\r\n", "a".repeat(3000)).repeat(30)), Err(ReplyError::TooLong));
    }

    #[test]
    fn d_037_and_d_044_a_reply_that_can_be_understood_is_understood() {
        let check = |bytes: &str, expected: Reply| {
            let mut reader = ReplyReader::default();
            assert_eq!(reader.read(&mut BytesMut::from(bytes)), Ok(Some(expected)), "{bytes:?}");
            assert_eq!(reader.irregular(), 1, "{bytes:?}");
        };
        // Lines that are no reply lines.
        check("\r\n250 taken\r\n", Reply::plain(250, "taken"));
        check("250-first\r\n\r\n250 last\r\n", Reply::plain(250, "first\nlast"));
        check(
            "550-5.7.1 blocked\r\n see our page\r\n550 5.7.1 bye\r\n",
            Reply::new(550, 7, 1, "blocked\nsee our page\nbye"),
        );
        check("*** filter ***\n250 2.0.0 ok\n", Reply::new(250, 0, 0, "*** filter ***\nok"));
        // Lines with differing codes: the last counts, and what was said stays in the record.
        check("220-x.example\r\n521 5.7.1 blocked\r\n", Reply::new(521, 7, 1, "220 x.example\nblocked"));
        check("250-queued\r\n251 ok\r\n", Reply::plain(251, "250 queued\nok"));
        check("250-2.0.0 a\r\n451 later\r\n", Reply::plain(451, "250 2.0.0 a\nlater"));
    }

    #[test]
    fn d_037_and_d_044_a_reader_is_clean_after_each_reply() {
        let mut reader = ReplyReader::default();
        let mut input = BytesMut::from("noise\r\n250-5.1.1 a\r\n550 5.1.1 b\r\n250 c\r\n");
        assert_eq!(reader.read(&mut input), Ok(Some(Reply::new(550, 1, 1, "noise\n250 5.1.1 a\nb"))));
        assert_eq!(reader.read(&mut input), reply(250, None, "c"));
        assert_eq!(reader.irregular(), 1);
    }

    #[test]
    fn codes_above_559_are_read() {
        assert_eq!(read("571 5.7.1 no\r\n"), reply(571, Some(enhanced(5, 7, 1)), "no"));
        assert_eq!(read("599 no\r\n"), reply(599, None, "no"));
    }

    proptest! {
        #[test]
        fn z_06_replies_parse_the_same_in_any_segmentation(bytes in "(250[ -](5\\.1\\.1 )?[a-z\\x00]{0,5}\r?\n|.{0,4}){0,6}", piece in 1_usize..7) {
            let mut whole = BytesMut::from(bytes.as_str());
            let expected = ReplyReader::default().read(&mut whole);
            let (mut reader, mut buffer, mut seen) = (ReplyReader::default(), BytesMut::new(), Ok(None));
            for chunk in bytes.as_bytes().chunks(piece) {
                buffer.extend_from_slice(chunk);
                seen = reader.read(&mut buffer);
                if seen != Ok(None) { break; }
            }
            prop_assert_eq!(seen, expected);
        }
    }
}
