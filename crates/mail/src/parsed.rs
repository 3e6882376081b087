//! A parsed message for showing.

use mail_parser::{
    Address, Encoding, Header, HeaderName, Message, MessageParser, MessagePart, MimeHeaders, PartType,
    decoders::{base64::base64_decode, quoted_printable::quoted_printable_decode},
};
use postroad_core::Timestamp;

use crate::{
    bounds::{self, TooComplex},
    charset,
    html::HTML_BYTES_MAX,
    parameters, words,
};

/// Bytes of text that are returned.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Header fields that are returned; C-130.
const FIELDS_MAX: usize = 1000;
/// Bytes of all values of header fields together that are returned; C-130, and Postfix' `header_size_limit`.
const FIELD_BYTES_MAX: usize = 102_400;
/// Mailboxes of one field that are returned.
const MAILBOXES_MAX: usize = 1000;
/// Bytes of one name, address or subject that are returned.
const LINE_BYTES_MAX: usize = 2000;

/// A parsed message. Every text is untrusted: the caller escapes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParsedMessage {
    /// Decoded; empty where there is none.
    pub subject: String,
    /// The mailboxes of `From`.
    pub from: Vec<Mailbox>,
    /// The mailboxes of `To`.
    pub to: Vec<Mailbox>,
    /// The mailboxes of `Cc`.
    pub cc: Vec<Mailbox>,
    /// The `Date` field.
    pub date: Option<Timestamp>,
    /// The plain text, where the message has one.
    pub text: Option<String>,
    /// The HTML, untrusted: see [`crate::sanitise_html`].
    pub html: Option<String>,
    /// Every part that is not `text` or `html`.
    pub attachments: Vec<Attachment>,
    /// Name and value of the header fields in their order, values folded as they came.
    pub headers: Vec<(String, String)>,
}

/// A name and an address, either of which may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mailbox {
    /// The display name.
    pub name: String,
    /// The address.
    pub address: String,
}

/// A part that is neither of the two texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// The file name, empty where there is none.
    pub name: String,
    /// The media type.
    pub media_type: String,
    /// Bytes after decoding.
    pub bytes: usize,
}

/// Parses a message for showing; fields that the content does not have are empty.
///
/// # Errors
/// The content has more structure than real mail has.
pub fn parse(content: &[u8]) -> Result<ParsedMessage, TooComplex> {
    bounds::measure(content)?;
    let Some(message) = parser().parse(content) else { return Ok(ParsedMessage::default()) };
    let parsed = bounds::check(&message).map(|()| of_message(&message, content));
    bounds::dismantle(message);
    parsed
}

/// Decodes the encoded words of an unstructured field's value (RFC 2047), such as a subject.
#[must_use]
pub fn decode_text(value: &[u8]) -> String {
    let value = &value[..value.len().min(LINE_BYTES_MAX)];
    line(&words::decode(value))
}

fn parser() -> MessageParser {
    MessageParser::new().with_mime_headers().header_date(HeaderName::Date).default_header_raw()
}

fn of_message(message: &Message<'_>, content: &[u8]) -> ParsedMessage {
    let root = message.root_part();
    let text = first_of(message, &message.text_body, |part| matches!(part.body, PartType::Text(_)));
    let html = first_of(message, &message.html_body, |part| matches!(part.body, PartType::Html(_)));
    let (text, html) = (text.map(|part| body_text(part, content)), html.map(|part| body_text(part, content)));
    let subject = root.headers.iter().find(|header| header.name == HeaderName::Subject);
    ParsedMessage {
        subject: subject.map(|header| decode_text(raw(header, content))).unwrap_or_default(),
        from: mailboxes(&root.headers, &HeaderName::From, content),
        to: mailboxes(&root.headers, &HeaderName::To, content),
        cc: mailboxes(&root.headers, &HeaderName::Cc, content),
        date: message.date().and_then(|date| {
            let seconds = u64::try_from(date.to_timestamp()).ok()?;
            Some(Timestamp::from_millis(seconds.saturating_mul(1000)))
        }),
        text: text.map(|text| cut(&text, TEXT_BYTES_MAX).to_owned()),
        html: html.map(|html| cut(&html, HTML_BYTES_MAX).to_owned()),
        attachments: message.attachments().map(|part| attachment(part, content)).collect(),
        headers: fields(&root.headers, content),
    }
}

