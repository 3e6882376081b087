//! When each message is due.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use postroad_core::Timestamp;

/// The order and the times of a run's messages, shared by its connections.
#[derive(Debug)]
pub(crate) struct Plan {
    messages: u64,
    /// The time from one message to the next; zero for as fast as possible.
    interval: Duration,
    next: AtomicU64,
    /// More messages than planned are due, until [`Plan::finish`].
    is_open_ended: AtomicBool,
    pub(crate) started: Instant,
    pub(crate) started_at: Timestamp,
}

/// One message that is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DueMessage {
    pub(crate) index: u64,
    pub(crate) due: Instant,
}

impl Plan {
    pub(crate) fn new(messages: u64, rate: Option<f64>) -> Self {
        let interval = rate
            .filter(|rate| *rate > 0.0)
            .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate));
        Self {
            messages,
            interval,
            next: AtomicU64::new(0),
            is_open_ended: AtomicBool::new(false),
            started: postroad_env::now(),
            started_at: postroad_env::wall(),
        }
    }

    /// Makes a plan of at least `messages`, which continues until [`Plan::finish`].
    pub(crate) fn at_least(messages: u64, rate: f64) -> Self {
        Self { is_open_ended: AtomicBool::new(true), ..Self::new(messages, Some(rate)) }
    }

    /// Ends the plan once at least the planned messages are due.
    pub(crate) fn finish(&self) {
        self.is_open_ended.store(false, Ordering::Relaxed);
    }

    /// Returns true when no further message will be due.
    pub(crate) fn is_over(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.messages && !self.is_open_ended.load(Ordering::Relaxed)
    }

    /// Waits until the next message is due; `None` at the end of the plan. A caller that does not wait until then skips it.
    pub(crate) async fn next(&self) -> Option<DueMessage> {
        let message = self.take()?;
        message.wait().await;
        Some(message)
    }

    /// Takes the next message, which nobody else gets then; `None` at the end of the plan.
    pub(crate) fn take(&self) -> Option<DueMessage> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        if index >= self.messages && !self.is_open_ended.load(Ordering::Relaxed) {
            return None;
        }
        if self.interval.is_zero() {
            return Some(DueMessage { index, due: postroad_env::now() });
        }
        Some(DueMessage { index, due: self.started + self.interval.mul_f64(index as f64) })
    }
}

impl DueMessage {
    /// Waits until it is due.
    pub(crate) async fn wait(&self) {
        tokio::time::sleep_until(self.due.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_are_due_at_the_rate() {
        let plan = Plan::new(3, Some(100.0));
        let mut offsets = Vec::new();
        while let Some(due_message) = plan.next().await {
            assert!(postroad_env::now() >= due_message.due);
            offsets.push((due_message.due - plan.started).as_millis());
        }
        assert_eq!(offsets, [0, 10, 20]);
    }

    #[tokio::test]
    async fn an_open_ended_plan_ends_when_it_is_finished() {
        let plan = Plan::at_least(1, 1000.0);
        for index in 0..3 {
            assert_eq!(plan.next().await.map(|due_message| due_message.index), Some(index));
        }
        assert!(!plan.is_over());
        plan.finish();
        assert!(plan.is_over() && plan.next().await.is_none());
        let plan = Plan::at_least(1, 1000.0);
        plan.finish();
        assert!(plan.next().await.is_some() && plan.next().await.is_none());
    }
}
