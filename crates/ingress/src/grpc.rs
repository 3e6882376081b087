//! Submission over gRPC: implements `postroad/submission/v1/submission.proto`.

use std::{net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt, future, stream};
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
use postroad_smtp::{
    headers::{self, Protocol},
    tolerance::{Syntax, Tolerance, Tolerances},
};
use postroad_telemetry::{
    mail_log::{self, Mailbox},
    trace,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap};

mod server;
mod status;
mod view;

pub(crate) use server::{report, serve};

use crate::{
    auth::{Authenticator, Identity, Verdict},
    content,
    error::{GrpcError, Refusal, SizeLimit},
    records::{self, Client, Refused},
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
    /// Streams are not read any further.
    pub(crate) stopping: CancellationToken,
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
    Field {
        field: String,
        problem: String,
    },
}

impl RequestError {
    fn field(field: impl Into<String>, problem: impl ToString) -> Self {
        Self::Field { field: field.into(), problem: problem.to_string() }
    }
}

impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> Self {
        Self::Policy(refusal)
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
        let (broken, ending) = oneshot::channel();
        let start = (request.into_inner(), self.stopping.clone(), broken);
        let items = stream::unfold(start, |(mut items, stopping, broken)| async move {
            match next_item(&mut items, &stopping).await {
                Ok(item) => Some((item?, (items, stopping, broken))),
                Err(status) => {
                    let _ = broken.send(status);
                    None
                }
            }
        });
        let answers = items
            .map(move |item| {
                let (service, caller) = (service.clone(), Arc::clone(&caller));
                async move { Ok(service.accept_item(&caller, item).await) }
            })
            .buffer_unordered(self.handler.config.stream_items_max);
        // An item that cannot be read, and a stop of this node, end the stream with an error, after the answers to all items
        // before it.
        let too_large = self.too_large();
        let ending = stream::once(ending).filter_map(move |broken| {
            // tonic's code for an item over the limit.
            let is_too_large = |status: &Status| status.code() == Code::OutOfRange;
            let status =
                broken.ok().map(|status| if is_too_large(&status) { too_large.clone() } else { status });
            future::ready(status.map(Err))
        });
        Ok(Response::new(Box::pin(answers.chain(ending))))
    }

    async fn get_message(&self, request: Request<GetMessageRequest>) -> Result<Response<Message>, Status> {
        let caller = self.caller(&request)?;
        let tenant = self.handler.tenant(&caller.identity).map_err(|refusal| refusal.status())?;
        let text = request.into_inner().message_id;
        let id: MessageId = text.parse().map_err(|error| RequestError::field("message_id", error))?;
        // An id with an unknown group does not come from this cluster.
        if !(1..=self.ledger_groups).contains(&id.group().0) {
            return Err(GrpcError::NoMessage.into());
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
            Err(CallError::Refused { code: Code::NotFound, .. }) => Err(GrpcError::NoMessage.into()),
            Err(error @ CallError::Refused { .. }) => Err(Status::internal(error.to_string())),
            Err(CallError::Unavailable { .. }) => Err(GrpcError::NoAnswer.into()),
        }
    }
}

/// Reads the next request of a stream, until this node stops: what has been read is answered, and what has not can be sent
/// to another node.
async fn next_item(
    items: &mut Streaming<SubmitStreamRequest>,
    stopping: &CancellationToken,
) -> Result<Option<SubmitStreamRequest>, Status> {
    let next = stopping.run_until_cancelled(items.message()).await;
    next.unwrap_or_else(|| Err(GrpcError::Stopping.into()))
}

impl GrpcService {
    /// The status of a request over the size limit.
    fn too_large(&self) -> Status {
        Refusal::TooLarge(SizeLimit(self.handler.config.message_size_max.bytes())).status()
    }

