//! The DNS resolver that a configuration or a flag sets.

use std::net::SocketAddr;

use postroad_dns::Resolver;

/// Returns the resolver at an address, or the system's.
///
/// # Errors
/// The system's configuration cannot be read.
pub(crate) fn resolver(address: Option<SocketAddr>) -> anyhow::Result<Resolver> {
    Ok(match address {
        Some(address) => Resolver::at(address),
        None => Resolver::system()?,
    })
}
