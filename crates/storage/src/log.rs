//! The log of a node: entries, votes and bodies of all its groups, in one sequence of segments.
//!
//! Handing something over only enqueues it; it can be read at once, and its callback says when it is durable.

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
    index::{Place, Source},
    recovery,
    segment::{Segment, SegmentId, prepare, reserve, spare_name},
    writer::{self, Job, LogStats, Writer},
};

/// Everything is written in multiples of this.
pub const BLOCK: usize = 4096;

/// Segments kept for what frees room when the disk has none: the votes, the entries without bodies and the purge points
/// of a node that is full. Each start begins a new segment, and only some time later is the one before it free.
pub(crate) const RESERVE_SEGMENTS: usize = 4;

/// A file that gives its room to a checkpoint when the disk has none.
const CHECKPOINT_RESERVE: &str = "reserve";

/// Called once, by the writer's thread: it must not wait.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Whose log it is. One of another cluster or node is refused.
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
    /// Segments kept to be used again, besides those in reserve.
    pub spares_max: usize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, batch_bytes_max: 4 << 20, tail_bytes_max: 128 << 20, spares_max: 4 }
    }
}

/// How much room the disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Enough.
    Plenty,
    /// What is left is for what frees room: no body should be handed over.
    Reserve,
    /// None: what is handed over waits.
    None,
}

/// Why a log was not opened. It has not been changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The operating system said no.
    #[error("the log directory cannot be used")]
    Io(#[from] io::Error),
    /// It belongs to another cluster or node.
    #[error("the log belongs to cluster `{}`, node `{}`", .0.cluster, .0.node)]
    Foreign(Identity),
    /// It was written by another version.
    #[error("the log's format is `{0}`; this version knows 2")]
    Format(String),
    /// Nobody said what the directory is for: it may be the wrong one, or the disk was lost.
    #[error(
        "the log directory was not formatted: `postroad cluster form` makes it one of a new cluster, \
         `postroad cluster rejoin` that of a node whose disk was lost"
    )]
    Unformatted,
    /// It is an old copy: others remember what this node has forgotten.
    #[error(
        "disk `{0}` holds less than this node once acknowledged: move it away and use `postroad cluster rejoin`"
    )]
    RolledBack(DiskId),
    /// Entries that were not purged are in no segment: this node must not vote.
    #[error("entries of group `{0}` are missing: a segment is gone")]
    Missing(GroupId),
    /// Something that had been synced is not there any more: this node must not vote.
    #[error("segment `{segment}` is damaged at offset `{offset}`: {what}")]
    Damaged {
        /// The file.
        segment: String,
        /// Where in it.
        offset: u64,
        /// What does not check.
        what: &'static str,
    },
}

/// What the log knows of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// The last vote saved.
    pub vote: Option<Bytes>,
    /// The last entry that was purged.
    pub purged: Option<EntryId>,
    /// The last entry, or the last one purged.
    pub last: Option<EntryId>,
    /// The index of the first entry there is, or that the next one will have.
    pub first_index: u64,
}

/// A handle to the log; the last one to go waits for the writer's thread.
#[derive(Clone)]
pub struct Log(Arc<Inner>);

struct Inner {
    fs: Arc<dyn Fs>,
    identity: Identity,
    disk: Disk,
    config: LogConfig,
    shared: Arc<writer::Shared>,
    writer: Option<std::thread::JoinHandle<()>>,
    /// One at a time moves survivors.
    release: Mutex<()>,
    /// One at a time asks for room; bytes of the file that is kept for a checkpoint.
    reserve: Mutex<u64>,
    /// Bytes of the largest checkpoint since the log was opened.
    checkpoint_bytes: AtomicU64,
}

