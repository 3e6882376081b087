//! The accounts of one group, shared by its session and by everyone who works for it.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use postroad_core::{Epoch, GroupId, SourceId};
use postroad_proto::queue::{AttemptId, Report};
use tokio::sync::Notify;

use crate::pending_attempts::Held;

/// What is held for one group, and a bell for its session.
#[derive(Debug)]
pub struct Desk {
    /// The group.
    pub group: GroupId,
    held: Mutex<Held>,
    bell: Notify,
    /// Sessions whose assignments wait for room.
    short_of_room: AtomicUsize,
}

/// Assignments wait for room until this is dropped.
#[derive(Debug)]
pub struct ShortOfRoom<'a>(&'a Desk);

impl Drop for ShortOfRoom<'_> {
    fn drop(&mut self) {
        self.0.short_of_room.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Desk {
    /// Opens the accounts of a group.
    #[must_use]
    pub fn new(group: GroupId) -> Self {
        Self { group, held: Mutex::default(), bell: Notify::new(), short_of_room: AtomicUsize::new(0) }
    }

    /// Looks into the accounts, or changes them.
    pub fn with<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        change(&mut self.held.lock())
    }

    /// Takes an outcome and rings.
    pub fn finish(&self, report: Report) {
        self.held.lock().finish(report);
        self.bell.notify_one();
    }

    /// Gives an attempt back and rings.
    pub fn give_back(&self, id: AttemptId, source: SourceId) {
        self.held.lock().give_back(&id, source);
        self.bell.notify_one();
    }

    /// Says that assignments have come which nobody can look at before there is room for their content.
    #[must_use]
    pub fn short_of_room(&self) -> ShortOfRoom<'_> {
        self.short_of_room.fetch_add(1, Ordering::Relaxed);
        ShortOfRoom(self)
    }

    /// Returns true while something of a source may be here that the queue is to hear of.
    ///
    /// While assignments wait for room, that may be anybody's: behind them the leader has more, in the order
    /// in which they were assigned.
    #[must_use]
    pub fn may_owe(&self, source: SourceId, epoch: Epoch) -> bool {
        self.short_of_room.load(Ordering::Relaxed) > 0 || self.with(|held| held.owes(source, epoch))
    }

    /// Tells the session to look.
    pub fn ring(&self) {
        self.bell.notify_one();
    }

    /// Waits until something is to be sent.
    pub async fn rung(&self) {
        self.bell.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_may_be_owed_while_assignments_wait_for_room() {
        let desk = Desk::new(GroupId(1));
        let owes = || desk.may_owe(SourceId(1), Epoch(1));
        assert!(!owes());
        let (one, other) = (desk.short_of_room(), desk.short_of_room());
        assert!(owes());
        drop(one);
        assert!(owes());
        drop(other);
        assert!(!owes());
    }
}
