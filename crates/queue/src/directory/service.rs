//! The directory on the wire: watches from what this node has applied, everything else from the leader.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, stream};
use postroad_core::{Epoch, NodeId, SourceId};
use postroad_directory::{Change, Command, Done, Owner, Refusal, Reply, View};
use postroad_net::{PeerIdentity, Role, peer_info};
use postroad_proto::directory::{
    Entry, update_frames,
    wire::{
        ApplyRequest, ApplyResponse, ClaimRequest, ClaimResponse, OwnedSource, ReleaseRequest,
        ReleaseResponse, RenewRequest, RenewResponse, Update, WatchRequest,
        directory_service_server::DirectoryService,
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
    keeper::SharedLeases,
    leases::{ClaimDecision, LeaseTimes, Leases},
    machine::{Applied, DirectoryMachine},
    metrics,
};
use crate::error::{not_leader, refused};

/// A watch ends when the node has known no leader for this long.
const CUT_OFF_AFTER: Duration = Duration::from_secs(5);
/// One change must fit one entry of the log.
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
    pub(super) closing: CancellationToken,
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
        let ApplyRequest { puts, removals, dry_run } = request.into_inner();
        let puts = puts.into_iter().map(|put| put.try_into().map(Change::Put));
        let removals = removals.into_iter().map(|name| name.try_into().map(Change::Remove));
        let changes: Result<Vec<Change>, postroad_proto::Malformed> = puts.chain(removals).collect();
        let changes = changes.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let Done { revision, changed } = self.change(changes, dry_run).await?;
        Ok(Response::new(ApplyResponse { revision, changed }))
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimResponse>, Status> {
        require_node(&request, request.get_ref().node)?;
        let ClaimRequest { node, incarnation, replaces } = request.into_inner();
        let run = Owner { node: NodeId(node), incarnation };
        self.barrier.pass().await.map_err(|error| refused(&error))?;
        let (decision, term) = self
            .with_leases(|leases, view| (leases.claim(Instant::now(), view, run, replaces), leases.term()))?;
        match decision {
            ClaimDecision::Stands => {}
            ClaimDecision::Propose => self.propose_claim(term, run).await?,
            ClaimDecision::Wait(wait) => {
                tracing::info!(
                    node,
                    incarnation,
                    ?wait,
                    "a claim waits for the lease of an earlier run to end"
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
        let run = Owner { node: NodeId(node), incarnation };
        self.barrier.pass().await.map_err(|error| refused(&error))?;
        let (renewed, let_go, revision) = self.with_leases(|leases, view| {
            (leases.renew(Instant::now(), view, run), leases.let_go(run), view.revision())
        })?;
        if !renewed {
            return Err(Status::failed_precondition("this run of the node has no lease any more"));
        }
        if self.state.view.borrow().sources().any(|source| source.owner.is_none()) {
            self.wake.notify_one();
        }
        let own = |(source, epoch): (SourceId, Epoch)| OwnedSource { source: source.0, epoch: epoch.0 };
        let let_go = let_go.into_iter().map(own).collect();
        Ok(Response::new(RenewResponse { revision, lease_millis: millis(self.times.lease), release: let_go }))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        require_node(&request, request.get_ref().node)?;
        let ReleaseRequest { node, incarnation, sources } = request.into_inner();
        let run = Owner { node: NodeId(node), incarnation };
        let commands = if sources.is_empty() {
            vec![Command::Revoke { node: run.node, incarnation }]
        } else {
            let let_go = |own: &OwnedSource| Command::ReleaseSource {
                source: SourceId(own.source),
                node: run.node,
                incarnation,
                epoch: Epoch(own.epoch),
            };
            sources.iter().map(let_go).collect()
        };
        for command in commands {
            let done = self.propose(None, command).await?;
            done.map_err(|refusal| refusal_status(&refusal))?;
        }
        metrics::decision("release");
        tracing::info!(node, incarnation, ?sources, "an outbound node has let go of its sources");
        Ok(Response::new(ReleaseResponse { revision: self.revision() }))
    }
}

impl DirectoryApi {
    /// Commits a change, unless there is nothing to change.
    async fn change(&self, changes: Vec<Change>, dry_run: bool) -> Result<Done, Status> {
        self.barrier.pass().await.map_err(|error| refused(&error))?;
        let checked = self.state.directory.lock().check(&changes);
        let checked = checked.map_err(|refusal| refusal_status(&refusal))?;
        if dry_run || checked.changed == 0 {
            return Ok(checked);
        }
        let reply = self.propose(None, Command::Change(changes)).await?;
        reply.map_err(|refusal| refusal_status(&refusal))
    }

    async fn propose_claim(&self, term: u64, run: Owner) -> Result<(), Status> {
        let claim = Command::Claim { node: run.node, incarnation: run.incarnation };
        let done = self.propose(Some(term), claim).await?;
        done.map_err(|refusal| refusal_status(&refusal))?;
        metrics::decision("claim");
        Ok(())
    }

    async fn propose(&self, term: Option<u64>, command: Command) -> Result<Reply, Status> {
        let head = Entry { commands: vec![command], term }.encode();
        if head.len() > CHANGE_BYTES_MAX {
            return Err(Status::invalid_argument("a change of more than 1 MiB: apply it in parts"));
        }
        let committed = self.group.propose(head, Vec::new()).await.map_err(|error| refused(&error))?;
        let reply = committed.reply.into_iter().next();
        reply.ok_or_else(|| Status::internal("an entry of one command has no reply"))
    }

    /// Uses the memory of this node as the leader.
    fn with_leases<T>(&self, with: impl FnOnce(&mut Leases, &View) -> T) -> Result<T, Status> {
        let mut leases = self.leases.lock();
        // Read under the lock: whoever has it next sees no earlier view.
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

/// One process that follows the directory.
struct Watching {
    state: Applied,
    changed: watch::Receiver<Arc<View>>,
    status: watch::Receiver<postroad_raft::Status>,
    /// Where the process will be once it has all of `frames`.
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

    /// Takes what the process lacks out of the state.
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

/// Returns once this node has known no leader for long: others may know more.
async fn cut_off(mut status: watch::Receiver<postroad_raft::Status>) {
    loop {
        let Ok(_) = status.wait_for(|status| status.leader.is_none() || status.stopped).await else { return };
        let found = status.wait_for(|status| status.leader.is_some() && !status.stopped);
        if !matches!(time::timeout(CUT_OFF_AFTER, found).await, Ok(Ok(_))) {
            return;
        }
    }
}

/// Checks what the peer may ask for; whoever comes over a trusted network may ask for anything.
fn require<T>(request: &Request<T>, roles: &[Role]) -> Result<Option<PeerIdentity>, Status> {
    let Some(peer) = peer_info(request) else { return Ok(None) };
    peer.require(roles)?;
    Ok(peer.identity)
}

/// An outbound node speaks for itself only.
fn require_node<T>(request: &Request<T>, node: u64) -> Result<(), Status> {
    match require(request, &[Role::Outbound])? {
        Some(peer) if peer.node.0 != node => Err(Status::permission_denied("a node speaks for itself only")),
        _ => Ok(()),
    }
}

fn refusal_status(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::Invalid { .. } | Refusal::Twice(_) | Refusal::Dangling { .. } => {
            Status::invalid_argument(text)
        }
        Refusal::TooMany => Status::resource_exhausted(text),
        // The next leader decides anew.
        Refusal::OtherTerm => Status::unavailable(text),
        Refusal::InUse { .. } | Refusal::Taken { .. } | Refusal::Superseded | Refusal::NotGrantable => {
            Status::failed_precondition(text)
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
