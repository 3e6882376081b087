//! Kills leaders under load, with nodes in the test's process or with real processes.
//!
//! How a node is killed and where the load comes from is up to [`Queues`]; timeouts are up to the caller.

use std::time::{Duration, Instant};

use postroad_core::GroupId;

/// How often a condition is checked.
const CHECK_EVERY: Duration = Duration::from_millis(10);

/// Queue nodes that can be killed under load, and how much of the load was acknowledged.
pub trait Queues {
    /// Why killing or starting failed.
    type Error;

    /// Returns the index of the running node that leads `group`, if known.
    fn leader(&mut self, group: GroupId) -> impl Future<Output = Option<usize>>;

    /// Kills a node without warning.
    fn kill(&mut self, index: usize) -> impl Future<Output = Result<(), Self::Error>>;

    /// Starts a killed node, and waits until it is ready.
    fn start_again(&mut self, index: usize) -> impl Future<Output = Result<(), Self::Error>>;

    /// Returns how many messages of `group` were acknowledged; for the directory, messages of all groups.
    fn acknowledged(&self, group: GroupId) -> u64;
}

/// A killed leader whose group accepts mail again under another one.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// The group that it led; it may have led others too.
    pub group: GroupId,
    /// Its index among the queue nodes.
    pub index: usize,
    /// When it was killed.
    pub at: Instant,
    /// How long until another node led the group.
    pub led_after: Duration,
    /// How long until a message was acknowledged under that leader.
    pub accepted_after: Duration,
}

/// A killed leader that is ready again.
#[derive(Clone, Copy, Debug)]
pub struct Kill {
    /// The group that it led; it may have led others too.
    pub group: GroupId,
    /// Its index among the queue nodes.
    pub index: usize,
    /// When it was killed.
    pub at: Instant,
    /// How long until another node led the group.
    pub led_after: Duration,
    /// How long until a message was acknowledged under that leader.
    pub accepted_after: Duration,
    /// How long until the killed node was ready again.
    pub ready_after: Duration,
}

/// Kills the leader of `group`, waits until the group accepts mail without it, and starts it again.
///
/// # Errors
/// The node cannot be killed or started.
pub async fn kill_leader<Q: Queues>(queues: &mut Q, group: GroupId) -> Result<Kill, Q::Error> {
    lose_leader(queues, group).await?.start_again(queues).await
}

/// Kills the leader of `group`, and waits until the group accepts mail without it.
///
/// # Errors
/// The node cannot be killed.
pub async fn lose_leader<Q: Queues>(queues: &mut Q, group: GroupId) -> Result<Loss, Q::Error> {
    let index = leader_other_than(queues, group, None).await;
    let at = postroad_env::now();
    queues.kill(index).await?;
    leader_other_than(queues, group, Some(index)).await;
    let led_after = postroad_env::since(at);
    let before = queues.acknowledged(group);
    while queues.acknowledged(group) == before {
        tokio::time::sleep(CHECK_EVERY).await;
    }
    Ok(Loss { group, index, at, led_after, accepted_after: postroad_env::since(at) })
}

impl Loss {
    /// Starts the killed node again, and waits until it is ready.
    ///
    /// # Errors
    /// The node cannot be started.
    pub async fn start_again<Q: Queues>(self, queues: &mut Q) -> Result<Kill, Q::Error> {
        let Self { group, index, at, led_after, accepted_after } = self;
        queues.start_again(index).await?;
        Ok(Kill { group, index, at, led_after, accepted_after, ready_after: postroad_env::since(at) })
    }
}

/// Waits for a leader other than `dead`: it may still be known as the leader for a moment.
async fn leader_other_than<Q: Queues>(queues: &mut Q, group: GroupId, dead: Option<usize>) -> usize {
    loop {
        if let Some(index) = queues.leader(group).await
            && Some(index) != dead
        {
            return index;
        }
        tokio::time::sleep(CHECK_EVERY).await;
    }
}

/// Returns the longest time without an acknowledgement between `from` and `until`, including the time after the last.
///
/// `times` are in order.
#[must_use]
pub fn worst_gap(times: &[Instant], from: Instant, until: Instant) -> Duration {
    let end = times.partition_point(|time| *time <= until);
    let last = end.checked_sub(1).map_or(from, |last| times[last]);
    longest_gap(times, from, until).max(until.saturating_duration_since(last))
}

