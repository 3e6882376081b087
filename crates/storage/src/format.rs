//! The format of batches on disk.
//!
//! A segment is a sequence of batches, each at a multiple of 4 KiB.
//! A batch is a header, then the records without their bodies (the front), then the bodies, then zeros:
//! opening a log reads header and front of each batch and skips the rest.
//!
//! ```text
//! header   magic u32 · version u16 · zero u16 · generation u64 · cluster u64 · node u64 · offset u64
//!          synced u64 · front_bytes u32 · records u32 · bytes u64 · front_hash u64 · header_crc u32
//! record   kind u8 · user_kind u8 · group u16 · bodies u32 · term u64 · index u64 · head_bytes u32
//!          then (bytes u32 · crc u32) for each body, then the head
//! ```
//! All numbers are little endian. `generation` is the segment's number, which is never reused, so the earlier batches of a
//! recycled segment are not taken for its own. `synced` is the offset below which everything had been synced before the
//! batch was written: only batches at or above the last batch's `synced` can be an unsynced tail.

use bytes::{BufMut, Bytes};
use postroad_core::GroupId;

use crate::{EntryId, log::Identity};

pub(crate) const MAGIC: u32 = 0x3147_4c50;
pub(crate) const VERSION: u16 = 1;
pub(crate) const HEADER_BYTES: usize = 76;
const RECORD_BYTES: usize = 28;

/// The kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// An entry; `user_kind` is its kind.
    Entry = 1,
    /// A vote; it is the head.
    Vote = 2,
    /// Entries after `index` are dropped; all are if `term` is 0.
    Truncate = 3,
    /// Entries up to `index` are no longer needed.
    Purge = 4,
    /// The first record of a segment: the segment before it has number `term` and is valid up to offset `index`.
    Previous = 5,
    /// A moved body: entry `index`, slot `term`.
    Body = 6,
}

impl Kind {
    fn from_code(code: u8) -> Option<Self> {
        [Self::Entry, Self::Vote, Self::Truncate, Self::Purge, Self::Previous, Self::Body]
            .into_iter()
            .find(|kind| *kind as u8 == code)
    }
}

/// A batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) generation: u64,
    pub(crate) identity: Identity,
    pub(crate) offset: u64,
    pub(crate) synced: u64,
    pub(crate) front_bytes: u32,
    pub(crate) records: u32,
    /// Including the header, without the zeros at the end.
    pub(crate) bytes: u64,
    pub(crate) front_hash: u64,
}

impl BatchHeader {
    pub(crate) fn put(&self, mut out: &mut [u8]) {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.put_u32_le(MAGIC);
        bytes.put_u16_le(VERSION);
        bytes.put_u16_le(0);
        bytes.put_u64_le(self.generation);
        bytes.put_u64_le(self.identity.cluster.0);
        bytes.put_u64_le(self.identity.node.0);
        bytes.put_u64_le(self.offset);
        bytes.put_u64_le(self.synced);
        bytes.put_u32_le(self.front_bytes);
        bytes.put_u32_le(self.records);
        bytes.put_u64_le(self.bytes);
        bytes.put_u64_le(self.front_hash);
        let crc = crc32fast::hash(&bytes);
        bytes.put_u32_le(crc);
        out.put_slice(&bytes);
    }

    /// Reads a header; `None` if the bytes are not one.
    pub(crate) fn take(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let (fields, crc) = bytes.split_at(HEADER_BYTES - 4);
        let mut from = Take(fields);
        if crc != crc32fast::hash(fields).to_le_bytes() || from.u32()? != MAGIC || from.u16()? != VERSION {
            return None;
        }
        from.u16()?;
        Some(Self {
            generation: from.u64()?,
            identity: Identity {
                cluster: postroad_core::ClusterId(from.u64()?),
                node: postroad_core::NodeId(from.u64()?),
            },
            offset: from.u64()?,
            synced: from.u64()?,
            front_bytes: from.u32()?,
            records: from.u32()?,
            bytes: from.u64()?,
            front_hash: from.u64()?,
        })
    }
}

/// A record in the front of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordFront {
    pub(crate) kind: Kind,
    pub(crate) user_kind: u8,
    pub(crate) group: GroupId,
    pub(crate) id: EntryId,
    pub(crate) head: Bytes,
    /// Length and checksum of each body.
    pub(crate) bodies: Vec<(u32, u32)>,
}

impl RecordFront {
    pub(crate) fn bytes(&self) -> usize {
        RECORD_BYTES + self.bodies.len() * 8 + self.head.len()
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_u8(self.kind as u8);
        out.put_u8(self.user_kind);
        out.put_u16_le(self.group.0);
        out.put_u32_le(u32::try_from(self.bodies.len()).expect("an entry has a bounded number of bodies"));
        out.put_u64_le(self.id.term);
        out.put_u64_le(self.id.index);
        out.put_u32_le(u32::try_from(self.head.len()).expect("a head is bounded"));
        for (bytes, crc) in &self.bodies {
            out.put_u32_le(*bytes);
            out.put_u32_le(*crc);
        }
        out.put_slice(&self.head);
    }
}

/// Reads the front of a batch; `None` if it is not exactly `records` records.
pub(crate) fn take_front(front: &Bytes, records: u32) -> Option<Vec<RecordFront>> {
    let mut from = Take(front);
    let mut all = Vec::with_capacity((records as usize).min(front.len() / RECORD_BYTES));
    for _ in 0..records {
        let (kind, user_kind) = (Kind::from_code(from.u8()?)?, from.u8()?);
        let group = GroupId(from.u16()?);
        let bodies = from.u32()?;
        let id = EntryId { term: from.u64()?, index: from.u64()? };
        let head_bytes = from.u32()? as usize;
        let bodies = (0..bodies).map(|_| Some((from.u32()?, from.u32()?))).collect::<Option<Vec<_>>>()?;
        let head = front.slice_ref(from.slice(head_bytes)?);
        all.push(RecordFront { kind, user_kind, group, id, head, bodies });
    }
    from.0.is_empty().then_some(all)
}

/// Reads numbers from the front of a slice.
struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    fn slice(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.slice(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
