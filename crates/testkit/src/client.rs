//! A client for tests: submits a message and returns whether it was acknowledged, refused, or not answered.

use std::{future::pending, net::SocketAddr, time::Duration};

use bytes::Bytes;
use postroad_core::{Address, Domain, MessageId};
use postroad_net::{ClientTls, smtp::client::Connection};
use postroad_proto::submission::{
    Envelope, SubmitRequest, SubmitResponse, submission_service_client::SubmissionServiceClient,
};
use postroad_smtp::client::{ClientConfig, Phase, RecipientResult, Timeouts, TlsUse, Transaction};
use tokio::net::TcpStream;
use tonic::{Code, Request, Response, Status, metadata::AsciiMetadataValue, transport::Channel};

use crate::checker::Acknowledged;

/// The result of a submission, as the client knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// The server acknowledged the message.
    Acknowledged(Acknowledged),
    /// The server refused over SMTP, with this reply code.
    Refused(u16),
    /// The server refused over gRPC, with this code.
    Rejected(Code),
    /// No answer: the server may have accepted the message or not.
    Unknown,
}

/// Submits one message over its own SMTP connection, without TLS.
///
/// Addresses must be valid: tests are written by us.
pub async fn submit(server: SocketAddr, sender: &str, recipients: &[&str], content: &str) -> Submitted {
    let timeouts = Timeouts { greeting: PATIENCE, hello: PATIENCE, message: PATIENCE, ..Timeouts::default() };
    let helo = Domain::parse("client.test").expect("the name is valid");
    let config = ClientConfig { helo, tls: TlsUse::Never, timeouts };
    let Ok(stream) = TcpStream::connect(server).await else { return Submitted::Unknown };
    let Ok(mut connection) =
        Connection::open(stream, config, &ClientTls::opportunistic(), "client.test").await
    else {
        return Submitted::Unknown;
    };
    let address = |text: &&str| Address::parse(text).expect("a test names valid addresses");
    let transaction = Transaction {
        sender: (!sender.is_empty()).then(|| address(&sender)),
        recipients: recipients.iter().map(address).collect(),
        content: vec![Bytes::copy_from_slice(content.as_bytes())],
        smtputf8: false,
        eight_bit: !content.is_ascii(),
    };
    let delivery = connection.deliver(transaction, pending()).await;
    connection.quit().await;
    smtp_result(recipients, &delivery.results)
}

/// Submits one message over its own gRPC connection, without TLS.
pub async fn submit_grpc(
    server: SocketAddr,
    api_key: &str,
    sender: &str,
    recipients: &[&str],
    content: &str,
) -> Submitted {
    match GrpcClient::connect(server, api_key).await {
        Some(mut client) => client.submit(sender, recipients, content).await,
        None => Submitted::Unknown,
    }
}

/// A gRPC connection for many messages, without TLS.
#[derive(Clone, Debug)]
pub struct GrpcClient {
    client: SubmissionServiceClient<Channel>,
    authorization: AsciiMetadataValue,
}

impl GrpcClient {
    /// Connects; `None` when the server cannot be reached.
    ///
    /// # Panics
    /// The key cannot be in a header.
    pub async fn connect(server: SocketAddr, api_key: &str) -> Option<Self> {
        let endpoint = Channel::from_shared(format!("http://{server}")).expect("an address is a URI");
        let connected = tokio::time::timeout(PATIENCE, endpoint.connect()).await;
        let client = SubmissionServiceClient::new(connected.ok()?.ok()?);
        let authorization = format!("Bearer {api_key}").parse().expect("a test has a key that fits a header");
        Some(Self { client, authorization })
    }

    /// Submits one message.
    pub async fn submit(&mut self, sender: &str, recipients: &[&str], content: &str) -> Submitted {
        let envelope = Envelope {
            sender: sender.to_owned(),
            recipients: recipients.iter().map(ToString::to_string).collect(),
        };
        let content = Bytes::copy_from_slice(content.as_bytes());
        let mut request = Request::new(SubmitRequest { envelope: Some(envelope), content });
        request.metadata_mut().insert("authorization", self.authorization.clone());
        let answer = tokio::time::timeout(PATIENCE, self.client.submit(request)).await;
        answer.map_or(Submitted::Unknown, |answer| grpc_result(recipients, answer.map(Response::into_inner)))
    }
}

fn grpc_result(recipients: &[&str], answer: Result<SubmitResponse, Status>) -> Submitted {
    match answer {
        Ok(response) => acknowledged(recipients, response.message_id.parse().ok()),
        // The connection may have failed after the commit.
        Err(status) if status.code() == Code::Unavailable => Submitted::Unknown,
        Err(status) => Submitted::Rejected(status.code()),
    }
}

/// A server that takes longer to answer has hung.
const PATIENCE: Duration = Duration::from_secs(30);

fn smtp_result(recipients: &[&str], results: &[RecipientResult]) -> Submitted {
    match results.first() {
        Some(RecipientResult::Reply(Phase::Message, reply)) if reply.code == 250 => {
            acknowledged(recipients, reply.text.split(' ').find_map(|word| word.parse().ok()))
        }
        Some(RecipientResult::Reply(_, reply)) => Submitted::Refused(reply.code),
        _ => Submitted::Unknown,
    }
}

fn acknowledged(recipients: &[&str], id: Option<MessageId>) -> Submitted {
    let recipients = recipients.iter().map(|recipient| Box::from(*recipient)).collect();
    id.map_or(Submitted::Unknown, |id| Submitted::Acknowledged(Acknowledged { id, recipients }))
}
