//! What an operator can set.

use std::time::Duration;

use postroad_core::RetrySchedule;
use postroad_ledger::Limits;
use postroad_raft::{NodeConfig, Timing, Voter};
use postroad_storage::LogConfig;
use serde::{Deserialize, Serialize};

use crate::directory::LeaseTimes;

/// `[queue]`: the settings of a queue node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// Where the other nodes reach this one: address and port.
    pub listen: String,
    /// Every queue node, this one among them, and where it can be reached. Comes from `[cluster]`.
    #[serde(skip)]
    pub voters: Vec<Voter>,
    /// The number of ledger groups. Comes from `[cluster]` and cannot be changed later.
    #[serde(skip)]
    pub ledger_groups: u16,
    /// Bytes of a segment of the log: 4 MiB to 1 GiB.
    pub segment_bytes: u64,
    /// Bytes of recent mail kept in memory for followers and first attempts.
    pub tail_bytes_max: u64,
    /// A follower that is further behind than this many bytes of log gets the whole state instead.
    pub log_retain_bytes_max: u64,
    /// A checkpoint of a group is written after so many bytes of log, or more where its state is large.
    pub checkpoint_bytes: u64,
    /// Bytes of submissions that may wait to be committed, per group; more are held back on their streams.
    pub waiting_bytes_max: u64,
    /// Bytes of events kept in memory, per group, for a consumer that does not read; at the bound the oldest go.
    /// The same on every queue node.
    pub event_bytes_max: u64,
    /// Chunks of large messages that may wait for the rest of their message, per group. The same on every queue node.
    pub staged_chunks_max: usize,
    /// How long a message is tried when its sender does not say, in seconds.
    pub message_expiry_secs: u64,
    /// When a delivery that did not succeed is tried again.
    pub retry: RetryConfig,
    /// How fast a dead leader is noticed.
    pub election: ElectionConfig,
    /// How long outbound nodes may use their sources without hearing from the directory.
    pub lease: LeaseConfig,
}

impl Default for QueueConfig {
    fn default() -> Self {
        let (log, node, limits) = (LogConfig::default(), NodeConfig::default(), Limits::default());
        Self {
            listen: "127.0.0.1:7400".to_owned(),
            voters: Vec::new(),
            ledger_groups: 1,
            segment_bytes: log.segment_bytes,
            tail_bytes_max: log.tail_bytes_max as u64,
            log_retain_bytes_max: node.log_retain_bytes_max,
            checkpoint_bytes: node.checkpoint_bytes,
            waiting_bytes_max: 64 << 20,
            event_bytes_max: limits.event_bytes_max,
            staged_chunks_max: limits.staged_chunks_max,
            message_expiry_secs: RetrySchedule::default().age_max.as_secs(),
            retry: RetryConfig::default(),
            election: ElectionConfig::default(),
            lease: LeaseConfig::default(),
        }
    }
}

/// `[queue.retry]`: the waits between attempts, each spread by a fifth either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// The wait after the first attempt, in seconds.
    pub first_secs: u64,
    /// The wait after the second, in seconds; it doubles from there.
    pub second_secs: u64,
    /// No wait is longer, in seconds.
    pub cap_secs: u64,
    /// The wait where an early retry would harm, in seconds: after a refusal by policy that a rule says to try again, and
    /// from the second time that the reply to the final dot is lost.
    pub distant_secs: u64,
    /// How many copies a receiver may have that never confirms one: after so many lost replies to the final dot the
    /// delivery ends as `unconfirmed`; 0 for any number. The same on every queue node.
    pub copies_max: u8,
}

impl Default for RetryConfig {
    fn default() -> Self {
        let RetrySchedule { first, second, cap, distant, copies_max, .. } = RetrySchedule::default();
        Self {
            first_secs: first.as_secs(),
            second_secs: second.as_secs(),
            cap_secs: cap.as_secs(),
            distant_secs: distant.as_secs(),
            copies_max,
        }
    }
}

/// `[queue.election]`: how patient the groups are, in milliseconds; the same on every queue node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ElectionConfig {
    /// Between heartbeats.
    pub heartbeat_millis: u64,
    /// Silence after which an election may begin, at least.
    pub timeout_min_millis: u64,
    /// And at most.
    pub timeout_max_millis: u64,
}

impl Default for ElectionConfig {
    fn default() -> Self {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let Timing { heartbeat, election_min, election_max } = Timing::default();
        Self {
            heartbeat_millis: millis(heartbeat),
            timeout_min_millis: millis(election_min),
            timeout_max_millis: millis(election_max),
        }
    }
}