impl Log {
    /// Opens the log of a directory that was formatted; what was not synced is cut, and everything that was is there.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(fs: Arc<dyn Fs>, config: LogConfig, identity: Identity) -> Result<Self, OpenError> {
        fs.lock()?;
        let disk = disk::read(fs.as_ref(), identity)?;
        let found = recovery::read_segments(fs.as_ref(), identity)?;
        // What was read may have been in the system's cache only: it counts from now on, so it must be durable.
        found.segments.values().try_for_each(|segment| segment.file.sync())?;
        let reserved = checkpoint_reserve(fs.as_ref())?;
        let newest = found.previous.map(|(number, _)| number);
        let shared = writer::Shared::new(found.index, found.segments, found.spares, newest, config);
        let shared = Arc::new(shared);
        let writer = Writer::new(fs.clone(), shared.clone(), identity, found.next_number, found.previous);
        let writer = std::thread::Builder::new().name("log-writer".into()).spawn(move || writer.run())?;
        Ok(Self(Arc::new(Inner {
            fs,
            identity,
            disk,
            config,
            shared,
            writer: Some(writer),
            release: Mutex::new(()),
            reserve: Mutex::new(reserved),
            checkpoint_bytes: AtomicU64::new(0),
        })))
    }

    /// Returns what is known of a group.
    #[must_use]
    pub fn group(&self, group: GroupId) -> GroupState {
        self.0.shared.index.lock().groups.get(&group).map(crate::index::Group::state).unwrap_or_default()
    }

    /// Adds entries, which replace those there are from the first one's index on.
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

    /// Drops entries after `last_kept`, or all.
    pub fn truncate_after(&self, group: GroupId, last_kept: Option<u64>) {
        let mut index = self.0.shared.index.lock();
        index.truncate_after(group, last_kept);
        self.0.shared.enqueue(Job::Truncate { group, last_kept });
    }

    /// Drops entries up to and including `upto`, which a durable checkpoint covers. Their bodies stay until [`Log::release`].
    pub fn purge(&self, group: GroupId, upto: EntryId) {
        let mut index = self.0.shared.index.lock();
        index.purge(group, upto);
        self.0.shared.enqueue(Job::Purge { group, upto });
    }

    /// Returns the entry at `index`, also if it was the last one purged.
    #[must_use]
    pub fn entry_id(&self, group: GroupId, index: u64) -> Option<EntryId> {
        self.0.shared.index.lock().groups.get(&group)?.entry_id(index)
    }

    /// Returns true when entries of `range` that are there can be read without the disk.
    #[must_use]
    pub fn is_in_memory(&self, group: GroupId, range: Range<u64>) -> bool {
        self.0.shared.index.lock().groups.get(&group).is_none_or(|state| state.is_in_memory(range))
    }

    /// Returns the bytes of a group's entries from `index` on.
    #[must_use]
    pub fn bytes_from(&self, group: GroupId, index: u64) -> u64 {
        self.0.shared.index.lock().groups.get(&group).map_or(0, |state| state.bytes_from(index))
    }

    /// Reads entries of `range` that are there, up to `bytes_max` but at least one.
    ///
    /// # Errors
    /// The disk failed, or what is on it does not check.
    pub fn read(&self, group: GroupId, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Record>> {
        let index = self.0.shared.index.lock();
        let sources =
            index.groups.get(&group).map(|state| state.sources(range, bytes_max)).unwrap_or_default();
        drop(index);
        sources.into_iter().map(|source| self.record(source)).collect()
    }

    fn record(&self, source: Source) -> io::Result<Record> {
        match source {
            Source::Memory(record) => Ok(record),
            Source::Disk { id, kind, head, bodies } => {
                let head = self.0.shared.read(head)?;
                let bodies = bodies.into_iter().map(|place| self.0.shared.read(place));
                Ok(Record { id, kind, head, bodies: bodies.collect::<io::Result<_>>()? })
            }
        }
    }

    /// Reads one body, of an entry that is there or of one that was purged while the body is alive.
    ///
    /// # Errors
    /// There is no such body, the disk failed, or what is on it does not check.
    pub fn body(&self, group: GroupId, index: u64, slot: u32) -> io::Result<Bytes> {
        let place = {
            let index_of_all = self.0.shared.index.lock();
            let state = index_of_all.groups.get(&group);
            if let Some(body) = state.and_then(|state| state.body_in_memory(index, slot)) {
                return Ok(body);
            }
            state.and_then(|state| state.body_place(index, slot))
        };
        match place {
            Some(place) => self.0.shared.read(place),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("no body `{index}/{slot}`"))),
        }
    }

    /// Returns a body if it can be had without the disk.
    #[must_use]
    pub fn body_in_memory(&self, group: GroupId, index: u64, slot: u32) -> Option<Bytes> {
        self.0.shared.index.lock().groups.get(&group)?.body_in_memory(index, slot)
    }

    /// Stores bodies without their entries, as a snapshot brings them.
    pub fn put_bodies(&self, group: GroupId, bodies: Vec<(u64, u32, Bytes)>, done: Done) {
        self.0.shared.enqueue(Job::Bodies { group, bodies, moved: false, done });
    }

    /// Writes a checkpoint: durable when this returns, and the one before it is gone.
    ///
    /// # Errors
    /// The disk failed; the one before is still there.
    pub fn write_checkpoint(&self, group: GroupId, checkpoint: &Checkpoint) -> io::Result<()> {
        self.0.checkpoint_bytes.fetch_max(checkpoint.state.len() as u64, writer::RELAXED);
        let write = || checkpoint::write(self.0.fs.as_ref(), self.0.identity, group, checkpoint);
        match write() {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.in_reserve(write).unwrap_or(Err(error))
            }
            written => written,
        }
    }

    /// Writes a checkpoint into the room that was kept for it, and keeps what the one before leaves; `None` when there is
    /// no such room.
    fn in_reserve(&self, write: impl Fn() -> io::Result<()>) -> Option<io::Result<()>> {
        let mut reserved = self.0.reserve.lock();
        if std::mem::take(&mut *reserved) == 0 {
            return None;
        }
        self.0.shared.set_starved(true);
        let written = self.0.fs.remove(CHECKPOINT_RESERVE).and_then(|()| write());
        match self.prepare_checkpoint(&mut reserved) {
            Err(error) if error.kind() != io::ErrorKind::StorageFull => Some(Err(error)),
            _ => Some(written),
        }
    }

    /// Reads the last checkpoint of a group.
    ///
    /// # Errors
    /// The disk failed, or the checkpoint does not check.
    pub fn load_checkpoint(&self, group: GroupId) -> io::Result<Option<Checkpoint>> {
        let checkpoint = checkpoint::read(self.0.fs.as_ref(), self.0.identity, group)?;
        let bytes = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.len() as u64);
        self.0.checkpoint_bytes.fetch_max(bytes, writer::RELAXED);
        Ok(checkpoint)
    }

    /// Frees what a durable checkpoint of a group has made unnecessary: bodies of entries up to `upto` that are not among
    /// `live` (sorted), and segments in which nothing is needed. Bodies that outlive their segment are moved. Blocks.
    ///
    /// # Errors
    /// The disk failed; nothing that is needed has gone.
    pub fn release(&self, group: GroupId, upto: u64, live: &[(u64, u32)]) -> io::Result<()> {
        let _one_at_a_time = self.0.release.lock();
        self.0.shared.index.lock().keep_only(group, upto, live);
        // Purges are on disk before what they covered goes.
        self.barrier()?;
        // One segment that cannot be read must not keep all others.
        self.0.shared.sealed().into_iter().map(|segment| self.free(segment)).fold(Ok(()), Result::and)
    }

    /// Frees a segment if nothing holds it, moving bodies first where few are left.
    fn free(&self, segment: SegmentId) -> io::Result<()> {
        let survivors = {
            let index = self.0.shared.index.lock();
            let alive = index.alive.get(&segment).map_or(0, |(_, bytes)| *bytes);
            if !index.is_purged(segment) || alive * 2 > self.0.config.segment_bytes {
                return Ok(());
            }
            if alive == 0 { Vec::new() } else { index.bodies_in(segment) }
        };
        if !survivors.is_empty() {
            if !self.has_room_to_move() {
                return Ok(());
            }
            match self.move_bodies(survivors) {
                // Segments without survivors give room; this one goes later.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                moved => moved?,
            }
        }
        let mut index = self.0.shared.index.lock();
        if index.alive.get(&segment).is_some_and(|(count, _)| *count > 0) {
            return Ok(());
        }
        index.alive.remove(&segment);
        index.highest.remove(&segment);
        drop(index);
        self.recycle(segment)
    }

    /// Behind a writer that waits for room a move would wait too, and nothing be freed meanwhile.
    fn has_room_to_move(&self) -> bool {
        match self.0.shared.room() {
            Room::Plenty => true,
            Room::Reserve => !self.0.shared.spares.lock().is_empty(),
            Room::None => false,
        }
    }

    fn move_bodies(&self, survivors: Vec<(GroupId, (u64, u32), Place)>) -> io::Result<()> {
        let mut by_group: std::collections::BTreeMap<GroupId, Vec<(u64, u32, Bytes)>> = Default::default();
        for (group, (index, slot), place) in survivors {
            let body = self.0.shared.read(place)?;
            self.0.shared.stats.survivor_bytes.fetch_add(body.len() as u64, writer::RELAXED);
            by_group.entry(group).or_default().push((index, slot, body));
        }
        let (sender, results) = std::sync::mpsc::channel();
        let job = |(group, bodies)| {
            let sender = sender.clone();
            let done: Done = Box::new(move |moved| drop(sender.send(moved)));
            Job::Bodies { group, bodies, moved: true, done }
        };
        // All at once: what came between could wait for the room that the last of them gives.
        self.0.shared.enqueue_all(by_group.into_iter().map(job));
        drop(sender);
        results.into_iter().collect()
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
        self.0.shared.stats.recycled.fetch_add(1, writer::RELAXED);
        drop(spares);
        self.0.fs.sync_dir()
    }

    /// Makes sure that a segment is at hand when the current one is full, and keeps the reserve; whether that succeeds is
    /// what [`Log::room`] says. Blocks.
    ///
    /// # Errors
    /// The disk failed; that it is full is none.
    pub fn prepare(&self) -> io::Result<()> {
        let Some(mut reserved) = self.0.reserve.try_lock() else { return Ok(()) };
        // The room of a checkpoint first: segments come back by themselves once there is one.
        let prepared = self.prepare_checkpoint(&mut reserved).and_then(|()| self.prepare_segments());
        match prepared {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => self.0.shared.set_starved(true),
            prepared => {
                prepared?;
                self.0.shared.set_starved(false);
            }
        }
        Ok(())
    }

    fn prepare_segments(&self) -> io::Result<()> {
        let bytes = self.0.config.segment_bytes;
        loop {
            let there = self.0.shared.spares.lock().len();
            let make = match there {
                // Nobody waits for these to be quick.
                0..RESERVE_SEGMENTS => reserve,
                RESERVE_SEGMENTS => prepare,
                _ => return Ok(()),
            };
            let number = self.0.shared.next_number();
            make(self.0.fs.as_ref(), &spare_name(number), bytes)?;
            self.0.shared.spares.lock().push(number);
        }
    }

    /// Room for a checkpoint as large as the largest, then for one that is larger by a quarter.
    fn prepare_checkpoint(&self, reserved: &mut u64) -> io::Result<()> {
        let largest = self.0.checkpoint_bytes.load(writer::RELAXED);
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

    /// Waits until everything handed over so far is durable.
    ///
    /// # Errors
    /// The writer has stopped.
    pub fn barrier(&self) -> io::Result<()> {
        self.wait(|done| self.0.shared.enqueue(Job::Barrier { done }))
    }

    fn wait(&self, start: impl FnOnce(Done)) -> io::Result<()> {
        let (sender, result) = std::sync::mpsc::channel();
        start(Box::new(move |written| {
            let _ = sender.send(written);
        }));
        result.recv().unwrap_or_else(|_| Err(io::Error::other("the log's writer has stopped")))
    }

    /// Returns how much room the disk had when it was last asked for some.
    #[must_use]
    pub fn room(&self) -> Room {
        self.0.shared.room()
    }

    /// Returns the counters.
    #[must_use]
    pub fn stats(&self) -> &LogStats {
        &self.0.shared.stats
    }

    /// Returns whose log it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.0.identity
    }

    /// Returns the name of the disk it is on, and what that was formatted for.
    #[must_use]
    pub fn disk(&self) -> Disk {
        self.0.disk
    }

    /// Writes down that the disk holds less than this node once acknowledged: it is not opened again.
    ///
    /// # Errors
    /// The disk failed.
    pub fn mark_rolled_back(&self) -> io::Result<()> {
        disk::write_rolled_back(self.0.fs.as_ref(), self.0.identity, self.0.disk)
    }
}

