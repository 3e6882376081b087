//! How a line is put together: keys, values, what must be quoted, and what must not be shown.

use std::{
    fmt::{Display, Write},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use postroad_core::{Address, AttemptNumber, MessageId, Timestamp, text::is_printable};

use super::Record;
use crate::{LogAddresses, LogFormat};

/// How much of a text that others chose is written.
const TEXT_BYTES_MAX: usize = 600;

/// A line that is being put together.
#[derive(Debug)]
pub struct Line<'a> {
    value: Value<'a>,
}

/// Where the value of one field goes.
#[derive(Debug)]
pub struct Value<'a> {
    out: &'a mut String,
    format: LogFormat,
    addresses: LogAddresses,
}

/// What can be the value of a field.
pub trait Put {
    /// Writes it, in one call of one of the methods of `to`.
    fn put(&self, to: &mut Value<'_>);
}

/// Appends the line of a record, with its end.
pub(crate) fn append(
    out: &mut String,
    at: Timestamp,
    record: &impl Record,
    format: LogFormat,
    addresses: LogAddresses,
) {
    let event = record.event().as_str();
    let _ = match format {
        LogFormat::Text => write!(out, "{at}  INFO mail: {event}"),
        LogFormat::Json => {
            write!(
                out,
                "{{\"timestamp\":\"{at}\",\"level\":\"INFO\",\"target\":\"mail\",\"message\":\"{event}\""
            )
        }
    };
    let mut line = Line { value: Value { out, format, addresses } };
    record.put(&mut line);
    out.push_str(match format {
        LogFormat::Text => "\n",
        LogFormat::Json => "}\n",
    });
}

/// Returns the line of a record, as it is written.
#[must_use]
pub fn line(at: Timestamp, record: &impl Record, format: LogFormat, addresses: LogAddresses) -> String {
    let mut line = String::new();
    append(&mut line, at, record, format, addresses);
    line
}

impl Line<'_> {
    /// Writes a field.
    pub fn put(&mut self, key: &str, value: &impl Put) {
        let _ = match self.value.format {
            LogFormat::Text => write!(self.value.out, " {key}="),
            LogFormat::Json => write!(self.value.out, ",\"{key}\":"),
        };
        value.put(&mut self.value);
    }
}

impl Value<'_> {
    /// Writes that there is none.
    pub fn none(&mut self) {
        self.out.push_str(match self.format {
            LogFormat::Text => "-",
            LogFormat::Json => "null",
        });
    }

    /// Writes a number.
    pub fn number(&mut self, number: impl Display) {
        let _ = write!(self.out, "{number}");
    }

    /// Writes a word that needs no quotes, such as an id.
    pub fn word(&mut self, word: impl Display) {
        let _ = match self.format {
            LogFormat::Text => write!(self.out, "{word}"),
            LogFormat::Json => write!(self.out, "\"{word}\""),
        };
    }

    /// Writes a text that may hold anything.
    pub fn text(&mut self, text: &str) {
        let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
        let is_word = !text.is_empty() && text != "-" && text.bytes().all(is_word_byte);
        if is_word && self.format == LogFormat::Text {
            self.out.push_str(text);
            return;
        }
        self.out.push('"');
        text.chars().for_each(|c| self.quoted(c));
        self.out.push('"');
    }

    /// JSON's escapes, for both formats: a log of text is read by programs too.
    fn quoted(&mut self, c: char) {
        match c {
            '"' => self.out.push_str("\\\""),
            '\\' => self.out.push_str("\\\\"),
            '\n' => self.out.push_str("\\n"),
            '\r' => self.out.push_str("\\r"),
            '\t' => self.out.push_str("\\t"),
            // Others a terminal would obey, or a reader of lines would take for an end.
            c if is_printable(c) => self.out.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(self.out, "\\u{unit:04x}");
                }
            }
        }
    }
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\')
}

impl<T: Put> Put for Option<T> {
    fn put(&self, to: &mut Value<'_>) {
        match self {
            Some(value) => value.put(to),
            None => to.none(),
        }
    }
}

impl Put for &str {
    fn put(&self, to: &mut Value<'_>) {
        to.text(self);
    }
}

macro_rules! put {
    ($($how:ident: $($type:ty),+;)+) => {
        $($(impl Put for $type {
            fn put(&self, to: &mut Value<'_>) {
                to.$how(self);
            }
        })+)+
    };
}

put! {
    number: u16, u32, u64, usize, AttemptNumber;
    word: MessageId, IpAddr, SocketAddr;
}

/// A time in seconds, to the millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secs(pub Duration);

impl Put for Secs {
    fn put(&self, to: &mut Value<'_>) {
        to.number(format_args!("{}.{:03}", self.0.as_secs(), self.0.subsec_millis()));
    }
}

