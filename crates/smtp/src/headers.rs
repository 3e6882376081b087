//! Reads the header fields that transport needs, and writes the fields that transport adds.

use std::net::IpAddr;

use postroad_core::{MessageId, Timestamp};

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
}

/// Summarises the header of `content`.
///
/// A field is a name of printable ASCII without colon, a colon, and lines that continue it with a space or tab (RFC 5322 2.2).
#[must_use]
pub fn summarise(content: &[u8]) -> HeaderSummary<'_> {
    let mut summary = HeaderSummary::default();
    let mut position = 0;
    while position < content.len() {
        let field = &content[position..];
        if field.starts_with(b"\r\n") {
            return summary;
        }
        let Some(colon) = field_name_len(field) else {
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
    /// The client's EHLO name; `None` to leave it out.
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
        /// The client is authenticated.
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
        words.push(format!("from {helo}"));
        if let Some(client) = hop.client {
            words.push(match client {
                IpAddr::V4(ip) => format!("([{ip}])"),
                IpAddr::V6(ip) => format!("([IPv6:{ip}])"),
            });
        }
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

    proptest! {
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
