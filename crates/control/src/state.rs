//! The states of a delivery as the history, the pages and the API name them.

use postroad_proto::queue::FinalState;

/// The state of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Accepted; no attempt has ended.
    Queued,
    /// An attempt has ended without success, and another will follow.
    Deferred,
    /// An operator keeps it from being sent.
    Held,
    /// The receiver accepted it.
    Delivered,
    /// The receiver refused it permanently.
    Bounced,
    /// It was not delivered within its lifetime.
    Expired,
    /// An operator or the tenant cancelled it.
    Cancelled,
    /// The recipient is suppressed.
    Suppressed,
}

impl State {
    pub(crate) const ALL: [Self; 8] = [
        Self::Queued,
        Self::Deferred,
        Self::Held,
        Self::Delivered,
        Self::Bounced,
        Self::Expired,
        Self::Cancelled,
        Self::Suppressed,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Deferred => "deferred",
            Self::Held => "held",
            Self::Delivered => "delivered",
            Self::Bounced => "bounced",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Suppressed => "suppressed",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Returns the state of a final outcome; `None` for one that this version does not know.
    pub(crate) fn of_end(kind: i32) -> Option<Self> {
        match FinalState::try_from(kind).ok()? {
            FinalState::Delivered => Some(Self::Delivered),
            FinalState::Bounced => Some(Self::Bounced),
            FinalState::Expired => Some(Self::Expired),
            FinalState::Cancelled => Some(Self::Cancelled),
            FinalState::Suppressed => Some(Self::Suppressed),
            FinalState::Unspecified => None,
        }
    }

    /// Returns true for a final outcome.
    pub(crate) fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Deferred | Self::Held)
    }
}
