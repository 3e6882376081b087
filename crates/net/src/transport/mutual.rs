//! Mutual TLS between nodes, with certificates from the cluster's CA that carry the node's identity.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{
    ClientConfig, Error, RootCertStore, ServerConfig,
    client::danger::ServerCertVerifier,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::NodeStream;
use crate::{
    certificate::Certificate,
    identity::{Expect, PeerIdentity},
    metrics,
    tls::{TlsError, certificates, certified_key, load_matching, provider, read},
};

mod verify;

use verify::{ClusterClientVerifier, ClusterServerVerifier};

/// The certificate of this node and the CA it trusts; clones are reloaded together.
#[derive(Clone, Debug)]
pub struct NodeTls {
    current: Arc<ArcSwap<Keys>>,
    source: Option<Arc<Source>>,
}

#[derive(Debug)]
struct Source {
    /// CA, certificate, key.
    paths: [PathBuf; 3],
    loaded: Mutex<[Vec<u8>; 3]>,
}

#[derive(Debug)]
struct Keys {
    identity: PeerIdentity,
    own: Arc<CertifiedKey>,
    facts: CertificateFacts,
    roots: Arc<RootCertStore>,
    server: Arc<ServerConfig>,
}

/// The certificates that a node uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The node's own.
    pub own: Certificate,
    /// Those of the CAs that it trusts: two while the cluster changes from one to the other.
    pub authorities: Vec<Certificate>,
}

impl NodeTls {
    /// Loads the CA certificate, this node's certificate and its key from PEM files.
    ///
    /// # Errors
    /// A file is unreadable or unusable, or the certificate has no node identity.
    pub fn from_files(
        authority: impl Into<PathBuf>,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Result<Self, TlsError> {
        let paths = [authority.into(), certificate.into(), key.into()];
        let (loaded, mut tls) = load_matching(|| {
            let loaded = read_all(&paths)?;
            let tls = Self::from_pem(&loaded[0], &loaded[1], &loaded[2])?;
            Ok((loaded, tls))
        })?;
        tls.source = Some(Arc::new(Source { paths, loaded: Mutex::new(loaded) }));
        Ok(tls)
    }

    /// Uses the CA certificate, this node's certificate and its key in PEM; they cannot be reloaded.
    ///
    /// # Errors
    /// They are unusable, or the certificate has no node identity.
    pub fn from_pem(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let keys = Keys::new(authority, certificate, key)?;
        Ok(Self { current: Arc::new(ArcSwap::from_pointee(keys)), source: None })
    }

    /// Reloads the files; returns true when they changed. On an error the old ones stay in use.
    ///
    /// # Errors
    /// As for [`NodeTls::from_files`].
    pub fn reload(&self) -> Result<bool, TlsError> {
        let Some(source) = &self.source else { return Ok(false) };
        let found = read_all(&source.paths)?;
        let mut loaded = source.loaded.lock();
        if *loaded == found {
            return Ok(false);
        }
        self.current.store(Arc::new(Keys::new(&found[0], &found[1], &found[2])?));
        *loaded = found;
        drop(loaded);
        self.record_ends();
        Ok(true)
    }

    /// Records when the certificates of this node and of the CA end; each reload does so again.
    pub fn record_ends(&self) {
        let CertificateFacts { own, authorities } = &self.current.load().facts;
        metrics::certificate_ends("node", own.not_after);
        if let Some(last) = authorities.iter().map(|authority| authority.not_after).max() {
            metrics::certificate_ends("authority", last);
        }
    }

    /// Returns the identity of this node.
    #[must_use]
    pub fn identity(&self) -> PeerIdentity {
        self.current.load().identity
    }

    /// Returns what the certificates in use say of themselves.
    #[must_use]
    pub fn certificates(&self) -> CertificateFacts {
        self.current.load().facts.clone()
    }

    /// Checks this node's certificate as another node would now: its issuer and its validity.
    ///
    /// # Errors
    /// Another node would refuse it.
    pub fn verify(&self) -> Result<(), TlsError> {
        let keys = self.current.load();
        let refused = |error: &dyn std::fmt::Display| TlsError::Unusable(Error::General(error.to_string()));
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&keys.roots), provider())
            .build()
            .map_err(|error| refused(&error))?;
        let (own, chain) = keys.own.cert.split_first().ok_or(TlsError::Certificate)?;
        verifier.verify_client_cert(own, chain, UnixTime::now()).map(drop).map_err(TlsError::Unusable)
    }

    pub(super) async fn accept(&self, stream: TcpStream, address: SocketAddr) -> io::Result<NodeStream> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.current.load().server));
        let stream = acceptor.accept(stream).await?;
        let identity = identity_of(stream.get_ref().1.peer_certificates())?;
        Ok(NodeStream::tls(TlsStream::Server(stream), Some(identity), address.to_string()))
    }

    pub(super) async fn connect(&self, address: &str, expect: Expect) -> io::Result<NodeStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let config = self.current.load().client(expect).map_err(io::Error::other)?;
        let connector = TlsConnector::from(Arc::new(config));
        // Nodes are identified by their certificate, not by a DNS name; this name is ignored.
        let name = ServerName::try_from("postroad").expect("a single label is a valid name");
        let stream = connector.connect(name, stream).await.inspect_err(|error| {
            metrics::node_handshake_failed("connect");
            tracing::warn!(%error, peer = address, "TLS handshake with a node failed");
        })?;
        let identity = identity_of(stream.get_ref().1.peer_certificates())?;
        Ok(NodeStream::tls(TlsStream::Client(stream), Some(identity), address.to_owned()))
    }
}

