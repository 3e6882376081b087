//! The accounts of one group, shared by its session and by everyone who works for it.

use parking_lot::Mutex;
use postroad_core::{GroupId, SourceId};
use postroad_proto::queue::{AttemptId, Report};
use tokio::sync::Notify;

use crate::held::Held;

/// What is held for one group, and a bell for its session.
#[derive(Debug)]
pub struct Desk {
    /// The group.
    pub group: GroupId,
    held: Mutex<Held>,
    bell: Notify,
}

impl Desk {
    /// Opens the accounts of a group.
    #[must_use]
    pub fn new(group: GroupId) -> Self {
        Self { group, held: Mutex::default(), bell: Notify::new() }
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

    /// Tells the session to look.
    pub fn ring(&self) {
        self.bell.notify_one();
    }

    /// Waits until something is to be sent.
    pub async fn rung(&self) {
        self.bell.notified().await;
    }
}
