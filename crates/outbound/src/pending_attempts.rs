//! The pending attempts of one group: assigned to this process, and without a committed outcome.
//!
//! An attempt runs once, however often the leader assigns it, and its outcome is sent until the leader has acknowledged it.
//! An attempt that was given back is never started: if it is assigned again, it is given back again.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::Arc,
};

use postroad_core::{Epoch, SourceId};
use postroad_proto::queue::{AttemptId, RecallAnswer, Report, Reports};

/// Reports in one frame.
pub const REPORTS_PER_FRAME_MAX: usize = 256;

/// Pending attempts listed in one frame: some 50 bytes each.
pub const LISTED_PER_FRAME_MAX: usize = 10_000;

/// Frames of reports sent and not acknowledged; further outcomes collect for the next frame meanwhile.
const FRAMES_IN_FLIGHT_MAX: usize = 4;

/// How many given back attempts are remembered.
const GIVEN_BACK_MAX: usize = 1 << 16;

/// The pending attempts of one group.
#[derive(Debug, Default)]
pub struct PendingAttempts {
    attempts: HashMap<Key, Attempt>,
    /// How many of them each source has under each epoch; no entry is 0.
    of_source: HashMap<(SourceId, Epoch), usize>,
    /// Outcomes to send, oldest first.
    unsent: VecDeque<Key>,
    /// Frames sent in this session and not acknowledged.
    in_flight: VecDeque<(u64, Vec<Key>)>,
    sequence: u64,
    answers: Vec<RecallAnswer>,
    given_back: HashSet<Key>,
    given_back_order: VecDeque<Key>,
}

/// Message, recipient and attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(u128, u32, u32);

#[derive(Debug)]
struct Attempt {
    epoch: u64,
    lane: LaneName,
    outcome: Option<Box<Report>>,
}

/// Names a lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneName {
    /// The source.
    pub source: SourceId,
    /// The site.
    pub site: Arc<str>,
}

/// What [`PendingAttempts::receive`] made of an assigned attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// New: the caller starts it.
    New,
    /// Already pending.
    Duplicate,
    /// It was given back before, and now once more.
    GivenBack,
}

impl PendingAttempts {
    /// Adds an assigned attempt, unless it is pending already or was given back.
    pub fn receive(&mut self, id: &AttemptId, lane: &LaneName) -> Received {
        let Some(key) = Key::of(id) else { return Received::Duplicate };
        if self.given_back.contains(&key) {
            self.answer(id, lane.source, false);
            return Received::GivenBack;
        }
        if self.attempts.contains_key(&key) {
            return Received::Duplicate;
        }
        self.attempts.insert(key, Attempt { epoch: id.epoch, lane: lane.clone(), outcome: None });
        *self.of_source.entry((lane.source, Epoch(id.epoch))).or_default() += 1;
        Received::New
    }

    /// Records the outcome of an attempt; an attempt that is not pending is ignored.
    pub fn finish(&mut self, report: Report) {
        let Some(key) = report.attempt.as_ref().and_then(Key::of) else { return };
        let Some(attempt) = self.attempts.get_mut(&key) else { return };
        if attempt.outcome.is_none() {
            attempt.outcome = Some(Box::new(report));
            self.unsent.push_back(key);
        }
    }

    /// Returns an attempt that was not started to the queue.
    pub fn give_back(&mut self, id: &AttemptId, source: SourceId) {
        let Some(key) = Key::of(id) else { return };
        if !self.forget(key) || !self.given_back.insert(key) {
            return;
        }
        self.given_back_order.push_back(key);
        if self.given_back_order.len() > GIVEN_BACK_MAX
            && let Some(oldest) = self.given_back_order.pop_front()
        {
            self.given_back.remove(&oldest);
        }
        self.answer(id, source, false);
    }

    /// Returns the lane of an attempt that has no outcome yet.
    #[must_use]
    pub fn lane_of(&self, id: &AttemptId) -> Option<LaneName> {
        let attempt = self.attempts.get(&Key::of(id)?)?;
        attempt.outcome.is_none().then(|| attempt.lane.clone())
    }

    /// Answers a recall: the attempt has started and is not given back.
    pub fn refuse_recall(&mut self, id: &AttemptId, source: SourceId) {
        self.answer(id, source, true);
    }

    /// Returns the next frame of reports; `None` without outcomes to send, or with too many frames in flight.
    pub fn next_reports(&mut self) -> Option<Reports> {
        if self.in_flight.len() >= FRAMES_IN_FLIGHT_MAX || self.unsent.is_empty() {
            return None;
        }
        let count = self.unsent.len().min(REPORTS_PER_FRAME_MAX);
        let keys: Vec<Key> = self.unsent.drain(..count).collect();
        let outcome = |key: &Key| self.attempts.get(key).and_then(|attempt| attempt.outcome.as_deref());
        let reports = keys.iter().filter_map(outcome).cloned().collect();
        self.sequence += 1;
        self.in_flight.push_back((self.sequence, keys));
        Some(Reports { sequence: self.sequence, reports })
    }