/// Bytes that an earlier run kept for a checkpoint.
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
        if let Some(writer) = self.writer.take() {
            // A callback may hold the last handle: the writer's thread cannot wait for itself.
            if writer.thread().id() != std::thread::current().id() {
                let _ = writer.join();
            }
        }
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
        // Only the first time: what holds a log is not formatted.
        let _ = disk::format(fs, IDENTITY, Disk { id: DiskId(1), origin: disk::Origin::Form });
        Log::open(Arc::new(fs.clone()), CONFIG, IDENTITY).expect("the log opens")
    }

    fn append(log: &Log, index: u64) -> io::Result<()> {
        let id = EntryId { term: 1, index };
        let record = Record { id, kind: 1, head: Bytes::new(), bodies: vec![vec![7; 9000].into()] };
        log.wait(|done| log.append(GroupId(1), vec![record], done))
    }

    /// A log whose next entry needs a new segment, and which needs nothing of its only one but the vote and purge point.
    fn before_a_roll(fs: &SimFs) -> Log {
        let log = open(fs);
        log.wait(|done| log.save_vote(GroupId(1), "vote".into(), done)).expect("the vote is saved");
        (1..=PURGED.index).for_each(|index| append(&log, index).expect("it is written"));
        log.purge(GroupId(1), PURGED);
        log.barrier().expect("the purge is written");
        log.0.shared.index.lock().keep_only(GroupId(1), PURGED.index, &[]);
        log
    }

    fn free_all(log: &Log) {
        log.0.shared.sealed().into_iter().for_each(|segment| log.free(segment).expect("it is freed"));
    }

    #[test]
    fn r_22_power_may_go_at_every_step_of_a_roll_with_others_freeing_meanwhile() {
        let (first, last) = {
            let fs = SimFs::default();
            let log = before_a_roll(&fs);
            let first = fs.operations();
            append(&log, PURGED.index + 1).expect("it is written");
            (first, fs.operations())
        };
        assert!(last - first >= 5, "a roll makes a file, gives it room, syncs its name, writes and syncs");
        for step in first..last {
            for reaches_disk in [false, true] {
                let fs = SimFs::default();
                let log = before_a_roll(&fs);
                fs.hold_at(step);
                let writing = {
                    let log = log.clone();
                    std::thread::spawn(move || append(&log, PURGED.index + 1))
                };
                fs.wait_until_held();
                free_all(&log);
                let after = open(&fs.power_cut(|| reaches_disk)).group(GroupId(1));
                fs.let_go();
                writing.join().expect("the thread ends").expect("it is written");
                assert_eq!(after.vote, Some("vote".into()), "step {step}");
                assert_eq!(after.purged, Some(PURGED), "step {step}");
                // Once the roll is over, the segment before it may go.
                free_all(&log);
                assert_eq!(log.stats().recycled.load(writer::RELAXED), 1, "step {step}");
                let after = open(&fs.power_cut(|| false)).group(GroupId(1));
                assert_eq!((after.vote, after.purged), (Some("vote".into()), Some(PURGED)), "step {step}");
            }
        }
    }

    #[test]
    fn r_22_a_restart_does_not_free_the_segment_with_the_votes() {
        let fs = SimFs::default();
        drop(before_a_roll(&fs));
        let log = open(&fs);
        log.release(GroupId(1), PURGED.index, &[]).expect("it is released");
        let after = open(&fs.power_cut(|| false)).group(GroupId(1));
        assert_eq!((after.vote, after.purged), (Some("vote".into()), Some(PURGED)));
    }

    #[test]
    fn r_22_entries_go_only_once_their_purge_is_on_disk() {
        let fs = SimFs::default();
        let log = open(&fs);
        (1..=20).for_each(|index| append(&log, index).expect("it is written"));
        // As another group's task sees it that frees segments before the writer comes to the purge.
        log.0.shared.index.lock().purge(GroupId(1), EntryId { term: 1, index: 20 });
        log.0.shared.index.lock().keep_only(GroupId(1), 20, &[]);
        free_all(&log);
        let after = open(&fs.power_cut(|| false)).group(GroupId(1));
        assert_eq!(after.last, Some(EntryId { term: 1, index: 20 }));
    }
}
