//! The thread that writes: it takes everything that waits, writes it as one batch, syncs, and calls back.
//!
//! Without a timer: while one batch is being synced the next one gathers.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use postroad_core::GroupId;

use crate::{
    EntryId, Record,
    format::{BatchHeader, HEADER_BYTES, Kind, RecordFront},
    fs::{Fs, Store},
    index::{Index, Place},
    log::{Done, Identity, LogConfig, RESERVE_SEGMENTS, Room},
    segment::{AlignedBuffer, Segment, SegmentId, round_up, spare_name},
};

pub(crate) const RELAXED: Ordering = Ordering::Relaxed;

/// How long a full disk is left alone before it is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// What has been done since the log was opened, in bytes where not said otherwise.
#[derive(Debug, Default)]
pub struct LogStats {
    /// Bodies handed over with their entries.
    pub body_bytes: AtomicU64,
    /// Everything written, with headers, padding and moved bodies, without the zeros of new segments.
    pub written_bytes: AtomicU64,
    /// Bodies moved because they outlived their segment.
    pub survivor_bytes: AtomicU64,
    /// Entries written, as a count.
    pub entries: AtomicU64,
    /// Batches written, each with one sync, as a count.
    pub batches: AtomicU64,
    /// Segments freed, as a count.
    pub recycled: AtomicU64,
}

/// What is to be written.
pub(crate) enum Job {
    Entries {
        group: GroupId,
        records: Vec<Record>,
        done: Done,
    },
    Vote {
        group: GroupId,
        vote: Bytes,
        done: Done,
    },
    Truncate {
        group: GroupId,
        last_kept: Option<u64>,
    },
    Purge {
        group: GroupId,
        upto: EntryId,
    },
    /// Bodies without their entries; those that are moved give back the segment they came from.
    Bodies {
        group: GroupId,
        bodies: Vec<(u64, u32, Bytes)>,
        moved: bool,
        done: Done,
    },
    Barrier {
        done: Done,
    },
}

/// What the writer's thread and the handles share.
pub(crate) struct Shared {
    pub(crate) index: Mutex<Index>,
    segments: Mutex<HashMap<SegmentId, Segment>>,
    sealed: Sealed,
    pub(crate) spares: Mutex<Vec<u64>>,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// The disk refuses the room that is to be kept in reserve.
    starved: AtomicBool,
    /// The disk refuses the room for what is to be written now.
    blocked: AtomicBool,
    next_number: AtomicU64,
    pub(crate) stats: LogStats,
    config: LogConfig,
}

/// Which segments may be freed.
struct Sealed {
    /// Segments of entries with a lower number: the one that has it begins with every vote and purge point, durably.
    hot_below: AtomicU64,
    /// Segments of moved bodies with a lower number: the one that has it is being written to.
    cold_below: AtomicU64,
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    stopped: bool,
}

impl Shared {
    pub(crate) fn new(
        index: Index,
        segments: HashMap<SegmentId, Segment>,
        spares: Vec<u64>,
        newest: Option<u64>,
        config: LogConfig,
    ) -> Self {
        let sealed = Sealed { hot_below: newest.unwrap_or(0).into(), cold_below: u64::MAX.into() };
        Self {
            index: Mutex::new(index),
            segments: Mutex::new(segments),
            sealed,
            spares: Mutex::new(spares),
            queue: Mutex::default(),
            wake: Condvar::new(),
            starved: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            next_number: AtomicU64::new(0),
            stats: LogStats::default(),
            config,
        }
    }

    pub(crate) fn enqueue(&self, job: Job) {
        self.enqueue_all([job]);
    }

    /// Puts jobs behind those that wait, with nothing between them.
    pub(crate) fn enqueue_all(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut queue = self.queue.lock();
        if queue.stopped {
            drop(queue);
            return jobs.into_iter().for_each(|job| job.fail(&stopped()));
        }
        let was_empty = queue.jobs.is_empty();
        queue.jobs.extend(jobs);
        if was_empty {
            self.wake.notify_one();
        }
    }

    pub(crate) fn stop(&self) {
        self.queue.lock().stopped = true;
        self.wake.notify_one();
    }

