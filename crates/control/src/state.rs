//! The states of a delivery, in the words of history, pages and API.

use postroad_proto::queue::FinalState;

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Accepted; no attempt has ended.
    Queued,
    /// An attempt has ended without success, and another will follow.
    Deferred,
    /// Kept from being tried.
    Held,
    /// The receiver took responsibility.
    Delivered,
    /// The receiver refused for good.
    Bounced,
    /// Its time ran out.
    Expired,
    /// It was cancelled.
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

    /// Returns the state an end leads to; `None` for one that this version does not know.
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

    /// Returns true when nothing follows.
    pub(crate) fn is_end(self) -> bool {
        !matches!(self, Self::Queued | Self::Deferred | Self::Held)
    }
}
