//! One group on this node: proposing, reading and leadership.

use std::{marker::PhantomData, ops::Deref, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::{
    Config, Instant as _, Raft, RaftMetrics, ReadPolicy, ServerState,
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError},
};
use postroad_core::{GroupId, NodeId};
use postroad_storage::{Log, Room};
use tokio::{
    sync::{Semaphore, watch},
    time,
};

use crate::{
    host::Host,
    machine::{AnyReply, Machine},
    membership,
    network::FullPeers,
    types::{LogId, Proposal, Types, term},
};

/// How long to wait until a majority confirms the leader.
const LEASE_WAIT_MAX: Duration = Duration::from_millis(1500);
const LEASE_RETRY: Duration = Duration::from_millis(5);

/// The unit of the budget for proposals.
const PERMIT_BYTES: usize = 1 << 10;

/// Who leads, as this node knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The leader of the term, if one is known.
    pub leader: Option<NodeId>,
    /// The highest term seen.
    pub term: u64,
    /// This node is the leader, and has applied everything that earlier leaders committed.
    pub leading: bool,
    /// The group has stopped on this node, until a restart.
    pub stopped: bool,
}

/// An entry that is durable on a majority and applied here.
#[derive(Debug)]
pub struct Committed<R> {
    /// Its position in the log.
    pub index: u64,
    /// The machine's reply.
    pub reply: R,
}

/// How the other voters follow, as their leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replication {
    /// The voters of the group, the leader among them.
    pub voters: usize,
    /// Those that answered within the last second, or the last three heartbeats, the leader among them.
    pub answering: usize,
    /// Every other node that the leader replicates to, and how many bytes of the log it has not confirmed.
    pub behind: Vec<(NodeId, u64)>,
}

/// Why a proposal failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was proposed: another node is the leader, or there is none.
    #[error("this node is not the leader")]
    NotLeader {
        /// The likely leader.
        leader: Option<NodeId>,
    },
    /// It was proposed; whether it is or will be committed is unknown.
    #[error("the outcome of the commit is unknown")]
    Unknown,
    /// Nothing was proposed: the disk is full on this node, or on so many that no majority could store it.
    #[error("the disk is full")]
    Full,
    /// Nothing was proposed: the group has stopped on this node.
    #[error("the group has stopped")]
    Stopped,
}

/// A cheap handle to one group on this node, which knows the replies of its machine.
pub struct Group<M> {
    handle: Arc<GroupHandle>,
    machine: PhantomData<fn() -> M>,
}

/// A group on this node, whatever its machine.
///
/// Its futures are boxed: openraft is compiled here once, and not in every crate that awaits them.
pub struct GroupHandle {
    pub(crate) id: GroupId,
    pub(crate) raft: Raft<Types, Host>,
    pub(crate) host: Host,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) full: FullPeers,
    /// Permits of [`PERMIT_BYTES`] for proposals.
    budget: Semaphore,
    budget_permits: usize,
}

impl<M> Clone for Group<M> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), machine: PhantomData }
    }
}

impl<M> Deref for Group<M> {
    type Target = GroupHandle;

    fn deref(&self) -> &GroupHandle {
        &self.handle
    }
}

impl<M> std::fmt::Debug for Group<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("id", &self.id).finish_non_exhaustive()
    }
}

impl<M: Machine> Group<M> {
    /// Takes a handle of a group whose machine is an `M`.
    pub(crate) fn new(handle: GroupHandle) -> Self {
        Self { handle: Arc::new(handle), machine: PhantomData }
    }

    /// Proposes an entry; returns once a majority has it on disk and it has been applied here.
    ///
    /// Dropping the future does not withdraw the entry.
    ///
    /// # Errors
    /// See [`ProposeError`]: only `Unknown` may have been committed.
    pub async fn propose(
        &self,
        head: Bytes,
        bodies: Vec<Bytes>,
    ) -> Result<Committed<M::Reply>, ProposeError> {
        let (index, reply) = self.handle.propose(head, bodies).await?;
        let reply = reply.downcast::<M::Reply>().map_err(|_| ProposeError::Unknown)?;
        Ok(Committed { index, reply: *reply })
    }
}