    /// Waits for jobs and takes them all; `None` when there will be none.
    fn take_jobs(&self) -> Option<Vec<Job>> {
        let mut queue = self.queue.lock();
        while queue.jobs.is_empty() {
            if queue.stopped {
                return None;
            }
            self.wake.wait(&mut queue);
        }
        Some(std::mem::take(&mut queue.jobs))
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, RELAXED)
    }

    pub(crate) fn room(&self) -> Room {
        match (self.blocked.load(RELAXED), self.starved.load(RELAXED)) {
            (true, _) => Room::None,
            (false, true) => Room::Reserve,
            (false, false) => Room::Plenty,
        }
    }

    /// Says whether the reserve can be kept.
    pub(crate) fn set_starved(&self, starved: bool) {
        if self.starved.swap(starved, RELAXED) == starved {
            return;
        }
        if starved {
            tracing::error!("the disk is full: no mail is accepted until there is room");
        } else {
            tracing::info!("the disk has room again");
        }
    }

    /// Returns the segments that hold nothing which only they hold but entries and bodies.
    pub(crate) fn sealed(&self) -> Vec<SegmentId> {
        let segments = self.segments.lock();
        let (hot, cold) = (self.sealed.hot_below.load(RELAXED), self.sealed.cold_below.load(RELAXED));
        let is_sealed = |id: &SegmentId| id.number < if id.cold { cold } else { hot };
        let mut all: Vec<SegmentId> = segments.keys().copied().filter(is_sealed).collect();
        drop(segments);
        all.sort_unstable();
        all
    }

    /// Takes a spare segment if more than `kept` are there.
    fn take_spare(&self, kept: usize) -> Option<u64> {
        let mut spares = self.spares.lock();
        if spares.len() > kept { spares.pop() } else { None }
    }

    pub(crate) fn take_sealed(&self, id: SegmentId) -> Option<Segment> {
        self.segments.lock().remove(&id)
    }

    /// Reads what is at a place, and checks it.
    pub(crate) fn read(&self, place: Place) -> io::Result<Bytes> {
        let segment = self.segments.lock().get(&place.segment).cloned();
        let segment =
            segment.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the segment is gone"))?;
        let mut bytes = vec![0; place.bytes as usize];
        segment.file.read_at(&mut bytes, place.offset)?;
        if crc32fast::hash(&bytes) != place.crc {
            let what = format!("`{}` does not check at offset `{}`", place.segment.name(), place.offset);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(bytes.into())
    }
}

fn no_room() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

fn stopped() -> io::Error {
    io::Error::other("the log has stopped")
}

impl Job {
    fn fail(self, error: &io::Error) {
        match self {
            Self::Entries { done, .. }
            | Self::Vote { done, .. }
            | Self::Bodies { done, .. }
            | Self::Barrier { done } => done(Err(io::Error::new(error.kind(), error.to_string()))),
            Self::Truncate { .. } | Self::Purge { .. } => {}
        }
    }
}

/// A segment being written to.
struct Open {
    segment: Segment,
    /// Where the next batch goes; everything below is synced.
    offset: u64,
}

/// Records that go out together.
#[derive(Default)]
struct Batch {
    records: Vec<(RecordFront, Vec<Bytes>)>,
    bytes: u64,
    done: Vec<Done>,
}

impl Batch {
    fn push(&mut self, front: RecordFront, bodies: Vec<Bytes>) {
        self.bytes += record_bytes(&front);
        self.records.push((front, bodies));
    }
}

impl Drop for Batch {
    /// Whoever still waits when a batch goes was not served: everybody is told.
    fn drop(&mut self) {
        self.done.drain(..).for_each(|done| done(Err(stopped())));
    }
}

fn record_bytes(front: &RecordFront) -> u64 {
    front.bytes() as u64 + front.bodies.iter().map(|(bytes, _)| u64::from(*bytes)).sum::<u64>()
}

/// The thread's own.
pub(crate) struct Writer {
    fs: Arc<dyn Fs>,
    shared: Arc<Shared>,
    identity: Identity,
    hot: Option<Open>,
    cold: Option<Open>,
    /// The bodies in the cold batch are moved from segments that are then free.
    moved: bool,
    /// Batches of bodies that were not written because there was no room, as a count.
    refused: u64,
    /// The segment of entries before the current one, and where it ends.
    previous: Option<(u64, u64)>,
    /// The last vote and purge of each group that were written: a new segment begins with them.
    written: BTreeMap<GroupId, (Option<Bytes>, Option<EntryId>)>,
    buffer: AlignedBuffer,
    front: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(
        fs: Arc<dyn Fs>,
        shared: Arc<Shared>,
        identity: Identity,
        next_number: u64,
        previous: Option<(u64, u64)>,
    ) -> Self {
        shared.next_number.store(next_number, RELAXED);
        let index = shared.index.lock();
        let written =
            index.groups.iter().map(|(group, state)| (*group, (state.vote.clone(), state.purged))).collect();
        drop(index);
        Self {
            fs,
            shared,
            identity,
            hot: None,
            cold: None,
            moved: false,
            refused: 0,
            previous,
            written,
            buffer: AlignedBuffer::default(),
            front: Vec::new(),
        }
    }

