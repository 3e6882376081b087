//! What the writer's thread shares with the handles of the log: the queue of writes, the index, the segments.

use std::{
    collections::HashMap,
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use postroad_core::GroupId;

use crate::{
    EntryId, Record,
    index::{Index, Location},
    log::{Done, LogConfig, Room},
    segment::{Segment, SegmentId, SegmentKind},
};

pub(crate) const RELAXED: Ordering = Ordering::Relaxed;

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
    /// The number of checkpoints written.
    pub checkpoints: AtomicU64,
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
        /// The highest entry that it drops.
        highest: Option<u64>,
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

impl Job {
    pub(crate) fn fail(self, error: &io::Error) {
        match self {
            Self::Entries { done, .. }
            | Self::Vote { done, .. }
            | Self::Bodies { done, .. }
            | Self::Barrier { done } => done(Err(io::Error::new(error.kind(), error.to_string()))),
            Self::Truncate { .. } | Self::Purge { .. } => {}
        }
    }
}

/// What the writer's thread and the handles share.
pub(crate) struct Shared {
    pub(crate) index: Mutex<Index>,
    pub(crate) segments: Mutex<HashMap<SegmentId, Segment>>,
    pub(crate) sealed: Sealed,
    pub(crate) spares: Mutex<Vec<u64>>,
    pub(crate) queue: Mutex<Queue>,
    wake: Condvar,
    /// The disk has no space for the full reserve.
    low_on_space: AtomicBool,
    /// The disk has no space for the current write.
    pub(crate) out_of_space: AtomicBool,
    pub(crate) next_number: AtomicU64,
    pub(crate) stats: LogStats,
    pub(crate) config: LogConfig,
}

/// Which segments may be freed.
pub(crate) struct Sealed {
    /// Entry segments below this number: a later one durably begins with every vote and purge point.
    pub(crate) entries_below: AtomicU64,
    /// Body segments below this number: that one is still being written.
    pub(crate) bodies_below: AtomicU64,
}

/// The queued writes.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) jobs: Vec<Job>,
    pub(crate) stopped: bool,
}

impl Shared {
    pub(crate) fn new(
        index: Index,
        segments: HashMap<SegmentId, Segment>,
        spares: Vec<u64>,
        newest: Option<u64>,
        config: LogConfig,
    ) -> Self {
        let sealed = Sealed { entries_below: newest.unwrap_or(0).into(), bodies_below: u64::MAX.into() };
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

    /// Takes all jobs, after waiting for one if it `waits`; `None` once the log has stopped.
    pub(crate) fn take_jobs(&self, waits: bool) -> Option<Vec<Job>> {
        let mut queue = self.queue.lock();
        while queue.jobs.is_empty() {
            if queue.stopped {
                return None;
            }
            if !waits {
                break;
            }
            self.wake.wait(&mut queue);
        }
        Some(std::mem::take(&mut queue.jobs))
    }

    /// Waits for so long, or until the log has stopped or something is queued behind nothing.
    pub(crate) fn wait_for(&self, duration: Duration) {
        let mut queue = self.queue.lock();
        if !queue.stopped {
            self.wake.wait_for(&mut queue, duration);
        }
    }

    /// Fails the queued jobs that can be tried again later, where those before them wait for space.
    pub(crate) fn refuse_what_can_wait(&self) {
        let mut queue = self.queue.lock();
        let can_wait = |job: &Job| matches!(job, Job::Bodies { .. } | Job::Barrier { .. });
        let (refused, kept) = std::mem::take(&mut queue.jobs).into_iter().partition(can_wait);
        queue.jobs = kept;
        drop(queue);
        let refused: Vec<Job> = refused;
        refused.into_iter().for_each(|job| job.fail(&no_room()));
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
        let entries_below = self.sealed.entries_below.load(RELAXED);
        let bodies_below = self.sealed.bodies_below.load(RELAXED);
        let is_sealed = |id: &SegmentId| match id.kind {
            SegmentKind::Entries => id.number < entries_below,
            SegmentKind::Bodies => id.number < bodies_below,
        };
        let mut all: Vec<SegmentId> = segments.keys().copied().filter(is_sealed).collect();
        drop(segments);
        all.sort_unstable();
        all
    }

    /// Takes a spare segment if there are more than `kept`.
    pub(crate) fn take_spare(&self, kept: usize) -> Option<u64> {
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

pub(crate) fn no_room() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

pub(crate) fn stopped() -> io::Error {
    io::Error::other("the log has stopped")
}
