//! SMTP as values: codecs and sessions without I/O or a clock.

pub mod command;
pub mod data;
pub mod headers;
pub mod server;
