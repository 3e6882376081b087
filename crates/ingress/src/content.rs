//! What ingress changes in a message: adds `Received`, adds missing `Date` and `Message-ID`, removes `Bcc`.
//!
//! The message is kept as slices of the received bytes; only added fields are new.

use std::{fmt::Write, ops::Range};

use bytes::{Bytes, BytesMut};
use postroad_smtp::headers::{self, HOPS_MAX, HeaderSummary, Hop};

use crate::error::Refusal;

/// The ledger stores at most this much of a subject.
const SUBJECT_BYTES_MAX: usize = 256;

/// A message in the form in which it is stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Completed {
    /// The content, in order.
    pub(crate) parts: Vec<Bytes>,
    pub(crate) bytes: u64,
    /// The subject on one line, for display.
    pub(crate) subject: String,
    /// The content has bytes above 127.
    pub(crate) eight_bit: bool,
    /// The header has bytes above 127, which needs SMTPUTF8 (RFC 6532).
    pub(crate) header_eight_bit: bool,
}

/// Checks the header of a message.
pub(crate) fn check(content: &[u8], tolerant: bool) -> Result<HeaderSummary<'_>, Refusal> {
    let header = if tolerant { headers::summarise_tolerant(content) } else { headers::summarise(content) };
    if header.received > HOPS_MAX {
        return Err(Refusal::Hops);
    }
    if header.ended_by_text {
        return Err(Refusal::Header);
    }
    // RFC 6409 lets a submission server fix much, but we cannot know the author.
    if header.from != 1 {
        return Err(Refusal::FromFields(header.from));
    }
    Ok(header)
}

/// Completes a message that [`check`] has passed.
pub(crate) fn complete(content: &Bytes, header: &HeaderSummary<'_>, hop: &Hop<'_>) -> Completed {
    let mut parts = Vec::with_capacity(2 + header.bcc.len());
    parts.push(added_fields(header, hop));
    let mut position = 0;
    for Range { start, end } in header.bcc.iter().cloned() {
        push_part(&mut parts, content.slice(position..start));
        position = end;
    }
    push_part(&mut parts, content.slice(position..));
    if !content.ends_with(b"\r\n") {
        parts.push(Bytes::from_static(b"\r\n"));
    }
    // What the next hop must be able to do depends on the bytes that it gets, not on those that the client sent.
    let removed: usize = header.bcc.iter().map(Range::len).sum();
    let header_len = parts[0].len() + header.len - removed;
    Completed {
        bytes: parts.iter().map(|part| part.len() as u64).sum(),
        subject: one_line(header.subject),
        eight_bit: !parts.iter().all(|part| part.is_ascii()),
        header_eight_bit: !begins_with_ascii(&parts, header_len),
        parts,
    }
}

/// Returns true when the first `len` bytes of `parts` are ASCII.
fn begins_with_ascii(parts: &[Bytes], mut len: usize) -> bool {
    parts.iter().all(|part| {
        let within = part.len().min(len);
        len -= within;
        part[..within].is_ascii()
    })
}

fn push_part(parts: &mut Vec<Bytes>, part: Bytes) {
    if !part.is_empty() {
        parts.push(part);
    }
}

fn added_fields(header: &HeaderSummary<'_>, hop: &Hop<'_>) -> Bytes {
    let mut fields = headers::received_field(hop);
    if !header.message_id {
        let _ = write!(fields, "Message-ID: <{}@{}>\r\n", hop.id, hop.by);
    }
    if !header.date {
        let _ = write!(fields, "Date: {}\r\n", hop.at.civil().to_rfc5322());
    }
    fields.into()
}

/// Unfolds a value and cuts it at a character boundary.
fn one_line(value: &[u8]) -> String {
    let cut = &value[..value.len().min(SUBJECT_BYTES_MAX)];
    let mut text = String::with_capacity(cut.len());
    for character in String::from_utf8_lossy(cut).chars() {
        match character {
            '\r' | '\n' => {}
            control if control.is_control() => text.push(' '),
            other => text.push(other),
        }
    }
    // The replacement for a cut character can be longer than the bytes it replaces.
    while text.len() > SUBJECT_BYTES_MAX {
        text.pop();
    }
    text
}

/// Converts bare CR and bare LF to CRLF, as clients of gRPC submit text; refuses NUL.
pub(crate) fn normalise(content: Bytes) -> Result<Bytes, Refusal> {
    if content.contains(&0) {
        return Err(Refusal::Nul);
    }
    let Some(first) = first_bare(&content) else { return Ok(content) };
    let mut out = BytesMut::with_capacity(content.len() + content.len() / 32 + 2);
    out.extend_from_slice(&content[..first]);
    let mut rest = content[first..].iter().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            b'\r' => {
                rest.next_if(|next| **next == b'\n');
                out.extend_from_slice(b"\r\n");
            }
            b'\n' => out.extend_from_slice(b"\r\n"),
            other => out.extend_from_slice(&[*other]),
        }
    }
    Ok(out.freeze())
}

fn first_bare(content: &[u8]) -> Option<usize> {
    let mut position = 0;
    while let Some(found) = content[position..].iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        let at = position + found;
        if !content[at..].starts_with(b"\r\n") {
            return Some(at);
        }
        position = at + 2;
    }
    None
}

#[cfg(test)]
mod tests {
    use postroad_core::{GroupId, MessageId, Timestamp};
    use postroad_smtp::headers::Protocol;

    use super::*;

