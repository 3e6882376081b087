//! When each message is due.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime},
};

/// The order and the times of a run's messages, shared by its connections.
#[derive(Debug)]
pub(crate) struct Plan {
    messages: u64,
    /// The time from one message to the next; zero for as fast as it goes.
    interval: Duration,
    next: AtomicU64,
    pub(crate) started: Instant,
    pub(crate) started_at: SystemTime,
}

/// One message that is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
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
            started: Instant::now(),
            started_at: SystemTime::now(),
        }
    }

    /// Waits until the next message is due; `None` when all have been taken.
    pub(crate) async fn next(&self) -> Option<Turn> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        if index >= self.messages {
            return None;
        }
        if self.interval.is_zero() {
            return Some(Turn { index, due: Instant::now() });
        }
        let due = self.started + self.interval.mul_f64(index as f64);
        tokio::time::sleep_until(due.into()).await;
        Some(Turn { index, due })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_are_due_at_the_rate_whoever_takes_them() {
        let plan = Plan::new(3, Some(100.0));
        let mut offsets = Vec::new();
        while let Some(turn) = plan.next().await {
            assert!(Instant::now() >= turn.due);
            offsets.push((turn.due - plan.started).as_millis());
        }
        assert_eq!(offsets, [0, 10, 20]);
    }
}
