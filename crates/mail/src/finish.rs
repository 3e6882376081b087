//! The last step before a message is sent: computes what its bytes need of the next hop, and converts 8-bit content
//! where the hop cannot take it (RFC 6152 3, S-204).
//!
//! Needs come from the bytes that are sent, never from how the message came in, so every door gets the same result.
//! Content that the hop takes is passed on without a copy. What must not change, such as a signed part, does not; then
//! the caller tries another host or returns the message.

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
}

/// Prepares content for a hop that offers these extensions.
///
/// The content of a hop that lacks what it needs is unchanged, and its needs say so.
#[must_use]
pub fn finish(content: &[Bytes], offered: Offered) -> Finished {
    if content.iter().all(|part| part.is_ascii()) {
        return Finished { parts: content.to_vec(), eight_bit: false, smtputf8: false };
    }
    let whole = Message::split(content);
    let header_is_ascii = whole.header.is_ascii();
    let body_is_ascii = whole.body.iter().all(|part| part.is_ascii());
    let unchanged =
        || Finished { parts: content.to_vec(), eight_bit: true, smtputf8: needs_smtputf8(&whole.header) };
    if offered.eight_bit_mime {
        if header_is_ascii {
            return unchanged();
        }
        // A header in UTF-8 may go as it is; other charsets have no meaning there.
        if offered.smtputf8 && std::str::from_utf8(&whole.header).is_ok() {
            return Finished { smtputf8: true, ..unchanged() };
        }
        return match field::encode_header(&whole.header) {
            Ok(header) => Finished {
                parts: std::iter::once(Bytes::from(header)).chain(whole.body).collect(),
                eight_bit: !body_is_ascii,
                smtputf8: false,
            },
            Err(reason) => {
                tracing::debug!(%reason, "header not encoded");
                unchanged()
            }
        };
    }
    match body::to_seven_bit(&content.concat()) {
        Ok(converted) => Finished { parts: vec![converted.into()], eight_bit: false, smtputf8: false },
        Err(reason) => {
            tracing::debug!(%reason, "message not converted to 7-bit");
            unchanged()
        }
    }
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
    fn split(content: &[Bytes]) -> Self {
        const END: &[u8] = b"\r\n\r\n";
        let mut header = Vec::new();
        for (index, part) in content.iter().enumerate() {
            // The end may lie across two parts.
            let from = header.len().saturating_sub(END.len() - 1);
            let before = header.len();
            header.extend_from_slice(part);
            if let Some(found) = memchr::memmem::find(&header[from..], END) {
                let end = from + found + END.len();
                header.truncate(end);
                let rest = part.slice(end - before..);
                let body = std::iter::once(rest).chain(content[index + 1..].iter().cloned());
                return Self { header: header.into(), body: body.filter(|part| !part.is_empty()).collect() };
            }
        }
        Self { header: header.into(), body: Vec::new() }
    }
}

#[cfg(test)]
mod tests;
