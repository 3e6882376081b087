//! When a deferred delivery is retried, and when it expires.

use std::time::Duration;

use crate::{Outcome, OutcomeKind, Retry};

/// The first wait after an attempt that failed on our side: the receiver was not asked, and the fault may soon be over.
/// It doubles while the fault lasts, up to the schedule's second wait.
const INTERNAL_WAIT: Duration = Duration::from_secs(10);

/// Waits between attempts. Default: 5 min, 20 min, then doubling up to 4 h, for 5 days; each ±20 %.
/// A few outcomes are tried again at long distance instead: every 8 h.
///
/// RFC 5321 4.5.4.1 asks for 30 minutes on average and four to five days; the short first wait is for greylisting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySchedule {
    /// The wait after the first attempt.
    pub first: Duration,
    /// The wait after the second attempt; later waits double.
    pub second: Duration,
    /// The longest wait, before jitter.
    pub cap: Duration,
    /// The wait where an early retry would harm: after a refusal by policy, or while copies may pile up.
    pub distant: Duration,
    /// How many copies a receiver may have that never confirms one; then the delivery stops. 0 for any number.
    pub copies_max: u8,
    /// Older deliveries expire.
    pub age_max: Duration,
}

/// What the schedule needs to know about a delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// Attempts that count, the last one included.
    pub counted: u32,
    /// Attempts before the last one that ended as unknown: the receiver may have a copy of each.
    pub unknown: u8,
    /// Attempts in a row before the last one that failed on our side.
    pub internal: u8,
}

impl Default for RetrySchedule {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(5 * 60),
            second: Duration::from_secs(20 * 60),
            cap: Duration::from_secs(4 * 60 * 60),
            distant: Duration::from_secs(8 * 60 * 60),
            copies_max: 4,
            age_max: Duration::from_secs(5 * 24 * 60 * 60),
        }
    }
}

impl Attempts {
    /// Returns how many copies the receiver may have after an attempt with this outcome.
    #[must_use]
    pub fn copies_after(&self, outcome: &Outcome) -> u8 {
        self.unknown.saturating_add(u8::from(outcome.kind == OutcomeKind::Unknown))
    }
}

impl RetrySchedule {
    /// Returns the wait after an attempt with this outcome.
    #[must_use]
    pub fn wait_after(&self, outcome: &Outcome, attempts: Attempts, jitter: u16) -> Duration {
        match (outcome.kind, outcome.retry) {
            (OutcomeKind::Internal, _) => {
                let doubled = INTERNAL_WAIT.saturating_mul(1 << attempts.internal.min(16));
                spread(doubled.min(self.second), jitter)
            }
            (_, Retry::Distant { .. }) => spread(self.distant, jitter),
            // D-046: once may be chance; a receiver whose replies are lost every time gets a copy each time.
            (OutcomeKind::Unknown, _) if attempts.unknown > 0 => spread(self.distant, jitter),
            _ => self.wait(attempts.counted, jitter),
        }
    }

    /// Returns the wait after attempt number `attempt` (1 is the first). `jitter` 0 gives −20 %, 65,535 gives +20 %.
    #[must_use]
    pub fn wait(&self, attempt: u32, jitter: u16) -> Duration {
        let base = match attempt {
            0 | 1 => self.first,
            n => {
                let doublings = (n - 2).min(31);
                self.second.saturating_mul(1 << doublings).min(self.cap)
            }
        };
        spread(base, jitter)
    }
}

