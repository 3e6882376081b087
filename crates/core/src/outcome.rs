//! The outcome of a delivery attempt, as bounces, statistics and retries share it.

use std::{fmt, num::NonZeroU8};

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $code,)* }

        impl $name {
            /// All values, ordered by code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The names of all values, in the same order.
            pub const NAMES: &'static [&'static str] = &[$($text,)*];

            /// Returns the name used in events, metrics and the API.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Returns the value with this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str() == name)
            }

            /// Returns the code used on disk and on the wire. Codes are never reused.
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
    /// How one attempt at one delivery ended.
    OutcomeKind {
        /// The receiver accepted the message.
        Delivered = 1, "delivered";
        /// Permanent failure: no further attempt.
        Hard = 2, "hard";
        /// Temporary failure of this recipient: retried later.
        Soft = 3, "soft";
        /// Temporary failure of the whole site or source, not of this recipient: all mail for the site waits.
        SiteSoft = 4, "site_soft";
        /// The receiver refuses by policy. Counts for reputation; a rule decides whether to retry.
        PolicyBlock = 5, "policy_block";
        /// The final dot was sent and the reply is missing, or the outbound node did not report: the receiver may have the message.
        Unknown = 6, "unknown";
        /// A fault on our side: never counts against the recipient, never bounces.
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
        /// The domain does not exist or accepts no mail.
        BadDomain = 3, "bad_domain";
        /// The mailbox is full.
        Quota = 4, "quota";
        /// The message exceeds the receiver's size limit.
        TooBig = 5, "too_big";
        /// The receiver classified the content as spam.
        SpamContent = 6, "spam_content";
        /// The source or sending domain is blocked because of its reputation.
        SpamBlock = 7, "spam_block";
        /// SPF, DKIM or DMARC failed.
        AuthFailed = 8, "auth_failed";
        /// The receiver asks to slow down.
        RateLimited = 9, "rate_limited";
        /// Greylisting: the same source must retry later.
        Greylisted = 10, "greylisted";
        /// Another policy of the receiver.
        Policy = 11, "policy";
        /// The receiver found a virus.
        Virus = 12, "virus";
        /// The receiver does not relay for us.
        RelayDenied = 13, "relay_denied";
        /// The receiver cannot route the recipient.
        Routing = 14, "routing";
        /// Mail loop.
        Loop = 15, "loop";
        /// One side violated SMTP.
        Protocol = 16, "protocol";
        /// TLS is required by policy and could not be established.
        TlsPolicy = 17, "tls_policy";
        /// The connection failed or broke.
        Connection = 18, "connection";
        /// DNS gave no usable answer.
        Dns = 19, "dns";
        /// The receiver did not answer in time.
        Timeout = 20, "timeout";
        /// Too many recipients in one transaction that was sent to others: the rest go in another transaction.
        TooManyRecipients = 21, "too_many_recipients";
        /// The message reached its maximum age.
        Expired = 22, "expired";
        /// Not recognised.
        Other = 23, "other";
        /// Outcomes were lost again and again, by the receiver or by our own nodes: it may have a copy of every attempt.
        Unconfirmed = 24, "unconfirmed";
    }
}

named! {
    /// Whose matter a refusal is.
    Party {
        /// The recipient's mailbox, address or domain.
        Recipient = 1, "recipient";
        /// The envelope sender.
        Sender = 2, "sender";
        /// The address we send from, its reverse DNS or its EHLO name.
        Ip = 3, "ip";
        /// The domain we send for: its authentication or reputation.
        Domain = 4, "domain";
        /// The message.
        Content = 5, "content";
        /// The receiver's own state, capacity or configuration.
        Receiver = 6, "receiver";
    }
}

named! {
    /// What an outcome means for its lane (source × site).
    LaneEffect {
        /// Nothing: it is about one mailbox, sender, domain or message.
        None = 1, "none";
        /// Send more slowly.
        Slow = 2, "slow";
        /// Stop for a while.
        Pause = 3, "pause";
        /// This connection is used up; a new one is as good as before.
        Reconnect = 4, "reconnect";
    }
}

/// Whether, and how, a delivery is tried again after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The delivery ends.
    Never,
    /// On the usual schedule, until the message is too old.
    Normal,
    /// At long distance, and at most this many times more; then the delivery ends.
    Distant {
        /// How many further attempts there may be.
        tries_max: NonZeroU8,
    },
}

