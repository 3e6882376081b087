//! The client side of a group: a leader's calls to its followers.

use std::{
    collections::BTreeSet,
    fmt::Display,
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{
    AnyError, OptionalSend, RaftNetworkFactory,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError},
    network::{Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption},
    raft::{
        AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use parking_lot::Mutex;
use postroad_core::{ClusterId, GroupId, NodeId};
use postroad_proto::raft::{self as pb, raft_service_client::RaftServiceClient, snapshot_part::Part};
use postroad_storage::{EntryId, Log};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, metadata::MetadataMap, transport::Channel};

use crate::{
    disk_status::{Acknowledged, DiskGuard, PeerAcknowledgements},
    node::Voter,
    reachability::{Pace, Reachability},
    types::{Member, Snapshot, State, Types, Vote},
    wire,
};

/// The largest frame between queue nodes: one entry and its envelope, with room to spare.
pub(crate) const FRAME_BYTES_MAX: usize = 16 << 20;

/// Requests sent and not answered yet, per follower.
const IN_FLIGHT_MAX: usize = 64;

const SNAPSHOT_PART_BYTES: usize = 1 << 20;
/// Bodies read at a time, each of at most 768 KiB.
const BODIES_READ_MAX: usize = 16;

/// What a channel carries: separate channels, so that heartbeats do not wait behind mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Entries.
    Log,
    /// Heartbeats and votes.
    Vote,
    /// Snapshots.
    Snapshot,
}

/// Makes channels to other nodes.
pub trait Connect: Send + Sync {
    /// Returns a channel that connects on first use, and reconnects.
    fn channel(&self, node: NodeId, address: &str, purpose: Purpose) -> Channel;
}

/// Makes a group's clients on this node.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) cluster: ClusterId,
    pub(crate) group: GroupId,
    pub(crate) log: Log,
    pub(crate) connect: Arc<dyn Connect>,
    pub(crate) full: FullPeers,
    pub(crate) acknowledged: PeerAcknowledgements,
    pub(crate) refused: RefusedBy,
    pub(crate) reachability: Reachability,
    pub(crate) disk_guard: DiskGuard,
}

/// Nodes that refused the last call because of their disk. By group: a disk joins its groups one after the other.
pub(crate) type RefusedBy = Arc<Mutex<BTreeSet<(GroupId, u64)>>>;

/// Nodes whose last answer said that their disk is full.
pub(crate) type FullPeers = Arc<Mutex<BTreeSet<u64>>>;

impl Network {
    fn client(&self, target: u64, node: &Member, purpose: Purpose) -> Client {
        let channel = |purpose| self.connect.channel(NodeId(target), &node.address, purpose);
        Client {
            network: self.clone(),
            target,
            disk: node.disk,
            purpose,
            pace: Pace::default(),
            channel: channel(purpose),
            snapshots: channel(Purpose::Snapshot),
        }
    }

    /// A call to a node whose disk is not known yet.
    pub(crate) fn request_without_disk<T>(
        &self,
        to: &Voter,
        message: T,
    ) -> (RaftServiceClient<Channel>, Request<T>) {
        let mut request = Request::new(message);
        self.label(to.node.0, request.metadata_mut());
        (limited(self.connect.channel(to.node, &to.address, Purpose::Vote)), request)
    }

    fn label(&self, target: u64, metadata: &mut MetadataMap) {
        metadata.insert("postroad-cluster", self.cluster.0.into());
        metadata.insert("postroad-group", self.group.0.into());
        metadata.insert("postroad-to", target.into());
    }