/// The id of a trace, from a traceparent; none where that is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace<'a>(pub &'a str);

impl Put for Trace<'_> {
    fn put(&self, to: &mut Value<'_>) {
        match self.0.split('-').nth(1) {
            Some(id) => to.text(id),
            None => to.none(),
        }
    }
}

/// An address, or what may be one; as much of it is written as the operator allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mailbox<'a> {
    /// There is none.
    None,
    /// The null sender.
    Null,
    /// This one.
    Of(&'a str),
}

impl<'a> Mailbox<'a> {
    /// Returns the sender of an envelope, where `None` is the null sender.
    #[must_use]
    pub fn sender(sender: Option<&'a Address>) -> Self {
        sender.map_or(Self::Null, |sender| Self::Of(sender.as_str()))
    }
}

impl Put for Mailbox<'_> {
    fn put(&self, to: &mut Value<'_>) {
        match (self, to.addresses) {
            (Self::None, _) | (Self::Of(_), LogAddresses::None) => to.none(),
            (Self::Null, _) => to.text("<>"),
            (Self::Of(address), LogAddresses::Full) => to.text(address),
            (Self::Of(address), LogAddresses::Domain) => match address.rsplit_once('@') {
                Some((_, domain)) => to.text(domain),
                None => to.none(),
            },
        }
    }
}

/// What somebody said, such as a reply: addresses in it are shown as far as the operator allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said<'a>(pub &'a str);

impl Put for Said<'_> {
    fn put(&self, to: &mut Value<'_>) {
        let has_address = self.0.contains('@') || self.0.contains("%40");
        match to.addresses {
            _ if self.0.is_empty() => to.none(),
            LogAddresses::None | LogAddresses::Domain if has_address => {
                let domains = to.addresses == LogAddresses::Domain;
                to.text(&hide_addresses(self.0, domains));
            }
            _ => to.text(self.0),
        }
    }
}

/// Replaces the local parts of what looks like an address by `*`, and the domains as well unless they may be shown.
fn hide_addresses(text: &str, domains: bool) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, length)) = next_at(rest) {
        let start = local_part_start(&rest[..at]);
        let end = at + length;
        shown.push_str(&rest[..start]);
        shown.push('*');
        shown.push_str(&rest[at..end]);
        rest = &rest[end..];
        if !domains {
            let is_domain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '[' | ']' | ':');
            shown.push('*');
            // A full stop or colon behind the domain goes with it.
            rest = rest.trim_start_matches(is_domain);
        }
    }
    shown.push_str(rest);
    shown
}

/// Finds an `@`, as it is or as URLs have it.
fn next_at(text: &str) -> Option<(usize, usize)> {
    let plain = text.find('@').map(|at| (at, 1));
    let in_url = text.find("%40").map(|at| (at, 3));
    plain.into_iter().chain(in_url).min()
}

