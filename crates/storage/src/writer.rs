//! The writer's thread: takes all queued writes, writes them as one batch, syncs, and calls back.
//!
//! It needs no timer: while one batch is being synced, the next one fills.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use postroad_core::GroupId;
use postroad_env::Worker;
use postroad_telemetry::Histogram;

use crate::{
    EntryId,
    batch::{Batch, Locations, front, vote_front},
    format::{BatchHeader, HEADER_BYTES, Kind},
    fs::{Fs, Store},
    log::{Done, Identity, LogConfig, RESERVE_SEGMENTS},
    metrics,
    plan::plan,
    segment::{AlignedBuffer, Segment, SegmentId, SegmentKind, round_up, spare_name},
    shared::{RELAXED, Shared, no_room, stopped},
};

/// Pause before a write is retried on a full disk.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// A segment being written to.
struct OpenSegment {
    segment: Segment,
    /// Where the next batch goes; everything below is synced.
    offset: u64,
}

/// The segment of each kind that is being written to; none before the first batch.
#[derive(Default)]
struct OpenSegments {
    entries: Option<OpenSegment>,
    bodies: Option<OpenSegment>,
}

impl OpenSegments {
    fn of(&mut self, kind: SegmentKind) -> &mut Option<OpenSegment> {
        match kind {
            SegmentKind::Entries => &mut self.entries,
            SegmentKind::Bodies => &mut self.bodies,
        }
    }
}

/// The state of the writer's thread.
pub(crate) struct Writer {
    fs: Arc<dyn Fs>,
    shared: Arc<Shared>,
    identity: Identity,
    open: OpenSegments,
    /// What has been taken from the queue and is not written yet.
    batches: VecDeque<Batch>,
    /// The disk is full: the first batch is tried again then.
    full_until: Option<Instant>,
    /// Written by calls of a busy disk that have not returned.
    unreturned: Vec<Done>,
    /// The last bodies were refused because the disk was full: so are the others of their job.
    refused: bool,
    /// The entry segment before the current one, and where it ends.
    previous: Option<(u64, u64)>,
    /// The last written vote and purge point of each group: a new segment begins with them.
    written: BTreeMap<GroupId, (Option<Bytes>, Option<EntryId>)>,
    buffer: AlignedBuffer,
    front: Vec<u8>,
    sync_seconds: Histogram,
}

