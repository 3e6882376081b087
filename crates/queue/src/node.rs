//! A queue node: start, serve, and stop with its leadership transferred first.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::future::BoxFuture;
use postroad_core::{GroupId, NodeId, TenantId};
use postroad_net::{NodeListener, Role, Transport, peer_info, server_builder};
use postroad_raft::{Caller, DiskStatus, Group, Node, Status as GroupStatus, Voter};
use postroad_storage::{Fs, Identity, Log};
use postroad_telemetry::{Component, Health};
use tokio::{sync::watch, task::JoinSet, time};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    service::{Routes, interceptor::InterceptedService},
};

use crate::{
    config::QueueConfig,
    directory::{self, ClockCheck, DirectoryHost, DirectoryMachine, QueuedMessages},
    error::StartError,
    leaders::{Leaders, LeadersTask},
    ledger::{LedgerGroup, proposer::Proposer},
    metrics::{DiskMetrics, LogMetrics, ReplicationMetrics},
    nodes::Nodes,
    service::{NodeState, QueueService},
    transport::Peers,
};

/// How long to wait for other nodes to become leaders at shutdown.
const TRANSFER_WITHIN: Duration = Duration::from_secs(2);

/// How long streams may take to end at shutdown.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

const OBSERVE_EVERY: Duration = Duration::from_secs(2);

/// The gauges by site, tenant and pool look at every site, so they are updated only in every so many rounds.
const DEPTHS_EVERY: u32 = 5;

/// What a queue node needs from its process.
#[derive(Clone)]
pub struct QueueDeps {
    /// Which node of which cluster it is.
    pub identity: Identity,
    /// Every queue node of the cluster, this one included, and where it can be reached.
    pub voters: Vec<Voter>,
    /// The number of ledger groups in the cluster.
    pub ledger_groups: u16,
    /// The directory of its log and checkpoints.
    pub fs: Arc<dyn Fs>,
    /// How nodes reach each other.
    pub transport: Transport,
    /// Readiness.
    pub health: Health,
}

impl std::fmt::Debug for QueueDeps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueDeps").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// A queue node that has opened its log and listens; [`Queue::run`] serves.
pub struct Queue {
    address: String,
    listener: NodeListener,
    node: Node,
    log: Log,
    ledgers: Arc<BTreeMap<GroupId, LedgerGroup>>,
    proposers: Vec<Proposer>,
    directory: DirectoryHost,
    leaders: LeadersTask,
    service: QueueService,
    nodes: Nodes,
    disk_ready: Component,
    /// Ends the long streams.
    stopping: CancellationToken,
    is_alone: bool,
}

/// The groups of a queue node, to compare their states with those of other nodes.
#[derive(Clone)]
pub struct Replicas {
    directory: Group<DirectoryMachine>,
    ledgers: Arc<BTreeMap<GroupId, LedgerGroup>>,
}

impl Replicas {
    /// Returns each group with the index of the last entry that was applied here.
    #[must_use]
    pub fn applied(&self) -> Vec<(GroupId, u64)> {
        let ledgers = self.ledgers.iter().map(|(id, ledger)| (*id, ledger.group.applied()));
        std::iter::once((GroupId::DIRECTORY, self.directory.applied())).chain(ledgers).collect()
    }

    /// Returns the groups that this node leads, with the term.
    #[must_use]
    pub fn leading(&self) -> Vec<(GroupId, u64)> {
        let directory = self.directory.status().borrow().clone();
        let ledgers = self.ledgers.iter().map(|(id, ledger)| (*id, ledger.status()));
        let all = std::iter::once((GroupId::DIRECTORY, directory)).chain(ledgers);
        all.filter(|(_, status)| status.leading).map(|(group, status)| (group, status.term)).collect()
    }

    /// Returns true when this node votes in every group with its current disk.
    #[must_use]
    pub fn votes(&self) -> bool {
        self.directory.votes() && self.ledgers.values().all(|ledger| ledger.group.votes())
    }

    /// Returns true when every delivery has ended, and a consumer has read every event.
    #[must_use]
    pub fn is_idle(&self, consumer: &str) -> bool {
        self.ledgers.values().all(|ledger| ledger.is_idle(consumer))
    }

    /// Returns how many chunks wait for the rest of their messages.
    #[must_use]
    pub fn staged_chunks(&self) -> usize {
        self.ledgers.values().map(LedgerGroup::staged_chunks).sum()
    }

    /// Returns the groups that have dropped events before they were read, and still have their gap, with the number of the
    /// last one.
    #[must_use]
    pub fn dropped_through(&self) -> BTreeMap<GroupId, u64> {
        let dropped = |(id, ledger): (&GroupId, &LedgerGroup)| Some((*id, ledger.dropped_through()?));
        self.ledgers.iter().filter_map(dropped).collect()
    }

    /// Returns the number of a ledger group's last event here, and how many deliveries of each tenant have not ended after it.
    #[must_use]
    pub fn open_by_tenant(&self, group: GroupId) -> Option<(u64, Vec<(TenantId, u64)>)> {
        Some(self.ledgers.get(&group)?.open_by_tenant())
    }

