//! Sends mail as a test's client: what was acknowledged, refused, or left without an answer.

use std::{future::pending, net::SocketAddr, time::Duration};

use bytes::Bytes;
use postroad_core::{Address, Domain, MessageId};
use postroad_net::{ClientTls, smtp::client::Connection};
use postroad_smtp::client::{ClientConfig, Fate, Phase, Timeouts, TlsUse, Transaction};
use tokio::net::TcpStream;

use crate::checker::Acknowledged;

/// What a client knows of its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// It was told that the message is safe.
    Acknowledged(Acknowledged),
    /// It was told no, with this reply.
    Refused(u16),
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
    judge(recipients, &delivery.fates)
}

/// A server of ours that takes longer has hung.
const PATIENCE: Duration = Duration::from_secs(30);

fn judge(recipients: &[&str], fates: &[Fate]) -> Submitted {
    match fates.first() {
        Some(Fate::Reply(Phase::Message, reply)) if reply.code == 250 => {
            let id = reply.text.split(' ').find_map(|word| word.parse::<MessageId>().ok());
            let recipients = recipients.iter().map(|recipient| Box::from(*recipient)).collect();
            id.map_or(Submitted::Unknown, |id| Submitted::Acknowledged(Acknowledged { id, recipients }))
        }
        Some(Fate::Reply(_, reply)) => Submitted::Refused(reply.code),
        _ => Submitted::Unknown,
    }
}
