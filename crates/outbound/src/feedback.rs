//! How many connections a lane uses: one more after a round of successes, one fewer when sessions fail.
//!
//! This is Postfix's scheduler feedback (SCHEDULER_README): with N connections a success counts for 1/N of a connection,
//! and so does a failure; after N failures in a row without a success, the site counts as dead.
//! A lane whose site is dead, or asks to slow down, pauses for a time that doubles; afterwards it starts with one connection.

use std::time::Duration;

/// Bounds of the feedback.
#[derive(Clone, Copy, Debug)]
pub struct FeedbackConfig {
    /// Connections to begin with.
    pub initial: u32,
    /// The first pause.
    pub pause_first: Duration,
    /// No pause is longer.
    pub pause_max: Duration,
}

/// The concurrency of one lane, adapted to its site's behaviour.
#[derive(Clone, Debug)]
pub struct Feedback {
    config: FeedbackConfig,
    /// Connections that may be used, between 1 and the limit.
    level: f64,
    /// Failures since the last success.
    failures: u32,
    /// Connections in use at the first of these failures.
    round: u32,
    /// Pauses in a row; each successful round takes one off.
    pauses: u32,
}

impl Feedback {
    /// Starts at the initial concurrency.
    #[must_use]
    pub fn new(config: FeedbackConfig) -> Self {
        Self { level: f64::from(config.initial.max(1)), failures: 0, round: 1, pauses: 0, config }
    }

    /// Returns how many connections may be used, of `limit` at most.
    #[must_use]
    pub fn connections(&self, limit: u32) -> u32 {
        limit.min(self.whole_level())
    }

    /// Returns true after a pause until enough rounds succeeded.
    #[must_use]
    pub fn is_recovering(&self) -> bool {
        self.pauses > 0
    }

    /// The site answered a transaction.
    pub fn succeeded(&mut self, limit: u32) {
        self.failures = 0;
        let before = self.whole_level();
        self.level = (self.level + 1.0 / f64::from(before)).min(f64::from(limit.max(1)));
        if self.whole_level() > before || before >= limit {
            self.pauses = self.pauses.saturating_sub(1);
        }
    }

    /// A session could not be opened, or broke; returns how long to pause when the site counts as dead.
    pub fn failed(&mut self, limit: u32) -> Option<Duration> {
        let used = self.connections(limit).max(1);
        if self.failures == 0 {
            self.round = used;
        }
        self.failures += 1;
        self.level = (self.level - 1.0 / f64::from(used)).max(1.0);
        (self.failures >= self.round).then(|| self.pause())
    }

    /// The site asked to slow down, or is dead: returns how long to pause.
    pub fn pause(&mut self) -> Duration {
        let doublings = self.pauses.min(16);
        self.pauses = self.pauses.saturating_add(1);
        self.failures = 0;
        // After a pause the lane starts with one connection.
        self.level = 1.0;
        self.config.pause_first.saturating_mul(1 << doublings).min(self.config.pause_max)
    }

    fn whole_level(&self) -> u32 {
        // The level is at least 1 and bounded by a u32; sums of 1/N fall short of whole numbers by rounding.
        (self.level + 1e-6) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: FeedbackConfig = FeedbackConfig {
        initial: 5,
        pause_first: Duration::from_secs(30),
        pause_max: Duration::from_secs(600),
    };

    #[test]
    fn d_062_each_successful_round_adds_one_connection() {
        let mut feedback = Feedback::new(CONFIG);
        for expected in 5..20 {
            assert_eq!(feedback.connections(20), expected);
            (0..expected).for_each(|_| feedback.succeeded(20));
        }
        (0..1000).for_each(|_| feedback.succeeded(20));
        assert_eq!(feedback.connections(20), 20);
        assert_eq!(feedback.connections(3), 3);
    }

    #[test]
    fn d_062_a_site_is_dead_after_a_round_of_failures() {
        let mut feedback = Feedback::new(CONFIG);
        let pauses: Vec<bool> = (0..5).map(|_| feedback.failed(20).is_some()).collect();
        assert_eq!(pauses, [false, false, false, false, true]);
        assert_eq!(feedback.connections(20), 1);
    }

    #[test]
    fn a_site_with_successes_between_failures_is_not_dead() {
        let mut feedback = Feedback::new(CONFIG);
        for _ in 0..100 {
            assert_eq!(feedback.failed(20), None);
            (0..2).for_each(|_| feedback.succeeded(20));
        }
    }

    #[test]
    fn d_061_pauses_double_up_to_the_maximum_and_shrink_with_each_successful_round() {
        let mut feedback = Feedback::new(CONFIG);
        let pauses: Vec<u64> = (0..7).map(|_| feedback.pause().as_secs()).collect();
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600]);
        for _ in 0..100 {
            feedback.pause();
        }
        assert_eq!(feedback.pause().as_secs(), 600);
        let mut feedback = Feedback::new(CONFIG);
        for _ in 0..3 {
            feedback.pause();
        }
        assert_eq!(feedback.connections(20), 1);
        feedback.succeeded(20);
        assert_eq!((feedback.connections(20), feedback.is_recovering()), (2, true));
        (0..5).for_each(|_| feedback.succeeded(20));
        assert_eq!((feedback.connections(20), feedback.is_recovering()), (4, false));
    }

    #[test]
    fn a_lane_of_one_connection_recovers_too() {
        let mut feedback = Feedback::new(CONFIG);
        feedback.pause();
        feedback.succeeded(1);
        assert!(!feedback.is_recovering());
        assert_eq!(feedback.failed(1), Some(Duration::from_secs(30)));
    }
}
