//! Outgoing connections: source address, timeout, and the check against forbidden addresses.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use rustix::io::Errno;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpSocket, TcpStream},
    time,
};

mod guard;
mod socket;

pub use guard::{Denied, Guard};
pub use socket::Socket;

use crate::{metrics, transport::Duplex};

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
    /// The source is not an address of this node.
    #[error("cannot use the source address")]
    Source(#[source] io::Error),
    /// This node has no socket, descriptor, buffer or port left: nothing was sent to the peer.
    #[error("this node is out of sockets, ports or memory")]
    Exhausted(#[source] io::Error),
    /// The peer did not answer in time.
    #[error("timed out after {}", in_seconds(*.0))]
    TimedOut(Duration),
    /// The peer refused the connection or is unreachable.
    #[error("cannot connect")]
    Failed(#[source] io::Error),
}

impl ConnectError {
    /// Returns it with its cause, in one line.
    #[must_use]
    pub fn with_cause(&self) -> String {
        let cause = std::error::Error::source(self).map(|cause| format!(": {cause}"));
        format!("{self}{}", cause.unwrap_or_default())
    }

    /// Returns true when this node, not the peer, is at fault.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Family { .. } | Self::Source(_) | Self::Exhausted(_))
    }

    /// Returns true when a retry can help.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        !matches!(self, Self::Denied(_) | Self::Family { .. })
    }
}

/// Opens outgoing connections.
#[derive(Clone, Debug, Default)]
pub enum Connector {
    /// Over this machine's TCP.
    #[default]
    Tcp,
    /// Over what a simulation makes of it.
    Simulated(Arc<dyn Outside>),
}

/// The servers outside of the cluster, as one node of a simulation reaches them.
pub trait Outside: std::fmt::Debug + Send + Sync {
    /// Connects to an address from a source address, `None` for any.
    ///
    /// When the connection is dropped it is reset: what the peer does not have yet is lost.
    ///
    /// # Errors
    /// The peer refused, or is unreachable; errors with the number of a system's error are understood like the system's.
    fn connect(
        &self,
        from: Option<IpAddr>,
        to: SocketAddr,
    ) -> BoxFuture<'static, io::Result<Box<dyn Duplex>>>;
}

impl Connector {
    /// Connects to an untrusted address, such as one from DNS.
    ///
    /// Takes an address, not a name, so the address that is checked is the address that is connected to.
    ///
    /// # Errors
    /// The address is denied, the source is unusable, or the peer does not answer within `limit`.
    pub async fn connect(
        &self,
        guard: &Guard,
        to: SocketAddr,
        from: Option<IpAddr>,
        limit: Duration,
    ) -> Result<Socket, ConnectError> {
        guard.check(to.ip()).inspect_err(|_| metrics::connect_denied())?;
        self.connect_trusted(to, from, limit).await
    }

    /// Connects to an address that the operator configured, without a check.
    ///
    /// # Errors
    /// The source is unusable, or the peer does not answer within `limit`.
    pub async fn connect_trusted(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
        limit: Duration,
    ) -> Result<Socket, ConnectError> {
        match self {
            Self::Tcp => Ok(Socket::Tcp(connect_tcp(to, from, limit).await?)),
            Self::Simulated(outside) => {
                check_family(from, to)?;
                let connected = time::timeout(limit, outside.connect(from, to)).await;
                let stream = connected.map_err(|_| ConnectError::TimedOut(limit))?;
                let stream = stream.map_err(|error| cannot_connect(error, to, from, || true))?;
                Ok(Socket::Simulated(stream, to))
            }
        }
    }
}

fn in_seconds(limit: Duration) -> String {
    format!("`{}` s", limit.as_secs_f32())
}

