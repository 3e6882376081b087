//! Header fields beyond ASCII, written in ASCII where the field allows it (RFC 2047 5, RFC 2231).

use std::ops::Range;

use super::{
    HEADER_BYTES_MAX, Unconvertible,
    encode::{LINE_MAX, encoded_words, extended_parameter},
    tokens::{Token, quoted_string, tokens, unescaped},
};

/// Fields of addresses: encoded words may stand for the words of a phrase, and in comments.
const ADDRESS_FIELDS: &[&str] = &[
    "from",
    "sender",
    "reply-to",
    "to",
    "cc",
    "bcc",
    "resent-from",
    "resent-sender",
    "resent-to",
    "resent-cc",
    "resent-bcc",
    "disposition-notification-to",
];
/// Fields of parameters.
const PARAMETER_FIELDS: &[&str] = &["content-type", "content-disposition"];
/// Fields in which only comments may be encoded (RFC 2047 5).
const STRUCTURED_FIELDS: &[&str] = &[
    "date",
    "message-id",
    "in-reply-to",
    "references",
    "received",
    "return-path",
    "mime-version",
    "content-transfer-encoding",
    "content-id",
    "authentication-results",
    "resent-date",
    "resent-message-id",
];
/// Fields that sign other fields: a changed byte would break the signature.
const SIGNATURE_FIELDS: &[&str] =
    &["dkim-signature", "arc-seal", "arc-message-signature", "arc-authentication-results"];

/// A line of a message without its CRLF (RFC 5322 2.1.1).
const LINE_BYTES_MAX: usize = 998;
/// A longer word does not fit in a line behind the white space that folds it.
const WORD_BYTES_MAX: usize = LINE_BYTES_MAX - 1;
/// The name of a parameter is repeated in each of its segments.
const PARAMETER_NAME_MAX: usize = 40;

/// Encodes a header up to and including its empty line; ASCII fields are unchanged.
///
/// Of several reasons against it an internationalised address is returned: it needs more of the hop than the others.
pub(super) fn encode_header(header: &[u8]) -> Result<Vec<u8>, Unconvertible> {
    if header.is_ascii() {
        return Ok(header.to_vec());
    }
    // Single characters beyond ASCII become encoded words of ten times their size.
    if header.len() > HEADER_BYTES_MAX {
        return Err(Unconvertible::Field);
    }
    let mut out = Vec::with_capacity(header.len() + header.len() / 2);
    let mut encoded = Ok(());
    for field in fields(header) {
        match encode_field(field, &mut out) {
            Err(Unconvertible::Address) => return Err(Unconvertible::Address),
            result => encoded = encoded.and(result),
        }
    }
    encoded.map(|()| out)
}

/// Splits a header into fields with their folded lines; the empty line at the end is one of them.
pub(super) fn fields(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = header;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = 0;
        loop {
            end += memchr::memchr(b'\n', &rest[end..]).map_or(rest.len() - end, |newline| newline + 1);
            let is_folded = matches!(rest.get(end), Some(b' ' | b'\t')) && end > 2;
            if !is_folded {
                break;
            }
        }
        let (field, after) = rest.split_at(end);
        rest = after;
        Some(field)
    })
}

/// Splits a field into its name and its value.
pub(super) fn name_and_value(field: &[u8]) -> Option<(&str, &[u8])> {
    let colon = memchr::memchr(b':', field)?;
    let name = std::str::from_utf8(&field[..colon]).ok()?.trim_ascii_end();
    Some((name, &field[colon + 1..]))
}

fn encode_field(field: &[u8], out: &mut Vec<u8>) -> Result<(), Unconvertible> {
    if field.is_ascii() {
        out.extend_from_slice(field);
        return Ok(());
    }
    let (name, value) =
        name_and_value(field).filter(|(name, _)| name.is_ascii()).ok_or(Unconvertible::Field)?;
    let is_in = |names: &[&str]| names.iter().any(|known| name.eq_ignore_ascii_case(known));
    if is_in(SIGNATURE_FIELDS) {
        return Err(Unconvertible::Field);
    }
    let value = unfolded(value);
    let encoded = if is_in(STRUCTURED_FIELDS) {
        encode_comments(&value)?
    } else if is_in(ADDRESS_FIELDS) {
        encode_addresses(&value)?
    } else if is_in(PARAMETER_FIELDS) {
        encode_parameters(&value)?
    } else {
        encode_text(&value)
    };
    put_folded(name, &encoded, out)
}

