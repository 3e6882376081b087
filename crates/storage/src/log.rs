//! The log of a node: entries, votes and bodies of all its groups, in one sequence of segments.
//!
//! Writes are queued: they can be read at once, and a callback says when they are durable.

use std::{
    io,
    ops::Range,
    sync::{Arc, atomic::AtomicU64},
};

use bytes::Bytes;
use parking_lot::Mutex;
use postroad_core::{ClusterId, GroupId, NodeId};

use crate::{
    Checkpoint, EntryId, Record, checkpoint,
    disk::{self, Disk, DiskId},
    fs::Fs,
    index::{Location, RecordSource},
    recovery,
    segment::{Segment, SegmentId, prepare, reserve, spare_name},
    shared::{Job, LogStats, RELAXED, Shared},
    writer::Writer,
};

/// Everything is written in multiples of this.
pub const BLOCK: usize = 4096;

/// Spare segments kept for a full disk: for votes, purge points and entries without bodies, which free space.
/// Each start begins a new segment, and the one before it is freed only some time later.
pub(crate) const RESERVE_SEGMENTS: usize = 4;

/// A file that is removed to make room for a checkpoint when the disk is full.
const CHECKPOINT_RESERVE: &str = "reserve";

/// Called once, on the writer's thread: must not block.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// The cluster and node that a log belongs to. The log of another is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

/// Sizes of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Bytes in one batch, unless one record is larger.
    pub batch_bytes_max: usize,
    /// Bytes of recent entries kept in memory.
    pub tail_bytes_max: usize,
    /// Spare segments kept besides the reserve.
    pub spares_max: usize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, batch_bytes_max: 4 << 20, tail_bytes_max: 128 << 20, spares_max: 4 }
    }
}

/// How much space the disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Enough.
    Plenty,
    /// Only the reserve, which is for writes that free space: no bodies should be written.
    Reserve,
    /// None: writes wait.
    None,
}

/// Why a log was not opened. It has not been changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An error of the operating system.
    #[error("cannot use the log directory")]
    Io(#[from] io::Error),
    /// It belongs to another cluster or node.
    #[error("the log belongs to cluster `{}`, node `{}`", .0.cluster, .0.node)]
    Foreign(Identity),
    /// It was written by another version.
    #[error("the log's format is `{0}`; this version knows 2")]
    Format(String),
    /// The directory was never formatted: the wrong directory, a volume that is not mounted, or a lost disk.
    #[error(
        "the log directory is not formatted: run `postroad cluster form` for a new cluster, or \
         `postroad cluster rejoin` if this node lost its disk"
    )]
    Unformatted,
    /// It is an old copy: other nodes have seen later acknowledgements of this node.
    #[error(
        "disk `{0}` holds less than this node acknowledged: move its files away and run `postroad cluster rejoin`"
    )]
    RolledBack(DiskId),
    /// Entries that were not purged are missing: this node must not vote.
    #[error("entries of group `{0}` are missing: a segment was deleted")]
    Missing(GroupId),
    /// Synced data is damaged: this node must not vote.
    #[error("segment `{segment}` is damaged at offset `{offset}`: {what}")]
    Damaged {
        /// The file.
        segment: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// A group's state in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// The last vote saved.
    pub vote: Option<Bytes>,
    /// The last entry that was purged.
    pub purged: Option<EntryId>,
    /// The last entry, or the last one purged.
    pub last: Option<EntryId>,
    /// The index of the first entry, or of the next one if there is none.
    pub first_index: u64,
}

/// A handle to the log; dropping the last one waits for the writer's thread.
#[derive(Clone)]
pub struct Log(Arc<Inner>);

struct Inner {
    fs: Arc<dyn Fs>,
    identity: Identity,
    disk: Disk,
    config: LogConfig,
    shared: Arc<Shared>,
    /// Dropped after the log has stopped.
    _writer: postroad_env::Running,
    /// Held while bodies are moved.
    release: Mutex<()>,
    /// Bytes of the file kept for a checkpoint; held while space is allocated.
    reserve: Mutex<u64>,
    /// Bytes of the largest checkpoint since the log was opened.
    checkpoint_bytes: AtomicU64,
}

