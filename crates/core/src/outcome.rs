//! The outcome of an attempt, in words that bounces, statistics and retries share.

use std::fmt;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $code,)* }

        impl $name {
            /// Every value, in the order of their codes.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the name used in events, metrics and the API.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Returns the code used on disk and on the wire; codes are never reused.
            #[must_use]
            pub const fn code(self) -> u8 {
                self as u8
            }

            /// Returns the value with this code.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub(crate) use named;

named! {
    /// How an attempt at one delivery ended: exactly one of these.
    OutcomeKind {
        /// The receiver took responsibility.
        Delivered = 1, "delivered";
        /// A permanent failure of this recipient.
        Hard = 2, "hard";
        /// This recipient is tried again later.
        Soft = 3, "soft";
        /// A temporary failure of the site or the source: all mail for it waits, the recipient's retries are not used up.
        SiteSoft = 4, "site_soft";
        /// The receiver refuses by policy: counts for reputation, retried or not by rule.
        PolicyBlock = 5, "policy_block";
        /// The final dot was sent and no reply was read, or no outcome was reported: the receiver may have the message.
        Unknown = 6, "unknown";
        /// An error of ours: never counts against the recipient, never a bounce.
        Internal = 7, "internal";
    }
}

named! {
    /// Why an attempt did not succeed.
    BounceClass {
        /// The mailbox does not exist.
        InvalidRecipient = 1, "invalid_recipient";
        /// The mailbox is disabled.
        InactiveMailbox = 2, "inactive_mailbox";
        /// The domain does not exist or takes no mail.
        BadDomain = 3, "bad_domain";
        /// The mailbox is full.
        Quota = 4, "quota";
        /// The message is larger than the receiver takes.
        TooBig = 5, "too_big";
        /// The content was judged to be spam.
        SpamContent = 6, "spam_content";
        /// The source or the domain is blocked for its reputation.
        SpamBlock = 7, "spam_block";
        /// SPF, DKIM or DMARC did not pass.
        AuthFailed = 8, "auth_failed";
        /// The receiver asks to slow down.
        RateLimited = 9, "rate_limited";
        /// Greylisting: retry later from the same source.
        Greylisted = 10, "greylisted";
        /// Another policy of the receiver.
        Policy = 11, "policy";
        /// A virus was found.
        Virus = 12, "virus";
        /// The receiver does not relay to the recipient.
        RelayDenied = 13, "relay_denied";
        /// The receiver cannot route the recipient.
        Routing = 14, "routing";
        /// A mail loop.
        Loop = 15, "loop";
        /// A violation of SMTP by either side.
        Protocol = 16, "protocol";
        /// TLS that policy requires was not available.
        TlsPolicy = 17, "tls_policy";
        /// The connection failed or broke.
        Connection = 18, "connection";
        /// The DNS gave no usable answer.
        Dns = 19, "dns";
        /// A deadline passed.
        Timeout = 20, "timeout";
        /// Too many recipients in one transaction: no failure, the others are sent in the next one.
        TooManyRecipients = 21, "too_many_recipients";
        /// The message reached its maximum age.
        Expired = 22, "expired";
        /// Not recognised.
        Other = 23, "other";
    }
}

/// The outcome of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How the attempt ended.
    pub kind: OutcomeKind,
    /// Why, unless delivered.
    pub class: Option<BounceClass>,
    /// The receiver's reply code, 0 without a reply.
    pub code: u16,
    /// The receiver's reply or our error: one line without control characters, at most 512 bytes.
    pub text: Box<str>,
}

/// RFC 5321 4.5.3.1.5 bounds a reply line at 512 bytes; more is not kept.
pub const OUTCOME_TEXT_BYTES_MAX: usize = 512;

impl Outcome {
    /// Makes an outcome; control characters in `text` become spaces, and it is cut at a character boundary.
    #[must_use]
    pub fn new(kind: OutcomeKind, class: Option<BounceClass>, code: u16, text: &str) -> Self {
        let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let end = clean.floor_char_boundary(OUTCOME_TEXT_BYTES_MAX);
        Self { kind, class, code, text: clean[..end].into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_one_to_one() {
        for kind in OutcomeKind::ALL {
            assert_eq!(OutcomeKind::from_code(kind.code()), Some(*kind));
        }
        for class in BounceClass::ALL {
            assert_eq!(BounceClass::from_code(class.code()), Some(*class));
        }
        assert_eq!((OutcomeKind::from_code(0), BounceClass::from_code(99)), (None, None));
    }

    #[test]
    fn remote_text_is_made_harmless() {
        let outcome = Outcome::new(OutcomeKind::Soft, None, 451, &"a\r\n\u{1b}é".repeat(200));
        assert!(outcome.text.len() <= OUTCOME_TEXT_BYTES_MAX);
        assert!(!outcome.text.chars().any(char::is_control));
    }
}
