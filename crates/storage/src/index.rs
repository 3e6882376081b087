//! The index of the log: where entries and bodies are. Rebuilt from the segments when the log is opened.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Range,
};

use bytes::Bytes;
use postroad_core::GroupId;

use crate::{EntryId, Record, log::GroupState, segment::SegmentId};

/// A range of a segment, and the checksum of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
    pub(crate) crc: u32,
}

/// The index of all groups of a node.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) groups: BTreeMap<GroupId, Group>,
    /// The highest entry of each group that each segment holds or replaces: it must be purged before the segment is
    /// freed. Without the segment that replaces it, an entry in an earlier one would be found again.
    pub(crate) highest: HashMap<SegmentId, BTreeMap<GroupId, u64>>,
    /// Count and bytes of the live bodies in each segment.
    pub(crate) live: HashMap<SegmentId, (u64, u64)>,
    /// Entries kept in memory, oldest first.
    tail: VecDeque<(GroupId, EntryId, usize)>,
    tail_bytes: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) vote: Option<Bytes>,
    pub(crate) purged: Option<EntryId>,
    /// The purge point that is on disk: only up to it may entries be freed.
    purged_durably: u64,
    /// Entries from the one after `purged` on, without a gap.
    entries: VecDeque<Entry>,
    /// The bytes of entries before the first.
    bytes_dropped: u64,
    /// Bodies on disk, of current and of purged entries.
    bodies: BTreeMap<(u64, u32), Location>,
}

#[derive(Debug)]
struct Entry {
    id: EntryId,
    kind: u8,
    bodies: u32,
    /// The bytes of heads and bodies of this entry and of those before it, so that a range needs no sum over its entries.
    bytes_through: u64,
    /// Set until it is evicted from memory.
    record: Option<Record>,
    /// Where the head is, once written.
    head: Option<Location>,
    /// The highest entry that it replaced, itself included.
    replaces: u64,
}

/// Where a record is read from.
pub(crate) enum RecordSource {
    Memory(Record),
    Disk { id: EntryId, kind: u8, head: Location, bodies: Vec<Location> },
}

impl Group {
    pub(crate) fn state(&self) -> GroupState {
        GroupState {
            vote: self.vote.clone(),
            purged: self.purged,
            last: self.entries.back().map(|entry| entry.id).or(self.purged),
            first_index: self.first_index(),
        }
    }

    fn first_index(&self) -> u64 {
        self.entries
            .front()
            .map(|entry| entry.id.index)
            .unwrap_or_else(|| self.purged.map_or(0, |purged| purged.index + 1))
    }

    fn position(&self, index: u64) -> Option<usize> {
        let position = usize::try_from(index.checked_sub(self.entries.front()?.id.index)?).ok()?;
        (position < self.entries.len()).then_some(position)
    }

    fn entry(&self, index: u64) -> Option<&Entry> {
        self.position(index).map(|position| &self.entries[position])
    }

    /// Returns true when entries between the purge point and the first entry are missing.
    pub(crate) fn has_gap(&self) -> bool {
        let next = self.purged.map_or(1, |purged| purged.index + 1);
        self.entries.front().is_some_and(|first| first.id.index > next)
    }

    pub(crate) fn entry_id(&self, index: u64) -> Option<EntryId> {
        self.entry(index).map(|entry| entry.id).or_else(|| self.purged.filter(|id| id.index == index))
    }

    /// Returns the sources of entries in `range`, up to `bytes_max` but at least one.
    pub(crate) fn sources(&self, range: Range<u64>, bytes_max: usize) -> Vec<RecordSource> {
        let mut bytes = 0;
        let mut sources = Vec::new();
        let first = range.start.max(self.first_index());
        for entry in (first..range.end).map_while(|index| self.entry(index)) {
            let Some(source) = self.source(entry) else { break };
            bytes += source.bytes();
            if bytes > bytes_max && !sources.is_empty() {
                break;
            }
            sources.push(source);
        }
        sources
    }

    fn source(&self, entry: &Entry) -> Option<RecordSource> {
        if let Some(record) = &entry.record {
            return Some(RecordSource::Memory(record.clone()));
        }
        let bodies = (0..entry.bodies).map(|slot| self.bodies.get(&(entry.id.index, slot)).copied());
        Some(RecordSource::Disk {
            id: entry.id,
            kind: entry.kind,
            head: entry.head?,
            bodies: bodies.collect::<Option<_>>()?,
        })
    }

    /// The newest entries are in memory, so the first of a range decides.
    pub(crate) fn is_in_memory(&self, range: Range<u64>) -> bool {
        self.entry(range.start.max(self.first_index())).is_none_or(|entry| entry.record.is_some())
    }

    pub(crate) fn bytes_from(&self, index: u64) -> u64 {
        let Some(first) = self.position(index.max(self.first_index())) else { return 0 };
        let before = first.checked_sub(1).map(|before| self.entries[before].bytes_through);
        self.bytes_through() - before.unwrap_or(self.bytes_dropped)
    }

