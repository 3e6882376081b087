//! The content of a message, as far as the sink examines it.

use std::borrow::Cow;

use memchr::memmem;
use postroad_core::MessageId;
use xxhash_rust::xxh3::xxh3_64;

/// Finds the end of data: CRLF "." CRLF, and nothing else.
#[derive(Debug, Default)]
pub(super) struct EndOfData {
    searched: usize,
}

impl EndOfData {
    /// Returns the length of the content and its length on the wire, once all of it is in `input`.
    pub(super) fn find(&mut self, input: &[u8]) -> Option<(usize, usize)> {
        if input.starts_with(b".\r\n") {
            return Some((0, 3));
        }
        let from = self.searched.saturating_sub(4);
        self.searched = input.len();
        memmem::find(&input[from..], b"\r\n.\r\n").map(|place| (from + place + 2, from + place + 5))
    }
}

/// Removes the dots added by the transport.
pub(super) fn unstuff(wire: &[u8]) -> Cow<'_, [u8]> {
    if !wire.starts_with(b".") && memmem::find(wire, b"\r\n.").is_none() {
        return Cow::Borrowed(wire);
    }
    let mut content = Vec::with_capacity(wire.len());
    let mut rest = wire.strip_prefix(b".").unwrap_or(wire);
    while let Some(place) = memmem::find(rest, b"\r\n.") {
        content.extend_from_slice(&rest[..place + 2]);
        rest = &rest[place + 3..];
    }
    content.extend_from_slice(rest);
    Cow::Owned(content)
}

/// Counts every CR without LF and LF without CR.
pub(super) fn bare_newlines(wire: &[u8]) -> u64 {
    let bare = |place: &usize| match wire[*place] {
        b'\r' => wire.get(place + 1) != Some(&b'\n'),
        _ => *place == 0 || wire[place - 1] != b'\r',
    };
    memchr::memchr2_iter(b'\r', b'\n', wire).filter(bare).count() as u64
}

/// What the ledger records about a content.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) size: u64,
    pub(super) body_hash: u64,
    pub(super) message: Option<MessageId>,
    pub(super) token: Option<Box<str>>,
}

pub(super) fn summarise(content: &[u8]) -> Summary {
    let header_end = memmem::find(content, b"\r\n\r\n").map_or(content.len(), |place| place + 2);
    let header = &content[..header_end];
    let body = content.get(header_end + 2..).unwrap_or(&[]);
    Summary {
        size: content.len() as u64,
        body_hash: body_hash(body),
        message: message_id(header),
        token: token(header),
    }
}

/// Returns the hash of a body in the ledger: XXH3 of everything after the empty line.
#[must_use]
pub fn body_hash(body: &[u8]) -> u64 {
    xxh3_64(body)
}

/// The id in the first `Received` field: `id` and 26 characters.
fn message_id(header: &[u8]) -> Option<MessageId> {
    if !header.get(..9)?.eq_ignore_ascii_case(b"received:") {
        return None;
    }
    let field = &header[..field_len(header)];
    memmem::find_iter(field, b" id ").chain(memmem::find_iter(field, b"\tid ")).find_map(|place| {
        let id = field.get(place + 4..place + 4 + MessageId::TEXT_LEN)?;
        std::str::from_utf8(id).ok()?.parse().ok()
    })
}

/// The length of the first field with its continuation lines.
fn field_len(header: &[u8]) -> usize {
    let continues = |end: usize| matches!(header.get(end + 1), Some(b' ' | b'\t'));
    memchr::memchr_iter(b'\n', header).find(|end| !continues(*end)).unwrap_or(header.len())
}

fn token(header: &[u8]) -> Option<Box<str>> {
    const NAME: &[u8] = b"\r\nX-Token: ";
    let start = memmem::find(header, NAME)? + NAME.len();
    let end = start + memchr::memchr(b'\r', &header[start..])?;
    std::str::from_utf8(&header[start..end]).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_data_is_found_across_reads() {
        let wire = b"a\n.\r\nb\r\n.\nc\r\n.\r\nQUIT\r\n";
        let mut end = EndOfData::default();
        let found: Vec<_> = (1..=wire.len()).filter_map(|len| end.find(&wire[..len])).collect();
        assert_eq!(found[0], (13, 16));
        assert_eq!(EndOfData::default().find(b".\r\nx"), Some((0, 3)));
        assert_eq!(bare_newlines(&wire[..13]), 2);
        assert_eq!(bare_newlines(b"a\r\nb\r\n"), 0);
        assert_eq!(bare_newlines(b"\ra\r"), 2);
    }

    #[test]
    fn transport_dots_are_removed() {
        assert_eq!(&*unstuff(b"..a\r\n..\r\nb.\r\n"), b".a\r\n.\r\nb.\r\n");
        assert_eq!(&*unstuff(b"a\r\n"), b"a\r\n");
    }

    #[test]
    fn id_token_and_body_are_read() {
        let content = b"Received: from a by b with ESMTP\r\n\tid 01M85FM9W0000G000000000007; Tue\r\nX-Token: t1\r\nSubject: x\r\n\r\nbody\r\n";
        let summary = summarise(content);
        assert_eq!(summary.message.unwrap().to_string(), "01M85FM9W0000G000000000007");
        assert_eq!(summary.token.as_deref(), Some("t1"));
        assert_eq!(summary.body_hash, body_hash(b"body\r\n"));
        assert_eq!(summarise(b"Subject: id 01M85FM9W0000G000000000007\r\n").message, None);
    }
}
