//! The content of a message on the wire: dot-stuffed lines up to CRLF "." CRLF (RFC 5321 4.5.2).
//!
//! End of data is recognised on the raw bytes CR LF "." CR LF and on nothing else (RFC 5321 2.3.8, 4.1.1.4).
//! A bare CR or LF is remembered, so that the message is refused after its true end: servers that took one for a line end
//! could be made to see two messages where others saw one.

use bytes::{Bytes, BytesMut};

/// Removes dot-stuffing from bytes in any segmentation, keeping at most a given size.
#[derive(Debug)]
pub struct DataDecoder {
    content: BytesMut,
    /// Bytes of the content so far, kept or not.
    size: u64,
    size_max: u64,
    at: At,
    bare_newline: bool,
    nul: bool,
}

/// Where the decoder is in a line; what it names has been consumed and not yet put out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    LineStart,
    /// A dot at the start of a line.
    Dot,
    /// A dot at the start of a line, and CR.
    DotCr,
    InLine,
    /// CR within a line.
    Cr,
}

/// A decoded message, or why it cannot be one. Of several reasons the first in this order is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The content, with the dots of the transport removed.
    Content(Bytes),
    /// There is a CR without LF or an LF without CR.
    BareNewline,
    /// There is a NUL.
    Nul,
    /// It is larger than allowed; nothing of it was kept past that.
    TooLarge,
}

impl DataDecoder {
    /// Makes a decoder for one message of at most `size_max` bytes, dots of the transport and the end not counted.
    #[must_use]
    pub fn new(size_max: u64, expected: usize) -> Self {
        Self {
            content: BytesMut::with_capacity(expected),
            size: 0,
            size_max,
            at: At::LineStart,
            bare_newline: false,
            nul: false,
        }
    }

