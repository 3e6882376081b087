//! The writer's thread: takes all queued writes, writes them as one batch, syncs, and calls back.
//!
//! It needs no timer: while one batch is being synced, the next one fills.

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
    index::{Index, Location},
    log::{Done, Identity, LogConfig, RESERVE_SEGMENTS, Room},
    segment::{AlignedBuffer, Segment, SegmentId, round_up, spare_name},
};

pub(crate) const RELAXED: Ordering = Ordering::Relaxed;

/// Pause before a write is retried on a full disk.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// Counters since the log was opened, in bytes unless said otherwise.
#[derive(Debug, Default)]
pub struct LogStats {
    /// Bodies written with their entries.
    pub body_bytes: AtomicU64,
    /// Everything written, with headers, padding and moved bodies, without the zeros of new segments.
    pub written_bytes: AtomicU64,
    /// Live bodies moved out of old segments.
    pub survivor_bytes: AtomicU64,
    /// The number of entries written.
    pub entries: AtomicU64,
    /// The number of batches written, each with one sync.
    pub batches: AtomicU64,
    /// The number of segments freed.
    pub recycled: AtomicU64,
}

/// A queued write.
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
    /// Bodies without their entries: of a snapshot, or moved so that their segment can be freed.
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
    /// The disk has no space for the full reserve.
    low_on_space: AtomicBool,
    /// The disk has no space for the current write.
    out_of_space: AtomicBool,
    next_number: AtomicU64,
    pub(crate) stats: LogStats,
    config: LogConfig,
}