    /// Writes until the last handle is gone, or the disk fails.
    pub(crate) fn run(mut self) {
        while let Some(jobs) = self.shared.take_jobs() {
            let mut jobs = jobs.into_iter();
            if let Err(error) = self.write(&mut jobs) {
                // What the disk holds now is not known: nothing more may be acknowledged (faults R-14).
                tracing::error!(%error, "the log cannot be written");
                self.shared.stop();
                jobs.for_each(|job| job.fail(&error));
                self.fs.fatal(&error);
                return self.fail_rest(&error);
            }
        }
    }

    fn fail_rest(&self, error: &io::Error) {
        let rest = std::mem::take(&mut self.shared.queue.lock().jobs);
        rest.into_iter().for_each(|job| job.fail(error));
    }

    fn write(&mut self, jobs: &mut impl Iterator<Item = Job>) -> io::Result<()> {
        let (mut hot, mut cold) = (Batch::default(), Batch::default());
        for job in jobs {
            match job {
                Job::Bodies { group, bodies, moved, done } => {
                    if self.moved != moved {
                        self.flush(&mut cold, true)?;
                        self.moved = moved;
                    }
                    let refused = self.refused;
                    for (index, slot, body) in bodies {
                        let id = EntryId { term: u64::from(slot), index };
                        self.add(&mut cold, true, front(Kind::Body, 0, group, id), vec![body])?;
                    }
                    // A part of them may have gone with a batch before this one.
                    if self.refused == refused { cold.done.push(done) } else { done(Err(no_room())) }
                }
                Job::Entries { group, records, done } => {
                    for record in records {
                        let mut entry = front(Kind::Entry, record.kind, group, record.id);
                        entry.head = record.head;
                        self.add(&mut hot, false, entry, record.bodies)?;
                    }
                    hot.done.push(done);
                }
                Job::Vote { group, vote, done } => {
                    let record = vote_front(group, vote);
                    self.add(&mut hot, false, record, Vec::new())?;
                    hot.done.push(done);
                }
                Job::Truncate { group, last_kept } => {
                    let id = EntryId { term: u64::from(last_kept.is_some()), index: last_kept.unwrap_or(0) };
                    self.add(&mut hot, false, front(Kind::Truncate, 0, group, id), Vec::new())?;
                }
                Job::Purge { group, upto } => {
                    self.add(&mut hot, false, front(Kind::Purge, 0, group, upto), Vec::new())?;
                }
                Job::Barrier { done } => hot.done.push(done),
            }
        }
        self.flush(&mut cold, true)?;
        self.flush(&mut hot, false)
    }

    fn add(
        &mut self,
        batch: &mut Batch,
        cold: bool,
        mut front: RecordFront,
        bodies: Vec<Bytes>,
    ) -> io::Result<()> {
        front.bodies = bodies.iter().map(|body| (length(body), crc32fast::hash(body))).collect();
        let LogConfig { batch_bytes_max, segment_bytes, .. } = self.shared.config;
        // A batch that does not fit into a segment would take a new one at each try.
        let limit = (batch_bytes_max as u64).min(segment_bytes);
        if !batch.records.is_empty() && batch.bytes + record_bytes(&front) > limit {
            self.flush(batch, cold)?;
        }
        batch.push(front, bodies);
        Ok(())
    }

    /// Writes and syncs a batch, and says so to everybody whose records are in it.
    fn flush(&mut self, batch: &mut Batch, cold: bool) -> io::Result<()> {
        let mut batch = std::mem::take(batch);
        let written = match batch.records.is_empty() {
            true => Ok(()),
            false if cold => self.write_batch(&mut batch, true),
            false => self.retry_while_full(|writer| writer.write_batch(&mut batch, false)),
        };
        match written {
            // Bodies that are moved or fetched can come again; votes and entries must not wait behind them.
            Err(error) if cold && error.kind() == io::ErrorKind::StorageFull => {
                self.refused += 1;
                batch.done.drain(..).for_each(|done| done(Err(no_room())));
            }
            written => {
                written?;
                batch.done.drain(..).for_each(|done| done(Ok(())));
            }
        }
        Ok(())
    }

