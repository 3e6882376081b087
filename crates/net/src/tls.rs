//! TLS of listeners and clients: certificates and keys from PEM, reloaded without a restart.
//!
//! The crypto provider is set explicitly and does not depend on a process-wide default.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    crypto::{CryptoProvider, aws_lc_rs},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

mod client;
mod raw;
mod server;

pub use client::ClientTls;
pub use raw::Handshaker;
pub use server::ServerTls;

/// How often a certificate and a key that do not match are read, and the pause between: they may be being replaced, one after
/// the other.
const READS_MAX: u32 = 10;
const READ_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Why TLS cannot be set up; always a fault of this node's configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read `{0}`")]
    Read(PathBuf, #[source] std::io::Error),
    /// The PEM has no valid certificate.
    #[error("no valid certificate in the PEM file")]
    Certificate,
    /// The PEM has no valid private key.
    #[error("no valid private key in the PEM file")]
    Key,
    /// Certificate and key do not match, or rustls does not support them.
    #[error("certificate unusable")]
    Unusable(#[source] rustls::Error),
    /// The certificate has no node identity.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    /// A certificate could not be created.
    #[error("cannot create certificate")]
    Make(#[source] rcgen::Error),
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::LazyLock<Arc<CryptoProvider>> =
        std::sync::LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

/// Loads files, again where certificate and key do not match. Blocks for half a second where they never do.
pub(crate) fn load_matching<T>(mut load: impl FnMut() -> Result<T, TlsError>) -> Result<T, TlsError> {
    for _ in 1..READS_MAX {
        match load() {
            Err(TlsError::Unusable(rustls::Error::InconsistentKeys(_))) => {
                postroad_env::pause(READ_AGAIN_AFTER)
            }
            loaded => return loaded,
        }
    }
    load()
}

/// Parses a certificate chain and its key, which must match.
pub(crate) fn certified_key(certificate_pem: &[u8], key_pem: &[u8]) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate_pem)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| TlsError::Key)?;
    // This also checks that they match: during a renewal only one of the files may be new.
    CertifiedKey::from_der(chain, key, &provider()).map_err(TlsError::Unusable)
}

pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or(TlsError::Certificate)
}

pub(crate) fn read(path: &PathBuf) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Read(path.clone(), error))
}

#[cfg(test)]
mod tests {
    use rustls::{Error, InconsistentKeys};

    use super::*;

    #[test]
    fn files_that_are_being_replaced_are_read_again_and_others_are_not() {
        let check = |results: &[Option<Error>], reads: usize, loads: bool| {
            let mut made = 0;
            let loaded = load_matching(|| {
                made += 1;
                // The last one repeats.
                let result = results.get(made - 1).or(results.last()).expect("there is one");
                result.clone().map_or(Ok(()), |error| Err(TlsError::Unusable(error)))
            });
            assert_eq!((made, loaded.is_ok()), (reads, loads), "{results:?}");
        };
        let mismatch = || Some(Error::InconsistentKeys(InconsistentKeys::KeyMismatch));
        check(&[None], 1, true);
        check(&[mismatch(), mismatch(), None], 3, true);
        check(&[mismatch()], 10, false);
        check(&[Some(Error::DecryptError), None], 1, false);
    }
}
