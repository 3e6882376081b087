//! Reads the header fields that transport needs, and writes the fields that transport adds.

use std::net::IpAddr;

use bytes::Bytes;
use postroad_core::{Domain, MessageId, Timestamp, address::parse_literal};

use crate::tolerance::{Tolerance, Tolerances};

/// The most `Received` fields of a message: RFC 5321 6.3 asks for at least 100 before a loop is assumed; like Postfix we allow 50.
pub const HOPS_MAX: usize = 50;

/// The facts about a message's header that transport needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderSummary<'a> {
    /// Bytes of the header, including the CRLF of its last field but not the empty line.
    pub len: usize,
    /// Number of `Received` fields, one for each hop.
    pub received: usize,
    /// Number of `From` fields.
    pub from: usize,
    /// The header has a `Date` field.
    pub date: bool,
    /// The header has a `Message-ID` field.
    pub message_id: bool,
    /// The value of the first `Subject` field, still folded.
    pub subject: &'a [u8],
    /// The range of each `Bcc` field, including folded lines and the final CRLF.
    pub bcc: Vec<std::ops::Range<usize>>,
    /// The header ends with a line that is neither a field nor empty.
    pub ended_by_text: bool,
    /// Number of fields with a space in their name; only from [`summarise_tolerant`].
    pub spaced_names: usize,
}

/// Summarises the header of `content`.
///
/// A field is a name of printable ASCII without colon, a colon, and lines that continue it with a space or tab (RFC 5322 2.2).
#[must_use]
pub fn summarise(content: &[u8]) -> HeaderSummary<'_> {
    summarise_with(content, field_name_len)
}

/// Summarises the header of `content` like [`summarise`], with fields such as `X Priority: 1` in it.
#[must_use]
pub fn summarise_tolerant(content: &[u8]) -> HeaderSummary<'_> {
    summarise_with(content, |field| field_name_len(field).or_else(|| spaced_name_len(field)))
}

/// Returns the position behind the line of an mbox file that precedes the header, 0 without one.
#[must_use]
pub fn mbox_line_len(content: &[u8]) -> usize {
    if !content.starts_with(b"From ") || field_name_len(content).is_some() {
        return 0;
    }
    memchr::memmem::find(content, b"\r\n").map_or(0, |end| end + 2)
}

/// Returns `content` without the line of an mbox file, if there is one and the client may send it.
#[must_use]
pub fn without_mbox_line(content: Bytes, tolerances: &mut Tolerances) -> Bytes {
    match mbox_line_len(&content) {
        0 => content,
        len if tolerances.accept(Tolerance::MboxLine) => content.slice(len..),
        _ => content,
    }
}

/// Summarises the header of `content` with fields such as `X Priority: 1` in it, if the client may send them.
#[must_use]
pub fn summarise_tolerated<'a>(content: &'a [u8], tolerances: &mut Tolerances) -> HeaderSummary<'a> {
    let header = summarise_tolerant(content);
    if header.spaced_names > 0 && !tolerances.accept(Tolerance::FieldName) {
        return summarise(content);
    }
    header
}

fn summarise_with(content: &[u8], name_len: impl Fn(&[u8]) -> Option<usize>) -> HeaderSummary<'_> {
    let mut summary = HeaderSummary::default();
    let mut position = 0;
    while position < content.len() {
        let field = &content[position..];
        if field.starts_with(b"\r\n") {
            return summary;
        }
        let Some(colon) = name_len(field) else {
            summary.ended_by_text = true;
            return summary;
        };
        let len = field_len(field);
        summary.note(&field[..colon], &field[colon + 1..len], position..position + len);
        position += len;
        summary.len = position;
    }
    summary
}

impl<'a> HeaderSummary<'a> {
    fn note(&mut self, name: &[u8], value: &'a [u8], range: std::ops::Range<usize>) {
        let name = name.trim_ascii_end();
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        self.spaced_names += usize::from(name.contains(&b' '));
        match name.len() {
            3 if is("Bcc") => self.bcc.push(range),
            4 if is("From") => self.from += 1,
            4 if is("Date") => self.date = true,
            7 if is("Subject") && self.subject.is_empty() => self.subject = value.trim_ascii(),
            8 if is("Received") => self.received += 1,
            10 if is("Message-ID") => self.message_id = true,
            _ => {}
        }
    }
}