/// Returns where the local part in front of an `@` begins.
fn local_part_start(before: &str) -> usize {
    if let Some(inner) = before.strip_suffix('"') {
        return inner.rfind('"').unwrap_or(0);
    }
    let ends = |c: char| {
        c.is_whitespace() || matches!(c, '<' | '>' | '(' | ')' | '[' | ']' | ',' | ';' | ':' | '"' | '\'')
    };
    before.rfind(ends).map_or(0, |place| place + before[place..].chars().next().map_or(0, char::len_utf8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail_log::{Attempt, Delivery, Event, LeftOut, Rejected};

    fn line(record: &impl Record, format: LogFormat, addresses: LogAddresses) -> String {
        super::line(Timestamp::from_millis(951_782_400_123), record, format, addresses)
    }

    fn attempt() -> Attempt<'static> {
        Attempt {
            id: MessageId::from_u128(7),
            recipient: 0,
            attempt: AttemptNumber(2),
            outcome: "soft",
            class: Some("greylisted"),
            party: Some("receiver"),
            code: Some(450),
            reply: Said("4.7.1 <anna@b.test>: try \"later\"\r\n"),
            rule: None,
            to: Mailbox::Of("anna@b.test"),
            source: "one",
            site: "mx.b.test",
            mx: Some("mx1.b.test"),
            address: Some(([192, 0, 2, 1], 25).into()),
            tls: None,
            seconds: Secs(Duration::from_millis(1_042)),
            delay: Secs(Duration::from_secs(90)),
            trace: Trace("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        }
    }

    #[test]
    fn a_line_has_every_field_in_the_order_of_the_record() {
        let text = line(&attempt(), LogFormat::Text, LogAddresses::Full);
        assert_eq!(
            text,
            "2000-02-29T00:00:00.123Z  INFO mail: attempt id=00000000000000000000000007 recipient=0 attempt=2 \
             outcome=soft class=greylisted party=receiver code=450 reply=\"4.7.1 <anna@b.test>: try \\\"later\\\"\\r\\n\" rule=- \
             to=anna@b.test source=one site=mx.b.test mx=mx1.b.test address=192.0.2.1:25 tls=- seconds=1.042 \
             delay=90.000 trace=4bf92f3577b34da6a3ce929d0e0e4736\n"
        );
        let json = line(&attempt(), LogFormat::Json, LogAddresses::Full);
        assert!(
            json.starts_with(
                "{\"timestamp\":\"2000-02-29T00:00:00.123Z\",\"level\":\"INFO\",\"target\":\"mail\",\"message\":\"attempt\",\"id\":\"0000"
            ),
            "{json}"
        );
        assert!(json.contains(
            "\"code\":450,\"reply\":\"4.7.1 <anna@b.test>: try \\\"later\\\"\\r\\n\",\"rule\":null"
        ));
        assert!(
            json.ends_with("\"delay\":90.000,\"trace\":\"4bf92f3577b34da6a3ce929d0e0e4736\"}\n"),
            "{json}"
        );
    }

    #[test]
    fn addresses_are_shown_as_far_as_the_operator_allows() {
        let check = |addresses, shown: &[&str]| {
            for format in [LogFormat::Text, LogFormat::Json] {
                let line = line(&attempt(), format, addresses);
                assert_eq!(line.contains("anna"), addresses == LogAddresses::Full, "{line}");
                for part in shown {
                    assert!(line.contains(part), "{part} is missing in {line}");
                }
            }
        };
        check(LogAddresses::Full, &["anna@b.test", "<anna@b.test>"]);
        check(LogAddresses::Domain, &["<*@b.test>: try"]);
        check(LogAddresses::None, &["<*@*>: try"]);
        let null = Rejected {
            stage: "mail",
            reason: "sender",
            reply: Said("550 5.7.1 no"),
            client: None,
            tenant: None,
            from: Mailbox::Null,
            to: Mailbox::None,
            protocol: "smtp",
            helo: None,
            trace: Trace(""),
        };
        assert!(line(&null, LogFormat::Text, LogAddresses::None).contains(" from=<> to=- "));
    }

    #[test]
    fn addresses_in_what_others_say_are_found() {
        let check = |said: &str, domains: &str, none: &str| {
            assert_eq!(hide_addresses(said, true), domains);
            assert_eq!(hide_addresses(said, false), none);
        };
        check("no mailbox a.b+c@d.test here", "no mailbox *@d.test here", "no mailbox *@* here");
        check("<\"a b\"@d.test>,x@[192.0.2.1]", "<*@d.test>,*@[192.0.2.1]", "<*@*>,*@*");
        check("see https://d.test/?who=anna%40d.test.", "see https:*%40d.test.", "see https:*%40*");
        check("RCPT TO:<grüße@d.test> 'x@y'", "RCPT TO:<*@d.test> '*@y'", "RCPT TO:<*@*> '*@*'");
        check("@ and a@", "*@ and *@", "*@* and *@*");
    }

    #[test]
    fn what_others_say_stays_within_its_line_and_its_quotes() {
        let check = |said: &str, written: &str| {
            let mut out = String::new();
            Value { out: &mut out, format: LogFormat::Text, addresses: LogAddresses::Full }.text(said);
            assert_eq!(out, written);
        };
        check("word", "word");
        check("", "\"\"");
        check("-", "\"-\"");
        check("two words", "\"two words\"");
        check("a=b;c", "a=b;c");
        check("x\naccepted id=1", "\"x\\naccepted id=1\"");
        check("\u{1b}[2J\u{85}\u{2028}\u{202e}", "\"\\u001b[2J\\u0085\\u2028\\u202e\"");
        check("grüße", "\"grüße\"");
        check(&"x".repeat(1000), &"x".repeat(TEXT_BYTES_MAX));
        check(&"ü".repeat(1000), &format!("\"{}\"", "ü".repeat(TEXT_BYTES_MAX / 2)));
    }

    #[test]
    fn one_record_may_be_about_several_events() {
        let lost = LeftOut { event: Event::Lost, of: None, lines: 3 };
        assert!(line(&lost, LogFormat::Text, LogAddresses::None).ends_with("mail: lost of=- lines=3\n"));
        let mut held = Delivery {
            event: Event::Held,
            id: MessageId::from_u128(7),
            recipient: 1,
            attempts: 0,
            to: Mailbox::None,
            tenant: "t",
            site: "b.test",
            outcome: None,
            reply: Said(""),
            delay: Secs(Duration::ZERO),
            trace: Trace(""),
        };
        assert!(line(&held, LogFormat::Text, LogAddresses::None).contains("mail: held id="));
        held.event = Event::Released;
        assert!(line(&held, LogFormat::Text, LogAddresses::None).contains("mail: released id="));
    }
}
