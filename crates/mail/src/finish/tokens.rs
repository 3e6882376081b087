//! The tokens of a structured header field (RFC 5322 3.2), as far as they decide where an encoded word may be.

use super::Unconvertible;

/// A token, with the bytes that begin and end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// What is none of the others, with its white space.
    Text(&'a [u8]),
    /// A quoted string.
    Quoted(&'a [u8]),
    /// A comment, with the comments inside it.
    Comment(&'a [u8]),
    /// `<…>`.
    Angle(&'a [u8]),
    /// `,`, `:` or `;`.
    Separator(&'a [u8]),
}

impl<'a> Token<'a> {
    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Self::Text(bytes)
            | Self::Quoted(bytes)
            | Self::Comment(bytes)
            | Self::Angle(bytes)
            | Self::Separator(bytes) => bytes,
        }
    }
}

/// Divides the value of a field; an error where a quoted string, a comment or `<` has no end.
pub(super) fn tokens(value: &[u8]) -> Result<Vec<Token<'_>>, Unconvertible> {
    let mut tokens = Vec::new();
    let mut rest = value;
    while let Some(first) = rest.first() {
        let length = match first {
            b'"' => quoted_string(rest).map(|(_, length)| length),
            b'(' => comment_length(rest),
            b'<' => memchr::memchr(b'>', rest).map(|end| end + 1),
            byte if is_separator(*byte) => Some(1),
            _ => rest.iter().position(|byte| begins_token(*byte)).or(Some(rest.len())),
        };
        let (bytes, after) = rest.split_at(length.ok_or(Unconvertible::Field)?);
        tokens.push(match first {
            b'"' => Token::Quoted(bytes),
            b'(' => Token::Comment(bytes),
            b'<' => Token::Angle(bytes),
            byte if is_separator(*byte) => Token::Separator(bytes),
            _ => Token::Text(bytes),
        });
        rest = after;
    }
    Ok(tokens)
}

fn is_separator(byte: u8) -> bool {
    matches!(byte, b',' | b':' | b';')
}

fn begins_token(byte: u8) -> bool {
    matches!(byte, b'"' | b'(' | b'<') || is_separator(byte)
}

/// Returns the content of the quoted string at the front, and its length with the quotes.
pub(super) fn quoted_string(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut content = Vec::new();
    let mut bytes = text.iter().enumerate();
    if bytes.next()?.1 != &b'"' {
        return None;
    }
    while let Some((position, byte)) = bytes.next() {
        match byte {
            b'"' => return Some((content, position + 1)),
            b'\\' => content.push(*bytes.next()?.1),
            byte => content.push(*byte),
        }
    }
    None
}

/// Returns the length of the comment at the front, which may have comments inside.
fn comment_length(text: &[u8]) -> Option<usize> {
    let (mut depth, mut escaped) = (0_usize, false);
    for (position, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(position + 1);
        }
    }
    None
}

/// Returns text without the backslashes of its quoted pairs.
pub(super) fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        out.extend(if *byte == b'\\' { bytes.next() } else { Some(byte) });
    }
    out
}
