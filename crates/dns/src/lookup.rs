//! Single queries to the recursive resolver, and the meaning of their answers.

use std::{io, net::IpAddr};

use hickory_resolver::{
    TokioResolver,
    net::{DnsError as HickoryDnsError, NetError},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, RecordType},
    },
};
use postroad_core::Domain;
use rand::seq::SliceRandom;
use rustix::io::Errno;

use crate::{
    DnsError,
    hosts::{MxRecord, RECORDS_MAX},
};

/// The most addresses kept for a host.
const ADDRESSES_MAX: usize = 16;

/// Returns the MX records of a domain; empty when the domain exists without MX.
pub(crate) async fn mx(resolver: &TokioResolver, domain: &Domain) -> Result<Vec<MxRecord>, DnsError> {
    let answer = resolver.lookup(fqdn(domain)?, RecordType::MX).await;
    let Some(lookup) = records(answer)? else { return Ok(Vec::new()) };
    let records = lookup.answers().iter().filter_map(|record| match &record.data {
        RData::MX(mx) => Some(MxRecord { preference: mx.preference, target: without_root(&mx.exchange) }),
        _ => None,
    });
    Ok(records.take(RECORDS_MAX).collect())
}

/// Returns the addresses of a host, IPv6 first, shuffled within each family; empty when it has none.
///
/// # Errors
/// No address was found, and one of the two queries failed.
pub(crate) async fn addresses(resolver: &TokioResolver, host: &Domain) -> Result<Vec<IpAddr>, DnsError> {
    let name = fqdn(host)?;
    let (six, four) =
        tokio::join!(resolver.lookup(name.clone(), RecordType::AAAA), resolver.lookup(name, RecordType::A));
    let mut addresses = Vec::new();
    let mut failure = None;
    for answer in [six, four] {
        match records(answer) {
            Ok(None) | Err(DnsError::NoSuchDomain) => {}
            Ok(Some(lookup)) => {
                let mut family: Vec<IpAddr> =
                    lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
                family.shuffle(&mut postroad_env::Random);
                family.truncate(ADDRESSES_MAX);
                addresses.extend(family);
            }
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if addresses.is_empty() => Err(error),
        _ => Ok(addresses),
    }
}

/// Returns the names of an address (PTR); empty when it has none.
pub(crate) async fn names(resolver: &TokioResolver, address: IpAddr) -> Result<Vec<String>, DnsError> {
    let answer = resolver.lookup(Name::from(address), RecordType::PTR).await;
    let lookup = match records(answer) {
        Ok(Some(lookup)) => lookup,
        Ok(None) | Err(DnsError::NoSuchDomain) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names = lookup.answers().iter().filter_map(|record| match &record.data {
        RData::PTR(name) => Some(without_root(&name.0)),
        _ => None,
    });
    Ok(names.take(ADDRESSES_MAX).collect())
}

/// Classifies an answer: records, no records of this type, no such name, or failure.
fn records(
    answer: Result<hickory_resolver::lookup::Lookup, NetError>,
) -> Result<Option<hickory_resolver::lookup::Lookup>, DnsError> {
    let error = match answer {
        Ok(lookup) => return Ok(Some(lookup)),
        Err(error) => error,
    };
    match &error {
        NetError::Dns(HickoryDnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NoError => Ok(None),
            ResponseCode::NXDomain => Err(DnsError::NoSuchDomain),
            code => Err(DnsError::Temporary(code.to_string())),
        },
        NetError::Io(error) if is_exhausted(error) => Err(DnsError::Exhausted(error.to_string())),
        _ => Err(DnsError::Temporary(error.to_string())),
    }
}

/// This node lacks descriptors or buffers: no name server was asked.
///
/// `EADDRNOTAVAIL` is not among them: it is what a node without IPv6 gets for the IPv6 address of a name server, and so
/// hides that the others did not answer either.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

/// Returns the name with the root label, so that no search list is applied.
fn fqdn(domain: &Domain) -> Result<Name, DnsError> {
    // The parser of names wants host names; labels are bytes.
    let mut name = Name::from_labels(domain.as_str().split('.').map(str::as_bytes))
        .map_err(|error| DnsError::Temporary(format!("invalid query name: {error}")))?;
    name.set_fqdn(true);
    Ok(name)
}

fn without_root(name: &Name) -> String {
    let text = name.to_ascii();
    text.strip_suffix('.').unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d_053_only_what_this_node_is_out_of_is_its_own_fault() {
        let check = |errno: Errno, expected: bool| {
            let error = io::Error::from_raw_os_error(errno.raw_os_error());
            let error = records(Err(NetError::from(error))).unwrap_err();
            assert_eq!(matches!(error, DnsError::Exhausted(_)), expected, "{errno}: {error:?}");
        };
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            check(errno, true);
        }
        // The last one: an IPv6 name server, asked by a node without IPv6.
        for errno in [Errno::CONNREFUSED, Errno::NETUNREACH, Errno::ADDRNOTAVAIL] {
            check(errno, false);
        }
    }
}
