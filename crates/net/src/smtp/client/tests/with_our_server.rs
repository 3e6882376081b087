//! Our client against our server.

use std::{net::IpAddr, sync::Arc};

use parking_lot::Mutex;
use postroad_smtp::server::{Answer, Question};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    smtp::server::{ListenerConfig, Policy, Session, serve},
    tls::ServerTls,
};

/// Accepts every message, and records its TLS.
#[derive(Default)]
struct Accepted(Mutex<Vec<(Bytes, Option<String>)>>);

impl Policy for Accepted {
    type Identity = ();

    fn network_identity(&self, _: IpAddr) -> Option<()> {
        Some(())
    }

    async fn decide(&self, session: Session<'_, ()>, question: Question) -> Answer<()> {
        let Question::Message(message) = question else { return Answer::Yes };
        let tls = session.tls.map(|tls| tls.0.to_string());
        self.0.lock().push((message.content, tls));
        Answer::Reply(Reply::new(250, 0, 0, "queued"))
    }
}

/// Sends messages over one connection; returns the messages that the server accepted.
async fn send(
    tls: Option<ServerTls>,
    policy: &ClientTls,
    contents: &[Vec<Bytes>],
) -> Result<Vec<(Bytes, Option<String>)>, Ended> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, shutdown) = (Arc::new(Accepted::default()), CancellationToken::new());
    let mut listening = ListenerConfig { tls, ..ListenerConfig::default() };
    listening.server.message_size_max = 0;
    let serving = tokio::spawn(serve(listener, listening, Arc::clone(&accepted), shutdown.clone()));
    let stream = TcpStream::connect(address).await.unwrap();
    let opened = Connection::open(stream, config(PATIENT), policy, "localhost").await;
    let outcome = match opened {
        Err(ended) => Err(ended),
        Ok(mut connection) => {
            for content in contents {
                let delivery = connection
                    .deliver(Transaction { content: content.clone(), ..message() }, pending())
                    .await;
                assert!(
                    matches!(&delivery.results[..], [RecipientResult::Reply(Phase::Message, reply)] if reply.code == 250)
                );
            }
            assert!(connection.capabilities().pipelining && connection.capabilities().size.is_some());
            assert!(!connection.capabilities().start_tls);
            connection.quit().await;
            Ok(())
        }
    };
    shutdown.cancel();
    serving.await.unwrap();
    outcome.map(|()| std::mem::take(&mut *accepted.0.lock()))
}

fn contents() -> Vec<Vec<Bytes>> {
    let header = Bytes::from_static(b"From: a@b.example\r\n\r\n");
    let small = Bytes::from_static(b"hi\r\n.\r\n..\r\n");
    let large = Bytes::from("a line that is not short\r\n.dot\r\n".repeat(20_000));
    vec![vec![header.clone(), small.clone()], vec![header.clone(), large], vec![header, small]]
}

#[tokio::test]
async fn contents_arrive_unchanged_in_the_clear_and_over_tls() {
    let sent = contents();
    for tls in [None, Some(ServerTls::self_signed(&["localhost".to_owned()]).unwrap())] {
        let secured = tls.is_some();
        let accepted = send(tls, &ClientTls::opportunistic(), &sent).await.unwrap();
        assert_eq!(accepted.len(), sent.len());
        for ((content, tls), parts) in accepted.iter().zip(&sent) {
            assert_eq!(*content, parts.concat());
            let version = tls.as_deref().map(|tls| tls.starts_with("TLSv1.3 TLS_"));
            assert_eq!(version, secured.then_some(true), "{tls:?}");
        }
    }
}

#[tokio::test]
async fn an_untrusted_certificate_is_refused_when_verified() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    std::fs::write(folder.path().join("c"), &certificate).unwrap();
    let server = ServerTls::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
    let trusting = ClientTls::trusting(certificate.as_bytes()).unwrap();
    assert!(send(Some(server.clone()), &trusting, &contents()[..1]).await.is_ok());
    let refused = send(Some(server), &ClientTls::verified(), &contents()[..1]).await.unwrap_err();
    assert_eq!(refused, Ended::Lost(Phase::StartTls, Lost::Closed));
}