/// The first body part of the wanted kind: the parser lists each text part for both views.
fn first_of<'m>(
    message: &'m Message<'_>,
    bodies: &[u32],
    wanted: fn(&MessagePart<'_>) -> bool,
) -> Option<&'m MessagePart<'m>> {
    bodies.iter().filter_map(|id| message.part(*id)).find(|part| wanted(part))
}

/// The text of a part, decoded by our reading of its charset.
fn body_text(part: &MessagePart<'_>, content: &[u8]) -> String {
    let body = content.get(part.offset_body as usize..part.offset_end as usize).unwrap_or_default();
    let bytes = match part.encoding {
        Encoding::None => Some(body.to_vec()),
        Encoding::QuotedPrintable => quoted_printable_decode(body),
        Encoding::Base64 => base64_decode(body),
    };
    match bytes {
        Some(bytes) if !part.is_encoding_problem => {
            let label = parameter(part, &HeaderName::ContentType, "charset", content).unwrap_or_default();
            charset::decode(&String::from_utf8_lossy(&label), &bytes)
        }
        _ => part.text_contents().unwrap_or_default().to_owned(),
    }
}

/// A parameter of a field of a part, as it came.
fn parameter(part: &MessagePart<'_>, field: &HeaderName<'_>, name: &str, content: &[u8]) -> Option<Vec<u8>> {
    let header = part.headers.iter().rev().find(|header| header.name == *field)?;
    let parameters = parameters::of(raw(header, content));
    parameters.into_iter().find(|(found, _)| found == name).map(|(_, value)| value)
}

/// The value of a field as it came.
fn raw<'c>(header: &Header<'_>, content: &'c [u8]) -> &'c [u8] {
    let value = content.get(header.offset_start as usize..header.offset_end as usize);
    value.unwrap_or_default().trim_ascii()
}

