//! Turns the MX records of a domain into its mail hosts.

use std::net::IpAddr;

use postroad_core::Domain;
use rand::seq::SliceRandom;

use crate::DnsError;

/// The most MX records of an answer that are used; more would be an attack.
pub(crate) const RECORDS_MAX: usize = 100;
/// The most hosts that are resolved; an attempt tries far fewer.
const HOSTS_MAX: usize = 10;

/// The mail hosts of a domain, in the order in which to try them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailHosts {
    /// Sorted by preference, shuffled within one preference (RFC 5321 5.1); each has an address.
    pub hosts: Vec<MailHost>,
    /// The domain has no MX and is its own mail host (implicit MX).
    pub implicit: bool,
}

/// A mail host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailHost {
    /// The name in the MX record.
    pub name: Domain,
    /// Lower values are tried first.
    pub preference: u16,
    /// IPv6 before IPv4, shuffled within each family.
    pub addresses: Vec<IpAddr>,
}

/// An MX record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MxRecord {
    pub(crate) preference: u16,
    /// Without the trailing dot; empty for the root.
    pub(crate) target: String,
}

/// A mail host that is not resolved yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) preference: u16,
    pub(crate) name: Domain,
}

/// Returns the hosts in the records, sorted by preference and then by name, at most a hundred.
pub(crate) fn targets(records: &[MxRecord]) -> Result<Vec<Target>, DnsError> {
    // RFC 7505 3: a null MX must be the only record; next to others it is a mistake and ignored.
    let named = || records.iter().take(RECORDS_MAX).filter(|record| !record.target.is_empty());
    if named().next().is_none() {
        return Err(DnsError::NullMx);
    }
    let mut targets: Vec<Target> = named()
        .filter_map(|record| {
            host_name(&record.target).map(|name| Target { preference: record.preference, name })
        })
        .collect();
    if targets.is_empty() {
        return Err(DnsError::BadTarget);
    }
    targets.sort_unstable_by(|a, b| (a.preference, &a.name).cmp(&(b.preference, &b.name)));
    // A host listed twice is tried once, at its lowest preference value.
    let mut seen = std::collections::BTreeSet::new();
    targets.retain(|target| seen.insert(target.name.clone()));
    Ok(targets)
}

/// Shuffles targets within each preference and keeps the first ones.
pub(crate) fn plan(mut targets: Vec<Target>) -> Vec<Target> {
    targets.shuffle(&mut postroad_env::Random);
    targets.sort_by_key(|target| target.preference);
    targets.truncate(HOSTS_MAX);
    targets
}

/// Takes an MX target that can be a mail host: no IP address, no `localhost`, no single label.
///
/// RFC 5321 5.1 wants a host name, but the DNS knows bytes only, and hosts such as `mail_1.example.net` receive mail.
fn host_name(target: &str) -> Option<Domain> {
    let name = Domain::from_dns(target).ok()?;
    let unusable = name.is_single_label()
        || name.as_str().parse::<IpAddr>().is_ok()
        || name.as_str().ends_with(".localhost");
    (!unusable).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(records: &[(u16, &str)], expected: Result<&[&str], DnsError>) {
        let records: Vec<MxRecord> = records
            .iter()
            .map(|(preference, target)| MxRecord { preference: *preference, target: (*target).to_owned() })
            .collect();
        let names = targets(&records)
            .map(|targets| targets.iter().map(|target| target.name.to_string()).collect::<Vec<_>>());
        let expected = expected.map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names, expected, "{records:?}");
    }

    #[test]
    fn d_010_hosts_are_sorted_by_preference() {
        check(
            &[(20, "b.example"), (10, "C.example"), (10, "a.example")],
            Ok(&["a.example", "c.example", "b.example"]),
        );
        check(&[(20, "a.example"), (10, "a.example")], Ok(&["a.example"]));
    }

    #[test]
    fn d_012_a_null_mx_counts_only_as_the_only_record() {
        check(&[(0, "")], Err(DnsError::NullMx));
        check(&[(0, ""), (10, "")], Err(DnsError::NullMx));
        check(&[(0, ""), (10, "a.example")], Ok(&["a.example"]));
    }

    #[test]
    fn d_013_targets_that_are_not_host_names_are_ignored() {
        for target in ["192.0.2.1", "localhost", "mail", "x.localhost", "a b.example", "2001:db8::1"] {
            check(&[(10, target)], Err(DnsError::BadTarget));
            check(&[(10, target), (20, "a.example")], Ok(&["a.example"]));
        }
    }

    #[test]
    fn d_013_hosts_have_any_name_that_the_dns_has() {
        for target in ["mail_1.example.net", "r3---mx.example.net", "-mx-.example.net", "ab--cd.example"] {
            check(&[(10, target)], Ok(&[target]));
        }
    }

    #[test]
    fn d_017_at_most_a_hundred_records_are_used() {
        let records: Vec<MxRecord> =
            (0..60_000_u32).map(|n| MxRecord { preference: 1, target: format!("mx{n}.example") }).collect();
        let targets = targets(&records).unwrap();
        assert_eq!(targets.len(), RECORDS_MAX);
        assert_eq!(plan(targets).len(), HOSTS_MAX);
    }

    #[test]
    fn d_010_equal_preferences_are_shuffled() {
        let targets: Vec<Target> = (0..8_u16)
            .map(|n| Target { preference: n / 4, name: Domain::parse(&format!("mx{n}.example")).unwrap() })
            .collect();
        let orders: std::collections::BTreeSet<Vec<String>> = (0..100)
            .map(|_| plan(targets.clone()).iter().map(|target| target.name.to_string()).collect())
            .collect();
        assert!(orders.len() > 10);
        assert!(plan(targets).is_sorted_by_key(|target| target.preference));
    }
}
