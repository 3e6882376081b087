//! When a deferred delivery is retried, and when it expires.

use std::time::Duration;

use crate::{Outcome, OutcomeKind};

/// The wait after an attempt that failed on our side: the receiver was not asked, and the fault may soon be over.
const INTERNAL_WAIT: Duration = Duration::from_secs(10);

/// Waits between attempts. Default: 5 min, 20 min, then doubling up to 4 h, for 5 days; each ±20 %.
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
    /// Older deliveries expire.
    pub age_max: Duration,
}

impl Default for RetrySchedule {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(5 * 60),
            second: Duration::from_secs(20 * 60),
            cap: Duration::from_secs(4 * 60 * 60),
            age_max: Duration::from_secs(5 * 24 * 60 * 60),
        }
    }
}

impl RetrySchedule {
    /// Returns the wait after an attempt with this outcome, which was the delivery's attempt number `attempt`.
    #[must_use]
    pub fn wait_after(&self, outcome: &Outcome, attempt: u32, jitter: u16) -> Duration {
        match outcome.kind {
            OutcomeKind::Internal => spread(INTERNAL_WAIT, jitter),
            _ => self.wait(attempt, jitter),
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
    fn waits_double_up_to_the_cap() {
        let schedule = RetrySchedule::default();
        let minutes = |attempt| schedule.wait(attempt, u16::MAX / 2).as_secs_f64() / 60.0;
        let expected = [(1, 5.0), (2, 20.0), (3, 40.0), (4, 80.0), (5, 160.0), (6, 240.0), (u32::MAX, 240.0)];
        for (attempt, wait) in expected {
            assert!((minutes(attempt) - wait).abs() / wait < 0.002, "attempt {attempt}");
        }
    }

    #[test]
    fn jitter_spreads_by_a_fifth_either_way() {
        let schedule = RetrySchedule::default();
        assert_eq!(schedule.wait(1, 0), Duration::from_secs(240));
        assert_eq!(schedule.wait(1, u16::MAX), Duration::from_secs(360));
    }

    #[test]
    fn arithmetic_saturates() {
        let schedule = RetrySchedule {
            first: Duration::MAX,
            second: Duration::MAX,
            cap: Duration::MAX,
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
        assert!(schedule.wait_after(&internal, 7, u16::MAX) <= Duration::from_secs(12));
        assert_eq!(schedule.wait_after(&soft, 7, 9), schedule.wait(7, 9));
        assert!(!internal.is_counted() && soft.is_counted());
    }
}
