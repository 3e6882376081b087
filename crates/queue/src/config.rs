//! The settings of a queue node.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use postroad_core::{ByteSize, RetrySchedule};
use postroad_ledger::Limits;
use postroad_raft::{NodeConfig, Timing};
use postroad_settings::{Rules, require, settings};
use postroad_storage::LogConfig;

use crate::directory::LeaseTimes;

settings! {
    /// How a queue node stores and schedules mail.
    pub struct QueueConfig {
        /// Where the other nodes of the cluster connect.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 7400));
        /// How long delivery of a message is tried.
        message_age_max: Duration = RetrySchedule::default().age_max,
            within Duration::from_mins(1)..=Duration::from_hours(30 * 24);
        /// The size of a log segment.
        segment_bytes: ByteSize = ByteSize(LogConfig::default().segment_bytes),
            within ByteSize::mib(4)..=ByteSize::gib(1);
        /// Empty segments that are kept to be reused, besides the reserve for a full disk.
        spare_segments_max: usize = LogConfig::default().spares_max, within 0..=1000;
        /// Log entries written and synced together.
        log_batch_bytes_max: ByteSize = ByteSize(LogConfig::default().batch_bytes_max as u64),
            within ByteSize::kib(64)..=ByteSize::mib(64);
        /// Recent log entries kept in memory for followers and first delivery attempts.
        tail_bytes_max: ByteSize = ByteSize(LogConfig::default().tail_bytes_max as u64),
            within ByteSize::mib(1)..=ByteSize::gib(64);
        /// A follower that is further behind gets a snapshot instead of log entries.
        log_retain_bytes_max: ByteSize = ByteSize(NodeConfig::default().log_retain_bytes_max),
            within ByteSize::mib(4)..=ByteSize::gib(1024);
        /// A checkpoint of a group is written after this much log, or 16 times its own size if that is more.
        checkpoint_bytes: ByteSize = ByteSize(NodeConfig::default().checkpoint_bytes),
            within ByteSize::mib(1)..=ByteSize::gib(64);
        /// Proposed entries that are not committed yet, per group.
        proposal_bytes_max: ByteSize = ByteSize(NodeConfig::default().proposal_bytes_max as u64),
            within ByteSize::mib(1)..=ByteSize::gib(1);
        /// Submissions that may wait for their commit, per group.
        /// At the limit ingress nodes are held back.
        waiting_bytes_max: ByteSize = ByteSize::mib(64), within ByteSize::mib(1)..=ByteSize::gib(64);
        /// Events kept in memory for consumers that have not read them, per group; at the limit the oldest are dropped.
        /// Must be the same on every queue node.
        event_bytes_max: ByteSize = ByteSize(Limits::default().event_bytes_max),
            within ByteSize::mib(1)..=ByteSize::gib(64);
        /// Chunks of large messages that may wait for the rest of their message, per group.
        /// Must be the same on every queue node.
        staged_chunks_max: usize = Limits::default().staged_chunks_max, within 512..=1_000_000;
        /// Sites, tenants and the like that `postroad queue list` distinguishes, per group; deliveries of further ones are
        /// counted together.
        summary_rows_max: usize = 10_000, within 100..=1_000_000;
        /// When a deferred delivery is tried again.
        retry: RetryConfig;
        /// How fast a dead leader is replaced.
        election: ElectionConfig;
        /// How long outbound nodes may use their sources without contact to the directory.
        lease: LeaseConfig;
    }
    rules Self::rules;
}

settings! {
    /// The waits between delivery attempts, each spread by 20 % either way.
    pub struct RetryConfig {
        /// The wait after the first attempt.
        first_interval: Duration = RetrySchedule::default().first,
            within Duration::from_secs(1)..=Duration::from_hours(24);
        /// The wait after the second attempt.
        /// Every further wait is twice as long.
        second_interval: Duration = RetrySchedule::default().second,
            within Duration::from_secs(1)..=Duration::from_hours(24);
        /// The longest wait.
        interval_max: Duration = RetrySchedule::default().cap,
            within Duration::from_secs(1)..=Duration::from_hours(7 * 24);
        /// The wait where an early retry would harm: after a refusal by policy that a rule says to try again,
        /// and from the second time that the reply to the final dot is lost, or that an outbound node fails before it reports.
        distant_interval: Duration = RetrySchedule::default().distant,
            within Duration::from_secs(1)..=Duration::from_hours(7 * 24);
        /// Copies that a receiver may have that never confirms one.
        /// After so many lost replies to the final dot the delivery ends as `unconfirmed`; 0 for any number.
        /// Must be the same on every queue node.
        copies_max: u8 = RetrySchedule::default().copies_max, within 0..=255;
    }
    rules Self::rules;
}

