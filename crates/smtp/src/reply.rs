//! Reads the replies of a server, within limits (RFC 5321 4.2).

use bytes::BytesMut;
use postroad_core::{Reply, reply::EnhancedCode};

/// RFC 5321 4.5.3.1.5 allows 512; real servers send more.
const LINE_BYTES_MAX: usize = 4 << 10;
const REPLY_BYTES_MAX: usize = 64 << 10;
const LINES_MAX: usize = 100;

/// Why bytes are not a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// A line or the whole reply exceeds our limit.
    TooLong,
    /// A line has no code, or a different code than the line before.
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
#[derive(Debug, Default)]
pub struct ReplyReader {
    code: Option<u16>,
    text: String,
    enhanced: Option<EnhancedCode>,
    bytes: usize,
    lines: usize,
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
            if self.add_line(line.trim_ascii_end())? {
                let reader = std::mem::take(self);
                let code = reader.code.expect("a line was added");
                return Ok(Some(Reply { code, enhanced: reader.enhanced, text: reader.text.into() }));
            }
        }
        if input.len() >= LINE_BYTES_MAX { Err(ReplyError::TooLong) } else { Ok(None) }
    }

    /// Adds one line; returns true for the last line of a reply.
    fn add_line(&mut self, line: &[u8]) -> Result<bool, ReplyError> {
        self.bytes += line.len() + 2;
        self.lines += 1;
        if self.bytes > REPLY_BYTES_MAX || self.lines > LINES_MAX {
            return Err(ReplyError::TooLong);
        }
        let (digits, rest) = line.split_at_checked(3).ok_or(ReplyError::Malformed)?;
        let code = code(digits).ok_or(ReplyError::Malformed)?;
        if self.code.is_some_and(|first| first != code) {
            return Err(ReplyError::Malformed);
        }
        let last = match rest.first() {
            None | Some(b' ') => true,
            Some(b'-') => false,
            Some(_) => return Err(ReplyError::Malformed),
        };
        let text = String::from_utf8_lossy(rest.get(1..).unwrap_or(&[]));
        self.add_text(code, &text);
        self.code = Some(code);
        Ok(last)
    }

    fn add_text(&mut self, code: u16, text: &str) {
        let parsed = EnhancedCode::parse_prefix(text);
        // An enhanced code of another class than the reply code is treated as text.
        let enhanced = parsed.filter(|(enhanced, _)| u16::from(enhanced.class) == code / 100);
        let text = enhanced.map_or(text, |(_, len)| text[len..].trim_start());
        if self.code.is_none() {
            self.enhanced = enhanced.map(|(enhanced, _)| enhanced);
        } else {
            self.text.push('\n');
        }
        self.text.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
    }
}

/// RFC 5321 4.2: the first digit is 2 to 5, the second 0 to 5.
fn code(digits: &[u8]) -> Option<u16> {
    let [first @ b'2'..=b'5', second @ b'0'..=b'5', third @ b'0'..=b'9'] = digits else { return None };
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
    }

    #[test]
    fn d_037_invalid_and_overlong_replies_are_errors() {
        for bytes in ["hello\r\n", "25\r\n", "\r\n", "250-a\r\n251 b\r\n", "650 a\r\n", "250_a\r\n"] {
            assert_eq!(read(bytes), Err(ReplyError::Malformed), "{bytes:?}");
        }
        assert_eq!(read(&"2".repeat(5000)), Err(ReplyError::TooLong));
        assert_eq!(read(&"250-a\r\n".repeat(101)), Err(ReplyError::TooLong));
        assert_eq!(read(&format!("250-{}\r\n", "a".repeat(3000)).repeat(30)), Err(ReplyError::TooLong));
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
