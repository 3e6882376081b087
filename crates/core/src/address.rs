//! Mail addresses of the envelope: the only address parser in the system.

use std::{fmt, net::IpAddr, sync::Arc};

use crate::{Domain, DomainError};

/// A mailbox, `local-part@domain`, kept byte for byte as the client wrote it.
///
/// RFC 5321 4.1.2: a dot-string or quoted string, `@`, and a domain or an address literal.
/// A local part that only the receiver can judge is carried: see [`Irregularity`]. UTF-8 is accepted in both parts (RFC 6531); sending needs SMTPUTF8 unless [`Address::is_ascii`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Invariant: a valid mailbox of at most 254 bytes with its separating `@` at `at`.
    text: Arc<str>,
    at: u8,
}

/// The right-hand side of an address: a domain, or an address literal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A domain, to look up in DNS.
    Domain(Domain),
    /// An address literal, `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
    Literal(IpAddr),
}

/// What RFC 5321 does not allow in a local part, and some receivers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irregularity {
    /// A dot at the edge of a dot-string, or two in a row.
    Dots,
    /// Over 64 bytes (RFC 5321 4.5.3.1.1).
    LongLocalPart,
}

/// Why bytes are not an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// The `@` outside quotes is missing, or one side of it is empty.
    Incomplete,
    /// The domain is over 255 bytes or the whole over 254 (RFC 5321 4.5.3.1).
    TooLong,
    /// The local part breaks the syntax of RFC 5321.
    LocalPart,
    /// The domain is not valid.
    Domain(DomainError),
    /// The text in brackets is not an IP address.
    Literal,
}

/// RFC 5321 4.5.3.1.1.
const LOCAL_PART_BYTES_MAX: usize = 64;
/// RFC 5321 4.5.3.1.2.
const DOMAIN_BYTES_MAX: usize = 255;
/// RFC 5321 4.5.3.1.3 allows a path of 256 bytes, which includes its angle brackets.
const MAILBOX_BYTES_MAX: usize = 254;

impl Address {
    /// Parses a mailbox without angle brackets.
    ///
    /// # Errors
    /// The text is not a mailbox (RFC 5321, RFC 6531), or is too long.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let at = local_part_end(text.as_bytes())?;
        let domain = text.get(at + 1..).ok_or(AddressError::Incomplete)?;
        if text.as_bytes().get(at) != Some(&b'@') || domain.is_empty() {
            return Err(AddressError::Incomplete);
        }
        if domain.len() > DOMAIN_BYTES_MAX || text.len() > MAILBOX_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
        parse_host(domain)?;
        Ok(Self { text: text.into(), at: u8::try_from(at).expect("a mailbox has at most 254 bytes") })
    }

    /// Returns the address as the client wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the local part, including quotes.
    #[must_use]
    pub fn local_part(&self) -> &str {
        &self.text[..usize::from(self.at)]
    }

    /// Returns the part after the separating `@`, as the client wrote it.
    #[must_use]
    pub fn domain_text(&self) -> &str {
        &self.text[usize::from(self.at) + 1..]
    }

    /// Returns the domain or address literal that mail for this address goes to.
    #[must_use]
    pub fn host(&self) -> Host {
        parse_host(self.domain_text()).expect("the constructor has parsed the host")
    }

    /// Returns the canonical domain, or `None` for an address literal.
    #[must_use]
    pub fn domain(&self) -> Option<Domain> {
        match self.host() {
            Host::Domain(domain) => Some(domain),
            Host::Literal(_) => None,
        }
    }

    /// Returns a text that is equal for two spellings of one mailbox: the local part byte for byte, the domain canonical.
    #[must_use]
    pub fn mailbox(&self) -> Box<str> {
        match self.host() {
            Host::Domain(domain) => format!("{}@{domain}", self.local_part()).into(),
            Host::Literal(ip) => format!("{}@[{ip}]", self.local_part()).into(),
        }
    }

    /// Returns what RFC 5321 does not allow in the local part.
    ///
    /// A door for strangers refuses such an address; one for our own users carries it to the receiver.
    #[must_use]
    pub fn irregularity(&self) -> Option<Irregularity> {
        let local = self.local_part();
        if local.len() > LOCAL_PART_BYTES_MAX {
            return Some(Irregularity::LongLocalPart);
        }
        let is_quoted = local.starts_with('"');
        (!is_quoted && local.split('.').any(str::is_empty)).then_some(Irregularity::Dots)
    }

    /// Returns true when the address can be sent without SMTPUTF8.
    #[must_use]
    pub fn is_ascii(&self) -> bool {
        self.text.is_ascii()
    }
}