settings! {
    /// Raft elections.
    pub struct ElectionConfig {
        /// The time between heartbeats of a leader.
        heartbeat_interval: Duration = Timing::default().heartbeat,
            within Duration::from_millis(10)..=Duration::from_secs(10);
        /// A follower that hears nothing for this long may call an election.
        timeout_min: Duration = Timing::default().election_min,
            within Duration::from_millis(20)..=Duration::from_mins(1);
        /// A follower that hears nothing for this long calls an election; each draws its time between the two.
        timeout_max: Duration = Timing::default().election_max,
            within Duration::from_millis(30)..=Duration::from_mins(1);
    }
    rules Self::rules;
}

settings! {
    /// Leases of outbound nodes on their sources; must be the same on every queue node.
    pub struct LeaseConfig {
        /// How long a lease lasts after each renewal.
        lease_duration: Duration = LeaseTimes::default().lease,
            within Duration::from_secs(1)..=Duration::from_hours(1);
        /// How far two clocks may drift apart during a lease.
        clock_drift_max: Duration = LeaseTimes::default().drift,
            within Duration::ZERO..=Duration::from_mins(1);
        /// How long the sources of a silent node are kept for it after its lease.
        grace_period: Duration = LeaseTimes::default().grace,
            within Duration::ZERO..=Duration::from_hours(1);
        /// How long no outbound node may have joined or left before sources are moved to nodes that have fewer.
        rebalance_delay: Duration = LeaseTimes::default().settle,
            within Duration::ZERO..=Duration::from_hours(1);
    }
}

impl QueueConfig {
    fn rules(&self, rules: &mut Rules<'_, '_>) {
        require!(rules, self.lease.lease_duration, self.election.timeout_max;
            self.lease.lease_duration >= self.election.timeout_max * 3,
            "expected at least three times `election.timeout_max`");
    }

    pub(crate) fn log(&self) -> LogConfig {
        LogConfig {
            segment_bytes: self.segment_bytes.bytes(),
            batch_bytes_max: self.log_batch_bytes_max.to_usize(),
            tail_bytes_max: self.tail_bytes_max.to_usize(),
            spares_max: self.spare_segments_max,
        }
    }

    pub(crate) fn node(&self) -> NodeConfig {
        NodeConfig {
            timing: Timing {
                heartbeat: self.election.heartbeat_interval,
                election_min: self.election.timeout_min,
                election_max: self.election.timeout_max,
            },
            log_retain_bytes_max: self.log_retain_bytes_max.bytes(),
            checkpoint_bytes: self.checkpoint_bytes.bytes(),
            proposal_bytes_max: self.proposal_bytes_max.to_usize(),
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { event_bytes_max: self.event_bytes_max.bytes(), staged_chunks_max: self.staged_chunks_max }
    }

    pub(crate) fn leases(&self) -> LeaseTimes {
        LeaseTimes {
            lease: self.lease.lease_duration,
            drift: self.lease.clock_drift_max,
            grace: self.lease.grace_period,
            settle: self.lease.rebalance_delay,
        }
    }

    pub(crate) fn retry_schedule(&self) -> RetrySchedule {
        RetrySchedule {
            first: self.retry.first_interval,
            second: self.retry.second_interval,
            cap: self.retry.interval_max,
            distant: self.retry.distant_interval,
            copies_max: self.retry.copies_max,
            age_max: self.message_age_max,
        }
    }
}

impl RetryConfig {
    fn rules(&self, rules: &mut Rules<'_, '_>) {
        require!(rules, self.interval_max, self.second_interval;
            self.interval_max >= self.second_interval, "expected at least `second_interval`");
    }
}

impl ElectionConfig {
    fn rules(&self, rules: &mut Rules<'_, '_>) {
        require!(rules, self.timeout_min, self.heartbeat_interval;
            self.timeout_min >= self.heartbeat_interval * 2, "expected at least twice `heartbeat_interval`");
        require!(rules, self.timeout_max, self.timeout_min;
            self.timeout_max > self.timeout_min, "expected more than `timeout_min`");
    }
}
