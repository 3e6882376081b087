//! The state of a delivery, in the words that the API, the command line, the console and the docs share.

use std::fmt;

use crate::outcome::named;

/// The state of a delivery: one message for one of its recipients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeliveryState {
    /// It waits for its first attempt.
    Queued,
    /// An outbound node has it.
    Sending,
    /// An attempt did not succeed, and it waits for the next one.
    Deferred,
    /// It is not sent until it is released.
    Held,
    /// Nothing more happens to it.
    Final(FinalState),
}

named! {
    /// How a delivery ended: exactly one of these.
    FinalState {
        /// The receiver took responsibility.
        Delivered = 1, "delivered";
        /// The receiver refused it permanently.
        Bounced = 2, "bounced";
        /// The message reached its maximum age.
        Expired = 3, "expired";
        /// An operator or its tenant cancelled it.
        Cancelled = 4, "cancelled";
        /// The recipient is on a suppression list.
        Suppressed = 5, "suppressed";
    }
}

impl DeliveryState {
    /// Every state, those without a final outcome first.
    pub const ALL: [Self; 9] = [
        Self::Queued,
        Self::Sending,
        Self::Deferred,
        Self::Held,
        Self::Final(FinalState::Delivered),
        Self::Final(FinalState::Bounced),
        Self::Final(FinalState::Expired),
        Self::Final(FinalState::Cancelled),
        Self::Final(FinalState::Suppressed),
    ];

    /// Returns the state with this word.
    #[must_use]
    pub fn from_name(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// Returns true for a final outcome.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Final(_))
    }

    /// Returns the word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Sending => "sending",
            Self::Deferred => "deferred",
            Self::Held => "held",
            Self::Final(state) => state.as_str(),
        }
    }
}

impl fmt::Display for DeliveryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_a_word_of_its_own() {
        let words = DeliveryState::ALL.map(|state| state.to_string());
        assert_eq!(
            words,
            [
                "queued",
                "sending",
                "deferred",
                "held",
                "delivered",
                "bounced",
                "expired",
                "cancelled",
                "suppressed"
            ]
        );
        for state in DeliveryState::ALL {
            assert_eq!(DeliveryState::from_name(state.as_str()), Some(state));
        }
        for state in FinalState::ALL {
            assert!(DeliveryState::ALL.contains(&DeliveryState::Final(*state)));
            assert_eq!(FinalState::from_code(state.code()), Some(*state));
        }
    }
}
