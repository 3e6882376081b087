//! Which attempts of one group this process answers for: what waits or runs, and outcomes that are not committed yet.
//!
//! An attempt is taken once however often it is sent, and its outcome is sent until the leader has acknowledged it.
//! An attempt that was given back is never started afterwards: sent again, it is given back again.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::Arc,
};

use postroad_core::{Epoch, SourceId};
use postroad_proto::queue::{AttemptId, RecallAnswer, Report, Reports};

/// Reports in one frame.
pub const REPORTS_PER_FRAME_MAX: usize = 256;

/// Attempts in one frame of what is held: some 50 bytes each.
pub const LISTED_PER_FRAME_MAX: usize = 10_000;

/// Frames of reports that may be sent and not acknowledged: the next one gathers while these commit.
const FRAMES_IN_FLIGHT_MAX: usize = 4;

/// How many attempts that were given back are remembered.
const GIVEN_BACK_MAX: usize = 1 << 16;

/// The attempts of one group.
#[derive(Debug, Default)]
pub struct Held {
    attempts: HashMap<Key, Attempt>,
    /// How many of them each source has, by the epoch they were assigned under. None is 0.
    of_source: HashMap<(SourceId, Epoch), usize>,
    /// Outcomes that are to be sent, oldest first.
    unsent: VecDeque<Key>,
    /// Frames that were sent on this session and not acknowledged.
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

/// What is to be done with an attempt that was assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is new: start it when its turn comes.
    Taken,
    /// It is here already, or its outcome is.
    Known,
    /// It was given back before, and has been again.
    GivenBack,
}

impl Held {
    /// Takes an attempt, once.
    pub fn offer(&mut self, id: &AttemptId, lane: &LaneName) -> Offered {
        let Some(key) = Key::of(id) else { return Offered::Known };
        if self.given_back.contains(&key) {
            self.answer(id, lane.source, false);
            return Offered::GivenBack;
        }
        if self.attempts.contains_key(&key) {
            return Offered::Known;
        }
        self.attempts.insert(key, Attempt { epoch: id.epoch, lane: lane.clone(), outcome: None });
        *self.of_source.entry((lane.source, Epoch(id.epoch))).or_default() += 1;
        Offered::Taken
    }

    /// Takes the outcome of an attempt; one of an attempt that is not held is dropped.
    pub fn finish(&mut self, report: Report) {
        let Some(key) = report.attempt.as_ref().and_then(Key::of) else { return };
        let Some(attempt) = self.attempts.get_mut(&key) else { return };
        if attempt.outcome.is_none() {
            attempt.outcome = Some(Box::new(report));
            self.unsent.push_back(key);
        }
    }

    /// Forgets an attempt that was not started and tells the queue so.
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

    /// Tells the queue that a recalled attempt will not be given back.
    pub fn keep(&mut self, id: &AttemptId, source: SourceId) {
        self.answer(id, source, true);
    }

    /// Takes the next frame of reports, unless enough are in flight.
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

    /// Takes what is to be said about attempts given back and recalled.
    pub fn take_answers(&mut self) -> Vec<RecallAnswer> {
        std::mem::take(&mut self.answers)
    }

    /// Frames up to `through` have been committed: their attempts are the queue's alone now.
    pub fn acknowledged(&mut self, through: u64) {
        while self.in_flight.front().is_some_and(|(sequence, _)| *sequence <= through) {
            let (_, keys) = self.in_flight.pop_front().unwrap_or_default();
            for key in keys {
                self.forget(key);
            }
        }
    }

    /// A new session begins: what was in flight is sent again. Returns the attempts that are held.
    ///
    /// Answers that were on their way are dropped: what was given back is not held,
    /// so the leader sends it again and is answered again.
    pub fn begin_session(&mut self) -> Vec<AttemptId> {
        while let Some((_, keys)) = self.in_flight.pop_back() {
            keys.into_iter().rev().for_each(|key| self.unsent.push_front(key));
        }
        self.answers.clear();
        self.attempts.iter().map(|(key, attempt)| key.id(attempt.epoch)).collect()
    }

