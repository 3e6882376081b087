//! Checks the authors of a message: the mailboxes of `From`, `Sender`, `Resent-From` and `Resent-Sender`.
//!
//! Strict on purpose: tenants that are limited to domains may not send ambiguous fields,
//! so that no two readers see different authors (RFC 5322 3.4, without groups, routes and obsolete forms).

use postroad_core::{Address, Domain, Host};
use postroad_directory::SenderDomains;

use crate::error::Refusal;

/// Fields that name an author.
const FIELDS: [&str; 4] = ["From", "Sender", "Resent-From", "Resent-Sender"];

/// Checks that the tenant may send as every author in the header.
pub(crate) fn check(header: &[u8], domains: &SenderDomains) -> Result<(), Refusal> {
    if *domains == SenderDomains::Any {
        return Ok(());
    }
    for value in author_fields(header) {
        for mailbox in mailboxes(value).ok_or(Refusal::From)? {
            match mailbox.host() {
                Host::Domain(domain) if domains.allows(&domain) => {}
                Host::Domain(domain) => return Err(Refusal::Sender(domain)),
                Host::Literal(_) => return Err(Refusal::SenderLiteral),
            }
        }
    }
    Ok(())
}

/// Checks that the tenant may send with this envelope sender.
pub(crate) fn check_envelope(sender: Option<&Address>, domains: &SenderDomains) -> Result<(), Refusal> {
    let domain: Domain = match sender.map(Address::host) {
        None if *domains == SenderDomains::Any => return Ok(()),
        None => return Err(Refusal::NullSender),
        Some(Host::Literal(_)) => return Err(Refusal::SenderLiteral),
        Some(Host::Domain(domain)) => domain,
    };
    if domains.allows(&domain) { Ok(()) } else { Err(Refusal::Sender(domain)) }
}

/// Returns the values of the author fields, still folded.
fn author_fields(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = header;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let field = &rest[..field_len(rest)];
            rest = &rest[field.len()..];
            let colon = field.iter().position(|byte| *byte == b':')?;
            let name = field[..colon].trim_ascii();
            if FIELDS.iter().any(|wanted| name.eq_ignore_ascii_case(wanted.as_bytes())) {
                return Some(&field[colon + 1..]);
            }
        }
        None
    })
}

/// Returns the length of a field, including its folded lines.
fn field_len(field: &[u8]) -> usize {
    let starts = |position: &usize| {
        field[*position] == b'\n' && !matches!(field.get(position + 1), Some(b' ' | b'\t'))
    };
    (0..field.len()).find(starts).map_or(field.len(), |end| end + 1)
}

/// Parses a list of mailboxes; returns `None` for an empty list and for anything ambiguous.
fn mailboxes(value: &[u8]) -> Option<Vec<Address>> {
    let text = std::str::from_utf8(value).ok()?;
    let mut found = Vec::new();
    let mut mailbox = Mailbox::default();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => mailbox.push_quoted(&mut characters)?,
            '(' => skip_comment(&mut characters)?,
            ',' if mailbox.angle != Angle::Open => found.push(std::mem::take(&mut mailbox).finish()?),
            '<' => mailbox.open()?,
            '>' => mailbox.close()?,
            ' ' | '\t' | '\r' | '\n' => mailbox.space(),
            // Groups, routes and obsolete lists, and backslashes outside quotes.
            ':' | ';' | '\\' | ')' if !mailbox.in_literal() => return None,
            other => mailbox.push(other)?,
        }
    }
    found.push(mailbox.finish()?);
    Some(found)
}

#[derive(Default, PartialEq, Eq, Clone, Copy)]
enum Angle {
    #[default]
    None,
    Open,
    Closed,
}

/// A mailbox being parsed.
#[derive(Default)]
struct Mailbox {
    /// The text outside angle brackets: an address or a display name.
    outside: String,
    /// `outside` has several words, so it is a display name.
    spaced: bool,
    gap: bool,
    inside: String,
    angle: Angle,
}

impl Mailbox {
    fn current(&mut self) -> Option<&mut String> {
        match self.angle {
            Angle::None => Some(&mut self.outside),
            Angle::Open => Some(&mut self.inside),
            Angle::Closed => None,
        }
    }

    fn in_literal(&self) -> bool {
        let text = if self.angle == Angle::Open { &self.inside } else { &self.outside };
        text.rfind('[').is_some_and(|open| !text[open..].contains(']'))
    }

    fn push(&mut self, character: char) -> Option<()> {
        if self.gap && self.angle == Angle::None && !self.outside.is_empty() {
            self.spaced = true;
        }
        // White space inside an address is obsolete syntax.
        if self.gap && self.angle == Angle::Open && !self.inside.is_empty() {
            return None;
        }
        self.gap = false;
        self.current()?.push(character);
        Some(())
    }

    fn push_quoted(&mut self, characters: &mut std::str::Chars<'_>) -> Option<()> {
        self.push('"')?;
        loop {
            let character = characters.next()?;
            self.current()?.push(character);
            match character {
                '\\' => {
                    let escaped = characters.next()?;
                    self.current()?.push(escaped);
                }
                '"' => return Some(()),
                _ => {}
            }
        }
    }

