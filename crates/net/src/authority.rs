//! The certificate authority (CA) of a cluster, which issues the certificates of its nodes.

use std::{
    fs::{self, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, chown},
    path::Path,
    time::{Duration, SystemTime},
};

use postroad_core::{ClusterId, NodeId, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    identity::{PeerIdentity, Role, cluster_of_authority, name_of_authority},
    tls::{TlsError, certificates},
};

const DAY: Duration = Duration::from_secs(86_400);
/// Certificates are backdated because clocks differ.
const BACKDATED: Duration = DAY;
const AUTHORITY_VALID: Duration = DAY.saturating_mul(3653);
const NODE_VALID: Duration = DAY.saturating_mul(365);

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate or key of the CA is unusable.
    #[error("not the certificate and key of a cluster CA")]
    NotAnAuthority(#[source] TlsError),
    /// What the key signs, no node would accept.
    #[error("the key of the cluster CA (`authority.key`) is not that of a certificate in `authority.pem`")]
    OtherKey,
    /// A name is invalid, or the system has no randomness.
    #[error("cannot create certificate")]
    Make(#[from] rcgen::Error),
}

/// The certificate and key of a cluster's CA.
pub struct ClusterAuthority {
    cluster: ClusterId,
    certificate_pem: String,
    key: KeyPair,
}

/// The certificate and key of a node.
pub struct NodeCertificate {
    /// The certificate.
    pub certificate_pem: String,
    /// The private key.
    pub key_pem: String,
}

impl ClusterAuthority {
    /// Generates the CA of a cluster, valid for ten years.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate(cluster: ClusterId) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = authority_params(cluster)?;
        valid_until(&mut params, postroad_env::wall().after(AUTHORITY_VALID));
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self { cluster, certificate_pem, key })
    }

    /// Loads a CA that was generated before.
    ///
    /// # Errors
    /// The PEM is not what [`ClusterAuthority::certificate_pem`] and [`ClusterAuthority::key_pem`] returned, or the key is not
    /// that of one of the certificates.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let certificates =
            certificates(certificate_pem.as_bytes()).map_err(AuthorityError::NotAnAuthority)?;
        let cluster = cluster_of_authority(&certificates[0])
            .map_err(|error| AuthorityError::NotAnAuthority(error.into()))?;
        let key = KeyPair::from_pem(key_pem)?;
        let is_of_key =
            |certificate: &CertificateDer<'_>| certifies(certificate, &key.subject_public_key_info());
        if !certificates.iter().any(is_of_key) {
            return Err(AuthorityError::OtherKey);
        }
        Ok(Self { cluster, certificate_pem: certificate_pem.to_owned(), key })
    }

    /// Issues the certificate of a node, valid for a year. `names` are DNS names and IP addresses for other tools; nodes ignore them.
    ///
    /// # Errors
    /// One of `names` is invalid.
    pub fn issue(
        &self,
        role: Role,
        node: NodeId,
        names: &[String],
    ) -> Result<NodeCertificate, AuthorityError> {
        self.issue_until(role, node, names, postroad_env::wall().after(NODE_VALID))
    }

    /// Issues the certificate of a node, valid until `end`.
    ///
    /// # Errors
    /// One of `names` is invalid.
    pub fn issue_until(
        &self,
        role: Role,
        node: NodeId,
        names: &[String],
        end: Timestamp,
    ) -> Result<NodeCertificate, AuthorityError> {
        let identity = PeerIdentity { cluster: self.cluster, role, node };
        let mut params = CertificateParams::new(names)?;
        params.subject_alt_names.push(SanType::URI(identity.to_string().try_into()?));
        params.distinguished_name = common_name(format!("postroad {role} {node}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        valid_until(&mut params, end);
        let key = KeyPair::generate()?;
        let issuer = Issuer::new(authority_params(self.cluster)?, &self.key);
        let certificate_pem = params.signed_by(&key, &issuer)?.pem();
        Ok(NodeCertificate { certificate_pem, key_pem: key.serialize_pem() })
    }

    /// Returns the cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Returns the CA certificate, which every node needs.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Returns the CA key. No node needs it; keep it offline.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

impl NodeCertificate {
    /// Writes both to new files; only the owner can read the key.
    ///
    /// # Errors
    /// A file exists already or cannot be written.
    pub fn write(&self, certificate: &Path, key: &Path) -> io::Result<()> {
        write_new_file(certificate, self.certificate_pem.as_bytes())?;
        write_secret(key, self.key_pem.as_bytes())
    }

    /// Writes both in place of older ones.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn replace(&self, certificate: &Path, key: &Path) -> io::Result<()> {
        // A node that reads the files between these two finds that they do not match, and reads them again in a minute.
        replace_file(key, self.key_pem.as_bytes())?;
        replace_file(certificate, self.certificate_pem.as_bytes())
    }
}

impl std::fmt::Debug for ClusterAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterAuthority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for NodeCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeCertificate").finish_non_exhaustive()
    }
}

/// Writes a new file; the umask says who else can read it, which in the roles and commands of `postroad` is nobody.
///
/// # Errors
/// The file exists already or cannot be written.
pub fn write_new_file(path: &Path, content: &[u8]) -> io::Result<()> {
    write_new(path, content, 0o644)
}

/// Writes a new file that only the owner can read, whatever the umask.
///
/// # Errors
/// The file exists already or cannot be written.
pub fn write_secret(path: &Path, content: &[u8]) -> io::Result<()> {
    write_new(path, content, 0o600)
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Writes a file at once: readers see the old content or the new one. Owner and mode stay those of the old file; only the
/// owner can read a new one.
///
/// # Errors
/// The file cannot be written, or the owner of the old one cannot be kept.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let old = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        old => Some(old?),
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // Left by a call that was interrupted.
    let _ = fs::remove_file(&new);
    let written = write_new(&new, content, 0o600)
        .and_then(|()| old.map_or(Ok(()), |old| keep_owner_and_mode(&new, &old)))
        .and_then(|()| fs::rename(&new, path));
    written.inspect_err(|_| drop(fs::remove_file(&new)))?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn keep_owner_and_mode(new: &Path, old: &Metadata) -> io::Result<()> {
    let found = fs::metadata(new)?;
    if (old.uid(), old.gid()) != (found.uid(), found.gid()) {
        chown(new, Some(old.uid()), Some(old.gid()))?;
    }
    fs::set_permissions(new, old.permissions())
}

/// Whether a certificate is of a public key.
fn certifies(certificate: &CertificateDer<'_>, public_key: &[u8]) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.public_key().raw == public_key)
}

/// The parameters of the CA certificate, from which the issuer is rebuilt.
fn authority_params(cluster: ClusterId) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(name_of_authority(cluster).try_into()?)];
    params.distinguished_name = common_name(format!("postroad cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn common_name(name: String) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn valid_until(params: &mut CertificateParams, end: Timestamp) {
    let as_system_time = |at: Timestamp| SystemTime::UNIX_EPOCH + Duration::from_millis(at.as_millis());
    params.not_before = as_system_time(postroad_env::wall().min(end).before(BACKDATED)).into();
    params.not_after = as_system_time(end).into();
}
