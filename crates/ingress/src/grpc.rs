//! Submission over gRPC: implements `postroad/submission/v1/submission.proto`.

use std::{net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use postroad_cluster::{CallError, FRAME_BYTES_MAX, LeaderCalls};
use postroad_core::{Address, Host, MessageId, Recipients};
use postroad_net::peer_info;
use postroad_proto::{
    queue::{self, queue_service_client::QueueServiceClient},
    submission::{
        GetMessageRequest, Message, Rejection, SubmitRequest, SubmitResponse, SubmitStreamRequest,
        SubmitStreamResponse, submission_service_server::SubmissionService,
        submit_stream_response::Result as StreamResult,
    },
};
use postroad_smtp::headers::Protocol;
use postroad_telemetry::trace;
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap};

mod server;
mod view;

pub(crate) use server::{report, serve};

use crate::{
    auth::{Authenticator, Identity, Verdict},
    content,
    error::Refusal,
    submission::{Incoming, SubmissionHandler},
};

/// How long the queue may take to answer a status query.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The submission service; cheap to clone.
#[derive(Clone)]
pub(crate) struct GrpcService {
    pub(crate) handler: Arc<SubmissionHandler>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) calls: LeaderCalls,
    pub(crate) ledger_groups: u16,
}

/// The caller and its trace.
#[derive(Clone)]
struct Caller {
    identity: Identity,
    client: Option<IpAddr>,
    traceparent: String,
}

/// Why a request is refused.
enum RequestError {
    Policy(Refusal),
    /// A field is missing or malformed.
    Field(String),
}

impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> Self {
        Self::Policy(refusal)
    }
}

impl From<RequestError> for Status {
    fn from(refused: RequestError) -> Self {
        match refused {
            RequestError::Policy(refusal) => refusal.status(),
            RequestError::Field(message) => Self::invalid_argument(message),
        }
    }
}

#[tonic::async_trait]
impl SubmissionService for GrpcService {
    type SubmitStreamStream = Pin<Box<dyn Stream<Item = Result<SubmitStreamResponse, Status>> + Send>>;

    async fn submit(&self, request: Request<SubmitRequest>) -> Result<Response<SubmitResponse>, Status> {
        let caller = self.caller(&request)?;
        let id = self.accept(&caller, request.into_inner()).await?;
        Ok(Response::new(SubmitResponse { message_id: id.to_string() }))
    }

    async fn submit_stream(
        &self,
        request: Request<Streaming<SubmitStreamRequest>>,
    ) -> Result<Response<Self::SubmitStreamStream>, Status> {
        let caller = Arc::new(self.caller(&request)?);
        let service = self.clone();
        // A broken connection ends the stream; nobody is left to answer.
        let items = stream::unfold(request.into_inner(), |mut items| async move {
            let item = items.message().await.ok().flatten()?;
            Some((item, items))
        });
        let answers = items
            .map(move |item| {
                let (service, caller) = (service.clone(), Arc::clone(&caller));
                async move { Ok(service.accept_item(&caller, item).await) }
            })
            .buffer_unordered(self.handler.config.stream_items_max);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_message(&self, request: Request<GetMessageRequest>) -> Result<Response<Message>, Status> {
        let caller = self.caller(&request)?;
        let tenant = self.handler.tenant(&caller.identity).map_err(|refusal| refusal.status())?;
        let text = request.into_inner().message_id;
        let id: MessageId =
            text.parse().map_err(|error| Status::invalid_argument(format!("message_id: {error}")))?;
        // An id with an unknown group does not come from this cluster.
        if !(1..=self.ledger_groups).contains(&id.group().0) {
            return Err(Status::not_found("no such message"));
        }
        let question = queue::GetMessageRequest {
            message_id: Bytes::copy_from_slice(&id.as_u128().to_be_bytes()),
            tenant: tenant.id.0,
        };
        let ask = move |channel| {
            let mut client = QueueServiceClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX);
            let question = question.clone();
            async move { client.get_message(question).await }
        };
        match self.calls.call(id.group(), LOOKUP_TIMEOUT, ask).await {
            Ok(answer) => Ok(Response::new(view::message(id, answer.into_inner()))),
            Err(CallError::Refused { code: Code::NotFound, .. }) => Err(Status::not_found("no such message")),
            Err(error @ CallError::Refused { .. }) => Err(Status::internal(error.to_string())),
            Err(CallError::Unavailable { .. }) => {
                Err(Status::unavailable("the queue does not answer, try again later"))
            }
        }
    }
}