    fn space(&mut self) {
        self.gap = true;
    }

    fn open(&mut self) -> Option<()> {
        (self.angle == Angle::None).then(|| self.angle = Angle::Open)?;
        self.gap = false;
        Some(())
    }

    fn close(&mut self) -> Option<()> {
        (self.angle == Angle::Open).then(|| self.angle = Angle::Closed)
    }

    fn finish(self) -> Option<Address> {
        match self.angle {
            Angle::Closed => Address::parse(&self.inside).ok(),
            Angle::None if !self.spaced => Address::parse(&self.outside).ok(),
            Angle::None | Angle::Open => None,
        }
    }
}

/// Skips the rest of a comment, which may be nested.
fn skip_comment(characters: &mut std::str::Chars<'_>) -> Option<()> {
    let mut depth = 1;
    while depth > 0 {
        match characters.next()? {
            '(' => depth += 1,
            ')' => depth -= 1,
            '\\' => drop(characters.next()?),
            _ => {}
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Option<Vec<String>> {
        mailboxes(value.as_bytes()).map(|all| all.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn unambiguous_mailboxes_are_parsed() {
        for (value, expected) in [
            (" a@b.c\r\n", "a@b.c"),
            ("<a@b.c>", "a@b.c"),
            ("Ann B. <a@b.c>", "a@b.c"),
            ("\"Ann, B <x@evil.example>\" <a@b.c>", "a@b.c"),
            ("\"a\\\"@evil.example\" <a@b.c>", "a@b.c"),
            ("=?utf-8?q?x=40evil.example?= <a@b.c>", "a@b.c"),
            ("(x@evil.example) a@b.c (of (nested) comments)", "a@b.c"),
            ("Ann\r\n <a@b.c>", "a@b.c"),
            ("\"a b\"@b.c", "\"a b\"@b.c"),
            ("a@[192.0.2.1]", "a@[192.0.2.1]"),
            ("a@[IPv6:::1]", "a@[IPv6:::1]"),
        ] {
            assert_eq!(parse(value), Some(vec![expected.to_owned()]), "{value:?}");
        }
        let two = parse("Ann <a@b.c>, d@e.f").unwrap();
        assert_eq!(two, ["a@b.c", "d@e.f"]);
    }

    #[test]
    fn c_200_ambiguous_author_fields_are_refused() {
        for value in [
            "",
            ",",
            "a@b.c,",
            "Ann",
            "friends: a@b.c;",
            "undisclosed-recipients:;",
            "<@evil.example:a@b.c>",
            "<a@b.c> <x@evil.example>",
            "<a@b.c> x@evil.example",
            "a@b.c x@evil.example",
            "x@evil.example a@b.c",
            "<a@b.c",
            "a@b.c>",
            "<a @b.c>",
            "<<a@b.c>>",
            "\"Ann <a@b.c>",
            "(Ann <a@b.c>",
            "a@b.c\\@evil.example",
            "a@b.c)(@evil.example",
            "\u{202e}a@b.c@evil.example",
        ] {
            assert_eq!(parse(value), None, "{value:?}");
        }
    }

    #[test]
    fn s_040_every_author_must_belong_to_the_tenant() {
        let domain = |text: &str| Domain::parse(text).unwrap();
        let ours = SenderDomains::Only([domain("b.c"), domain("xn--mller-kva.example")].into());
        for header in [
            "From: a@b.c\r\n",
            "From: A@B.C, x@M\u{fc}ller.example\r\n",
            "From: a@b.c\r\nTo: x@evil.example\r\n",
        ] {
            assert_eq!(check(header.as_bytes(), &ours), Ok(()), "{header:?}");
        }
        let evil = Err(Refusal::Sender(domain("evil.example")));
        for header in [
            "From: a@evil.example\r\n",
            "From: a@b.c, a@evil.example\r\n",
            "From: a@b.c\r\nSENDER : a@evil.example\r\n",
            "Resent-From: a@evil.example\r\nFrom: a@b.c\r\n",
            "From:\r\n a@evil.example\r\n",
        ] {
            assert_eq!(check(header.as_bytes(), &ours), evil, "{header:?}");
            assert_eq!(check(header.as_bytes(), &SenderDomains::Any), Ok(()));
        }
        assert_eq!(check(b"From: a@sub.b.c\r\n", &ours), Err(Refusal::Sender(domain("sub.b.c"))));
        assert_eq!(check(b"From: a@[192.0.2.1]\r\n", &ours), Err(Refusal::SenderLiteral));
    }

    #[test]
    fn s_012_the_null_sender_needs_a_tenant_that_may_send_from_any_domain() {
        let ours = SenderDomains::Only([Domain::parse("b.c").unwrap()].into());
        assert_eq!(check_envelope(None, &ours), Err(Refusal::NullSender));
        assert_eq!(check_envelope(None, &SenderDomains::Any), Ok(()));
        let sender = Address::parse("a@B.c").unwrap();
        assert_eq!(check_envelope(Some(&sender), &ours), Ok(()));
    }
}
