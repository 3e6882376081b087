//! A node: the groups it hosts, on one log and one set of connections.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use openraft::{Config, Raft, SnapshotPolicy};
use parking_lot::RwLock;
use postroad_core::{GroupId, NodeId};
use postroad_storage::Log;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    checkpoint,
    disk_status::{DiskGuard, DiskStatus, PeerAcknowledgements},
    group::{Group, GroupHandle, Status, follow},
    host::Host,
    machine::{AnyMachine, Machine},
    membership::Joining,
    network::{Connect, FullPeers, Network, RefusedBy},
    reachability::Reachability,
    service::{Hosted, RaftServer, Service},
    store::Store,
};

/// A node that votes in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voter {
    /// The node.
    pub node: NodeId,
    /// Where it can be reached.
    pub address: String,
}

/// How patient the groups are. A dead leader is replaced within `election_max` twice and some round trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between heartbeats.
    pub heartbeat: Duration,
    /// Silence after which an election may begin, at least.
    pub election_min: Duration,
    /// And at most; also how long a leader's lease lasts.
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let millis = Duration::from_millis;
        Self { heartbeat: millis(100), election_min: millis(250), election_max: millis(450) }
    }
}

/// The settings of a node's groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// How patient the groups are.
    pub timing: Timing,
    /// A follower that is further behind than this gets a snapshot instead of the log, in bytes.
    pub log_retain_bytes_max: u64,
    /// A checkpoint is written after so many bytes of log, or 16 times the size of the last one if that is more.
    pub checkpoint_bytes: u64,
    /// Bytes of proposals that are not committed yet, per group.
    pub proposal_bytes_max: usize,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            timing: Timing::default(),
            log_retain_bytes_max: 1 << 30,
            checkpoint_bytes: 64 << 20,
            proposal_bytes_max: 32 << 20,
        }
    }
}

/// Why a group was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its checkpoint is unreadable or of an unknown version.
    #[error("cannot use the checkpoint of group `{group}`")]
    Checkpoint {
        /// The group.
        group: GroupId,
        /// Why.
        source: io::Error,
    },
    /// openraft refused the log or the settings.
    #[error("cannot start group `{group}`: {what}")]
    Start {
        /// The group.
        group: GroupId,
        /// What it said.
        what: String,
    },
}

/// Hosts groups until it is dropped.
pub struct Node {
    config: NodeConfig,
    log: Log,
    connect: Arc<dyn Connect>,
    full: FullPeers,
    acknowledged: PeerAcknowledgements,
    refused: RefusedBy,
    reachability: Reachability,
    service: Service,
    tasks: parking_lot::Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("identity", &self.log.identity()).finish_non_exhaustive()
    }
}

impl Node {
    /// Makes a node without groups; `voters` are the voters of every group, including this node.
    #[must_use]
    pub fn new(config: NodeConfig, voters: Vec<Voter>, log: Log, connect: Arc<dyn Connect>) -> Self {
        let groups = Arc::new(RwLock::new(HashMap::new()));
        let service = Service {
            identity: log.identity(),
            log: log.clone(),
            voters: voters.into(),
            disk_guard: DiskGuard::new(log.clone()),
            groups,
            stopping: CancellationToken::new(),
        };
        Self {
            config,
            log,
            connect,
            full: FullPeers::default(),
            acknowledged: PeerAcknowledgements::default(),
            refused: RefusedBy::default(),
            reachability: Reachability::default(),
            service,
            tasks: parking_lot::Mutex::new(JoinSet::new()),
        }
    }

    /// Watches this node's disk as the other nodes see it.
    #[must_use]
    pub fn disk_status(&self) -> watch::Receiver<DiskStatus> {
        self.service.disk_guard.subscribe()
    }

    /// Returns the gRPC service that peers call.
    #[must_use]
    pub fn service(&self) -> RaftServer {
        self.service.clone().into_server()
    }

    /// Opens a group: restores the last checkpoint, and applies later entries once a leader says that they are committed.
    /// A new group is formed once all voters are up; a node with a new disk joins.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open_group<M: Machine>(&self, group: GroupId, machine: M) -> Result<Group<M>, OpenError> {
        Ok(Group::new(self.open(group, Box::new(machine)).await?))
    }

    fn open(
        &self,
        group: GroupId,
        machine: Box<dyn AnyMachine>,
    ) -> BoxFuture<'_, Result<GroupHandle, OpenError>> {
        Box::pin(self.restore(group, machine))
    }

    async fn restore(&self, group: GroupId, machine: Box<dyn AnyMachine>) -> Result<GroupHandle, OpenError> {
        let log = self.log.clone();
        let loaded = postroad_env::blocking(move || Host::load(group, log, machine)).await;
        let host = loaded
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|source| OpenError::Checkpoint { group, source })?;
        let identity = self.log.identity();
        let network = self.network(group);
        let store = Store { group, log: self.log.clone() };
        let start = |what: String| OpenError::Start { group, what };
        let config = openraft_config(&self.config).map_err(|error| start(error.to_string()))?;
        let raft = Raft::new(identity.node.0, config, network.clone(), store, host.clone())
            .await
            .map_err(|error| start(error.to_string()))?;
        self.service.groups.write().insert(group, Hosted { group, raft: raft.clone() });
        let (log, voters) = (self.log.clone(), self.service.voters.clone());
        let joining = Joining { group, raft: raft.clone(), host: host.clone(), log, network, voters };
        let (status, watched) = watch::channel(Status::default());
        let mut tasks = self.tasks.lock();
        tasks.spawn(joining.run());
        tasks.spawn(follow(raft.clone(), status));
        tasks.spawn(checkpoint::run(raft.clone(), host.clone(), self.config));
        drop(tasks);
        let proposal_bytes_max = self.config.proposal_bytes_max;
        Ok(GroupHandle::new(group, raft, host, watched, self.full.clone(), proposal_bytes_max))
    }

    fn network(&self, group: GroupId) -> Network {
        Network {
            cluster: self.log.identity().cluster,
            group,
            log: self.log.clone(),
            connect: self.connect.clone(),
            full: self.full.clone(),
            acknowledged: self.acknowledged.clone(),
            refused: self.refused.clone(),
            reachability: self.reachability.clone(),
            disk_guard: self.service.disk_guard.clone(),
        }
    }

    /// Ends the node's tasks and the streams that leaders send entries on; groups are shut down by their handles.
    pub fn stop(&self) {
        self.service.stopping.cancel();
        self.tasks.lock().abort_all();
        self.service.groups.write().clear();
    }
}

fn openraft_config(config: &NodeConfig) -> Result<Arc<Config>, openraft::ConfigError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        heartbeat_interval: millis(config.timing.heartbeat),
        heartbeat_min_interval: Some(0),
        election_timeout_min: millis(config.timing.election_min),
        election_timeout_max: millis(config.timing.election_max),
        // Entries are few and large.
        max_payload_entries: 256,
        // Checkpoints and purges are triggered by bytes, not by entries.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: u64::MAX,
        install_snapshot_timeout: 600_000,
        // A node that was cut off must not depose a leader that all others follow.
        enable_pre_vote: Some(true),
        // A restarted leader needs an election like any other node: its followers may have committed entries that its own
        // disk lacks, and it would write other entries at those positions.
        enable_leader_restore: Some(false),
        backoff: "50ms 100ms 200ms ..500ms".to_owned(),
        ..Config::default()
    };
    Ok(Arc::new(config.validate()?))
}
