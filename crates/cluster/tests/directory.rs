//! Watches and calls against scripted queue nodes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use postroad_cluster::{
    Applied, CallError, DirectoryClient, DirectoryWatch, Endpoints, LeaderTable, call::LEADER_METADATA,
};
use postroad_core::{Domain, Epoch, NodeId, SourceId};
use postroad_directory::{Change, Command, Directory, Put, PutSource};
use postroad_net::{Expect, MemoryNet, Role, Transport, server_builder};
use postroad_proto::directory::{
    update_frames,
    wire::{
        ApplyRequest, ApplyResponse, ClaimRequest, ClaimResponse, OwnedSource, ReleaseRequest,
        ReleaseResponse, RenewRequest, RenewResponse, ResumeRequest, ResumeResponse, SuspendRequest,
        SuspendResponse, Update, WatchRequest,
        directory_service_server::{DirectoryService, DirectoryServiceServer},
    },
};
use tokio::{sync::watch, task::JoinSet, time};
use tonic::{Code, Request, Response, Status};

/// The script of a node.
#[derive(Default)]
struct Script {
    /// The answers to renewals, each given once; after that the node answers as leader.
    answers: VecDeque<Status>,
    renewals: usize,
    /// The sources of each release.
    released: Vec<Vec<OwnedSource>>,
    /// The updates of each stream, which breaks after them; later streams stay open without updates.
    streams: VecDeque<Vec<Update>>,
    /// The revisions that watchers sent.
    watched_from: Vec<u64>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Script>>);

#[tonic::async_trait]
impl DirectoryService for Fake {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Update, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let mut script = self.0.lock().unwrap();
        script.watched_from.push(request.into_inner().revision);
        let Some(updates) = script.streams.pop_front() else {
            return Ok(Response::new(Box::pin(stream::pending())));
        };
        let broken = stream::iter([Err(Status::unavailable("the node is going away"))]);
        Ok(Response::new(Box::pin(stream::iter(updates.into_iter().map(Ok)).chain(broken))))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let changed = u32::try_from(request.into_inner().puts.len()).unwrap();
        Ok(Response::new(ApplyResponse { revision: 7, changed, warnings: Vec::new() }))
    }

    async fn suspend(&self, _: Request<SuspendRequest>) -> Result<Response<SuspendResponse>, Status> {
        Err(Status::unimplemented("suspend"))
    }

    async fn resume(&self, _: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        Err(Status::unimplemented("resume"))
    }

    async fn claim(&self, _: Request<ClaimRequest>) -> Result<Response<ClaimResponse>, Status> {
        Ok(Response::new(ClaimResponse { wait_millis: 250, ..ClaimResponse::default() }))
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let mut script = self.0.lock().unwrap();
        script.renewals += 1;
        let answer = script.answers.pop_front();
        answer.map_or(
            Ok(Response::new(RenewResponse {
                revision: 7,
                lease_millis: 10_000,
                to_release: vec![OwnedSource { source: 3, epoch: 5 }],
            })),
            Err,
        )
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        self.0.lock().unwrap().released.push(request.into_inner().sources);
        Ok(Response::new(ReleaseResponse { revision: 8 }))
    }
}

/// Nodes 1 to 3; the scripts decide which one leads.
struct Nodes {
    fakes: Vec<Fake>,
    endpoints: Endpoints,
    _servers: JoinSet<()>,
}

impl Nodes {
    async fn start() -> Self {
        Self::of((0..3).map(|_| Fake::default()).collect()).await
    }

    async fn of(fakes: Vec<Fake>) -> Self {
        let transport = Transport::Memory(MemoryNet::new());
        let (mut endpoints, mut servers) = (Endpoints::new(), JoinSet::new());
        for (number, fake) in (1..).zip(&fakes) {
            let address = format!("queue-{number}");
            let listener = transport.bind(&address).await.unwrap();
            let routes = server_builder().add_service(DirectoryServiceServer::new(fake.clone()));
            servers.spawn(async move { routes.serve_with_incoming(listener).await.unwrap() });
            endpoints.insert(NodeId(number), transport.channel(&address, Expect::any(Role::Queue)));
        }
        Self { fakes, endpoints, _servers: servers }
    }

    fn answer(&self, node: usize, answers: impl IntoIterator<Item = Status>) {
        self.fakes[node - 1].0.lock().unwrap().answers.extend(answers);
    }

    fn renewals(&self) -> Vec<usize> {
        self.fakes.iter().map(|fake| fake.0.lock().unwrap().renewals).collect()
    }

    async fn renew(&self, within: Duration) -> Result<u64, CallError> {
        let (_unknown, table) = watch::channel(LeaderTable::new());
        let client = DirectoryClient::new(&self.endpoints, &table);
        client.renew(NodeId(9), 1, within).await.map(|renewed| renewed.revision)
    }
}

