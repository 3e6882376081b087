//! Verifies that a certificate belongs to a node of this cluster.

use std::{fmt, sync::Arc};

use postroad_core::ClusterId;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    identity::{Expect, PeerIdentity},
    tls::provider,
};

/// The certificate is valid but belongs to another peer.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum WrongPeer {
    #[error("the peer belongs to another cluster, `{0}`")]
    Cluster(ClusterId),
    #[error("connected to the wrong node: `{0}`")]
    Node(PeerIdentity),
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn member(certificate: &CertificateDer<'_>, cluster: ClusterId) -> Result<PeerIdentity, Error> {
    let peer = PeerIdentity::of_certificate(certificate).map_err(refused)?;
    if peer.cluster == cluster { Ok(peer) } else { Err(refused(WrongPeer::Cluster(peer.cluster))) }
}

/// Accepts all nodes of this cluster; roles are checked for each request.
#[derive(Debug)]
pub(super) struct ClusterClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    cluster: ClusterId,
}

impl ClusterClientVerifier {
    pub(super) fn new(chain: Arc<dyn ClientCertVerifier>, cluster: ClusterId) -> Self {
        Self { chain, cluster }
    }
}

impl ClientCertVerifier for ClusterClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(certificate, intermediates, now)?;
        member(certificate, self.cluster)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Accepts only the expected node of this cluster, at whatever address it was found.
pub(super) struct ClusterServerVerifier {
    roots: Arc<RootCertStore>,
    cluster: ClusterId,
    expect: Expect,
}

impl ClusterServerVerifier {
    pub(super) fn new(roots: Arc<RootCertStore>, cluster: ClusterId, expect: Expect) -> Self {
        Self { roots, cluster, expect }
    }
}

impl fmt::Debug for ClusterServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterServerVerifier")
            .field("cluster", &self.cluster)
            .field("expect", &self.expect)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ClusterServerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let peer = member(certificate, self.cluster)?;
        if self.expect.is_met_by(&peer) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(refused(WrongPeer::Node(peer)))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
