//! Requests over channels, as the roles send them.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use futures::FutureExt;
use tonic::{
    body::Body,
    codegen::{Service, http},
    server::NamedService,
    transport::Error,
};
use tower::ServiceExt;

use super::*;
use crate::{
    PeerInfo, public,
    tls::{ClientTls, ServerTls},
};

/// Answers every request with the sender's identity.
#[derive(Clone)]
struct Mirror;

impl NamedService for Mirror {
    const NAME: &'static str = "test.Mirror";
}

impl Service<http::Request<Body>> for Mirror {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let peer: &PeerInfo = request.extensions().get().unwrap();
        let identity = peer.identity.map_or_else(|| "nobody".to_owned(), |peer| peer.to_string());
        ready(Ok(http::Response::builder().header("peer", identity).body(Body::empty()).unwrap()))
    }
}

async fn serve(listener: NodeListener) {
    server_builder().add_service(Mirror).serve_with_incoming(listener).await.unwrap();
}

/// Asks the server which identity it sees.
async fn ask(channel: &Channel) -> Result<String, Error> {
    let request =
        http::Request::builder().uri("http://postroad/test.Mirror/Ask").body(Body::empty()).unwrap();
    let response = channel.clone().ready_oneshot().await?.call(request).await?;
    Ok(response.headers()["peer"].to_str().unwrap().to_owned())
}

#[tokio::test]
async fn c_171_requests_carry_who_sent_them() {
    let authority = ClusterAuthority::generate(CLUSTER).unwrap();
    let mutual = |role, number| Transport::Mutual(node(&authority, role, number));
    let net = Transport::Memory(MemoryNet::new());
    let ours = "postroad://cluster/7/role/ingress/node/3";
    for (server, client, expected) in [
        (net.clone(), net, "nobody"),
        (Transport::Plain, Transport::Plain, "nobody"),
        (mutual(Role::Queue, 1), mutual(Role::Ingress, 3), ours),
    ] {
        let listener = server.bind("127.0.0.1:0").await.unwrap();
        let channel = client.channel(listener.local_addr(), Expect::any(Role::Queue));
        let serving = tokio::spawn(serve(listener));
        assert_eq!(ask(&channel).await.unwrap(), expected);
        let elsewhere = client.channel("127.0.0.1:1", Expect::any(Role::Queue));
        assert!(ask(&elsewhere).await.is_err());
        serving.abort();
    }
}

#[tokio::test]
async fn a_channel_reconnects_when_its_server_is_back() {
    let net = Transport::Memory(MemoryNet::new());
    let channel = net.channel("queue-1", Expect::any(Role::Queue));
    for _ in 0..3 {
        assert!(ask(&channel).await.is_err());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let listener = net.bind("queue-1").await.unwrap();
        let server = server_builder().add_service(Mirror);
        let serving = tokio::spawn(server.serve_with_incoming_shutdown(listener, stopped.map(drop)));
        while ask(&channel).await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stop.send(()).unwrap();
        serving.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn r_12_a_dead_peer_is_detected() {
    let net = Transport::Memory(MemoryNet::new());
    let mut listener = net.bind("queue-1").await.unwrap();
    let channel = net.channel("queue-1", Expect::any(Role::Queue));
    let accepting = tokio::spawn(async move { (listener.next().await, listener) });
    let start = postroad_env::now();
    assert!(ask(&channel).await.is_err(), "nobody answers");
    assert!(
        postroad_env::since(start) <= PING_EVERY + PONG_WITHIN + Duration::from_secs(1),
        "{:?}",
        postroad_env::since(start)
    );
    drop(accepting.await.unwrap());
}

#[tokio::test]
async fn public_clients_have_no_identity_in_the_clear_and_over_tls() {
    let tls = ServerTls::self_signed(&["localhost".to_owned()]).unwrap();
    for tls in [None, Some(tls)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = public::listen(listener, tls.as_ref());
        let address = listener.local_addr().to_owned();
        let server =
            public::server_builder(tonic::Status::resource_exhausted("too large")).add_service(Mirror);
        let serving = tokio::spawn(server.serve_with_incoming(listener));
        let with_tls = tls.is_some();
        let connector = service_fn(move |_| {
            let address = address.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                if !with_tls {
                    return Ok::<_, io::Error>(TokioIo::new(NodeStream::tcp(stream, String::new())));
                }
                let config = ClientTls::opportunistic();
                let name = "localhost".try_into().map_err(io::Error::other)?;
                let stream = config.connector().connect(name, stream).await?;
                let stream = tokio_rustls::TlsStream::Client(stream);
                Ok(TokioIo::new(NodeStream::tls(stream, None, String::new())))
            }
        });
        let channel = endpoint().connect_with_connector_lazy(connector);
        assert_eq!(ask(&channel).await.unwrap(), "nobody");
        serving.abort();
    }
}
