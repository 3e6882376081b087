//! Records that are written and synced together, and where each will be found.

use std::io;

use bytes::Bytes;
use postroad_core::GroupId;

use crate::{
    EntryId,
    format::{HEADER_BYTES, Kind, RecordFront},
    index::Location,
    log::Done,
    segment::{SegmentId, SegmentKind, round_up},
    shared::stopped,
};

/// Records for a segment of one kind, and whom to call when they are durable.
pub(crate) struct Batch {
    pub(crate) kind: SegmentKind,
    pub(crate) records: Vec<(RecordFront, Vec<Bytes>)>,
    /// The highest entry that a truncation in the batch drops, by group.
    pub(crate) truncated: Vec<(GroupId, u64)>,
    /// The bytes of the records, without the header of the batch.
    pub(crate) bytes: u64,
    /// Whose records are all in this batch and those before.
    pub(crate) done: Vec<Done>,
    /// Who waits for all writes until here.
    pub(crate) barriers: Vec<Done>,
    /// The bodies are moved, so that their segments can be freed.
    pub(crate) moved: bool,
    /// The first of the bodies belong to a job that began in the batch before.
    pub(crate) continues: bool,
}

impl Batch {
    pub(crate) fn new(kind: SegmentKind) -> Self {
        Self {
            kind,
            records: Vec::new(),
            truncated: Vec::new(),
            bytes: 0,
            done: Vec::new(),
            barriers: Vec::new(),
            moved: false,
            continues: false,
        }
    }

    /// Whether there is nothing to write and nobody to call.
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.done.is_empty() && self.barriers.is_empty()
    }

    /// Fails the callbacks: the batch is not written.
    pub(crate) fn fail(&mut self, error: &io::Error) {
        let all = self.done.drain(..).chain(self.barriers.drain(..));
        all.for_each(|done| done(Err(io::Error::new(error.kind(), error.to_string()))));
    }

    pub(crate) fn push(&mut self, front: RecordFront, bodies: Vec<Bytes>) {
        self.bytes += record_bytes(&front);
        self.records.push((front, bodies));
    }

    /// Puts records in front of those that are there.
    pub(crate) fn prepend(&mut self, first: impl IntoIterator<Item = RecordFront>) {
        let later = std::mem::take(&mut self.records);
        for front in first {
            self.push(front, Vec::new());
        }
        self.records.extend(later);
    }

    /// Whether one more record makes the batch longer than `limit` bytes; an empty batch takes any.
    pub(crate) fn overflows(&self, front: &RecordFront, limit: u64) -> bool {
        !self.records.is_empty() && self.bytes + record_bytes(front) > limit
    }

    /// The bytes on disk: with the header, in whole blocks.
    pub(crate) fn disk_bytes(&self) -> u64 {
        round_up(HEADER_BYTES as u64 + self.bytes)
    }

    /// Empties the batch into a new one.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(self.kind))
    }
}

impl Drop for Batch {
    /// A batch that is dropped was not written: fails its callbacks.
    fn drop(&mut self) {
        self.fail(&stopped());
    }
}

fn record_bytes(front: &RecordFront) -> u64 {
    front.bytes() as u64 + front.bodies.iter().map(|(bytes, _)| u64::from(*bytes)).sum::<u64>()
}

/// Iterates over the locations of the head and the bodies of each record of a batch.
pub(crate) struct Locations<I> {
    segment: SegmentId,
    fronts: I,
    next_head: u64,
    next_body: u64,
}

impl<'a, I: Iterator<Item = &'a RecordFront> + Clone> Locations<I> {
    /// For a batch that begins at `start`.
    pub(crate) fn new(segment: SegmentId, start: u64, fronts: I) -> Self {
        let next_head = start + HEADER_BYTES as u64;
        let front_bytes: usize = fronts.clone().map(RecordFront::bytes).sum();
        Self { segment, fronts, next_head, next_body: next_head + front_bytes as u64 }
    }
}

impl<'a, I: Iterator<Item = &'a RecordFront>> Iterator for Locations<I> {
    type Item = (Location, Vec<Location>);

    fn next(&mut self) -> Option<Self::Item> {
        let front = self.fronts.next()?;
        self.next_head += front.bytes() as u64;
        let head = Location {
            segment: self.segment,
            offset: self.next_head - front.head.len() as u64,
            bytes: length(&front.head),
            crc: crc32fast::hash(&front.head),
        };
        let bodies = front.bodies.iter().map(|(bytes, crc)| {
            let location =
                Location { segment: self.segment, offset: self.next_body, bytes: *bytes, crc: *crc };
            self.next_body += u64::from(*bytes);
            location
        });
        Some((head, bodies.collect()))
    }
}

pub(crate) fn length(bytes: &Bytes) -> u32 {
    u32::try_from(bytes.len()).expect("heads and bodies are bounded")
}

pub(crate) fn front(kind: Kind, user_kind: u8, group: GroupId, id: EntryId) -> RecordFront {
    RecordFront { kind, user_kind, group, id, head: Bytes::new(), bodies: Vec::new() }
}

pub(crate) fn vote_front(group: GroupId, vote: Bytes) -> RecordFront {
    RecordFront { head: vote, ..front(Kind::Vote, 0, group, EntryId::default()) }
}
