//! The last step before a message is sent: computes what its bytes need of the next hop, and converts 8-bit content
//! where the hop cannot take it (RFC 6152 3, S-204).
//!
//! Needs come from the bytes that are sent, never from how the message came in, so every door gets the same result.
//! Content that the hop takes is passed on without a copy, and a conversion says how much memory it takes before it is
//! run. What must not change, such as a signed part, does not; then the caller tries another host or returns the message.

use std::borrow::Cow;

use bytes::Bytes;

mod body;
mod encode;
mod field;
mod tokens;

/// The extensions that a next hop offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// 8BITMIME (RFC 6152).
    pub eight_bit_mime: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
}

/// Content as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Header and body, in parts that are not joined.
    pub parts: Vec<Bytes>,
    /// The content has bytes above 127: the hop must offer 8BITMIME.
    pub eight_bit: bool,
    /// The header is in UTF-8 and has an internationalised address, or is sent to a hop that takes UTF-8: the hop must
    /// offer SMTPUTF8.
    pub smtputf8: bool,
}

/// Why content cannot be converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unconvertible {
    /// A part is signed: a changed byte would break the signature.
    #[error("a part is signed")]
    Signed,
    /// An address has a local part or domain beyond ASCII.
    #[error("a header field has an internationalised address")]
    Address,
    /// A header field in which encoded words are not allowed.
    #[error("a structured header field is not ASCII")]
    Field,
    /// A part says that it is encoded and is not, or has a structure that cannot be followed.
    #[error("the MIME structure is broken")]
    Structure,
    /// The result would take more memory than [`Conversion::bytes_max`].
    #[error("the converted message would be more than twice as long")]
    Size,
}

/// Content that is ready to be sent, or what must be done first.
#[derive(Debug)]
pub enum Prepared {
    /// It is sent as it is, or with another header.
    Finished(Finished),
    /// The whole message must be converted.
    Conversion(Conversion),
}

/// A message that must be converted to 7-bit for its hop.
#[derive(Debug)]
pub struct Conversion {
    content: Vec<Bytes>,
    bytes: usize,
}

/// A longer header that is not ASCII is not encoded.
const HEADER_BYTES_MAX: usize = 256 << 10;

/// Prepares content for a hop that offers these extensions.
///
/// The content of a hop that lacks what it needs is unchanged, and its needs say so.
#[must_use]
pub fn prepare(content: &[Bytes], offered: Offered) -> Prepared {
    if content.iter().all(|part| part.is_ascii()) {
        let parts = content.to_vec();
        return Prepared::Finished(Finished { parts, eight_bit: false, smtputf8: false });
    }
    if offered.eight_bit_mime {
        return Prepared::Finished(with_eight_bit_body(content, offered));
    }
    let bytes = content.iter().map(Bytes::len).sum();
    Prepared::Conversion(Conversion { content: content.to_vec(), bytes })
}

/// Prepares content for a hop with 8BITMIME: only the header may have to change.
fn with_eight_bit_body(content: &[Bytes], offered: Offered) -> Finished {
    let Some(whole) = Message::split(content).filter(|whole| !whole.header.is_ascii()) else {
        return unchanged(content);
    };
    // A header in UTF-8 may go as it is; other charsets have no meaning there.
    if offered.smtputf8 && std::str::from_utf8(&whole.header).is_ok() {
        return Finished { parts: content.to_vec(), eight_bit: true, smtputf8: true };
    }
    match field::encode_header(&whole.header) {
        Ok(header) => Finished {
            eight_bit: !whole.body.iter().all(|part| part.is_ascii()),
            smtputf8: false,
            parts: std::iter::once(Bytes::from(header)).chain(whole.body).collect(),
        },
        Err(reason) => {
            tracing::debug!(%reason, "header not encoded");
            unchanged(content)
        }
    }
}

impl Conversion {
    /// Returns the bytes of the message before the conversion.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the most memory that [`Self::run`] takes, besides the content itself.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        let joined = if self.content.len() > 1 { self.bytes } else { 0 };
        joined + body::converted_bytes_max(self.bytes)
    }

    /// Converts the message; it is unchanged where that is not possible. Large messages take a while: not for an async thread.
    #[must_use]
    pub fn run(self) -> Finished {
        let whole = match &*self.content {
            [only] => Cow::Borrowed(&**only),
            parts => Cow::Owned(parts.concat()),
        };
        match body::to_seven_bit(&whole) {
            Ok(converted) => Finished { parts: vec![converted.into()], eight_bit: false, smtputf8: false },
            Err(reason) => {
                tracing::debug!(%reason, "message not converted to 7-bit");
                unchanged(&self.content)
            }
        }
    }
}

/// Returns content that is not ASCII as it is, with what it needs.
fn unchanged(content: &[Bytes]) -> Finished {
    let smtputf8 = Message::split(content).is_some_and(|whole| needs_smtputf8(&whole.header));
    Finished { parts: content.to_vec(), eight_bit: true, smtputf8 }
}

/// Returns true where the header has an internationalised address, which only SMTPUTF8 can carry.
///
/// Other bytes above 127 have no meaning that a hop would have to know, and hops with 8BITMIME take them as they are;
/// those of a header that is not UTF-8 may not be sent with SMTPUTF8 at all (RFC 6532 3.2).
fn needs_smtputf8(header: &[u8]) -> bool {
    std::str::from_utf8(header).is_ok() && field::encode_header(header) == Err(Unconvertible::Address)
}

/// A message whose header is joined and whose body is not.
struct Message {
    /// Up to and including the empty line.
    header: Bytes,
    body: Vec<Bytes>,
}

impl Message {
    /// Finds the end of the header; `None` when the header is too long to be encoded.
    fn split(content: &[Bytes]) -> Option<Self> {
        const END: &[u8] = b"\r\n\r\n";
        let mut header = Vec::new();
        for (index, part) in content.iter().enumerate() {
            // The end may lie across two parts.
            let from = header.len().saturating_sub(END.len() - 1);
            let before = header.len();
            let taken = part.len().min(HEADER_BYTES_MAX - before);
            header.extend_from_slice(&part[..taken]);
            if let Some(found) = memchr::memmem::find(&header[from..], END) {
                let end = from + found + END.len();
                header.truncate(end);
                let rest = part.slice(end - before..);
                let body = std::iter::once(rest).chain(content[index + 1..].iter().cloned());
                let body = body.filter(|part| !part.is_empty()).collect();
                return Some(Self { header: header.into(), body });
            }
            if taken < part.len() {
                return None;
            }
        }
        Some(Self { header: header.into(), body: Vec::new() })
    }
}

#[cfg(test)]
mod tests;
