//! Public gRPC listeners, which require no client certificate.

use std::time::Duration;

use tokio::net::TcpListener;
use tonic::transport::Server;

use crate::{tls::ServerTls, transport::NodeListener};

/// Listens for gRPC clients, over TLS if a certificate is given. These peers have no identity.
#[must_use]
pub fn listen(listener: TcpListener, tls: Option<&ServerTls>) -> NodeListener {
    NodeListener::public(listener, tls.map(|tls| tls.acceptor(&[b"h2"])))
}

/// Returns a server with limits for untrusted clients.
#[must_use]
pub fn server_builder() -> Server {
    Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_concurrent_streams(256)
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .http2_max_header_list_size(16 << 10)
        .http2_max_pending_accept_reset_streams(Some(64))
}