    fn note_room(&self, target: u64, is_full: bool) {
        let mut full = self.full.lock();
        let changed = if is_full { full.insert(target) } else { full.remove(&target) };
        match (changed, is_full) {
            (true, true) => tracing::warn!(peer = target, "the disk of a queue node is full"),
            (true, false) => tracing::warn!(peer = target, "the disk of a queue node has space again"),
            (false, _) => {}
        }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &Member) -> Client {
        self.client(target, node, Purpose::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> Client {
        self.client(target, node, Purpose::Vote)
    }
}

/// A client of one follower.
pub(crate) struct Client {
    network: Network,
    target: u64,
    /// The target's disk in the membership.
    disk: u64,
    purpose: Purpose,
    pace: Pace,
    channel: Channel,
    snapshots: Channel,
}

impl Client {
    fn service(&self) -> RaftServiceClient<Channel> {
        limited(self.channel.clone())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        self.label(request.metadata_mut());
        request
    }

    fn label(&self, metadata: &mut MetadataMap) {
        self.network.label(self.target, metadata);
        metadata.insert("postroad-to-disk", self.disk.into());
        let acknowledged = self.network.acknowledged.get(self.network.group, self.target, self.disk);
        let acknowledged = acknowledged.to_text().parse().expect("digits and dots are a value of metadata");
        metadata.insert("postroad-acknowledged", acknowledged);
    }

    fn note_acknowledged(&self, acknowledged: Acknowledged) {
        self.network.acknowledged.note(self.network.group, self.target, self.disk, acknowledged);
    }

    /// A node that lost what it acknowledged must not ask for votes.
    fn may_ask(&self) -> Result<(), RPCError<Types>> {
        if self.network.disk_guard.is_rolled_back() {
            return Err(rpc_error("the disk of this node is an old copy"));
        }
        Ok(())
    }

    /// Waits for the turn of an append; a heartbeat is skipped instead, since the next one follows soon.
    async fn turn(&self) -> Result<(), RPCError<Types>> {
        match self.purpose {
            Purpose::Vote if !self.pace.is_due() => Err(rpc_error("the peer did not answer: skipped")),
            Purpose::Vote => Ok(()),
            Purpose::Log | Purpose::Snapshot => {
                self.pace.due(&self.network.reachability).await;
                Ok(())
            }
        }
    }

    /// Notes a failed call; logs once that a peer refuses because of its disk.
    fn failed(&self, status: Status) -> RPCError<Types> {
        self.pace.failed();
        if is_silence(status.code()) {
            self.network.reachability.failed(self.target, status.message());
        }
        let Network { group, refused, .. } = &self.network;
        if status.code() == Code::FailedPrecondition && refused.lock().insert((*group, self.target)) {
            let (peer, error) = (self.target, status.message());
            tracing::error!(
                %group,
                peer,
                error,
                "queue node {peer} has a different disk or an old copy: it counts for no majority until it rejoins"
            );
        }
        rpc_error(status)
    }

    fn answered(&self) {
        self.pace.answered();
        self.network.reachability.answered(self.target);
        let Network { group, refused, .. } = &self.network;
        if refused.lock().remove(&(*group, self.target)) {
            let peer = self.target;
            tracing::info!(%group, peer, "queue node {peer} has its known disk again");
        }
    }
}

/// Returns true for a call that did not reach the peer, or that the peer did not answer.
fn is_silence(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled)
}

/// A call that awaits its first answer: one that is dropped before counts as unanswered.
struct Unanswered<'c>(Option<&'c Client>);

impl Unanswered<'_> {
    fn answered(&mut self) {
        if let Some(client) = self.0.take() {
            client.answered();
        }
    }

    /// Ends the call with an error, before or after its first answer.
    fn failed(&mut self, client: &Client, status: Status) -> RPCError<Types> {
        self.0 = None;
        client.failed(status)
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        // openraft drops a heartbeat at its deadline, and a stream of entries when the leader changes.
        if let Some(client) = self.0.take()
            && client.purpose == Purpose::Vote
        {
            client.failed(Status::deadline_exceeded("the peer did not answer in time"));
        }
    }
}

fn limited(channel: Channel) -> RaftServiceClient<Channel> {
    RaftServiceClient::new(channel)
        .max_decoding_message_size(FRAME_BYTES_MAX)
        .max_encoding_message_size(FRAME_BYTES_MAX)
}

fn network_error(error: impl Display) -> NetworkError<Types> {
    NetworkError::new(&AnyError::error(error.to_string()))
}

fn rpc_error(error: impl Display) -> RPCError<Types> {
    RPCError::Network(network_error(error))
}

type Answers<'s> = BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>;

impl NetStreamAppend<Types> for Client {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _: RPCOption,
    ) -> BoxFuture<'s, Result<Answers<'s>, RPCError<Types>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let mut service = self.service();
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        let sending = in_flight.clone();
        let term = Arc::new(AtomicU64::new(0));
        let sent = term.clone();
        let requests = input.then(move |request| {
            let sending = sending.clone();
            // A stream belongs to one term.
            sent.store(request.vote.leader_id.term, Ordering::Relaxed);
            async move {
                // The semaphore is never closed.
                if let Ok(permit) = sending.acquire().await {
                    permit.forget();
                }
                wire::from_append(request)
            }
        });
        let request = self.request(requests);
        let client = &*self;
        Box::pin(async move {
            client.turn().await?;
            let mut call = Unanswered(Some(client));
            let answers = service.append(request).await;
            let answers = answers.map_err(|status| call.failed(client, status))?.into_inner();
            let answers = answers.map(move |answer| {
                in_flight.add_permits(1);
                let answer = answer.map_err(|status| call.failed(client, status))?;
                call.answered();
                client.network.note_room(client.target, answer.full);
                let result = wire::to_append_result(answer).map_err(rpc_error)?;
                if let Ok(Some(matched)) = &result {
                    let last = wire::entry_id(matched);
                    client.note_acknowledged(Acknowledged { term: term.load(Ordering::Relaxed), last });
                }
                Ok(result)
            });
            Ok(Box::pin(answers) as Answers<'s>)
        })
    }
}