    /// Consumes from `input` up to the end of the message; true when it was reached, the rest being commands.
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
            match (self.at, byte) {
                (At::LineStart, b'.') => self.at = At::Dot,
                (At::Dot, b'\r') => self.at = At::DotCr,
                (At::DotCr, b'\n') => {
                    *rest = &rest[1..];
                    return true;
                }
                (At::Cr, b'\n') => {
                    self.put(b"\r\n");
                    self.at = At::LineStart;
                }
                // A CR that no LF follows is data, and a reason to refuse the message.
                (At::DotCr | At::Cr, _) => {
                    self.bare_newline = true;
                    self.put(b"\r");
                    self.at = At::InLine;
                    continue;
                }
                (At::LineStart | At::Dot, _) => {
                    self.at = At::InLine;
                    continue;
                }
                (At::InLine, _) => {
                    self.consume_line(rest);
                    continue;
                }
            }
            *rest = &rest[1..];
        }
        false
    }

    /// Consumes up to and with the next CR, LF or NUL.
    fn consume_line(&mut self, rest: &mut &[u8]) {
        let Some(end) = memchr::memchr3(b'\r', b'\n', 0, rest) else {
            self.put(rest);
            *rest = &[];
            return;
        };
        match rest[end] {
            b'\r' => {
                self.put(&rest[..end]);
                self.at = At::Cr;
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

    /// Returns the bytes of the content so far, kept or not.
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

/// A CR without LF or an LF without CR: such content never leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareNewline;

impl std::fmt::Display for BareNewline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the content has a bare CR or LF")
    }
}

impl std::error::Error for BareNewline {}

const DOT: Bytes = Bytes::from_static(b".");
const END: Bytes = Bytes::from_static(b".\r\n");
const END_AFTER_OPEN_LINE: Bytes = Bytes::from_static(b"\r\n.\r\n");

/// Returns `parts` as they go over the wire: dots stuffed, a missing last CRLF added, the end behind.
///
/// The parts are one content; they are sliced where a dot goes in and not copied.
///
/// # Errors
/// The content has a bare CR or LF.
pub fn stuff(parts: &[Bytes]) -> Result<Vec<Bytes>, BareNewline> {
    let mut out = Vec::with_capacity(parts.len() + 1);
    // What the bytes before this place were: the start of a line, CR, or anything else.
    let (mut line_start, mut after_cr) = (true, false);
    for part in parts {
        let mut from = 0;
        let mut place = 0;
        while place < part.len() {
            if after_cr && part[place] != b'\n' {
                return Err(BareNewline);
            }
            if line_start && part[place] == b'.' {
                out.push(part.slice(from..place));
                out.push(DOT);
                from = place;
            }
            let Some(newline) = memchr::memchr2(b'\r', b'\n', &part[place..]) else {
                (line_start, after_cr) = (false, false);
                break;
            };
            place += newline + 1;
            if part[place - 1] == b'\r' {
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

    /// Decodes `wire` in pieces of `piece` bytes; returns the message and what follows it.
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
            assert!(buffer.is_empty(), "what is no end is consumed");
        }
        None
    }

    /// The rule of RFC 5321 4.5.2 written down naively: find the end, then unstuff line by line.
    fn naive(wire: &[u8]) -> Option<(Decoded, Vec<u8>)> {
        let end = if wire.starts_with(b".\r\n") {
            0
        } else {
            wire.windows(5).position(|window| window == b"\r\n.\r\n")? + 2
        };
        let rest = wire[end + 3..].to_vec();
        let mut content = Vec::new();
        let mut line_start = true;
        for (place, byte) in wire[..end].iter().enumerate() {
            if !(line_start && *byte == b'.') {
                content.push(*byte);
            }
            line_start = *byte == b'\n' && place > 0 && wire[place - 1] == b'\r';
        }
        let text = content.clone();
        let bare = (0..text.len()).any(|place| match text[place] {
            b'\r' => text.get(place + 1) != Some(&b'\n'),
            b'\n' => place == 0 || text[place - 1] != b'\r',
            _ => false,
        });
        // Unstuffing cannot join a CR and an LF that a dot kept apart: the raw bytes decide.
        let raw = &wire[..end];
        let raw_bare = (0..raw.len()).any(|place| match raw[place] {
            b'\r' => raw.get(place + 1) != Some(&b'\n'),
            b'\n' => place == 0 || raw[place - 1] != b'\r',
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
        fn z_02_decoding_does_not_depend_on_segments_and_equals_the_naive_rule(wire in wire_bytes(), piece in 1_usize..9) {
            let whole = decode(&wire, wire.len().max(1), u64::MAX);
            prop_assert_eq!(&decode(&wire, piece, u64::MAX), &whole);
            prop_assert_eq!(whole, naive(&wire));
        }

        #[test]
        fn s_110_what_is_stuffed_is_what_is_read(
            lines in prop::collection::vec("[.a]{0,4}", 0..20), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4)
        ) {
            let content = Bytes::from(lines.iter().map(|line| format!("{line}\r\n")).collect::<String>());
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(content.len() + 1)).collect();
            places.extend([0, content.len()]);
            places.sort_unstable();
            let parts: Vec<Bytes> = places.windows(2).map(|pair| content.slice(pair[0]..pair[1])).collect();
            let wire = stuff(&parts).unwrap().concat();
            prop_assert_eq!(decode(&wire, 3, u64::MAX), Some((Decoded::Content(content), Vec::new())));
        }
    }

    #[test]
    fn s_101_to_s_106_nothing_else_ends_the_data() {
        for hidden in [
            "\n.\n",
            "\n.\r\n",
            "\r\n.\n",
            "\r.\r",
            "\r.\n",
            "\n.\r",
            "\r.\r\n",
            "\r\n.\r",
            "\r\n.\r\r\n",
            "\r\r\n.\rx",
        ] {
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
        // The second of S-105: a real end whose line before ended in CR CR LF.
        assert_eq!(decode(b"a\r\r\n.\r\n", 1, u64::MAX), Some((Decoded::BareNewline, Vec::new())));
    }

    #[test]
    fn s_107_the_end_is_found_at_every_split() {
        let wire = b"a\r\n.\r\nQUIT\r\n";
        for piece in 1..=wire.len() {
            let expected = Some((Decoded::Content(Bytes::from_static(b"a\r\n")), b"QUIT\r\n".to_vec()));
            assert_eq!(decode(wire, piece, u64::MAX), expected);
        }
    }

    #[test]
    fn s_201_exactly_the_limit_passes_and_one_byte_more_does_not() {
        let content = |decoded| matches!(decoded, Some((Decoded::Content(_), _)));
        // Stuffed dots and the end do not count.
        let wire = b"..a\r\n..b\r\n.\r\n";
        assert!(content(decode(wire, 1, 8)));
        assert_eq!(decode(wire, 1, 7), Some((Decoded::TooLarge, Vec::new())));
    }

    #[test]
    fn s_112_bare_newlines_never_leave() {
        for content in ["a\n", "a\r", "a\rb\r\n", "\n", "a\r\r\n", "a\r\n\n"] {
            for cut in 0..=content.len() {
                let parts = [Bytes::from(content[..cut].to_owned()), Bytes::from(content[cut..].to_owned())];
                assert_eq!(stuff(&parts), Err(BareNewline), "{content:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_missing_last_line_end_is_added() {
        assert_eq!(stuff(&[Bytes::from_static(b"a")]).unwrap().concat(), b"a\r\n.\r\n");
        assert_eq!(stuff(&[]).unwrap().concat(), b".\r\n");
        assert_eq!(stuff(&[Bytes::from_static(b".")]).unwrap().concat(), b"..\r\n.\r\n");
    }
}
