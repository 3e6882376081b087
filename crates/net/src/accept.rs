//! Accepting connections without ever ending or spinning.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time,
};

use crate::metrics;

/// How long to wait before accepting again when there was no descriptor or no memory for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts the next connection.
///
/// A connection that broke before it was accepted is skipped.
/// Without a free descriptor the kernel keeps clients waiting, so trying again at once would only burn the CPU.
/// Dropping what this returns loses no connection.
pub async fn next_connection(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                metrics::accept_failed();
                tracing::warn!(%error, "cannot accept a connection");
                time::sleep(PAUSE).await;
            }
        }
    }
}

fn concerns_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    matches!(error.kind(), Kind::ConnectionAborted | Kind::ConnectionReset | Kind::Interrupted)
}