    fn bytes_through(&self) -> u64 {
        self.entries.back().map_or(self.bytes_dropped, |entry| entry.bytes_through)
    }

    pub(crate) fn body_in_memory(&self, index: u64, slot: u32) -> Option<Bytes> {
        self.entry(index)?.record.as_ref()?.bodies.get(slot as usize).cloned()
    }

    pub(crate) fn body_location(&self, index: u64, slot: u32) -> Option<Location> {
        self.bodies.get(&(index, slot)).copied()
    }
}

impl RecordSource {
    fn bytes(&self) -> usize {
        match self {
            Self::Memory(record) => record.bytes(),
            Self::Disk { head, bodies, .. } => {
                head.bytes as usize + bodies.iter().map(|body| body.bytes as usize).sum::<usize>()
            }
        }
    }
}

impl Index {
    pub(crate) fn group(&mut self, group: GroupId) -> &mut Group {
        self.groups.entry(group).or_default()
    }

    /// Adds an entry, replacing those from its index on; it can be read at once.
    pub(crate) fn append(&mut self, group: GroupId, record: Record, tail_max: usize) {
        let (id, bytes) = (record.id, record.bytes());
        let replaces = self.truncate_after(group, id.index.checked_sub(1)).unwrap_or(0).max(id.index);
        let bodies = u32::try_from(record.bodies.len()).expect("an entry has a bounded number of bodies");
        let entry = Entry {
            id,
            kind: record.kind,
            bodies,
            bytes_through: self.group(group).bytes_through() + bytes as u64,
            record: Some(record),
            head: None,
            replaces,
        };
        self.group(group).entries.push_back(entry);
        self.tail.push_back((group, id, bytes));
        self.tail_bytes += bytes;
        self.evict(tail_max);
    }

    /// Evicts the oldest entries that are on disk from memory.
    fn evict(&mut self, tail_max: usize) {
        while self.tail_bytes > tail_max
            && let Some((group, id, bytes)) = self.tail.front().copied()
        {
            if let Some(position) = self.group(group).position(id.index)
                && let entry = &mut self.group(group).entries[position]
                && entry.id == id
            {
                if entry.head.is_none() {
                    return;
                }
                entry.record = None;
            }
            self.tail.pop_front();
            self.tail_bytes -= bytes;
        }
    }

    /// Records where an entry was written.
    pub(crate) fn set_location(&mut self, group: GroupId, id: EntryId, head: Location, bodies: &[Location]) {
        let replaces = self.group(group).entry(id.index).map_or(id.index, |entry| entry.replaces);
        self.note_highest(head.segment, group, replaces);
        let state = self.group(group);
        match state.position(id.index) {
            Some(position) if state.entries[position].id == id => state.entries[position].head = Some(head),
            // It was purged before it was written: its bodies may still be live.
            None if state.purged.is_some_and(|purged| id.index <= purged.index) => {}
            // Another entry has replaced it.
            _ => return,
        }
        for (slot, location) in (0..).zip(bodies) {
            self.set_body_location(group, (id.index, slot), *location);
        }
    }

    /// Records where a body is, replacing its earlier location.
    pub(crate) fn set_body_location(&mut self, group: GroupId, key: (u64, u32), location: Location) {
        if let Some(old) = self.group(group).bodies.insert(key, location) {
            self.forget(old);
        }
        let (count, bytes) = self.live.entry(location.segment).or_default();
        *count += 1;
        *bytes += u64::from(location.bytes);
    }

    /// Adds an entry found on disk.
    pub(crate) fn recover(
        &mut self,
        group: GroupId,
        id: EntryId,
        kind: u8,
        head: Location,
        bodies: &[Location],
    ) {
        let replaces = self.truncate_after(group, id.index.checked_sub(1)).unwrap_or(0).max(id.index);
        let state = self.group(group);
        if state.entries.back().is_some_and(|last| last.id.index + 1 != id.index) {
            // A segment in between was freed, so the earlier entries were purged.
            state.bytes_dropped = state.bytes_through();
            state.entries.clear();
        }
        let count = u32::try_from(bodies.len()).expect("an entry has a bounded number of bodies");
        let bytes: u64 = bodies.iter().chain([&head]).map(|location| u64::from(location.bytes)).sum();
        let bytes_through = state.bytes_through() + bytes;
        let entry =
            Entry { id, kind, bodies: count, bytes_through, record: None, head: Some(head), replaces };
        state.entries.push_back(entry);
        self.set_location(group, id, head, bodies);
    }

    /// Drops entries after `last_kept`; returns the highest that they are or have replaced.
    pub(crate) fn truncate_after(&mut self, group: GroupId, last_kept: Option<u64>) -> Option<u64> {
        let next = last_kept.map_or(0, |last| last + 1);
        let state = self.group(group);
        if state.entries.back().is_none_or(|entry| entry.id.index < next) {
            return None;
        }
        let keep = state.position(next).unwrap_or(0);
        let highest = state.entries.drain(keep..).map(|entry| entry.replaces).max();
        let gone = state.bodies.split_off(&(next, 0));
        gone.into_values().for_each(|location| self.forget(location));
        highest
    }

