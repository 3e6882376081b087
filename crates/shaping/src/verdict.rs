//! The verdict on one reply: separate values for the delivery, the address, the lane and the record.

use std::num::NonZeroU8;

use postroad_core::{BounceClass, OutcomeKind};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the word used in rules, records and output.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Returns the value with this word.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str() == name)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What the reply answered.
    Phase {
        /// The connection: this is the greeting.
        Connect = "connect",
        /// EHLO or HELO.
        Ehlo = "ehlo",
        /// STARTTLS.
        StartTls = "starttls",
        /// MAIL.
        Mail = "mail",
        /// RCPT.
        Rcpt = "rcpt",
        /// DATA, before the message.
        Data = "data",
        /// The final dot: the message.
        Dot = "dot",
    }
}

impl Phase {
    /// Returns true before MAIL, when the receiver knows nothing of the message.
    #[must_use]
    pub fn is_early(self) -> bool {
        matches!(self, Self::Connect | Self::Ehlo | Self::StartTls)
    }
}

words! {
    /// Whose matter a refusal is.
    Party {
        /// The recipient's mailbox, address or domain.
        Recipient = "recipient",
        /// The envelope sender.
        Sender = "sender",
        /// The address we send from, its reverse DNS or its EHLO name.
        Ip = "ip",
        /// The domain we send for: its authentication or reputation.
        Domain = "domain",
        /// The message.
        Content = "content",
        /// The receiver's own state, capacity or configuration.
        Receiver = "receiver",
    }
}

words! {
    /// What a reply means for the lane (source × site) it came on.
    LaneEffect {
        /// Nothing: it is about one mailbox, sender, domain or message.
        None = "none",
        /// Send more slowly.
        Slow = "slow",
        /// Stop for a while.
        Pause = "pause",
        /// This connection is used up; a new one is as good as before.
        Reconnect = "reconnect",
    }
}

/// Whether, and how, a refused delivery is tried again.
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

/// What a refusal does to the delivery. Only a hard one can suppress the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The delivery ends.
    Hard {
        /// The mailbox does not exist or is closed: never mail this address again.
        suppress: bool,
    },
    /// This recipient is tried again.
    Soft,
    /// The delivery is tried again; the cause lies with the site or the source, not with this recipient.
    SiteSoft,
    /// The receiver refuses us by policy.
    PolicyBlock {
        /// Whether the delivery is tried again.
        retry: Retry,
    },
}

impl Ending {
    /// Returns the kind of outcome that events and the API show.
    #[must_use]
    pub fn kind(self) -> OutcomeKind {
        match self {
            Self::Hard { .. } => OutcomeKind::Hard,
            Self::Soft => OutcomeKind::Soft,
            Self::SiteSoft => OutcomeKind::SiteSoft,
            Self::PolicyBlock { .. } => OutcomeKind::PolicyBlock,
        }
    }

    /// Returns whether, and how, the delivery is tried again.
    #[must_use]
    pub fn retry(self) -> Retry {
        match self {
            Self::Hard { .. } => Retry::Never,
            Self::Soft | Self::SiteSoft => Retry::Normal,
            Self::PolicyBlock { retry } => retry,
        }
    }

    /// Returns true where the address must never be mailed again.
    #[must_use]
    pub fn suppresses(self) -> bool {
        self == Self::Hard { suppress: true }
    }
}

/// A refusal as the rules read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'r> {
    /// What it does to the delivery.
    pub ending: Ending,
    /// Why.
    pub class: BounceClass,
    /// Whose matter it is.
    pub party: Party,
    /// What it means for the lane.
    pub lane: LaneEffect,
    /// The name of the rule that decided.
    pub rule: &'r str,
}

/// What one reply means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'r> {
    /// The receiver took responsibility for the message.
    Delivered,
    /// It did not.
    Refused(Refusal<'r>),
}

impl<'r> Verdict<'r> {
    /// Returns the kind of outcome that events and the API show.
    #[must_use]
    pub fn kind(&self) -> OutcomeKind {
        match self {
            Self::Delivered => OutcomeKind::Delivered,
            Self::Refused(refusal) => refusal.ending.kind(),
        }
    }

    /// Returns the refusal, unless the message was delivered.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal<'r>> {
        match self {
            Self::Delivered => None,
            Self::Refused(refusal) => Some(refusal),
        }
    }
}