/// Returns the offset of the first byte after the local part.
fn local_part_end(text: &[u8]) -> Result<usize, AddressError> {
    if text.first() == Some(&b'"') { quoted_string_end(text) } else { dot_string_end(text) }
}

fn dot_string_end(text: &[u8]) -> Result<usize, AddressError> {
    let end = text.iter().position(|byte| *byte == b'@').ok_or(AddressError::Incomplete)?;
    let local = &text[..end];
    if local.is_empty() {
        return Err(AddressError::Incomplete);
    }
    let atoms = local.iter().all(|byte| *byte == b'.' || is_atext(*byte));
    let only_dots = local.iter().all(|byte| *byte == b'.');
    if atoms && !only_dots { Ok(end) } else { Err(AddressError::LocalPart) }
}

fn quoted_string_end(text: &[u8]) -> Result<usize, AddressError> {
    let mut index = 1;
    loop {
        match text.get(index) {
            None => return Err(AddressError::Incomplete),
            Some(b'"') => return Ok(index + 1),
            // RFC 5321 4.1.2: quoted-pairSMTP = %d92 %d32-126, so a backslash cannot hide a control character.
            Some(b'\\') => match text.get(index + 1) {
                Some(0x20..=0x7e) => index += 2,
                _ => return Err(AddressError::LocalPart),
            },
            Some(0x20..=0x7e | 0x80..) => index += 1,
            Some(_) => return Err(AddressError::LocalPart),
        }
    }
}

/// RFC 5322 3.2.3, and every byte of a UTF-8 sequence (RFC 6532 3.2).
fn is_atext(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte) || byte >= 0x80
}

fn parse_host(text: &str) -> Result<Host, AddressError> {
    let Some(inner) = text.strip_prefix('[') else {
        return Domain::parse(text).map(Host::Domain).map_err(AddressError::Domain);
    };
    let inner = inner.strip_suffix(']').ok_or(AddressError::Literal)?;
    parse_literal(inner).map(Host::Literal).ok_or(AddressError::Literal)
}

/// Parses the text between the brackets of an address literal (RFC 5321 4.1.3).
#[must_use]
pub fn parse_literal(inner: &str) -> Option<IpAddr> {
    const TAG: &str = "IPv6:";
    match inner.get(..TAG.len()) {
        Some(tag) if tag.eq_ignore_ascii_case(TAG) => inner[TAG.len()..].parse().ok().map(IpAddr::V6),
        _ => inner.parse().ok().map(IpAddr::V4),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.text)
    }
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Incomplete => "the address is incomplete",
            Self::TooLong => "the address is too long",
            Self::LocalPart => "the local part is malformed",
            Self::Domain(error) => return error.fmt(f),
            Self::Literal => "the address literal is malformed",
        })
    }
}

