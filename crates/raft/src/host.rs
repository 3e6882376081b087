//! Runs a machine under openraft: applies entries, writes checkpoints, installs snapshots.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, OptionalSend,
    storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine},
};
use parking_lot::Mutex;
use postroad_core::GroupId;
use postroad_proto::raft::CheckpointMeta;
use postroad_storage::{Checkpoint, Log};
use prost::Message;

use crate::{
    machine::{AnyMachine, Entry, MachineError, MachineSnapshot},
    types::{Answer, LogId, Snapshot, SnapshotMeta, State, StoredMembership, Types, term},
    wire,
};

/// Pause before a write is retried on a full disk.
const FULL_RETRY: Duration = Duration::from_millis(500);

/// A machine, and the last entry it applied.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) group: GroupId,
    pub(crate) log: Log,
    pub(crate) state: Arc<Mutex<HostState>>,
    pub(crate) shared: Arc<HostShared>,
}

pub(crate) struct HostState {
    pub(crate) machine: Box<dyn AnyMachine>,
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

/// What can be read without the lock.
#[derive(Debug, Default)]
pub(crate) struct HostShared {
    pub(crate) applied: AtomicU64,
    /// Bytes of log applied since the last checkpoint.
    pub(crate) bytes_since_checkpoint: AtomicU64,
    pub(crate) checkpoint_bytes: AtomicU64,
    /// The last durable checkpoint.
    pub(crate) live: Mutex<Option<CheckpointedBodies>>,
    /// Shared with snapshots in transfer, whose bodies must stay.
    pub(crate) pin: Arc<()>,
}

/// The entry a durable checkpoint covers, and the bodies it refers to.
type CheckpointedBodies = (u64, Vec<(u64, u32)>);

impl HostShared {
    fn note_checkpoint(&self, index: u64, bytes: u64, live: Vec<(u64, u32)>) {
        self.checkpoint_bytes.store(bytes, Ordering::Relaxed);
        *self.live.lock() = Some((index, live));
    }
}

impl Host {
    /// Makes a host from the last durable checkpoint.
    pub(crate) fn load(group: GroupId, log: Log, machine: Box<dyn AnyMachine>) -> io::Result<Self> {
        let mut state = HostState { machine, applied: None, membership: StoredMembership::default() };
        let shared = HostShared::default();
        if let Some(checkpoint) = log.load_checkpoint(group)? {
            let meta = CheckpointMeta::decode(checkpoint.meta)
                .map_err(|_| wire::invalid("cannot decode the checkpoint's metadata"))?;
            let meta = wire::to_meta(meta)?;
            let bytes = checkpoint.state.len() as u64;
            state.machine.restore(checkpoint.state).map_err(io::Error::other)?;
            shared.note_checkpoint(checkpoint.at.index, bytes, state.machine.snapshot().live_bodies());
            state.applied = meta.last_log_id;
            state.membership = meta.last_membership;
        }
        shared.applied.store(state.applied.as_ref().map_or(0, |id| id.index), Ordering::Relaxed);
        Ok(Self { group, log, state: Arc::new(Mutex::new(state)), shared: Arc::new(shared) })
    }

    fn freeze(&self) -> (SnapshotMeta, Box<dyn MachineSnapshot>) {
        let state = self.state.lock();
        let meta = SnapshotMeta { last_log_id: state.applied, last_membership: state.membership.clone() };
        (meta, state.machine.snapshot())
    }

    /// Writes a checkpoint of the state as it is now.
    fn write_checkpoint(&self) -> io::Result<SnapshotMeta> {
        let since = self.shared.bytes_since_checkpoint.load(Ordering::Relaxed);
        let (meta, frozen) = self.freeze();
        let Some(applied) = &meta.last_log_id else { return Ok(meta) };
        // A leader applies what a majority has, which may be ahead of its own disk: wait until its own disk has it. A disk
        // without space says so here, before the work of encoding.
        self.log.barrier()?;
        let state = frozen.encode();
        let bytes = state.len() as u64;
        let checkpoint = Checkpoint { at: wire::entry_id(applied), meta: encode_meta(&meta), state };
        self.log.write_checkpoint(self.group, &checkpoint)?;
        self.shared.note_checkpoint(applied.index, bytes, frozen.live_bodies());
        self.shared.bytes_since_checkpoint.fetch_sub(since, Ordering::Relaxed);
        Ok(meta)
    }

