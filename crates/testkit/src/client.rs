//! Sends mail as a test's client: what was acknowledged, refused, or left without an answer.

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

/// What a client knows of its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// It was told that the message is safe.
    Acknowledged(Acknowledged),
    /// It was told no, with this reply.
    Refused(u16),
    /// It was told no by gRPC, with this code.
    Rejected(Code),
    /// It does not know: there may be a message or not.
    Unknown,
}

/// Sends one message over a connection of its own, in the clear.
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
    judge(recipients, &delivery.results)
}

/// Hands over one message by gRPC over a connection of its own, in the clear.
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
    judge_grpc(recipients, answer.map(Response::into_inner))
}

fn judge_grpc(recipients: &[&str], answer: Result<SubmitResponse, Status>) -> Submitted {
    match answer {
        Ok(response) => acknowledged(recipients, response.message_id.parse().ok()),
        // The connection may have broken after the commit.
        Err(status) if status.code() == Code::Unavailable => Submitted::Unknown,
        Err(status) => Submitted::Rejected(status.code()),
    }
}

/// A server of ours that takes longer has hung.
const PATIENCE: Duration = Duration::from_secs(30);

fn judge(recipients: &[&str], fates: &[RecipientResult]) -> Submitted {
    match fates.first() {
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