/// `[queue.lease]`: who may use a source, in seconds; the same on every queue node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaseConfig {
    /// How long a renewal counts.
    pub lease_secs: u64,
    /// How far clocks may drift apart in that time.
    pub drift_secs: u64,
    /// How much longer a source stays with an owner that is silent, before another gets it.
    pub grace_secs: u64,
    /// How long no outbound node may have come or gone before sources are moved, one by one, to those that own fewer.
    pub settle_secs: u64,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        let LeaseTimes { lease, drift, grace, settle } = LeaseTimes::default();
        Self {
            lease_secs: lease.as_secs(),
            drift_secs: drift.as_secs(),
            grace_secs: grace.as_secs(),
            settle_secs: settle.as_secs(),
        }
    }
}

impl QueueConfig {
    /// Returns what is wrong, as key and expectation.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let ElectionConfig { heartbeat_millis, timeout_min_millis, timeout_max_millis } = self.election;
        let checks = [
            (
                !(4 << 20..=1 << 30).contains(&self.segment_bytes),
                ("segment_bytes", "expected 4 MiB to 1 GiB, in bytes"),
            ),
            (self.waiting_bytes_max < 1 << 20, ("waiting_bytes_max", "expected at least 1 MiB, in bytes")),
            (self.event_bytes_max < 1 << 20, ("event_bytes_max", "expected at least 1 MiB, in bytes")),
            (self.retry.distant_secs == 0, ("retry.distant_secs", "expected at least 1")),
            (self.message_expiry_secs == 0, ("message_expiry_secs", "expected at least 1")),
            (
                self.lease.lease_secs * 1000 < timeout_max_millis * 3,
                ("lease", "expected `lease_secs` to be at least three times the longest election"),
            ),
            (
                heartbeat_millis == 0 || heartbeat_millis * 2 > timeout_min_millis,
                ("election", "expected `timeout_min_millis` to be at least twice `heartbeat_millis`"),
            ),
            (
                timeout_max_millis <= timeout_min_millis,
                ("election", "expected `timeout_max_millis` to be more than `timeout_min_millis`"),
            ),
        ];
        let wrong = checks.into_iter().filter(|(is_wrong, _)| *is_wrong);
        wrong.map(|(_, (key, expected))| (key, expected.to_owned())).collect()
    }

    pub(crate) fn log(&self) -> LogConfig {
        LogConfig {
            segment_bytes: self.segment_bytes,
            tail_bytes_max: usize::try_from(self.tail_bytes_max).unwrap_or(usize::MAX),
            ..LogConfig::default()
        }
    }

    pub(crate) fn node(&self) -> NodeConfig {
        let millis = Duration::from_millis;
        NodeConfig {
            timing: Timing {
                heartbeat: millis(self.election.heartbeat_millis),
                election_min: millis(self.election.timeout_min_millis),
                election_max: millis(self.election.timeout_max_millis),
            },
            log_retain_bytes_max: self.log_retain_bytes_max,
            checkpoint_bytes: self.checkpoint_bytes,
            ..NodeConfig::default()
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { event_bytes_max: self.event_bytes_max, staged_chunks_max: self.staged_chunks_max }
    }

    pub(crate) fn leases(&self) -> LeaseTimes {
        let LeaseConfig { lease_secs, drift_secs, grace_secs, settle_secs } = self.lease;
        let seconds = Duration::from_secs;
        LeaseTimes {
            lease: seconds(lease_secs),
            drift: seconds(drift_secs),
            grace: seconds(grace_secs),
            settle: seconds(settle_secs),
        }
    }

    pub(crate) fn retry_schedule(&self) -> RetrySchedule {
        RetrySchedule {
            first: Duration::from_secs(self.retry.first_secs),
            second: Duration::from_secs(self.retry.second_secs),
            cap: Duration::from_secs(self.retry.cap_secs),
            distant: Duration::from_secs(self.retry.distant_secs),
            copies_max: self.retry.copies_max,
            age_max: Duration::from_secs(self.message_expiry_secs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_good_and_nonsense_is_named() {
        assert_eq!(QueueConfig::default().problems(), []);
        let election = ElectionConfig { timeout_max_millis: 10, ..ElectionConfig::default() };
        let config = QueueConfig { segment_bytes: 1, election, ..QueueConfig::default() };
        let keys: Vec<&str> = config.problems().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["segment_bytes", "election"]);
    }
}
