//! How a group's leader reaches its followers.

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
    disk_status::{Door, Seen, SeenPeers},
    node::Voter,
    types::{Member, Snapshot, State, Types, Vote},
    wire,
};

/// The largest frame between queue nodes: one entry and its envelope, with room to spare.
pub(crate) const FRAME_BYTES_MAX: usize = 16 << 20;

/// Requests sent ahead of their answers, per follower.
const IN_FLIGHT_MAX: usize = 64;

const SNAPSHOT_PART_BYTES: usize = 1 << 20;

/// What a channel is for: each has its own, so that heartbeats do not wait behind mail.
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
    /// Returns a channel that connects when it is used, and again when it broke.
    fn channel(&self, node: NodeId, address: &str, purpose: Purpose) -> Channel;
}

/// Makes the clients of one group on one node.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) cluster: ClusterId,
    pub(crate) group: GroupId,
    pub(crate) log: Log,
    pub(crate) connect: Arc<dyn Connect>,
    pub(crate) full: FullPeers,
    pub(crate) seen: SeenPeers,
    pub(crate) refused: RefusedBy,
    pub(crate) door: Door,
}

/// The nodes that refused the last call because of their disk, for each group: one may have taken a disk in before another.
pub(crate) type RefusedBy = Arc<Mutex<BTreeSet<(GroupId, u64)>>>;

/// The nodes that said last that their disk is full.
pub(crate) type FullPeers = Arc<Mutex<BTreeSet<u64>>>;

impl Network {
    fn client(&self, target: u64, node: &Member, purpose: Purpose) -> Client {
        let channel = |purpose| self.connect.channel(NodeId(target), &node.address, purpose);
        Client {
            network: self.clone(),
            target,
            disk: node.disk,
            channel: channel(purpose),
            snapshots: channel(Purpose::Snapshot),
        }
    }

    /// A call to a node whose disk may not be known yet.
    pub(crate) fn stranger<T>(&self, to: &Voter, message: T) -> (RaftServiceClient<Channel>, Request<T>) {
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
        if changed {
            tracing::warn!(
                peer = target,
                is_full,
                "the disk of a queue node has filled up, or has room again"
            );
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
    /// The disk that makes the target the member.
    disk: u64,
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
        let seen = self.network.seen.of(self.network.group, self.target, self.disk);
        let seen = seen.to_text().parse().expect("digits and dots are a value of metadata");
        metadata.insert("postroad-seen", seen);
    }

    fn see(&self, seen: Seen) {
        self.network.seen.note(self.network.group, self.target, self.disk, seen);
    }

    /// A node that has forgotten what it acknowledged asks nobody for a vote.
    fn may_ask(&self) -> Result<(), RPCError<Types>> {
        if self.network.door.has_gone_back() {
            return Err(rpc_error("the disk of this node has gone back"));
        }
        Ok(())
    }

    /// Tells once of a peer that refuses because of its disk.
    fn failed(&self, status: Status) -> RPCError<Types> {
        let Network { group, refused, .. } = &self.network;
        if status.code() == Code::FailedPrecondition && refused.lock().insert((*group, self.target)) {
            let (peer, error) = (self.target, status.message());
            tracing::error!(
                %group,
                peer,
                error,
                "a queue node has not the disk it had: it does not count until it rejoins"
            );
        }
        rpc_error(status)
    }

    fn answered(&self) {
        let Network { group, refused, .. } = &self.network;
        if refused.lock().remove(&(*group, self.target)) {
            tracing::info!(%group, peer = self.target, "a queue node has the disk that is known again");
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
        let taken = in_flight.clone();
        let term = Arc::new(AtomicU64::new(0));
        let sent = term.clone();
        let requests = input.then(move |request| {
            let taken = taken.clone();
            // One stream is of one term.
            sent.store(request.vote.leader_id.term, Ordering::Relaxed);
            async move {
                // The semaphore is never closed.
                if let Ok(permit) = taken.acquire().await {
                    permit.forget();
                }
                wire::from_append(request)
            }
        });
        let request = self.request(requests);
        let client = &*self;
        Box::pin(async move {
            let answers = service.append(request).await.map_err(|status| client.failed(status))?.into_inner();
            client.answered();
            let answers = answers.map(move |answer| {
                in_flight.add_permits(1);
                let answer = answer.map_err(rpc_error)?;
                client.network.note_room(client.target, answer.full);
                let result = wire::to_append_result(answer).map_err(rpc_error)?;
                if let Ok(Some(matched)) = &result {
                    let last = wire::entry_id(matched);
                    client.see(Seen { term: term.load(Ordering::Relaxed), last });
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
            // The vote is on disk; what its log ends with may not be.
            self.see(Seen { term: answer.vote.leader_id.term, last: EntryId::default() });
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
        // A node that refused stands for no election: the leader's own deadline ends the transfer.
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
        let sending =
            tokio::task::spawn_blocking(move || send_snapshot(&log, group, vote, &snapshot, &parts));
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

/// Sends a state and every body it refers to, read one by one.
fn send_snapshot(
    log: &Log,
    group: GroupId,
    vote: Vote,
    snapshot: &Snapshot,
    parts: &mpsc::Sender<pb::SnapshotPart>,
) -> io::Result<()> {
    let send = |part: Part| {
        let part = pb::SnapshotPart { part: Some(part) };
        parts.blocking_send(part).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    };
    let meta = Some(wire::from_meta(&snapshot.meta));
    send(Part::Header(pb::SnapshotHeader {
        vote: Some(wire::from_vote(&vote)),
        meta,
        state_bytes: snapshot.snapshot.bytes.len() as u64,
        bodies: snapshot.snapshot.live.len() as u64,
    }))?;
    let mut rest: Bytes = snapshot.snapshot.bytes.clone();
    while !rest.is_empty() {
        send(Part::State(rest.split_to(rest.len().min(SNAPSHOT_PART_BYTES))))?;
    }
    for (index, slot) in &snapshot.snapshot.live {
        let bytes = log.body(group, *index, *slot)?;
        send(Part::Body(pb::SnapshotBody { index: *index, slot: *slot, data: bytes }))?;
    }
    Ok(())
}