/// Returns the longest gap between acknowledgements that ends after `from` and not after `until`.
///
/// So a gap that begins before a kill counts for it as a whole, and a gap that lasts into the next kill counts for that,
/// unless there is no other gap.
/// `times` are in order.
#[must_use]
pub fn longest_gap(times: &[Instant], from: Instant, until: Instant) -> Duration {
    let first = times.partition_point(|time| *time <= from);
    let end = times.partition_point(|time| *time <= until).max(first);
    let mut last = first.checked_sub(1).map_or(from, |before| times[before]);
    if first == end {
        return until.saturating_duration_since(last);
    }
    let mut longest = Duration::ZERO;
    for time in &times[first..end] {
        longest = longest.max(time.duration_since(last));
        last = *time;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All in milliseconds.
    #[track_caller]
    fn check_with(
        gap: impl Fn(&[Instant], Instant, Instant) -> Duration,
        times: &[u64],
        (from, until): (u64, u64),
        expected: u64,
    ) {
        let start = postroad_env::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let times: Vec<Instant> = times.iter().map(|time| at(*time)).collect();
        assert_eq!(gap(&times, at(from), at(until)), Duration::from_millis(expected));
    }

    #[test]
    fn a_gap_counts_for_the_last_kill_within_it() {
        #[track_caller]
        fn check(times: &[u64], span: (u64, u64), expected: u64) {
            check_with(longest_gap, times, span, expected);
        }
        check(&[0, 10, 40, 45, 90], (20, 95), 45);
        check(&[0, 10, 40, 45, 90], (20, 50), 30);
        check(&[0, 10, 40, 45, 90], (42, 45), 5);
        check(&[0, 10, 40], (50, 95), 55);
        check(&[60, 70], (0, 65), 60);
        check(&[60, 70], (0, 50), 50);
        check(&[], (0, 50), 50);
        check(&[20, 20], (20, 20), 0);
    }

    #[test]
    fn a_group_without_acknowledgements_at_the_end_has_a_gap_until_the_end() {
        #[track_caller]
        fn check(times: &[u64], span: (u64, u64), expected: u64) {
            check_with(worst_gap, times, span, expected);
        }
        check(&[10, 20, 30], (0, 90), 60);
        check(&[10, 60, 70], (0, 90), 50);
        check(&[40, 60, 90], (0, 90), 40);
        check(&[10, 95], (0, 90), 80);
        check(&[], (0, 90), 90);
    }

    /// Three nodes: when the leader is killed, the next one leads; every third query sees one more acknowledgement.
    struct Three {
        leader: usize,
        running: [bool; 3],
        queries: std::cell::Cell<u64>,
        /// The next query still returns the dead leader.
        stale: bool,
    }

    impl Queues for Three {
        type Error = String;

        async fn leader(&mut self, _: GroupId) -> Option<usize> {
            if std::mem::take(&mut self.stale) {
                return Some((self.leader + 2) % 3);
            }
            self.running[self.leader].then_some(self.leader)
        }

        async fn kill(&mut self, index: usize) -> Result<(), String> {
            self.running[index] = false;
            self.leader = (index + 1) % 3;
            self.stale = true;
            Ok(())
        }

        async fn start_again(&mut self, index: usize) -> Result<(), String> {
            if std::mem::replace(&mut self.running[index], true) {
                Err("it is running".into())
            } else {
                Ok(())
            }
        }

        fn acknowledged(&self, _: GroupId) -> u64 {
            self.queries.set(self.queries.get() + 1);
            self.queries.get() / 3
        }
    }

    #[tokio::test]
    async fn a_killed_leader_is_not_taken_for_the_next_one() {
        let mut three =
            Three { leader: 1, running: [true; 3], queries: std::cell::Cell::new(0), stale: false };
        for index in [1, 2, 0] {
            let kill = kill_leader(&mut three, GroupId(1)).await.unwrap();
            assert_eq!(kill.index, index);
            assert!(kill.led_after <= kill.accepted_after && kill.accepted_after <= kill.ready_after);
        }
        assert_eq!(three.running, [true; 3]);
    }
}