impl std::error::Error for AddressError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `expected` is the local part and the routing host.
    fn check(text: &str, expected: Result<(&str, &str), AddressError>) {
        let parsed = Address::parse(text);
        let seen = parsed.as_ref().map_err(|e| *e).map(|address| {
            let host = match address.host() {
                Host::Domain(domain) => domain.to_string(),
                Host::Literal(ip) => ip.to_string(),
            };
            assert_eq!(address.as_str(), text);
            (address.local_part(), host)
        });
        assert_eq!(seen, expected.map(|(l, h)| (l, h.to_owned())), "{text:?}");
    }

    #[test]
    fn valid_addresses_are_kept_byte_for_byte() {
        check("a@example.org", Ok(("a", "example.org")));
        check("First.Last+tag@EXAMPLE.org", Ok(("First.Last+tag", "example.org")));
        check("!#$%&'*+-/=?^_`{|}~@x.y", Ok(("!#$%&'*+-/=?^_`{|}~", "x.y")));
        check("=?utf-8?q?a=40b?=@c.d", Ok(("=?utf-8?q?a=40b?=", "c.d")));
        check("a@[192.0.2.1]", Ok(("a", "192.0.2.1")));
        check("a@[IPv6:2001:db8::1]", Ok(("a", "2001:db8::1")));
        check("用户@例え.jp", Ok(("用户", "xn--r8jz45g.jp")));
    }

    // The routing domain starts after the last unquoted @ (CVE-2025-13033).
    #[test]
    fn quoted_local_parts_do_not_move_the_domain() {
        check(r#""a@b"@c.d"#, Ok((r#""a@b""#, "c.d")));
        check(r#""a\"b"@c.d"#, Ok((r#""a\"b""#, "c.d")));
        check(r#""a b"@c.d"#, Ok((r#""a b""#, "c.d")));
        check(r#""@evil.example>"@c.d"#, Ok((r#""@evil.example>""#, "c.d")));
        check(r#"""@c.d"#, Ok((r#""""#, "c.d")));
    }

    #[test]
    fn irregular_local_parts_are_carried_and_known() {
        let check = |text: &str, expected| {
            assert_eq!(Address::parse(text).unwrap().irregularity(), expected, "{text}");
        };
        check("a.b@b.c", None);
        check(r#""a..b"@b.c"#, None);
        check(&format!("{}@b.c", "a".repeat(64)), None);
        check("a..b@b.c", Some(Irregularity::Dots));
        check(".a@b.c", Some(Irregularity::Dots));
        check("a.@b.c", Some(Irregularity::Dots));
        check(&format!("{}@b.c", "a".repeat(65)), Some(Irregularity::LongLocalPart));
        check(&format!("{}@b.c", "a".repeat(250)), Some(Irregularity::LongLocalPart));
    }

    #[test]
    fn invalid_addresses_are_refused() {
        use AddressError::{Incomplete, Literal, LocalPart, TooLong};
        let domain = |e| AddressError::Domain(e);
        check("", Err(Incomplete));
        check("a", Err(Incomplete));
        check("@b.c", Err(Incomplete));
        check("a@", Err(Incomplete));
        check("a@b@c.d", Err(domain(DomainError::Malformed)));
        check("..@b.c", Err(LocalPart));
        check("a b@b.c", Err(LocalPart));
        check("a(b)@b.c", Err(LocalPart));
        check("a\r\n@b.c", Err(LocalPart));
        check("\"a\r\n\"@b.c", Err(LocalPart));
        check("\"a\\\n\"@b.c", Err(LocalPart));
        check("\"a\\\0\"@b.c", Err(LocalPart));
        check("a\x7f@b.c", Err(LocalPart));
        check("\"a\"b@b.c", Err(Incomplete));
        check("a@b.c.", Err(domain(DomainError::Empty)));
        check("a@[1.2.3]", Err(Literal));
        check("a@[1.2.3.4", Err(Literal));
        check("a@[IPv6:zz]", Err(Literal));
        check(&format!("{}@b.c", "a".repeat(251)), Err(TooLong));
        check(&format!("a@{}", "b.".repeat(127) + "cc"), Err(TooLong));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_keeps_what_it_accepts(text in "\\PC{0,300}|[ -~\\x00-\\x1f]{0,80}@[a-z.\\[\\]]{0,20}") {
            if let Ok(address) = Address::parse(&text) {
                prop_assert_eq!(address.as_str(), &text);
                prop_assert!(!text.bytes().any(|b| b < 0x20 || b == 0x7f));
                let again = Address::parse(address.as_str());
                prop_assert_eq!(again, Ok(address));
            }
        }
    }
}
