//! Accepts connections; survives errors without spinning.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time,
};

use crate::metrics;

/// How long to wait after accepting failed, as for lack of file descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts the next connection.
///
/// Skips connections that broke before they were accepted.
/// Without a free file descriptor, clients wait in the kernel; an immediate retry would only burn CPU.
/// Dropping the future loses no connection.
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
