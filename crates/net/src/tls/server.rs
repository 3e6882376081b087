//! The certificate of public listeners.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rcgen::CertifiedKey as SelfSigned;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::Ticketer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;

use super::{TlsError, certified_key, load_matching, provider, read};
use crate::{certificate::Certificate, metrics};

/// The certificate that listeners present, whatever server name the client sends (SNI).
///
/// A reload affects new connections only.
#[derive(Clone, Debug)]
pub struct ServerTls {
    current: Arc<Current>,
    source: Option<Arc<Source>>,
}

#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

/// The files of the certificate, and their last loaded content.
#[derive(Debug)]
struct Source {
    certificate: PathBuf,
    key: PathBuf,
    loaded: Mutex<(Vec<u8>, Vec<u8>)>,
}

impl ServerTls {
    /// Loads a certificate chain and its key from PEM files.
    ///
    /// # Errors
    /// A file cannot be read, or certificate and key do not match or are unusable.
    pub fn from_files(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Self, TlsError> {
        let (certificate, key) = (certificate.into(), key.into());
        let (loaded, mut tls) = load_matching(|| {
            let loaded = (read(&certificate)?, read(&key)?);
            let tls = Self::from_pem(&loaded.0, &loaded.1)?;
            Ok((loaded, tls))
        })?;
        tls.source = Some(Arc::new(Source { certificate, key, loaded: Mutex::new(loaded) }));
        Ok(tls)
    }

    /// Uses a certificate chain and its key in PEM; they cannot be reloaded.
    ///
    /// # Errors
    /// Certificate and key do not match or are unusable.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let current = Current(ArcSwap::from_pointee(certified_key(certificate, key)?));
        Ok(Self { current: Arc::new(current), source: None })
    }

    /// Generates a self-signed certificate: protects against eavesdropping only.
    ///
    /// # Errors
    /// A name is invalid, or the system has no randomness.
    pub fn self_signed(names: &[String]) -> Result<Self, TlsError> {
        let (certificate, key) = Self::self_signed_pem(names)?;
        Self::from_pem(certificate.as_bytes(), key.as_bytes())
    }

    /// Generates a self-signed certificate; returns it and its key in PEM, to be kept in files.
    ///
    /// # Errors
    /// A name is invalid, or the system has no randomness.
    pub fn self_signed_pem(names: &[String]) -> Result<(String, String), TlsError> {
        let SelfSigned { cert, signing_key } =
            rcgen::generate_simple_self_signed(names).map_err(TlsError::Make)?;
        Ok((cert.pem(), signing_key.serialize_pem()))
    }

    /// Reloads the files; returns true when they changed. On an error the old certificate stays in use.
    ///
    /// # Errors
    /// A file cannot be read, or certificate and key do not match or are unusable.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let Some(source) = &self.source else { return Ok(false) };
        let found = (read(&source.certificate)?, read(&source.key)?);
        let mut loaded = source.loaded.lock();
        if *loaded == found {
            return Ok(false);
        }
        self.current.0.store(Arc::new(certified_key(&found.0, &found.1)?));
        *loaded = found;
        drop(loaded);
        self.record_end();
        Ok(true)
    }

    /// Records when the certificate ends; each reload does so again.
    pub fn record_end(&self) {
        let current = self.current.0.load();
        if let Some(Ok(certificate)) = current.cert.first().map(Certificate::of) {
            metrics::certificate_ends("listener", certificate.not_after);
        }
    }

    /// Returns an acceptor for one listener.
    ///
    /// Each has its own ticket keys: a session of one listener cannot be resumed at another (S-405).
    pub(crate) fn acceptor(&self, protocols: &[&[u8]]) -> TlsAcceptor {
        // TLS 1.2 and 1.3; rustls supports no older version and no renegotiation.
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has both versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>);
        config.ticketer = Ticketer::new().expect("the system has randomness");
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}