/// The value on one line, without white space around it.
fn unfolded(value: &[u8]) -> Vec<u8> {
    let lines: Vec<u8> = value.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    lines.trim_ascii().to_vec()
}

/// Writes a field. Lines are folded before the word that would make them too long, so that none is of white space only
/// (RFC 5322 3.2.2).
fn put_folded(name: &str, value: &[u8], out: &mut Vec<u8>) -> Result<(), Unconvertible> {
    if name.len() > WORD_BYTES_MAX {
        return Err(Unconvertible::Field);
    }
    out.extend_from_slice(name.as_bytes());
    out.push(b':');
    let mut column = name.len() + 1;
    let mut rest = value;
    while !rest.is_empty() {
        let (white, after) = rest.split_at(rest.iter().position(|b| !is_white(*b)).unwrap_or(rest.len()));
        let (word, after) = after.split_at(word_len(after));
        rest = after;
        if word.len() > WORD_BYTES_MAX {
            return Err(Unconvertible::Field);
        }
        let white = if white.is_empty() || white.len() + word.len() > LINE_BYTES_MAX { b" " } else { white };
        if column + white.len() + word.len() > LINE_MAX {
            out.extend_from_slice(b"\r\n");
            column = 0;
        }
        out.extend_from_slice(white);
        out.extend_from_slice(word);
        column += white.len() + word.len();
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Returns the length of the word at the front; a quoted pair `\ ` is not divided.
fn word_len(text: &[u8]) -> usize {
    let ends =
        |position: &usize| is_white(text[*position]) && (*position == 0 || text[position - 1] != b'\\');
    (0..text.len()).find(ends).unwrap_or(text.len())
}

/// Encodes unstructured text: between the words that are encoded already, from the first to the last word beyond ASCII
/// or too long for a line.
fn encode_text(value: &[u8]) -> Vec<u8> {
    let from_first_to_last = |text: &[u8]| {
        let (mut at, mut first, mut last) = (0, None, 0);
        for word in text.split(|byte| is_white(*byte)) {
            if !word.is_ascii() || word.len() > WORD_BYTES_MAX {
                first.get_or_insert(at);
                last = at + word.len();
            }
            at += word.len() + 1;
        }
        first.unwrap_or(last)..last
    };
    let mut out = Vec::with_capacity(value.len() * 2);
    encode_pieces(&pieces(value), from_first_to_last, &mut out);
    out
}

/// Text of a field, divided at the encoded words in it: they stay as they are.
enum Piece {
    Encoded(Vec<u8>),
    Plain(Vec<u8>),
}

fn pieces(text: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    push_pieces(text, &mut pieces);
    pieces
}

fn push_pieces(text: &[u8], pieces: &mut Vec<Piece>) {
    for part in text.split_inclusive(|byte| is_white(*byte)) {
        let word = part.trim_ascii_end();
        if is_encoded_word(word) {
            pieces.push(Piece::Encoded(word.to_vec()));
            push_plain(&part[word.len()..], pieces);
        } else {
            push_plain(part, pieces);
        }
    }
}

fn push_plain(text: &[u8], pieces: &mut Vec<Piece>) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Plain(plain)) => plain.extend_from_slice(text),
        _ => pieces.push(Piece::Plain(text.to_vec())),
    }
}

