//! What a certificate says of itself: whose it is, how long it is valid, and which key signed it.
//!
//! Nothing here is verified; [`NodeTls`](crate::NodeTls) does that.

use std::{fmt, path::Path};

use postroad_core::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::{
    extensions::ParsedExtension,
    prelude::{FromDer, X509Certificate},
};

use crate::{
    identity::{IdentityError, PeerIdentity},
    tls::{TlsError, certificates, read},
};

/// The most bytes of a key's identifier: SHA-256 has 32.
const KEY_ID_BYTES_MAX: usize = 64;
/// How many of them people see.
const KEY_ID_BYTES_SHOWN: usize = 8;

/// The identifier of a CA's key, which the certificates that it signed name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Box<[u8]>);

impl KeyId {
    /// Reads an identifier as another node sent it; `None` for one that no certificate has.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (1..=KEY_ID_BYTES_MAX).contains(&bytes.len()).then(|| Self(bytes.into()))
    }

    /// Returns its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The first bytes in hexadecimal.
impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(KEY_ID_BYTES_SHOWN).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The node that it identifies; `None` for a CA's, and for one of another purpose, such as a listener's.
    pub identity: Option<PeerIdentity>,
    /// Its first moment.
    pub not_before: Timestamp,
    /// Its last moment.
    pub not_after: Timestamp,
    /// The key that it certifies, if it says so: every CA certificate does.
    pub key: Option<KeyId>,
    /// The CA's key that signed it, if it says so.
    pub signed_by: Option<KeyId>,
}

impl Certificate {
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::Certificate)?;
        let (mut key, mut signed_by) = (None, None);
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => key = KeyId::from_bytes(id.0),
                ParsedExtension::AuthorityKeyIdentifier(authority) => {
                    signed_by = authority.key_identifier.as_ref().and_then(|id| KeyId::from_bytes(id.0));
                }
                _ => {}
            }
        }
        let validity = parsed.validity();
        Ok(Self {
            identity: PeerIdentity::of_certificate(certificate).ok(),
            not_before: moment(validity.not_before.timestamp()),
            not_after: moment(validity.not_after.timestamp()),
            key,
            signed_by,
        })
    }

    /// Reads every certificate of a PEM file, in its order; there is at least one.
    ///
    /// # Errors
    /// The file is unreadable or has no valid certificate.
    pub fn read_all(path: &Path) -> Result<Vec<Self>, TlsError> {
        Self::all_of_pem(&read(&path.to_owned())?)
    }

    /// Reads the first certificate of a PEM file: the one that the others sign.
    ///
    /// # Errors
    /// The file is unreadable or has no valid certificate.
    pub fn read_first(path: &Path) -> Result<Self, TlsError> {
        Ok(Self::read_all(path)?.swap_remove(0))
    }

    /// Reads every certificate in PEM, in its order; there is at least one.
    ///
    /// # Errors
    /// The PEM has no valid certificate.
    pub fn all_of_pem(pem: &[u8]) -> Result<Vec<Self>, TlsError> {
        certificates(pem)?.iter().map(|certificate| Ok(Self::of(certificate)?)).collect()
    }
}

/// Dates before 1970 are long past, whichever.
fn moment(seconds: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use postroad_core::{ClusterId, NodeId};

    use super::*;
    use crate::{authority::ClusterAuthority, identity::Role};

    fn only(pem: &str) -> Certificate {
        Certificate::all_of_pem(pem.as_bytes()).unwrap().swap_remove(0)
    }

    #[test]
    fn a_certificate_names_its_node_its_end_and_the_key_that_signed_it() {
        let [ours, other] = [(); 2].map(|()| ClusterAuthority::generate(ClusterId(7)).unwrap());
        let end = Timestamp::from_millis(4_000_000_000_000);
        let issued = ours.issue_until(Role::Queue, NodeId(3), &[], end).unwrap();
        let node = only(&issued.certificate_pem);
        let expected = PeerIdentity { cluster: ClusterId(7), role: Role::Queue, node: NodeId(3) };
        assert_eq!(node.identity, Some(expected));
        assert_eq!(node.not_after, end);
        let (ours_ca, other_ca) = (only(ours.certificate_pem()), only(other.certificate_pem()));
        assert!(ours_ca.key.is_some() && ours_ca.identity.is_none());
        assert_eq!(node.signed_by, ours_ca.key);
        assert_ne!(node.signed_by, other_ca.key);
        let both = format!("{}{}", ours.certificate_pem(), other.certificate_pem());
        assert_eq!(Certificate::all_of_pem(both.as_bytes()).unwrap(), [ours_ca, other_ca]);
        assert!(Certificate::all_of_pem(b"nothing").is_err());
    }

    #[test]
    fn people_see_the_first_bytes_of_a_key_and_nodes_all_of_them() {
        let id = KeyId::from_bytes(&[0xab; 20]).unwrap();
        assert_eq!(id.to_string(), "abababababababab");
        assert_eq!(KeyId::from_bytes(id.as_bytes()), Some(id));
        assert_eq!(KeyId::from_bytes(&[]), None);
        assert_eq!(KeyId::from_bytes(&[0; 65]), None);
    }
}
