//! What an operator can say about the sandbox.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The `[sandbox]` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxConfig {
    /// Where mail to be captured is taken over SMTP.
    pub listen: SocketAddr,
    /// The name it goes by in its greeting.
    pub hostname: String,
    /// Captured messages that are kept; the oldest go.
    pub messages_max: usize,
    /// Bytes of captured messages that are kept; the oldest go.
    pub bytes_max: u64,
    /// Bytes of one message: more than ingress takes, since every hop adds to the header.
    pub message_size_max: u64,
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 2526)),
            hostname: "sandbox.localhost".to_owned(),
            messages_max: 10_000,
            bytes_max: 256 << 20,
            message_size_max: 52_428_800,
        }
    }
}