impl GroupHandle {
    pub(crate) fn new(
        id: GroupId,
        raft: Raft<Types, Host>,
        host: Host,
        status: watch::Receiver<Status>,
        full: FullPeers,
        budget_bytes: usize,
    ) -> Self {
        let budget_permits = budget_bytes / PERMIT_BYTES;
        let budget = Semaphore::new(budget_permits);
        Self { id, raft, host, status, full, budget, budget_permits }
    }

    /// See [`Group::propose`]; returns the index and the machine's reply.
    fn propose(
        &self,
        head: Bytes,
        bodies: Vec<Bytes>,
    ) -> BoxFuture<'_, Result<(u64, AnyReply), ProposeError>> {
        Box::pin(self.write(head, bodies))
    }

    async fn write(&self, head: Bytes, bodies: Vec<Bytes>) -> Result<(u64, AnyReply), ProposeError> {
        if self.host.log.room() == Room::None || (!bodies.is_empty() && !self.takes_bodies()) {
            return Err(ProposeError::Full);
        }
        let proposal = Proposal { head, bodies: bodies.into() };
        let permits = proposal.bytes().div_ceil(PERMIT_BYTES).min(self.budget_permits);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let _permit = self.budget.acquire_many(permits).await.map_err(|_| ProposeError::Stopped)?;
        let deadline = time::Instant::now() + LEASE_WAIT_MAX;
        loop {
            let error = match self.raft.client_write(proposal.clone()).await {
                Ok(written) => {
                    let reply = written.data.0.lock().take().ok_or(ProposeError::Unknown)?;
                    return Ok((written.log_id.index, reply));
                }
                Err(error) => error,
            };
            match error {
                RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
                    self.wait_for_lease(to, deadline).await?;
                }
                RaftError::APIError(ClientWriteError::ChangeMembershipError(_)) | RaftError::Fatal(_) => {
                    // A stopped core may have replicated the entry before it stopped.
                    return Err(ProposeError::Unknown);
                }
                RaftError::APIError(_) => return Err(ProposeError::Unknown),
            }
        }
    }

    /// Returns false while the disk has only its reserve left, here or on so many nodes that no majority has more: an
    /// entry with bodies would block those that end mail and so free space.
    #[must_use]
    pub fn takes_bodies(&self) -> bool {
        if self.host.log.room() != Room::Plenty {
            return false;
        }
        let full = self.full.lock();
        if full.is_empty() {
            return true;
        }
        let metrics = self.raft.metrics().borrow_watched().clone();
        let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
        // A node that does not answer cannot store it either.
        let has_room = |voter: &&u64| {
            **voter == metrics.id || (!full.contains(voter) && self.answers(&metrics, **voter))
        };
        voters.iter().filter(has_room).count() > voters.len() / 2
    }

    /// Waits a moment where the leader is not confirmed by a majority yet: after an election, or with slow followers.
    async fn wait_for_lease(
        &self,
        to: ForwardToLeader<Types>,
        deadline: time::Instant,
    ) -> Result<(), ProposeError> {
        let retry = to.reason == ForwardReason::LeaseExpired && time::Instant::now() < deadline;
        if !retry {
            return Err(ProposeError::NotLeader { leader: to.leader_id.map(NodeId) });
        }
        time::sleep(LEASE_RETRY).await;
        Ok(())
    }

    /// Returns once this node has proven that it leads and has applied everything that was committed before the call.
    ///
    /// # Errors
    /// This node is not the leader, or could not prove it in time.
    pub fn read_barrier(&self) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(self.prove_leadership())
    }

    async fn prove_leadership(&self) -> Result<(), ProposeError> {
        let barrier = async || match self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => {
                Err(ProposeError::NotLeader { leader: to.leader_id.map(NodeId) })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(ProposeError::NotLeader { leader: None })
            }
            Err(RaftError::Fatal(_)) => Err(ProposeError::Stopped),
        };
        time::timeout(LEASE_WAIT_MAX, barrier())
            .await
            .unwrap_or(Err(ProposeError::NotLeader { leader: None }))
    }

    /// Watches leadership.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Returns how the other voters follow; `None` unless this node leads.
    #[must_use]
    pub fn replication(&self) -> Option<Replication> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let followers = metrics.replication.as_ref().filter(|_| self.status.borrow().leading)?;
        let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
        let answers = |voter: &&u64| **voter == metrics.id || self.answers(&metrics, **voter);
        let behind = |(node, matched): (&u64, &Option<LogId>)| {
            let next = matched.as_ref().map_or(0, |matched| matched.index + 1);
            (NodeId(*node), self.host.log.bytes_from(self.id, next))
        };
        let others = followers.iter().filter(|(node, _)| **node != metrics.id);
        Some(Replication {
            voters: voters.len(),
            answering: voters.iter().filter(answers).count(),
            behind: others.map(behind).collect(),
        })
    }

    fn answers(&self, metrics: &RaftMetrics<Types>, voter: u64) -> bool {
        answered_recently(self.raft.config(), metrics, NodeId(voter))
    }

    /// Returns the position of the last entry applied here.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.host.shared.applied.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Returns the index of the last applied entry and the state's hash, which is equal on all replicas at that entry.
    #[must_use]
    pub fn state_hash(&self) -> (u64, u64) {
        let state = self.host.state.lock();
        (state.applied.as_ref().map_or(0, |id| id.index), state.machine.state_hash())
    }

    /// Transfers leadership to the most up-to-date other voter, if this node is the leader.
    ///
    /// # Errors
    /// The group has stopped, or there is no other voter.
    pub fn transfer(&self) -> BoxFuture<'_, Result<(), ProposeError>> {
        let to = {
            let metrics = self.raft.metrics().borrow_watched().clone();
            let replication = metrics.replication.unwrap_or_default();
            let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
            let is_other = |node: &u64| *node != metrics.id && voters.contains(node);
            let others = replication.into_iter().filter(|(node, _)| is_other(node));
            others.max_by_key(|(_, matched)| matched.as_ref().map(|id| id.index)).map(|(node, _)| node)
        };
        Box::pin(async move {
            let to = to.ok_or(ProposeError::NotLeader { leader: None })?;
            self.raft.trigger().transfer_leader(to).await.map_err(|_| ProposeError::Stopped)
        })
    }

    /// Returns true when this node is a voter with its current disk, as of the last entry it applied.
    #[must_use]
    pub fn votes(&self) -> bool {
        membership::votes(&self.host)
    }

    /// Writes a checkpoint now.
    ///
    /// # Errors
    /// The group has stopped.
    pub fn checkpoint(&self) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async { self.raft.trigger().snapshot().await.map_err(|_| ProposeError::Stopped) })
    }

    /// Stops the group on this node.
    pub fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Err(error) = self.raft.shutdown().await {
                tracing::warn!(group = %self.id, %error, "the group did not stop cleanly");
            }
        })
    }

    /// Returns the node's log.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.host.log
    }
}

