//! The queue's gRPC service for the other roles.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use postroad_core::{GroupId, MessageId};
use postroad_net::{PeerIdentity, Role, peer_info};
use postroad_proto::{
    FRAME_BYTES_MAX, parse_message_id,
    queue::{self as wire, queue_service_server},
};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    actor::actor,
    config::QueueConfig,
    leaders::Leaders,
    ledger::LedgerGroup,
    metrics::{ReportMetrics, SubmitMetrics},
};

mod content;
mod deliveries;
mod events;
mod lanes;
mod message;
mod names;
mod probe;
mod status;
mod submit;
mod summary;
mod work;

pub(crate) use status::NodeState;
use summary::Summaries;

/// A stream of responses.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service of one node; clones share everything.
#[derive(Clone)]
pub(crate) struct QueueService {
    pub(crate) ledgers: Arc<BTreeMap<GroupId, LedgerGroup>>,
    leaders: Leaders,
    message_age_max: std::time::Duration,
    node: NodeState,
    /// Cancelled at shutdown: long streams end.
    stopping: CancellationToken,
    summaries: Summaries,
    submissions: SubmitMetrics,
    reports: ReportMetrics,
}

pub(crate) type QueueServer = queue_service_server::QueueServiceServer<QueueService>;

impl QueueService {
    pub(crate) fn new(
        config: &QueueConfig,
        ledgers: Arc<BTreeMap<GroupId, LedgerGroup>>,
        leaders: Leaders,
        node: NodeState,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            leaders,
            message_age_max: config.message_age_max,
            node,
            stopping,
            summaries: Summaries::new(config.summary_rows_max, &ledgers),
            ledgers,
            submissions: SubmitMetrics::new(),
            reports: ReportMetrics::new(),
        }
    }

    pub(crate) fn into_server(self) -> QueueServer {
        QueueServer::new(self)
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX)
    }

    fn ledger(&self, group: GroupId) -> Result<&LedgerGroup, Status> {
        self.ledgers
            .get(&group)
            .ok_or_else(|| Status::not_found(format!("ledger group `{group}` does not exist")))
    }

    fn group_by_number(&self, group: u32) -> Result<&LedgerGroup, Status> {
        self.ledger(GroupId(u16::try_from(group).map_err(|_| Status::not_found("no such group"))?))
    }

    fn group_of_message(&self, id: &[u8]) -> Result<(MessageId, &LedgerGroup), Status> {
        let id = parse_message_id(id).map_err(invalid)?;
        Ok((id, self.ledger(id.group())?))
    }

    /// Makes a response of a stream that ends at shutdown.
    fn until_stopped<T: 'static>(
        &self,
        answers: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> Response<Answers<T>> {
        Response::new(Box::pin(answers.take_until(self.stopping.clone().cancelled_owned())))
    }
}

fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

fn allow<T>(request: &Request<T>, roles: &[Role]) -> Result<(), Status> {
    peer_info(request).map_or(Ok(()), |peer| peer.require(roles))
}

/// Returns what the caller's certificate proves.
fn proven<T>(request: &Request<T>) -> Option<PeerIdentity> {
    peer_info(request).and_then(|peer| peer.identity)
}

const OPERATORS: &[Role] = &[Role::Control, Role::Operator];

const READERS: &[Role] = &[Role::Ingress, Role::Control, Role::Operator];

#[tonic::async_trait]
impl queue_service_server::QueueService for QueueService {
    type LeadersStream = Answers<wire::LeaderView>;
    type SubmitStream = Answers<wire::SubmitResults>;
    type WorkStream = Answers<wire::QueueFrame>;
    type ContentStream = Answers<wire::ContentPart>;
    type EventsStream = Answers<wire::EventBatch>;

    async fn leaders(
        &self,
        _: Request<wire::LeadersRequest>,
    ) -> Result<Response<Self::LeadersStream>, Status> {
        Ok(self.until_stopped(WatchStream::new(self.leaders.subscribe()).map(Ok)))
    }

    async fn submit(
        &self,
        request: Request<Streaming<wire::SubmitBatch>>,
    ) -> Result<Response<Self::SubmitStream>, Status> {
        allow(&request, &[Role::Ingress])?;
        Ok(self.until_stopped(submit::answer(self.clone(), request.into_inner())))
    }

    async fn work(
        &self,
        request: Request<Streaming<wire::OutboundFrame>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        allow(&request, &[Role::Outbound])?;
        let proven = peer_info(&request).and_then(|peer| peer.identity).map(|identity| identity.node);
        let session = work::Session::open(self, proven, request.into_inner()).await?;
        Ok(self.until_stopped(session.into_stream()))
    }

