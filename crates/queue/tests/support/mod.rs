//! A cluster of queue nodes in one process; each has its own runtime and disk, so that one can be killed alone.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "shared by several programs, each using a part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

pub mod deliverer;
pub mod outbound;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use postroad_cluster::{
    DirectoryClient, DirectoryWatch, Endpoints, LeaderCalls, LeaderWatch, SubmitConfig, Submitter,
};
use postroad_core::{ByteSize, ClusterId, Domain, GroupId, MessageId, NodeId, PoolId, Timestamp};
use postroad_directory::{Put, PutPool, PutSource, View};
use postroad_net::{Expect, MemoryNet, Role, Transport};
use postroad_proto::{
    message_id,
    queue::{self as wire, queue_service_client::QueueServiceClient},
};
use postroad_queue::{LeaseConfig, Queue, QueueConfig, QueueDeps, StartError, Voter};
use postroad_storage::{Disk as DiskName, DiskId, Fs, Identity, Origin, format, sim::SimFs};
use postroad_telemetry::{Health, LogFilter, TelemetryConfig};
use tokio::{
    runtime::{self, Runtime},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// The ledger group of most tests.
pub const GROUP: GroupId = GroupId(1);

/// The longest wait for any condition, on any machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

const CLUSTER: ClusterId = ClusterId(1);
const LEDGER_GROUPS: u16 = 1;

/// The disk of a node.
#[derive(Clone)]
pub enum Disk {
    Simulated(SimFs),
    Real(Arc<dyn Fs>),
}

impl Disk {
    fn fs(&self) -> Arc<dyn Fs> {
        match self {
            Self::Simulated(fs) => Arc::new(fs.clone()),
            Self::Real(fs) => fs.clone(),
        }
    }
}

struct Running {
    runtime: Runtime,
    health: Health,
    shutdown: CancellationToken,
    ended: JoinHandle<()>,
}

/// Queue nodes, and what a client of them needs.
pub struct Cluster {
    pub endpoints: Endpoints,
    pub leaders: watch::Receiver<postroad_cluster::LeaderTable>,
    pub views: watch::Receiver<Arc<View>>,
    pub directory: DirectoryClient,
    pub calls: LeaderCalls,
    pub submitter: Submitter,
    transport: Transport,
    voters: Vec<Voter>,
    config: QueueConfig,
    pool: PoolId,
    /// The disk of each node, and the node while it runs.
    nodes: Mutex<Vec<(Disk, Option<Running>)>>,
    _watches: (LeaderWatch, DirectoryWatch, JoinSet<()>),
}

impl Cluster {
    /// Starts nodes on simulated disks, with one source in one pool; every group has formed.
    pub async fn start(size: u64) -> Self {
        let disks = (0..size).map(|_| Disk::Simulated(SimFs::default())).collect();
        // The tests do not renew leases, so leases must not end.
        let lease = LeaseConfig { lease_duration: Duration::from_secs(600), ..LeaseConfig::default() };
        let config = QueueConfig { segment_bytes: ByteSize::mib(4), lease, ..QueueConfig::default() };
        Self::start_on(disks, config).await
    }

    pub async fn start_on(disks: Vec<Disk>, config: QueueConfig) -> Self {
        if let Some(log_filter) =
            std::env::var("POSTROAD_LOG").ok().and_then(|text| LogFilter::parse(&text).ok())
        {
            // Only the first test of the process starts it.
            let _ = postroad_telemetry::init(&TelemetryConfig { log_filter, ..Default::default() }, "test");
        }
        let transport = Transport::Memory(MemoryNet::new());
        let numbers = 1..=disks.len() as u64;
        let voters: Vec<Voter> =
            numbers.map(|node| Voter { node: NodeId(node), address: format!("127.0.0.1:{node}") }).collect();
        let channel = |voter: &Voter| {
            (voter.node, transport.channel(&voter.address, Expect::node(Role::Queue, voter.node)))
        };
        let endpoints: Endpoints = voters.iter().map(channel).collect();
        let (leaders, directory) = (LeaderWatch::start(&endpoints), DirectoryWatch::start(&endpoints));
        let table = leaders.subscribe();
        let mut tasks = JoinSet::new();
        let submit = SubmitConfig { deadline: PATIENCE, ..SubmitConfig::default() };
        let groups = (1..=LEDGER_GROUPS).map(GroupId);
        let submitter = Submitter::start(&mut tasks, &endpoints, &table, groups, submit);
        let size = disks.len();
        let nodes = Mutex::new(disks.into_iter().map(|disk| (disk, None)).collect());
        let mut cluster = Self {
            pool: PoolId(0),
            views: directory.subscribe(),
            directory: DirectoryClient::new(&endpoints, &table),
            calls: LeaderCalls::new(&endpoints, &table),
            leaders: table,
            endpoints,
            submitter,
            transport,
            voters,
            config,
            nodes,
            _watches: (leaders, directory, tasks),
        };
        for place in 0..size {
            cluster.format(place, Origin::Form);
            cluster.restart(place).await;
        }
        cluster.pool = cluster.apply_source("source").await;
        // A group forms while all nodes are up: a node that is killed before would keep it from ever having a leader.
        cluster.leader(GROUP).await;
        cluster
    }

    /// Formats the disk of a node, if it is empty.
    pub fn format(&self, place: usize, origin: Origin) {
        let identity = Identity { cluster: CLUSTER, node: self.voters[place].node };
        let fs = self.nodes.lock()[place].0.fs();
        format(fs.as_ref(), identity, DiskName { id: DiskId(fresh()), origin }).unwrap();
    }

    /// Starts a node on its disk.
    pub async fn restart(&self, place: usize) {
        self.try_restart(place).await.unwrap_or_else(|error| panic!("{error:?}"));
    }

    /// Tries to start a node on its disk.
    pub async fn try_restart(&self, place: usize) -> Result<(), StartError> {
        let voter = &self.voters[place];
        let config = QueueConfig { listen: voter.address.parse().unwrap(), ..self.config.clone() };
        let deps = QueueDeps {
            identity: Identity { cluster: CLUSTER, node: voter.node },
            voters: self.voters.clone(),
            ledger_groups: LEDGER_GROUPS,
            fs: self.nodes.lock()[place].0.fs(),
            transport: self.transport.clone(),
            health: Health::new(),
        };
        let health = deps.health.clone();
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(format!("queue-{}", voter.node))
            .enable_all()
            .build()
            .unwrap();
        let queue = loop {
            match runtime.spawn(Queue::start(config.clone(), deps.clone())).await.unwrap() {
                Ok(queue) => break queue,
                // A killed node takes a moment to release its address.
                Err(StartError::Listen { .. }) => time::sleep(Duration::from_millis(5)).await,
                Err(error) => {
                    runtime.shutdown_background();
                    return Err(error);
                }
            }
        };
        let shutdown = CancellationToken::new();
        let ended = runtime.spawn(queue.run(shutdown.clone()));
        self.nodes.lock()[place].1 = Some(Running { runtime, health, shutdown, ended });
        Ok(())
    }

    /// Waits until a running node knows a leader of every group.
    pub async fn until_ready(&self, place: usize) {
        let health = self.nodes.lock()[place].1.as_ref().unwrap().health.clone();
        let ready = async {
            while !health.is_ready() {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(PATIENCE, ready).await.expect("the node knows a leader of every group");
    }

    /// Kills a node; its disk keeps only what was synced.
    pub fn kill(&self, place: usize) {
        let mut nodes = self.nodes.lock();
        let (disk, node) = &mut nodes[place];
        if let Disk::Simulated(fs) = disk {
            fs.fail_after(0);
            *disk = Disk::Simulated(fs.power_cut(|| false));
        }
        node.take().unwrap().runtime.shutdown_background();
    }

    /// Makes the syncs of a disk succeed without doing anything.
    pub fn forget_syncs(&self, place: usize) {
        if let (Disk::Simulated(fs), _) = &self.nodes.lock()[place] {
            fs.forget_syncs();
        }
    }

    /// Bounds the disk of a node.
    pub fn set_disk_capacity(&self, place: usize, bytes: Option<u64>) {
        if let (Disk::Simulated(fs), _) = &self.nodes.lock()[place] {
            fs.set_capacity(bytes);
        }
    }

    /// Asks a node to stop and waits until it has.
    pub async fn stop(&self, place: usize) {
        let node = self.nodes.lock()[place].1.take().unwrap();
        node.shutdown.cancel();
        node.ended.await.unwrap();
        node.runtime.shutdown_background();
    }

    /// The positions of the running nodes.
    pub fn running(&self) -> Vec<usize> {
        let nodes = self.nodes.lock();
        (0..nodes.len()).filter(|place| nodes[*place].1.is_some()).collect()
    }

    /// Waits for a leader of `group`, and returns its position.
    pub async fn leader(&self, group: GroupId) -> usize {
        let mut leaders = self.leaders.clone();
        let known = leaders.wait_for(|table| table.contains_key(&group));
        let table = time::timeout(PATIENCE, known).await.expect("the group has a leader").unwrap();
        self.place(table[&group].node)
    }

    /// The position of the known leader of `group`.
    pub fn known_leader(&self, group: GroupId) -> Option<usize> {
        self.leaders.borrow().get(&group).map(|leader| self.place(leader.node))
    }

    fn place(&self, node: NodeId) -> usize {
        self.voters.iter().position(|voter| voter.node == node).unwrap()
    }

    pub fn channel(&self, place: usize) -> Channel {
        self.endpoints[&self.voters[place].node].clone()
    }

    /// A client of one node.
    pub fn client(&self, place: usize) -> QueueServiceClient<Channel> {
        client(self.channel(place))
    }

    async fn apply_source(&self, name: &str) -> PoolId {
        let source = PutSource {
            name: name.into(),
            address: None,
            helo: Domain::parse("out.sender.example").unwrap(),
            nodes: Vec::new(),
        };
        let pool = PutPool { name: "pool".into(), members: vec![(name.into(), 1)] };
        let puts = [Put::Source(source), Put::Pool(pool)];
        self.directory.apply(&puts, &[], postroad_cluster::ApplyOptions::default(), PATIENCE).await.unwrap();
        let mut views = self.views.clone();
        let has_pool = views.wait_for(|view| view.pools().next().is_some());
        let view = time::timeout(PATIENCE, has_pool).await.expect("the pool is seen").unwrap();
        view.pools().next().unwrap().id
    }

    /// The pool that [`Cluster::start`] created.
    pub fn pool(&self) -> PoolId {
        self.pool
    }

    /// A message for one recipient.
    pub fn message(&self, content: impl Into<Bytes>) -> (MessageId, wire::Submission) {
        let content = content.into();
        let id = MessageId::new(now(), GROUP, fresh());
        let recipient = wire::Recipient {
            address: "b@receiver.example".to_owned(),
            site: "receiver.example".to_owned(),
            pool: self.pool().0,
            not_before_millis: 0,
        };
        let submission = wire::Submission {
            message_id: message_id(id),
            tenant: 1,
            sender: Some("a@sender.example".to_owned()),
            recipients: vec![recipient],
            size_bytes: content.len() as u64,
            content: vec![content],
            ..Default::default()
        };
        (id, submission)
    }

    /// Submits a message.
    pub async fn accept(&self, content: impl Into<Bytes>) -> MessageId {
        let (id, submission) = self.message(content);
        self.submitter.submit(id, submission).await.unwrap();
        id
    }

    /// The leader's view of a message; `None` when it has ended.
    pub async fn view(&self, id: MessageId) -> Option<wire::MessageView> {
        let request = wire::GetMessageRequest { message_id: message_id(id), tenant: 0 };
        let call = async |channel| client(channel).get_message(request.clone()).await;
        match self.calls.call(id.group(), PATIENCE, call).await {
            Ok(view) => Some(view.into_inner()),
            Err(postroad_cluster::CallError::Refused { code: tonic::Code::NotFound, .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The only delivery of a message, as the leader sees it.
    pub async fn delivery(&self, id: MessageId) -> wire::DeliveryView {
        self.view(id).await.unwrap().deliveries.remove(0)
    }

    /// Waits until a message has ended for every recipient.
    pub async fn until_ended(&self, id: MessageId) {
        time::timeout(PATIENCE, async {
            while self.view(id).await.is_some() {
                time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
    }

    pub async fn change(&self, id: MessageId, change: wire::Change) -> wire::ChangeResult {
        let request = wire::ChangeMessageRequest {
            message_id: message_id(id),
            change: change.into(),
            tenant: 0,
            actor: "ann".into(),
        };
        let call = async |channel| client(channel).change_message(request.clone()).await;
        let response = self.calls.call(id.group(), PATIENCE, call).await.unwrap().into_inner();
        response.results().next().unwrap()
    }

    /// Reads events from number `from` on until `count` are there.
    pub async fn events(&self, from: u64, count: usize) -> Vec<wire::Event> {
        let mut events = Vec::new();
        time::timeout(PATIENCE, async {
            while events.len() < count {
                let next = from + events.len() as u64;
                let request = wire::EventsRequest { group: GROUP.0.into(), from: next, batch_max: 0 };
                let place = self.leader(GROUP).await;
                let Ok(stream) = self.client(place).events(request).await else { continue };
                let mut stream = stream.into_inner();
                while events.len() < count
                    && let Ok(Some(batch)) = stream.message().await
                {
                    events.extend(batch.events);
                }
            }
        })
        .await
        .unwrap();
        events
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.nodes.lock().drain(..).filter_map(|(_, node)| node) {
            node.runtime.shutdown_background();
        }
    }
}

pub fn client(channel: Channel) -> QueueServiceClient<Channel> {
    QueueServiceClient::new(channel).max_decoding_message_size(16 << 20).max_encoding_message_size(16 << 20)
}

pub fn now() -> Timestamp {
    postroad_env::wall()
}

/// Returns a new number.
pub fn fresh() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The short name of an event's kind.
pub fn kind(event: &wire::Event) -> &'static str {
    use wire::event::Kind;
    match event.kind {
        Some(Kind::Accepted(_)) => "accepted",
        Some(Kind::AttemptEnded(_)) => "attempt",
        Some(Kind::Ended(_)) => "ended",
        Some(Kind::Held(_)) => "held",
        Some(Kind::Released(_)) => "released",
        Some(Kind::Retried(_)) => "retried",
        Some(Kind::ChangeRequested(_)) => "requested",
        Some(Kind::Gap(_)) => "gap",
        None => "nothing",
    }
}