fn mailboxes(headers: &[Header<'_>], name: &HeaderName<'_>, content: &[u8]) -> Vec<Mailbox> {
    let parser = MessageParser::new().header_address(HeaderName::To).default_header_ignore();
    let mut mailboxes = Vec::new();
    for header in headers.iter().filter(|header| header.name == *name) {
        let field = [b"To: ", &*words::decode_phrases(raw(header, content)), b"\r\n\r\n"].concat();
        let message = parser.parse_headers(&field);
        let addresses = message.as_ref().and_then(Message::to).into_iter().flat_map(Address::iter);
        mailboxes.extend(addresses.take(MAILBOXES_MAX).map(|found| Mailbox {
            name: line(found.name().unwrap_or_default()),
            address: line(found.address().unwrap_or_default()),
        }));
    }
    mailboxes.truncate(MAILBOXES_MAX);
    mailboxes
}

/// The file name of an attachment: `filename`, else `name`.
fn file_name(part: &MessagePart<'_>, content: &[u8]) -> String {
    let fields = [(HeaderName::ContentDisposition, "filename"), (HeaderName::ContentType, "name")];
    let own = fields.iter().find_map(|(field, name)| parameter(part, field, name, content));
    // An extended or continued parameter (RFC 2231) is the parser's matter, and is preferred where both are there.
    let is_extended = fields.iter().any(|(field, name)| {
        let headers = part.headers.iter().filter(|header| header.name == *field);
        let mut names = headers.flat_map(|header| parameters::of(raw(header, content)));
        names.any(|(found, _)| found.strip_prefix(name).is_some_and(|rest| rest.starts_with('*')))
    });
    match own {
        Some(value) if !is_extended => decode_text(&value),
        _ => line(part.attachment_name().unwrap_or_default()),
    }
}

fn attachment(part: &MessagePart<'_>, content: &[u8]) -> Attachment {
    let media_type = match part.content_type() {
        Some(found) => {
            let subtype = found.subtype().map(|subtype| format!("/{subtype}")).unwrap_or_default();
            line(&format!("{}{subtype}", found.ctype()))
        }
        None => match part.body {
            PartType::Message(_) => "message/rfc822".to_owned(),
            _ => "text/plain".to_owned(),
        },
    };
    Attachment { name: file_name(part, content), media_type, bytes: part.len() }
}

/// The header fields with their raw values.
fn fields(headers: &[Header<'_>], content: &[u8]) -> Vec<(String, String)> {
    let mut room = FIELD_BYTES_MAX;
    let mut fields = Vec::new();
    for header in headers.iter().take(FIELDS_MAX) {
        let range = header.offset_start as usize..header.offset_end as usize;
        let value = String::from_utf8_lossy(content.get(range).unwrap_or_default());
        let value = cut(value.trim(), room).to_owned();
        room -= value.len();
        fields.push((line(header.name.as_str()), value));
        if room == 0 {
            break;
        }
    }
    fields
}

/// One line without control characters, not too long.
fn line(text: &str) -> String {
    let cut = cut(text.trim(), LINE_BYTES_MAX);
    cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &str = "Received: by mail.example.org with ESMTP\r\n\tid 01M85FM9W0000G000000000007; Tue, 24 Nov 2026 00:34:56 +0000\r\n\
        From: =?utf-8?q?Ren=C3=A9?= <rene@sender.example>\r\n\
        To: a@receiver.example, \"B, C\" <b@receiver.example>\r\n\
        Subject: =?utf-8?b?R3LDvMOfZQ==?= from\r\n here\r\n\
        Date: Tue, 24 Nov 2026 01:34:56 +0100\r\n\
        MIME-Version: 1.0\r\n\
        Content-Type: multipart/mixed; boundary=outer\r\n\
        \r\n\
        --outer\r\n\
        Content-Type: multipart/alternative; boundary=inner\r\n\
        \r\n\
        --inner\r\n\
        Content-Type: text/plain; charset=iso-8859-1\r\n\
        Content-Transfer-Encoding: quoted-printable\r\n\
        \r\n\
        Gr=FC=DFe\r\n\
        --inner\r\n\
        Content-Type: text/html; charset=utf-8\r\n\
        \r\n\
        <p>Hello</p>\r\n\
        --inner--\r\n\
        --outer\r\n\
        Content-Type: application/pdf; name=\"a.pdf\"\r\n\
        Content-Disposition: attachment; filename=\"a b.pdf\"\r\n\
        Content-Transfer-Encoding: base64\r\n\
        \r\n\
        QUJDRA==\r\n\
        --outer--\r\n";

    #[test]
    fn a_message_is_decoded() {
        let parsed = parse(CONTENT.as_bytes()).unwrap();
        assert_eq!(parsed.subject, "Grüße from here");
        let mailbox = |name: &str, address: &str| Mailbox { name: name.into(), address: address.into() };
        assert_eq!(parsed.from, [mailbox("René", "rene@sender.example")]);
        assert_eq!(parsed.to, [mailbox("", "a@receiver.example"), mailbox("B, C", "b@receiver.example")]);
        assert_eq!(parsed.date.unwrap().to_string(), "2026-11-24T00:34:56.000Z");
        assert_eq!(parsed.text.as_deref(), Some("Grüße"));
        assert_eq!(parsed.html.as_deref(), Some("<p>Hello</p>"));
        let pdf = Attachment { name: "a b.pdf".into(), media_type: "application/pdf".into(), bytes: 4 };
        assert_eq!(parsed.attachments, [pdf]);
        assert_eq!(parsed.headers.len(), 7);
        assert_eq!(parsed.headers[3], ("Subject".into(), "=?utf-8?b?R3LDvMOfZQ==?= from\r\n here".into()));
    }

    #[test]
    fn text_is_shown_as_it_was_meant() {
        let subject = "Subject: =?utf-8?Q?=E0=B9?= =?utf-8?Q?=88?=\r\n";
        assert_eq!(parse(format!("{subject}\r\n").as_bytes()).unwrap().subject, "\u{e48}");
        let check = |header: &str, body: &[u8], expected: &str| {
            let content = [header.as_bytes(), b"\r\n\r\n", body].concat();
            assert_eq!(parse(&content).unwrap().text.as_deref(), Some(expected), "{header}");
            let content =
                [b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n", &*content, b"\r\n--b--\r\n"];
            assert_eq!(parse(&content.concat()).unwrap().text.as_deref(), Some(expected), "{header}");
        };
        check("Content-Type: text/plain; charset=cp932", b"\x83n\x83\x8d", "ハロ");
        check("Content-Type: text/plain; charset=eucjp", b"\xa5\xcf\xa5\xed", "ハロ");
        check("Content-Type: text/plain; charset=koi8r", b"\xf0\xd2\xc9", "При");
        check("Content-Type: text/plain; charset=us-ascii", "Grüße".as_bytes(), "Grüße");
        check("Content-Type: text/plain", "Grüße".as_bytes(), "Grüße");
        let base64 = "Content-Type: text/plain; charset=cp932\r\nContent-Transfer-Encoding: base64";
        check(base64, b"g26D\r\njQ==", "ハロ");
        let quoted = "Content-Type: text/plain; charset=koi8r\r\nContent-Transfer-Encoding: quoted-printable";
        check(quoted, b"=F0=D2=\r\n=C9", "При");
    }

    #[test]
    fn names_are_shown_as_they_were_meant() {
        let check = |value: &str, name: &str| {
            let parsed = parse(format!("From: {value} <r@sender.example>\r\n\r\n").as_bytes()).unwrap();
            let expected = Mailbox { name: name.into(), address: "r@sender.example".into() };
            assert_eq!(parsed.from, [expected], "{value}");
        };
        check("=?utf-8?Q?=E0=B9?= =?utf-8?Q?=88?=", "\u{e48}");
        check("=?utf-8?Q?B=2C_C?=", "B, C");
        check("=?utf-8?q?Ren=C3=A9?= Smith", "René Smith");
        check("\"=?utf-8?q?Ren=C3=A9?=\"", "René");
        check("=?koi8r?Q?=F0=D2=C9?=", "При");
    }

    #[test]
    fn file_names_are_read_as_people_mean_them() {
        let check = |fields: &str, name: &str| {
            let content = format!(
                "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n{fields}\r\n\r\nx\r\n--b--\r\n"
            );
            let parsed = parse(content.as_bytes()).unwrap();
            assert_eq!(parsed.attachments[0].name, name, "{fields}");
        };
        check("Content-Type: application/pdf; name=a b;c.pdf", "a b;c.pdf");
        check(
            "Content-Type: application/pdf\r\nContent-Disposition: attachment; filename=a b.pdf",
            "a b.pdf",
        );
        check("Content-Type: application/pdf; name=\"=?utf-8?Q?=C3=BC.pdf?=\"", "ü.pdf");
        let extended = "Content-Disposition: attachment; filename*=utf-8''%C3%BC.pdf; filename=u.pdf";
        check(&format!("Content-Type: application/pdf; name=v.pdf\r\n{extended}"), "ü.pdf");
        check("Content-Type: application/pdf", "");
    }

    #[test]
    fn a_missing_text_or_html_is_none() {
        let parsed = parse(b"Content-Type: text/html\r\n\r\n<b>x</b>").unwrap();
        assert_eq!((parsed.text, parsed.html.as_deref()), (None, Some("<b>x</b>")));
        let parsed = parse(b"Subject: s\r\n\r\nplain").unwrap();
        assert_eq!((parsed.text.as_deref(), parsed.html), (Some("plain"), None));
    }

    #[test]
    fn content_that_is_not_a_message_has_empty_fields() {
        for content in ["", "\r\n", "no header at all"] {
            let parsed = parse(content.as_bytes()).unwrap();
            assert!(parsed.subject.is_empty() && parsed.from.is_empty(), "{content:?}");
        }
    }

    #[test]
    fn subjects_are_decoded_alone() {
        let check = |value: &str, expected: &str| assert_eq!(decode_text(value.as_bytes()), expected);
        check("hello\r\n world", "hello world");
        check("=?utf-8?b?R3LDvMOfZQ==?=", "Grüße");
        check("a\u{1b}[2Jb", "a [2Jb");
        check("Grüße", "Grüße");
        check("", "");
        assert!(decode_text(&b"a".repeat(1 << 20)).len() <= LINE_BYTES_MAX);
    }

    #[test]
    fn sizes_are_bounded() {
        let header = format!("To: {}\r\nSubject: {}\r\n", "a@b.example,".repeat(5_000), "s".repeat(50_000));
        let parsed = parse(format!("{header}\r\n{}", "t".repeat(3 << 20)).as_bytes()).unwrap();
        assert_eq!((parsed.to.len(), parsed.subject.len()), (MAILBOXES_MAX, LINE_BYTES_MAX));
        assert_eq!(parsed.text.unwrap().len(), TEXT_BYTES_MAX);
        assert!(parsed.headers.iter().map(|(_, value)| value.len()).sum::<usize>() <= FIELD_BYTES_MAX);
    }
}