    async fn content(
        &self,
        request: Request<wire::ContentRequest>,
    ) -> Result<Response<Self::ContentStream>, Status> {
        allow(&request, &[Role::Outbound, Role::Operator])?;
        let (id, ledger) = self.group_of_message(&request.get_ref().message_id)?;
        Ok(self.until_stopped(content::parts(ledger, id)?))
    }

    async fn events(
        &self,
        request: Request<wire::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        allow(&request, &[Role::Control])?;
        let ledger = self.group_by_number(request.get_ref().group)?.clone();
        Ok(self.until_stopped(events::follow(ledger, request.get_ref()).await?))
    }

    async fn consume(
        &self,
        request: Request<wire::ConsumeRequest>,
    ) -> Result<Response<wire::ConsumeResponse>, Status> {
        allow(&request, &[Role::Control])?;
        let request = request.into_inner();
        events::consume(self.group_by_number(request.group)?, request).await
    }

    async fn get_message(
        &self,
        request: Request<wire::GetMessageRequest>,
    ) -> Result<Response<wire::MessageView>, Status> {
        allow(&request, READERS)?;
        let request = request.into_inner();
        let (id, ledger) = self.group_of_message(&request.message_id)?;
        let message = message::read(ledger, id, request.tenant).await?;
        let mut shown = names::message(&ledger.views.borrow(), &message);
        message::explain_waits(ledger, &message, &mut shown);
        Ok(Response::new(shown))
    }

    async fn change_message(
        &self,
        request: Request<wire::ChangeMessageRequest>,
    ) -> Result<Response<wire::ChangeMessageResponse>, Status> {
        allow(&request, READERS)?;
        let actor = actor(proven(&request), &request.get_ref().actor);
        let request = request.into_inner();
        let (id, ledger) = self.group_of_message(&request.message_id)?;
        message::change(ledger, id, request.tenant, request.change(), actor).await
    }

    async fn list_deliveries(
        &self,
        request: Request<wire::ListDeliveriesRequest>,
    ) -> Result<Response<wire::ListDeliveriesResponse>, Status> {
        allow(&request, OPERATORS)?;
        let request = request.into_inner();
        deliveries::list(self.group_by_number(request.group)?, request).await
    }

    async fn change_deliveries(
        &self,
        request: Request<wire::ChangeDeliveriesRequest>,
    ) -> Result<Response<wire::ChangeDeliveriesResponse>, Status> {
        allow(&request, OPERATORS)?;
        let actor = actor(proven(&request), &request.get_ref().actor);
        let request = request.into_inner();
        deliveries::change(self.group_by_number(request.group)?, request, &actor).await
    }

    async fn summarize_queue(
        &self,
        request: Request<wire::SummarizeQueueRequest>,
    ) -> Result<Response<wire::SummarizeQueueResponse>, Status> {
        allow(&request, OPERATORS)?;
        let request = request.into_inner();
        let ledger = self.group_by_number(request.group)?;
        let by = request.by().known().map_err(invalid)?;
        self.summaries.read(ledger, by, request.rows_max as usize).await.map(Response::new)
    }

    async fn node_status(
        &self,
        request: Request<wire::NodeStatusRequest>,
    ) -> Result<Response<wire::NodeStatusResponse>, Status> {
        allow(&request, OPERATORS)?;
        Ok(Response::new(self.node.read(&self.ledgers)))
    }

    async fn summary(
        &self,
        request: Request<wire::SummaryRequest>,
    ) -> Result<Response<wire::SummaryResponse>, Status> {
        allow(&request, READERS)?;
        Ok(Response::new(message::summary(self.group_by_number(request.get_ref().group)?)))
    }

    async fn lanes(
        &self,
        request: Request<wire::LanesRequest>,
    ) -> Result<Response<wire::LanesResponse>, Status> {
        allow(&request, OPERATORS)?;
        let request = request.into_inner();
        lanes::list(self.group_by_number(request.group)?, &request).map(Response::new)
    }

    async fn probe_site(
        &self,
        request: Request<wire::ProbeSiteRequest>,
    ) -> Result<Response<wire::ProbeSiteResponse>, Status> {
        allow(&request, OPERATORS)?;
        let request = request.into_inner();
        probe::probe(self.group_by_number(request.group)?, &request).await.map(Response::new)
    }
}
