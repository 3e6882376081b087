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
use tonic::{Code, Request, Response, Status, transport::Channel};

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
    let envelope = Envelope {
        sender: sender.to_owned(),
        recipients: recipients.iter().map(ToString::to_string).collect(),
    };
    let content = Bytes::copy_from_slice(content.as_bytes());
    let mut request = Request::new(SubmitRequest { envelope: Some(envelope), content });
    let key = format!("Bearer {api_key}").parse().expect("a test has a key that fits a header");
    request.metadata_mut().insert("authorization", key);
    let answer = async {
        let endpoint = Channel::from_shared(format!("http://{server}")).expect("an address is a URI");
        let mut client = SubmissionServiceClient::new(endpoint.connect().await.ok()?);
        Some(client.submit(request).await)
    };
    let Ok(Some(answer)) = tokio::time::timeout(PATIENCE, answer).await else { return Submitted::Unknown };
    grpc_result(recipients, answer.map(Response::into_inner))
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
