//! A fake queue node: a test writes the answers to the calls that it expects, and every other call is refused.

use std::pin::Pin;

use futures::{Stream, StreamExt as _, stream};
use postroad_net::{NodeListener, server_builder};
use postroad_proto::{
    FRAME_BYTES_MAX,
    directory::wire::{
        ApplyRequest, ApplyResponse, ClaimRequest, ClaimResponse, ReleaseRequest, ReleaseResponse,
        RenewRequest, RenewResponse, ResumeRequest, ResumeResponse, SuspendRequest, SuspendResponse, Update,
        WatchRequest,
        directory_service_server::{DirectoryService, DirectoryServiceServer},
    },
    queue::{
        ChangeDeliveriesRequest, ChangeDeliveriesResponse, ChangeMessageRequest, ChangeMessageResponse,
        ConsumeRequest, ConsumeResponse, ContentPart, ContentRequest, EventBatch, EventsRequest,
        GetMessageRequest, LanesRequest, LanesResponse, LeaderView, LeadersRequest, ListDeliveriesRequest,
        ListDeliveriesResponse, MessageView, NodeStatusRequest, NodeStatusResponse, OutboundFrame,
        ProbeSiteRequest, ProbeSiteResponse, QueueFrame, SubmitBatch, SubmitResults, SummarizeQueueRequest,
        SummarizeQueueResponse, SummaryRequest, SummaryResponse,
        queue_service_server::{QueueService, QueueServiceServer},
    },
};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

/// What a streaming call answers.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The calls that a fake queue node answers; those left out are refused as unimplemented.
#[tonic::async_trait]
#[expect(missing_docs, reason = "named as in `queue.proto` and `directory.proto`")]
pub trait QueueScript: Clone + Send + Sync + 'static {
    async fn leaders(&self) -> Result<Answers<LeaderView>, Status> {
        unscripted()
    }

    async fn submit(&self, _batches: Streaming<SubmitBatch>) -> Result<Answers<SubmitResults>, Status> {
        unscripted()
    }

    async fn work(&self, _frames: Streaming<OutboundFrame>) -> Result<Answers<QueueFrame>, Status> {
        unscripted()
    }

    async fn content(&self, _request: ContentRequest) -> Result<Answers<ContentPart>, Status> {
        unscripted()
    }

    async fn events(&self, _request: EventsRequest) -> Result<Answers<EventBatch>, Status> {
        unscripted()
    }

    async fn consume(&self, _request: ConsumeRequest) -> Result<ConsumeResponse, Status> {
        unscripted()
    }

    async fn get_message(&self, _request: GetMessageRequest) -> Result<MessageView, Status> {
        unscripted()
    }

    async fn change_message(&self, _request: ChangeMessageRequest) -> Result<ChangeMessageResponse, Status> {
        unscripted()
    }

    async fn node_status(&self) -> Result<NodeStatusResponse, Status> {
        unscripted()
    }

    async fn list_deliveries(
        &self,
        _request: ListDeliveriesRequest,
    ) -> Result<ListDeliveriesResponse, Status> {
        unscripted()
    }

    async fn change_deliveries(
        &self,
        _request: ChangeDeliveriesRequest,
    ) -> Result<ChangeDeliveriesResponse, Status> {
        unscripted()
    }

    async fn summarize_queue(
        &self,
        _request: SummarizeQueueRequest,
    ) -> Result<SummarizeQueueResponse, Status> {
        unscripted()
    }

    async fn summary(&self, _request: SummaryRequest) -> Result<SummaryResponse, Status> {
        unscripted()
    }

    async fn watch_directory(&self, _request: WatchRequest) -> Result<Answers<Update>, Status> {
        unscripted()
    }

    async fn claim(&self, _request: ClaimRequest) -> Result<ClaimResponse, Status> {
        unscripted()
    }

    async fn renew(&self, _request: RenewRequest) -> Result<RenewResponse, Status> {
        unscripted()
    }

    async fn release(&self, _request: ReleaseRequest) -> Result<ReleaseResponse, Status> {
        unscripted()
    }
}

fn unscripted<T>() -> Result<T, Status> {
    Err(Status::unimplemented("not in the test's script"))
}

/// Serves a script until the listener ends.
pub async fn serve_queue(listener: NodeListener, script: impl QueueScript) {
    let queue = QueueServiceServer::new(Scripted(script.clone())).max_decoding_message_size(FRAME_BYTES_MAX);
    let directory = DirectoryServiceServer::new(Scripted(script));
    let served = server_builder().add_service(queue).add_service(directory).serve_with_incoming(listener);
    served.await.expect("a listener in memory does not fail");
}