    fn completed(content: &str) -> (String, Completed) {
        let content = Bytes::copy_from_slice(content.as_bytes());
        let at = Timestamp::from_millis(1_795_480_496_000);
        let hop = Hop {
            helo: None,
            client: None,
            by: "mx.example.org",
            with: Protocol::Grpc,
            tls: "",
            id: MessageId::new(at, GroupId(1), 7),
            at,
        };
        let header = check(&content, false).unwrap();
        let completed = complete(&content, &header, &hop);
        let joined = completed.parts.concat();
        assert_eq!(completed.bytes, joined.len() as u64);
        (String::from_utf8(joined).unwrap(), completed)
    }

    const RECEIVED: &str = "Received: by mx.example.org with gRPC id 01M85FM9W0000G000000000007;\r\n\
        \tTue, 24 Nov 2026 00:34:56 +0000\r\n";

    #[test]
    fn s_041_missing_date_and_message_id_are_added() {
        let added = "Message-ID: <01M85FM9W0000G000000000007@mx.example.org>\r\n\
            Date: Tue, 24 Nov 2026 00:34:56 +0000\r\n";
        let message = "From: a@b.c\r\n\r\nhi\r\n";
        assert_eq!(completed(message).0, format!("{RECEIVED}{added}{message}"));
        let whole = "DATE: x\r\nmessage-id: <x>\r\nFrom: a@b.c\r\n\r\nhi\r\n";
        assert_eq!(completed(whole).0, format!("{RECEIVED}{whole}"));
    }

    #[test]
    fn s_041_exactly_one_from_is_required() {
        assert_eq!(check(b"Subject: x\r\n\r\n", false), Err(Refusal::FromFields(0)));
        assert_eq!(check(b"From: a@b.c\r\nfrom: d@e.f\r\n\r\n", false), Err(Refusal::FromFields(2)));
        assert_eq!(check(b"X Priority: 1\r\nFrom: a@b.c\r\n\r\n", false), Err(Refusal::Header));
        assert!(check(b"X Priority: 1\r\nFrom: a@b.c\r\n\r\n", true).is_ok());
        assert_eq!(check(b"From: a@b.c\r\nhello\r\n\r\n", false), Err(Refusal::Header));
        let loop_of_51 = format!("{}From: a@b.c\r\n\r\n", "Received: by x\r\n".repeat(51));
        assert_eq!(check(loop_of_51.as_bytes(), false), Err(Refusal::Hops));
    }

    #[test]
    fn s_042_bcc_is_removed_and_nothing_else() {
        let before = "Date: x\r\nMessage-ID: <x>\r\nBcc: a@b.c,\r\n\td@e.f\r\nFrom: a@b.c\r\nbcc:\r\n\r\nBcc: stays\r\n";
        let after = "Date: x\r\nMessage-ID: <x>\r\nFrom: a@b.c\r\n\r\nBcc: stays\r\n";
        assert_eq!(completed(before).0, format!("{RECEIVED}{after}"));
    }

    #[test]
    fn a_missing_final_crlf_is_added() {
        let (text, _) = completed("Date: x\r\nMessage-ID: <x>\r\nFrom: a@b.c\r\n\r\nhi");
        assert!(text.ends_with("\r\n\r\nhi\r\n"));
    }

    #[test]
    fn s_044_bytes_above_127_are_detected_in_what_is_stored() {
        let flags = |content: &str| {
            let completed = completed(content).1;
            (completed.eight_bit, completed.header_eight_bit)
        };
        assert_eq!(flags("From: a@b.c\r\n\r\nhi"), (false, false));
        assert_eq!(flags("From: a@b.c\r\n\r\nhé"), (true, false));
        assert_eq!(flags("From: é@b.c\r\n\r\nhi"), (true, true));
        assert_eq!(flags("Bcc: é <a@b.c>\r\nFrom: a@b.c\r\n\r\nhi"), (false, false));
        assert_eq!(flags("Bcc: é <a@b.c>\r\nFrom: a@b.c\r\n\r\né"), (true, false));
        assert_eq!(flags("Bcc: a@b.c\r\nFrom: a@b.c\r\nSubject: é\r\n\r\nhi"), (true, true));
    }

    #[test]
    fn a_subject_is_one_line_of_at_most_256_bytes() {
        assert_eq!(completed("From: a@b.c\r\nSubject: a\r\n b\tc\r\n\r\n").1.subject, "a b c");
        let long = completed(&format!("From: a@b.c\r\nSubject: x{}\r\n\r\n", "é".repeat(200))).1.subject;
        assert!(long.len() <= SUBJECT_BYTES_MAX && long.starts_with("xéé"));
    }

    #[test]
    fn s_109_bare_cr_and_lf_become_crlf() {
        let check = |content: &'static str, expected: &str| {
            assert_eq!(normalise(Bytes::from_static(content.as_bytes())).unwrap(), expected.as_bytes());
        };
        check("a\r\nb\r\n", "a\r\nb\r\n");
        check("a\nb\rc\r\nd\n\r\n\r\r", "a\r\nb\r\nc\r\nd\r\n\r\n\r\n\r\n");
        check("\n.\r\n", "\r\n.\r\n");
        check("", "");
        assert_eq!(normalise(Bytes::from_static(b"a\0b")), Err(Refusal::Nul));
        let whole = Bytes::from_static(b"a\r\nb");
        assert_eq!(normalise(whole.clone()).unwrap().as_ptr(), whole.as_ptr());
    }
}
