//! SMTP as values: codecs and sessions without I/O or a clock.

pub mod data;
