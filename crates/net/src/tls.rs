//! TLS as listeners and clients use it: keys from PEM, reloaded without a restart.
//!
//! One crypto provider, named explicitly, so that no process-wide default decides.

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    crypto::{CryptoProvider, aws_lc_rs},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::time;

mod client;
mod raw;
mod server;

pub use client::ClientTls;
pub use raw::Handshaker;
pub use server::ServerTls;

/// Why TLS cannot be had; all of them are faults of this node's configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read `{0}`")]
    Read(PathBuf, #[source] std::io::Error),
    /// There is no certificate in the PEM, or what is there is none.
    #[error("not a certificate in PEM")]
    Certificate,
    /// There is no private key in the PEM, or what is there is none.
    #[error("not a private key in PEM")]
    Key,
    /// Certificate and key do not fit together, or rustls does not take them.
    #[error("the certificate cannot be used")]
    Unusable(#[source] rustls::Error),
    /// The certificate does not say which node it is for.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[source] rcgen::Error),
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::LazyLock<Arc<CryptoProvider>> =
        std::sync::LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

/// Reads a chain and its key; both must belong together.
pub(crate) fn certified_key(certificate_pem: &[u8], key_pem: &[u8]) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate_pem)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| TlsError::Key)?;
    // This also checks that they fit: files that are being replaced may be seen half-way.
    CertifiedKey::from_der(chain, key, &provider()).map_err(TlsError::Unusable)
}

pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or(TlsError::Certificate)
}

pub(crate) fn read(path: &PathBuf) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Read(path.clone(), error))
}

/// Calls `reload` every so often until `shutdown` is over.
///
/// What cannot be loaded is logged, and what was loaded before stays in use.
pub async fn keep_fresh(
    reload: impl Fn() -> Result<bool, TlsError>,
    every: Duration,
    shutdown: impl Future<Output = ()>,
) {
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            () = time::sleep(every) => {}
        }
        match reload() {
            Ok(true) => tracing::info!("certificate reloaded"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "certificate not reloaded")
            }
        }
    }
}
