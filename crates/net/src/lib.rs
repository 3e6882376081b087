//! Listeners, TLS, the drivers of SMTP sessions, the guarded connector and the transport between nodes.
//!
//! This is the one door to rustls and to sockets that carry mail.
//! What is said on a connection is decided elsewhere: by the sessions of `smtp` and by the roles.

pub mod accept;
pub mod authority;
pub mod connect;
pub mod identity;
pub mod metrics;
pub mod public;
pub mod smtp;
pub mod tls;
pub mod transport;

mod timer;
#[cfg(test)]
mod testing;

pub use authority::{AuthorityError, ClusterAuthority, NodeCertificate};
pub use connect::{ConnectError, Denied, Guard};
pub use identity::{Expect, PeerIdentity, PeerInfo, Role, peer_info};
pub use tls::{ClientTls, ServerTls, TlsError};
pub use transport::{MemoryNet, NodeListener, NodeStream, NodeTls, Transport, server_builder};