    /// Records that a segment holds an entry, or replaces it.
    pub(crate) fn note_highest(&mut self, segment: SegmentId, group: GroupId, index: u64) {
        let highest = self.highest.entry(segment).or_default().entry(group).or_default();
        *highest = index.max(*highest);
    }

    pub(crate) fn purge(&mut self, group: GroupId, upto: EntryId) {
        let state = self.group(group);
        if state.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        state.purged = Some(upto);
        while let Some(first) = state.entries.front().filter(|entry| entry.id.index <= upto.index) {
            state.bytes_dropped = first.bytes_through;
            state.entries.pop_front();
        }
    }

    /// Records that a purge point is on disk.
    pub(crate) fn purge_is_durable(&mut self, group: GroupId, upto: EntryId) {
        let state = self.group(group);
        state.purged_durably = state.purged_durably.max(upto.index);
    }

    /// Drops bodies of entries up to `upto` that are not in `live`, which is sorted.
    pub(crate) fn drop_dead_bodies(&mut self, group: GroupId, upto: u64, live: &[(u64, u32)]) {
        let mut dead = Vec::new();
        // A follower that is behind may still read whole entries that have not been purged.
        let upto = upto.min(self.group(group).purged.map_or(0, |purged| purged.index));
        self.group(group).bodies.retain(|key, location| {
            let keep = key.0 > upto || live.binary_search(key).is_ok();
            if !keep {
                dead.push(*location);
            }
            keep
        });
        dead.into_iter().for_each(|location| self.forget(location));
    }

    /// Returns the live bodies in a segment.
    pub(crate) fn bodies_in(&self, segment: SegmentId) -> Vec<(GroupId, (u64, u32), Location)> {
        let all = self
            .groups
            .iter()
            .flat_map(|(group, state)| state.bodies.iter().map(|(key, location)| (*group, *key, *location)));
        all.filter(|(_, _, location)| location.segment == segment).collect()
    }

    /// Returns true when every entry that a segment holds or replaces is durably purged, so that no group needs it even
    /// after a power cut.
    pub(crate) fn is_purged(&self, segment: SegmentId) -> bool {
        self.highest.get(&segment).is_none_or(|groups| {
            groups.iter().all(|(group, highest)| {
                self.groups.get(group).is_some_and(|state| state.purged_durably >= *highest)
            })
        })
    }

    fn forget(&mut self, location: Location) {
        if let Some((count, bytes)) = self.live.get_mut(&location.segment) {
            *count -= 1;
            *bytes -= u64::from(location.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::SegmentKind;

    const GROUP: GroupId = GroupId(1);
    const SEGMENT: SegmentId = SegmentId { number: 1, kind: SegmentKind::Entries };

    fn id(index: u64) -> EntryId {
        EntryId { term: 1, index }
    }

    fn append(index: &mut Index, at: u64, body: usize) {
        let bodies = vec![Bytes::from(vec![0; body])];
        let record = Record { id: id(at), kind: 0, head: Bytes::from_static(b"head"), bodies };
        index.append(GROUP, record, usize::MAX);
    }

    #[test]
    fn the_bytes_from_an_entry_on_are_those_of_the_entries_that_are_there() {
        let mut index = Index::default();
        let check = |index: &Index, expected: &[(u64, u64)]| {
            for (from, bytes) in expected {
                assert_eq!(index.groups[&GROUP].bytes_from(*from), *bytes, "from {from}");
            }
        };
        append(&mut index, 1, 100);
        append(&mut index, 2, 200);
        append(&mut index, 3, 300);
        check(&index, &[(0, 612), (1, 612), (2, 508), (3, 304), (4, 0), (9, 0)]);
        // Entry 2 is replaced, and 3 with it.
        append(&mut index, 2, 10);
        append(&mut index, 3, 20);
        check(&index, &[(1, 142), (2, 38), (3, 24), (4, 0)]);
        index.purge(GROUP, id(1));
        check(&index, &[(0, 38), (1, 38), (2, 38), (3, 24)]);
        append(&mut index, 2, 1000);
        check(&index, &[(2, 1004), (3, 0)]);
        index.purge(GROUP, id(2));
        check(&index, &[(1, 0), (3, 0)]);
        append(&mut index, 3, 6);
        check(&index, &[(1, 10), (3, 10)]);
        // Found on disk after a gap.
        let location = |bytes| Location { segment: SEGMENT, offset: 0, bytes, crc: 0 };
        index.recover(GROUP, id(7), 0, location(50), &[location(5)]);
        index.recover(GROUP, id(8), 0, location(7), &[]);
        check(&index, &[(0, 62), (7, 62), (8, 7), (9, 0)]);
    }
}
