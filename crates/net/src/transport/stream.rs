//! A connection of any transport, as the HTTP/2 stack uses it.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::TcpStream,
};
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use crate::{
    forward::forward_io,
    identity::{PeerIdentity, PeerInfo},
};

/// Both directions of a connection that a simulation carries.
pub trait Duplex: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Sync + Unpin> Duplex for T {}

/// A connection between nodes, or of a gRPC client.
#[derive(Debug)]
pub struct NodeStream {
    pipe: Pipe,
    peer: PeerInfo,
}

#[derive(Debug)]
enum Pipe {
    Memory(DuplexStream),
    Simulated(Box<dyn Duplex>),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl NodeStream {
    pub(super) fn memory(pipe: DuplexStream) -> Self {
        let peer = PeerInfo { identity: None, address: "memory".to_owned() };
        Self { pipe: Pipe::Memory(pipe), peer }
    }

    /// Makes a connection that a simulation carries, to a peer that has proven its identity.
    #[must_use]
    pub fn simulated(pipe: Box<dyn Duplex>, identity: PeerIdentity, address: String) -> Self {
        Self { pipe: Pipe::Simulated(pipe), peer: PeerInfo { identity: Some(identity), address } }
    }

    pub(super) fn tcp(stream: TcpStream, address: String) -> Self {
        Self { pipe: Pipe::Tcp(stream), peer: PeerInfo { identity: None, address } }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, identity: Option<PeerIdentity>, address: String) -> Self {
        Self { pipe: Pipe::Tls(Box::new(stream)), peer: PeerInfo { identity, address } }
    }

    pub(super) async fn connect(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self::tcp(stream, address.to_owned()))
    }

    /// Returns the peer.
    #[must_use]
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }
}

impl Connected for NodeStream {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

/// Calls a method of the current pipe.
macro_rules! each {
    ($self:ident, $pipe:ident => $call:expr) => {
        match &mut $self.get_mut().pipe {
            Pipe::Memory($pipe) => $call,
            Pipe::Simulated($pipe) => $call,
            Pipe::Tcp($pipe) => $call,
            Pipe::Tls(stream) => {
                let $pipe = stream.as_mut();
                $call
            }
        }
    };
}

forward_io!(NodeStream, each, |stream| match &stream.pipe {
    Pipe::Memory(pipe) => pipe.is_write_vectored(),
    Pipe::Simulated(pipe) => pipe.is_write_vectored(),
    Pipe::Tcp(pipe) => pipe.is_write_vectored(),
    Pipe::Tls(pipe) => pipe.is_write_vectored(),
});