fn read_all(paths: &[PathBuf; 3]) -> Result<[Vec<u8>; 3], TlsError> {
    Ok([read(&paths[0])?, read(&paths[1])?, read(&paths[2])?])
}

fn identity_of(certificates: Option<&[CertificateDer<'_>]>) -> io::Result<PeerIdentity> {
    let certificate = certificates.and_then(|chain| chain.first()).ok_or(ErrorKind::PermissionDenied)?;
    PeerIdentity::of_certificate(certificate).map_err(io::Error::other)
}

impl Keys {
    fn new(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let own = Arc::new(certified_key(certificate, key)?);
        let leaf = own.end_entity_cert().map_err(TlsError::Unusable)?;
        let identity = PeerIdentity::of_certificate(leaf)?;
        let (mut roots, mut authorities) = (RootCertStore::empty(), Vec::new());
        for certificate in certificates(authority)? {
            authorities.push(Certificate::of(&certificate)?);
            roots.add(certificate).map_err(TlsError::Unusable)?;
        }
        let roots = Arc::new(roots);
        let facts = CertificateFacts { own: Certificate::of(leaf)?, authorities };
        let server = Arc::new(server(&own, &roots, identity)?);
        Ok(Self { identity, own, facts, roots, server })
    }

    fn client(&self, expect: Expect) -> Result<ClientConfig, TlsError> {
        let verifier: Arc<dyn ServerCertVerifier> =
            Arc::new(ClusterServerVerifier::new(Arc::clone(&self.roots), self.identity.cluster, expect));
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Unusable)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::clone(&self.own))));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = false;
        Ok(config)
    }
}

fn server(
    own: &CertifiedKey,
    roots: &Arc<RootCertStore>,
    identity: PeerIdentity,
) -> Result<ServerConfig, TlsError> {
    let chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
        .build()
        .map_err(|error| TlsError::Unusable(rustls::Error::General(error.to_string())))?;
    let verifier: Arc<dyn ClientCertVerifier> = Arc::new(ClusterClientVerifier::new(chain, identity.cluster));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Unusable)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // No resumption: every connection verifies the peer's certificate.
    config.send_tls13_tickets = 0;
    Ok(config)
}