    /// A full disk loses nothing: what waits is written when there is room again (faults R-13).
    fn retry_while_full(&mut self, mut attempt: impl FnMut(&mut Self) -> io::Result<()>) -> io::Result<()> {
        loop {
            match attempt(self) {
                Err(error)
                    if error.kind() == io::ErrorKind::StorageFull && !self.shared.queue.lock().stopped =>
                {
                    if !self.shared.blocked.swap(true, RELAXED) {
                        tracing::error!(%error, "the disk is full and the reserve used: the log waits for room");
                    }
                    std::thread::sleep(FULL_RETRY);
                }
                result => {
                    if result.is_ok() && self.shared.blocked.swap(false, RELAXED) {
                        tracing::info!("the log is written again");
                    }
                    return result;
                }
            }
        }
    }

    fn write_batch(&mut self, batch: &mut Batch, cold: bool) -> io::Result<()> {
        let room = self.shared.config.segment_bytes;
        let bytes = |batch: &Batch| round_up(HEADER_BYTES as u64 + batch.bytes);
        let fits = |open: &Option<Open>| open.as_ref().is_some_and(|o| o.offset + bytes(batch) <= room);
        let open = if cold { &self.cold } else { &self.hot };
        if !fits(open) {
            let opened = self.open_segment(cold, bytes(batch) + (64 << 10))?;
            if cold {
                self.cold = Some(opened);
            } else {
                self.begin_hot(opened, batch);
            }
        }
        self.encode(batch, cold);
        let open = if cold { &mut self.cold } else { &mut self.hot };
        let Some(open) = open else { return Err(stopped()) };
        open.segment.file.write_at(self.buffer.as_slice(), open.offset)?;
        open.segment.file.sync()?;
        let written = self.buffer.as_slice().len() as u64;
        let (segment, start) = (open.segment.id, open.offset);
        open.offset += written;
        if start == 0 && !cold {
            // What a segment begins with is durable only now: until then those before it hold votes and purge points.
            self.shared.sealed.hot_below.store(segment.number, RELAXED);
        }
        self.shared.stats.written_bytes.fetch_add(written, RELAXED);
        self.shared.stats.batches.fetch_add(1, RELAXED);
        self.note_places(batch, segment, start);
        Ok(())
    }

