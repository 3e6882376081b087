//! From the records of a domain to the hosts that take its mail.

use std::net::IpAddr;

use postroad_core::Domain;
use rand::seq::SliceRandom;

use crate::DnsError;

/// No more records of an answer are looked at: who publishes more wants to keep us busy.
pub(crate) const RECORDS_MAX: usize = 100;
/// No more hosts are resolved: an attempt tries far fewer.
const HOSTS_MAX: usize = 10;

/// The hosts that take mail for a domain, in the order in which they are to be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailHosts {
    /// Sorted by preference, shuffled within one preference (RFC 5321 5.1); each has an address.
    pub hosts: Vec<MailHost>,
    /// The domain has no MX, and its own address stands in for one.
    pub implicit: bool,
}

/// One host that takes mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailHost {
    /// Its name, as the MX record has it.
    pub name: Domain,
    /// Lower ones are tried first.
    pub preference: u16,
    /// IPv6 before IPv4, shuffled within each.
    pub addresses: Vec<IpAddr>,
}

/// An MX record as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MxRecord {
    pub(crate) preference: u16,
    /// Without the last dot; empty for the root.
    pub(crate) target: String,
}

/// A mail host whose addresses are not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) preference: u16,
    pub(crate) name: Domain,
}

/// Returns the hosts that records name, sorted by preference and then by name, at most a hundred.
pub(crate) fn targets(records: &[MxRecord]) -> Result<Vec<Target>, DnsError> {
    // RFC 7505 3: a null MX is the only record; beside others it is an error of the domain's and says nothing.
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
    // A host that is named twice is tried once, at its best preference.
    let mut seen = std::collections::BTreeSet::new();
    targets.retain(|target| seen.insert(target.name.clone()));
    Ok(targets)
}

/// Shuffles targets within each preference and keeps as many as are worth resolving.
pub(crate) fn plan(mut targets: Vec<Target>) -> Vec<Target> {
    targets.shuffle(&mut rand::rng());
    targets.sort_by_key(|target| target.preference);
    targets.truncate(HOSTS_MAX);
    targets
}

/// RFC 5321 5.1 wants the name of a host: not an address in digits, not this machine, not a name that search lists would finish.
fn host_name(target: &str) -> Option<Domain> {
    let name = Domain::parse(target).ok()?;
    let leads_nowhere = name.is_single_label()
        || name.as_str().parse::<IpAddr>().is_ok()
        || name.as_str().ends_with(".localhost");
    (!leads_nowhere).then_some(name)
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
    fn d_012_a_null_mx_counts_only_alone() {
        check(&[(0, "")], Err(DnsError::NullMx));
        check(&[(0, ""), (10, "")], Err(DnsError::NullMx));
        check(&[(0, ""), (10, "a.example")], Ok(&["a.example"]));
    }

    #[test]
    fn d_013_a_target_that_is_no_host_name_leads_nowhere() {
        for target in ["192.0.2.1", "localhost", "mail", "x.localhost", "a_b.example", "2001:db8::1"] {
            check(&[(10, target)], Err(DnsError::BadTarget));
            check(&[(10, target), (20, "a.example")], Ok(&["a.example"]));
        }
    }

    #[test]
    fn d_017_no_more_than_a_hundred_records_are_read() {
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
