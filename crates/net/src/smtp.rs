//! Runs SMTP sessions on connections: moves bytes, enforces timeouts and does TLS handshakes.

pub mod client;
pub mod server;

mod stream;