async fn connect_tcp(
    to: SocketAddr,
    from: Option<IpAddr>,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|error| no_socket(error, to, from))?;
    check_family(from, to)?;
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0)).map_err(cannot_bind)?;
    }
    let connected = time::timeout(limit, socket.connect(to)).await;
    let stream = connected.map_err(|_| ConnectError::TimedOut(limit))?;
    let stream = stream.map_err(|error| cannot_connect(error, to, from, node_has_ipv6))?;
    prepare(&stream).map_err(|error| cannot_connect(error, to, from, node_has_ipv6))?;
    Ok(stream)
}

fn check_family(from: Option<IpAddr>, to: SocketAddr) -> Result<(), ConnectError> {
    match from {
        Some(from) if from.is_ipv4() != to.is_ipv4() => Err(ConnectError::Family { from, to: to.ip() }),
        _ => Ok(()),
    }
}

/// Binding to a fixed address and any port: only this node can be the cause.
fn cannot_bind(error: io::Error) -> ConnectError {
    match Errno::from_io_error(&error) {
        // All ports of the address are in use.
        Some(Errno::ADDRINUSE) => ConnectError::Exhausted(error),
        _ if is_exhausted(&error) => ConnectError::Exhausted(error),
        _ => ConnectError::Source(error),
    }
}

fn no_socket(error: io::Error, to: SocketAddr, from: Option<IpAddr>) -> ConnectError {
    let no_family = Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT);
    if no_family && may_lack_ipv6(to, from) {
        ConnectError::Failed(error)
    } else {
        ConnectError::Exhausted(error)
    }
}

fn cannot_connect(
    error: io::Error,
    to: SocketAddr,
    from: Option<IpAddr>,
    has_ipv6: impl Fn() -> bool,
) -> ConnectError {
    match Errno::from_io_error(&error) {
        Some(Errno::ADDRNOTAVAIL) if may_lack_ipv6(to, from) && !has_ipv6() => ConnectError::Failed(error),
        // connect(2): no port is free, or none is for this source and peer.
        Some(Errno::ADDRNOTAVAIL | Errno::ADDRINUSE) => ConnectError::Exhausted(error),
        _ if is_exhausted(&error) => ConnectError::Exhausted(error),
        _ => ConnectError::Failed(error),
    }
}

/// Returns true where the reason can be that this node has no IPv6, which will not pass: an IPv6 peer is as unreachable
/// as without a route. With a source of that family it is a fault of the source instead.
fn may_lack_ipv6(to: SocketAddr, from: Option<IpAddr>) -> bool {
    to.is_ipv6() && from.is_none()
}

/// Returns true unless this node has no IPv6 address, not even loopback: connect(2) gives the same error without an
/// address as without a free port. A UDP socket has ports of its own.
fn node_has_ipv6() -> bool {
    let bound = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0));
    let errno = bound.err().as_ref().and_then(Errno::from_io_error);
    !matches!(errno, Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT))
}

