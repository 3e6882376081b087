//! The byte stream of an SMTP connection: plaintext or TLS.

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
    /// A TLS handshake owns the socket.
    Handshaking,
}

impl Stream {
    /// Takes the socket for a TLS handshake. `unprocessed` plaintext must be empty (S-401, S-402).
    pub(super) fn take_socket(&mut self, unprocessed: &[u8]) -> Option<TcpStream> {
        assert!(unprocessed.is_empty(), "plaintext must not be used after the handshake");
        match std::mem::replace(self, Self::Handshaking) {
            Self::Plain(socket) => Some(socket),
            Self::Tls(_) | Self::Handshaking => None,
        }
    }

    /// Sends as much as the socket buffer has room for and returns how much; 0 over TLS.
    ///
    /// The runtime needs another poll to learn that a new socket is writable; the kernel knows at once.
    pub(super) fn send_at_once(&self, bytes: &[u8]) -> io::Result<usize> {
        let Self::Plain(socket) = self else { return Ok(0) };
        match SockRef::from(socket).send(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            sent => sent,
        }
    }

    /// Ends a connection after the peer has finished: sends `close_notify` over TLS; the kernel does the rest.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) | Self::Handshaking => Ok(()),
            Self::Tls(stream) => stream.shutdown().await,
        }
    }

    /// Returns true when the runtime knows that the peer has closed its side. Makes no system call.
    pub(super) fn peer_has_finished(&self) -> bool {
        let Some(socket) = self.socket() else { return true };
        let ready = socket.ready(Interest::READABLE).now_or_never();
        ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
    }

    /// Returns true while part of a TLS record is buffered here and not yet in the kernel.
    pub(super) fn has_unflushed_tls(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.get_ref().1.wants_write())
    }

    /// Makes closing reset the connection and discard what the kernel has not sent yet.
    pub(super) fn discard_on_close(&self) {
        // Fails only on a socket that is closed already.
        let _ = self.socket().map(TcpStream::set_zero_linger);
    }

    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(stream) => Some(stream.get_ref().0),
            Self::Handshaking => None,
        }
    }
}

/// Returns version and cipher, as `TLSv1.3 TLS_AES_128_GCM_SHA256`.
pub(super) fn tls_info(tls: &CommonState) -> TlsInfo {
    let version = match tls.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLS",
    };
    let suite = tls.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("");
    TlsInfo(format!("{version} {}", suite.replace("TLS13_", "TLS_")).into())
}

/// Calls a method of the current stream.
macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain($stream) => $call,
            Stream::Tls(tls) => {
                let $stream = tls.as_mut();
                $call
            }
            Stream::Handshaking => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
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