impl Log {
    /// Opens the log of a formatted directory: everything synced is there, an unsynced tail is cut.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(fs: Arc<dyn Fs>, config: LogConfig, identity: Identity) -> Result<Self, OpenError> {
        fs.lock()?;
        let disk = disk::read(fs.as_ref(), identity)?;
        let found = recovery::read_segments(fs.as_ref(), identity)?;
        // What was read may be only in the page cache; it counts from now on, so make it durable.
        found.segments.values().try_for_each(|segment| segment.file.sync())?;
        let reserved = checkpoint_reserve(fs.as_ref())?;
        let newest = found.previous.map(|(number, _)| number);
        let shared = Shared::new(found.index, found.segments, found.spares, newest, config);
        let shared = Arc::new(shared);
        let writer = Writer::new(fs.clone(), shared.clone(), identity, found.next_number, found.previous);
        let writer = postroad_env::start("log-writer", writer)?;
        Ok(Self(Arc::new(Inner {
            fs,
            identity,
            disk,
            config,
            shared,
            _writer: writer,
            release: Mutex::new(()),
            reserve: Mutex::new(reserved),
            checkpoint_bytes: AtomicU64::new(0),
        })))
    }

    /// Returns a group's state.
    #[must_use]
    pub fn group(&self, group: GroupId) -> GroupState {
        self.0.shared.index.lock().groups.get(&group).map(crate::index::Group::state).unwrap_or_default()
    }

    /// Appends entries, replacing existing ones from the first one's index on.
    ///
    /// They can be read at once; `done` is called when they are durable.
    pub fn append(&self, group: GroupId, records: Vec<Record>, done: Done) {
        let mut index = self.0.shared.index.lock();
        for record in &records {
            index.append(group, record.clone(), self.0.config.tail_bytes_max);
        }
        // Under the lock, so that the order on disk is the order of the index.
        self.0.shared.enqueue(Job::Entries { group, records, done });
    }

    /// Saves a group's vote, in order with its entries.
    pub fn save_vote(&self, group: GroupId, vote: Bytes, done: Done) {
        let mut index = self.0.shared.index.lock();
        index.group(group).vote = Some(vote.clone());
        self.0.shared.enqueue(Job::Vote { group, vote, done });
    }

    /// Drops entries after `last_kept`; all if it is `None`.
    pub fn truncate_after(&self, group: GroupId, last_kept: Option<u64>) {
        let mut index = self.0.shared.index.lock();
        let highest = index.truncate_after(group, last_kept);
        self.0.shared.enqueue(Job::Truncate { group, last_kept, highest });
    }

    /// Drops entries up to and including `upto`, which a durable checkpoint covers. Their bodies stay until [`Log::release`].
    pub fn purge(&self, group: GroupId, upto: EntryId) {
        let mut index = self.0.shared.index.lock();
        index.purge(group, upto);
        self.0.shared.enqueue(Job::Purge { group, upto });
    }

    /// Returns the id of the entry at `index`, also of the last one purged.
    #[must_use]
    pub fn entry_id(&self, group: GroupId, index: u64) -> Option<EntryId> {
        self.0.shared.index.lock().groups.get(&group)?.entry_id(index)
    }

    /// Returns true when the entries of `range` are in memory.
    #[must_use]
    pub fn is_in_memory(&self, group: GroupId, range: Range<u64>) -> bool {
        self.0.shared.index.lock().groups.get(&group).is_none_or(|state| state.is_in_memory(range))
    }

    /// Returns the bytes of a group's entries from `index` on.
    #[must_use]
    pub fn bytes_from(&self, group: GroupId, index: u64) -> u64 {
        self.0.shared.index.lock().groups.get(&group).map_or(0, |state| state.bytes_from(index))
    }

    /// Reads the existing entries of `range`, up to `bytes_max` but at least one.
    ///
    /// # Errors
    /// The disk failed, or a checksum does not match.
    pub fn read(&self, group: GroupId, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Record>> {
        let index = self.0.shared.index.lock();
        let sources =
            index.groups.get(&group).map(|state| state.sources(range, bytes_max)).unwrap_or_default();
        drop(index);
        sources.into_iter().map(|source| self.record(source)).collect()
    }

    fn record(&self, source: RecordSource) -> io::Result<Record> {
        match source {
            RecordSource::Memory(record) => Ok(record),
            RecordSource::Disk { id, kind, head, bodies } => {
                let head = self.0.shared.read(head)?;
                let bodies = bodies.into_iter().map(|location| self.0.shared.read(location));
                Ok(Record { id, kind, head, bodies: bodies.collect::<io::Result<_>>()? })
            }
        }
    }

    /// Reads one body, of a current entry or of a purged one while the body is live.
    ///
    /// # Errors
    /// There is no such body, the disk failed, or the checksum does not match.
    pub fn body(&self, group: GroupId, index: u64, slot: u32) -> io::Result<Bytes> {
        let location = {
            let index_of_all = self.0.shared.index.lock();
            let state = index_of_all.groups.get(&group);
            if let Some(body) = state.and_then(|state| state.body_in_memory(index, slot)) {
                return Ok(body);
            }
            state.and_then(|state| state.body_location(index, slot))
        };
        match location {
            Some(location) => self.0.shared.read(location),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("no body `{index}/{slot}`"))),
        }
    }

    /// Returns a body if it is in memory.
    #[must_use]
    pub fn body_in_memory(&self, group: GroupId, index: u64, slot: u32) -> Option<Bytes> {
        self.0.shared.index.lock().groups.get(&group)?.body_in_memory(index, slot)
    }

    /// Stores the bodies of a snapshot, without their entries.
    pub fn put_bodies(&self, group: GroupId, bodies: Vec<(u64, u32, Bytes)>, done: Done) {
        self.0.shared.enqueue(Job::Bodies { group, bodies, moved: false, done });
    }

    /// Writes a checkpoint, replacing the one before; durable when this returns.
    ///
    /// # Errors
    /// The disk failed; the checkpoint before is still there.
    pub fn write_checkpoint(&self, group: GroupId, checkpoint: &Checkpoint) -> io::Result<()> {
        self.0.checkpoint_bytes.fetch_max(checkpoint.state.len() as u64, RELAXED);
        let write = || checkpoint::write(self.0.fs.as_ref(), self.0.identity, group, checkpoint);
        match write() {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.write_in_reserve(write).unwrap_or(Err(error))?;
            }
            written => written?,
        }
        self.0.shared.stats.checkpoints.fetch_add(1, RELAXED);
        Ok(())
    }

    /// Writes a checkpoint with the space of the reserve, and reserves again what the replaced one frees; `None` without a
    /// reserve.
    fn write_in_reserve(&self, write: impl Fn() -> io::Result<()>) -> Option<io::Result<()>> {
        let mut reserved = self.0.reserve.lock();
        if std::mem::take(&mut *reserved) == 0 {
            return None;
        }
        self.0.shared.set_low_on_space(true);
        let written = self.0.fs.remove(CHECKPOINT_RESERVE).and_then(|()| write());
        match self.prepare_checkpoint(&mut reserved) {
            Err(error) if error.kind() != io::ErrorKind::StorageFull => Some(Err(error)),
            _ => Some(written),
        }
    }

    /// Reads the last checkpoint of a group.
    ///
    /// # Errors
    /// The disk failed, or the checkpoint is damaged.
    pub fn load_checkpoint(&self, group: GroupId) -> io::Result<Option<Checkpoint>> {
        let checkpoint = checkpoint::read(self.0.fs.as_ref(), self.0.identity, group)?;
        let bytes = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.len() as u64);
        self.0.checkpoint_bytes.fetch_max(bytes, RELAXED);
        Ok(checkpoint)
    }

    /// Frees what a durable checkpoint of a group made unnecessary: bodies of entries up to `upto` that are not in `live`
    /// (sorted), and segments without live data. Moves the last live bodies out of a segment. Blocks.
    ///
    /// # Errors
    /// The disk failed; nothing that is needed was freed.
    pub fn release(&self, group: GroupId, upto: u64, live: &[(u64, u32)]) -> io::Result<()> {
        let _one_at_a_time = self.0.release.lock();
        self.0.shared.index.lock().drop_dead_bodies(group, upto, live);
        // Purge points must be on disk before the entries are freed.
        self.barrier()?;
        // An unreadable segment must not keep the others from being freed.
        self.0.shared.sealed().into_iter().map(|segment| self.free(segment)).fold(Ok(()), Result::and)
    }

    /// Frees a segment that is no longer needed, after moving its live bodies where there are few.
    fn free(&self, segment: SegmentId) -> io::Result<()> {
        let live_bodies = {
            let index = self.0.shared.index.lock();
            let alive = index.live.get(&segment).map_or(0, |(_, bytes)| *bytes);
            if !index.is_purged(segment) || alive * 2 > self.0.config.segment_bytes {
                return Ok(());
            }
            if alive == 0 { Vec::new() } else { index.bodies_in(segment) }
        };
        if !live_bodies.is_empty() {
            if !self.has_space_to_move() {
                return Ok(());
            }
            match self.move_bodies(live_bodies) {
                // Segments without live bodies give space first; this one is freed later.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                moved => moved?,
            }
        }
        let mut index = self.0.shared.index.lock();
        if index.live.get(&segment).is_some_and(|(count, _)| *count > 0) {
            return Ok(());
        }
        index.live.remove(&segment);
        index.highest.remove(&segment);
        drop(index);
        self.recycle(segment)
    }

    /// A move behind a writer that waits for space would wait too, and nothing would be freed meanwhile.
    fn has_space_to_move(&self) -> bool {
        match self.0.shared.room() {
            Room::Plenty => true,
            Room::Reserve => !self.0.shared.spares.lock().is_empty(),
            Room::None => false,
        }
    }

    fn move_bodies(&self, live_bodies: Vec<(GroupId, (u64, u32), Location)>) -> io::Result<()> {
        let mut by_group: std::collections::BTreeMap<GroupId, Vec<(u64, u32, Bytes)>> = Default::default();
        for (group, (index, slot), location) in live_bodies {
            let body = self.0.shared.read(location)?;
            self.0.shared.stats.survivor_bytes.fetch_add(body.len() as u64, RELAXED);
            by_group.entry(group).or_default().push((index, slot, body));
        }
        let (sender, results) = std::sync::mpsc::channel();
        let job = |(group, bodies)| {
            let sender = sender.clone();
            let done: Done = Box::new(move |moved| drop(sender.send(moved)));
            Job::Bodies { group, bodies, moved: true, done }
        };
        // All in a row: a write in between could wait for the space that the last of them frees.
        self.0.shared.enqueue_all(by_group.into_iter().map(job));
        drop(sender);
        std::iter::from_fn(|| postroad_env::receive(&results).ok()).collect()
    }

    fn recycle(&self, segment: SegmentId) -> io::Result<()> {
        let Some(Segment { id, .. }) = self.0.shared.take_sealed(segment) else { return Ok(()) };
        let mut spares = self.0.shared.spares.lock();
        if spares.len() < RESERVE_SEGMENTS + self.0.config.spares_max {
            self.0.fs.rename(&id.name(), &spare_name(id.number))?;
            spares.push(id.number);
        } else {
            self.0.fs.remove(&id.name())?;
        }
        self.0.shared.stats.recycled.fetch_add(1, RELAXED);
        drop(spares);
        self.0.fs.sync_dir()
    }

    /// Prepares the next segment and keeps the reserve filled; [`Log::room`] says whether that succeeded. Blocks.
    ///
    /// # Errors
    /// The disk failed; a full disk is no error.
    pub fn prepare(&self) -> io::Result<()> {
        let Some(mut reserved) = self.0.reserve.try_lock() else { return Ok(()) };
        // Space for a checkpoint first: a checkpoint frees segments.
        let prepared = self.prepare_checkpoint(&mut reserved).and_then(|()| self.prepare_segments());
        match prepared {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => self.0.shared.set_low_on_space(true),
            prepared => {
                prepared?;
                self.0.shared.set_low_on_space(false);
            }
        }
        Ok(())
    }

    fn prepare_segments(&self) -> io::Result<()> {
        let bytes = self.0.config.segment_bytes;
        loop {
            let there = self.0.shared.spares.lock().len();
            let make = match there {
                // The reserve need not be filled with zeros: its speed does not matter.
                0..RESERVE_SEGMENTS => reserve,
                RESERVE_SEGMENTS => prepare,
                _ => return Ok(()),
            };
            let number = self.0.shared.next_number();
            make(self.0.fs.as_ref(), &spare_name(number), bytes)?;
            self.0.shared.spares.lock().push(number);
        }
    }

    /// Reserves space for a checkpoint as large as the largest so far, then for a quarter more.
    fn prepare_checkpoint(&self, reserved: &mut u64) -> io::Result<()> {
        let largest = self.0.checkpoint_bytes.load(RELAXED);
        let least = largest + self.0.config.segment_bytes / 4;
        for wanted in [least, least + largest / 4] {
            if *reserved == 0 {
                reserve(self.0.fs.as_ref(), CHECKPOINT_RESERVE, wanted)?;
            } else if *reserved < wanted {
                self.0.fs.open(CHECKPOINT_RESERVE)?.allocate(wanted)?;
            }
            *reserved = wanted.max(*reserved);
        }
        Ok(())
    }

    /// Waits until all writes queued so far are durable.
    ///
    /// # Errors
    /// The writer has stopped, or waits for space: then they are still queued, and this is to be tried again.
    pub fn barrier(&self) -> io::Result<()> {
        self.wait(|done| self.0.shared.enqueue(Job::Barrier { done }))
    }

    fn wait(&self, start: impl FnOnce(Done)) -> io::Result<()> {
        let (sender, result) = std::sync::mpsc::channel();
        start(Box::new(move |written| {
            let _ = sender.send(written);
        }));
        postroad_env::receive(&result)
            .unwrap_or_else(|_| Err(io::Error::other("the log's writer has stopped")))
    }

    /// Returns how much space the disk had at the last allocation.
    #[must_use]
    pub fn room(&self) -> Room {
        self.0.shared.room()
    }

    /// Returns the counters.
    #[must_use]
    pub fn stats(&self) -> &LogStats {
        &self.0.shared.stats
    }

    /// Returns the cluster and node of the log.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.0.identity
    }

    /// Returns the disk's name, and what it was formatted for.
    #[must_use]
    pub fn disk(&self) -> Disk {
        self.0.disk
    }

    /// Marks the disk as rolled back, so that it is not opened again.
    ///
    /// # Errors
    /// The disk failed.
    pub fn mark_rolled_back(&self) -> io::Result<()> {
        disk::write_rolled_back(self.0.fs.as_ref(), self.0.identity, self.0.disk)
    }
}

