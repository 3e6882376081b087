//! Listeners, TLS, SMTP connections, outgoing connections and the transport between nodes.
//!
//! Only this crate uses rustls and sockets that carry mail.
//! It does not decide what is sent: the sessions of `smtp` and the roles do.

pub mod accept;
pub mod authority;
pub mod certificate;
pub mod connect;
pub mod identity;
pub mod metrics;
pub mod public;
pub mod smtp;
pub mod tls;
pub mod transport;

mod forward;
#[cfg(test)]
mod testing;
mod timer;

pub use authority::{AuthorityError, ClusterAuthority, NodeCertificate};
pub use certificate::{Certificate, KeyId};
pub use connect::{ConnectError, Connector, Denied, Guard, Outside, Socket};
pub use identity::{Expect, PeerIdentity, PeerInfo, Role, peer_info};
pub use tls::{ClientTls, ServerTls, TlsError};
pub use transport::{
    CertificateFacts, Duplex, MemoryNet, Network, NodeListener, NodeStream, NodeTls, Transport,
    server_builder,
};