/// Returns 80 % to 120 % of `base`, in integers so that the result is the same everywhere, and without overflow.
fn spread(base: Duration, jitter: u16) -> Duration {
    let permille = 800 + u64::from(jitter) * 400 / u64::from(u16::MAX);
    let millis = u64::try_from(base.as_millis()).unwrap_or(u64::MAX);
    let spread = (millis / 1000).saturating_mul(permille).saturating_add(millis % 1000 * permille / 1000);
    Duration::from_millis(spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d_060_waits_double_up_to_the_cap() {
        let schedule = RetrySchedule::default();
        let minutes = |attempt| schedule.wait(attempt, u16::MAX / 2).as_secs_f64() / 60.0;
        let expected = [(1, 5.0), (2, 20.0), (3, 40.0), (4, 80.0), (5, 160.0), (6, 240.0), (u32::MAX, 240.0)];
        for (attempt, wait) in expected {
            assert!((minutes(attempt) - wait).abs() / wait < 0.002, "attempt {attempt}");
        }
    }

    #[test]
    fn d_060_jitter_spreads_by_a_fifth_either_way() {
        let schedule = RetrySchedule::default();
        assert_eq!(schedule.wait(1, 0), Duration::from_secs(240));
        assert_eq!(schedule.wait(1, u16::MAX), Duration::from_secs(360));
    }

    #[test]
    fn d_060_a_delivery_is_tried_for_four_to_five_days_with_half_an_hour_or_more_between_attempts() {
        let schedule = RetrySchedule::default();
        let days = schedule.age_max.as_secs_f64() / 86_400.0;
        assert!((4.0..=5.0).contains(&days), "{days} days");
        let (mut tried, mut attempts) = (Duration::ZERO, 0);
        while tried < schedule.age_max {
            attempts += 1;
            tried += schedule.wait(attempts, u16::MAX / 2);
        }
        assert!(schedule.age_max / attempts >= Duration::from_secs(30 * 60), "{attempts} attempts");
    }

    #[test]
    fn d_065_arithmetic_saturates() {
        let schedule = RetrySchedule {
            first: Duration::MAX,
            second: Duration::MAX,
            cap: Duration::MAX,
            distant: Duration::MAX,
            copies_max: u8::MAX,
            age_max: Duration::MAX,
        };
        assert!(schedule.wait(u32::MAX, u16::MAX) > Duration::from_secs(1 << 40));
        assert!(schedule.wait(1, 0) > Duration::from_secs(1 << 40));
    }

    #[test]
    fn d_053_a_fault_on_our_side_is_retried_in_seconds() {
        let schedule = RetrySchedule::default();
        let internal = Outcome::new(OutcomeKind::Internal, None, 0, "out of descriptors");
        let soft = Outcome::new(OutcomeKind::Soft, None, 451, "later");
        let attempts = Attempts { counted: 7, ..Attempts::default() };
        assert!(schedule.wait_after(&internal, attempts, u16::MAX) <= Duration::from_secs(12));
        assert_eq!(schedule.wait_after(&soft, attempts, 9), schedule.wait(7, 9));
        let long_fault = Attempts { internal: u8::MAX, ..attempts };
        assert_eq!(schedule.wait_after(&internal, long_fault, 9), schedule.wait(2, 9));
        assert!(!internal.is_counted() && soft.is_counted());
    }

    #[test]
    fn a_policy_refusal_that_is_tried_again_waits_long() {
        let schedule = RetrySchedule::default();
        let retry = Retry::Distant { tries_max: std::num::NonZeroU8::MIN };
        let outcome = Outcome { retry, ..Outcome::new(OutcomeKind::PolicyBlock, None, 550, "blocked") };
        let attempts = Attempts { counted: 1, ..Attempts::default() };
        assert!(schedule.wait_after(&outcome, attempts, 0) >= Duration::from_secs(6 * 60 * 60));
    }

    #[test]
    fn d_046_a_second_unknown_outcome_waits_long() {
        let schedule = RetrySchedule::default();
        let outcome = Outcome::new(OutcomeKind::Unknown, None, 0, "lost");
        let wait = |unknown| schedule.wait_after(&outcome, Attempts { counted: 1, unknown, internal: 0 }, 0);
        assert!(wait(0) < Duration::from_secs(300));
        assert!(wait(1) >= Duration::from_secs(6 * 60 * 60));
    }
}