impl NetVote<Types> for Client {
    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.may_ask()?;
        let request = self.request(wire::from_vote_request(&request));
        let mut service = self.service();
        let call = service.vote(request);
        let answer = within(option.hard_ttl(), call).await.map_err(|status| self.failed(status))?;
        self.answered();
        let answer = wire::to_vote_response(answer.into_inner()).map_err(rpc_error)?;
        if answer.vote_granted {
            // The vote is on disk; the end of its log may not be.
            self.note_acknowledged(Acknowledged {
                term: answer.vote.leader_id.term,
                last: EntryId::default(),
            });
        }
        Ok(answer)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.may_ask()?;
        let request = self.request(wire::from_vote_request(&request));
        let mut service = self.service();
        let call = service.pre_vote(request);
        let answer = within(option.hard_ttl(), call).await.map_err(|status| self.failed(status))?;
        self.answered();
        wire::to_vote_response(answer.into_inner()).map_err(rpc_error)
    }
}

impl NetTransferLeader<Types> for Client {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let message = pb::TransferLeaderRequest {
            from: Some(wire::from_vote(request.from_leader())),
            to: *request.to_node_id(),
            last: request.last_log_id().map(wire::from_log_id),
        };
        let request = self.request(message);
        let mut service = self.service();
        within(option.hard_ttl(), service.transfer_leader(request)).await.map_err(rpc_error)?;
        // If the node refused, the leader's own deadline ends the transfer.
        Ok(Ok(()))
    }
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, tonic::Status> {
    tokio::time::timeout(limit, call)
        .await
        .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("the peer did not answer in time")))
}

impl NetBackoff<Types> for Client {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

impl NetSnapshot<Types> for Client {
    type SnapshotData = State;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let (parts, receiver) = mpsc::channel(2);
        let (log, group) = (self.network.log.clone(), self.network.group);
        let sending = tokio::spawn(send_snapshot(log, group, vote, snapshot, parts));
        let mut request = Request::new(ReceiverStream::new(receiver));
        self.label(request.metadata_mut());
        let mut service = limited(self.snapshots.clone());
        let answer = tokio::select! {
            answer = within(option.hard_ttl(), service.install_snapshot(request)) => answer,
            closed = cancel => return Err(closed.into()),
        };
        let failed = |error: &dyn Display| StreamingError::Network(network_error(error));
        let answer = answer.map_err(|status| failed(&status))?.into_inner();
        sending.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        let vote = wire::to_vote(answer.vote).map_err(|error| failed(&error))?;
        Ok(SnapshotResponse { vote })
    }
}

/// Sends a state and the bodies it refers to, one by one.
async fn send_snapshot(
    log: Log,
    group: GroupId,
    vote: Vote,
    snapshot: Snapshot,
    parts: mpsc::Sender<pb::SnapshotPart>,
) -> io::Result<()> {
    let send = async |part: Part| {
        let sent = parts.send(pb::SnapshotPart { part: Some(part) }).await;
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    };
    let meta = Some(wire::from_meta(&snapshot.meta));
    send(Part::Header(pb::SnapshotHeader {
        vote: Some(wire::from_vote(&vote)),
        meta,
        state_bytes: snapshot.snapshot.bytes.len() as u64,
        bodies: snapshot.snapshot.live.len() as u64,
    }))
    .await?;
    let mut rest: Bytes = snapshot.snapshot.bytes.clone();
    while !rest.is_empty() {
        send(Part::State(rest.split_to(rest.len().min(SNAPSHOT_PART_BYTES)))).await?;
    }
    for places in snapshot.snapshot.live.chunks(BODIES_READ_MAX) {
        let (log, places) = (log.clone(), places.to_vec());
        let read = postroad_env::blocking(move || read_bodies(&log, group, &places));
        for body in read.await.map_err(io::Error::other)?? {
            send(Part::Body(body)).await?;
        }
    }
    Ok(())
}

fn read_bodies(log: &Log, group: GroupId, places: &[(u64, u32)]) -> io::Result<Vec<pb::SnapshotBody>> {
    let read = |(index, slot): &(u64, u32)| {
        let data = log.body(group, *index, *slot)?;
        Ok(pb::SnapshotBody { index: *index, slot: *slot, data })
    };
    places.iter().map(read).collect()
}
