//! Submission over gRPC, as `postroad/submission/v1/submission.proto` promises it.

use std::{net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use postroad_cluster::{CallError, FRAME_BYTES_MAX, LeaderCalls};
use postroad_core::{Address, Host, MessageId};
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
    submission::{Incoming, Intake},
    metrics::Way,
};

/// How long the queue may take to say where a message stands.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The service; a cheap handle.
#[derive(Clone)]
pub(crate) struct Submissions {
    pub(crate) intake: Arc<Intake>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) calls: LeaderCalls,
    pub(crate) ledger_groups: u16,
}

/// Who calls, and in which trace.
#[derive(Clone)]
struct Caller {
    identity: Identity,
    client: Option<IpAddr>,
    traceparent: String,
}

/// What an address or content that the client sent is refused for.
enum Refused {
    Policy(Refusal),
    /// A field that is not what it must be.
    Field(String),
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Policy(refusal)
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Policy(refusal) => refusal.status(),
            Refused::Field(message) => Self::invalid_argument(message),
        }
    }
}

#[tonic::async_trait]
impl SubmissionService for Submissions {
    type SubmitStreamStream = Pin<Box<dyn Stream<Item = Result<SubmitStreamResponse, Status>> + Send>>;

    async fn submit(&self, request: Request<SubmitRequest>) -> Result<Response<SubmitResponse>, Status> {
        let caller = self.caller(&request)?;
        let id = self.take(&caller, request.into_inner()).await?;
        Ok(Response::new(SubmitResponse { message_id: id.to_string() }))
    }

    async fn submit_stream(
        &self,
        request: Request<Streaming<SubmitStreamRequest>>,
    ) -> Result<Response<Self::SubmitStreamStream>, Status> {
        let caller = Arc::new(self.caller(&request)?);
        let service = self.clone();
        // The client's half ends with an error when the connection breaks; there is nobody to be answered then.
        let items = stream::unfold(request.into_inner(), |mut items| async move {
            let item = items.message().await.ok().flatten()?;
            Some((item, items))
        });
        let answers = items
            .map(move |item| {
                let (service, caller) = (service.clone(), Arc::clone(&caller));
                async move { Ok(service.take_item(&caller, item).await) }
            })
            .buffer_unordered(self.intake.config.stream_items_max);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_message(&self, request: Request<GetMessageRequest>) -> Result<Response<Message>, Status> {
        let caller = self.caller(&request)?;
        let tenant = self.intake.tenant(&caller.identity).map_err(|refusal| refusal.status())?;
        let text = request.into_inner().message_id;
        let id: MessageId =
            text.parse().map_err(|error| Status::invalid_argument(format!("message_id: {error}")))?;
        // An id of a group that does not exist was not given by this cluster.
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
            Err(CallError::Unavailable { .. }) => Err(Status::unavailable("the queue does not answer")),
        }
    }
}

impl Submissions {
    /// Checks the key that the client sent: `authorization: Bearer KEY`.
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let client = peer_info(request).and_then(|peer| client_ip(&peer.address));
        let header = |name| metadata(request.metadata(), name);
        let key = header("authorization")
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| key.trim());
        let Some(key) = key else { return Err(Status::unauthenticated("an API key is required")) };
        // A client without an address of its own is in no network.
        let place = client.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let identity = match self.authenticator.api_key(key, place) {
            Verdict::Good(identity) => identity,
            Verdict::Wrong => return Err(Status::unauthenticated("the API key is not valid")),
            Verdict::Untold => return Err(Refusal::NoDirectory.status()),
        };
        let traceparent =
            header("traceparent").filter(|text| trace::is_traceparent(text)).unwrap_or_default();
        Ok(Caller { identity, client, traceparent: traceparent.to_owned() })
    }

    async fn take_item(&self, caller: &Caller, item: SubmitStreamRequest) -> SubmitStreamResponse {
        let taken = match item.request {
            Some(request) => self.take(caller, request).await,
            None => Err(Refused::Field("request: is missing".to_owned())),
        };
        let result = match taken {
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

    async fn take(&self, caller: &Caller, request: SubmitRequest) -> Result<MessageId, Refused> {
        match self.read(caller, request) {
            Ok(incoming) => Ok(self.intake.take(Way::Grpc, incoming).await?),
            Err(refused) => {
                if let Refused::Policy(refusal) = &refused {
                    self.intake.metrics.note_refused(refusal);
                }
                Err(refused)
            }
        }
    }

    /// Reads and checks what SMTP's session checks command by command.
    fn read<'a>(&self, caller: &'a Caller, request: SubmitRequest) -> Result<Incoming<'a>, Refused> {
        let tenant = self.intake.tenant(&caller.identity)?;
        let envelope = request.envelope.ok_or_else(|| Refused::Field("envelope: is missing".to_owned()))?;
        let sender = match envelope.sender.as_str() {
            "" => None,
            text => Some(address("envelope.sender", text)?),
        };
        self.intake.check_sender(&tenant, sender.as_ref(), request.content.len() as u64)?;
        let limit = self.intake.config.recipients_max;
        if envelope.recipients.is_empty() || envelope.recipients.len() > limit {
            return Err(Refused::Field(format!("envelope.recipients: expected 1 to {limit}")));
        }
        let recipients: Vec<Address> = envelope
            .recipients
            .iter()
            .enumerate()
            .map(|(place, text)| recipient(place, text))
            .collect::<Result<_, Refused>>()?;
        Ok(Incoming {
            identity: &caller.identity,
            sender,
            recipients,
            content: content::normalise(request.content)?,
            smtputf8: true,
            client: caller.client,
            helo: "",
            with: Protocol::Grpc,
            tls: "",
            traceparent: &caller.traceparent,
        })
    }
}

fn recipient(place: usize, text: &str) -> Result<Address, Refused> {
    let address = address(&format!("envelope.recipients[{place}]"), text)?;
    match address.host() {
        Host::Domain(_) => Ok(address),
        Host::Literal(_) => Err(Refusal::RecipientLiteral.into()),
    }
}

fn address(field: &str, text: &str) -> Result<Address, Refused> {
    Address::parse(text).map_err(|error| Refused::Field(format!("{field}: {error}")))
}

fn metadata<'a>(metadata: &'a MetadataMap, name: &str) -> Option<&'a str> {
    metadata.get(name)?.to_str().ok()
}

/// The address without its port.
fn client_ip(address: &str) -> Option<IpAddr> {
    let address: std::net::SocketAddr = address.parse().ok()?;
    Some(address.ip().to_canonical())
}
