//! The content of a message on the wire: dot-stuffed lines up to CRLF "." CRLF (RFC 5321 4.5.2).
//!
//! Only the raw bytes CR LF "." CR LF end the data (RFC 5321 2.3.8, 4.1.1.4).
//! A message with a bare CR or LF is refused after its true end: servers that treat one as a line end
//! see two messages where others see one (SMTP smuggling).

use bytes::{Bytes, BytesMut};

/// Removes dot-stuffing, whatever the segmentation, and keeps at most a given size.
#[derive(Debug)]
pub struct DataDecoder {
    content: BytesMut,
    /// Bytes of content so far, including discarded ones.
    size: u64,
    size_max: u64,
    line: LineState,
    bare_newline: bool,
    /// The first line is a dot and LF: the dot is not in the content.
    begins_with_lone_dot: bool,
    nul: bool,
}

/// Where the decoder is in a line. The named bytes are consumed and not yet written to the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineState {
    LineStart,
    /// A dot at the start of a line.
    Dot,
    /// A dot at the start of a line, then CR.
    DotCr,
    InLine,
    /// A CR within a line.
    Cr,
}

/// A decoded message, or why it is refused. `TooLarge` wins over `BareNewline`, that over `Nul`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The content, with dot-stuffing removed.
    Content(Bytes),
    /// The content has a CR without LF or an LF without CR.
    BareNewline,
    /// All lines ended with LF; they end with CRLF now. Only from [`DataDecoder::finish_tolerant`].
    LfLines(Bytes),
    /// The content has a NUL.
    Nul,
    /// The content exceeds the limit; it was discarded.
    TooLarge,
}

impl DataDecoder {
    /// Makes a decoder for one message of at most `size_max` bytes, not counting stuffed dots and the end of data.
    #[must_use]
    pub fn new(size_max: u64, expected: usize) -> Self {
        Self {
            content: BytesMut::with_capacity(expected),
            size: 0,
            size_max,
            line: LineState::LineStart,
            bare_newline: false,
            begins_with_lone_dot: false,
            nul: false,
        }
    }

    /// Consumes `input` up to the end of data; returns true when it was reached. The remaining bytes are commands.
    pub fn decode(&mut self, input: &mut BytesMut) -> bool {
        let mut rest = &input[..];
        let ended = self.consume(&mut rest);
        let left = rest.len();
        let consumed = input.len() - left;
        let _ = input.split_to(consumed);
        ended
    }

    fn consume(&mut self, rest: &mut &[u8]) -> bool {
        while let Some(&byte) = rest.first() {
            match (self.line, byte) {
                (LineState::LineStart, b'.') => self.line = LineState::Dot,
                (LineState::Dot, b'\r') => self.line = LineState::DotCr,
                (LineState::DotCr, b'\n') => {
                    *rest = &rest[1..];
                    return true;
                }
                (LineState::Cr, b'\n') => {
                    self.put(b"\r\n");
                    self.line = LineState::LineStart;
                }
                // A CR without LF is data, and the message will be refused.
                (LineState::DotCr | LineState::Cr, _) => {
                    self.bare_newline = true;
                    self.put(b"\r");
                    self.line = LineState::InLine;
                    continue;
                }
                (LineState::Dot, b'\n') if self.size == 0 => {
                    self.begins_with_lone_dot = true;
                    self.line = LineState::InLine;
                    continue;
                }
                (LineState::LineStart | LineState::Dot, _) => {
                    self.line = LineState::InLine;
                    continue;
                }
                (LineState::InLine, _) => {
                    self.consume_line(rest);
                    continue;
                }
            }
            *rest = &rest[1..];
        }
        false
    }

    /// Consumes up to and including the next CR, LF or NUL.
    fn consume_line(&mut self, rest: &mut &[u8]) {
        let Some(end) = memchr::memchr3(b'\r', b'\n', 0, rest) else {
            self.put(rest);
            *rest = &[];
            return;
        };
        match rest[end] {
            b'\r' => {
                self.put(&rest[..end]);
                self.line = LineState::Cr;
            }
            b'\n' => {
                self.put(&rest[..=end]);
                self.bare_newline = true;
            }
            _ => {
                self.put(&rest[..=end]);
                self.nul = true;
            }
        }
        *rest = &rest[end + 1..];
    }

    fn put(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        if self.size <= self.size_max {
            self.content.extend_from_slice(bytes);
        } else {
            self.content = BytesMut::new();
        }
    }

    /// Returns the bytes of content so far, including discarded ones.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the message after [`DataDecoder::decode`] has returned true.
    #[must_use]
    pub fn finish(self) -> Decoded {
        if self.size > self.size_max {
            Decoded::TooLarge
        } else if self.bare_newline {
            Decoded::BareNewline
        } else if self.nul {
            Decoded::Nul
        } else {
            Decoded::Content(self.content.freeze())
        }
    }
}