/// Returns true for `=?charset?encoding?text?=` (RFC 2047 2).
fn is_encoded_word(word: &[u8]) -> bool {
    let inner = word.strip_prefix(b"=?").and_then(|word| word.strip_suffix(b"?="));
    let Some(inner) = inner.filter(|inner| inner.iter().all(u8::is_ascii_graphic)) else { return false };
    let parts: Vec<&[u8]> = inner.split(|byte| *byte == b'?').collect();
    matches!(parts[..], [charset, [b'B' | b'b' | b'Q' | b'q'], _] if !charset.is_empty())
        && word.len() <= WORD_BYTES_MAX
}

/// Writes pieces, and encodes of each what `range` says.
///
/// White space between two encoded words is not shown (RFC 2047 6.2): beside one that stays, it is put into the new one.
fn encode_pieces(pieces: &[Piece], range: impl Fn(&[u8]) -> Range<usize>, out: &mut Vec<u8>) {
    for (index, piece) in pieces.iter().enumerate() {
        let text = match piece {
            Piece::Encoded(word) => {
                out.extend_from_slice(word);
                continue;
            }
            Piece::Plain(text) => text,
        };
        let encoded = range(text);
        let (before, after) = (&text[..encoded.start], &text[encoded.end..]);
        let is_blank = |text: &[u8]| text.trim_ascii().is_empty();
        let follows_one = !encoded.is_empty() && index > 0 && is_blank(before);
        let precedes_one = !encoded.is_empty() && index + 1 < pieces.len() && is_blank(after);
        let start = if follows_one { 0 } else { encoded.start };
        let end = if precedes_one { text.len() } else { encoded.end };
        out.extend_from_slice(if follows_one { b" " } else { before });
        encoded_words(&text[start..end], out);
        out.extend_from_slice(if precedes_one { b" " } else { after });
    }
}

/// The range of a text without the white space around it.
fn trimmed(text: &[u8]) -> Range<usize> {
    let start = text.len() - text.trim_ascii_start().len();
    start..start + text.trim_ascii().len()
}

/// Encodes the comments of a field in which nothing else can be.
fn encode_comments(value: &[u8]) -> Result<Vec<u8>, Unconvertible> {
    let mut out = Vec::with_capacity(value.len() * 2);
    for token in tokens(value)? {
        match token {
            Token::Comment(comment) => encode_comment(comment, &mut out),
            other if other.bytes().is_ascii() => out.extend_from_slice(other.bytes()),
            _ => return Err(Unconvertible::Field),
        }
    }
    Ok(out)
}

fn encode_comment(comment: &[u8], out: &mut Vec<u8>) {
    if comment.is_ascii() {
        return out.extend_from_slice(comment);
    }
    let text = unescaped(&comment[1..comment.len() - 1]);
    // An encoded word in a comment has none of these (RFC 2047 5 (2)).
    let has_special = text.iter().any(|byte| matches!(byte, b'(' | b')' | b'"' | b'\\'));
    let pieces = if has_special { vec![Piece::Plain(text)] } else { pieces(&text) };
    out.push(b'(');
    encode_pieces(&pieces, trimmed, out);
    out.push(b')');
}

/// Encodes the display names and comments of a list of addresses.
fn encode_addresses(value: &[u8]) -> Result<Vec<u8>, Unconvertible> {
    let mut out = Vec::with_capacity(value.len() * 2);
    for item in tokens(value)?.split_inclusive(|token| matches!(token, Token::Separator(_))) {
        let (separator, item) = match item {
            [item @ .., Token::Separator(separator)] => (*separator, item),
            item => (b"".as_slice(), item),
        };
        let mailbox = encode_mailbox(item, separator)?;
        // A line may be folded before each address.
        if out.ends_with(b",") && !mailbox.is_empty() {
            out.push(b' ');
        }
        out.extend_from_slice(&mailbox);
        // RFC 2047 5 (3): white space follows an encoded word in a phrase.
        if mailbox.ends_with(b"?=") && !separator.is_empty() {
            out.push(b' ');
        }
        out.extend_from_slice(separator);
    }
    Ok(out)
}

