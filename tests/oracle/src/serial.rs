//! The text forms of core's values in a history: numbers as numbers, ids and words as texts.
//!
//! core knows nothing of serde, so each field names one of these modules.

use postroad_core::{AttemptNumber, Epoch, FinalState, GroupId, NodeId, OutcomeKind, SourceId, TenantId};

/// A newtype around an unsigned number.
pub(crate) trait Number: Copy {
    fn to_u64(self) -> u64;
    fn from_u64(value: u64) -> Option<Self>;
}

macro_rules! numbers {
    ($($name:ident),*) => {$(
        impl Number for $name {
            fn to_u64(self) -> u64 {
                self.0.into()
            }

            fn from_u64(value: u64) -> Option<Self> {
                value.try_into().ok().map(Self)
            }
        }
    )*};
}

numbers!(GroupId, NodeId, TenantId, SourceId, Epoch, AttemptNumber);

/// A value with a name.
pub(crate) trait Word: Copy {
    fn to_word(self) -> &'static str;
    fn from_word(word: &str) -> Option<Self>;
}

macro_rules! words {
    ($($name:ident),*) => {$(
        impl Word for $name {
            fn to_word(self) -> &'static str {
                self.as_str()
            }

            fn from_word(word: &str) -> Option<Self> {
                Self::from_name(word)
            }
        }
    )*};
}

words!(OutcomeKind, FinalState);

pub(crate) mod number {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Number;

    pub(crate) fn serialize<T: Number, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(value.to_u64())
    }

    pub(crate) fn deserialize<'de, T: Number, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        let value = u64::deserialize(from)?;
        T::from_u64(value).ok_or_else(|| D::Error::custom(format!("`{value}` is too large")))
    }
}

pub(crate) mod number_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::Number;

    pub(crate) fn serialize<T: Number, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        value.map(Number::to_u64).serialize(to)
    }

    pub(crate) fn deserialize<'de, T: Number, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
        let Some(value) = Option::<u64>::deserialize(from)? else { return Ok(None) };
        let number = T::from_u64(value).ok_or_else(|| D::Error::custom(format!("`{value}` is too large")))?;
        Ok(Some(number))
    }
}

pub(crate) mod nodes {
    use postroad_core::NodeId;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(nodes: &[NodeId], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(nodes.iter().map(|node| node.0))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<NodeId>, D::Error> {
        Ok(Vec::<u64>::deserialize(from)?.into_iter().map(NodeId).collect())
    }
}

pub(crate) mod text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

pub(crate) mod text_option {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(crate) fn serialize<T: Display, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(ToString::to_string).serialize(to)
    }

    pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| text.parse()).transpose().map_err(D::Error::custom)
    }
}

/// `01M85FM9W0000G000000000007/0`: the message and the recipient's position.
pub(crate) mod delivery {
    use postroad_core::DeliveryId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(value: &DeliveryId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<DeliveryId, D::Error> {
        let text = String::deserialize(from)?;
        let parse = |text: &str| {
            let (message, recipient) = text.split_once('/')?;
            Some(DeliveryId { message: message.parse().ok()?, recipient: recipient.parse().ok()? })
        };
        parse(&text)
            .ok_or_else(|| D::Error::custom(format!("`{text}` is not a delivery: `MESSAGE/RECIPIENT`")))
    }
}

pub(crate) mod word {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Word;

    pub(crate) fn serialize<T: Word, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(value.to_word())
    }

    pub(crate) fn deserialize<'de, T: Word, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        let text = String::deserialize(from)?;
        T::from_word(&text).ok_or_else(|| D::Error::custom(format!("`{text}` is not known")))
    }
}
