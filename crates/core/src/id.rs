//! Identifiers and their text form.

use std::{fmt, str::FromStr};

use crate::Timestamp;

macro_rules! number_id {
    ($(#[$doc:meta] $name:ident($inner:ty)),* $(,)?) => {$(
        #[$doc]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )*};
}

number_id! {
    /// A cluster; drawn at random when the cluster is created. Nodes and data of another cluster are refused.
    ClusterId(u64),
    /// A Raft group: 0 is the directory, all others are ledgers.
    GroupId(u16),
    /// A node of the cluster; ids are never reused.
    NodeId(u64),
    /// A tenant of the cluster.
    TenantId(u32),
    /// A pool of egress sources.
    PoolId(u32),
    /// An egress source: a local IP address and the EHLO name that belongs to it.
    SourceId(u32),
    /// Fencing token of a source: rises each time another outbound node becomes its owner.
    Epoch(u64),
    /// The number of an attempt at one delivery; the first is 1.
    AttemptNumber(u32),
}

impl GroupId {
    /// The group of the directory.
    pub const DIRECTORY: Self = Self(0);
    /// The most ledger groups of a cluster: each has its own heartbeats on every queue node, and pages ask all of them.
    pub const LEDGERS_MAX: u16 = 64;
}

/// The id of an accepted message: 48 bits of time in milliseconds, 16 bits of ledger group, 64 random bits.
///
/// The text form is 26 characters of Crockford's base 32 and sorts like the id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(u128);

/// The text is not a message id: 26 characters of Crockford's base 32 that fit 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageIdError;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

impl MessageId {
    /// The number of characters of the text form.
    pub const TEXT_LEN: usize = 26;

    /// Makes an id; `random` makes it unique and must come from a good source.
    #[must_use]
    pub fn new(at: Timestamp, group: GroupId, random: u64) -> Self {
        let millis = u128::from(at.as_millis() & 0xffff_ffff_ffff);
        Self(millis << 80 | u128::from(group.0) << 64 | u128::from(random))
    }

    /// Makes an id from the number that [`MessageId::as_u128`] returned.
    #[must_use]
    pub const fn from_u128(value: u128) -> Self {
        Self(value)
    }

    /// Returns the id as a number.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// Returns when ingress accepted the message.
    #[must_use]
    pub const fn at(self) -> Timestamp {
        Timestamp::from_millis((self.0 >> 80) as u64)
    }

    /// Returns the ledger group that holds the message.
    #[must_use]
    pub const fn group(self) -> GroupId {
        GroupId((self.0 >> 64) as u16)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; Self::TEXT_LEN];
        for (digit, byte) in text.iter_mut().rev().enumerate() {
            *byte = ALPHABET[(self.0 >> (5 * digit)) as usize & 31];
        }
        f.write_str(std::str::from_utf8(&text).expect("the alphabet is ASCII"))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MessageId {
    type Err = MessageIdError;

    fn from_str(text: &str) -> Result<Self, MessageIdError> {
        if text.len() != Self::TEXT_LEN {
            return Err(MessageIdError);
        }
        text.bytes()
            .try_fold(0_u128, |value, byte| {
                let digit = ALPHABET.iter().position(|letter| *letter == byte.to_ascii_uppercase())?;
                // 26 characters are 130 bits: the first character may carry only three.
                value.checked_mul(32)?.checked_add(digit as u128)
            })
            .map(Self)
            .ok_or(MessageIdError)
    }
}

impl fmt::Display for MessageIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a message id: 26 letters and digits")
    }
}

impl std::error::Error for MessageIdError {}

/// One recipient of one message: the unit of delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId {
    /// The message.
    pub message: MessageId,
    /// The position of the recipient in the message's envelope, from 0.
    pub recipient: u32,
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.message, self.recipient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_carries_time_and_group() {
        let at = Timestamp::from_millis(1_795_480_496_789);
        let id = MessageId::new(at, GroupId(7), 0xdead_beef_0123_4567);
        assert_eq!((id.at(), id.group()), (at, GroupId(7)));
        let text = id.to_string();
        assert_eq!(text.len(), MessageId::TEXT_LEN);
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(text.to_lowercase().parse(), Ok(id));
    }

    #[test]
    fn ids_sort_by_time_also_as_text() {
        let early = MessageId::new(Timestamp::from_millis(1), GroupId(9), u64::MAX);
        let late = MessageId::new(Timestamp::from_millis(2), GroupId(1), 0);
        assert!(early < late && early.to_string() < late.to_string());
    }

    #[test]
    fn invalid_ids_are_refused() {
        for text in
            ["", "0", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "0000000000000000000000000U", "é000000000000000000000000"]
        {
            assert_eq!(text.parse::<MessageId>(), Err(MessageIdError), "{text:?}");
        }
        assert_eq!("7ZZZZZZZZZZZZZZZZZZZZZZZZZ".parse(), Ok(MessageId::from_u128(u128::MAX)));
    }
}
