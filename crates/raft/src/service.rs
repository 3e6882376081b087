//! The server side of a group: what a node answers to its peers.

use std::{collections::HashMap, io, pin::Pin, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use openraft::{
    Raft,
    raft::{AppendEntriesRequest, TransferLeaderRequest},
};
use parking_lot::RwLock;
use postroad_core::GroupId;
use postroad_proto::raft::{self as pb, raft_service_server, snapshot_part::Part};
use postroad_storage::{DiskId, Identity, Log, Origin, Room};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    disk_status::{Acknowledged, DiskGuard},
    host::Host,
    membership,
    network::FRAME_BYTES_MAX,
    node::Voter,
    types::{Snapshot, State, Types, Vote},
    wire,
};

/// The gRPC service of a node, to be added to its server.
pub type RaftServer = raft_service_server::RaftServiceServer<Service>;

type Requests = Pin<Box<dyn Stream<Item = AppendEntriesRequest<Types>> + Send>>;
type Answers = Pin<Box<dyn Stream<Item = Result<pb::AppendResponse, Status>> + Send>>;

/// A group as peers call it.
#[derive(Clone)]
pub(crate) struct Hosted {
    pub(crate) group: GroupId,
    pub(crate) raft: Raft<Types, Host>,
}

impl Hosted {
    fn append(&self, requests: Requests, log: Log) -> Answers {
        let answers = self.raft.stream_append(requests);
        let wire = move |answer| wire::from_append_result(&answer, log.room() != Room::Plenty);
        Box::pin(answers.map(move |answer| answer.map(&wire).map_err(internal)))
    }

    async fn vote(&self, request: pb::VoteRequest) -> Result<pb::VoteResponse, Status> {
        let request = wire::to_vote_request(request).map_err(invalid)?;
        let answer = Raft::vote(&self.raft, request).await.map_err(internal)?;
        Ok(wire::from_vote_response(&answer))
    }

    async fn pre_vote(&self, request: pb::VoteRequest) -> Result<pb::VoteResponse, Status> {
        let request = wire::to_vote_request(request).map_err(invalid)?;
        let answer = Raft::pre_vote(&self.raft, request).await.map_err(internal)?;
        Ok(wire::from_vote_response(&answer))
    }

    async fn transfer(&self, request: pb::TransferLeaderRequest) -> Result<bool, Status> {
        let from = wire::to_vote(request.from).map_err(invalid)?;
        let request = TransferLeaderRequest::new(from, request.to, request.last.map(wire::to_log_id));
        Ok(self.raft.handle_transfer_leader(request).await.map_err(internal)?.is_ok())
    }

    async fn install(&self, vote: Vote, snapshot: Snapshot) -> Result<Vote, Status> {
        Ok(self.raft.install_full_snapshot(vote, snapshot).await.map_err(internal)?.vote)
    }

    async fn is_formed(&self) -> Result<bool, Status> {
        self.raft.is_initialized().await.map_err(internal)
    }

