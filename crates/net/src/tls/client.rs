//! TLS policies for connections to other mail servers.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::TlsConnector;

use super::{TlsError, certificates, provider};

/// The TLS policy of connections to other mail servers.
///
/// TLS sessions are resumed only under the same policy: clones share a session cache.
#[derive(Clone)]
pub struct ClientTls {
    connector: TlsConnector,
    verified: bool,
}

impl ClientTls {
    /// Accepts any certificate: encryption without authentication (RFC 7435).
    #[must_use]
    pub fn opportunistic() -> Self {
        let verifier = Arc::new(AnyCertificate { provider: provider() });
        let config = builder().dangerous().with_custom_certificate_verifier(verifier);
        Self::new(config.with_no_client_auth(), false)
    }

    /// Requires a certificate for the server's name from a CA that browsers trust.
    #[must_use]
    pub fn verified() -> Self {
        Self::with_roots(RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()))
    }

    /// Requires a certificate for the server's name from one of these CAs.
    ///
    /// # Errors
    /// The PEM has no usable CA certificate.
    pub fn trusting(authorities_pem: &[u8]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(authorities_pem)? {
            roots.add(authority).map_err(TlsError::Unusable)?;
        }
        Ok(Self::with_roots(roots))
    }

    fn with_roots(roots: RootCertStore) -> Self {
        Self::new(builder().with_root_certificates(roots).with_no_client_auth(), true)
    }

    fn new(config: ClientConfig, verified: bool) -> Self {
        Self { connector: TlsConnector::from(Arc::new(config)), verified }
    }

    /// Returns true when the server's name is verified.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.verified
    }

    pub(crate) fn connector(&self) -> &TlsConnector {
        &self.connector
    }
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").field("verified", &self.verified).finish_non_exhaustive()
    }
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has both versions")
}

/// Accepts any certificate, but verifies that the peer has its private key.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