    /// Opens a new segment, from a spare where there is one.
    fn open_segment(&self, cold: bool, bytes_min: u64) -> io::Result<Open> {
        let bytes = self.shared.config.segment_bytes.max(bytes_min);
        let id = SegmentId { number: self.shared.next_number(), cold };
        let file = match self.shared.take_spare(RESERVE_SEGMENTS) {
            Some(spare) => self.reuse(spare, id)?,
            None => match self.make(id, bytes) {
                // The room that was kept for this: from here on only what frees room is taken in.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    self.shared.set_starved(true);
                    // The last one is for votes and entries, and for what gives back another.
                    let kept = usize::from(cold && !self.moved);
                    self.reuse(self.shared.take_spare(kept).ok_or(error)?, id)?
                }
                made => made?,
            },
        };
        self.fs.sync_dir()?;
        let segment = Segment { id, file };
        if cold {
            // Before it is among the segments: whoever sees it there sees that it is being written to.
            self.shared.sealed.cold_below.store(id.number, RELAXED);
        }
        self.shared.segments.lock().insert(id, segment.clone());
        Ok(Open { segment, offset: 0 })
    }

    fn reuse(&self, spare: u64, id: SegmentId) -> io::Result<Arc<dyn Store>> {
        self.fs.rename(&spare_name(spare), &id.name())?;
        self.fs.open(&id.name())
    }

    fn make(&self, id: SegmentId, bytes: u64) -> io::Result<Arc<dyn Store>> {
        let file = self.fs.create(&id.name())?;
        if let Err(error) = file.allocate(bytes) {
            let _ = self.fs.remove(&id.name());
            return Err(error);
        }
        Ok(file)
    }

    /// A segment of entries begins with what came before it, and every group's vote and purge point.
    fn begin_hot(&mut self, opened: Open, batch: &mut Batch) {
        if let Some(old) = self.hot.replace(opened) {
            self.previous = Some((old.segment.id.number, old.offset));
        }
        let mut first = Batch::default();
        if let Some((number, end)) = self.previous {
            let id = EntryId { term: number, index: end };
            first.push(front(Kind::Previous, 0, GroupId(0), id), Vec::new());
        }
        for (group, (vote, purged)) in &self.written {
            if let Some(vote) = vote {
                first.push(vote_front(*group, vote.clone()), Vec::new());
            }
            if let Some(purged) = purged {
                first.push(front(Kind::Purge, 0, *group, *purged), Vec::new());
            }
        }
        for (front, bodies) in batch.records.drain(..) {
            first.push(front, bodies);
        }
        std::mem::swap(&mut batch.records, &mut first.records);
        batch.bytes = first.bytes;
    }

    /// Lays the batch out in the buffer.
    fn encode(&mut self, batch: &Batch, cold: bool) {
        self.front.clear();
        batch.records.iter().for_each(|(front, _)| front.put(&mut self.front));
        let bytes = HEADER_BYTES as u64 + batch.bytes;
        let total = usize::try_from(round_up(bytes)).expect("a batch fits memory");
        let open = if cold { &self.cold } else { &self.hot };
        let open = open.as_ref().expect("a segment was opened for the batch");
        let header = BatchHeader {
            generation: open.segment.id.number,
            identity: self.identity,
            offset: open.offset,
            synced: open.offset,
            front_bytes: u32::try_from(self.front.len()).expect("a batch is bounded"),
            records: u32::try_from(batch.records.len()).expect("a batch is bounded"),
            bytes,
            front_hash: xxhash_rust::xxh3::xxh3_64(&self.front),
        };
        self.buffer.resize(total);
        let buffer = self.buffer.as_mut_slice();
        header.put(&mut buffer[..HEADER_BYTES]);
        let mut at = HEADER_BYTES + self.front.len();
        buffer[HEADER_BYTES..at].copy_from_slice(&self.front);
        for body in batch.records.iter().flat_map(|(_, bodies)| bodies) {
            buffer[at..at + body.len()].copy_from_slice(body);
            at += body.len();
        }
        buffer[at..].fill(0);
    }

    /// Makes what has been written findable, and remembers what the next segment begins with.
    fn note_places(&mut self, batch: &Batch, segment: SegmentId, start: u64) {
        let places = Places::new(segment, start, batch.records.iter().map(|(front, _)| front));
        let mut index = self.shared.index.lock();
        for ((front, bodies), (head, places)) in batch.records.iter().zip(places) {
            match front.kind {
                Kind::Entry => {
                    let bytes: usize = bodies.iter().map(Bytes::len).sum();
                    self.shared.stats.body_bytes.fetch_add(bytes as u64, RELAXED);
                    self.shared.stats.entries.fetch_add(1, RELAXED);
                    index.place(front.group, front.id, head, &places);
                }
                Kind::Body => {
                    let slot = u32::try_from(front.id.term).expect("a slot was written");
                    index.place_body(front.group, (front.id.index, slot), places[0]);
                }
                Kind::Vote => self.written.entry(front.group).or_default().0 = Some(front.head.clone()),
                Kind::Purge => {
                    self.written.entry(front.group).or_default().1 = Some(front.id);
                    index.purge_is_durable(front.group, front.id);
                }
                Kind::Truncate | Kind::Previous => {}
            }
        }
    }
}

/// Where the head and the bodies of each record of a batch are.
pub(crate) struct Places<I> {
    segment: SegmentId,
    fronts: I,
    next_head: u64,
    next_body: u64,
}

impl<'a, I: Iterator<Item = &'a RecordFront> + Clone> Places<I> {
    /// For a batch that begins at `start`.
    pub(crate) fn new(segment: SegmentId, start: u64, fronts: I) -> Self {
        let next_head = start + HEADER_BYTES as u64;
        let front_bytes: usize = fronts.clone().map(RecordFront::bytes).sum();
        Self { segment, fronts, next_head, next_body: next_head + front_bytes as u64 }
    }
}

impl<'a, I: Iterator<Item = &'a RecordFront>> Iterator for Places<I> {
    type Item = (Place, Vec<Place>);

    fn next(&mut self) -> Option<Self::Item> {
        let front = self.fronts.next()?;
        self.next_head += front.bytes() as u64;
        let head = Place {
            segment: self.segment,
            offset: self.next_head - front.head.len() as u64,
            bytes: length(&front.head),
            crc: crc32fast::hash(&front.head),
        };
        let bodies = front.bodies.iter().map(|(bytes, crc)| {
            let place = Place { segment: self.segment, offset: self.next_body, bytes: *bytes, crc: *crc };
            self.next_body += u64::from(*bytes);
            place
        });
        Some((head, bodies.collect()))
    }
}

fn length(bytes: &Bytes) -> u32 {
    u32::try_from(bytes.len()).expect("heads and bodies are bounded")
}

fn front(kind: Kind, user_kind: u8, group: GroupId, id: EntryId) -> RecordFront {
    RecordFront { kind, user_kind, group, id, head: Bytes::new(), bodies: Vec::new() }
}

fn vote_front(group: GroupId, vote: Bytes) -> RecordFront {
    RecordFront { head: vote, ..front(Kind::Vote, 0, group, EntryId::default()) }
}