/// Returns the position of the colon after a field name, or `None` when `field` does not begin with a name.
fn field_name_len(field: &[u8]) -> Option<usize> {
    let colon = memchr::memchr2(b':', b'\n', field).filter(|position| field[*position] == b':')?;
    // Old mailers write white space before the colon (RFC 5322 4.5).
    let name = field[..colon].trim_ascii_end();
    (!name.is_empty() && name.iter().all(u8::is_ascii_graphic)).then_some(colon)
}

/// Returns the position of the colon after a name of several words, letters, digits and hyphens, with single spaces.
fn spaced_name_len(field: &[u8]) -> Option<usize> {
    let colon = memchr::memchr2(b':', b'\n', field).filter(|position| field[*position] == b':')?;
    let is_word = |word: &[u8]| {
        !word.is_empty() && word.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
    };
    let fits = colon <= 76 && field[..colon].split(|byte| *byte == b' ').all(is_word);
    fits.then_some(colon)
}

/// Returns the length of a field, including its folded lines.
fn field_len(field: &[u8]) -> usize {
    let mut position = 0;
    while let Some(end) = memchr::memchr(b'\n', &field[position..]) {
        position += end + 1;
        if !matches!(field.get(position), Some(b' ' | b'\t')) {
            return position;
        }
    }
    field.len()
}

/// The data of a `Received` field (RFC 5321 4.4).
#[derive(Clone, Debug)]
pub struct Hop<'a> {
    /// The client's EHLO name as it sent it; `None` to leave it out.
    pub helo: Option<&'a str>,
    /// The client's address; `None` to leave it out.
    pub client: Option<IpAddr>,
    /// Our name.
    pub by: &'a str,
    /// The protocol (RFC 3848, RFC 6531 4.3).
    pub with: Protocol,
    /// TLS version and cipher; empty for plaintext.
    pub tls: &'a str,
    /// The message id.
    pub id: MessageId,
    /// When the message was received.
    pub at: Timestamp,
}

/// The protocol a message was received with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// SMTP, with the extensions in use.
    Smtp {
        /// The client sent EHLO, not HELO.
        extended: bool,
        /// The connection uses TLS.
        tls: bool,
        /// The client has authenticated with AUTH; being in a trusted network does not count (RFC 3848).
        authenticated: bool,
        /// The client requested SMTPUTF8.
        smtputf8: bool,
    },
    /// gRPC.
    Grpc,
}

impl Protocol {
    fn keyword(self) -> String {
        match self {
            Self::Grpc => "gRPC".to_owned(),
            Self::Smtp { extended: false, .. } => "SMTP".to_owned(),
            Self::Smtp { tls, authenticated, smtputf8, .. } => {
                let base = if smtputf8 { "UTF8SMTP" } else { "ESMTP" };
                format!("{base}{}{}", if tls { "S" } else { "" }, if authenticated { "A" } else { "" })
            }
        }
    }
}

/// Returns the `Received` field of a hop, folded at 78 bytes where possible.
#[must_use]
pub fn received_field(hop: &Hop<'_>) -> String {
    let mut words = Vec::new();
    if let Some(helo) = hop.helo {
        words.extend(from_clause(helo, hop.client));
    }
    words.push(format!("by {}", hop.by));
    let mut with = format!("with {}", hop.with.keyword());
    if !hop.tls.is_empty() {
        with.push_str(&format!(" ({})", hop.tls));
    }
    words.push(with);
    words.push(format!("id {};", hop.id));
    words.push(hop.at.civil().to_rfc5322());
    let mut field = "Received:".to_owned();
    let mut column = field.len();
    for word in words {
        if column + 1 + word.len() > 78 {
            field.push_str("\r\n\t");
            column = 8 + word.len();
        } else {
            field.push(' ');
            column += 1 + word.len();
        }
        field.push_str(&word);
    }
    field.push_str("\r\n");
    field
}

/// Returns the words that name the client (RFC 5321 4.4 `From-domain`), all ASCII, whatever the client sent.
///
/// A name that is neither a domain nor an address literal goes into a comment, without what could end it.
fn from_clause(helo: &str, client: Option<IpAddr>) -> Vec<String> {
    let (name, comment) = match (ascii_name(helo), client) {
        (Some(name), _) => (name, None),
        (None, Some(client)) => (literal(client), Some(format!("(helo={})", comment_text(helo)))),
        (None, None) => ("unknown".to_owned(), Some(format!("(helo={})", comment_text(helo)))),
    };
    let address = client.map(|client| format!("({})", literal(client)));
    [Some(format!("from {name}")), comment, address].into_iter().flatten().collect()
}

