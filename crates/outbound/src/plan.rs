//! Which addresses an attempt tries, in which order, from the mail hosts that DNS gave.

use std::net::{IpAddr, SocketAddr};

use postroad_core::{BounceClass, Outcome, OutcomeKind};
use postroad_dns::MailHosts;
use postroad_net::Guard;

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The name of the host, for TLS and for reports.
    pub host: Box<str>,
    /// Its address and port.
    pub address: SocketAddr,
    /// The operator configured it in a route: the guard does not apply.
    pub trusted: bool,
}

impl Target {
    /// Returns `host [address]:port`, as in reports.
    #[must_use]
    pub fn remote(&self) -> String {
        format!("{} [{}]:{}", self.host, self.address.ip(), self.address.port())
    }

    /// Reads host and address from what [`Target::remote`] wrote; nothing where no host was spoken to.
    pub(crate) fn parse_remote(remote: &str) -> (Option<&str>, Option<SocketAddr>) {
        let Some((host, address)) = remote.split_once(" [") else { return (None, None) };
        let address = address
            .split_once("]:")
            .and_then(|(ip, port)| Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?)));
        (Some(host), address)
    }
}

/// Restrictions on the addresses of an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The port of mail hosts.
    pub port: u16,
    /// The address connections come from; `None` when the system chooses.
    pub source: Option<IpAddr>,
    /// Addresses that lead back to us.
    pub own: &'a [IpAddr],
    /// Refuses forbidden networks.
    pub guard: &'a Guard,
    /// IPv6 recently failed at this site where IPv4 worked.
    pub avoid_ipv6: bool,
    /// How many addresses to try.
    pub addresses_max: usize,
}

/// Chooses the addresses to try, best first.
///
/// # Errors
/// No address can be used; the outcome says why.
pub fn plan(hosts: &MailHosts, rules: &Rules<'_>) -> Result<Vec<Target>, Box<Outcome>> {
    // D-014, RFC 5321 5.1: hosts of our own preference or worse would send the message back to us.
    let is_own = |address: &IpAddr| rules.own.contains(address);
    let own_preference =
        hosts.hosts.iter().filter(|host| host.addresses.iter().any(is_own)).map(|host| host.preference).min();
    let usable = |preference: u16| own_preference.is_none_or(|own| preference < own);
    if !hosts.hosts.iter().any(|host| usable(host.preference)) {
        return Err(refused(
            OutcomeKind::Hard,
            BounceClass::Loop,
            "5.4.6 the mail hosts lead back to this cluster",
        ));
    }
    let mut targets = Vec::new();
    let (mut denied, mut other_family) = (false, false);
    for host in hosts.hosts.iter().filter(|host| usable(host.preference)) {
        for address in alternate(&host.addresses) {
            if rules.guard.check(address).is_err() {
                denied = true;
            } else if rules.source.is_some_and(|source| source.is_ipv4() != address.is_ipv4()) {
                other_family = true;
            } else {
                let address = SocketAddr::new(address, rules.port);
                targets.push(Target { host: host.name.as_str().into(), address, trusted: false });
            }
        }
    }
    if rules.avoid_ipv6 && targets.iter().any(|target| target.address.is_ipv4()) {
        targets.retain(|target| target.address.is_ipv4());
    }
    targets.truncate(rules.addresses_max);
    if !targets.is_empty() {
        Ok(targets)
    } else if other_family {
        // Another source of the pool may have the family.
        let text = "4.4.4 no mail host has an address of the source's family (IPv4 or IPv6)";
        Err(refused(OutcomeKind::Soft, BounceClass::Connection, text))
    } else if denied {
        Err(refused(OutcomeKind::Hard, BounceClass::BadDomain, "5.4.4 no mail host has a public address"))
    } else {
        Err(refused(OutcomeKind::Soft, BounceClass::Dns, "4.4.3 no mail host has an address"))
    }
}

/// Alternates IPv6 and IPv4 addresses, IPv6 first, so that a limit on their number keeps both.
fn alternate(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let (v6, v4): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| address.is_ipv6());
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut alternating = Vec::with_capacity(addresses.len());
    while alternating.len() < addresses.len() {
        alternating.extend(v6.next());
        alternating.extend(v4.next());
    }
    alternating
}

fn refused(kind: OutcomeKind, class: BounceClass, text: &str) -> Box<Outcome> {
    Box::new(Outcome::new(kind, Some(class), 0, text))
}

#[cfg(test)]
mod tests {
    use postroad_core::Domain;
    use postroad_dns::MailHost;

    use super::*;

    fn hosts(rows: &[(&str, u16, &[&str])]) -> MailHosts {
        let host = |(name, preference, addresses): &(&str, u16, &[&str])| MailHost {
            name: Domain::parse(name).unwrap(),
            preference: *preference,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        };
        MailHosts { hosts: rows.iter().map(host).collect(), implicit: false }
    }