    /// Returns the node's log.
    #[must_use]
    pub fn log(&self) -> &Log {
        self.directory.log()
    }

    /// Returns the index of the last entry that a group has applied here, and its state's hash, equal on replicas at that entry.
    #[must_use]
    pub fn state_hash(&self, group: GroupId) -> Option<(u64, u64)> {
        match group {
            GroupId::DIRECTORY => Some(self.directory.state_hash()),
            ledger => Some(self.ledgers.get(&ledger)?.group.state_hash()),
        }
    }
}

impl std::fmt::Debug for Replicas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Replicas").field(&self.applied()).finish()
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Queue {
    /// Opens the log and every group, and listens; does not wait for the other voters.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: QueueConfig, deps: QueueDeps) -> BoxFuture<'static, Result<Self, StartError>> {
        Box::pin(Self::open(config, deps))
    }

    async fn open(config: QueueConfig, deps: QueueDeps) -> Result<Self, StartError> {
        check_membership(&deps)?;
        let (ready, disk_ready) = (deps.health.component("queue"), deps.health.component("disk"));
        let address = config.listen.to_string();
        let listen = |source| StartError::Listen { address: address.clone(), source };
        let listener = deps.transport.bind(&address).await.map_err(listen)?;
        let log = open_log(&config, &deps).await?;
        let peers = Arc::new(Peers::new(deps.transport.clone()));
        let node = Node::new(config.node(), deps.voters.clone(), log.clone(), peers);
        let opened: Arc<OnceLock<Arc<BTreeMap<GroupId, LedgerGroup>>>> = Arc::default();
        let queued = queued_messages(opened.clone());
        let nodes = Nodes::new();
        let clock = clock_check(nodes.clone(), deps.identity.node);
        let directory = directory::start(&node, config.leases(), queued, clock).await?;
        let mut statuses = BTreeMap::from([(GroupId::DIRECTORY, directory.group.status())]);
        let (mut ledgers, mut proposers) = (BTreeMap::new(), Vec::new());
        for id in (1..=deps.ledger_groups).map(GroupId) {
            let (ledger, proposer) = LedgerGroup::open(&node, id, &config, directory.view.clone()).await?;
            statuses.insert(id, ledger.group.status());
            ledgers.insert(id, ledger);
            proposers.push(proposer);
        }
        let ledgers = Arc::new(ledgers);
        // The directory opens first, because the ledgers read it.
        let _ = opened.set(ledgers.clone());
        let (watched, leaders) = Leaders::new(deps.identity.node, statuses, ready);
        let stopping = CancellationToken::new();
        let state = NodeState {
            node: deps.identity.node,
            log: log.clone(),
            disk: node.disk_status(),
            directory: directory.group.clone(),
        };
        let service = QueueService::new(&config, ledgers.clone(), watched, state, stopping.clone());
        let is_alone = deps.voters.len() == 1;
        Ok(Self {
            address,
            listener,
            node,
            log,
            ledgers,
            proposers,
            directory,
            leaders,
            service,
            nodes,
            disk_ready,
            stopping,
            is_alone,
        })
    }

    /// Returns the gRPC services: Raft, queue, directory and nodes.
    #[must_use]
    pub fn services(&self) -> Routes {
        let raft = InterceptedService::new(self.node.service(), only_queue_nodes);
        Routes::new(raft)
            .add_service(self.service.clone().into_server())
            .add_service(self.directory.server())
            .add_service(self.nodes.clone().into_server())
    }

    /// Returns the groups, whose states can be compared while [`Queue::run`] serves.
    #[must_use]
    pub fn replicas(&self) -> Replicas {
        Replicas { directory: self.directory.group.clone(), ledgers: self.ledgers.clone() }
    }

    /// Serves until shutdown; then transfers leadership to other nodes and closes everything.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(self.serve(shutdown))
    }

    async fn serve(self, shutdown: CancellationToken) {
        let routes = self.services();
        let Self { node, ledgers, directory, stopping, listener, .. } = self;
        let (closed, ended) = (CancellationToken::new(), CancellationToken::new());
        let directory_group = directory.group.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(self.leaders.run());
        tasks.spawn(directory.run(stopping.clone()));
        for proposer in self.proposers {
            tasks.spawn(proposer.run(ended.clone()));
        }
        tasks.spawn(observe(directory_group.clone(), ledgers.clone(), self.log));
        tasks.spawn(watch_disk(node.disk_status(), self.disk_ready));
        let mut server = JoinSet::new();
        server.spawn(serve(routes, listener, closed.clone()));
        tracing::info!(address = %self.address, "queue node started");
        until_stopped(&shutdown, &mut tasks).await;
        if !self.is_alone {
            transfer_leadership(&directory_group, &ledgers).await;
        }
        stopping.cancel();
        ended.cancel();
        node.stop();
        directory_group.shutdown().await;
        for ledger in ledgers.values() {
            ledger.group.shutdown().await;
        }
        // Last: a group that no longer hears from its peers would stand for election.
        closed.cancel();
        if time::timeout(DRAIN_WITHIN, server.join_next()).await.is_err() {
            tracing::warn!("some streams did not end in time and were aborted");
            server.shutdown().await;
        }
        tasks.shutdown().await;
        tracing::info!("queue node stopped");
    }
}

