//! Submission to the ledger groups: batched, acknowledged after commit, and never duplicated.
//!
//! One task per group owns the stream to that group's leader.
//! An item that may or may not be committed is proposed again until its deadline, under the same id and only to the same
//! group; the ledger knows the id, so the message is accepted once however often it is proposed.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use postroad_core::{GroupId, MessageId, NodeId};
use postroad_proto::queue::{
    Submission, SubmitBatch, SubmitResult, SubmitResults, SubmitStatus,
    queue_service_client::QueueServiceClient,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{self, Instant},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{Endpoints, LeaderTable, leaders::Leader};

/// Why a message was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Nothing was stored: there is no leader or no quorum, or too much is waiting. May be tried again.
    #[error("the queue cannot commit at the moment")]
    Unavailable,
    /// It was proposed, and the deadline passed before the answer: it may be delivered.
    #[error("the outcome of the commit is unknown")]
    Unknown,
    /// Nothing was stored: a disk is full.
    #[error("the queue's disk is full")]
    StorageFull,
    /// Nothing was stored: the submission breaks a bound.
    #[error("the queue refused it: {0}")]
    Invalid(String),
}

/// The bounds of submission.
#[derive(Clone, Copy, Debug)]
pub struct SubmitConfig {
    /// How long an item is proposed again before the client gets a temporary error.
    pub deadline: Duration,
    /// Messages waiting or in flight, per group.
    pub waiting_max: usize,
    /// Content bytes in one batch; a larger message is sent alone.
    pub batch_bytes_max: usize,
    /// Messages in one batch.
    pub batch_messages_max: usize,
}

impl Default for SubmitConfig {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(5),
            waiting_max: 10_000,
            batch_bytes_max: 1 << 20,
            batch_messages_max: 256,
        }
    }
}

/// A cheap handle to submit messages; its tasks end with the last handle.
#[derive(Clone, Debug)]
pub struct Submitter {
    streams: std::sync::Arc<HashMap<GroupId, mpsc::Sender<Item>>>,
    leaders: watch::Receiver<LeaderTable>,
    config: SubmitConfig,
}

#[derive(Debug)]
struct Item {
    submission: Submission,
    deadline: Instant,
    /// Set once it was sent on a stream without a definite refusal.
    may_be_committed: bool,
    answer: oneshot::Sender<Result<(), SubmitError>>,
}

impl Submitter {
    /// Starts one task per ledger group on `tasks`.
    #[must_use]
    pub fn start(
        tasks: &mut JoinSet<()>,
        endpoints: &Endpoints,
        leaders: &watch::Receiver<LeaderTable>,
        groups: impl IntoIterator<Item = GroupId>,
        config: SubmitConfig,
    ) -> Self {
        let mut streams = HashMap::new();
        for group in groups {
            let (sender, items) = mpsc::channel(config.waiting_max);
            streams.insert(group, sender);
            let stream = GroupStream {
                group,
                endpoints: endpoints.clone(),
                leaders: leaders.clone(),
                config,
                items,
                retry: VecDeque::new(),
                pending: HashMap::new(),
                next_sequence: 1,
            };
            tasks.spawn(stream.run());
        }
        Self { streams: std::sync::Arc::new(streams), leaders: leaders.clone(), config }
    }

    /// Picks the group for a new message: by `choice` among those that have a leader, among all when none has.
    #[must_use]
    pub fn pick_group(&self, choice: u64) -> Option<GroupId> {
        let leaders = self.leaders.borrow();
        let led: Vec<GroupId> =
            leaders.keys().copied().filter(|group| self.streams.contains_key(group)).collect();
        drop(leaders);
        let mut groups = if led.is_empty() { self.streams.keys().copied().collect() } else { led };
        groups.sort_unstable();
        let index = usize::try_from(choice % groups.len().max(1) as u64).unwrap_or(0);
        groups.get(index).copied()
    }

