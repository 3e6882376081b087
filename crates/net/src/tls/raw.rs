//! TLS streams for protocols that this crate does not implement, such as test clients and sinks.

use std::io;

use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use super::{ClientTls, ServerTls};

/// Does the server side of handshakes for one listener.
#[derive(Clone)]
pub struct Handshaker(TlsAcceptor);

impl ServerTls {
    /// Returns the handshaker of one listener.
    #[must_use]
    pub fn handshaker(&self) -> Handshaker {
        Handshaker(self.acceptor(&[]))
    }
}

impl Handshaker {
    /// Does one handshake. The caller must not hold unprocessed plaintext from the stream.
    ///
    /// # Errors
    /// The handshake failed.
    pub async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
        self.0.accept(stream).await
    }
}

impl std::fmt::Debug for Handshaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshaker").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Does the client side of a handshake with a server of this name.
    ///
    /// # Errors
    /// The name is invalid, or the handshake failed.
    pub async fn connect(
        &self,
        stream: TcpStream,
        server_name: &str,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
        let name = ServerName::try_from(server_name.to_owned()).map_err(io::Error::other)?;
        self.connector().connect(name, stream).await
    }
}
