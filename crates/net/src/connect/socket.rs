//! What an SMTP connection runs over: TCP, or what a simulation makes of it.

use std::{io, net::SocketAddr};

use futures::FutureExt;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use crate::{forward::forward_io, transport::Duplex};

/// A connection without TLS.
#[derive(Debug)]
pub enum Socket {
    /// Of this machine.
    Tcp(TcpStream),
    /// Of a simulation, with the address of the peer.
    Simulated(Box<dyn Duplex>, SocketAddr),
}

impl Socket {
    /// Returns the address of the peer.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr(),
            Self::Simulated(_, peer) => Ok(*peer),
        }
    }

    /// Sends as much as the socket buffer has room for and returns how much; 0 in a simulation.
    ///
    /// The runtime needs another poll to learn that a new socket is writable; the kernel knows at once.
    pub(crate) fn send_at_once(&self, bytes: &[u8]) -> io::Result<usize> {
        let Self::Tcp(stream) = self else { return Ok(0) };
        match SockRef::from(stream).send(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            sent => sent,
        }
    }

    /// Returns true when the runtime knows that the peer has closed its side. Makes no system call.
    pub(crate) fn peer_has_finished(&self) -> bool {
        let Self::Tcp(stream) = self else { return false };
        let ready = stream.ready(Interest::READABLE).now_or_never();
        ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
    }

    /// Makes closing reset the connection and discard what has not been sent yet, as a simulation always does.
    pub(crate) fn discard_on_close(&self) {
        if let Self::Tcp(stream) = self {
            // Fails only on a socket that is closed already.
            let _ = stream.set_zero_linger();
        }
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

/// Calls a method of the current stream.
macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Socket::Tcp($stream) => $call,
            Socket::Simulated($stream, _) => $call,
        }
    };
}

forward_io!(Socket, each, |socket| match socket {
    Socket::Tcp(stream) => stream.is_write_vectored(),
    Socket::Simulated(stream, _) => stream.is_write_vectored(),
});