fn queued_messages(ledgers: Arc<OnceLock<Arc<BTreeMap<GroupId, LedgerGroup>>>>) -> QueuedMessages {
    QueuedMessages::new(move |tenant| {
        let ledgers = ledgers.get().map(|ledgers| ledgers.values());
        let count = |ledger: &LedgerGroup| ledger.shared.with_ledger(|state| state.messages_of(tenant));
        ledgers.into_iter().flatten().map(count).sum()
    })
}

/// Asks what the other queue nodes have announced of their clocks.
fn clock_check(nodes: Nodes, own: NodeId) -> ClockCheck {
    ClockCheck::new(move || nodes.agree_on_time(own))
}

fn check_membership(deps: &QueueDeps) -> Result<(), StartError> {
    let node = deps.identity.node;
    if deps.voters.iter().any(|voter| voter.node == node) { Ok(()) } else { Err(StartError::NotAVoter(node)) }
}

async fn open_log(config: &QueueConfig, deps: &QueueDeps) -> Result<Log, StartError> {
    let (fs, config, identity) = (deps.fs.clone(), config.log(), deps.identity);
    let opened = postroad_env::blocking(move || Log::open(fs, config, identity)).await;
    Ok(opened.map_err(std::io::Error::other)??)
}

/// Only queue nodes may send entries and votes.
fn only_queue_nodes(mut request: Request<()>) -> Result<Request<()>, Status> {
    if let Some(peer) = peer_info(&request) {
        peer.require(&[Role::Queue])?;
        if let Some(identity) = peer.identity {
            request.extensions_mut().insert(Caller(identity.node));
        }
    }
    Ok(request)
}

async fn serve(routes: Routes, listener: NodeListener, closed: CancellationToken) {
    let server = server_builder().add_routes(routes);
    if let Err(error) = server.serve_with_incoming_shutdown(listener, closed.cancelled()).await {
        tracing::error!(%error, "the gRPC server of the queue node failed");
    }
}

/// Waits for shutdown. A task that panicked found a broken invariant: the process must not go on.
async fn until_stopped(shutdown: &CancellationToken, tasks: &mut JoinSet<()>) {
    let ended = tokio::select! {
        () = shutdown.cancelled() => return,
        ended = tasks.join_next() => ended,
    };
    match ended {
        Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // A task ends when its group stops: better to restart than to run without it.
        _ => tracing::error!("a group has stopped on this node"),
    }
}

/// Transfers leadership of every group to other voters, and waits a moment for that.
async fn transfer_leadership(
    directory: &Group<directory::DirectoryMachine>,
    ledgers: &BTreeMap<GroupId, LedgerGroup>,
) {
    let mut led = Vec::new();
    if directory.status().borrow().leading && directory.transfer().await.is_ok() {
        led.push(directory.status());
    }
    for ledger in ledgers.values() {
        if ledger.status().leading && ledger.group.transfer().await.is_ok() {
            led.push(ledger.group.status());
        }
    }
    let deadline = time::Instant::now() + TRANSFER_WITHIN;
    for status in led {
        if time::timeout_at(deadline, until_not_leading(status)).await.is_err() {
            tracing::warn!("no other node became leader in time");
            return;
        }
    }
}

async fn until_not_leading(mut status: watch::Receiver<GroupStatus>) {
    // An error means that the group has stopped, and so does not lead.
    let _ = status.wait_for(|status| !status.leading).await;
}

/// Reports whether the other queue nodes accept the disk; never returns.
async fn watch_disk(mut status: watch::Receiver<DiskStatus>, ready: Component) {
    let metrics = DiskMetrics::new();
    loop {
        let now = *status.borrow_and_update();
        ready.set_ready(now == DiskStatus::Accepted);
        metrics.observe(now);
        if status.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Updates the gauges of all groups and the log.
async fn observe(
    directory: Group<directory::DirectoryMachine>,
    ledgers: Arc<BTreeMap<GroupId, LedgerGroup>>,
    log: Log,
) {
    let metrics = LogMetrics::new();
    let mut directory_replication = ReplicationMetrics::new(GroupId::DIRECTORY);
    let mut replication: Vec<ReplicationMetrics> =
        ledgers.keys().map(|group| ReplicationMetrics::new(*group)).collect();
    let mut every = time::interval(OBSERVE_EVERY);
    for tick in 0_u32.. {
        every.tick().await;
        ledgers.values().for_each(LedgerGroup::observe);
        directory_replication.observe(directory.replication());
        for (ledger, replication) in ledgers.values().zip(&mut replication) {
            replication.observe(ledger.group.replication());
        }
        if tick % DEPTHS_EVERY == 0 {
            ledgers.values().for_each(LedgerGroup::observe_depths);
        }
        metrics.observe(&log);
    }
}
