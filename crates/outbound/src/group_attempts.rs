//! The pending attempts of one group, shared by its session and the workers of its jobs.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use postroad_core::{Epoch, GroupId, SourceId};
use postroad_proto::queue::{AttemptId, Report};
use tokio::sync::Notify;

use crate::pending_attempts::PendingAttempts;

/// The pending attempts of one group; changes notify its session.
#[derive(Debug)]
pub struct GroupAttempts {
    /// The group.
    pub group: GroupId,
    pending: Mutex<PendingAttempts>,
    changed: Notify,
    /// Sessions whose assignments wait for the content budget.
    waiting_for_budget: AtomicUsize,
}

/// Assignments wait for the content budget until this is dropped.
#[derive(Debug)]
pub struct WaitingForBudget<'a>(&'a GroupAttempts);

impl Drop for WaitingForBudget<'_> {
    fn drop(&mut self) {
        self.0.waiting_for_budget.fetch_sub(1, Ordering::Relaxed);
    }
}

impl GroupAttempts {
    /// Makes an empty set for a group.
    #[must_use]
    pub fn new(group: GroupId) -> Self {
        Self {
            group,
            pending: Mutex::default(),
            changed: Notify::new(),
            waiting_for_budget: AtomicUsize::new(0),
        }
    }

    /// Reads or changes the pending attempts.
    pub fn with<T>(&self, change: impl FnOnce(&mut PendingAttempts) -> T) -> T {
        change(&mut self.pending.lock())
    }

    /// Records an outcome and notifies the session.
    pub fn finish(&self, report: Report) {
        self.pending.lock().finish(report);
        self.changed.notify_one();
    }

    /// Gives an attempt back and notifies the session.
    pub fn give_back(&self, id: AttemptId, source: SourceId) {
        self.pending.lock().give_back(&id, source);
        self.changed.notify_one();
    }

    /// Marks that received assignments wait for the content budget, unread.
    #[must_use]
    pub fn waiting_for_budget(&self) -> WaitingForBudget<'_> {
        self.waiting_for_budget.fetch_add(1, Ordering::Relaxed);
        WaitingForBudget(self)
    }

    /// Returns true while this group may have attempts of a source whose end is not reported.
    ///
    /// Assignments that wait for the content budget may be of any source, as may those that the leader sends after them.
    #[must_use]
    pub fn may_have_unreported(&self, source: SourceId, epoch: Epoch) -> bool {
        self.waiting_for_budget.load(Ordering::Relaxed) > 0
            || self.with(|pending| pending.has_unreported(source, epoch))
    }

    /// Wakes the session.
    pub fn notify(&self) {
        self.changed.notify_one();
    }

    /// Waits until there may be something to send.
    pub async fn notified(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_may_have_unreported_attempts_while_assignments_wait_for_the_budget() {
        let attempts = GroupAttempts::new(GroupId(1));
        let has_unreported = || attempts.may_have_unreported(SourceId(1), Epoch(1));
        assert!(!has_unreported());
        let (one, other) = (attempts.waiting_for_budget(), attempts.waiting_for_budget());
        assert!(has_unreported());
        drop(one);
        assert!(has_unreported());
        drop(other);
        assert!(!has_unreported());
    }
}
