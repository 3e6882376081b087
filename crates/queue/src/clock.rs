//! The wall clock, as the leader stamps commands with it.

use std::time::Duration;

use postroad_core::Timestamp;

/// How far the wall clock may run ahead of the monotonic clock since the process started.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// Returns the time, ignoring a wall clock that is set forward while the process runs: the ledger's time never goes
/// back, and a jump of an hour would expire mail too early.
pub(crate) fn now() -> Timestamp {
    let started = postroad_env::started();
    bounded(started.wall, postroad_env::now().saturating_duration_since(started.steady), postroad_env::wall())
}

/// Returns how far the wall clock is ahead of [`now`].
pub(crate) fn ignored() -> Duration {
    postroad_env::wall().since(now())
}

fn bounded(start: Timestamp, passed: Duration, wall: Timestamp) -> Timestamp {
    wall.min(start.after(passed).after(AHEAD_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r_19_a_clock_that_is_set_forward_is_ignored() {
        let start = Timestamp::from_millis(1_000_000_000_000);
        let check = |passed_secs, wall_secs: u64, expected_secs: u64| {
            let at = |secs| start.after(Duration::from_secs(secs));
            let seen = bounded(start, Duration::from_secs(passed_secs), at(wall_secs));
            assert_eq!(seen, at(expected_secs));
        };
        check(10, 10, 10);
        check(10, 12, 12);
        check(10, 3600, 70);
        check(3600, 3600, 3600);
        assert_eq!(bounded(start, Duration::ZERO, Timestamp::ZERO), Timestamp::ZERO);
    }
}
