//! The directory's gRPC service: every node answers `Watch`, the leader all other calls.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, stream};
use postroad_core::{Epoch, NodeId, SourceId, TenantId};
use postroad_directory::{
    Change, Command, Done, Item, ItemName, Kind, Owner, Refusal, Reply, ScopeName, View, Warning,
};
use postroad_net::{PeerIdentity, Role, peer_info};
use postroad_proto::directory::{
    Entry, update_frames,
    wire::{
        self as wire, ApplyRequest, ApplyResponse, ClaimRequest, ClaimResponse, OwnedSource, ReleaseRequest,
        ReleaseResponse, RenewRequest, RenewResponse, ResumeRequest, ResumeResponse, SuspendRequest,
        SuspendResponse, Update, WatchRequest, directory_service_server::DirectoryService,
    },
};
use postroad_raft::Group;
use tokio::{
    sync::{Notify, watch},
    time,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{
    barrier::Barrier,
    lease_manager::SharedLeases,
    leases::{ClaimDecision, LeaseTimes, Leases},
    machine::{Applied, DirectoryMachine},
    metrics,
    suspensions::{self, Suspend},
};
use crate::{
    actor::actor,
    clock,
    error::{not_leader, refused},
};

/// A watch ends when the node has known no leader for this long.
const CUT_OFF_AFTER: Duration = Duration::from_secs(5);
/// A change must fit into one entry of the log.
const CHANGE_BYTES_MAX: usize = 1 << 20;

/// Serves the directory. A clone is cheap.
#[derive(Clone, Debug)]
pub struct DirectoryApi {
    pub(super) group: Group<DirectoryMachine>,
    pub(super) state: Applied,
    pub(super) barrier: Barrier,
    pub(super) leases: SharedLeases,
    pub(super) times: LeaseTimes,
    pub(super) wake: Arc<Notify>,
    /// Held while suspensions are counted and proposed.
    pub(super) suspending: Arc<tokio::sync::Mutex<()>>,
    pub(super) closing: CancellationToken,
    pub(super) queued: QueuedMessages,
}

/// Returns how many messages of a tenant have not ended, in all ledger groups, as this node has applied them.
#[derive(Clone)]
pub struct QueuedMessages(Arc<dyn Fn(TenantId) -> u64 + Send + Sync>);

impl QueuedMessages {
    /// Asks `count`.
    pub fn new(count: impl Fn(TenantId) -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(count))
    }
}

impl std::fmt::Debug for QueuedMessages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueuedMessages").finish_non_exhaustive()
    }
}

type Updates = Pin<Box<dyn Stream<Item = Result<Update, Status>> + Send>>;

#[tonic::async_trait]
impl DirectoryService for DirectoryApi {
    type WatchStream = Updates;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Updates>, Status> {
        let watching = Watching {
            state: self.state.clone(),
            changed: self.state.view.clone(),
            status: self.group.status(),
            revision: request.into_inner().revision,
            frames: VecDeque::new(),
            closing: self.closing.clone(),
            _counted: metrics::Watching::start(),
        };
        let updates = stream::unfold(watching, |mut watching| async move {
            let frame = watching.next().await?;
            Some((Ok(frame), watching))
        });
        Ok(Response::new(Box::pin(updates)))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        require(&request, &[Role::Operator, Role::Control, Role::Queue])?;
        let ApplyRequest { puts, removals, dry_run, ignore_missing } = request.into_inner();
        let puts = puts.into_iter().map(|put| put.try_into().map(Change::Put));
        let removals = removals.into_iter().map(|name| name.try_into().map(Change::Remove));
        let changes: Result<Vec<Change>, postroad_proto::Malformed> = puts.chain(removals).collect();
        let changes = changes.map_err(|error| Status::invalid_argument(error.to_string()))?;
        if let Some(name) = changes.iter().map(Change::name).find(|name| name.kind == Kind::Suspension) {
            // These calls name who did it.
            return Err(Status::invalid_argument(format!("`{name}` is changed by `Suspend` and `Resume`")));
        }
        self.barrier.pass().await.map_err(|error| refused(&error))?;
        let warnings = self.advise(&changes, ignore_missing)?;
        let Done { revision, changed } = self.change(changes, dry_run).await?;
        let warnings = warnings.iter().map(Warning::to_string).collect();
        Ok(Response::new(ApplyResponse { revision, changed, warnings }))
    }

