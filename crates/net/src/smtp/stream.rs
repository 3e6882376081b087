//! The byte stream of an SMTP connection: plaintext or TLS.

use std::{io, task::Poll};

use postroad_smtp::server::TlsInfo;
use rustls::CommonState;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsStream;

use crate::{connect::Socket, forward::forward_io};

/// The bytes of a connection.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
    /// A TLS handshake owns the socket.
    Handshaking,
}

impl Stream {
    /// Takes the socket for a TLS handshake. `unprocessed` plaintext must be empty (S-401, S-402).
    pub(super) fn take_socket(&mut self, unprocessed: &[u8]) -> Option<Socket> {
        assert!(unprocessed.is_empty(), "plaintext must not be used after the handshake");
        match std::mem::replace(self, Self::Handshaking) {
            Self::Plain(socket) => Some(socket),
            Self::Tls(_) | Self::Handshaking => None,
        }
    }

    /// Sends as much as the socket buffer has room for and returns how much; 0 over TLS.
    pub(super) fn send_at_once(&self, bytes: &[u8]) -> io::Result<usize> {
        let Self::Plain(socket) = self else { return Ok(0) };
        socket.send_at_once(bytes)
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
        self.socket().is_none_or(Socket::peer_has_finished)
    }

    /// Returns true while part of a TLS record is buffered here and not yet in the kernel.
    pub(super) fn has_unflushed_tls(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.get_ref().1.wants_write())
    }

    /// Makes closing reset the connection and discard what the kernel has not sent yet.
    pub(super) fn discard_on_close(&self) {
        if let Some(socket) = self.socket() {
            socket.discard_on_close();
        }
    }

    fn socket(&self) -> Option<&Socket> {
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

forward_io!(Stream, each, |_| true);
