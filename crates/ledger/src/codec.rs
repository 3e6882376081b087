//! The bytes of snapshots and events: little-endian numbers and length-prefixed text, nothing else.

use postroad_core::{Address, MessageId, Timestamp};

/// The bytes are not a snapshot of this version: damaged, or from another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

impl std::fmt::Display for Corrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the snapshot is damaged")
    }
}

impl std::error::Error for Corrupt {}

/// Appends to a buffer.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    fn count(&mut self, value: usize) {
        self.u32(u32::try_from(value).expect("counts are bounded far below four billion"));
    }

    fn id(&mut self, id: MessageId) {
        self.put(&id.as_u128().to_le_bytes());
    }

    fn time(&mut self, at: Timestamp) {
        self.u64(at.as_millis());
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.put(text.as_bytes());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Reads from the front of bytes; missing bytes are [`Corrupt`].
pub(crate) struct Take<'a>(pub(crate) &'a [u8]);

impl<'a> Take<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Corrupt> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Corrupt)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Corrupt)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Corrupt> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, Corrupt> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Corrupt),
        }
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Corrupt> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Corrupt> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Corrupt> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads a count of items of at least `bytes_each` bytes; refuses more than can follow, before memory is reserved.
    pub(crate) fn count(&mut self, bytes_each: usize) -> Result<usize, Corrupt> {
        let count = self.u32()? as usize;
        if count > self.0.len() / bytes_each.max(1) { Err(Corrupt) } else { Ok(count) }
    }

    pub(crate) fn id(&mut self) -> Result<MessageId, Corrupt> {
        self.array().map(u128::from_le_bytes).map(MessageId::from_u128)
    }

    pub(crate) fn time(&mut self) -> Result<Timestamp, Corrupt> {
        self.u64().map(Timestamp::from_millis)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, Corrupt> {
        let len = self.count(1)?;
        std::str::from_utf8(self.bytes(len)?).map_err(|_| Corrupt)
    }

    pub(crate) fn address(&mut self) -> Result<Address, Corrupt> {
        Address::parse(self.text()?).map_err(|_| Corrupt)
    }

    pub(crate) fn option<T>(
        &mut self,
        take: impl FnOnce(&mut Self) -> Result<T, Corrupt>,
    ) -> Result<Option<T>, Corrupt> {
        if self.bool()? { take(self).map(Some) } else { Ok(None) }
    }

    pub(crate) fn finish(self) -> Result<(), Corrupt> {
        if self.0.is_empty() { Ok(()) } else { Err(Corrupt) }
    }
}