    fn apply_one(&self, entry: crate::types::RaftEntry) -> io::Result<Answer> {
        let mut state = self.state.lock();
        let answer = match &entry.payload {
            EntryPayload::Blank => Answer::default(),
            EntryPayload::Normal(proposal) => {
                let bytes = proposal.bytes() as u64;
                self.shared.bytes_since_checkpoint.fetch_add(bytes, Ordering::Relaxed);
                let applied = state.machine.apply(Entry {
                    group: self.group,
                    index: entry.log_id.index,
                    term: term(&entry.log_id),
                    head: &proposal.head,
                    bodies: &proposal.bodies,
                });
                let reply = applied.map_err(|error| self.cannot_apply(error))?;
                Answer(Mutex::new(Some(reply)))
            }
            EntryPayload::Membership(members) => {
                state.membership = StoredMembership::new(Some(entry.log_id), members.clone());
                Answer::default()
            }
        };
        state.applied = Some(entry.log_id);
        self.shared.applied.store(entry.log_id.index, Ordering::Relaxed);
        Ok(answer)
    }

    fn cannot_apply(&self, error: MachineError) -> io::Error {
        tracing::error!(group = %self.group, %error, "cannot apply an entry: the group stops on this node");
        io::Error::other(error)
    }
}

/// Retries a write while the disk is full, so that a full disk stops no group (faults R-13).
async fn retry_while_disk_is_full<T: Send + 'static>(
    group: GroupId,
    write: impl Fn() -> io::Result<T> + Clone + Send + 'static,
) -> io::Result<T> {
    let mut was_logged = false;
    loop {
        match postroad_env::blocking(write.clone()).await.map_err(io::Error::other)? {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                if !std::mem::replace(&mut was_logged, true) {
                    tracing::warn!(%group, %error, "the disk is full: a checkpoint waits for space");
                }
                tokio::time::sleep(FULL_RETRY).await;
            }
            result => return result,
        }
    }
}

fn encode_meta(meta: &SnapshotMeta) -> bytes::Bytes {
    wire::from_meta(meta).encode_to_vec().into()
}

impl RaftSnapshotBuilder<Types> for Host {
    type SnapshotData = State;

    /// openraft calls a checkpoint a snapshot. It is durable when this returns.
    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let host = self.clone();
        let meta = retry_while_disk_is_full(self.group, move || host.write_checkpoint()).await?;
        Ok(Snapshot { meta, snapshot: State { bytes: bytes::Bytes::new(), live: Vec::new(), _pin: None } })
    }
}

impl RaftStateMachine<Types> for Host {
    type SnapshotData = State;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.state.lock();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let answer = self.apply_one(entry)?;
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    /// The receiver has made every body that the state refers to durable.
    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: State) -> io::Result<()> {
        let Some(applied) = meta.last_log_id else { return Ok(()) };
        let State { bytes, live, .. } = snapshot;
        let checkpoint =
            Checkpoint { at: wire::entry_id(&applied), meta: encode_meta(meta), state: bytes.clone() };
        let (log, group) = (self.log.clone(), self.group);
        let write = move || {
            // A pending truncation must not reach the disk after the state that replaces it.
            log.barrier()?;
            log.write_checkpoint(group, &checkpoint)
        };
        retry_while_disk_is_full(group, write).await?;
        self.shared.note_checkpoint(applied.index, bytes.len() as u64, live);
        let (host, meta) = (self.clone(), meta.clone());
        let restore = move || {
            let mut state = host.state.lock();
            state.machine.restore(bytes).map_err(io::Error::other)?;
            state.applied = meta.last_log_id;
            state.membership = meta.last_membership;
            host.shared.applied.store(applied.index, Ordering::Relaxed);
            Ok(())
        };
        postroad_env::blocking(restore).await.map_err(io::Error::other)?
    }

    /// The current state, for a follower that is too far behind; its bodies stay until the transfer is over.
    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let host = self.clone();
        let pin = host.shared.pin.clone();
        let freeze = move || {
            let (meta, frozen) = host.freeze();
            let state = State { bytes: frozen.encode(), live: frozen.live_bodies(), _pin: Some(pin) };
            meta.last_log_id.is_some().then_some(Snapshot { meta, snapshot: state })
        };
        postroad_env::blocking(freeze).await.map_err(io::Error::other)
    }
}
