//! Accepts connections of nodes and of gRPC clients.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time,
};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::task::AbortOnDropHandle;

use super::{NodeStream, NodeTls, memory::MemoryListener};
use crate::{accept::next_connection, metrics};

/// Concurrent handshakes; more connections wait in the kernel.
const HANDSHAKES_MAX: usize = 256;
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Connections that wait for the HTTP/2 server.
const READY_MAX: usize = 64;

/// A stream of connections for tonic's `serve_with_incoming`. It never fails and never ends.
#[derive(Debug)]
pub struct NodeListener {
    local_addr: String,
    incoming: mpsc::Receiver<NodeStream>,
    _accepting: Option<AbortOnDropHandle<()>>,
}

/// The handshake of a new TCP connection.
#[derive(Clone)]
enum Handshake {
    Plain,
    Public(TlsAcceptor),
    Mutual(NodeTls),
}

impl NodeListener {
    pub(super) fn memory(listener: MemoryListener) -> Self {
        Self { local_addr: listener.name.into(), incoming: listener.incoming, _accepting: None }
    }

    pub(super) fn simulated(address: &str, incoming: mpsc::Receiver<NodeStream>) -> Self {
        Self { local_addr: address.to_owned(), incoming, _accepting: None }
    }

    pub(super) fn plain(listener: TcpListener) -> Self {
        Self::tcp(listener, Handshake::Plain)
    }

    pub(super) fn mutual(listener: TcpListener, tls: NodeTls) -> Self {
        Self::tcp(listener, Handshake::Mutual(tls))
    }

    pub(crate) fn public(listener: TcpListener, acceptor: Option<TlsAcceptor>) -> Self {
        Self::tcp(listener, acceptor.map_or(Handshake::Plain, Handshake::Public))
    }

    fn tcp(listener: TcpListener, handshake: Handshake) -> Self {
        let local_addr = listener.local_addr().map_or_else(|_| String::new(), |address| address.to_string());
        let (ready, incoming) = mpsc::channel(READY_MAX);
        let accepting = tokio::spawn(accept(listener, handshake, ready));
        Self { local_addr, incoming, _accepting: Some(AbortOnDropHandle::new(accepting)) }
    }

    /// Returns the address we listen on, with the actual port.
    #[must_use]
    pub fn local_addr(&self) -> &str {
        &self.local_addr
    }
}

impl Stream for NodeListener {
    type Item = io::Result<NodeStream>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.incoming.poll_recv(context).map(|next| next.map(Ok))
    }
}

/// Accepts connections forever. Dropping the future also ends the handshakes.
async fn accept(listener: TcpListener, handshake: Handshake, ready: mpsc::Sender<NodeStream>) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            (stream, address) = next_connection(&listener), if handshakes.len() < HANDSHAKES_MAX => {
                let (handshake, ready) = (handshake.clone(), ready.clone());
                handshakes.spawn(async move {
                    let accepted = time::timeout(HANDSHAKE_WITHIN, handshake.accept(stream, address));
                    match accepted.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                        // A closed channel means that the server has ended.
                        Ok(stream) => drop(ready.send(stream).await),
                        Err(error) => {
                            metrics::node_handshake_failed("accept");
                            tracing::info!(%error, peer = %address, "TLS handshake of a node failed");
                        }
                    }
                });
            }
            Some(_) = handshakes.join_next() => {}
        }
    }
}

impl Handshake {
    async fn accept(&self, stream: TcpStream, address: SocketAddr) -> io::Result<NodeStream> {
        stream.set_nodelay(true)?;
        match self {
            Self::Plain => Ok(NodeStream::tcp(stream, address.to_string())),
            Self::Public(acceptor) => {
                let stream = acceptor.accept(stream).await?;
                Ok(NodeStream::tls(TlsStream::Server(stream), None, address.to_string()))
            }
            Self::Mutual(tls) => tls.accept(stream, address).await,
        }
    }
}