/// The system lacks something that the peer cannot take or give.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::AGAIN)
    )
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn d_053_a_fault_of_this_node_is_not_the_peers() {
        let check = |error: ConnectError, local: bool| assert_eq!(error.is_local(), local, "{error:?}");
        let io = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        let v4 = SocketAddr::from(([192, 0, 2, 1], 25));
        let v6 = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 25));
        for errno in
            [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL, Errno::ADDRINUSE]
        {
            check(cannot_bind(io(errno)), true);
            check(cannot_connect(io(errno), v4, None, || false), true);
            check(cannot_connect(io(errno), v6, Some(v6.ip()), || false), true);
            check(cannot_connect(io(errno), v6, None, || true), true);
        }
        for errno in
            [Errno::CONNREFUSED, Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::CONNRESET, Errno::TIMEDOUT]
        {
            check(cannot_connect(io(errno), v4, None, || true), false);
        }
        check(cannot_connect(io(Errno::MFILE), v6, None, || false), true);
        check(no_socket(io(Errno::MFILE), v6, None), true);
        check(no_socket(io(Errno::AFNOSUPPORT), v6, Some(v6.ip())), true);
    }

    #[test]
    fn d_016_a_node_without_ipv6_cannot_reach_an_ipv6_peer() {
        let v6 = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 25));
        let io = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        // socket(2) where the kernel has none, and connect(2) where it is disabled by sysctl.
        let no_family = no_socket(io(Errno::AFNOSUPPORT), v6, None);
        let no_address = cannot_connect(io(Errno::ADDRNOTAVAIL), v6, None, || false);
        for error in [no_family, no_address] {
            assert!(matches!(error, ConnectError::Failed(_)) && !error.is_local(), "{error:?}");
        }
    }

    #[tokio::test]
    async fn d_015_the_address_that_is_connected_to_is_checked() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limit = Duration::from_secs(1);
        for ip in ["127.0.0.1", "::ffff:127.0.0.1"] {
            let to = SocketAddr::new(ip.parse().unwrap(), address.port());
            for connector in [Connector::Tcp, Connector::Simulated(Arc::new(OneServer(address)))] {
                let refused = connector.connect(&Guard::default(), to, None, limit).await.unwrap_err();
                assert!(matches!(refused, ConnectError::Denied(_)), "{refused:?}");
            }
        }
        let allowing = Guard { allow: vec!["127.0.0.0/8".parse().unwrap()] };
        let Ok(Socket::Tcp(stream)) = Connector::Tcp.connect(&allowing, address, None, limit).await else {
            panic!("not connected")
        };
        let (_, from) = listener.accept().await.unwrap();
        assert_eq!(from, stream.local_addr().unwrap());
        assert!(listener.accept().now_or_never().is_none(), "nothing else has connected");
    }

    #[tokio::test]
    async fn d_041_a_connection_sends_at_once_and_notices_a_dead_peer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let stream = connect_tcp(to, None, Duration::from_secs(1)).await.unwrap();
        assert!(stream.nodelay().unwrap());
        assert!(SockRef::from(&stream).keepalive().unwrap());
    }

    #[tokio::test]
    async fn d_053_a_source_that_is_no_address_of_this_node_is_a_local_fault() {
        let elsewhere = Some(IpAddr::from([203, 0, 113, 1]));
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        let error = Connector::Tcp.connect_trusted(to, elsewhere, Duration::from_secs(1)).await.unwrap_err();
        assert!(matches!(error, ConnectError::Source(_)), "{error:?}");
    }

    /// Answers at one address, in the end, and refuses at all others.
    #[derive(Debug)]
    struct OneServer(SocketAddr);

    impl Outside for OneServer {
        fn connect(
            &self,
            _: Option<IpAddr>,
            to: SocketAddr,
        ) -> BoxFuture<'static, io::Result<Box<dyn Duplex>>> {
            let answers = to == self.0;
            Box::pin(async move {
                time::sleep(Duration::from_secs(10)).await;
                let stream: Box<dyn Duplex> = Box::new(tokio::io::duplex(64).0);
                if answers { Ok(stream) } else { Err(Errno::CONNREFUSED.into()) }
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_simulated_connection_fails_as_one_of_the_machine_does() {
        let to = SocketAddr::from(([192, 0, 2, 1], 25));
        let connector = Connector::Simulated(Arc::new(OneServer(to)));
        let connect = |to, from, seconds| {
            let connector = connector.clone();
            async move { connector.connect_trusted(to, from, Duration::from_secs(seconds)).await }
        };
        let socket = connect(to, None, 11).await.unwrap();
        assert_eq!(socket.peer_addr().unwrap(), to);
        let error = connect(to, None, 9).await.unwrap_err();
        assert!(matches!(error, ConnectError::TimedOut(_)), "{error:?}");
        let error = connect(SocketAddr::from(([192, 0, 2, 2], 25)), None, 11).await.unwrap_err();
        assert!(matches!(error, ConnectError::Failed(_)), "{error:?}");
        let error = connect(to, Some(Ipv6Addr::LOCALHOST.into()), 11).await.unwrap_err();
        assert!(matches!(error, ConnectError::Family { .. }), "{error:?}");
    }
}
