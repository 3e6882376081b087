//! One captured message, byte for byte; its header is parsed when it is first listed.

use std::sync::OnceLock;

use bytes::Bytes;
use postroad_core::{Address, MessageId, Timestamp};
use postroad_smtp::headers;

/// One captured message.
#[derive(Debug)]
pub(crate) struct Capture {
    /// Counted from 1 since the process started.
    pub(crate) id: u64,
    pub(crate) received_at: Timestamp,
    pub(crate) sender: Option<Address>,
    pub(crate) recipients: Vec<Address>,
    pub(crate) content: Bytes,
    header: OnceLock<Header>,
}

/// What lists show of the header.
#[derive(Debug)]
struct Header {
    subject: Box<str>,
    message: Option<MessageId>,
}

impl Capture {
    pub(crate) fn new(
        id: u64,
        received_at: Timestamp,
        sender: Option<Address>,
        recipients: Vec<Address>,
        content: Bytes,
    ) -> Self {
        Self { id, received_at, sender, recipients, content, header: OnceLock::new() }
    }

    /// Returns the subject, decoded.
    pub(crate) fn subject(&self) -> &str {
        &self.header().subject
    }

    /// Returns Postroad's id of the message, from the topmost `Received` field.
    pub(crate) fn message(&self) -> Option<MessageId> {
        self.header().message
    }

    /// Returns what the capture counts against the bound in bytes, with an overhead for each message and recipient.
    pub(crate) fn bytes(&self) -> u64 {
        const OVERHEAD: usize = 256;
        const PER_RECIPIENT: usize = 64;
        (self.content.len() + OVERHEAD + PER_RECIPIENT * self.recipients.len()) as u64
    }

    fn header(&self) -> &Header {
        self.header.get_or_init(|| {
            let summary = headers::summarise(&self.content);
            Header {
                subject: postroad_mail::decode_text(summary.subject).into(),
                message: message_id(&self.content[..summary.len]),
            }
        })
    }
}

/// Reads the id after the word `id` in the first `Received` field of a header.
fn message_id(header: &[u8]) -> Option<MessageId> {
    let mut lines = header.split(|byte| *byte == b'\n');
    let is_received = |line: &[u8]| line.get(..9).is_some_and(|name| name.eq_ignore_ascii_case(b"Received:"));
    let first = lines.by_ref().find(|line| is_received(line))?;
    let folded = lines.take_while(|line| matches!(line.first(), Some(b' ' | b'\t')));
    let mut words = std::iter::once(first)
        .chain(folded)
        .flat_map(|line| line.split(u8::is_ascii_whitespace))
        .filter(|word| !word.is_empty());
    words.by_ref().find(|word| word.eq_ignore_ascii_case(b"id"))?;
    let id = std::str::from_utf8(words.next()?).ok()?;
    id.trim_end_matches(';').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01M85FM9W0000G000000000007";

    fn capture(content: &str) -> Capture {
        Capture::new(1, Timestamp::ZERO, None, Vec::new(), Bytes::copy_from_slice(content.as_bytes()))
    }

    #[test]
    fn the_message_id_is_read_from_the_topmost_received_field() {
        let check = |header: &str, named: bool| {
            let found = capture(&format!("{header}Subject: s\r\n\r\nReceived: id {ID};")).message();
            assert_eq!(found.map(|id| id.to_string()), named.then(|| ID.to_owned()), "{header}");
        };
        check(
            &format!("Received: by mail.example.org with ESMTP id {ID}; Tue, 24 Nov 2026 00:34:56 +0000\r\n"),
            true,
        );
        check(&format!("Received: from a\r\n\tby b with ESMTP\r\n\tid {ID};\r\n\tTue\r\n"), true);
        check(&format!("Return-Path: <>\r\nreceived: by b id {ID}\r\n"), true);
        check(&format!("Received: by other id 4Xyz1234;\r\nReceived: by b id {ID};\r\n"), false);
        check(&format!("X-Id: id {ID};\r\n"), false);
        check("", false);
    }

    #[test]
    fn subjects_are_decoded() {
        assert_eq!(capture("Subject: =?utf-8?q?=C3=BC?=\r\n x\r\n\r\nb").subject(), "ü x");
        assert_eq!(capture("no header").subject(), "");
    }
}