impl DataDecoder {
    /// Returns the message of a client that is known, like [`DataDecoder::finish`], but repairs lines that end with LF.
    ///
    /// Only where nobody can read the bytes in two ways: no CRLF before the end of data, no CR at all, and no line
    /// that is a lone dot. So a server that takes LF for a line end sees the same single message.
    #[must_use]
    pub fn finish_tolerant(self) -> Decoded {
        let repairable = self.bare_newline && !self.begins_with_lone_dot && !self.nul;
        if !repairable || self.size > self.size_max {
            return self.finish();
        }
        match lf_lines(&self.content) {
            Some(content) if content.len() as u64 > self.size_max => Decoded::TooLarge,
            Some(content) => Decoded::LfLines(content),
            None => Decoded::BareNewline,
        }
    }
}

/// Converts lines that end with LF, and undoes their dot-stuffing; the last one ends with the CRLF of the end of data.
fn lf_lines(content: &[u8]) -> Option<Bytes> {
    let lines = content.strip_suffix(b"\r\n").filter(|lines| !lines.contains(&b'\r'))?;
    let mut out = BytesMut::with_capacity(content.len() + content.len() / 32 + 2);
    for (number, line) in lines.split(|byte| *byte == b'\n').enumerate() {
        if line == b"." {
            return None;
        }
        // The decoder has undone that of the first line.
        let stuffed = number > 0 && line.starts_with(b".");
        out.extend_from_slice(&line[usize::from(stuffed)..]);
        out.extend_from_slice(b"\r\n");
    }
    Some(out.freeze())
}

/// The content has a CR without LF or an LF without CR: it is never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareNewline;

impl std::fmt::Display for BareNewline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the message has a bare CR or LF")
    }
}

impl std::error::Error for BareNewline {}

const DOT: Bytes = Bytes::from_static(b".");
const END: Bytes = Bytes::from_static(b".\r\n");
const END_AFTER_OPEN_LINE: Bytes = Bytes::from_static(b"\r\n.\r\n");

