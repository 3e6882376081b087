//! Bounds that keep the MIME parser's work linear: content is measured before it is parsed, and dropped without recursion.
//!
//! The measure is an upper bound on what the parser may find, not a second parser: it counts the lines that could
//! begin a part, and those that could be header fields.

use mail_parser::{Message, PartType};
use memchr::memmem;

/// Why content is not parsed; it can still be shown raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooComplex {
    /// More parts than real mail has.
    #[error("the message has too many parts")]
    Parts,
    /// Parts within parts, deeper than in real mail.
    #[error("the parts of the message are nested too deeply")]
    Depth,
    /// More header fields than real mail has.
    #[error("the message has too many header fields")]
    Fields,
}

/// Parts of one message, with those of messages within it.
pub(crate) const PARTS_MAX: usize = 1000;
/// Messages within messages, and multiparts that a message declares.
pub(crate) const DEPTH_MAX: usize = 100;
/// Header fields and their continuation lines, of the message and every part.
const FIELD_LINES_MAX: usize = 20_000;
/// Lines that may begin a part: more than parts, since text has dashes too.
const DASH_LINES_MAX: usize = 10_000;
/// For every multipart the parser may search all that follows for its end: multiparts times bytes.
const SEARCHED_BYTES_MAX: usize = 1 << 30;

/// Refuses content that would take the parser more than linear time or many times its size in memory.
///
/// # Errors
/// The content has more structure than real mail has.
pub(crate) fn measure(content: &[u8]) -> Result<(), TooComplex> {
    let mut measure = Measure::default();
    let mut block = Some(Block::default());
    let mut rest = content;
    while !rest.is_empty() {
        let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
        let (line, after) = rest.split_at(end);
        rest = after;
        block = measure.line(line, block);
    }
    measure.judge(content.len())
}

#[derive(Debug, Default)]
struct Measure {
    field_lines: usize,
    dash_lines: usize,
    multiparts: usize,
    /// Parts of a digest are messages without a declaration.
    digest: bool,
}

/// A run of lines that may be the header of a part.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// What follows the header is another header.
    holds_message: bool,
}

impl Measure {
    /// Counts one line; returns the header block that the next line is in.
    fn line(&mut self, line: &[u8], block: Option<Block>) -> Option<Block> {
        let next = block.and_then(|block| self.header_line(line, block));
        // The parser finds a boundary anywhere in a line.
        if self.multiparts > 0 && memmem::find(line, b"--").is_some() {
            self.dash_lines += 1;
            return Some(Block { holds_message: self.digest });
        }
        next
    }

    fn header_line(&mut self, line: &[u8], mut block: Block) -> Option<Block> {
        if line.trim_ascii().is_empty() {
            return block.holds_message.then(Block::default);
        }
        self.field_lines += 1;
        self.multiparts += usize::from(contains_ignoring_case(line, b"boundary"));
        self.digest |= contains_ignoring_case(line, b"digest");
        block.holds_message |= contains_ignoring_case(line, b"message");
        Some(block)
    }

    fn judge(&self, bytes: usize) -> Result<(), TooComplex> {
        let searched = self.multiparts.saturating_mul(bytes);
        if self.multiparts > DEPTH_MAX || searched > SEARCHED_BYTES_MAX {
            return Err(TooComplex::Depth);
        }
        if self.dash_lines > DASH_LINES_MAX {
            return Err(TooComplex::Parts);
        }
        if self.field_lines > FIELD_LINES_MAX { Err(TooComplex::Fields) } else { Ok(()) }
    }
}

fn contains_ignoring_case(line: &[u8], lower: &[u8]) -> bool {
    let (first, rest) = (lower[0], &lower[1..]);
    memchr::memchr2_iter(first, first.to_ascii_uppercase(), line).any(|start| {
        line[start + 1..].get(..rest.len()).is_some_and(|found| found.eq_ignore_ascii_case(rest))
    })
}

/// Counts parts and depth of what was parsed.
///
/// # Errors
/// There are too many parts, or messages within messages too deep.
pub(crate) fn check(message: &Message<'_>) -> Result<(), TooComplex> {
    let (mut parts, mut waiting) = (0, vec![(message, 1)]);
    while let Some((message, depth)) = waiting.pop() {
        parts += message.parts.len();
        if parts > PARTS_MAX {
            return Err(TooComplex::Parts);
        }
        if depth > DEPTH_MAX {
            return Err(TooComplex::Depth);
        }
        let within = message.parts.iter().filter_map(|part| part.message());
        waiting.extend(within.map(|message| (message, depth + 1)));
    }
    Ok(())
}

/// Drops a message level by level: an ordinary drop recurses as deep as messages are nested.
pub(crate) fn dismantle(message: Message<'_>) {
    let mut waiting = vec![message];
    while let Some(mut message) = waiting.pop() {
        for part in message.parts.drain(..) {
            if let PartType::Message(within) = part.body {
                waiting.push(within);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn check(content: &str, expected: Result<(), TooComplex>) {
        assert_eq!(
            parse(content.as_bytes()).map(|_| ()),
            expected,
            "{:?}",
            &content[..content.len().min(60)]
        );
    }

    fn multipart(parts: usize) -> String {
        let mut content = "Content-Type: multipart/mixed; boundary=b\r\n\r\n".to_owned();
        for _ in 0..parts {
            content.push_str("--b\r\n\r\nx\r\n");
        }
        content + "--b--\r\n"
    }

    #[test]
    fn c_130_parts_are_bounded() {
        check(&multipart(900), Ok(()));
        check(&multipart(1_001), Err(TooComplex::Parts));
        check(&multipart(100_000), Err(TooComplex::Parts));
    }

    #[test]
    fn c_130_depth_is_bounded() {
        let multiparts = |depth| {
            (0..depth).fold(String::new(), |content, level| {
                content + &format!("Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n")
            })
        };
        check(&multiparts(20), Ok(()));
        check(&multiparts(101), Err(TooComplex::Depth));
        check(&multiparts(10_000), Err(TooComplex::Depth));
        let messages = |depth| "Content-Type: message/rfc822\r\n\r\n".repeat(depth);
        check(&messages(50), Ok(()));
        check(&messages(150), Err(TooComplex::Depth));
        check(&messages(9_000), Err(TooComplex::Depth));
        check(&messages(100_000), Err(TooComplex::Fields));
    }

    #[test]
    fn c_130_header_fields_are_bounded() {
        check(&"a:\r\n".repeat(1_000), Ok(()));
        check(&"a:\r\n".repeat(100_000), Err(TooComplex::Fields));
        let in_part = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n".to_owned();
        check(&(in_part + &"a:\r\n".repeat(100_000)), Err(TooComplex::Fields));
        let in_digest = "Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\n".to_owned();
        check(&(in_digest + &"a:\r\n".repeat(100_000)), Err(TooComplex::Fields));
    }

    #[test]
    fn large_text_and_attachments_are_no_structure() {
        check(&("Subject: s\r\n\r\n".to_owned() + &"--- a/file\r\n+++ b/file\r\n".repeat(50_000)), Ok(()));
        let attachment = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: message/rfc822\r\n\
            \r\nSubject: within\r\nContent-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n";
        let lines = format!("{}\r\n", "QUJD".repeat(19)).repeat(50_000);
        check(&format!("{attachment}{lines}--b--\r\n"), Ok(()));
    }
}