impl GrpcService {
    /// Authenticates the caller by its API key: `authorization: Bearer KEY`.
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let client = peer_info(request).and_then(|peer| client_ip(&peer.address));
        let header = |name| metadata(request.metadata(), name);
        let key = header("authorization")
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| key.trim());
        let Some(key) = key else { return Err(Status::unauthenticated("an API key is required")) };
        // A client without an IP address is in no network.
        let address = client.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let identity = match self.authenticator.api_key(key, address) {
            Verdict::Valid(identity) => identity,
            Verdict::Invalid => return Err(Status::unauthenticated("invalid API key")),
            Verdict::Unavailable => return Err(Refusal::NoDirectory.status()),
        };
        let traceparent =
            header("traceparent").filter(|text| trace::is_traceparent(text)).unwrap_or_default();
        Ok(Caller { identity, client, traceparent: traceparent.to_owned() })
    }

    async fn accept_item(&self, caller: &Caller, item: SubmitStreamRequest) -> SubmitStreamResponse {
        let accepted = match item.request {
            Some(request) => self.accept(caller, request).await,
            None => Err(RequestError::Field("request: missing".to_owned())),
        };
        let result = match accepted {
            Ok(id) => StreamResult::Accepted(SubmitResponse { message_id: id.to_string() }),
            Err(refused) => {
                let status = Status::from(refused);
                StreamResult::Rejected(Rejection {
                    code: status.code().into(),
                    message: status.message().to_owned(),
                })
            }
        };
        SubmitStreamResponse { sequence: item.sequence, result: Some(result) }
    }

    async fn accept(&self, caller: &Caller, request: SubmitRequest) -> Result<MessageId, RequestError> {
        match self.read(caller, request) {
            Ok(incoming) => Ok(self.handler.accept(incoming).await?),
            Err(refused) => {
                if let RequestError::Policy(refusal) = &refused {
                    self.handler.metrics.note_refused(refusal);
                }
                Err(refused)
            }
        }
    }

    /// Parses and checks a request, like an SMTP session does command by command.
    fn read<'a>(&self, caller: &'a Caller, request: SubmitRequest) -> Result<Incoming<'a>, RequestError> {
        let tenant = self.handler.tenant(&caller.identity)?;
        let envelope = request.envelope.ok_or_else(|| RequestError::Field("envelope: missing".to_owned()))?;
        let sender = match envelope.sender.as_str() {
            "" => None,
            text => Some(address("envelope.sender", text)?),
        };
        self.handler.check_sender(&tenant, sender.as_ref(), request.content.len() as u64)?;
        let limit = self.handler.config.recipients_max;
        if envelope.recipients.is_empty() || envelope.recipients.len() > limit {
            return Err(RequestError::Field(format!("envelope.recipients: expected 1 to {limit}")));
        }
        let recipients: Recipients = envelope
            .recipients
            .iter()
            .enumerate()
            .map(|(index, text)| recipient(index, text))
            .collect::<Result<_, RequestError>>()?;
        Ok(Incoming {
            identity: &caller.identity,
            sender,
            recipients,
            content: content::normalise(request.content)?,
            tolerant: false,
            smtputf8: true,
            client: caller.client,
            helo: "",
            with: Protocol::Grpc,
            tls: "",
            traceparent: &caller.traceparent,
        })
    }
}

fn recipient(index: usize, text: &str) -> Result<Address, RequestError> {
    let address = address(&format!("envelope.recipients[{index}]"), text)?;
    match address.host() {
        Host::Domain(_) => Ok(address),
        Host::Literal(_) => Err(Refusal::RecipientLiteral.into()),
    }
}

fn address(field: &str, text: &str) -> Result<Address, RequestError> {
    Address::parse(text).map_err(|error| RequestError::Field(format!("{field}: {error}")))
}

fn metadata<'a>(metadata: &'a MetadataMap, name: &str) -> Option<&'a str> {
    metadata.get(name)?.to_str().ok()
}

/// Returns the IP address of `address:port`.
fn client_ip(address: &str) -> Option<IpAddr> {
    let address: std::net::SocketAddr = address.parse().ok()?;
    Some(address.ip().to_canonical())
}