    /// Takes the answers about attempts given back and recalled.
    pub fn take_answers(&mut self) -> Vec<RecallAnswer> {
        std::mem::take(&mut self.answers)
    }

    /// The leader has committed the frames up to `through`: their attempts are no longer pending.
    pub fn acknowledged(&mut self, through: u64) {
        while self.in_flight.front().is_some_and(|(sequence, _)| *sequence <= through) {
            let (_, keys) = self.in_flight.pop_front().unwrap_or_default();
            for key in keys {
                self.forget(key);
            }
        }
    }

    /// A new session begins: what was in flight is sent again. Returns the attempts that are pending.
    ///
    /// Unsent answers are dropped: what was given back is not listed as pending,
    /// so the leader assigns it again and is answered again.
    pub fn begin_session(&mut self) -> Vec<AttemptId> {
        while let Some((_, keys)) = self.in_flight.pop_back() {
            keys.into_iter().rev().for_each(|key| self.unsent.push_front(key));
        }
        self.answers.clear();
        self.attempts.iter().map(|(key, attempt)| key.id(attempt.epoch)).collect()
    }

    /// Returns how many attempts are pending, and how many of them have an outcome that is not acknowledged.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let in_flight: usize = self.in_flight.iter().map(|(_, keys)| keys.len()).sum();
        (self.attempts.len(), self.unsent.len() + in_flight)
    }

    /// Returns true while an attempt of a source under this epoch is pending, or an answer about one is unsent.
    #[must_use]
    pub fn has_unreported(&self, source: SourceId, epoch: Epoch) -> bool {
        let of_this_source = |answer: &RecallAnswer| {
            answer.source == source.0 && answer.attempt.as_ref().is_some_and(|id| id.epoch == epoch.0)
        };
        self.of_source.contains_key(&(source, epoch)) || self.answers.iter().any(of_this_source)
    }

    /// Returns true while answers about attempts given back and recalled are unsent.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Returns false when it is not pending.
    fn forget(&mut self, key: Key) -> bool {
        let Some(attempt) = self.attempts.remove(&key) else { return false };
        let of_source = self.of_source.entry((attempt.lane.source, Epoch(attempt.epoch)));
        if let Entry::Occupied(mut count) = of_source {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        true
    }

    fn answer(&mut self, id: &AttemptId, source: SourceId, started: bool) {
        self.answers.push(RecallAnswer { attempt: Some(id.clone()), source: source.0, started });
    }
}

impl Key {
    fn of(id: &AttemptId) -> Option<Self> {
        let message = id.message_id[..].try_into().ok().map(u128::from_be_bytes)?;
        Some(Self(message, id.recipient, id.attempt))
    }