/// Returns the wire form of `parts`: dot-stuffed, with a missing final CRLF added, followed by the end of data.
///
/// The parts form one message; they are sliced where a dot is inserted, not copied.
///
/// # Errors
/// The content has a bare CR or LF.
pub fn dot_stuff(parts: &[Bytes]) -> Result<Vec<Bytes>, BareNewline> {
    let mut out = Vec::with_capacity(parts.len() + 1);
    // What precedes `position`: the start of a line, a CR, or neither.
    let (mut line_start, mut after_cr) = (true, false);
    for part in parts {
        let mut from = 0;
        let mut position = 0;
        while position < part.len() {
            if after_cr && part[position] != b'\n' {
                return Err(BareNewline);
            }
            if line_start && part[position] == b'.' {
                out.push(part.slice(from..position));
                out.push(DOT);
                from = position;
            }
            let Some(newline) = memchr::memchr2(b'\r', b'\n', &part[position..]) else {
                (line_start, after_cr) = (false, false);
                break;
            };
            position += newline + 1;
            if part[position - 1] == b'\r' {
                (line_start, after_cr) = (false, true);
            } else if after_cr && newline == 0 {
                (line_start, after_cr) = (true, false);
            } else {
                return Err(BareNewline);
            }
        }
        out.push(part.slice(from..));
    }
    if after_cr {
        return Err(BareNewline);
    }
    out.retain(|piece| !piece.is_empty());
    out.push(if line_start { END } else { END_AFTER_OPEN_LINE });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Decodes `wire` in pieces of `piece` bytes; returns the message and the bytes after it.
    fn decode(wire: &[u8], piece: usize, size_max: u64) -> Option<(Decoded, Vec<u8>)> {
        let mut decoder = DataDecoder::new(size_max, 0);
        let mut buffer = BytesMut::new();
        for (number, chunk) in wire.chunks(piece).enumerate() {
            buffer.extend_from_slice(chunk);
            if decoder.decode(&mut buffer) {
                let mut rest = buffer.to_vec();
                rest.extend(wire.chunks(piece).skip(number + 1).flatten());
                return Some((decoder.finish(), rest));
            }
            assert!(buffer.is_empty(), "all bytes before the end are consumed");
        }
        None
    }

    /// A naive implementation of RFC 5321 4.5.2: find the end, then unstuff line by line.
    fn naive(wire: &[u8]) -> Option<(Decoded, Vec<u8>)> {
        let end = if wire.starts_with(b".\r\n") {
            0
        } else {
            wire.windows(5).position(|window| window == b"\r\n.\r\n")? + 2
        };
        let rest = wire[end + 3..].to_vec();
        let mut content = Vec::new();
        let mut line_start = true;
        for (position, byte) in wire[..end].iter().enumerate() {
            if !(line_start && *byte == b'.') {
                content.push(*byte);
            }
            line_start = *byte == b'\n' && position > 0 && wire[position - 1] == b'\r';
        }
        let text = content.clone();
        let bare = (0..text.len()).any(|position| match text[position] {
            b'\r' => text.get(position + 1) != Some(&b'\n'),
            b'\n' => position == 0 || text[position - 1] != b'\r',
            _ => false,
        });
        // A CR and an LF with a stuffed dot between them are bare in the raw bytes, and the raw bytes decide.
        let raw = &wire[..end];
        let raw_bare = (0..raw.len()).any(|position| match raw[position] {
            b'\r' => raw.get(position + 1) != Some(&b'\n'),
            b'\n' => position == 0 || raw[position - 1] != b'\r',
            _ => false,
        });
        let decoded = if bare || raw_bare {
            Decoded::BareNewline
        } else if content.contains(&0) {
            Decoded::Nul
        } else {
            Decoded::Content(content.into())
        };
        Some((decoded, rest))
    }

    /// The bytes of a line, of which many are dots: neither CR nor LF, nor NUL, which no message may have.
    fn line_bytes() -> impl Strategy<Value = Vec<u8>> {
        let other = any::<u8>().prop_filter("a byte within a line", |byte| !b"\r\n\0".contains(byte));
        prop::collection::vec(prop_oneof![Just(b'.'), other], 0..5)
    }

    fn wire_bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(&b"\r\n"[..]),
            Just(&b"."[..]),
            Just(&b"\r"[..]),
            Just(&b"\n"[..]),
            Just(&b"a"[..]),
            Just(&b"\0"[..]),
            Just(&b"\r\n.\r\n"[..]),
            Just(&b"\r\n."[..]),
        ];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn z_02_decoding_equals_the_naive_rule_in_any_segmentation(wire in wire_bytes(), piece in 1_usize..9) {
            let whole = decode(&wire, wire.len().max(1), u64::MAX);
            prop_assert_eq!(&decode(&wire, piece, u64::MAX), &whole);
            prop_assert_eq!(whole, naive(&wire));
        }

        #[test]
        fn s_110_dot_stuffing_round_trips(
            lines in prop::collection::vec(line_bytes(), 0..20), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4)
        ) {
            let content = Bytes::from(lines.iter().flat_map(|line| [line.as_slice(), b"\r\n"].concat()).collect::<Vec<u8>>());
            let mut positions: Vec<usize> = cuts.iter().map(|cut| cut.index(content.len() + 1)).collect();
            positions.extend([0, content.len()]);
            positions.sort_unstable();
            let parts: Vec<Bytes> = positions.windows(2).map(|pair| content.slice(pair[0]..pair[1])).collect();
            let wire = dot_stuff(&parts).unwrap().concat();
            prop_assert_eq!(decode(&wire, 3, u64::MAX), Some((Decoded::Content(content), Vec::new())));
        }
    }

    /// What some server takes for the end of the data, and is not.
    const HIDDEN_ENDS: [&str; 9] =
        ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r.\n", "\n.\r", "\r.\r\n", "\r\n.\r", "\r\n.\r\r\n"];

    #[test]
    fn s_101_to_s_106_nothing_else_ends_the_data() {
        for hidden in HIDDEN_ENDS.into_iter().chain(["\r\r\n.\rx"]) {
            let wire = format!("a{hidden}MAIL FROM:<x@y.z>\r\n.\r\nQUIT\r\n");
            let expected = Some((Decoded::BareNewline, b"QUIT\r\n".to_vec()));
            for piece in 1..wire.len() {
                assert_eq!(decode(wire.as_bytes(), piece, u64::MAX), expected, "{hidden:?}");
            }
        }
        for hidden in ["\r\n\0.\r\n", "\r\n.\0\r\n"] {
            let wire = format!("a{hidden}b\r\n.\r\n");
            assert_eq!(decode(wire.as_bytes(), 2, u64::MAX), Some((Decoded::Nul, Vec::new())), "{hidden:?}");
        }
        for hidden in ["\r\n\u{85}.\r\n", "\r\n.\u{2028}\r\n"] {
            let wire = format!("a{hidden}b\r\n.\r\n");
            let decoded = decode(wire.as_bytes(), 2, u64::MAX).unwrap().0;
            assert!(matches!(decoded, Decoded::Content(_)), "{hidden:?}");
        }
        // The second case of S-105: a real end after a line that ended in CR CR LF.
        assert_eq!(decode(b"a\r\r\n.\r\n", 1, u64::MAX), Some((Decoded::BareNewline, Vec::new())));
    }

    fn decode_tolerant(wire: &str, piece: usize, size_max: u64) -> Decoded {
        let mut decoder = DataDecoder::new(size_max, 0);
        let mut buffer = BytesMut::new();
        for chunk in wire.as_bytes().chunks(piece) {
            buffer.extend_from_slice(chunk);
            if decoder.decode(&mut buffer) {
                return decoder.finish_tolerant();
            }
        }
        panic!("{wire:?} has no end");
    }

    #[test]
    fn lines_that_all_end_with_lf_are_repaired_for_a_client_that_is_known() {
        for (wire, expected) in [
            ("a: b\n\nhi\r\n.\r\n", "a: b\r\n\r\nhi\r\n"),
            ("a: b\n\nhi\n\r\n.\r\n", "a: b\r\n\r\nhi\r\n\r\n"),
            ("a: b\n\n..\n..x\r\n.\r\n", "a: b\r\n\r\n.\r\n.x\r\n"),
            ("..a\nb\r\n.\r\n", ".a\r\nb\r\n"),
        ] {
            for piece in 1..wire.len() {
                let expected = Decoded::LfLines(Bytes::from_static(expected.as_bytes()));
                assert_eq!(decode_tolerant(wire, piece, u64::MAX), expected, "{wire:?}");
            }
        }
        assert_eq!(
            decode_tolerant("a\nb\r\n.\r\n", 3, 6),
            Decoded::LfLines(Bytes::from_static(b"a\r\nb\r\n"))
        );
        assert_eq!(decode_tolerant("a\nb\r\n.\r\n", 3, 5), Decoded::TooLarge);
        let crlf = Decoded::Content(Bytes::from_static(b"a\r\nb\r\n"));
        assert_eq!(decode_tolerant("a\r\nb\r\n.\r\n", 3, 5 + 1), crlf);
    }

    #[test]
    fn s_101_to_s_106_a_client_that_is_known_gets_no_softer_end_of_data() {
        for hidden in HIDDEN_ENDS.into_iter().chain(["\r\n", "\r", "\r\n\n"]) {
            for start in ["a\n", "", "a"] {
                let wire = format!("{start}{hidden}MAIL FROM:<x@y.z>\nb\r\n.\r\n");
                for piece in 1..wire.len() {
                    assert_eq!(decode_tolerant(&wire, piece, u64::MAX), Decoded::BareNewline, "{wire:?}");
                }
            }
        }
        for wire in [".\nMAIL FROM:<x@y.z>\r\n.\r\n", "a\n.\r\n\r\n.\r\n", "a\nb\n.\r\nc\r\n.\r\n"] {
            assert_eq!(decode_tolerant(wire, 2, u64::MAX), Decoded::BareNewline, "{wire:?}");
        }
        assert_eq!(decode_tolerant("a\0\nb\r\n.\r\n", 2, u64::MAX), Decoded::BareNewline);
    }

    #[test]
    fn s_107_the_end_of_data_is_found_at_every_split() {
        let wire = b"a\r\n.\r\nQUIT\r\n";
        for piece in 1..=wire.len() {
            let expected = Some((Decoded::Content(Bytes::from_static(b"a\r\n")), b"QUIT\r\n".to_vec()));
            assert_eq!(decode(wire, piece, u64::MAX), expected);
        }
    }

    #[test]
    fn s_201_a_message_of_the_limit_is_accepted_and_one_byte_more_is_refused() {
        let content = |decoded| matches!(decoded, Some((Decoded::Content(_), _)));
        // Stuffed dots and the end of data do not count.
        let wire = b"..a\r\n..b\r\n.\r\n";
        assert!(content(decode(wire, 1, 8)));
        assert_eq!(decode(wire, 1, 7), Some((Decoded::TooLarge, Vec::new())));
    }

    #[test]
    fn s_112_bare_newlines_are_never_sent() {
        for content in ["a\n", "a\r", "a\rb\r\n", "\n", "a\r\r\n", "a\r\n\n"] {
            for cut in 0..=content.len() {
                let parts = [Bytes::from(content[..cut].to_owned()), Bytes::from(content[cut..].to_owned())];
                assert_eq!(dot_stuff(&parts), Err(BareNewline), "{content:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_missing_final_crlf_is_added() {
        assert_eq!(dot_stuff(&[Bytes::from_static(b"a")]).unwrap().concat(), b"a\r\n.\r\n");
        assert_eq!(dot_stuff(&[]).unwrap().concat(), b".\r\n");
        assert_eq!(dot_stuff(&[Bytes::from_static(b".")]).unwrap().concat(), b"..\r\n.\r\n");
    }
}
