//! The conversion of a whole message to 7-bit: each part with 8-bit bytes is encoded, its structure is kept.

use memchr::memmem;

use super::{
    Unconvertible,
    encode::{append, base64_lines, quoted_printable},
    field::{encode_header, fields, name_and_value, parameters},
    tokens::quoted_string,
};

/// Parts within parts; every level costs one pass over its bytes.
const DEPTH_MAX: usize = 20;

/// What the added header fields may make a short message longer by.
const ADDED_BYTES_MAX: usize = 64 << 10;

/// Returns the most bytes of a message of this size in 7-bit.
///
/// Bodies take 1.5 times their bytes; headers may take more.
pub(super) fn converted_bytes_max(bytes: usize) -> usize {
    2 * bytes + ADDED_BYTES_MAX
}

/// Returns the message in 7-bit.
pub(super) fn to_seven_bit(message: &[u8]) -> Result<Vec<u8>, Unconvertible> {
    let (mut out, converted) = convert_within(converted_bytes_max(message.len()), message);
    converted?;
    out.shrink_to_fit();
    Ok(out)
}

/// Converts as much as these bytes hold. They are reserved at once, so that no larger copy is made on the way; memory
/// that is not written takes none.
pub(super) fn convert_within(bytes_max: usize, message: &[u8]) -> (Vec<u8>, Result<(), Unconvertible>) {
    let mut out = Vec::with_capacity(bytes_max);
    let converted = convert(Entity::new(message, true), DEPTH_MAX, &mut out);
    (out, converted)
}

/// A message or a part: header and body.
struct Entity<'a> {
    whole: &'a [u8],
    /// Up to and including the empty line.
    header: &'a [u8],
    body: &'a [u8],
    /// It is a message, not a part of one.
    is_message: bool,
}

impl<'a> Entity<'a> {
    fn new(whole: &'a [u8], is_message: bool) -> Self {
        let length = if whole.starts_with(b"\r\n") {
            2
        } else {
            memmem::find(whole, b"\r\n\r\n").map_or(whole.len(), |end| end + 4)
        };
        let (header, body) = whole.split_at(length);
        Self { whole, header, body, is_message }
    }

    fn value(&self, wanted: &str) -> Option<&'a [u8]> {
        let mut named = fields(self.header).filter_map(name_and_value);
        named.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value)
    }

    /// Writes the header, in ASCII and with this transfer encoding.
    fn put_header(&self, encoding: Option<&str>, out: &mut Vec<u8>) -> Result<(), Unconvertible> {
        let is_encoding = |field: &&[u8]| {
            name_and_value(field)
                .is_some_and(|(name, _)| name.eq_ignore_ascii_case("content-transfer-encoding"))
        };
        let mut kept = fields(self.header)
            .filter(|field| *field != b"\r\n" && (encoding.is_none() || !is_encoding(field)));
        if self.header.is_ascii() {
            kept.try_for_each(|field| append(field, out))?;
        } else {
            append(&encode_header(&kept.collect::<Vec<_>>().concat())?, out)?;
        }
        if let Some(encoding) = encoding {
            if self.is_message && self.value("mime-version").is_none() {
                append(b"MIME-Version: 1.0\r\n", out)?;
            }
            if self.value("content-type").is_none() {
                let charset = if std::str::from_utf8(self.body).is_ok() { "utf-8" } else { "unknown-8bit" };
                append(format!("Content-Type: text/plain; charset={charset}\r\n").as_bytes(), out)?;
            }
            append(format!("Content-Transfer-Encoding: {encoding}\r\n").as_bytes(), out)?;
        }
        append(b"\r\n", out)
    }
}

/// What a body is, by its `Content-Type`.
enum Kind {
    Text,
    Multipart { boundary: Vec<u8> },
    Message,
    Other,
}

/// Converts a message or a part with at most so many levels of parts within parts, within the capacity of `out`.
fn convert(entity: Entity<'_>, levels: usize, out: &mut Vec<u8>) -> Result<(), Unconvertible> {
    if entity.whole.is_ascii() {
        return append(entity.whole, out);
    }
    let inner = levels.checked_sub(1).ok_or(Unconvertible::Structure)?;
    // What the body is matters only where it must change.
    if entity.body.is_ascii() {
        entity.put_header(None, out)?;
        return append(entity.body, out);
    }
    let kind = kind_of(entity.value("content-type"))?;
    // An encoding says that the body has no such bytes.
    let encoding =
        entity.value("content-transfer-encoding").map(|value| value.trim_ascii().to_ascii_lowercase());
    if !matches!(encoding.as_deref(), None | Some(b"7bit" | b"8bit" | b"binary" | b"")) {
        return Err(Unconvertible::Structure);
    }
    match kind {
        Kind::Multipart { boundary } => {
            entity.put_header(Some("7bit"), out)?;
            convert_parts(entity.body, &boundary, inner, out)
        }
        Kind::Message => {
            entity.put_header(Some("7bit"), out)?;
            convert(Entity::new(entity.body, true), inner, out)
        }
        Kind::Text if is_mostly_literal(entity.body) => {
            entity.put_header(Some("quoted-printable"), out)?;
            quoted_printable(entity.body, out)
        }
        Kind::Text | Kind::Other => {
            entity.put_header(Some("base64"), out)?;
            base64_lines(entity.body, out)
        }
    }
}