/// Encodes one address with its display name and comments, or the name of a group.
///
/// An `@` in quotes or before `<` is part of a name: `"Jörg @ Firma" <j@firma.example>` has one address.
fn encode_mailbox(item: &[Token<'_>], separator: &[u8]) -> Result<Vec<u8>, Unconvertible> {
    let is_text = |token: &Token<'_>| matches!(token, Token::Text(_) | Token::Quoted(_));
    let is_angle = |token: &Token<'_>| matches!(token, Token::Angle(_));
    let has_at = |token: &Token<'_>| matches!(token, Token::Text(text) if text.contains(&b'@'));
    let is_address = separator != b":" && !item.iter().any(is_angle) && item.iter().any(has_at);
    let mut encoded: Vec<Vec<u8>> = Vec::new();
    for run in item.chunk_by(|one, next| is_text(one) && is_text(next)) {
        let raw = run.iter().map(|token| token.bytes()).collect::<Vec<_>>().concat();
        let mut piece = Vec::new();
        match run {
            _ if raw.is_ascii() => piece.extend_from_slice(&raw),
            [Token::Comment(comment)] => encode_comment(comment, &mut piece),
            [Token::Angle(_)] => return Err(reason_against(&raw)),
            _ if is_address => return Err(reason_against(&raw)),
            words => encode_pieces(&pieces_of(words), trimmed, &mut piece),
        }
        encoded.push(piece.trim_ascii().to_vec());
    }
    encoded.retain(|piece| !piece.is_empty());
    Ok(encoded.join(b" ".as_slice()))
}

/// Returns why text with an address in it cannot be encoded: the address is beyond ASCII, or what is beside it.
fn reason_against(text: &[u8]) -> Unconvertible {
    let is_address = |word: &[u8]| !word.is_ascii() && word.contains(&b'@');
    let has_quoted_local_part = memchr::memmem::find(text, b"\"@").is_some();
    if has_quoted_local_part || text.split(|byte| is_white(*byte)).any(is_address) {
        Unconvertible::Address
    } else {
        Unconvertible::Field
    }
}

/// Returns the text of words and quoted strings; in the latter nothing is an encoded word (RFC 2047 5 (3)).
fn pieces_of(words: &[Token<'_>]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for word in words {
        match word {
            Token::Quoted(quoted) => push_plain(&unescaped(&quoted[1..quoted.len() - 1]), &mut pieces),
            other => push_pieces(other.bytes(), &mut pieces),
        }
    }
    pieces
}

/// Encodes the values of parameters.
fn encode_parameters(value: &[u8]) -> Result<Vec<u8>, Unconvertible> {
    let encoded: Result<Vec<_>, _> = parameters(value).into_iter().map(encode_parameter).collect();
    Ok(encoded?.join(b"; ".as_slice()))
}

fn encode_parameter(item: &[u8]) -> Result<Vec<u8>, Unconvertible> {
    let item = item.trim_ascii();
    if item.is_ascii() {
        return Ok(item.to_vec());
    }
    let equals = memchr::memchr(b'=', item).ok_or(Unconvertible::Field)?;
    let name = std::str::from_utf8(item[..equals].trim_ascii()).map_err(|_| Unconvertible::Field)?;
    // Only the first segment of several can name a charset (RFC 2231 4.1), and a boundary is compared as it is.
    let is_text = !name.contains('*') && !name.eq_ignore_ascii_case("boundary");
    if !is_text || !name.is_ascii() || name.len() > PARAMETER_NAME_MAX {
        return Err(Unconvertible::Field);
    }
    let value = item[equals + 1..].trim_ascii();
    let content = quoted_string(value).map_or_else(|| value.to_vec(), |(content, _)| content);
    Ok(extended_parameter(name, &content).into_bytes())
}

/// Splits at semicolons outside quoted strings.
pub(super) fn parameters(value: &[u8]) -> Vec<&[u8]> {
    let (mut items, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (position, byte) in value.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b';' if !quoted => {
                items.push(&value[start..position]);
                start = position + 1;
            }
            _ => {}
        }
    }
    items.push(&value[start..]);
    items.retain(|item| !item.trim_ascii().is_empty());
    items
}
