//! Finds the mail hosts (MX) of a domain, their addresses, and the site they belong to.
//!
//! This crate queries a recursive resolver and applies RFC 5321 5.1, RFC 7505 and our limits.
//! It does not connect to mail hosts and does not decide about deliveries: an error says whether to retry.
//! Only this crate uses hickory. DNSSEC validation is left to the recursive resolver.

mod cache;
mod error;
mod hosts;
mod lookup;
pub mod metrics;
mod resolver;
mod site;

pub use error::DnsError;
pub use hosts::{MailHost, MailHosts};
pub use resolver::{Resolver, ResolverError};