    /// Returns true when some ledger group has a leader that can be reached.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.leaders.borrow().keys().any(|group| self.streams.contains_key(group))
    }

    /// Submits a message to the group that its id names; returns once it is on a majority of disks.
    ///
    /// Dropping the future does not cancel the submission.
    ///
    /// # Errors
    /// It was not acknowledged before the deadline; the error says whether it may have been stored.
    pub async fn submit(&self, id: MessageId, submission: Submission) -> Result<(), SubmitError> {
        let stream = self.streams.get(&id.group()).ok_or(SubmitError::Unavailable)?;
        let (answer, result) = oneshot::channel();
        let deadline = Instant::now() + self.config.deadline;
        let item = Item { submission, deadline, may_be_committed: false, answer };
        stream.try_send(item).map_err(|_| SubmitError::Unavailable)?;
        result.await.unwrap_or(Err(SubmitError::Unknown))
    }
}

/// The messages on their way to one group, and the stream to its leader.
struct GroupStream {
    group: GroupId,
    endpoints: Endpoints,
    leaders: watch::Receiver<LeaderTable>,
    config: SubmitConfig,
    items: mpsc::Receiver<Item>,
    /// Items to send again, oldest first.
    retry: VecDeque<Item>,
    /// Items sent on the current stream, by sequence.
    pending: HashMap<u64, Item>,
    next_sequence: u64,
}

/// Why a stream ended.
enum Ended {
    /// No handle is left and nothing is pending.
    Finished,
    /// The stream broke, or another node leads.
    Broken,
}

struct LeaderStream {
    leader: Leader,
    batches: mpsc::Sender<SubmitBatch>,
    results: Streaming<SubmitResults>,
}

/// Pause between a broken stream and the next one.
const REOPEN_AFTER: Duration = Duration::from_millis(20);

impl GroupStream {
    async fn run(mut self) {
        loop {
            let Some(stream) = self.open().await else { return };
            let ended = self.drive(stream).await;
            self.put_back_pending();
            match ended {
                Ended::Finished => return,
                Ended::Broken => time::sleep(REOPEN_AFTER).await,
            }
        }
    }

