//! Connecting to the world: from the right source, in time, and never to what must not be reached from here.

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

/// A peer that is gone is noticed even where nothing is being waited for.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not to be reached from here.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The source is of another address family than the target.
    #[error("the source `{from}` cannot reach an address such as `{to}`")]
    Family {
        /// Where from.
        from: IpAddr,
        /// Where to.
        to: IpAddr,
    },
    /// This node has no socket for it, or the source is not one of its addresses.
    #[error("cannot use the source address")]
    Source(#[source] io::Error),
    /// The peer did not answer in time.
    #[error("no answer within {}", humane(*.0))]
    TimedOut(Duration),
    /// The peer refused, or cannot be reached.
    #[error("cannot connect")]
    Failed(#[source] io::Error),
}

impl ConnectError {
    /// Returns true when this node and not the peer is the reason; such an error says nothing about the peer.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Family { .. } | Self::Source(_))
    }

    /// Returns true when trying again later can help.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        !matches!(self, Self::Denied(_) | Self::Family { .. })
    }
}

fn humane(limit: Duration) -> String {
    format!("`{}` s", limit.as_secs_f32())
}

/// Connects to an address that came from outside, as out of DNS.
///
/// What is checked is the very address that is then connected to, so nothing resolved twice can differ.
///
/// # Errors
/// The address is denied, the source cannot be used, or the peer does not answer within `limit`.
pub async fn connect(
    guard: &Guard,
    to: SocketAddr,
    from: Option<IpAddr>,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    guard.check(to.ip()).inspect_err(|_| metrics::connect_denied())?;
    connect_trusted(to, from, limit).await
}

/// Connects to an address that the operator named: anything is allowed.
///
/// # Errors
/// The source cannot be used, or the peer does not answer within `limit`.
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