fn not_leader(hint: Option<u64>) -> Status {
    let mut status = Status::unavailable("this node does not lead the group");
    if let Some(node) = hint {
        status.metadata_mut().insert(LEADER_METADATA, node.into());
    }
    status
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_hint_is_followed() {
    let nodes = Nodes::start().await;
    nodes.answer(1, [not_leader(Some(3))]);
    assert_eq!(nodes.renew(5 * SECOND).await, Ok(7));
    assert_eq!(nodes.renewals(), [1, 0, 1]);
}

#[tokio::test]
async fn without_hints_every_node_is_asked_until_one_leads() {
    let nodes = Nodes::start().await;
    nodes.answer(1, (0..4).map(|_| not_leader(None)));
    nodes.answer(2, (0..2).map(|_| not_leader(None)));
    nodes.answer(3, [not_leader(None), Status::deadline_exceeded("slow"), not_leader(Some(99))]);
    assert_eq!(nodes.renew(5 * SECOND).await, Ok(7));
    assert_eq!(nodes.renewals(), [3, 3, 2]);
}

#[tokio::test]
async fn nodes_that_name_each_other_are_asked_until_the_election_is_over() {
    let nodes = Nodes::start().await;
    nodes.answer(1, (0..10).map(|_| not_leader(Some(2))));
    nodes.answer(2, (0..10).map(|_| not_leader(Some(1))));
    assert_eq!(nodes.renew(5 * SECOND).await, Ok(7));
}

#[tokio::test]
async fn a_refusal_is_returned_at_once() {
    let nodes = Nodes::start().await;
    nodes.answer(1, [Status::failed_precondition("no lease")]);
    let refused = CallError::Refused { code: Code::FailedPrecondition, message: "no lease".to_owned() };
    assert_eq!(nodes.renew(5 * SECOND).await, Err(refused));
    assert_eq!(nodes.renewals(), [1, 0, 0]);
}

#[tokio::test]
async fn a_call_without_a_leader_times_out() {
    let nodes = Nodes::start().await;
    (1..=3).for_each(|node| nodes.answer(node, (0..1000).map(|_| not_leader(None))));
    let started = postroad_env::now();
    let error = nodes.renew(SECOND / 2).await.unwrap_err();
    assert!(matches!(error, CallError::Unavailable { .. }), "{error}");
    assert!(postroad_env::since(started) < 2 * SECOND);
    let unreachable = Nodes::of(Vec::new()).await.renew(SECOND / 10).await;
    assert!(matches!(unreachable, Err(CallError::Unavailable { .. })));
}

#[tokio::test]
async fn requests_and_answers_arrive_unchanged() {
    let nodes = Nodes::start().await;
    let (_unknown, table) = watch::channel(LeaderTable::new());
    let client = DirectoryClient::new(&nodes.endpoints, &table);
    let applied = client
        .apply(&[source("a"), source("b")], &[], postroad_cluster::ApplyOptions::default(), SECOND)
        .await
        .unwrap();
    assert_eq!(applied, Applied { revision: 7, changed: 2, warnings: Vec::new() });
    let claim = client.claim(NodeId(9), 1, None, SECOND).await.unwrap();
    assert_eq!(claim, postroad_cluster::Claim::Wait(Duration::from_millis(250)));
    client.release(NodeId(9), 1, SECOND).await.unwrap();
    let asked = client.renew(NodeId(9), 1, SECOND).await.unwrap().to_release;
    assert_eq!(asked, [(SourceId(3), Epoch(5))]);
    client.release_source(NodeId(9), 1, asked[0], SECOND).await.unwrap();
    let released: Vec<_> =
        nodes.fakes.iter().flat_map(|fake| fake.0.lock().unwrap().released.clone()).collect();
    assert_eq!(released, [vec![], vec![OwnedSource { source: 3, epoch: 5 }]]);
}

fn source(name: &str) -> Put {
    let helo = Domain::parse("mail.example").unwrap();
    Put::Source(PutSource { name: name.into(), address: None, helo, nodes: Vec::new() })
}

#[tokio::test]
async fn a_watch_resumes_at_another_node_from_its_revision() {
    let mut directory = Directory::new();
    let mut put = |name: &str| {
        let before = directory.revision();
        directory.apply(&Command::Change(vec![Change::Put(source(name))])).unwrap();
        update_frames(&directory.changes_since(before).unwrap())
    };
    let mut first = update_frames(&Directory::new().everything());
    first.extend(put("a"));
    let mut broken_off = put("b");
    broken_off[0].more = true;
    first.extend(broken_off);
    let mut second = update_frames(&directory.everything());
    // The same items again, as two frames of one update.
    let whole = second.remove(0);
    let half = whole.items.len() / 2;
    second.push(Update { items: whole.items[..half].to_vec(), more: true, ..whole.clone() });
    second.push(Update { items: whole.items[half..].to_vec(), full: false, ..whole });
    // Whichever node it starts with: the first sends half of it, the next one the rest.
    let script = Script { streams: [first, second].into(), ..Script::default() };
    let shared = Fake(Arc::new(Mutex::new(script)));
    let nodes = Nodes::of(vec![shared.clone(), shared.clone()]).await;
    let watching = DirectoryWatch::start(&nodes.endpoints);
    let mut view = watching.subscribe();
    let complete = view.wait_for(|view| view.revision() == directory.revision());
    let complete = time::timeout(5 * SECOND, complete).await.unwrap().unwrap().clone();
    assert_eq!(complete.items().cloned().collect::<Vec<_>>(), directory.everything().items);
    // An incomplete update is dropped: the watch resumes before it.
    while shared.0.lock().unwrap().watched_from.len() < 3 {
        time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(shared.0.lock().unwrap().watched_from[..3], [0, 2, 3]);
}