    async fn suspend(&self, request: Request<SuspendRequest>) -> Result<Response<SuspendResponse>, Status> {
        let peer = require(&request, &[Role::Operator, Role::Control])?;
        let SuspendRequest { scopes, reason, actor: said, for_millis } = request.into_inner();
        let (scopes, actor) = (parse_scopes(scopes)?, actor(peer, &said));
        let length = for_millis.map(Duration::from_millis);
        // One call at a time, so that together they keep within the bound.
        let _suspending = self.suspending.lock().await;
        self.barrier.pass().await.map_err(|error| refused(&error))?;
        let asked = Suspend { scopes: &scopes, reason: &reason, actor: &actor, length };
        let (changes, planned) = self.plan_suspensions(asked)?;
        let warnings = self.advise(&changes, true)?;
        let Done { revision, .. } = self.change(changes, false).await?;
        tracing::warn!(scopes = suspensions::listed(&scopes), %actor, reason, "suspended by an operator");
        Ok(Response::new(SuspendResponse {
            revision,
            suspensions: planned,
            warnings: warnings.iter().map(Warning::to_string).collect(),
        }))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        let peer = require(&request, &[Role::Operator, Role::Control])?;
        let ResumeRequest { scopes, actor: said } = request.into_inner();
        let (scopes, actor) = (parse_scopes(scopes)?, actor(peer, &said));
        self.barrier.pass().await.map_err(|error| refused(&error))?;
        let Done { revision, changed } = self.change(suspensions::resume(&scopes), false).await?;
        if changed > 0 {
            tracing::warn!(scopes = suspensions::listed(&scopes), %actor, "resumed by an operator");
        }
        Ok(Response::new(ResumeResponse { revision, resumed: changed }))
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimResponse>, Status> {
        require_node(&request, request.get_ref().node)?;
        let ClaimRequest { node, incarnation, replaces } = request.into_inner();
        let owner = Owner { node: NodeId(node), incarnation };
        self.barrier.pass().await.map_err(|error| refused(&error))?;
        let (decision, term) = self.with_leases(|leases, view| {
            (leases.claim(postroad_env::now(), view, owner, replaces), leases.term())
        })?;
        match decision {
            ClaimDecision::InForce => {}
            ClaimDecision::Propose => self.propose_claim(term, owner).await?,
            ClaimDecision::Wait(wait) => {
                tracing::info!(
                    node,
                    incarnation,
                    ?wait,
                    "claim waits for the lease of an earlier incarnation to end"
                );
                let wait_millis = millis(wait).max(1);
                return Ok(Response::new(ClaimResponse { wait_millis, ..ClaimResponse::default() }));
            }
        }
        self.wake.notify_one();
        let lease_millis = millis(self.times.lease);
        Ok(Response::new(ClaimResponse { revision: self.revision(), lease_millis, wait_millis: 0 }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        require_node(&request, request.get_ref().node)?;
        let RenewRequest { node, incarnation } = request.into_inner();
        let owner = Owner { node: NodeId(node), incarnation };
        self.barrier.pass().await.map_err(|error| refused(&error))?;
        let (renewed, to_release, revision) = self.with_leases(|leases, view| {
            (leases.renew(postroad_env::now(), view, owner), leases.to_release(view, owner), view.revision())
        })?;
        if !renewed {
            return Err(Status::failed_precondition("this incarnation of the node has no lease"));
        }
        if self.state.view.borrow().sources().any(|source| source.owner.is_none()) {
            self.wake.notify_one();
        }
        let own = |(source, epoch): (SourceId, Epoch)| OwnedSource { source: source.0, epoch: epoch.0 };
        let to_release = to_release.into_iter().map(own).collect();
        Ok(Response::new(RenewResponse { revision, lease_millis: millis(self.times.lease), to_release }))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        require_node(&request, request.get_ref().node)?;
        let ReleaseRequest { node, incarnation, sources } = request.into_inner();
        let owner = Owner { node: NodeId(node), incarnation };
        let commands = if sources.is_empty() {
            vec![Command::Revoke { node: owner.node, incarnation }]
        } else {
            let to_release = |own: &OwnedSource| Command::ReleaseSource {
                source: SourceId(own.source),
                node: owner.node,
                incarnation,
                epoch: Epoch(own.epoch),
            };
            sources.iter().map(to_release).collect()
        };
        for command in commands {
            let done = self.propose(None, command).await?;
            done.map_err(|refusal| refusal_status(&refusal))?;
        }
        metrics::decision("release");
        tracing::info!(node, incarnation, ?sources, "outbound node released sources");
        Ok(Response::new(ReleaseResponse { revision: self.revision() }))
    }
}

impl DirectoryApi {
    /// Refuses what is legal and certainly not meant; returns warnings about what may not be.
    fn advise(&self, changes: &[Change], ignore_missing: bool) -> Result<Vec<Warning>, Status> {
        let directory = self.state.directory.lock();
        if let (Some(name), false) = (directory.missing(changes).first(), ignore_missing) {
            return Err(Status::not_found(format!("`{name}` does not exist")));
        }
        for change in changes {
            let Change::Remove(name) = change else { continue };
            let Some(Item::Tenant(tenant)) = directory.item(name) else { continue };
            let queued = (self.queued.0)(tenant.id);
            if queued > 0 {
                let messages = if queued == 1 { "message" } else { "messages" };
                return Err(Status::failed_precondition(format!(
                    "`{name}` has {queued} {messages} queued: remove it once they have ended, or cancel them"
                )));
            }
        }
        Ok(directory.warnings(changes))
    }

    /// Returns the changes that suspend, and the suspensions that they make.
    fn plan_suspensions(&self, asked: Suspend<'_>) -> Result<(Vec<Change>, Vec<wire::Suspension>), Status> {
        let (changes, planned) = {
            let directory = self.state.directory.lock();
            if !suspensions::has_room(&directory, asked.scopes) {
                metrics::suspensions_full();
                let max = suspensions::SUSPENSIONS_MAX;
                let text =
                    format!("more than {max} suspensions: resume some, or suspend a pool, source or tenant");
                return Err(Status::resource_exhausted(text));
            }
            let changes = suspensions::suspend(&directory, clock::now(), asked);
            let planned = directory.planned(&changes).map_err(|refusal| refusal_status(&refusal))?;
            (changes, planned)
        };
        // In the order of the call.
        let by_name: HashMap<ItemName, Item> = planned.into_iter().map(|item| (item.name(), item)).collect();
        let suspension = |scope: &ScopeName| match by_name.get(&scope.item())? {
            Item::Suspension(held) => Some(held.as_ref().into()),
            _ => None,
        };
        let suspensions = asked.scopes.iter().filter_map(suspension).collect();
        Ok((changes, suspensions))
    }

    /// Commits a change after a barrier, unless it changes nothing.
    async fn change(&self, changes: Vec<Change>, dry_run: bool) -> Result<Done, Status> {
        let checked = self.state.directory.lock().check(&changes);
        let checked = checked.map_err(|refusal| refusal_status(&refusal))?;
        if dry_run || checked.changed == 0 {
            return Ok(checked);
        }
        let reply = self.propose(None, Command::Change(changes)).await?;
        reply.map_err(|refusal| refusal_status(&refusal))
    }

    async fn propose_claim(&self, term: u64, owner: Owner) -> Result<(), Status> {
        let claim = Command::Claim { node: owner.node, incarnation: owner.incarnation };
        let done = self.propose(Some(term), claim).await?;
        done.map_err(|refusal| refusal_status(&refusal))?;
        metrics::decision("claim");
        Ok(())
    }

    async fn propose(&self, term: Option<u64>, command: Command) -> Result<Reply, Status> {
        let head = Entry { commands: vec![command], term }.encode();
        if head.len() > CHANGE_BYTES_MAX {
            return Err(Status::invalid_argument("the change is larger than 1 MiB: apply it in parts"));
        }
        let committed = self.group.propose(head, Vec::new()).await.map_err(|error| refused(&error))?;
        let reply = committed.reply.into_iter().next();
        reply.ok_or_else(|| Status::internal("an entry of one command has no reply"))
    }

    /// Runs `with` on the leases while this node leads.
    fn with_leases<T>(&self, with: impl FnOnce(&mut Leases, &View) -> T) -> Result<T, Status> {
        let mut leases = self.leases.lock();
        // Read under the lock: the next holder must not see an earlier view.
        let view = self.state.view.borrow().clone();
        let status = self.group.status().borrow().clone();
        match leases.as_mut().filter(|leases| status.leading && leases.term() == status.term) {
            Some(leases) => Ok(with(leases, &view)),
            None => Err(not_leader(status.leader)),
        }
    }

    fn revision(&self) -> u64 {
        self.state.view.borrow().revision()
    }
}

/// One caller that watches the directory.
struct Watching {
    state: Applied,
    changed: watch::Receiver<Arc<View>>,
    status: watch::Receiver<postroad_raft::Status>,
    /// The caller's revision once it has all of `frames`.
    revision: u64,
    frames: VecDeque<Update>,
    closing: CancellationToken,
    _counted: metrics::Watching,
}

impl Watching {
    async fn next(&mut self) -> Option<Update> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            self.changed.mark_unchanged();
            self.fill();
            if self.frames.is_empty() {
                tokio::select! {
                    () = self.closing.cancelled() => return None,
                    () = cut_off(self.status.clone()) => return None,
                    changed = self.changed.changed() => changed.ok()?,
                }
            }
        }
    }

    /// Queues what the caller lacks.
    fn fill(&mut self) {
        let delta = {
            let directory = self.state.directory.lock();
            directory.changes_since(self.revision).unwrap_or_else(|_| directory.everything())
        };
        if !delta.is_empty() {
            self.revision = delta.revision;
            self.frames = update_frames(&delta).into();
        }
    }
}

/// Returns once this node has known no leader for long: other nodes may be ahead.
async fn cut_off(mut status: watch::Receiver<postroad_raft::Status>) {
    loop {
        let Ok(_) = status.wait_for(|status| status.leader.is_none() || status.stopped).await else { return };
        let found = status.wait_for(|status| status.leader.is_some() && !status.stopped);
        if !matches!(time::timeout(CUT_OFF_AFTER, found).await, Ok(Ok(_))) {
            return;
        }
    }
}

fn parse_scopes(scopes: Vec<wire::ScopeName>) -> Result<Vec<ScopeName>, Status> {
    if scopes.is_empty() || scopes.len() > suspensions::SCOPES_MAX {
        return Err(Status::invalid_argument("expected 1 to 1000 scopes"));
    }
    let parsed = scopes.into_iter().map(ScopeName::try_from).collect::<Result<_, _>>();
    parsed.map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Checks the peer's role; without mutual TLS every peer is allowed.
fn require<T>(request: &Request<T>, roles: &[Role]) -> Result<Option<PeerIdentity>, Status> {
    let Some(peer) = peer_info(request) else { return Ok(None) };
    peer.require(roles)?;
    Ok(peer.identity)
}

/// An outbound node may only act for itself.
fn require_node<T>(request: &Request<T>, node: u64) -> Result<(), Status> {
    match require(request, &[Role::Outbound])? {
        Some(peer) if peer.node.0 != node => Err(Status::permission_denied("a node can only act for itself")),
        _ => Ok(()),
    }
}

fn refusal_status(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::Invalid { .. } | Refusal::NamedTwice(_) | Refusal::MissingReference { .. } => {
            Status::invalid_argument(text)
        }
        Refusal::TooMany => Status::resource_exhausted(text),
        // The next leader decides again.
        Refusal::OtherTerm => Status::unavailable(text),
        Refusal::InUse { .. } | Refusal::Conflict { .. } | Refusal::Superseded | Refusal::NotGrantable => {
            Status::failed_precondition(text)
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