/// Returns a domain as A-labels or an address literal; `None` for anything else.
fn ascii_name(helo: &str) -> Option<String> {
    if let Some(inner) = helo.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        // Some clients leave out the tag of IPv6.
        let ip = parse_literal(inner).or_else(|| inner.parse().ok().map(IpAddr::V6))?;
        return Some(literal(ip));
    }
    // Real names have underscores and hyphens anywhere.
    if helo.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Some(helo.to_owned()).filter(|name| !name.is_empty());
    }
    let domain = Domain::parse(helo.strip_suffix('.').unwrap_or(helo)).ok()?;
    Some(domain.as_str().to_owned())
}

fn literal(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => format!("[{ip}]"),
        IpAddr::V6(ip) => format!("[IPv6:{ip}]"),
    }
}

/// Returns printable ASCII that is safe in a comment (RFC 5322 3.2.2); everything else becomes `?`.
fn comment_text(text: &str) -> String {
    let safe = |c: char| c.is_ascii_graphic() && !"()\\".contains(c);
    text.chars().take(64).map(|c| if safe(c) { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use postroad_core::GroupId;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_is_summarised() {
        let content = b"Received: from a\r\n\tby b\r\nFROM : x@y.z\r\nBcc: a@b.c,\r\n d@e.f\r\nSubject:  hello\r\n world\r\nDate: now\r\n\r\nFrom: body";
        let summary = summarise(content);
        assert_eq!((summary.received, summary.from, summary.date, summary.message_id), (1, 1, true, false));
        assert_eq!(summary.subject, b"hello\r\n world");
        assert_eq!(&content[summary.bcc[0].clone()], b"Bcc: a@b.c,\r\n d@e.f\r\n");
        assert_eq!(&content[summary.len..], b"\r\n\r\nFrom: body".strip_prefix(b"\r\n").unwrap());
        assert!(!summary.ended_by_text);
    }

    #[test]
    fn s_111_a_header_that_ends_with_text_is_detected() {
        for content in [
            "From: a@b.c\r\nhello\r\n\r\n",
            "hello",
            "From: a@b.c\r\n: x\r\n",
            "a b: c\r\n",
            " folded: first\r\n",
        ] {
            assert!(summarise(content.as_bytes()).ended_by_text, "{content:?}");
        }
        for content in ["", "\r\nbody", "From: a@b.c\r\n", "From: a@b.c", "From: a@b.c\r\n\r\nhello"] {
            assert!(!summarise(content.as_bytes()).ended_by_text, "{content:?}");
        }
    }

    #[test]
    fn a_tolerant_summary_has_fields_with_spaces_in_their_names() {
        let content = b"X Priority: 1\r\nFrom: a@b.c\r\nX MS Has Attach: \r\n\r\nhi";
        let summary = summarise_tolerant(content);
        assert_eq!((summary.from, summary.spaced_names, summary.ended_by_text), (1, 2, false));
        assert!(summarise(content).ended_by_text);
        for text in
            ["From: a@b.c\r\nhello\r\n", " x: y\r\n", "a  b: c\r\n", "a b, c: d\r\n", "\u{e9} x: d\r\n"]
        {
            assert!(summarise_tolerant(text.as_bytes()).ended_by_text, "{text:?}");
        }
    }

    #[test]
    fn the_line_of_an_mbox_file_is_found() {
        let check =
            |content: &str, expected| assert_eq!(mbox_line_len(content.as_bytes()), expected, "{content:?}");
        check("From a@b.c Mon Nov 30 16:51:09 2026\r\nFrom: a@b.c\r\n", 37);
        check("From a@b.c\r\nFrom: a@b.c\r\n", 12);
        check("From : a@b.c\r\n", 0);
        check("From: a@b.c\r\n", 0);
        check("From a@b.c", 0);
    }

    #[test]
    fn s_044_the_received_field_names_the_protocol_and_is_folded() {
        let smtp =
            |tls, authenticated, smtputf8| Protocol::Smtp { extended: true, tls, authenticated, smtputf8 };
        for (with, keyword) in [
            (smtp(false, false, false), "ESMTP"),
            (smtp(true, false, false), "ESMTPS"),
            (smtp(false, true, false), "ESMTPA"),
            (smtp(true, true, false), "ESMTPSA"),
            (smtp(true, true, true), "UTF8SMTPSA"),
            (Protocol::Smtp { extended: false, tls: false, authenticated: false, smtputf8: false }, "SMTP"),
        ] {
            assert_eq!(with.keyword(), keyword);
        }
        let hop = Hop {
            helo: Some("a-rather-long-name-of-a-client.department.example.org"),
            client: Some(Ipv6Addr::LOCALHOST.into()),
            by: "mail.example.org",
            with: smtp(true, true, false),
            tls: "TLSv1.3 TLS_AES_256_GCM_SHA384",
            id: MessageId::new(Timestamp::from_millis(1_795_480_496_000), GroupId(1), 7),
            at: Timestamp::from_millis(1_795_480_496_000),
        };
        let field = received_field(&hop);
        let expected = "Received: from a-rather-long-name-of-a-client.department.example.org\r\n\
            \t([IPv6:::1]) by mail.example.org\r\n\
            \twith ESMTPSA (TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n\
            \tid 01M85FM9W0000G000000000007; Tue, 24 Nov 2026 00:34:56 +0000\r\n";
        assert_eq!(field, expected);
        // S-044: the client can be left out.
        let hidden = received_field(&Hop { helo: None, client: None, ..hop });
        assert!(hidden.starts_with("Received: by mail.example.org with ESMTPSA"));
    }

    fn hop(helo: &str) -> Hop<'_> {
        let at = Timestamp::from_millis(1_795_480_496_000);
        Hop {
            helo: Some(helo),
            client: Some([192, 0, 2, 1].into()),
            by: "mail.example.org",
            with: Protocol::Smtp { extended: true, tls: false, authenticated: false, smtputf8: false },
            tls: "",
            id: MessageId::new(at, GroupId(1), 7),
            at,
        }
    }

    #[test]
    fn s_044_and_s_211_the_name_of_a_client_is_made_safe_for_received() {
        for (helo, expected) in [
            ("client.example.org", "from client.example.org ([192.0.2.1]) by"),
            ("b\u{fc}cher.example", "from xn--bcher-kva.example ([192.0.2.1]) by"),
            ("office-.example.org", "from office-.example.org ([192.0.2.1]) by"),
            ("my_pc", "from my_pc ([192.0.2.1]) by"),
            ("[192.0.2.7]", "from [192.0.2.7] ([192.0.2.1]) by"),
            ("[2001:db8::1]", "from [IPv6:2001:db8::1] ([192.0.2.1]) by"),
            ("[ipv6:2001:db8::1]", "from [IPv6:2001:db8::1] ([192.0.2.1]) by"),
            ("anna's-pc", "from [192.0.2.1] (helo=anna's-pc) ([192.0.2.1]) by"),
            ("b\u{fc}ro_1", "from [192.0.2.1] (helo=b?ro_1) ([192.0.2.1]) by"),
            ("a)(b\\", "from [192.0.2.1] (helo=a??b?) ([192.0.2.1]) by"),
        ] {
            let field = received_field(&hop(helo)).replace("\r\n\t", " ");
            assert!(field.starts_with(&format!("Received: {expected} mail.example.org")), "{helo}: {field}");
        }
    }

    proptest! {
        #[test]
        fn s_044_a_received_field_is_one_field_of_ascii_lines(helo in "\\PC{1,255}|[ -~]{1,255}") {
            let field = received_field(&hop(&helo));
            prop_assert!(field.is_ascii());
            prop_assert!(field.lines().all(|line| line.len() <= 998));
            let summary = summarise(field.as_bytes());
            prop_assert_eq!((summary.received, summary.len, summary.ended_by_text), (1, field.len(), false));
        }

        #[test]
        fn summarising_any_bytes_never_panics(content in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b' '), any::<u8>()], 0..200)) {
            let summary = summarise(&content);
            prop_assert!(summary.len <= content.len());
            for range in summary.bcc {
                prop_assert!(range.end <= summary.len);
            }
        }
    }
}
