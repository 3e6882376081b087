//! The directory over real logs and memory pipes, used by operators, outbound nodes and watchers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{sync::Arc, time::Duration};

use postroad_cluster::{
    Applied, ApplyOptions, CallError, Claim, DirectoryClient, DirectoryWatch, Endpoints, LeaderTable,
    SuspendOptions,
};
use postroad_core::{ClusterId, Domain, NodeId, Scope};
use postroad_directory::{
    ItemName, Kind, Put, PutPool, PutSource, PutSuspension, PutTenant, ScopeName, SenderDomains, View,
};
use postroad_net::{Expect, MemoryNet, Role, Transport, server_builder};
use postroad_queue::directory::{self, ClockCheck, DirectoryMachine, LeaseTimes, QueuedMessages};
use postroad_raft::{Connect, Group, Node, NodeConfig, Purpose, Voter};
use postroad_storage::{Disk, DiskId, Identity, Log, LogConfig, Origin, format, sim::SimFs};
use tokio::{sync::watch, task::JoinSet, time};
use tokio_util::sync::CancellationToken;
use tonic::{Code, service::Routes, transport::Channel};

/// The longest wait for a call or a condition, on any machine.
const WITHIN: Duration = Duration::from_secs(60);

/// Shorter than the defaults, in the same proportions.
const TIMES: LeaseTimes = LeaseTimes {
    lease: Duration::from_millis(1000),
    drift: Duration::from_millis(100),
    grace: Duration::from_millis(300),
    settle: Duration::from_millis(500),
};

struct Pipes(Transport);

impl Connect for Pipes {
    fn channel(&self, node: NodeId, address: &str, _: Purpose) -> Channel {
        self.0.channel(address, Expect::node(Role::Queue, node))
    }
}

/// A queue node that hosts only the directory.
struct Running {
    node: Node,
    group: Group<DirectoryMachine>,
    tasks: JoinSet<()>,
}

impl Running {
    async fn start(voter: &Voter, voters: &[Voter], transport: &Transport) -> Self {
        let identity = Identity { cluster: ClusterId(1), node: voter.node };
        let config = LogConfig { segment_bytes: 1 << 20, ..LogConfig::default() };
        let fs = SimFs::default();
        format(&fs, identity, Disk { id: DiskId(voter.node.0), origin: Origin::Form }).unwrap();
        let log = Log::open(Arc::new(fs), config, identity).unwrap();
        let node = Node::new(NodeConfig::default(), voters.to_vec(), log, Arc::new(Pipes(transport.clone())));
        // The second tenant has mail.
        let queued = QueuedMessages::new(|tenant| u64::from(tenant.0 == 2) * 3);
        let host = directory::start(&node, TIMES, queued, ClockCheck::new(|| true)).await.unwrap();
        let group = host.group.clone();
        let routes = Routes::new(node.service()).add_service(host.server());
        let listener = transport.bind(&voter.address).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            server_builder().add_routes(routes).serve_with_incoming(listener).await.unwrap();
        });
        tasks.spawn(host.run(CancellationToken::new()));
        Self { node, group, tasks }
    }

    /// Stops without flushing, as if killed.
    async fn kill(mut self) {
        self.tasks.shutdown().await;
        self.node.stop();
        self.group.shutdown().await;
    }
}

struct Cluster {
    nodes: Vec<Option<Running>>,
    endpoints: Endpoints,
    client: DirectoryClient,
    _leaders: watch::Sender<LeaderTable>,
}

impl Cluster {
    async fn start(size: u64) -> Self {
        let transport = Transport::Memory(MemoryNet::new());
        let voters = (1..=size).map(|id| Voter { node: NodeId(id), address: format!("queue-{id}") });
        let voters: Vec<Voter> = voters.collect();
        let mut nodes = Vec::new();
        for voter in &voters {
            nodes.push(Some(Running::start(voter, &voters, &transport).await));
        }
        let channel = |voter: &Voter| transport.channel(&voter.address, Expect::any(Role::Queue));
        let endpoints: Endpoints = voters.iter().map(|voter| (voter.node, channel(voter))).collect();
        // No leader is known: calls must find it.
        let (leaders, table) = watch::channel(LeaderTable::new());
        let client = DirectoryClient::new(&endpoints, &table);
        Self { nodes, endpoints, client, _leaders: leaders }
    }

    async fn apply(&self, puts: &[Put]) -> Applied {
        self.client.apply(puts, &[], ApplyOptions::default(), WITHIN).await.unwrap()
    }

