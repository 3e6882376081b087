//! Outgoing connections: source address, timeout, and the check against forbidden addresses.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpSocket, TcpStream},
    time,
};

mod guard;

pub use guard::{Denied, Guard};

use crate::metrics;

/// TCP keepalive, to detect dead peers on idle connections.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The target address is forbidden.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The source and the target are of different address families.
    #[error("source `{from}` and target `{to}` are of different address families")]
    Family {
        /// The source address.
        from: IpAddr,
        /// The target address.
        to: IpAddr,
    },
    /// No socket is available, or the source is not an address of this node.
    #[error("cannot use the source address")]
    Source(#[source] io::Error),
    /// The peer did not answer in time.
    #[error("timed out after {}", in_seconds(*.0))]
    TimedOut(Duration),
    /// The peer refused the connection or is unreachable.
    #[error("cannot connect")]
    Failed(#[source] io::Error),
}

impl ConnectError {
    /// Returns true when this node, not the peer, is at fault.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Family { .. } | Self::Source(_))
    }

    /// Returns true when a retry can help.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        !matches!(self, Self::Denied(_) | Self::Family { .. })
    }
}

fn in_seconds(limit: Duration) -> String {
    format!("`{}` s", limit.as_secs_f32())
}

/// Connects to an untrusted address, such as one from DNS.
///
/// Takes an address, not a name, so the address that is checked is the address that is connected to.
///
/// # Errors
/// The address is denied, the source is unusable, or the peer does not answer within `limit`.
pub async fn connect(
    guard: &Guard,
    to: SocketAddr,
    from: Option<IpAddr>,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    guard.check(to.ip()).inspect_err(|_| metrics::connect_denied())?;
    connect_trusted(to, from, limit).await
}

/// Connects to an address that the operator configured, without a check.
///
/// # Errors
/// The source is unusable, or the peer does not answer within `limit`.
pub async fn connect_trusted(
    to: SocketAddr,
    from: Option<IpAddr>,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(ConnectError::Source)?;
    if let Some(from) = from {
        if from.is_ipv4() != to.is_ipv4() {
            return Err(ConnectError::Family { from, to: to.ip() });
        }
        socket.bind(SocketAddr::new(from, 0)).map_err(ConnectError::Source)?;
    }
    let connected = time::timeout(limit, socket.connect(to)).await;
    let stream = connected.map_err(|_| ConnectError::TimedOut(limit))?.map_err(ConnectError::Failed)?;
    prepare(&stream).map_err(ConnectError::Failed)?;
    Ok(stream)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER))
}
