//! A fake queue node that keeps submissions and answers as configured.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use postroad_directory::{Command, Directory};
use postroad_net::{NodeListener, server_builder};
use postroad_proto::{
    directory::{
        update_frames,
        wire::{
            ApplyRequest, ApplyResponse, ClaimRequest, ClaimResponse, ReleaseRequest, ReleaseResponse,
            RenewRequest, RenewResponse, Update, WatchRequest,
            directory_service_server::{DirectoryService, DirectoryServiceServer},
        },
    },
    queue::{
        ChangeMessageRequest, ChangeMessageResponse, ConsumeRequest, ConsumeResponse, ContentPart,
        ContentRequest, DeliveryState, DeliveryView, EventBatch, EventsRequest, GetMessageRequest,
        GroupLeader, LeaderView, LeadersRequest, MessageView, OutboundFrame, QueueFrame, Submission,
        SubmitBatch, SubmitResult, SubmitResults, SubmitStatus, SummaryRequest, SummaryResponse,
        queue_service_server::{QueueService, QueueServiceServer},
    },
};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How submissions are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Accept,
    Answer(SubmitStatus),
    /// Keeps submissions and does not answer.
    Silence,
}

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

pub(crate) async fn serve(listener: NodeListener, queue: Arc<FakeQueue>) {
    let served = server_builder()
        .add_service(
            QueueServiceServer::from_arc(Arc::clone(&queue))
                .max_decoding_message_size(postroad_proto::FRAME_BYTES_MAX),
        )
        .add_service(DirectoryServiceServer::from_arc(queue))
        .serve_with_incoming(listener);
    served.await.unwrap();
}

/// Streams `items_of` the watched value, now and after every change.
fn follow<T, U: Send + 'static>(
    receiver: watch::Receiver<T>,
    items_of: impl Fn(&T) -> Vec<U> + Send + Sync + Copy + 'static,
) -> Answers<U>
where
    T: Send + Sync + 'static,
{
    let items = stream::unfold((receiver, true), move |(mut receiver, first)| async move {
        if !first {
            receiver.changed().await.ok()?;
        }
        let items = items_of(&receiver.borrow_and_update());
        Some((stream::iter(items.into_iter().map(Ok)), (receiver, false)))
    });
    Box::pin(items.flatten())
}

#[tonic::async_trait]
impl QueueService for FakeQueue {
    type LeadersStream = Answers<LeaderView>;
    type SubmitStream = Answers<SubmitResults>;
    type WorkStream = Answers<QueueFrame>;
    type ContentStream = Answers<ContentPart>;
    type EventsStream = Answers<EventBatch>;

    async fn leaders(&self, _: Request<LeadersRequest>) -> Result<Response<Answers<LeaderView>>, Status> {
        let items_of = |leading: &bool| {
            let leader = u64::from(*leading);
            let groups = [0, 1].map(|group| GroupLeader { group, term: 1, leader });
            vec![LeaderView { node: 1, groups: groups.to_vec() }]
        };
        Ok(Response::new(follow(self.leading.subscribe(), items_of)))
    }

    async fn submit(
        &self,
        request: Request<Streaming<SubmitBatch>>,
    ) -> Result<Response<Answers<SubmitResults>>, Status> {
        // The stream must own its data: clone the shared parts.
        let queue = Self {
            mode: self.mode.clone(),
            leading: self.leading.clone(),
            directory: self.directory.clone(),
            accepted: self.accepted.clone(),
            chunks: self.chunks.clone(),
        };
        let results = request.into_inner().map(move |batch| {
            let results = batch?.submissions.into_iter().filter_map(|submission| queue.take(submission));
            Ok(SubmitResults { results: results.collect() })
        });
        Ok(Response::new(Box::pin(results)))
    }

    async fn get_message(
        &self,
        request: Request<GetMessageRequest>,
    ) -> Result<Response<MessageView>, Status> {
        let GetMessageRequest { message_id, tenant } = request.into_inner();
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
        Ok(Response::new(MessageView {
            message_id,
            tenant,
            sender: kept.sender.clone(),
            size_bytes: kept.size_bytes,
            accepted_at_millis: 1_000,
            expires_at_millis: kept.expires_at_millis,
            deliveries: kept.recipients.iter().map(delivery).collect(),
        }))
    }

    async fn work(
        &self,
        _: Request<Streaming<OutboundFrame>>,
    ) -> Result<Response<Answers<QueueFrame>>, Status> {
        Err(Status::unimplemented("not called by ingress"))
    }

    async fn content(&self, _: Request<ContentRequest>) -> Result<Response<Answers<ContentPart>>, Status> {
        Err(Status::unimplemented("not called by ingress"))
    }

    async fn events(&self, _: Request<EventsRequest>) -> Result<Response<Answers<EventBatch>>, Status> {
        Err(Status::unimplemented("not called by ingress"))
    }

    async fn consume(&self, _: Request<ConsumeRequest>) -> Result<Response<ConsumeResponse>, Status> {
        Err(Status::unimplemented("not called by ingress"))
    }

    async fn change_message(
        &self,
        _: Request<ChangeMessageRequest>,
    ) -> Result<Response<ChangeMessageResponse>, Status> {
        Err(Status::unimplemented("not called by ingress"))
    }

    async fn summary(&self, _: Request<SummaryRequest>) -> Result<Response<SummaryResponse>, Status> {
        Err(Status::unimplemented("not called by ingress"))
    }
}

#[tonic::async_trait]
impl DirectoryService for FakeQueue {
    type WatchStream = Answers<Update>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Answers<Update>>, Status> {
        // An empty directory means a node that has not caught up.
        let items_of = |directory: &Directory| match directory.revision() == Directory::new().revision() {
            true => Vec::new(),
            false => update_frames(&directory.everything()),
        };
        Ok(Response::new(follow(self.directory.subscribe(), items_of)))
    }

    async fn apply(&self, _: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        Err(Status::unimplemented("not called by ingress"))
    }

    async fn claim(&self, _: Request<ClaimRequest>) -> Result<Response<ClaimResponse>, Status> {
        Err(Status::unimplemented("not called by ingress"))
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        Err(Status::unimplemented("not called by ingress"))
    }

    async fn release(&self, _: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        Err(Status::unimplemented("not called by ingress"))
    }
}
