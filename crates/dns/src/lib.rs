//! Where mail for a domain goes: its mail hosts with their addresses, and the site they make up.
//!
//! This crate asks a recursive resolver and follows the rules of RFC 5321 5.1, RFC 7505 and the house's bounds.
//! It neither connects to anything nor decides what becomes of a delivery: an error says whether to come back.
//! It is the only door to hickory; DNSSEC is left to the resolver that is asked.

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
