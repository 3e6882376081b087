//! One SMTP connection: in the clear, then perhaps over TLS.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use futures::FutureExt;
use postroad_smtp::server::TlsInfo;
use rustls::CommonState;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

/// The bytes of a connection.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// The socket has been taken out for a handshake, which owns it until it succeeds.
    Taken,
}

impl Stream {
    /// Takes the socket out for a handshake; what has been read from it and not used must be nothing (S-401, S-402).
    pub(super) fn take_socket(&mut self, unused: &[u8]) -> Option<TcpStream> {
        assert!(unused.is_empty(), "no byte that came in the clear may be used after the handshake");
        match std::mem::replace(self, Self::Taken) {
            Self::Plain(socket) => Some(socket),
            Self::Tls(_) | Self::Taken => None,
        }
    }

    /// Hands over what the system has room for and returns how much that was; nothing of it over TLS.
    ///
    /// The runtime learns only a turn later that a new socket can be written to; the system knows at once.
    pub(super) fn send_at_once(&self, bytes: &[u8]) -> io::Result<usize> {
        let Self::Plain(socket) = self else { return Ok(0) };
        match SockRef::from(socket).send(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            sent => sent,
        }
    }

    /// Ends a connection on which the peer sends nothing more: with TLS its end is said, the rest is left to the system.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) | Self::Taken => Ok(()),
            Self::Tls(stream) => stream.shutdown().await,
        }
    }

    /// Returns true when the peer is known to send nothing more; asks the runtime and not the kernel.
    pub(super) fn peer_has_finished(&self) -> bool {
        let Some(socket) = self.socket() else { return true };
        let ready = socket.ready(Interest::READABLE).now_or_never();
        ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
    }

    /// Returns true while bytes that were written are kept here and not by the system: part of a TLS record.
    pub(super) fn holds_back(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.get_ref().1.wants_write())
    }

    /// Has the kernel throw away what it has not sent yet when the connection is closed, and reset it.
    pub(super) fn discard_on_close(&self) {
        // A socket that refuses this is gone already.
        let _ = self.socket().map(TcpStream::set_zero_linger);
    }

    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(stream) => Some(stream.get_ref().0),
            Self::Taken => None,
        }
    }
}

/// Says version and cipher in words, as `TLSv1.3 TLS_AES_128_GCM_SHA256`.
pub(super) fn describe(tls: &CommonState) -> TlsInfo {
    let version = match tls.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLS",
    };
    let suite = tls.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("");
    TlsInfo(format!("{version} {}", suite.replace("TLS13_", "TLS_")).into())
}

/// Calls a method of the stream, whichever it is.
macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain($stream) => $call,
            Stream::Tls(tls) => {
                let $stream = tls.as_mut();
                $call
            }
            Stream::Taken => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(context))
    }
}
