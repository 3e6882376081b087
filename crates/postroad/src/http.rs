//! One HTTP request over a connection, for commands: the console's API and that of Kubernetes.

use std::time::Duration;

use anyhow::Context;
use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use bytes::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// The longest response that is read.
const RESPONSE_BYTES_MAX: usize = 4 << 20;

/// How long a request may take.
pub(crate) const WITHIN: Duration = Duration::from_secs(10);

/// Sends a request and reads the response; the connection is not used again.
///
/// # Errors
/// The connection fails, the server does not speak HTTP/1.1, or it takes too long.
pub(crate) async fn request<S>(stream: S, request: Request<Body>) -> anyhow::Result<(StatusCode, Bytes)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let exchange = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the sender.
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = to_bytes(Body::new(response.into_body()), RESPONSE_BYTES_MAX).await?;
        connection.abort();
        anyhow::Ok((status, body))
    };
    tokio::time::timeout(WITHIN, exchange).await.context("no response in time")?
}