    /// Returns how many attempts are held, and how many of them have an outcome that is not acknowledged.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let in_flight: usize = self.in_flight.iter().map(|(_, keys)| keys.len()).sum();
        (self.attempts.len(), self.unsent.len() + in_flight)
    }

    /// Returns true while an attempt of a source is held, or something is to be said about one.
    ///
    /// What was assigned under other epochs, and what is said of other sources, is not looked at.
    #[must_use]
    pub fn owes(&self, source: SourceId, epoch: Epoch) -> bool {
        let is_its = |answer: &RecallAnswer| {
            answer.source == source.0 && answer.attempt.as_ref().is_some_and(|id| id.epoch == epoch.0)
        };
        self.of_source.contains_key(&(source, epoch)) || self.answers.iter().any(is_its)
    }

    /// Returns true when something is to be said about attempts given back and recalled.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Returns false when it is not held.
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

    fn finish(held: &mut Held, id: AttemptId) {
        held.finish(Report { attempt: Some(id), ..Report::default() });
    }

    fn sent(reports: Option<Reports>) -> Vec<AttemptId> {
        reports.into_iter().flat_map(|frame| frame.reports).filter_map(|report| report.attempt).collect()
    }

    #[test]
    fn an_attempt_is_taken_once_until_its_outcome_is_committed() {
        let mut held = Held::default();
        assert_eq!(held.offer(&id(1, 0, 1), &lane()), Offered::Taken);
        assert_eq!(held.offer(&id(1, 0, 1), &lane()), Offered::Known);
        assert_eq!(held.offer(&id(1, 1, 1), &lane()), Offered::Taken);
        assert_eq!(held.offer(&id(1, 0, 2), &lane()), Offered::Taken);
        finish(&mut held, id(1, 0, 1));
        assert_eq!(sent(held.next_reports()), [id(1, 0, 1)]);
        assert_eq!(held.offer(&id(1, 0, 1), &lane()), Offered::Known);
        held.acknowledged(1);
        assert_eq!(held.counts(), (2, 0));
        // Whoever sends it now has not seen its own commit: there is no such leader.
        assert_eq!(held.offer(&id(1, 0, 1), &lane()), Offered::Taken);
    }

    #[test]
    fn a_reconnection_lists_what_is_held_and_reports_again_in_order() {
        let mut held = Held::default();
        for recipient in 0..600 {
            held.offer(&id(1, recipient, 1), &lane());
        }
        for recipient in 0..500 {
            finish(&mut held, id(1, recipient, 1));
        }
        let first = sent(held.next_reports());
        let second = sent(held.next_reports());
        assert_eq!((first.len(), second.len()), (REPORTS_PER_FRAME_MAX, 244));
        assert_eq!(held.next_reports(), None);
        held.acknowledged(1);
        let listed = held.begin_session();
        assert_eq!(listed.len(), 600 - first.len());
        assert!(
            !listed.contains(&first[0]) && listed.contains(&second[0]) && listed.contains(&id(1, 599, 1))
        );
        let frame = held.next_reports().unwrap();
        assert_eq!(frame.sequence, 3);
        assert_eq!(sent(Some(frame)), second);
    }

    #[test]
    fn reports_gather_while_others_commit() {
        let mut held = Held::default();
        for recipient in 0..10 {
            held.offer(&id(1, recipient, 1), &lane());
        }
        for recipient in 0..FRAMES_IN_FLIGHT_MAX as u32 {
            finish(&mut held, id(1, recipient, 1));
            assert!(held.next_reports().is_some());
        }
        finish(&mut held, id(1, 8, 1));
        finish(&mut held, id(1, 9, 1));
        assert_eq!(held.next_reports(), None);
        held.acknowledged(2);
        assert_eq!(sent(held.next_reports()), [id(1, 8, 1), id(1, 9, 1)]);
    }

    #[test]
    fn what_was_given_back_is_never_started() {
        let mut held = Held::default();
        held.offer(&id(1, 0, 1), &lane());
        held.give_back(&id(1, 0, 1), SourceId(3));
        let answer = RecallAnswer { attempt: Some(id(1, 0, 1)), source: 3, started: false };
        assert_eq!(held.take_answers(), std::slice::from_ref(&answer));
        assert!(held.begin_session().is_empty());
        assert_eq!(held.offer(&id(1, 0, 1), &lane()), Offered::GivenBack);
        assert_eq!(held.take_answers(), [answer]);
        // The next attempt is another matter.
        assert_eq!(held.offer(&id(1, 0, 2), &lane()), Offered::Taken);
        // What has ended cannot be given back.
        finish(&mut held, id(1, 0, 2));
        assert_eq!(held.lane_of(&id(1, 0, 2)), None);
    }

    #[test]
    fn what_was_given_back_is_remembered_within_a_bound() {
        let mut held = Held::default();
        for recipient in 0..GIVEN_BACK_MAX as u32 + 10 {
            held.offer(&id(1, recipient, 1), &lane());
            held.give_back(&id(1, recipient, 1), SourceId(3));
        }
        assert_eq!(held.given_back.len(), GIVEN_BACK_MAX);
        assert_eq!(held.given_back_order.len(), GIVEN_BACK_MAX);
    }

    #[test]
    fn what_is_owed_is_told_by_source_and_epoch() {
        let mut held = Held::default();
        let owed = |held: &Held| {
            [(3, 7), (3, 6), (4, 7)].map(|(source, epoch)| held.owes(SourceId(source), Epoch(epoch)))
        };
        held.offer(&id(1, 0, 1), &lane());
        held.offer(&id(1, 1, 1), &lane());
        assert_eq!(owed(&held), [true, false, false]);
        // An attempt is owed until its outcome is committed.
        finish(&mut held, id(1, 0, 1));
        held.next_reports();
        held.give_back(&id(1, 1, 1), SourceId(3));
        held.take_answers();
        assert_eq!(owed(&held), [true, false, false]);
        held.acknowledged(1);
        assert_eq!(owed(&held), [false; 3]);
        // Another source may answer all the time.
        let other = LaneName { source: SourceId(4), site: "example.org".into() };
        held.offer(&id(2, 0, 1), &other);
        held.give_back(&id(2, 0, 1), SourceId(4));
        assert_eq!(owed(&held), [false, false, true]);
        held.take_answers();
        assert_eq!(owed(&held), [false; 3]);
        assert!(held.of_source.is_empty());
    }

    #[test]
    fn outcomes_nobody_asked_for_are_dropped() {
        let mut held = Held::default();
        finish(&mut held, id(1, 0, 1));
        held.offer(&id(2, 0, 1), &lane());
        finish(&mut held, id(2, 0, 1));
        finish(&mut held, id(2, 0, 1));
        assert_eq!(sent(held.next_reports()).len(), 1);
        assert_eq!(held.next_reports(), None);
    }
}
