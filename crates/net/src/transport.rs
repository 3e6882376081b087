//! The transport between nodes: memory pipes, plain TCP, or mutual TLS, and HTTP/2 over each of them.
//!
//! Nodes give addresses and expected peers; the binary chooses the kind of transport.

use std::{io, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::mpsc};
use tonic::transport::{Channel, Endpoint, Server};
use tower::service_fn;

mod listener;
mod memory;
mod mutual;
mod stream;

#[cfg(test)]
mod tests;

pub use listener::NodeListener;
pub use memory::MemoryNet;
pub use mutual::{CertificateFacts, NodeTls};
pub use stream::{Duplex, NodeStream};

use crate::identity::Expect;

/// How nodes reach each other.
#[derive(Clone, Debug)]
pub enum Transport {
    /// Pipes within one process.
    Memory(MemoryNet),
    /// Plain TCP without authentication, for loopback and trusted networks.
    Plain,
    /// Mutual TLS.
    Mutual(NodeTls),
    /// What a simulation makes of a network.
    Simulated(Arc<dyn Network>),
}

/// The network of a simulation, as one node sees it.
pub trait Network: std::fmt::Debug + Send + Sync {
    /// Listens on an address: its connections arrive at the receiver.
    ///
    /// # Errors
    /// The address is in use.
    fn bind(&self, address: &str) -> io::Result<mpsc::Receiver<NodeStream>>;

    /// Connects to an address.
    ///
    /// # Errors
    /// Nothing listens there, or it cannot be reached.
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<NodeStream>>;
}

/// Flow-control windows large enough that round trips do not limit a stream of mail.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES_MAX: u32 = 1 << 20;
const STREAMS_MAX: u32 = 1024;
/// A dead peer is detected after both of these together.
const PING_EVERY: Duration = Duration::from_secs(5);
const PONG_WITHIN: Duration = Duration::from_secs(5);
/// For the TCP connection and the TLS handshake together.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

impl Transport {
    /// Listens on an address: `host:port`, or any name for memory pipes.
    ///
    /// # Errors
    /// The address is in use, or not an address of this machine.
    pub async fn bind(&self, address: &str) -> io::Result<NodeListener> {
        match self {
            Self::Memory(net) => Ok(NodeListener::memory(net.bind(address)?)),
            Self::Plain => Ok(NodeListener::plain(TcpListener::bind(address).await?)),
            Self::Mutual(tls) => Ok(NodeListener::mutual(TcpListener::bind(address).await?, tls.clone())),
            Self::Simulated(network) => Ok(NodeListener::simulated(address, network.bind(address)?)),
        }
    }

    /// Returns a channel to the expected peer at an address.
    ///
    /// It connects on first use and reconnects after a failure; meanwhile calls fail with `UNAVAILABLE`.
    #[must_use]
    pub fn channel(&self, address: &str, expect: Expect) -> Channel {
        let (transport, address) = (self.clone(), address.to_owned());
        let connector = service_fn(move |_| {
            let (transport, address) = (transport.clone(), address.clone());
            async move { transport.connect(&address, expect).await.map(TokioIo::new) }
        });
        endpoint().connect_with_connector_lazy(connector)
    }

    async fn connect(&self, address: &str, expect: Expect) -> io::Result<NodeStream> {
        match self {
            Self::Memory(net) => net.connect(address).await,
            Self::Plain => NodeStream::connect(address).await,
            Self::Mutual(tls) => tls.connect(address, expect).await,
            Self::Simulated(network) => network.connect(address).await,
        }
    }
}

/// The connector knows the address; this URI only fills `:authority`.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://postroad")
        .connect_timeout(CONNECT_WITHIN)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG_WITHIN)
        .keep_alive_while_idle(true)
}

/// Returns a server with the HTTP/2 settings of channels between nodes.
#[must_use]
pub fn server_builder() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PONG_WITHIN))
}