impl Retry {
    /// Returns the code used on disk and on the wire, and the number of tries, 0 unless distant.
    #[must_use]
    pub const fn codes(self) -> (u8, u8) {
        match self {
            Self::Never => (1, 0),
            Self::Normal => (2, 0),
            Self::Distant { tries_max } => (3, tries_max.get()),
        }
    }

    /// Returns the value with these codes.
    #[must_use]
    pub const fn from_codes(code: u8, tries_max: u8) -> Option<Self> {
        match (code, NonZeroU8::new(tries_max)) {
            (1, _) => Some(Self::Never),
            (2, _) => Some(Self::Normal),
            (3, Some(tries_max)) => Some(Self::Distant { tries_max }),
            _ => None,
        }
    }
}

/// The outcome of an attempt, with the reason when it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How the attempt ended.
    pub kind: OutcomeKind,
    /// Why, unless delivered.
    pub class: Option<BounceClass>,
    /// The receiver's reply code; 0 without a reply.
    pub code: u16,
    /// The receiver's reply or our own error: one line without control characters, at most 512 bytes.
    pub text: Box<str>,
    /// Whose matter a refusal is.
    pub party: Option<Party>,
    /// Whether, and how, the delivery is tried again.
    pub retry: Retry,
    /// What it means for the lane.
    pub lane: LaneEffect,
    /// The mailbox does not exist or is closed: never mail this address again.
    pub suppress: bool,
    /// The name of the rule that read the reply; empty without a reply.
    pub rule: Box<str>,
}

impl OutcomeKind {
    /// Returns how a delivery is tried again after an outcome of this kind, where nothing else was said.
    #[must_use]
    pub const fn retry(self) -> Retry {
        match self {
            Self::Delivered | Self::Hard => Retry::Never,
            Self::Soft | Self::SiteSoft | Self::PolicyBlock | Self::Unknown | Self::Internal => Retry::Normal,
        }
    }
}

/// RFC 5321 4.5.3.1.5 limits a reply line to 512 bytes; the rest is cut off.
pub const OUTCOME_TEXT_BYTES_MAX: usize = 512;

impl Outcome {
    /// Makes an outcome that says nothing about the lane, retried as its kind says.
    ///
    /// Replaces control characters in `text` with spaces and cuts it at a character boundary.
    #[must_use]
    pub fn new(kind: OutcomeKind, class: Option<BounceClass>, code: u16, text: &str) -> Self {
        let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let end = clean.floor_char_boundary(OUTCOME_TEXT_BYTES_MAX);
        Self {
            kind,
            class,
            code,
            text: clean[..end].into(),
            party: None,
            retry: kind.retry(),
            lane: LaneEffect::None,
            suppress: false,
            rule: "".into(),
        }
    }

    /// Returns true when the attempt counts as one of the delivery's: the receiver was asked, and this recipient was not
    /// only left over by a transaction that was sent to others.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.kind != OutcomeKind::Internal && self.class != Some(BounceClass::TooManyRecipients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for kind in OutcomeKind::ALL {
            assert_eq!(OutcomeKind::from_code(kind.code()), Some(*kind));
        }
        for class in BounceClass::ALL {
            assert_eq!(BounceClass::from_code(class.code()), Some(*class));
        }
        for party in Party::ALL {
            assert_eq!(Party::from_code(party.code()), Some(*party));
        }
        for effect in LaneEffect::ALL {
            assert_eq!(LaneEffect::from_code(effect.code()), Some(*effect));
            assert_eq!(LaneEffect::from_name(effect.as_str()), Some(*effect));
        }
        let distant = Retry::Distant { tries_max: NonZeroU8::MIN };
        for retry in [Retry::Never, Retry::Normal, distant] {
            let (code, tries_max) = retry.codes();
            assert_eq!(Retry::from_codes(code, tries_max), Some(retry));
        }
        assert_eq!((OutcomeKind::from_code(0), BounceClass::from_code(99)), (None, None));
        assert_eq!((Retry::from_codes(0, 0), Retry::from_codes(3, 0)), (None, None));
    }

    #[test]
    fn control_characters_and_length_of_remote_text_are_limited() {
        let outcome = Outcome::new(OutcomeKind::Soft, None, 451, &"a\r\n\u{1b}é".repeat(200));
        assert!(outcome.text.len() <= OUTCOME_TEXT_BYTES_MAX);
        assert!(!outcome.text.chars().any(char::is_control));
    }
}
