//! Helpers of all conversions: required fields, ids, addresses and outcomes.

use bytes::Bytes;
use postroad_core::{
    Address, AttemptNumber, BounceClass, LaneEffect, MessageId, Outcome, OutcomeKind, Party, PoolId, Retry,
    Timestamp,
};
use postroad_ledger::command::Which;

/// A value that cannot be converted; names the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field `{0}` is missing or out of range")]
pub struct Malformed(pub &'static str);

pub(crate) fn required<T>(value: Option<T>, field: &'static str) -> Result<T, Malformed> {
    value.ok_or(Malformed(field))
}

/// Writes a message id: 16 bytes, big endian.
#[must_use]
pub fn message_id(id: MessageId) -> Bytes {
    Bytes::copy_from_slice(&id.as_u128().to_be_bytes())
}

/// Reads a message id: 16 bytes, big endian.
///
/// # Errors
/// There are not 16 bytes.
pub fn parse_message_id(bytes: &[u8]) -> Result<MessageId, Malformed> {
    let bytes = bytes.try_into().map_err(|_| Malformed("message_id"))?;
    Ok(MessageId::from_u128(u128::from_be_bytes(bytes)))
}

/// Reads which recipients of a message are meant: all of them are only meant where that is said.
pub(crate) fn which(every_recipient: bool, recipients: Vec<u32>) -> Result<Which, Malformed> {
    match (every_recipient, recipients.is_empty()) {
        (true, true) => Ok(Which::Every),
        (false, false) => Ok(Which::Recipients(recipients.into())),
        _ => Err(Malformed("recipients")),
    }
}

pub(crate) fn parse_address(text: &str) -> Result<Address, Malformed> {
    Address::parse(text).map_err(|_| Malformed("address"))
}

pub(crate) fn parse_sender(text: Option<&str>) -> Result<Option<Address>, Malformed> {
    text.filter(|text| !text.is_empty()).map(parse_address).transpose()
}

pub(crate) fn parse_outcome(
    kind: u32,
    class: u32,
    code: u32,
    text: &str,
    reading: Option<Reading>,
) -> Result<Outcome, Malformed> {
    let kind = required(byte(kind).and_then(OutcomeKind::from_code), "kind")?;
    let class = match class {
        0 => None,
        code => Some(required(byte(code).and_then(BounceClass::from_code), "bounce_class")?),
    };
    let code = u16::try_from(code).map_err(|_| Malformed("code"))?;
    let outcome = Outcome::new(kind, class, code, text);
    match reading {
        None => Ok(outcome),
        Some(reading) => reading.add_to(outcome),
    }
}

fn byte(code: u32) -> Option<u8> {
    u8::try_from(code).ok()
}

/// What a reply was read as; the log and the protocol of the queue each have this message.
pub(crate) struct Reading {
    pub(crate) party: u32,
    pub(crate) retry: u32,
    pub(crate) tries_max: u32,
    pub(crate) lane_effect: u32,
    pub(crate) suppress: bool,
    pub(crate) rule: String,
}

impl Reading {
    fn add_to(self, outcome: Outcome) -> Result<Outcome, Malformed> {
        Ok(Outcome {
            party: match self.party {
                0 => None,
                code => Some(required(byte(code).and_then(Party::from_code), "party")?),
            },
            retry: match self.retry {
                0 => outcome.kind.retry(),
                code => {
                    let codes = byte(code).zip(byte(self.tries_max));
                    required(codes.and_then(|(code, tries)| Retry::from_codes(code, tries)), "retry")?
                }
            },
            lane: match self.lane_effect {
                0 => LaneEffect::None,
                code => required(byte(code).and_then(LaneEffect::from_code), "lane_effect")?,
            },
            suppress: self.suppress,
            rule: cut(self.rule),
            ..outcome
        })
    }
}

impl From<&Outcome> for Reading {
    fn from(outcome: &Outcome) -> Self {
        let (retry, tries_max) = outcome.retry.codes();
        Self {
            party: outcome.party.map_or(0, |party| u32::from(party.code())),
            retry: retry.into(),
            tries_max: tries_max.into(),
            lane_effect: outcome.lane.code().into(),
            suppress: outcome.suppress,
            rule: outcome.rule.to_string(),
        }
    }
}

macro_rules! same_message {
    ($wire:ty) => {
        impl From<$wire> for Reading {
            fn from(wire: $wire) -> Self {
                Self {
                    party: wire.party,
                    retry: wire.retry,
                    tries_max: wire.tries_max,
                    lane_effect: wire.lane_effect,
                    suppress: wire.suppress,
                    rule: wire.rule,
                }
            }
        }

        impl From<&Outcome> for $wire {
            fn from(outcome: &Outcome) -> Self {
                let Reading { party, retry, tries_max, lane_effect, suppress, rule } = outcome.into();
                Self { party, retry, tries_max, lane_effect, suppress, rule }
            }
        }
    };
}

same_message!(crate::generated::log::Reading);
same_message!(crate::generated::queue::Reading);

/// Cuts a text that is too long: an outcome must not be lost to a long host name.
pub(crate) fn cut(text: String) -> Box<str> {
    let end = text.floor_char_boundary(postroad_ledger::command::TEXT_BYTES_MAX);
    text[..end].into()
}

pub(crate) fn class_code(outcome: &Outcome) -> u32 {
    outcome.class.map_or(0, |class| u32::from(class.code()))
}

pub(crate) fn time(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

pub(crate) fn pool(id: u32) -> PoolId {
    PoolId(id)
}

pub(crate) fn attempt(number: u32) -> AttemptNumber {
    AttemptNumber(number)
}