    fn rules(guard: &Guard) -> Rules<'_> {
        Rules { port: 25, source: None, own: &[], guard, avoid_ipv6: false, addresses_max: 5 }
    }

    fn check(hosts: &MailHosts, rules: &Rules<'_>, expected: Result<&[&str], &str>) {
        let planned = plan(hosts, rules);
        match (&planned, expected) {
            (Ok(targets), Ok(expected)) => {
                let addresses: Vec<String> =
                    targets.iter().map(|target| target.address.ip().to_string()).collect();
                assert_eq!(addresses, expected);
            }
            (Err(outcome), Err(start)) => assert!(outcome.text.starts_with(start), "{}", outcome.text),
            _ => panic!("{planned:?} is not {expected:?}"),
        }
    }

    #[test]
    fn d_010_addresses_are_tried_by_preference_up_to_the_limit() {
        let guard = Guard::default();
        let two = hosts(&[
            ("a.example", 10, &["203.0.112.1", "203.0.112.2"]),
            ("b.example", 20, &["203.0.112.3", "203.0.112.4", "203.0.112.5", "203.0.112.6"]),
        ]);
        let first = ["203.0.112.1", "203.0.112.2", "203.0.112.3", "203.0.112.4", "203.0.112.5"];
        check(&two, &rules(&guard), Ok(&first));
        check(&two, &Rules { addresses_max: 2, ..rules(&guard) }, Ok(&first[..2]));
    }

    #[test]
    fn d_014_and_d_068_hosts_of_our_own_preference_or_worse_are_not_used() {
        let guard = Guard::default();
        let own = ["203.0.112.2".parse().unwrap()];
        let three = [
            ("a.example", 10, &["203.0.112.1"][..]),
            ("us.example", 20, &["203.0.112.2"][..]),
            ("c.example", 20, &["203.0.112.3"][..]),
        ];
        check(&hosts(&three), &Rules { own: &own, ..rules(&guard) }, Ok(&["203.0.112.1"]));
        check(&hosts(&three[1..]), &Rules { own: &own, ..rules(&guard) }, Err("5.4.6"));
    }

    #[test]
    fn d_015_denied_addresses_are_never_tried() {
        let guard = Guard::default();
        let inside = hosts(&[("a.example", 10, &["127.0.0.1", "10.0.0.1"])]);
        check(&inside, &rules(&guard), Err("5.4.4"));
        let mixed = hosts(&[("a.example", 10, &["127.0.0.1", "203.0.112.1"])]);
        check(&mixed, &rules(&guard), Ok(&["203.0.112.1"]));
        // An address of the other family may be reached from another source: the delivery does not end.
        let v6 = Some("2a00:1450::9".parse().unwrap());
        check(&mixed, &Rules { source: v6, ..rules(&guard) }, Err("4.4.4"));
        check(&inside, &Rules { source: v6, ..rules(&guard) }, Err("5.4.4"));
    }

    #[test]
    fn d_016_the_source_decides_the_family() {
        let guard = Guard::default();
        let both = hosts(&[("a.example", 10, &["203.0.112.1", "203.0.112.2", "2a00:1450::1"])]);
        check(&both, &rules(&guard), Ok(&["2a00:1450::1", "203.0.112.1", "203.0.112.2"]));
        let v4 = Some("203.0.112.9".parse().unwrap());
        check(&both, &Rules { source: v4, ..rules(&guard) }, Ok(&["203.0.112.1", "203.0.112.2"]));
        let v6 = Some("2a00:1450::9".parse().unwrap());
        check(&both, &Rules { source: v6, ..rules(&guard) }, Ok(&["2a00:1450::1"]));
        check(&both, &Rules { avoid_ipv6: true, ..rules(&guard) }, Ok(&["203.0.112.1", "203.0.112.2"]));
        let only_v6 = hosts(&[("a.example", 10, &["2a00:1450::1"])]);
        check(&only_v6, &Rules { source: v4, ..rules(&guard) }, Err("4.4.4"));
        check(&only_v6, &Rules { avoid_ipv6: true, ..rules(&guard) }, Ok(&["2a00:1450::1"]));
    }

    #[test]
    fn reports_name_host_and_address() {
        let address = "[2a00:1450::1]:25".parse().unwrap();
        let target = Target { host: "mx.example".into(), address, trusted: false };
        assert_eq!(target.remote(), "mx.example [2a00:1450::1]:25");
        assert_eq!(Target::parse_remote(&target.remote()), (Some("mx.example"), Some(address)));
        assert_eq!(Target::parse_remote(""), (None, None));
    }
}
