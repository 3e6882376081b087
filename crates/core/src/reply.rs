//! SMTP replies and enhanced status codes.

use std::{borrow::Cow, fmt};

/// An enhanced status code, `class.subject.detail` (RFC 3463).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EnhancedCode {
    /// 2 success, 4 persistent transient failure, 5 permanent failure.
    pub class: u8,
    /// Up to three digits.
    pub subject: u16,
    /// Up to three digits.
    pub detail: u16,
}

/// Makes an enhanced status code.
#[must_use]
pub const fn enhanced(class: u8, subject: u16, detail: u16) -> EnhancedCode {
    EnhancedCode { class, subject, detail }
}

/// A reply of one or more lines with one code (RFC 5321 4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Three digits, 200 to 599.
    pub code: u16,
    /// The enhanced status code, repeated on every line.
    pub enhanced: Option<EnhancedCode>,
    /// The text; lines are separated by `\n` and contain no other control character.
    pub text: Cow<'static, str>,
}

impl Reply {
    /// Makes a reply without an enhanced code.
    #[must_use]
    pub fn plain(code: u16, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, enhanced: None, text: text.into() }
    }

    /// Makes a reply with an enhanced code, whose class is that of `code`.
    #[must_use]
    pub fn new(code: u16, subject: u16, detail: u16, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, enhanced: Some(enhanced((code / 100) as u8, subject, detail)), text: text.into() }
    }

    /// Returns true for 2xx and 3xx.
    #[must_use]
    pub fn is_positive(&self) -> bool {
        (200..400).contains(&self.code)
    }

    /// Returns true for 4xx.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        (400..500).contains(&self.code)
    }

    /// Returns true for 5xx.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        (500..600).contains(&self.code)
    }
}

impl EnhancedCode {
    /// Parses a code at the start of `text`, ended by a space or the end; returns it with its length.
    #[must_use]
    pub fn parse_prefix(text: &str) -> Option<(Self, usize)> {
        let end = text.find(' ').unwrap_or(text.len());
        let mut parts = text[..end].split('.');
        let mut number = |len_max: usize| {
            let part = parts.next()?;
            let digits =
                !part.is_empty() && part.len() <= len_max && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse::<u16>().ok()).flatten()
        };
        let (class, subject, detail) = (number(1)?, number(3)?, number(3)?);
        if !matches!(class, 2 | 4 | 5) || parts.next().is_some() {
            return None;
        }
        Some((enhanced(class as u8, subject, detail), end))
    }
}

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// One line for logs and pages: `550 5.1.1 no such user`.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        for line in self.text.split('\n') {
            write!(f, " {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enhanced_codes_have_up_to_three_digits() {
        let check = |text, expected| assert_eq!(EnhancedCode::parse_prefix(text), expected, "{text:?}");
        check("5.1.1 no such user", Some((enhanced(5, 1, 1), 5)));
        check("5.7.515", Some((enhanced(5, 7, 515), 7)));
        check("2.0.0 ", Some((enhanced(2, 0, 0), 5)));
        for text in
            ["", "5", "5.1", "3.1.1 x", "5.1.1.1 x", "5.1.1000 x", "5..1 x", "5.+1.1 x", "hello 5.1.1"]
        {
            check(text, None);
        }
    }

    #[test]
    fn a_reply_is_displayed_on_one_line() {
        assert_eq!(Reply::new(550, 5, 1, "no\nnever").to_string(), "550 5.5.1 no never");
        assert_eq!(Reply::plain(354, "go ahead").to_string(), "354 go ahead");
    }
}
