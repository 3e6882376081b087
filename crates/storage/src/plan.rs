//! Which queued writes are written together.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::{
    EntryId,
    batch::{Batch, front, length, vote_front},
    format::{Kind, RecordFront},
    segment::SegmentKind,
    shared::Job,
};

/// Puts jobs into batches of at most `limit` bytes, unless one record is longer, in the order in which they are written.
pub(crate) fn plan(jobs: Vec<Job>, limit: u64) -> VecDeque<Batch> {
    let mut plan = Plan {
        sealed: VecDeque::new(),
        entries: Batch::new(SegmentKind::Entries),
        bodies: Batch::new(SegmentKind::Bodies),
        limit,
    };
    jobs.into_iter().for_each(|job| plan.add_job(job));
    plan.seal(SegmentKind::Bodies);
    plan.seal(SegmentKind::Entries);
    plan.sealed
}

struct Plan {
    sealed: VecDeque<Batch>,
    entries: Batch,
    bodies: Batch,
    limit: u64,
}

impl Plan {
    fn add_job(&mut self, job: Job) {
        match job {
            Job::Bodies { group, bodies, moved, done } => {
                if self.bodies.moved != moved {
                    self.seal(SegmentKind::Bodies);
                    self.bodies.moved = moved;
                }
                for (place, (index, slot, body)) in bodies.into_iter().enumerate() {
                    let id = EntryId { term: u64::from(slot), index };
                    if self.add(SegmentKind::Bodies, front(Kind::Body, 0, group, id), vec![body]) {
                        self.bodies.continues = place > 0;
                        self.bodies.moved = moved;
                    }
                }
                self.bodies.done.push(done);
            }
            Job::Entries { group, records, done } => {
                for record in records {
                    let mut entry = front(Kind::Entry, record.kind, group, record.id);
                    entry.head = record.head;
                    self.add(SegmentKind::Entries, entry, record.bodies);
                }
                self.entries.done.push(done);
            }
            Job::Vote { group, vote, done } => {
                self.add(SegmentKind::Entries, vote_front(group, vote), Vec::new());
                self.entries.done.push(done);
            }
            Job::Truncate { group, last_kept, highest } => {
                let id = EntryId { term: u64::from(last_kept.is_some()), index: last_kept.unwrap_or(0) };
                self.add(SegmentKind::Entries, front(Kind::Truncate, 0, group, id), Vec::new());
                self.entries.truncated.extend(highest.map(|highest| (group, highest)));
            }
            Job::Purge { group, upto } => {
                self.add(SegmentKind::Entries, front(Kind::Purge, 0, group, upto), Vec::new());
            }
            Job::Barrier { done } => self.entries.barriers.push(done),
        }
    }

    /// Adds a record; returns whether it begins another batch.
    fn add(&mut self, kind: SegmentKind, mut front: RecordFront, bodies: Vec<Bytes>) -> bool {
        front.bodies = bodies.iter().map(|body| (length(body), crc32fast::hash(body))).collect();
        let limit = self.limit;
        let is_full = self.batch(kind).overflows(&front, limit);
        if is_full {
            self.seal(kind);
        }
        self.batch(kind).push(front, bodies);
        is_full
    }

    fn batch(&mut self, kind: SegmentKind) -> &mut Batch {
        match kind {
            SegmentKind::Entries => &mut self.entries,
            SegmentKind::Bodies => &mut self.bodies,
        }
    }

    fn seal(&mut self, kind: SegmentKind) {
        let batch = self.batch(kind).take();
        if !batch.is_empty() {
            self.sealed.push_back(batch);
        }
    }
}
