//! SMTP codecs and sessions, without I/O and without a clock.

pub mod client;
pub mod command;
pub mod data;
pub mod headers;
pub mod reply;
pub mod server;
pub mod tolerance;