    /// Opens a stream to the leader, expiring items while there is none; `None` when no handle is left.
    async fn open(&mut self) -> Option<LeaderStream> {
        loop {
            self.expire();
            if let Some(leader) = self.current_leader()
                && let Some(stream) = self.connect(leader).await
            {
                return Some(stream);
            }
            if self.items.is_closed() && self.items.is_empty() && self.retry.is_empty() {
                return None;
            }
            // `expire` looks at the items in the channel and in `retry`.
            let changed = self.leaders.changed();
            if let Ok(Err(_)) = time::timeout(Duration::from_millis(50), changed).await {
                time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn current_leader(&self) -> Option<Leader> {
        self.leaders.borrow().get(&self.group).copied()
    }

    async fn connect(&self, leader: Leader) -> Option<LeaderStream> {
        let channel = self.endpoints.get(&leader.node)?.clone();
        let (batches, receiver) = mpsc::channel(2);
        let mut client = QueueServiceClient::new(channel)
            .max_decoding_message_size(crate::FRAME_BYTES_MAX)
            .max_encoding_message_size(crate::FRAME_BYTES_MAX);
        let opened =
            time::timeout(Duration::from_secs(1), client.submit(ReceiverStream::new(receiver))).await;
        match opened {
            Ok(Ok(response)) => Some(LeaderStream { leader, batches, results: response.into_inner() }),
            Ok(Err(status)) => {
                tracing::debug!(group = %self.group, node = %leader.node, %status, "submit stream refused");
                None
            }
            Err(_) => None,
        }
    }

    /// Sends items and handles results until the stream ends.
    async fn drive(&mut self, mut stream: LeaderStream) -> Ended {
        let mut expiry = time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                biased;
                results = stream.results.message() => match results {
                    Ok(Some(results)) => {
                        if self.handle_results(results) {
                            return Ended::Broken;
                        }
                    }
                    Ok(None) | Err(_) => return Ended::Broken,
                },
                permit = stream.batches.reserve(), if self.has_work() => {
                    let Ok(permit) = permit else { return Ended::Broken };
                    // Let clients with a complete message join the batch: it costs about the same whatever its size.
                    tokio::task::yield_now().await;
                    let batch = self.next_batch();
                    if !batch.submissions.is_empty() {
                        permit.send(batch);
                    }
                }
                item = self.items.recv(), if !self.has_work() => match item {
                    Some(item) => self.retry.push_back(item),
                    None if self.pending.is_empty() => return Ended::Finished,
                    None => time::sleep(REOPEN_AFTER).await,
                },
                _ = expiry.tick() => {
                    self.expire();
                    if self.current_leader().is_some_and(|leader| leader.term > stream.leader.term) {
                        return Ended::Broken;
                    }
                }
            }
        }
    }

    fn has_work(&self) -> bool {
        !self.retry.is_empty() || !self.items.is_empty()
    }

    /// Takes waiting items, up to the bounds of a batch.
    fn next_batch(&mut self) -> SubmitBatch {
        let mut batch = SubmitBatch::default();
        let mut bytes = 0;
        while bytes < self.config.batch_bytes_max && batch.submissions.len() < self.config.batch_messages_max
        {
            let Some(mut item) = self.retry.pop_front().or_else(|| self.items.try_recv().ok()) else {
                break;
            };
            let sequence = self.next_sequence;
            self.next_sequence += 1;
            item.submission.sequence = sequence;
            bytes += item.submission.content.iter().map(bytes::Bytes::len).sum::<usize>();
            // Contents are `Bytes`: the clone kept for a retry shares them.
            batch.submissions.push(item.submission.clone());
            self.pending.insert(sequence, item);
        }
        batch
    }

    /// Answers items with a final result and keeps the others for a retry; returns true when the stream must be reopened.
    fn handle_results(&mut self, results: SubmitResults) -> bool {
        let mut reopen = false;
        for SubmitResult { sequence, status, detail, .. } in results.results {
            let Some(mut item) = self.pending.remove(&sequence) else { continue };
            let answer = match SubmitStatus::try_from(status).unwrap_or(SubmitStatus::Unspecified) {
                SubmitStatus::Accepted => Ok(()),
                SubmitStatus::StorageFull if !item.may_be_committed => Err(SubmitError::StorageFull),
                SubmitStatus::Invalid => Err(SubmitError::Invalid(detail)),
                // Clocks differ, or an earlier try took long: it may have been accepted then, and have ended.
                SubmitStatus::TooOld if item.may_be_committed => Err(SubmitError::Unknown),
                SubmitStatus::TooOld | SubmitStatus::ChunkMissing => Err(SubmitError::Unavailable),
                status => {
                    item.may_be_committed |=
                        matches!(status, SubmitStatus::Unknown | SubmitStatus::Unspecified);
                    // The stream is reopened after a pause: a leader without a quorum is not asked in a hot loop.
                    reopen |= matches!(status, SubmitStatus::NotLeader | SubmitStatus::Unavailable);
                    self.retry.push_back(item);
                    continue;
                }
            };
            let _ = item.answer.send(answer);
        }
        reopen
    }

    /// Keeps the items of a broken stream for a retry: each may have been proposed.
    fn put_back_pending(&mut self) {
        let mut items: Vec<(u64, Item)> = self.pending.drain().collect();
        items.sort_unstable_by_key(|(sequence, _)| *sequence);
        for (_, mut item) in items.into_iter().rev() {
            item.may_be_committed = true;
            self.retry.push_front(item);
        }
    }

    /// Answers items whose deadline has passed.
    fn expire(&mut self) {
        while self.retry.len() < self.config.waiting_max
            && let Ok(item) = self.items.try_recv()
        {
            self.retry.push_back(item);
        }
        let now = Instant::now();
        let expired = |item: &mut Item| item.deadline <= now;
        let mut kept = VecDeque::with_capacity(self.retry.len());
        for mut item in self.retry.drain(..) {
            if expired(&mut item) { answer_expired(item) } else { kept.push_back(item) }
        }
        self.retry = kept;
        for (_, mut item) in self.pending.extract_if(|_, item| expired(item)) {
            item.may_be_committed = true;
            answer_expired(item);
        }
    }
}

fn answer_expired(item: Item) {
    let error = if item.may_be_committed { SubmitError::Unknown } else { SubmitError::Unavailable };
    let _ = item.answer.send(Err(error));
}

/// Returns the leader of `group`, if one is known.
#[must_use]
pub fn leader_of(leaders: &watch::Receiver<LeaderTable>, group: GroupId) -> Option<NodeId> {
    leaders.borrow().get(&group).map(|leader| leader.node)
}