/// Bytes that an earlier process reserved for a checkpoint.
fn checkpoint_reserve(fs: &dyn Fs) -> io::Result<u64> {
    if fs.list()?.iter().any(|name| name == CHECKPOINT_RESERVE) {
        return fs.open(CHECKPOINT_RESERVE)?.bytes();
    }
    Ok(0)
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("identity", &self.0.identity).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimFs;

    const IDENTITY: Identity = Identity { cluster: ClusterId(7), node: NodeId(1) };
    const CONFIG: LogConfig =
        LogConfig { segment_bytes: 64 << 10, batch_bytes_max: 32 << 10, tail_bytes_max: 0, spares_max: 1 };
    const PURGED: EntryId = EntryId { term: 1, index: 4 };

    fn open(fs: &SimFs) -> Log {
        // Formats only the first time.
        let _ = disk::format(fs, IDENTITY, Disk { id: DiskId(1), origin: disk::Origin::Form });
        Log::open(Arc::new(fs.clone()), CONFIG, IDENTITY).expect("the log opens")
    }

    fn append(log: &Log, index: u64) -> io::Result<()> {
        let id = EntryId { term: 1, index };
        let record = Record { id, kind: 1, head: Bytes::new(), bodies: vec![vec![7; 9000].into()] };
        log.wait(|done| log.append(GroupId(1), vec![record], done))
    }

    /// A log whose next entry needs a new segment, and whose only segment is needed just for the vote and purge point.
    fn before_a_new_segment(fs: &SimFs) -> Log {
        let log = open(fs);
        log.wait(|done| log.save_vote(GroupId(1), "vote".into(), done)).expect("the vote is saved");
        (1..=PURGED.index).for_each(|index| append(&log, index).expect("it is written"));
        log.purge(GroupId(1), PURGED);
        log.barrier().expect("the purge is written");
        log.0.shared.index.lock().drop_dead_bodies(GroupId(1), PURGED.index, &[]);
        log
    }

    fn free_all(log: &Log) {
        log.0.shared.sealed().into_iter().for_each(|segment| log.free(segment).expect("it is freed"));
    }

    #[test]
    fn r_22_power_may_fail_at_every_step_of_opening_a_segment_while_others_are_freed() {
        let (first, last) = {
            let fs = SimFs::default();
            let log = before_a_new_segment(&fs);
            let first = fs.operations();
            append(&log, PURGED.index + 1).expect("it is written");
            (first, fs.operations())
        };
        assert!(
            last - first >= 5,
            "opening a segment creates a file, allocates it, syncs the directory, writes and syncs"
        );
        for step in first..last {
            for reaches_disk in [false, true] {
                let fs = SimFs::default();
                let log = before_a_new_segment(&fs);
                fs.hold_at(step);
                let writing = {
                    let log = log.clone();
                    postroad_env::thread("append", move || append(&log, PURGED.index + 1)).unwrap()
                };
                fs.wait_until_held();
                free_all(&log);
                let after = open(&fs.power_cut(|| reaches_disk)).group(GroupId(1));
                fs.resume();
                writing.join().expect("the thread ends").expect("it is written");
                assert_eq!(after.vote, Some("vote".into()), "step {step}");
                assert_eq!(after.purged, Some(PURGED), "step {step}");
                // Once the new segment is open, the one before it may be freed.
                free_all(&log);
                assert_eq!(log.stats().recycled.load(RELAXED), 1, "step {step}");
                let after = open(&fs.power_cut(|| false)).group(GroupId(1));
                assert_eq!((after.vote, after.purged), (Some("vote".into()), Some(PURGED)), "step {step}");
            }
        }
    }

    #[test]
    fn r_22_a_restart_does_not_free_the_segment_with_the_votes() {
        let fs = SimFs::default();
        drop(before_a_new_segment(&fs));
        let log = open(&fs);
        log.release(GroupId(1), PURGED.index, &[]).expect("it is released");
        let after = open(&fs.power_cut(|| false)).group(GroupId(1));
        assert_eq!((after.vote, after.purged), (Some("vote".into()), Some(PURGED)));
    }

    #[test]
    fn r_22_entries_are_freed_only_once_their_purge_is_on_disk() {
        let fs = SimFs::default();
        let log = open(&fs);
        (1..=20).for_each(|index| append(&log, index).expect("it is written"));
        // As if another group's task freed segments before the writer wrote the purge.
        log.0.shared.index.lock().purge(GroupId(1), EntryId { term: 1, index: 20 });
        log.0.shared.index.lock().drop_dead_bodies(GroupId(1), 20, &[]);
        free_all(&log);
        let after = open(&fs.power_cut(|| false)).group(GroupId(1));
        assert_eq!(after.last, Some(EntryId { term: 1, index: 20 }));
    }
}