    async fn claim(&self, node: u64, incarnation: u64, replaces: Option<u64>) -> Claim {
        self.client.claim(NodeId(node), incarnation, replaces, WITHIN).await.unwrap()
    }

    async fn renew(&self, node: u64, incarnation: u64) -> Result<(), CallError> {
        self.client.renew(NodeId(node), incarnation, WITHIN).await.map(drop)
    }

    /// Waits for a leader, and returns its position.
    async fn leader(&self) -> usize {
        let leads =
            |node: &Option<Running>| node.as_ref().is_some_and(|node| node.group.status().borrow().leading);
        loop {
            if let Some(place) = self.nodes.iter().position(leads) {
                return place;
            }
            time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn source(name: &str) -> Put {
    let helo = Domain::parse("mail.example").unwrap();
    Put::Source(PutSource { name: name.into(), address: None, helo, nodes: Vec::new() })
}

fn demo() -> Vec<Put> {
    vec![
        Put::Tenant(PutTenant {
            name: "demo".into(),
            domains: SenderDomains::Any,
            pool: "default".into(),
            message_size_max: None,
        }),
        Put::Pool(PutPool { name: "default".into(), members: vec![("default".into(), 1)] }),
        source("default"),
    ]
}

fn applied_at(revision: u64, changed: u32) -> Applied {
    Applied { revision, changed, warnings: Vec::new() }
}

/// The owner of each source, 0 for none.
fn owners(view: &View) -> Vec<u64> {
    view.sources().map(|source| source.owner.map_or(0, |owner| owner.node.0)).collect()
}

async fn wait_until(view: &mut watch::Receiver<Arc<View>>, condition: impl FnMut(&Arc<View>) -> bool) {
    time::timeout(WITHIN, view.wait_for(condition)).await.expect("in time").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_every_watch_and_repeating_it_changes_nothing() {
    let cluster = Cluster::start(1).await;
    let watching = DirectoryWatch::start(&cluster.endpoints);
    let mut view = watching.subscribe();
    let dry_run = ApplyOptions { dry_run: true, ..ApplyOptions::default() };
    let dry = cluster.client.apply(&demo(), &[], dry_run, WITHIN).await.unwrap();
    assert_eq!(dry, applied_at(1, 3));
    let applied = cluster.apply(&demo()).await;
    assert_eq!(applied, applied_at(2, 3));
    wait_until(&mut view, |view| view.revision() == 2).await;
    assert!(view.borrow().item(Kind::Tenant, "demo").is_some());
    let log_before = cluster.nodes[0].as_ref().unwrap().group.applied();
    assert_eq!(cluster.apply(&demo()).await, applied_at(2, 0));
    assert_eq!(cluster.nodes[0].as_ref().unwrap().group.applied(), log_before, "not even the log grows");
    let gone = [ItemName::new(Kind::Tenant, "demo"), ItemName::new(Kind::Tenant, "never")];
    let ignore_missing = ApplyOptions { ignore_missing: true, ..ApplyOptions::default() };
    let removed = cluster.client.apply(&[], &gone, ignore_missing, WITHIN).await.unwrap();
    assert_eq!(removed, applied_at(3, 1));
    wait_until(&mut view, |view| view.item(Kind::Tenant, "demo").is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_legal_and_not_meant_is_refused_or_warned_about() {
    let cluster = Cluster::start(1).await;
    cluster.apply(&demo()).await;
    let second = Put::Tenant(PutTenant {
        name: "second".into(),
        domains: SenderDomains::Any,
        pool: "default".into(),
        message_size_max: None,
    });
    cluster.apply(&[second]).await;
    let remove = async |kind, name: &str, options| {
        cluster.client.apply(&[], &[ItemName::new(kind, name)], options, WITHIN).await
    };
    let refused = |outcome: Result<Applied, CallError>| match outcome {
        Err(CallError::Refused { code, message }) => (code, message),
        other => panic!("{other:?}"),
    };
    let plain = ApplyOptions::default();
    let (code, message) = refused(remove(Kind::Route, "nobody.example", plain).await);
    assert_eq!((code, message.as_str()), (Code::NotFound, "`route nobody.example` does not exist"));
    let (code, message) = refused(remove(Kind::Tenant, "second", plain).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert!(message.starts_with("`tenant second` has 3 messages queued"), "{message}");
    assert_eq!(remove(Kind::Tenant, "demo", plain).await.unwrap().changed, 1);

    let helo = Domain::parse("mail.example").unwrap();
    let nodes = vec![NodeId(9), NodeId(10)];
    let pinned = Put::Source(PutSource { name: "pinned".into(), address: None, helo, nodes });
    cluster.claim(9, 1, None).await;
    let warnings = cluster.apply(std::slice::from_ref(&pinned)).await.warnings;
    assert_eq!(warnings, ["`source pinned`: no outbound node `10` is running in this cluster"]);
    cluster.claim(10, 1, None).await;
    assert_eq!(cluster.apply(&[pinned]).await.warnings, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_breaks_a_rule_is_refused_with_the_reason() {
    let cluster = Cluster::start(1).await;
    let refused = async |puts: &[Put], removals: &[ItemName]| match cluster
        .client
        .apply(puts, removals, ApplyOptions::default(), WITHIN)
        .await
    {
        Err(CallError::Refused { code, message }) => (code, message),
        other => panic!("{other:?}"),
    };
    let (code, message) = refused(&demo()[..1], &[]).await;
    assert_eq!(code, Code::InvalidArgument);
    assert_eq!(message, "`tenant demo` refers to `pool default`, which does not exist");
    cluster.apply(&demo()).await;
    let (code, message) = refused(&[], &[ItemName::new(Kind::Pool, "default")]).await;
    assert_eq!(code, Code::FailedPrecondition);
    assert_eq!(message, "`pool default` cannot be removed: `tenant demo` refers to it");
}

fn because(reason: &str, length: Option<Duration>) -> SuspendOptions {
    SuspendOptions { reason: reason.to_owned(), actor: "eve@laptop".to_owned(), length }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_is_in_force_at_once_and_ends_by_itself_or_by_an_operator() {
    let cluster = Cluster::start(3).await;
    cluster.apply(&demo()).await;
    let watching = DirectoryWatch::start(&cluster.endpoints);
    let mut view = watching.subscribe();
    let site = ScopeName::Site("slow.example".into());
    let tenant = ScopeName::Tenant("demo".into());
    let scopes = [site, tenant.clone()];
    let begun = cluster.client.suspend(&scopes, &because("abuse", None), WITHIN).await.unwrap();
    let is_suspended = |view: &View| view.suspension(&Scope::Site("slow.example".into())).is_some();
    wait_until(&mut view, |view| is_suspended(view)).await;
    let short = because("blocked", Some(Duration::from_millis(300)));
    let asked_at = postroad_env::wall();
    // What was committed is in the response, even if it is over already.
    let suspended = cluster.client.suspend(&scopes[..1], &short, WITHIN).await.unwrap();
    let held = &suspended.suspensions[0];
    assert_eq!((&*held.name, &*held.reason, &*held.actor), ("site slow.example", "blocked", "eve@laptop"));
    assert_eq!(held.since, begun.suspensions[0].since, "it was suspended before");
    assert!(held.until.unwrap() >= asked_at.after(Duration::from_millis(300)));
    wait_until(&mut view, |view| !is_suspended(view)).await;
    assert!(postroad_env::wall() >= held.until.unwrap(), "it ended too early");
    wait_until(&mut view, |view| view.suspensions().count() == 1).await;
    assert_eq!(cluster.client.resume(std::slice::from_ref(&tenant), "eve@laptop", WITHIN).await.unwrap(), 1);
    assert_eq!(cluster.client.resume(&[tenant], "eve@laptop", WITHIN).await.unwrap(), 0, "repeated");
    wait_until(&mut view, |view| view.suspensions().count() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_is_refused_with_the_rule_and_no_policy_makes_or_ends_one() {
    let cluster = Cluster::start(1).await;
    cluster.apply(&demo()).await;
    let refused = |result: Result<_, CallError>| match result {
        Err(CallError::Refused { code, message }) => (code, message),
        other => panic!("{other:?}"),
    };
    let suspend = async |scope| {
        cluster.client.suspend(&[scope], &because("why", None), WITHIN).await.map(|held| held.warnings)
    };
    let (code, message) = refused(suspend(ScopeName::Tenant("nobody".into())).await);
    assert_eq!(code, Code::InvalidArgument);
    assert_eq!(message, "`suspension tenant nobody` refers to `tenant nobody`, which does not exist");
    let warnings = suspend(ScopeName::Node(NodeId(99))).await.unwrap();
    assert_eq!(
        warnings,
        ["no outbound node `99` is running in this cluster; once it starts it gets no sources"]
    );
    let node = ScopeName::Node(NodeId(99));
    let put = Put::Suspension(PutSuspension {
        scope: node.clone(),
        reason: "x".into(),
        actor: "somebody else".into(),
        since: postroad_env::wall(),
        until: None,
    });
    let forged = cluster.client.apply(&[put], &[], ApplyOptions::default(), WITHIN).await;
    assert_eq!(refused(forged.map(|_| Vec::<String>::new())).0, Code::InvalidArgument);
    let removed = cluster.client.apply(&[], &[node.item()], ApplyOptions::default(), WITHIN).await;
    assert_eq!(
        refused(removed.map(|_| Vec::new())).1,
        "`suspension node 99` is changed by `Suspend` and `Resume`"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_follow_the_leases_of_their_owners() {
    let cluster = Cluster::start(1).await;
    cluster.apply(&demo()).await;
    let watching = DirectoryWatch::start(&cluster.endpoints);
    let mut view = watching.subscribe();
    assert!(matches!(cluster.claim(1, 11, None).await, Claim::InForce { .. }));
    wait_until(&mut view, |view| owners(view) == [1]).await;
    let silent_since = postroad_env::now();
    assert!(
        matches!(cluster.claim(1, 12, None).await, Claim::Wait(_)),
        "an earlier incarnation may be alive"
    );
    assert!(matches!(cluster.claim(2, 22, None).await, Claim::InForce { .. }));
    // The second node is up all the time, and gets the sources that the first one loses.
    while owners(&view.borrow_and_update()) != [2] {
        cluster.renew(2, 22).await.unwrap();
        time::sleep(Duration::from_millis(50)).await;
    }
    let took = postroad_env::since(silent_since);
    assert!(took >= Duration::from_millis(1200), "taken from a living owner after {took:?}");
    assert!(took < Duration::from_millis(4000), "freed only after {took:?}");
    let refused = cluster.renew(1, 11).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused { code: Code::FailedPrecondition, .. }), "{refused}");
    let epoch = view.borrow().sources().next().unwrap().epoch;
    assert_eq!(epoch.0, 3);
    // After a release other nodes get the source at once.
    assert!(matches!(cluster.claim(1, 13, Some(12)).await, Claim::InForce { .. }));
    cluster.client.release(NodeId(2), 22, WITHIN).await.unwrap();
    let released = postroad_env::now();
    wait_until(&mut view, |view| owners(view) == [1]).await;
    assert!(postroad_env::since(released) < TIMES.lease, "a release must not wait for the lease to end");
    // A new incarnation with proof takes over its node's sources.
    assert!(matches!(cluster.claim(1, 14, Some(13)).await, Claim::InForce { .. }));
    wait_until(&mut view, |view| view.sources_of(NodeId(1), 14).count() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_31_leases_and_watches_outlive_the_leader() {
    let mut cluster = Cluster::start(3).await;
    cluster.apply(&demo()).await;
    let watching = DirectoryWatch::start(&cluster.endpoints);
    let mut view = watching.subscribe();
    cluster.claim(1, 11, None).await;
    wait_until(&mut view, |view| owners(view) == [1]).await;
    let leader = cluster.leader().await;
    cluster.renew(1, 11).await.unwrap();
    cluster.nodes[leader].take().unwrap().kill().await;
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    let elected = postroad_env::now();
    cluster.claim(2, 22, None).await;
    // The owner is silent from here on; the new leader must still wait a whole lease.
    while owners(&view.borrow_and_update()) != [2] {
        cluster.renew(2, 22).await.unwrap();
        time::sleep(Duration::from_millis(50)).await;
    }
    let took = postroad_env::since(elected) + Duration::from_millis(100);
    assert!(took >= TIMES.revoke_after(), "a new leader took a source after {took:?}");
    // A change reaches the watch, whichever node it was connected to.
    let applied = cluster.apply(&[source("another")]).await;
    wait_until(&mut view, |view| view.revision() >= applied.revision).await;
    // Entries still follow, such as the grant of the new source: states are compared at one entry.
    let states = || cluster.nodes.iter().flatten().map(|node| node.group.state_hash()).collect::<Vec<_>>();
    let until = postroad_env::now() + WITHIN;
    loop {
        let [one, other] = states()[..] else { panic!("two nodes run") };
        if one.0 == other.0 {
            return assert_eq!(one, other);
        }
        assert!(postroad_env::now() < until, "the nodes do not reach the same entry: {one:?} {other:?}");
        time::sleep(Duration::from_millis(10)).await;
    }
}
