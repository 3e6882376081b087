//! A queue node: the real one, on a simulated disk and network.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use postroad_core::{ByteSize, NodeId};
use postroad_net::Role;
use postroad_queue::{LeaseConfig, Queue, QueueConfig, QueueDeps, Replicas, RetryConfig, Voter};
use postroad_storage::Identity;
use postroad_telemetry::Health;

use super::{Place, Starting, address};
use crate::{
    network::Host,
    process::Process,
    world::{CLUSTER, LEDGER_GROUPS, QUEUE_NODES},
};

/// The groups of a node while it runs.
#[derive(Clone, Default)]
pub(crate) struct Groups(Arc<Mutex<Option<Replicas>>>);

impl Groups {
    /// Returns a clone of what it holds while the node runs.
    pub(crate) fn replicas(&self) -> Option<Replicas> {
        self.0.lock().clone()
    }

    pub(crate) fn clear(&self) {
        drop(self.0.lock().take());
    }
}

/// What somebody configured otherwise than [`config`].
#[derive(Clone, Copy, Default)]
pub(crate) struct Settings {
    pub(crate) event_bytes_max: Option<u64>,
    pub(crate) has_rare_checkpoints: bool,
}

pub(crate) fn start(place: &Place, starting: Starting, groups: &Groups, settings: Settings) -> Process {
    let Starting { number, seed, wall, disk, stop } = starting;
    let voter = |node| Voter { node: NodeId(node), address: address(node) };
    let deps = QueueDeps {
        identity: Identity { cluster: CLUSTER, node: NodeId(number) },
        voters: (1..=QUEUE_NODES).map(voter).collect(),
        ledger_groups: LEDGER_GROUPS,
        fs: Arc::new(disk),
        transport: place.transport(number, Role::Queue),
        health: Health::new(),
    };
    let groups = groups.clone();
    Process::start(Host(number), seed, wall, async move {
        match Queue::start(config(number, settings), deps).await {
            Ok(queue) => {
                *groups.0.lock() = Some(queue.replicas());
                queue.run(stop).await;
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, number, "a queue node cannot start");
            }
        }
    })
}

/// Small segments, frequent checkpoints and short waits: in half a minute everything happens that takes days elsewhere.
fn config(number: u64, settings: Settings) -> QueueConfig {
    let usual = QueueConfig::default();
    QueueConfig {
        listen: address(number).parse().expect("an address"),
        message_age_max: Duration::from_mins(10),
        segment_bytes: ByteSize::mib(1),
        spare_segments_max: 1,
        tail_bytes_max: ByteSize::kib(256),
        log_retain_bytes_max: ByteSize::kib(512),
        checkpoint_bytes: if settings.has_rare_checkpoints {
            usual.checkpoint_bytes
        } else {
            ByteSize::kib(128)
        },
        event_bytes_max: settings.event_bytes_max.map_or(usual.event_bytes_max, ByteSize),
        retry: RetryConfig {
            first_interval: Duration::from_secs(1),
            second_interval: Duration::from_secs(2),
            interval_max: Duration::from_secs(5),
            distant_interval: Duration::from_secs(5),
            ..RetryConfig::default()
        },
        lease: LeaseConfig {
            lease_duration: Duration::from_secs(3),
            clock_drift_max: Duration::from_millis(500),
            grace_period: Duration::from_secs(2),
            rebalance_delay: Duration::from_secs(3),
        },
        ..usual
    }
}