/// Quoted-printable takes three bytes for each of the others, base64 four for three of any.
fn is_mostly_literal(text: &[u8]) -> bool {
    let is_literal = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n') && *byte != b'=';
    text.iter().filter(|byte| !is_literal(byte)).count() <= text.len() / 5
}

fn kind_of(content_type: Option<&[u8]>) -> Result<Kind, Unconvertible> {
    let Some(value) = content_type else { return Ok(Kind::Text) };
    let items = parameters(value);
    let kind = items.first().map(|kind| kind.trim_ascii().to_ascii_lowercase()).unwrap_or_default();
    match &*kind {
        b"multipart/signed" => Err(Unconvertible::Signed),
        // Its parts are messages where they do not say what they are.
        b"multipart/digest" => Err(Unconvertible::Structure),
        kind if kind.starts_with(b"multipart/") => {
            let boundary = items.iter().skip(1).find_map(|item| boundary(item));
            Ok(Kind::Multipart { boundary: boundary.ok_or(Unconvertible::Structure)? })
        }
        b"message/rfc822" => Ok(Kind::Message),
        kind if kind.starts_with(b"message/") => Err(Unconvertible::Structure),
        kind if kind.starts_with(b"text/") => Ok(Kind::Text),
        _ => Ok(Kind::Other),
    }
}

fn boundary(parameter: &[u8]) -> Option<Vec<u8>> {
    let parameter = parameter.trim_ascii();
    let equals = memchr::memchr(b'=', parameter)?;
    if !parameter[..equals].trim_ascii().eq_ignore_ascii_case(b"boundary") {
        return None;
    }
    let value = parameter[equals + 1..].trim_ascii();
    let boundary = quoted_string(value).map_or_else(|| value.to_vec(), |(content, _)| content);
    // RFC 2046 5.1.1: a boundary is ASCII, as its delimiter lines are.
    (!boundary.is_empty() && boundary.is_ascii()).then_some(boundary)
}

/// Converts the parts between the delimiters.
///
/// What is before the first and after the last has no meaning (RFC 2046 5.1.1): its 8-bit bytes become `?`. Without
/// any delimiter the text may be all that the author wrote.
fn convert_parts(
    body: &[u8],
    boundary: &[u8],
    levels: usize,
    out: &mut Vec<u8>,
) -> Result<(), Unconvertible> {
    let delimiter = [b"--", boundary].concat();
    let mut found = Some(next_delimiter(body, &delimiter).ok_or(Unconvertible::Structure)?);
    let mut rest = body;
    let mut is_part = false;
    loop {
        let content = &rest[..found.as_ref().map_or(rest.len(), |found| found.start)];
        if is_part {
            convert(Entity::new(content, false), levels, out)?;
        } else {
            content.iter().try_for_each(|byte| append(&[to_ascii(*byte)], out))?;
        }
        let Some(delimiter_line) = found else { return Ok(()) };
        append(&rest[delimiter_line.start..delimiter_line.end], out)?;
        is_part = !delimiter_line.closes;
        rest = &rest[delimiter_line.end..];
        found = next_delimiter(rest, &delimiter);
    }
}

fn to_ascii(byte: u8) -> u8 {
    if byte.is_ascii() { byte } else { b'?' }
}

/// A delimiter line with the CRLF before it.
struct Delimiter {
    start: usize,
    end: usize,
    closes: bool,
}

fn next_delimiter(body: &[u8], delimiter: &[u8]) -> Option<Delimiter> {
    // The end of a line is searched for once a line: a line may be the whole body and full of delimiters.
    let begins_line = |at: &usize| *at == 0 || body[..*at].ends_with(b"\r\n");
    for at in memmem::find_iter(body, delimiter).filter(begins_line) {
        let after = &body[at + delimiter.len()..];
        let closes = after.starts_with(b"--");
        let line_end = memchr::memchr(b'\n', after).map_or(after.len(), |newline| newline + 1);
        let only_white = after[if closes { 2 } else { 0 }..line_end].trim_ascii().is_empty();
        if only_white {
            let start = if at == 0 { 0 } else { at - 2 };
            return Some(Delimiter { start, end: at + delimiter.len() + line_end, closes });
        }
    }
    None
}