    async fn advance_join(&self, log: Log, voter: Voter, disk: DiskId) -> Result<bool, Status> {
        membership::advance_join(self.raft.clone(), log, self.group, voter, disk).await
    }
}

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn invalid(error: io::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The groups of a node, as peers call them.
#[derive(Clone)]
pub struct Service {
    pub(crate) identity: Identity,
    pub(crate) log: Log,
    pub(crate) voters: Arc<[Voter]>,
    pub(crate) disk_guard: DiskGuard,
    pub(crate) groups: Arc<RwLock<HashMap<GroupId, Hosted>>>,
    /// Ends the streams of leaders, which stay open while they have nothing to send.
    pub(crate) stopping: CancellationToken,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Service {
    pub(crate) fn into_server(self) -> RaftServer {
        RaftServer::new(self)
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX)
    }

    /// Finds the group of a call; refuses one that is meant for another node, cluster or disk.
    fn peer(&self, metadata: &MetadataMap) -> Result<(GroupId, Hosted), Status> {
        let (group, peer) = self.peer_without_disk(metadata)?;
        let disk = number(metadata, "postroad-to-disk").map(DiskId);
        let disk = disk.ok_or_else(|| Status::invalid_argument("expected `postroad-to-disk`"))?;
        let acknowledged =
            metadata.get("postroad-acknowledged").and_then(|text| Acknowledged::parse(text.to_str().ok()?));
        let acknowledged =
            acknowledged.ok_or_else(|| Status::invalid_argument("expected `postroad-acknowledged`"))?;
        self.disk_guard.check(group, disk, acknowledged)?;
        Ok((group, peer))
    }

    /// The same for a caller that does not know the disk yet.
    fn peer_without_disk(&self, metadata: &MetadataMap) -> Result<(GroupId, Hosted), Status> {
        if number(metadata, "postroad-cluster") != Some(self.identity.cluster.0)
            || number(metadata, "postroad-to") != Some(self.identity.node.0)
        {
            return Err(Status::permission_denied("this call is for another node or cluster"));
        }
        let group =
            number(metadata, "postroad-group").and_then(|group| u16::try_from(group).ok()).map(GroupId);
        let group = group.ok_or_else(|| Status::invalid_argument("expected `postroad-group`"))?;
        let peer = self.groups.read().get(&group).cloned();
        peer.map(|peer| (group, peer)).ok_or_else(|| Status::unavailable("the group is not open here"))
    }

    /// Receives a snapshot; every body is durable before the group gets it.
    async fn receive(
        &self,
        group: GroupId,
        mut parts: Streaming<pb::SnapshotPart>,
    ) -> Result<(Vote, Snapshot), Status> {
        let Some(pb::SnapshotPart { part: Some(Part::Header(header)) }) = parts.message().await? else {
            return Err(Status::invalid_argument("the first part of a snapshot is its header"));
        };
        let vote = wire::to_vote(header.vote).map_err(invalid)?;
        let meta = header.meta.ok_or_else(|| Status::invalid_argument("the snapshot has no metadata"))?;
        let meta = wire::to_meta(meta).map_err(invalid)?;
        let mut state = BytesMut::new();
        let (mut live, mut bodies, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(part) = parts.message().await? {
            match part.part {
                Some(Part::State(part)) => state.extend_from_slice(&part),
                Some(Part::Body(body)) => {
                    live.push((body.index, body.slot));
                    bytes += body.data.len();
                    bodies.push((body.index, body.slot, Bytes::copy_from_slice(&body.data)));
                }
                Some(Part::Header(_)) | None => return Err(Status::invalid_argument("an unexpected part")),
            }
            if bytes > FRAME_BYTES_MAX {
                self.store(group, std::mem::take(&mut bodies)).await?;
                bytes = 0;
            }
        }
        // A sender that fails ends the stream early.
        if state.len() as u64 != header.state_bytes || live.len() as u64 != header.bodies {
            return Err(Status::aborted("the snapshot is incomplete"));
        }
        self.store(group, bodies).await?;
        Ok((vote, Snapshot { meta, snapshot: State { bytes: state.freeze(), live, _pin: None } }))
    }

    async fn store(&self, group: GroupId, bodies: Vec<(u64, u32, Bytes)>) -> Result<(), Status> {
        let (sender, stored) = tokio::sync::oneshot::channel();
        self.log.put_bodies(group, bodies, Box::new(move |result| drop(sender.send(result))));
        stored.await.map_err(internal)?.map_err(internal)
    }
}

fn number(metadata: &MetadataMap, key: &str) -> Option<u64> {
    metadata.get(key)?.to_str().ok()?.parse().ok()
}

#[tonic::async_trait]
impl raft_service_server::RaftService for Service {
    type AppendStream = Answers;

    async fn append(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let (_, peer) = self.peer(request.metadata())?;
        // A malformed request ends the stream: the leader opens another.
        let requests = request.into_inner().map(|request| request.ok().and_then(|r| wire::to_append(r).ok()));
        let requests = requests.take_while(|request| std::future::ready(request.is_some()));
        let requests = requests.filter_map(std::future::ready);
        // openraft reads them in a task of its own, which ends with them.
        let requests = requests.take_until(self.stopping.clone().cancelled_owned());
        Ok(Response::new(peer.append(Box::pin(requests), self.log.clone())))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let (_, peer) = self.peer(request.metadata())?;
        Ok(Response::new(peer.vote(request.into_inner()).await?))
    }

    async fn pre_vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        let (_, peer) = self.peer(request.metadata())?;
        Ok(Response::new(peer.pre_vote(request.into_inner()).await?))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        let (_, peer) = self.peer(request.metadata())?;
        let accepted = peer.transfer(request.into_inner()).await?;
        Ok(Response::new(pb::TransferLeaderResponse { accepted }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotPart>>,
    ) -> Result<Response<pb::SnapshotResponse>, Status> {
        let (group, peer) = self.peer(request.metadata())?;
        let (vote, snapshot) = self.receive(group, request.into_inner()).await?;
        let vote = peer.install(vote, snapshot).await?;
        Ok(Response::new(pb::SnapshotResponse { vote: Some(wire::from_vote(&vote)) }))
    }

    async fn greet(&self, request: Request<pb::GreetRequest>) -> Result<Response<pb::Greeting>, Status> {
        let (_, peer) = self.peer_without_disk(request.metadata())?;
        let disk = self.log.disk();
        let may_form = disk.origin == Origin::Form && !peer.is_formed().await?;
        Ok(Response::new(pb::Greeting { disk: disk.id.0, may_form }))
    }

    async fn rejoin(
        &self,
        request: Request<pb::RejoinRequest>,
    ) -> Result<Response<pb::RejoinResponse>, Status> {
        let (_, peer) = self.peer_without_disk(request.metadata())?;
        let voter = membership::configured(&self.voters, &request)?;
        let disk = DiskId(request.get_ref().disk);
        let votes = peer.advance_join(self.log.clone(), voter, disk).await?;
        Ok(Response::new(pb::RejoinResponse { votes }))
    }
}
