//! Domain names in canonical form, as routing, policy, DNS and TLS use them: lower-case A-labels.

use std::{fmt, sync::Arc};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

/// A host name of one or more labels, in lower-case A-label form, without a trailing dot.
///
/// A name from a DNS answer may also have underscores, and hyphens anywhere: see [`Domain::from_dns`].
/// Equal domains are equal strings: `Müller.example`, `MÜLLER.EXAMPLE` and `xn--mller-kva.example` are one value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(Arc<str>);

/// RFC 1035 2.3.4: 255 bytes on the wire are 253 in text.
const NAME_BYTES_MAX: usize = 253;
/// RFC 1035 2.3.4.
const LABEL_BYTES_MAX: usize = 63;

/// Why a name is not a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainError {
    /// The name or one of its labels is empty.
    Empty,
    /// A label is over 63 bytes or the name over 253 (RFC 1035 2.3.4), counted as A-labels.
    TooLong,
    /// A label has a character other than letters, digits and inner hyphens, or is invalid under UTS 46.
    Malformed,
}

impl Domain {
    /// Parses an ASCII or Unicode name (UTS 46, non-transitional, STD 3 rules).
    ///
    /// Hyphens in the third and fourth place are accepted: such names are registered and in use.
    ///
    /// # Errors
    /// The name is empty, too long or not a host name.
    pub fn parse(text: &str) -> Result<Self, DomainError> {
        if text.is_empty() {
            return Err(DomainError::Empty);
        }
        // Longer input cannot be a valid name; do not spend time on it.
        if text.len() > 1024 {
            return Err(DomainError::TooLong);
        }
        if is_canonical(text.as_bytes()) {
            return check_labels(text).map(|()| Self(text.into()));
        }
        let (text_bytes, deny) = (text.as_bytes(), AsciiDenyList::STD3);
        let ascii = Uts46::new()
            .to_ascii(text_bytes, deny, Hyphens::CheckFirstLast, DnsLength::Verify)
            .map_err(|_| reason(text))?;
        check_labels(&ascii)?;
        Ok(Self(ascii.as_ref().into()))
    }

    /// Takes a name from a DNS answer, without its trailing dot.
    ///
    /// Labels in the DNS are bytes and not necessarily host names (RFC 2181 11): mail hosts with underscores,
    /// or with hyphens at the edge of a label, exist and receive mail.
    ///
    /// # Errors
    /// The name is empty or too long, or has bytes that are not letters, digits, hyphens or underscores.
    pub fn from_dns(text: &str) -> Result<Self, DomainError> {
        let name = text.to_ascii_lowercase();
        if name.len() > NAME_BYTES_MAX || name.split('.').any(|label| label.len() > LABEL_BYTES_MAX) {
            return Err(DomainError::TooLong);
        }
        if name.split('.').any(str::is_empty) {
            return Err(DomainError::Empty);
        }
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.bytes().all(known) { Ok(Self(name.into())) } else { Err(DomainError::Malformed) }
    }

    /// Returns the name as lower-case A-labels.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns true for a name of a single label, such as `localhost`.
    #[must_use]
    pub fn is_single_label(&self) -> bool {
        !self.0.contains('.')
    }
}

/// Returns true when UTS 46 would not change the name: lower-case ASCII without `xn--` labels.
fn is_canonical(text: &[u8]) -> bool {
    text.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
        && !text.split(|byte| *byte == b'.').any(|label| label.starts_with(b"xn--"))
}

fn check_labels(ascii: &str) -> Result<(), DomainError> {
    if ascii.len() > NAME_BYTES_MAX {
        return Err(DomainError::TooLong);
    }
    for label in ascii.split('.') {
        match label.len() {
            0 => return Err(DomainError::Empty),
            1..=LABEL_BYTES_MAX => {}
            _ => return Err(DomainError::TooLong),
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(DomainError::Malformed);
        }
    }
    Ok(())
}

fn reason(text: &str) -> DomainError {
    if text.len() > NAME_BYTES_MAX || text.split('.').any(|label| label.len() > LABEL_BYTES_MAX) {
        DomainError::TooLong
    } else if text.split('.').any(str::is_empty) {
        DomainError::Empty
    } else {
        DomainError::Malformed
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for DomainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the domain has an empty label",
            Self::TooLong => "the domain is too long",
            Self::Malformed => "the domain is malformed",
        })
    }
}

impl std::error::Error for DomainError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, DomainError>) {
        let parsed = Domain::parse(text);
        assert_eq!(parsed.as_ref().map(Domain::as_str).map_err(|e| *e), expected, "{text:?}");
    }

    #[test]
    fn every_spelling_of_a_name_has_one_canonical_form() {
        check("example.org", Ok("example.org"));
        check("EXAMPLE.Org", Ok("example.org"));
        check("müller.example", Ok("xn--mller-kva.example"));
        check("MÜLLER.example", Ok("xn--mller-kva.example"));
        check("xn--mller-kva.example", Ok("xn--mller-kva.example"));
        check("localhost", Ok("localhost"));
        check("1.example", Ok("1.example"));
        check("123.example", Ok("123.example"));
        check("AB--CD.example", Ok("ab--cd.example"));
        check("ab--cd.m\u{fc}ller.example", Ok("ab--cd.xn--mller-kva.example"));
        check("r3---sn-x.example", Ok("r3---sn-x.example"));
    }

    #[test]
    fn d_013_a_name_from_the_dns_is_bytes_and_not_a_host_name() {
        let check = |text: &str, expected: Result<&str, DomainError>| {
            let name = Domain::from_dns(text);
            assert_eq!(name.as_ref().map(Domain::as_str).map_err(|error| *error), expected, "{text:?}");
        };
        check("Mail_1.example.net", Ok("mail_1.example.net"));
        check("r3---mx.example.net", Ok("r3---mx.example.net"));
        check("-mx-.example.net", Ok("-mx-.example.net"));
        check("xn--undecodable-.example", Ok("xn--undecodable-.example"));
        check("", Err(DomainError::Empty));
        check("a..b", Err(DomainError::Empty));
        check("a b.example", Err(DomainError::Malformed));
        check("a\\032b.example", Err(DomainError::Malformed));
        check("m\u{fc}.example", Err(DomainError::Malformed));
        check(&"a".repeat(64), Err(DomainError::TooLong));
        check(&"a.".repeat(130), Err(DomainError::TooLong));
    }

    #[test]
    fn names_that_are_not_host_names_are_refused() {
        use DomainError::{Empty, Malformed, TooLong};
        check("", Err(Empty));
        check(".", Err(Empty));
        check("a..b", Err(Empty));
        check("example.org.", Err(Empty));
        check("-a.example", Err(Malformed));
        check("a-.example", Err(Malformed));
        check("a b.example", Err(Malformed));
        check("a_b.example", Err(Malformed));
        check("a\0.example", Err(Malformed));
        check("[1.2.3.4]", Err(Malformed));
        // RUSTSEC-2024-0421: an A-label that decodes to plain ASCII could spoof another name.
        check("xn--example-.org", Err(Malformed));
        check(&format!("{}.org", "a".repeat(64)), Err(TooLong));
        check(&"a.".repeat(130), Err(TooLong));
    }
}
