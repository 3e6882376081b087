//! The drivers of SMTP sessions: they move bytes, keep time, and open TLS; what is said the sessions decide.

pub mod client;
pub mod server;

mod stream;