/// Which segments may be freed.
struct Sealed {
    /// Entry segments below this number: a later one durably begins with every vote and purge point.
    hot_below: AtomicU64,
    /// Body segments below this number: that one is still being written.
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
            low_on_space: AtomicBool::new(false),
            out_of_space: AtomicBool::new(false),
            next_number: AtomicU64::new(0),
            stats: LogStats::default(),
            config,
        }
    }

    pub(crate) fn enqueue(&self, job: Job) {
        self.enqueue_all([job]);
    }

    /// Queues jobs in a row, with no other between them.
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

    /// Waits for jobs and takes them all; `None` once the log has stopped.
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
        match (self.out_of_space.load(RELAXED), self.low_on_space.load(RELAXED)) {
            (true, _) => Room::None,
            (false, true) => Room::Reserve,
            (false, false) => Room::Plenty,
        }
    }

    /// Sets whether the reserve is incomplete, and logs a change.
    pub(crate) fn set_low_on_space(&self, low_on_space: bool) {
        if self.low_on_space.swap(low_on_space, RELAXED) == low_on_space {
            return;
        }
        if low_on_space {
            tracing::error!("the disk is full: no mail is accepted until there is space");
        } else {
            tracing::info!("the disk has space again");
        }
    }

    /// Returns the segments whose votes and purge points are also in a later segment.
    pub(crate) fn sealed(&self) -> Vec<SegmentId> {
        let segments = self.segments.lock();
        let (hot, cold) = (self.sealed.hot_below.load(RELAXED), self.sealed.cold_below.load(RELAXED));
        let is_sealed = |id: &SegmentId| id.number < if id.cold { cold } else { hot };
        let mut all: Vec<SegmentId> = segments.keys().copied().filter(is_sealed).collect();
        drop(segments);
        all.sort_unstable();
        all
    }

    /// Takes a spare segment if there are more than `kept`.
    fn take_spare(&self, kept: usize) -> Option<u64> {
        let mut spares = self.spares.lock();
        if spares.len() > kept { spares.pop() } else { None }
    }

    pub(crate) fn take_sealed(&self, id: SegmentId) -> Option<Segment> {
        self.segments.lock().remove(&id)
    }

    /// Reads a location and verifies its checksum.
    pub(crate) fn read(&self, location: Location) -> io::Result<Bytes> {
        let segment = self.segments.lock().get(&location.segment).cloned();
        let segment =
            segment.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the segment was freed"))?;
        let mut bytes = vec![0; location.bytes as usize];
        segment.file.read_at(&mut bytes, location.offset)?;
        if crc32fast::hash(&bytes) != location.crc {
            let what = format!(
                "`{}` is damaged at offset `{}`: checksum mismatch",
                location.segment.name(),
                location.offset
            );
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
struct OpenSegment {
    segment: Segment,
    /// Where the next batch goes; everything below is synced.
    offset: u64,
}

/// Records written together.
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
    /// A batch that is dropped was not written: fails its callbacks.
    fn drop(&mut self) {
        self.done.drain(..).for_each(|done| done(Err(stopped())));
    }
}

fn record_bytes(front: &RecordFront) -> u64 {
    front.bytes() as u64 + front.bodies.iter().map(|(bytes, _)| u64::from(*bytes)).sum::<u64>()
}

/// The state of the writer's thread.
pub(crate) struct Writer {
    fs: Arc<dyn Fs>,
    shared: Arc<Shared>,
    identity: Identity,
    hot: Option<OpenSegment>,
    cold: Option<OpenSegment>,
    /// The bodies in the cold batch are moved, so that their segments can be freed.
    moved: bool,
    /// The number of batches of bodies that failed because the disk was full.
    refused: u64,
    /// The entry segment before the current one, and where it ends.
    previous: Option<(u64, u64)>,
    /// The last written vote and purge point of each group: a new segment begins with them.
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
                // The contents of the disk are unknown now: nothing more may be acknowledged (faults R-14).
                tracing::error!(%error, "cannot write the log");
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
                    // Some of them may have been in an earlier batch that failed.
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
        // A batch larger than a segment would open a new one at each retry.
        let limit = (batch_bytes_max as u64).min(segment_bytes);
        if !batch.records.is_empty() && batch.bytes + record_bytes(&front) > limit {
            self.flush(batch, cold)?;
        }
        batch.push(front, bodies);
        Ok(())
    }

    /// Writes and syncs a batch, and calls its callbacks.
    fn flush(&mut self, batch: &mut Batch, cold: bool) -> io::Result<()> {
        let mut batch = std::mem::take(batch);
        let written = match batch.records.is_empty() {
            true => Ok(()),
            false if cold => self.write_batch(&mut batch, true),
            false => self.retry_while_full(|writer| writer.write_batch(&mut batch, false)),
        };
        match written {
            // Moved and fetched bodies can be written again later; votes and entries must not wait behind them.
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

    /// Retries while the disk is full: nothing is lost (faults R-13).
    fn retry_while_full(&mut self, mut attempt: impl FnMut(&mut Self) -> io::Result<()>) -> io::Result<()> {
        loop {
            match attempt(self) {
                Err(error)
                    if error.kind() == io::ErrorKind::StorageFull && !self.shared.queue.lock().stopped =>
                {
                    if !self.shared.out_of_space.swap(true, RELAXED) {
                        tracing::error!(%error, "the disk is full and the reserve is used up: the log waits for space");
                    }
                    std::thread::sleep(FULL_RETRY);
                }
                result => {
                    if result.is_ok() && self.shared.out_of_space.swap(false, RELAXED) {
                        tracing::info!("the disk has space: the log is written again");
                    }
                    return result;
                }
            }
        }
    }

    fn write_batch(&mut self, batch: &mut Batch, cold: bool) -> io::Result<()> {
        let room = self.shared.config.segment_bytes;
        let bytes = |batch: &Batch| round_up(HEADER_BYTES as u64 + batch.bytes);
        let fits =
            |open: &Option<OpenSegment>| open.as_ref().is_some_and(|o| o.offset + bytes(batch) <= room);
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
            // The first batch, with votes and purge points, is durable only now: until here earlier segments were needed.
            self.shared.sealed.hot_below.store(segment.number, RELAXED);
        }
        self.shared.stats.written_bytes.fetch_add(written, RELAXED);
        self.shared.stats.batches.fetch_add(1, RELAXED);
        self.index_locations(batch, segment, start);
        Ok(())
    }

    /// Opens a new segment, from a spare if there is one.
    fn open_segment(&self, cold: bool, bytes_min: u64) -> io::Result<OpenSegment> {
        let bytes = self.shared.config.segment_bytes.max(bytes_min);
        let id = SegmentId { number: self.shared.next_number(), cold };
        let file = match self.shared.take_spare(RESERVE_SEGMENTS) {
            Some(spare) => self.reuse(spare, id)?,
            None => match self.make(id, bytes) {
                // Use the reserve: from here on only writes that free space are accepted.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    self.shared.set_low_on_space(true);
                    // The last spare is for votes, entries, and moves that free a segment.
                    let kept = usize::from(cold && !self.moved);
                    self.reuse(self.shared.take_spare(kept).ok_or(error)?, id)?
                }
                made => made?,
            },
        };
        self.fs.sync_dir()?;
        let segment = Segment { id, file };
        if cold {
            // Set before it is listed: a listed segment must be known to be in use.
            self.shared.sealed.cold_below.store(id.number, RELAXED);
        }
        self.shared.segments.lock().insert(id, segment.clone());
        Ok(OpenSegment { segment, offset: 0 })
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

    /// Begins an entry segment with a pointer to the one before, and every group's vote and purge point.
    fn begin_hot(&mut self, opened: OpenSegment, batch: &mut Batch) {
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

    /// Encodes the batch into the buffer.
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

    /// Adds the written records to the index, and keeps the votes and purge points for the next segment.
    fn index_locations(&mut self, batch: &Batch, segment: SegmentId, start: u64) {
        let locations = Locations::new(segment, start, batch.records.iter().map(|(front, _)| front));
        let mut index = self.shared.index.lock();
        for ((front, bodies), (head, locations)) in batch.records.iter().zip(locations) {
            match front.kind {
                Kind::Entry => {
                    let bytes: usize = bodies.iter().map(Bytes::len).sum();
                    self.shared.stats.body_bytes.fetch_add(bytes as u64, RELAXED);
                    self.shared.stats.entries.fetch_add(1, RELAXED);
                    index.set_location(front.group, front.id, head, &locations);
                }
                Kind::Body => {
                    let slot = u32::try_from(front.id.term).expect("a slot was written");
                    index.set_body_location(front.group, (front.id.index, slot), locations[0]);
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

fn length(bytes: &Bytes) -> u32 {
    u32::try_from(bytes.len()).expect("heads and bodies are bounded")
}

fn front(kind: Kind, user_kind: u8, group: GroupId, id: EntryId) -> RecordFront {
    RecordFront { kind, user_kind, group, id, head: Bytes::new(), bodies: Vec::new() }
}

fn vote_front(group: GroupId, vote: Bytes) -> RecordFront {
    RecordFront { head: vote, ..front(Kind::Vote, 0, group, EntryId::default()) }
}