    fn id(self, epoch: u64) -> AttemptId {
        let message_id = bytes::Bytes::copy_from_slice(&self.0.to_be_bytes());
        AttemptId { message_id, recipient: self.1, attempt: self.2, epoch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(message: u128, recipient: u32, attempt: u32) -> AttemptId {
        Key(message, recipient, attempt).id(7)
    }

    fn lane() -> LaneName {
        LaneName { source: SourceId(3), site: "example.org".into() }
    }

    fn finish(pending: &mut PendingAttempts, id: AttemptId) {
        pending.finish(Report { attempt: Some(id), ..Report::default() });
    }

    fn sent(reports: Option<Reports>) -> Vec<AttemptId> {
        reports.into_iter().flat_map(|frame| frame.reports).filter_map(|report| report.attempt).collect()
    }

    #[test]
    fn an_attempt_is_new_once_until_its_outcome_is_committed() {
        let mut pending = PendingAttempts::default();
        assert_eq!(pending.receive(&id(1, 0, 1), &lane()), Received::New);
        assert_eq!(pending.receive(&id(1, 0, 1), &lane()), Received::Duplicate);
        assert_eq!(pending.receive(&id(1, 1, 1), &lane()), Received::New);
        assert_eq!(pending.receive(&id(1, 0, 2), &lane()), Received::New);
        finish(&mut pending, id(1, 0, 1));
        assert_eq!(sent(pending.next_reports()), [id(1, 0, 1)]);
        assert_eq!(pending.receive(&id(1, 0, 1), &lane()), Received::Duplicate);
        pending.acknowledged(1);
        assert_eq!(pending.counts(), (2, 0));
        // No leader assigns it again after its commit; if one did, the attempt would run.
        assert_eq!(pending.receive(&id(1, 0, 1), &lane()), Received::New);
    }

    #[test]
    fn a_new_session_lists_pending_attempts_and_resends_reports_in_order() {
        let mut pending = PendingAttempts::default();
        for recipient in 0..600 {
            pending.receive(&id(1, recipient, 1), &lane());
        }
        for recipient in 0..500 {
            finish(&mut pending, id(1, recipient, 1));
        }
        let first = sent(pending.next_reports());
        let second = sent(pending.next_reports());
        assert_eq!((first.len(), second.len()), (REPORTS_PER_FRAME_MAX, 244));
        assert_eq!(pending.next_reports(), None);
        pending.acknowledged(1);
        let listed = pending.begin_session();
        assert_eq!(listed.len(), 600 - first.len());
        assert!(
            !listed.contains(&first[0]) && listed.contains(&second[0]) && listed.contains(&id(1, 599, 1))
        );
        let frame = pending.next_reports().unwrap();
        assert_eq!(frame.sequence, 3);
        assert_eq!(sent(Some(frame)), second);
    }

    #[test]
    fn outcomes_collect_for_one_frame_while_earlier_frames_commit() {
        let mut pending = PendingAttempts::default();
        for recipient in 0..10 {
            pending.receive(&id(1, recipient, 1), &lane());
        }
        for recipient in 0..FRAMES_IN_FLIGHT_MAX as u32 {
            finish(&mut pending, id(1, recipient, 1));
            assert!(pending.next_reports().is_some());
        }
        finish(&mut pending, id(1, 8, 1));
        finish(&mut pending, id(1, 9, 1));
        assert_eq!(pending.next_reports(), None);
        pending.acknowledged(2);
        assert_eq!(sent(pending.next_reports()), [id(1, 8, 1), id(1, 9, 1)]);
    }

    #[test]
    fn a_given_back_attempt_is_never_started() {
        let mut pending = PendingAttempts::default();
        pending.receive(&id(1, 0, 1), &lane());
        pending.give_back(&id(1, 0, 1), SourceId(3));
        let answer = RecallAnswer { attempt: Some(id(1, 0, 1)), source: 3, started: false };
        assert_eq!(pending.take_answers(), std::slice::from_ref(&answer));
        assert!(pending.begin_session().is_empty());
        assert_eq!(pending.receive(&id(1, 0, 1), &lane()), Received::GivenBack);
        assert_eq!(pending.take_answers(), [answer]);
        // The next attempt of the same delivery is new.
        assert_eq!(pending.receive(&id(1, 0, 2), &lane()), Received::New);
        // An attempt with an outcome cannot be recalled.
        finish(&mut pending, id(1, 0, 2));
        assert_eq!(pending.lane_of(&id(1, 0, 2)), None);
    }

    #[test]
    fn the_memory_of_given_back_attempts_is_bounded() {
        let mut pending = PendingAttempts::default();
        for recipient in 0..GIVEN_BACK_MAX as u32 + 10 {
            pending.receive(&id(1, recipient, 1), &lane());
            pending.give_back(&id(1, recipient, 1), SourceId(3));
        }
        assert_eq!(pending.given_back.len(), GIVEN_BACK_MAX);
        assert_eq!(pending.given_back_order.len(), GIVEN_BACK_MAX);
    }

    #[test]
    fn unreported_attempts_are_counted_by_source_and_epoch() {
        let mut pending = PendingAttempts::default();
        let unreported = |pending: &PendingAttempts| {
            [(3, 7), (3, 6), (4, 7)]
                .map(|(source, epoch)| pending.has_unreported(SourceId(source), Epoch(epoch)))
        };
        pending.receive(&id(1, 0, 1), &lane());
        pending.receive(&id(1, 1, 1), &lane());
        assert_eq!(unreported(&pending), [true, false, false]);
        // An attempt counts until its outcome is committed.
        finish(&mut pending, id(1, 0, 1));
        pending.next_reports();
        pending.give_back(&id(1, 1, 1), SourceId(3));
        pending.take_answers();
        assert_eq!(unreported(&pending), [true, false, false]);
        pending.acknowledged(1);
        assert_eq!(unreported(&pending), [false; 3]);
        // Answers about another source do not count.
        let other = LaneName { source: SourceId(4), site: "example.org".into() };
        pending.receive(&id(2, 0, 1), &other);
        pending.give_back(&id(2, 0, 1), SourceId(4));
        assert_eq!(unreported(&pending), [false, false, true]);
        pending.take_answers();
        assert_eq!(unreported(&pending), [false; 3]);
        assert!(pending.of_source.is_empty());
    }

    #[test]
    fn outcomes_of_attempts_that_are_not_pending_are_dropped() {
        let mut pending = PendingAttempts::default();
        finish(&mut pending, id(1, 0, 1));
        pending.receive(&id(2, 0, 1), &lane());
        finish(&mut pending, id(2, 0, 1));
        finish(&mut pending, id(2, 0, 1));
        assert_eq!(sent(pending.next_reports()).len(), 1);
        assert_eq!(pending.next_reports(), None);
    }
}
