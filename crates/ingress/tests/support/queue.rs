//! A fake queue node that keeps submissions and answers as configured.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::StreamExt as _;
use postroad_directory::{Command, Directory};
use postroad_proto::{
    directory::{
        update_frames,
        wire::{Update, WatchRequest},
    },
    queue::{
        DeliveryState, DeliveryView, GetMessageRequest, GroupLeader, LeaderView, MessageView, Submission,
        SubmitBatch, SubmitResult, SubmitResults, SubmitStatus,
    },
};
use postroad_testkit::queue::{Answers, QueueScript, follow};
use tokio::sync::watch;
use tonic::{Status, Streaming};

/// How submissions are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Accept,
    Answer(SubmitStatus),
    /// Keeps submissions and does not answer.
    Silence,
}

/// A clone is the same queue.
#[derive(Clone)]
pub(crate) struct FakeQueue {
    pub(crate) mode: watch::Sender<Mode>,
    pub(crate) leading: watch::Sender<bool>,
    directory: watch::Sender<Directory>,
    accepted: watch::Sender<Vec<Submission>>,
    chunks: watch::Sender<BTreeMap<(Bytes, u32), Vec<u8>>>,
}

impl FakeQueue {
    pub(crate) fn new(commands: Vec<Command>) -> Arc<Self> {
        let queue = Self {
            mode: watch::channel(Mode::Accept).0,
            leading: watch::channel(true).0,
            directory: watch::channel(Directory::new()).0,
            accepted: watch::channel(Vec::new()).0,
            chunks: watch::channel(BTreeMap::new()).0,
        };
        commands.iter().for_each(|command| queue.apply(command));
        Arc::new(queue)
    }

    pub(crate) fn apply(&self, command: &Command) {
        self.directory.send_modify(|directory| assert!(directory.apply(command).is_ok()));
    }

    /// Returns the messages it kept, whatever it answered, with chunks joined.
    pub(crate) fn accepted(&self) -> Vec<Submission> {
        self.accepted.borrow().clone()
    }

    pub(crate) fn chunks(&self) -> usize {
        self.chunks.borrow().len()
    }

    /// Keeps a submission and returns the answer, if any.
    fn take(&self, mut submission: Submission) -> Option<SubmitResult> {
        let sequence = submission.sequence;
        let result =
            |status: SubmitStatus| SubmitResult { sequence, status: status.into(), ..Default::default() };
        let mode = *self.mode.borrow();
        if let Mode::Answer(status) = mode {
            return Some(result(status));
        }
        let bytes: usize = submission.content.iter().map(Bytes::len).sum();
        assert!(bytes <= postroad_proto::CONTENT_BYTES_MAX, "{bytes} bytes do not fit an entry");
        if let Some(number) = submission.chunk {
            let content = submission.content.concat();
            self.chunks.send_modify(|chunks| drop(chunks.insert((submission.message_id, number), content)));
        } else {
            for number in 0..submission.chunks {
                let chunk = self.chunks.borrow()[&(submission.message_id.clone(), number)].clone();
                submission.content.push(chunk.into());
            }
            let is_duplicate = |kept: &Submission| kept.message_id == submission.message_id;
            if !self.accepted.borrow().iter().any(is_duplicate) {
                self.accepted.send_modify(|accepted| accepted.push(submission));
            }
        }
        (mode == Mode::Accept).then(|| result(SubmitStatus::Accepted))
    }
}

#[tonic::async_trait]
impl QueueScript for FakeQueue {
    async fn leaders(&self) -> Result<Answers<LeaderView>, Status> {
        let items_of = |leading: &bool| {
            let leader = u64::from(*leading);
            let groups = [0, 1].map(|group| GroupLeader { group, term: 1, leader });
            vec![LeaderView { node: 1, groups: groups.to_vec() }]
        };
        Ok(follow(self.leading.subscribe(), items_of))
    }

    async fn submit(&self, batches: Streaming<SubmitBatch>) -> Result<Answers<SubmitResults>, Status> {
        let queue = self.clone();
        let results = batches.map(move |batch| {
            let results = batch?.submissions.into_iter().filter_map(|submission| queue.take(submission));
            Ok(SubmitResults { results: results.collect() })
        });
        Ok(Box::pin(results))
    }

    async fn get_message(&self, request: GetMessageRequest) -> Result<MessageView, Status> {
        let GetMessageRequest { message_id, tenant } = request;
        let accepted = self.accepted.borrow();
        let found = accepted.iter().find(|kept| kept.message_id == message_id && kept.tenant == tenant);
        let kept = found.ok_or_else(|| Status::not_found("no such message"))?;
        let delivery = |recipient: &postroad_proto::queue::Recipient| DeliveryView {
            recipient: recipient.address.clone(),
            state: DeliveryState::Queued.into(),
            attempts: 1,
            due_at_millis: 2_500,
            last_response: "451 later".to_owned(),
            ..Default::default()
        };
        Ok(MessageView {
            message_id,
            tenant,
            sender: kept.sender.clone(),
            size_bytes: kept.size_bytes,
            accepted_at_millis: 1_000,
            expires_at_millis: kept.expires_at_millis,
            deliveries: kept.recipients.iter().map(delivery).collect(),
            ..Default::default()
        })
    }

    async fn watch_directory(&self, _: WatchRequest) -> Result<Answers<Update>, Status> {
        // An empty directory means a node that has not caught up.
        let items_of = |directory: &Directory| match directory.revision() == Directory::new().revision() {
            true => Vec::new(),
            false => update_frames(&directory.everything()),
        };
        Ok(follow(self.directory.subscribe(), items_of))
    }
}
