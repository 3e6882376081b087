//! Public gRPC listeners, which require no client certificate.

use std::time::Duration;

use http::Response;
use tokio::net::TcpListener;
use tonic::{Code, Status, body::Body, transport::Server};
use tower::{
    layer::util::{Identity, Stack},
    util::MapResponseLayer,
};

use crate::{tls::ServerTls, transport::NodeListener};

/// Listens for gRPC clients, over TLS if a certificate is given. These peers have no identity.
#[must_use]
pub fn listen(listener: TcpListener, tls: Option<&ServerTls>) -> NodeListener {
    NodeListener::public(listener, tls.map(|tls| tls.acceptor(&[b"h2"])))
}

/// Returns a server with limits for untrusted clients; a request over the size limit of its service gets `too_large`.
#[must_use]
#[expect(clippy::type_complexity, reason = "a type alias cannot hold the closure")]
pub fn server_builder(
    too_large: Status,
) -> Server<Stack<MapResponseLayer<impl Fn(Response<Body>) -> Response<Body> + Clone>, Identity>> {
    // tonic answers OUT_OF_RANGE, which no service of ours uses. gRPC's own servers answer RESOURCE_EXHAUSTED.
    let answer = move |response: Response<Body>| match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::OutOfRange => too_large.clone().into_http(),
        _ => response,
    };
    Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_concurrent_streams(256)
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .http2_max_header_list_size(16 << 10)
        .http2_max_pending_accept_reset_streams(Some(64))
        .layer(MapResponseLayer::new(answer))
}
