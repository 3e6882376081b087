//! Encoded words (RFC 2047) of header fields.
//!
//! Neighbouring words of one charset are joined before they are decoded: a mailer may cut within a character.

use mail_parser::decoders::base64::base64_decode;

use crate::charset;

/// Bytes of a charset's label.
const LABEL_BYTES_MAX: usize = 64;
/// Bytes of one encoded word; RFC 2047 2 allows 75, mailers write more.
const WORD_BYTES_MAX: usize = 4096;
/// What a phrase cannot have outside of quotation marks.
const SPECIALS: &[char] = &['(', ')', '<', '>', '@', ',', ';', ':', '\\', '"', '.', '[', ']'];

/// An encoded word: its charset, its bytes, and what follows.
struct Word<'v> {
    label: String,
    bytes: Vec<u8>,
    rest: &'v [u8],
}

/// Decodes the encoded words of an unstructured value, and unfolds it.
pub(crate) fn decode(value: &[u8]) -> String {
    let mut text = String::new();
    let mut plain = Vec::new();
    let mut rest = value;
    while let Some((byte, after)) = rest.split_first() {
        if let Some((decoded, after)) = run(rest) {
            text.push_str(&charset::decode("", &std::mem::take(&mut plain)));
            text.push_str(&decoded);
            rest = after;
            continue;
        }
        if !matches!(byte, b'\r' | b'\n') {
            plain.push(*byte);
        }
        rest = after;
    }
    text.push_str(&charset::decode("", &plain));
    text
}

/// Replaces the encoded words of an address list by UTF-8, quoted where needed: the parser of addresses decodes each word by itself.
pub(crate) fn decode_phrases(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let (mut quoted, mut depth) = (false, 0_u32);
    let mut rest = value;
    while let Some((byte, after)) = rest.split_first() {
        if let Some((decoded, after)) = run(rest) {
            phrase(&mut out, &decoded, quoted || depth > 0);
            rest = after;
            continue;
        }
        rest = after;
        out.push(*byte);
        match byte {
            b'\\' if quoted || depth > 0 => {
                out.extend(rest.first());
                rest = rest.get(1..).unwrap_or_default();
            }
            b'"' if depth == 0 => quoted = !quoted,
            b'(' if !quoted => depth += 1,
            b')' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    out
}

fn phrase(out: &mut Vec<u8>, text: &str, within: bool) {
    let quotes = !within && text.contains(SPECIALS);
    let one_line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut escaped = String::new();
    for letter in one_line {
        if (quotes || within) && matches!(letter, '"' | '\\' | '(' | ')') {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    if quotes {
        escaped = format!("\"{escaped}\"");
    }
    out.extend(escaped.as_bytes());
}

/// Decodes the encoded words that `value` begins with, white space between them left out; returns what follows.
fn run(value: &[u8]) -> Option<(String, &[u8])> {
    let mut first = word(value)?;
    let mut text = String::new();
    while let Some(next) = word(first.rest.trim_ascii_start()) {
        if next.label == first.label {
            first.bytes.extend(next.bytes);
            first.rest = next.rest;
        } else {
            text.push_str(&charset::decode(&first.label, &first.bytes));
            first = next;
        }
    }
    text.push_str(&charset::decode(&first.label, &first.bytes));
    Some((text, first.rest))
}

fn word(value: &[u8]) -> Option<Word<'_>> {
    let within = value[..value.len().min(WORD_BYTES_MAX)].strip_prefix(b"=?")?;
    let (label, within) = split(within, b"?")?;
    if label.is_empty()
        || label.len() > LABEL_BYTES_MAX
        || label.iter().any(|byte| byte.is_ascii_whitespace())
    {
        return None;
    }
    let (encoding, within) = split(within, b"?")?;
    let (data, _) = split(within, b"?=")?;
    let length = value.len().min(WORD_BYTES_MAX) - within.len() + data.len() + 2;
    let bytes = match encoding {
        b"q" | b"Q" => quoted(data),
        b"b" | b"B" => base64(data)?,
        _ => return None,
    };
    // RFC 2231 5: a language may follow the charset.
    let label = label.split(|byte| *byte == b'*').next().unwrap_or_default();
    Some(Word { label: String::from_utf8_lossy(label).to_ascii_lowercase(), bytes, rest: &value[length..] })
}

fn split<'v>(value: &'v [u8], separator: &[u8]) -> Option<(&'v [u8], &'v [u8])> {
    let at = memchr::memmem::find(value, separator)?;
    Some((&value[..at], &value[at + separator.len()..]))
}

fn base64(data: &[u8]) -> Option<Vec<u8>> {
    let data: Vec<u8> = data.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if data.is_empty() { Some(Vec::new()) } else { base64_decode(&data) }
}

fn quoted(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut rest = data;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match (byte, hex(after)) {
            (b'_', _) => out.push(b' '),
            (b'=', Some(decoded)) => {
                out.push(decoded);
                rest = &after[2..];
            }
            (b'\r' | b'\n', _) => {}
            _ => out.push(*byte),
        }
    }
    out
}

fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_words_of_one_charset_are_joined_before_decoding() {
        let check = |value: &str, expected: &str| assert_eq!(decode(value.as_bytes()), expected, "{value}");
        check("=?utf-8?Q?=E0=B9?= =?utf-8?Q?=88?=", "\u{e48}");
        check("=?utf-8?B?4Lk=?=\r\n =?UTF-8?Q?=88?=", "\u{e48}");
        check("=?utf-8?Q?=E0=B9?= =?iso-8859-1?Q?=FC?=", "\u{fffd}ü");
        check("=?cp932?B?g24=?= =?cp932?B?g40=?=", "ハロ");
        check("a =?utf-8?q?b_c?= d =?utf-8?q?e?=", "a b c d e");
        check("=?utf-8*en?q?b?=", "b");
        check("=?utf-8?x?b?= =?utf-8?q?b", "=?utf-8?x?b?= =?utf-8?q?b");
        check("=?utf-8?q?a b?=", "a b");
        check("=?utf-8?b?R3LDvMOfZQ?=", "Grüße");
        check("=?utf-8?b??=x", "x");
    }

    #[test]
    fn words_without_an_end_take_linear_time() {
        let value = "=?a?q?x ".repeat(1 << 15);
        assert_eq!(decode_phrases(value.as_bytes()), value.as_bytes());
    }

    #[test]
    fn phrases_stay_one_name() {
        let check = |value: &str, expected: &str| {
            assert_eq!(String::from_utf8(decode_phrases(value.as_bytes())).unwrap(), expected, "{value}");
        };
        check("=?utf-8?q?Ren=C3=A9?= <r@x.example>", "René <r@x.example>");
        check("=?utf-8?q?B=2C_C?= <r@x.example>, b@x.example", "\"B, C\" <r@x.example>, b@x.example");
        check("\"=?utf-8?q?say_=22hi=22?=\" <r@x.example>", "\"say \\\"hi\\\"\" <r@x.example>");
        check("r@x.example (=?utf-8?q?B=2C?=)", "r@x.example (B,)");
        check("\"a \\\" =?\" <r@x.example>", "\"a \\\" =?\" <r@x.example>");
    }
}
