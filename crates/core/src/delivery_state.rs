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
        let waiting =
            [DeliveryState::Queued, DeliveryState::Sending, DeliveryState::Deferred, DeliveryState::Held];
        let ended = FinalState::ALL.iter().map(|state| DeliveryState::Final(*state));
        let words: Vec<String> = waiting.into_iter().chain(ended).map(|state| state.to_string()).collect();
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
        for state in FinalState::ALL {
            assert_eq!(FinalState::from_code(state.code()), Some(*state));
        }
    }
}
