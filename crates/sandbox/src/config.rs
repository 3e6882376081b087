//! How the sandbox captures mail. It is a part of `postroad dev`, which has flags and no configuration file.

use std::net::{Ipv4Addr, SocketAddr};

use postroad_core::ByteSize;

/// How the sandbox captures mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxConfig {
    /// Where mail is captured over SMTP.
    pub listen: SocketAddr,
    /// The name in the greeting.
    pub hostname: String,
    /// Captured messages that are kept; at the limit the oldest are dropped.
    pub messages_max: usize,
    /// Captured messages that are kept, in bytes; at the limit the oldest are dropped.
    pub bytes_max: ByteSize,
    /// The largest message: more than ingress accepts, since every hop adds header fields.
    pub message_size_max: ByteSize,
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 2526)),
            hostname: "sandbox.localhost".to_owned(),
            messages_max: 10_000,
            bytes_max: ByteSize::mib(256),
            message_size_max: ByteSize::mib(50),
        }
    }
}
