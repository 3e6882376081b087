//! The identity of the peer on a connection between nodes, and which requests it may send.

use std::{fmt, str::FromStr};

use postroad_core::{ClusterId, NodeId};
use rustls_pki_types::CertificateDer;
use tonic::{Request, Status};
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

/// The role of a node, which decides what it may request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Accepts mail from clients.
    Ingress,
    /// Stores mail durably.
    Queue,
    /// Delivers mail.
    Outbound,
    /// Keeps the history and serves the console.
    Control,
    /// An operator with the command line.
    Operator,
}

impl Role {
    const NAMES: [(Self, &'static str); 5] = [
        (Self::Ingress, "ingress"),
        (Self::Queue, "queue"),
        (Self::Outbound, "outbound"),
        (Self::Control, "control"),
        (Self::Operator, "operator"),
    ];

    /// Returns the name of the role in certificates and commands.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(role, _)| *role == self).map_or("", |(_, name)| name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Self::NAMES
            .iter()
            .find(|(_, name)| *name == text)
            .map(|(role, _)| *role)
            .ok_or(IdentityError::Malformed)
    }
}

/// The identity in a node's certificate, as the URI `postroad://cluster/ID/role/ROLE/node/N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// The cluster the node belongs to.
    pub cluster: ClusterId,
    /// The role of the node.
    pub role: Role,
    /// The id of the node.
    pub node: NodeId,
}

/// Why a certificate carries no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The certificate is not valid X.509.
    #[error("the certificate is not valid X.509")]
    Certificate,
    /// The certificate has no `postroad:` URI, or more than one.
    #[error("the certificate must have exactly one `postroad:` URI")]
    NotOne,
    /// The URI is not an identity.
    #[error("the `postroad:` URI is not a node identity")]
    Malformed,
}

const SCHEME: &str = "postroad://";

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, role, node } = self;
        write!(f, "{SCHEME}cluster/{cluster}/role/{role}/node/{node}")
    }
}

impl FromStr for PeerIdentity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let path = text.strip_prefix(SCHEME).ok_or(IdentityError::Malformed)?;
        let parts: Vec<&str> = path.split('/').collect();
        let ["cluster", cluster, "role", role, "node", node] = parts[..] else {
            return Err(IdentityError::Malformed);
        };
        Ok(Self {
            cluster: cluster.parse().map_err(|_| IdentityError::Malformed)?,
            role: role.parse()?,
            node: node.parse().map_err(|_| IdentityError::Malformed)?,
        })
    }
}

impl PeerIdentity {
    /// Reads the identity from a certificate. Does not verify the certificate.
    ///
    /// # Errors
    /// The certificate carries no identity, or more than one.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        postroad_uri(certificate)?.parse()
    }
}

/// Reads the cluster id from a CA certificate, named `postroad://cluster/ID`.
pub(crate) fn cluster_of_authority(certificate: &CertificateDer<'_>) -> Result<ClusterId, IdentityError> {
    let name = postroad_uri(certificate)?;
    let id = name.strip_prefix(SCHEME).and_then(|path| path.strip_prefix("cluster/"));
    id.and_then(|id| id.parse().ok()).ok_or(IdentityError::Malformed)
}

/// Returns the URI in the CA certificate of a cluster.
pub(crate) fn name_of_authority(cluster: ClusterId) -> String {
    format!("{SCHEME}cluster/{cluster}")
}

fn postroad_uri(certificate: &CertificateDer<'_>) -> Result<String, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::Certificate)?;
    let mut names = parsed.extensions().iter().flat_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => names.general_names.as_slice(),
        _ => &[],
    });
    let mut next = || {
        names.find_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some((*uri).to_owned()),
            _ => None,
        })
    };
    match (next(), next()) {
        (Some(name), None) => Ok(name),
        _ => Err(IdentityError::NotOne),
    }
}

/// The peer that a channel must reach; the connection to any other peer is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The role the peer must have.
    pub role: Role,
    /// The node it must be; `None` for any of that role.
    pub node: Option<NodeId>,
}

impl Expect {
    /// Expects any node of a role.
    #[must_use]
    pub fn any(role: Role) -> Self {
        Self { role, node: None }
    }

    /// Expects one node.
    #[must_use]
    pub fn node(role: Role, node: NodeId) -> Self {
        Self { role, node: Some(node) }
    }

    /// Returns true when `peer` is the expected one.
    #[must_use]
    pub fn is_met_by(&self, peer: &PeerIdentity) -> bool {
        self.role == peer.role && self.node.is_none_or(|node| node == peer.node)
    }
}

/// The peer of a connection, attached to each of its requests.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// The identity in the peer's certificate; `None` over plain TCP, memory pipes and public listeners.
    pub identity: Option<PeerIdentity>,
    /// The peer's address, or `memory`.
    pub address: String,
}

impl PeerInfo {
    /// Checks that the peer has one of `roles`.
    ///
    /// A peer without an identity passes: the operator has chosen to trust that network.
    /// Public listeners must not serve requests of nodes.
    ///
    /// # Errors
    /// The peer has another role.
    pub fn require(&self, roles: &[Role]) -> Result<(), Status> {
        match &self.identity {
            Some(peer) if !roles.contains(&peer.role) => {
                Err(Status::permission_denied(format!("the role `{}` may not send this request", peer.role)))
            }
            _ => Ok(()),
        }
    }
}

/// Returns the peer that sent a request.
#[must_use]
pub fn peer_info<T>(request: &Request<T>) -> Option<&PeerInfo> {
    request.extensions().get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c_171_an_identity_round_trips_as_text() {
        let identity = PeerIdentity { cluster: ClusterId(7), role: Role::Outbound, node: NodeId(12) };
        assert_eq!(identity.to_string(), "postroad://cluster/7/role/outbound/node/12");
        assert_eq!(identity.to_string().parse(), Ok(identity));
        for text in [
            "",
            "postroad://cluster/7",
            "postroad://cluster/7/role/outbound/node/",
            "postroad://cluster/7/role/outbound/node/1/x",
            "postroad://cluster/7/role/postmaster/node/1",
            "https://cluster/7/role/queue/node/1",
        ] {
            assert_eq!(text.parse::<PeerIdentity>(), Err(IdentityError::Malformed), "{text}");
        }
    }

    #[test]
    fn c_171_only_listed_roles_are_admitted() {
        let info = |role| PeerInfo {
            identity: Some(PeerIdentity { cluster: ClusterId(1), role, node: NodeId(1) }),
            address: "memory".to_owned(),
        };
        assert!(info(Role::Queue).require(&[Role::Queue, Role::Ingress]).is_ok());
        assert!(info(Role::Outbound).require(&[Role::Queue, Role::Ingress]).is_err());
        assert!(PeerInfo { identity: None, address: "memory".to_owned() }.require(&[Role::Queue]).is_ok());
    }
}