    /// Authenticates the caller by its API key: `authorization: Bearer KEY`.
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let client = peer_info(request).and_then(|peer| client_ip(&peer.address));
        let header = |name| metadata(request.metadata(), name);
        let key = header("authorization")
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| key.trim());
        let Some(key) = key else {
            let refused = Refused {
                stage: "submit",
                client: client_at(client),
                tenant: None,
                from: Mailbox::None,
                to: Mailbox::None,
                traceparent: "",
            };
            records::rejected(&self.handler.metrics, &refused, &Refusal::NoIdentity);
            return Err(GrpcError::NoKey.into());
        };
        // A client without an IP address is in no network.
        let address = client.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let identity = match self.authenticator.api_key(key, address) {
            Verdict::Valid(identity) => identity,
            Verdict::Invalid => {
                records::login_failed(&client_at(client), Mailbox::None, "wrong");
                return Err(GrpcError::InvalidKey.into());
            }
            Verdict::Unavailable => {
                records::login_failed(&client_at(client), Mailbox::None, "unavailable");
                return Err(Refusal::NoDirectory.status());
            }
        };
        let traceparent =
            header("traceparent").filter(|text| trace::is_traceparent(text)).unwrap_or_default();
        Ok(Caller { identity, client, traceparent: traceparent.to_owned() })
    }

    async fn accept_item(&self, caller: &Caller, item: SubmitStreamRequest) -> SubmitStreamResponse {
        let accepted = match item.request {
            Some(request) => self.accept(caller, request).await,
            None => Err(RequestError::field("request", "missing")),
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
        let envelope = request.envelope.as_ref().filter(|_| mail_log::is_enabled());
        let sender = envelope.map(|envelope| envelope.sender.clone());
        match self.read(caller, request) {
            Ok((incoming, tolerated)) => {
                let id = self.handler.accept(incoming).await?;
                self.handler.metrics.note_tolerated(&tolerated);
                Ok(id)
            }
            Err(error) => {
                self.record_refused(caller, sender.as_deref(), &error);
                Err(error)
            }
        }
    }

    fn record_refused(&self, caller: &Caller, sender: Option<&str>, error: &RequestError) {
        let tenant = caller.identity.tenant(&self.handler.view());
        let refused = Refused {
            stage: "submit",
            client: client_at(caller.client),
            tenant: tenant.as_deref(),
            from: match sender {
                None => Mailbox::None,
                Some("") => Mailbox::Null,
                Some(sender) => Mailbox::Of(sender),
            },
            to: Mailbox::None,
            traceparent: &caller.traceparent,
        };
        let metrics = &self.handler.metrics;
        match error {
            RequestError::Policy(refusal) => records::rejected(metrics, &refused, refusal),
            RequestError::Field { field, problem } => {
                let status = || format!("InvalidArgument {field}: {problem}");
                records::rejected_for(metrics, &refused, "invalid", status);
            }
        }
    }

    /// Parses and checks a request, like an SMTP session does command by command. Returns with it the deviations that
    /// are tolerated if the message is accepted.
    fn read<'a>(
        &self,
        caller: &'a Caller,
        request: SubmitRequest,
    ) -> Result<(Incoming<'a>, Vec<Tolerance>), RequestError> {
        let tenant = self.handler.tenant(&caller.identity)?;
        let envelope = request.envelope.ok_or_else(|| RequestError::field("envelope", "missing"))?;
        let sender = match envelope.sender.as_str() {
            "" => None,
            text => Some(address("envelope.sender", text)?),
        };
        self.handler.check_sender(&tenant, sender.as_ref(), request.content.len() as u64)?;
        let limit = self.handler.config.recipients_max;
        if envelope.recipients.is_empty() || envelope.recipients.len() > limit {
            return Err(RequestError::field("envelope.recipients", format!("expected 1 to {limit}")));
        }
        let recipients: Recipients = envelope
            .recipients
            .iter()
            .enumerate()
            .map(|(index, text)| recipient(index, text))
            .collect::<Result<_, RequestError>>()?;
        let (content, tolerant, tolerated) = self.tolerated(content::normalise(request.content)?);
        let incoming = Incoming {
            identity: &caller.identity,
            sender,
            recipients,
            content,
            tolerant,
            smtputf8: true,
            client: caller.client,
            helo: "",
            with: Protocol::Grpc,
            tls: "",
            traceparent: &caller.traceparent,
        };
        Ok((incoming, tolerated))
    }

    /// Repairs content as for an SMTP client that logged in, since an API key identifies its client as well as AUTH
    /// does. Returns true with it when its header has fields with a space in their names, and what was tolerated.
    fn tolerated(&self, content: Bytes) -> (Bytes, bool, Vec<Tolerance>) {
        let strict = self.handler.config.grpc_strict_syntax;
        let mut tolerances = Tolerances::new(if strict { Syntax::Strict } else { Syntax::LoggedIn });
        let content = headers::without_mbox_line(content, &mut tolerances);
        let has_spaced_names = headers::summarise_tolerated(&content, &mut tolerances).spaced_names > 0;
        (content, has_spaced_names, tolerances.into_accepted())
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
    Address::parse(text).map_err(|error| RequestError::field(field, error))
}

fn metadata<'a>(metadata: &'a MetadataMap, name: &str) -> Option<&'a str> {
    metadata.get(name)?.to_str().ok()
}

fn client_at(address: Option<IpAddr>) -> Client<'static> {
    Client { address, protocol: Protocol::Grpc, helo: "" }
}

/// Returns the IP address of `address:port`.
fn client_ip(address: &str) -> Option<IpAddr> {
    let address: std::net::SocketAddr = address.parse().ok()?;
    Some(address.ip().to_canonical())
}