impl Worker for Writer {
    /// Writes what is queued; ends when the last handle is gone, or the disk has failed.
    fn work(&mut self, waits: bool) -> bool {
        self.unreturned.drain(..).for_each(|done| done(Ok(())));
        if let Some(until) = self.full_until
            && !self.wait_for_space(until, waits)
        {
            return !self.ends_full();
        }
        if self.batches.is_empty() {
            let Some(jobs) = self.shared.take_jobs(waits) else { return false };
            let LogConfig { batch_bytes_max, segment_bytes, .. } = self.shared.config;
            // A batch larger than a segment would open a new one at each retry.
            self.batches = plan(jobs, (batch_bytes_max as u64).min(segment_bytes));
        }
        let Err(error) = self.write() else { return true };
        // The contents of the disk are unknown now: nothing more may be acknowledged (faults R-14).
        tracing::error!(%error, "cannot write the log");
        self.shared.stop();
        self.fail_all(&error);
        self.fs.fatal(&error);
        self.fail_all(&error);
        false
    }
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
            open: OpenSegments::default(),
            batches: VecDeque::new(),
            full_until: None,
            unreturned: Vec::new(),
            refused: false,
            previous,
            written,
            buffer: AlignedBuffer::default(),
            front: Vec::new(),
            sync_seconds: metrics::sync_seconds(),
        }
    }

    fn fail_all(&mut self, error: &io::Error) {
        self.batches.drain(..).for_each(|mut batch| batch.fail(error));
        let rest = std::mem::take(&mut self.shared.queue.lock().jobs);
        rest.into_iter().for_each(|job| job.fail(error));
    }

    /// Writes the batches until the disk is full or busy; the others stay.
    fn write(&mut self) -> io::Result<()> {
        while let Some(mut batch) = self.batches.pop_front() {
            let written = if batch.records.is_empty() { Ok(()) } else { self.write_batch(&mut batch) };
            match written {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => self.note_full(batch, &error),
                Err(error) => {
                    self.batches.push_front(batch);
                    return Err(error);
                }
                Ok(()) => self.note_written(batch),
            }
            if self.full_until.is_some() || postroad_env::disk_is_busy() {
                break;
            }
        }
        Ok(())
    }

    fn note_written(&mut self, mut batch: Batch) {
        if batch.kind == SegmentKind::Entries && self.shared.out_of_space.swap(false, RELAXED) {
            tracing::info!("the disk has space: the log is written again");
        }
        if batch.kind == SegmentKind::Bodies && self.refused {
            // Some bodies of the first job were in a batch before, which was refused.
            let ends_job = batch.continues && !batch.done.is_empty();
            if ends_job {
                batch.done.remove(0)(Err(no_room()));
            }
            self.refused = batch.continues && !ends_job;
        }
        self.unreturned.append(&mut batch.done);
        self.unreturned.append(&mut batch.barriers);
        if !postroad_env::disk_is_busy() {
            self.unreturned.drain(..).for_each(|done| done(Ok(())));
        }
    }

    /// A batch of entries waits for space: nothing is lost (faults R-13).
    fn note_full(&mut self, mut batch: Batch, error: &io::Error) {
        if batch.kind == SegmentKind::Bodies {
            // Moved and fetched bodies can be written again later; votes and entries must not wait behind them.
            self.refused = true;
            return batch.fail(&no_room());
        }
        self.batches.push_front(batch);
        self.full_until = Some(postroad_env::now() + FULL_RETRY);
        if !self.shared.out_of_space.swap(true, RELAXED) {
            tracing::error!(%error, "the disk is full and the reserve is used up: the log waits for space");
        }
        self.refuse_what_can_wait();
    }

    /// Fails what would wait behind a batch that waits for space and can be tried again: who waits for it may be who frees
    /// some.
    fn refuse_what_can_wait(&mut self) {
        for batch in &mut self.batches {
            match batch.kind {
                SegmentKind::Bodies => batch.fail(&no_room()),
                SegmentKind::Entries => batch.barriers.drain(..).for_each(|done| done(Err(no_room()))),
            }
        }
        self.batches.retain(|batch| batch.kind == SegmentKind::Entries);
        self.shared.refuse_what_can_wait();
    }

    /// Returns whether it is time to try again, after waiting for it if it `waits`.
    fn wait_for_space(&mut self, until: Instant, waits: bool) -> bool {
        self.refuse_what_can_wait();
        let left = until.saturating_duration_since(postroad_env::now());
        if self.shared.queue.lock().stopped {
            return false;
        }
        if left.is_zero() {
            self.full_until = None;
        } else if waits {
            self.shared.wait_for(left);
        }
        left.is_zero()
    }

    /// Returns whether the log ends while it waits for space: what waits fails, and nothing of it was acknowledged.
    fn ends_full(&mut self) -> bool {
        let ends = self.shared.queue.lock().stopped;
        if ends {
            self.fail_all(&no_room());
        }
        ends
    }

    fn write_batch(&mut self, batch: &mut Batch) -> io::Result<()> {
        let room = self.shared.config.segment_bytes;
        let fits = |open: &OpenSegment| open.offset + batch.disk_bytes() <= room;
        if !self.open.of(batch.kind).as_ref().is_some_and(fits) {
            let opened = self.open_segment(batch)?;
            let full = self.open.of(batch.kind).replace(opened);
            if batch.kind == SegmentKind::Entries {
                self.begin_entries(full, batch);
            }
        }
        let Some(open) = self.open.of(batch.kind) else { return Err(stopped()) };
        let (segment, start) = (open.segment.id, open.offset);
        self.encode(batch, segment, start);
        let Some(open) = self.open.of(batch.kind) else { return Err(stopped()) };
        let began = postroad_env::now();
        open.segment.file.write_at(self.buffer.as_slice(), start)?;
        open.segment.file.sync()?;
        self.sync_seconds.record(postroad_env::since(began));
        let written = self.buffer.as_slice().len() as u64;
        open.offset += written;
        if start == 0 && batch.kind == SegmentKind::Entries {
            // The first batch, with votes and purge points, is durable only now: until here earlier segments were needed.
            self.shared.sealed.entries_below.store(segment.number, RELAXED);
        }
        self.shared.stats.written_bytes.fetch_add(written, RELAXED);
        self.shared.stats.batches.fetch_add(1, RELAXED);
        self.index_locations(batch, segment, start);
        Ok(())
    }

    /// Opens a new segment, from a spare if there is one.
    fn open_segment(&self, batch: &Batch) -> io::Result<OpenSegment> {
        let kind = batch.kind;
        let bytes = self.shared.config.segment_bytes.max(batch.disk_bytes() + (64 << 10));
        let id = SegmentId { number: self.shared.next_number(), kind };
        let file = match self.shared.take_spare(RESERVE_SEGMENTS) {
            Some(spare) => self.reuse(spare, id)?,
            None => match self.make(id, bytes) {
                // Use the reserve: from here on only writes that free space are accepted.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    self.shared.set_low_on_space(true);
                    // The last spare is for votes, entries, and moves that free a segment.
                    let kept = usize::from(kind == SegmentKind::Bodies && !batch.moved);
                    self.reuse(self.shared.take_spare(kept).ok_or(error)?, id)?
                }
                made => made?,
            },
        };
        self.fs.sync_dir()?;
        let segment = Segment { id, file };
        if kind == SegmentKind::Bodies {
            // Set before it is listed: a listed segment must be known to be in use.
            self.shared.sealed.bodies_below.store(id.number, RELAXED);
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
    fn begin_entries(&mut self, full: Option<OpenSegment>, batch: &mut Batch) {
        if let Some(full) = full {
            self.previous = Some((full.segment.id.number, full.offset));
        }
        let previous = self
            .previous
            .map(|(number, end)| front(Kind::Previous, 0, GroupId(0), EntryId { term: number, index: end }));
        let groups = self.written.iter().flat_map(|(group, (vote, purged))| {
            let vote = vote.clone().map(|vote| vote_front(*group, vote));
            let purged = purged.map(|purged| front(Kind::Purge, 0, *group, purged));
            vote.into_iter().chain(purged)
        });
        batch.prepend(previous.into_iter().chain(groups));
    }

    /// Encodes the batch into the buffer.
    fn encode(&mut self, batch: &Batch, segment: SegmentId, offset: u64) {
        self.front.clear();
        batch.records.iter().for_each(|(front, _)| front.put(&mut self.front));
        let bytes = HEADER_BYTES as u64 + batch.bytes;
        let total = usize::try_from(round_up(bytes)).expect("a batch fits memory");
        let header = BatchHeader {
            generation: segment.number,
            identity: self.identity,
            offset,
            synced: offset,
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
        for (group, highest) in &batch.truncated {
            index.note_highest(segment, *group, *highest);
        }
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
