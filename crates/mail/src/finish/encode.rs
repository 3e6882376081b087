//! The encodings of MIME: quoted-printable, base64 and encoded words.

use super::Unconvertible;

/// The longest line of encoded text (RFC 2045 6.7 and 6.8), also in a header (RFC 2047 2).
pub(super) const LINE_MAX: usize = 76;
/// The longest encoded word (RFC 2047 2).
const WORD_MAX: usize = 75;

/// Appends bytes within the capacity of `out`, which is all the memory that it may take.
pub(super) fn append(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Unconvertible> {
    if out.capacity() - out.len() < bytes.len() {
        return Err(Unconvertible::Size);
    }
    out.extend_from_slice(bytes);
    Ok(())
}

/// Encodes text whose lines end with CRLF (RFC 2045 6.7), within the capacity of `out`.
pub(super) fn quoted_printable(text: &[u8], out: &mut Vec<u8>) -> Result<(), Unconvertible> {
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let content = line.strip_suffix(b"\r\n").unwrap_or(line);
        quoted_printable_line(content, out)?;
        append(&line[content.len()..], out)?;
    }
    Ok(())
}

fn quoted_printable_line(line: &[u8], out: &mut Vec<u8>) -> Result<(), Unconvertible> {
    let mut length = 0;
    for (position, byte) in line.iter().enumerate() {
        let is_last = position + 1 == line.len();
        let literal = match byte {
            b'=' => false,
            b' ' | b'\t' => !is_last,
            // A line of a single dot, or one that begins with "From ", is changed by some relays.
            b'.' | b'F' if position == 0 => false,
            byte => byte.is_ascii_graphic(),
        };
        let needed = if literal { 1 } else { 3 };
        // One column is for the `=` of a soft line break.
        if length + needed > LINE_MAX - usize::from(!is_last) {
            append(b"=\r\n", out)?;
            length = 0;
        }
        if literal {
            append(&[*byte], out)?;
        } else {
            let [high, low] = hex(*byte);
            append(&[b'=', high, low], out)?;
        }
        length += needed;
    }
    Ok(())
}

/// Encodes bytes in lines (RFC 2045 6.8), within the capacity of `out`.
pub(super) fn base64_lines(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Unconvertible> {
    let mut encoded = Vec::with_capacity(LINE_MAX + 2);
    for line in bytes.chunks(LINE_MAX / 4 * 3) {
        encoded.clear();
        base64(line, &mut encoded);
        encoded.extend_from_slice(b"\r\n");
        append(&encoded, out)?;
    }
    Ok(())
}

fn hex(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for position in 0..4 {
            let sextet = bits >> (18 - 6 * position) & 63;
            out.push(if position <= group.len() { ALPHABET[sextet as usize] } else { b'=' });
        }
    }
}

/// Encodes text of a header field as encoded words, separated by spaces (RFC 2047).
///
/// Text that is not UTF-8 has no known charset (RFC 1428).
pub(super) fn encoded_words(text: &[u8], out: &mut Vec<u8>) {
    let charset = if std::str::from_utf8(text).is_ok() { "utf-8" } else { "unknown-8bit" };
    let (start, end) = (format!("=?{charset}?B?"), "?=");
    let bytes_max = (WORD_MAX - start.len() - end.len()) / 4 * 3;
    let mut rest = text;
    let mut is_first = true;
    while !rest.is_empty() {
        let mut length = rest.len().min(bytes_max);
        // A character must not be divided between words.
        while length < rest.len() && length > 1 && charset == "utf-8" && rest[length] & 0xC0 == 0x80 {
            length -= 1;
        }
        if !is_first {
            out.push(b' ');
        }
        is_first = false;
        out.extend_from_slice(start.as_bytes());
        base64(&rest[..length], out);
        out.extend_from_slice(end.as_bytes());
        rest = &rest[length..];
    }
}

/// Encodes a MIME parameter (RFC 2231 4), in segments where a line cannot hold it (RFC 2231 3).
pub(super) fn extended_parameter(name: &str, value: &[u8]) -> String {
    let (charset, characters): (_, Vec<String>) = match std::str::from_utf8(value) {
        Ok(text) => ("utf-8", text.chars().map(|c| percent(c.encode_utf8(&mut [0; 4]).as_bytes())).collect()),
        Err(_) => ("unknown-8bit", value.chunks(1).map(percent).collect()),
    };
    // A space precedes it on its line, and a semicolon may follow.
    let fits = |text: &str, more: &str| 1 + text.len() + more.len() < LINE_MAX;
    let whole = format!("{name}*={charset}''{}", characters.concat());
    if fits(&whole, "") {
        return whole;
    }
    let mut parameters = format!("{name}*0*={charset}''");
    let (mut start, mut number) = (0, 0);
    for character in characters {
        if !fits(&parameters[start..], &character) {
            number += 1;
            parameters.push_str("; ");
            start = parameters.len();
            parameters.push_str(&format!("{name}*{number}*="));
        }
        parameters.push_str(&character);
    }
    parameters
}

/// Returns the bytes of a character, those that a parameter cannot have as `%XX`.
fn percent(character: &[u8]) -> String {
    match character {
        [byte] if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_') => {
            char::from(*byte).to_string()
        }
        bytes => bytes.iter().map(|byte| format!("%{byte:02X}")).collect(),
    }
}