/// A node that has not answered for longer, and for three heartbeats, counts as down.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// Returns true when a member, with its known disk, has recently answered this leader.
pub(crate) fn answered_recently(config: &Config, metrics: &RaftMetrics<Types>, node: NodeId) -> bool {
    let within = ANSWERED_WITHIN.max(Duration::from_millis(config.heartbeat_interval) * 3);
    let answered = metrics.heartbeat.as_ref().and_then(|heard| heard.get(&node.0).copied().flatten());
    answered.is_some_and(|at| at.elapsed() < within)
}

/// Publishes openraft's metrics as a status that changes only when leadership does.
pub(crate) async fn follow(raft: Raft<Types, Host>, status: watch::Sender<Status>) {
    let mut metrics = raft.metrics();
    loop {
        let now = {
            let metrics = metrics.borrow_watched();
            let applied_term = metrics.last_applied.as_ref().map_or(0, term);
            Status {
                leader: metrics.current_leader.map(NodeId),
                term: metrics.current_term,
                leading: metrics.state == ServerState::Leader && applied_term == metrics.current_term,
                stopped: metrics.running_state.is_err(),
            }
        };
        status.send_if_modified(|known| {
            let differs = *known != now;
            *known = now;
            differs
        });
        if metrics.changed().await.is_err() {
            status.send_modify(|known| {
                known.leading = false;
                known.stopped = true;
            });
            return;
        }
    }
}