/// Streams `items_of` the watched value, now and after every change.
pub fn follow<T: Send + Sync + 'static, U: Send + 'static>(
    receiver: watch::Receiver<T>,
    items_of: impl Fn(&T) -> Vec<U> + Send + Sync + Clone + 'static,
) -> Answers<U> {
    let items = stream::unfold((receiver, true), move |(mut receiver, first)| {
        let items_of = items_of.clone();
        async move {
            if !first {
                receiver.changed().await.ok()?;
            }
            let items = items_of(&receiver.borrow_and_update());
            Some((stream::iter(items.into_iter().map(Ok)), (receiver, false)))
        }
    });
    Box::pin(items.flatten())
}

struct Scripted<S>(S);

#[tonic::async_trait]
impl<S: QueueScript> QueueService for Scripted<S> {
    type LeadersStream = Answers<LeaderView>;
    type SubmitStream = Answers<SubmitResults>;
    type WorkStream = Answers<QueueFrame>;
    type ContentStream = Answers<ContentPart>;
    type EventsStream = Answers<EventBatch>;

    async fn leaders(&self, _: Request<LeadersRequest>) -> Result<Response<Answers<LeaderView>>, Status> {
        self.0.leaders().await.map(Response::new)
    }

    async fn submit(
        &self,
        request: Request<Streaming<SubmitBatch>>,
    ) -> Result<Response<Answers<SubmitResults>>, Status> {
        self.0.submit(request.into_inner()).await.map(Response::new)
    }

    async fn work(
        &self,
        request: Request<Streaming<OutboundFrame>>,
    ) -> Result<Response<Answers<QueueFrame>>, Status> {
        self.0.work(request.into_inner()).await.map(Response::new)
    }

    async fn content(
        &self,
        request: Request<ContentRequest>,
    ) -> Result<Response<Answers<ContentPart>>, Status> {
        self.0.content(request.into_inner()).await.map(Response::new)
    }

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Answers<EventBatch>>, Status> {
        self.0.events(request.into_inner()).await.map(Response::new)
    }

    async fn consume(&self, request: Request<ConsumeRequest>) -> Result<Response<ConsumeResponse>, Status> {
        self.0.consume(request.into_inner()).await.map(Response::new)
    }

    async fn get_message(
        &self,
        request: Request<GetMessageRequest>,
    ) -> Result<Response<MessageView>, Status> {
        self.0.get_message(request.into_inner()).await.map(Response::new)
    }

    async fn change_message(
        &self,
        request: Request<ChangeMessageRequest>,
    ) -> Result<Response<ChangeMessageResponse>, Status> {
        self.0.change_message(request.into_inner()).await.map(Response::new)
    }

    async fn lanes(&self, _: Request<LanesRequest>) -> Result<Response<LanesResponse>, Status> {
        unscripted()
    }

    async fn probe_site(&self, _: Request<ProbeSiteRequest>) -> Result<Response<ProbeSiteResponse>, Status> {
        unscripted()
    }

    async fn node_status(
        &self,
        _: Request<NodeStatusRequest>,
    ) -> Result<Response<NodeStatusResponse>, Status> {
        self.0.node_status().await.map(Response::new)
    }

    async fn list_deliveries(
        &self,
        request: Request<ListDeliveriesRequest>,
    ) -> Result<Response<ListDeliveriesResponse>, Status> {
        self.0.list_deliveries(request.into_inner()).await.map(Response::new)
    }

    async fn change_deliveries(
        &self,
        request: Request<ChangeDeliveriesRequest>,
    ) -> Result<Response<ChangeDeliveriesResponse>, Status> {
        self.0.change_deliveries(request.into_inner()).await.map(Response::new)
    }

    async fn summarize_queue(
        &self,
        request: Request<SummarizeQueueRequest>,
    ) -> Result<Response<SummarizeQueueResponse>, Status> {
        self.0.summarize_queue(request.into_inner()).await.map(Response::new)
    }

    async fn summary(&self, request: Request<SummaryRequest>) -> Result<Response<SummaryResponse>, Status> {
        self.0.summary(request.into_inner()).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl<S: QueueScript> DirectoryService for Scripted<S> {
    type WatchStream = Answers<Update>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Answers<Update>>, Status> {
        self.0.watch_directory(request.into_inner()).await.map(Response::new)
    }

    async fn apply(&self, _: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        unscripted()
    }

    async fn suspend(&self, _: Request<SuspendRequest>) -> Result<Response<SuspendResponse>, Status> {
        unscripted()
    }

    async fn resume(&self, _: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        unscripted()
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimResponse>, Status> {
        self.0.claim(request.into_inner()).await.map(Response::new)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        self.0.renew(request.into_inner()).await.map(Response::new)
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        self.0.release(request.into_inner()).await.map(Response::new)
    }
}
