//! Helpers of all conversions: required fields, ids, addresses and outcomes.

use bytes::Bytes;
use postroad_core::{
    Address, AttemptNumber, BounceClass, MessageId, Outcome, OutcomeKind, PoolId, Timestamp,
};

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

pub(crate) fn parse_address(text: &str) -> Result<Address, Malformed> {
    Address::parse(text).map_err(|_| Malformed("address"))
}

pub(crate) fn parse_sender(text: Option<&str>) -> Result<Option<Address>, Malformed> {
    text.filter(|text| !text.is_empty()).map(parse_address).transpose()
}

pub(crate) fn parse_outcome(kind: u32, class: u32, code: u32, text: &str) -> Result<Outcome, Malformed> {
    let byte = |code: u32| u8::try_from(code).ok();
    let kind = required(byte(kind).and_then(OutcomeKind::from_code), "kind")?;
    let class = match class {
        0 => None,
        code => Some(required(byte(code).and_then(BounceClass::from_code), "bounce_class")?),
    };
    let code = u16::try_from(code).map_err(|_| Malformed("code"))?;
    Ok(Outcome::new(kind, class, code, text))
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
