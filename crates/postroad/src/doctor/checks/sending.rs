//! Checks of what sending mail needs: sources with names that receivers trust, DNS, and port 25.

use std::{net::IpAddr, time::Duration};

use super::super::{
    facts::{ClusterFacts, DnsFacts, NameFacts, NodeFacts, PortFacts, SourceFacts},
    finding::Finding,
};

/// A lookup that takes longer holds mail up.
const LOOKUP_WARN: Duration = Duration::from_millis(500);

/// Each source has an owner, an address of this machine, and names that fit.
pub(super) fn sources(cluster: &ClusterFacts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = cluster.sources.iter().flat_map(source).collect();
    if let Some(error) = &cluster.no_policy {
        let advice = "apply a policy, if this is a new cluster; otherwise see what the check `quorum` says";
        findings.push(Finding::warn("sources", format!("the policy in force is not known: {error}"), advice));
    }
    findings
}

fn source(source: &SourceFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !source.has_owner && source.has_share {
        findings.push(Finding::fail(
            "sources",
            format!("{}: no outbound node owns it, and mail that needs it waits", source.name),
            "start an outbound node that may own it (`nodes` of the source)",
        ));
    }
    if let Some(Err(error)) = &source.usable_here {
        findings.push(Finding::fail(
            "sources",
            format!("{}: {} cannot be used on this machine: {error}", source.name, shown(source.address)),
            "give the machine the address, or pin the source to the nodes that have it (`nodes` of the source)",
        ));
    }
    match &source.names {
        _ if source.is_private => findings.push(Finding::warn(
            "sources",
            format!(
                "{}: {} is a private address, so receivers see another one",
                source.name,
                shown(source.address)
            ),
            format!("see that the address that receivers see has the name (PTR) {}", source.helo),
        )),
        Some(names) => findings.push(names_of(source, names)),
        None => {}
    }
    if findings.is_empty() {
        findings.push(Finding::ok("sources", format!("{}: has an owner", source.name)));
    }
    findings
}

fn shown(address: Option<IpAddr>) -> String {
    address.map_or_else(|| "its address".to_owned(), |address| address.to_string())
}

/// Forward and reverse names agree: many receivers refuse mail where they do not.
fn names_of(source: &SourceFacts, names: &NameFacts) -> Finding {
    let Some(address) = source.address else {
        return Finding::ok("sources", format!("{}: has no address of its own", source.name));
    };
    reverse_name(source, address, &names.ptr).unwrap_or_else(|| forward_name(source, address, &names.helo))
}

/// Says what is wrong with the names that an address has.
fn reverse_name(
    source: &SourceFacts,
    address: IpAddr,
    ptr: &Result<Vec<(String, Vec<IpAddr>)>, String>,
) -> Option<Finding> {
    let SourceFacts { name, helo, .. } = source;
    let ptr = match ptr {
        Err(error) => {
            let found = format!("{name}: cannot look up the name of {address}: {error}");
            return Some(Finding::warn("sources", found, "see what the check `dns` says, and try again"));
        }
        Ok(ptr) => ptr,
    };
    let all = ptr.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    if ptr.is_empty() {
        return Some(Finding::fail(
            "sources",
            format!("{name}: {address} has no name (PTR)"),
            format!(
                "ask the owner of the network for the name (PTR) {helo}: many receivers refuse mail without"
            ),
        ));
    }
    if !ptr.iter().any(|(_, addresses)| addresses.contains(&address)) {
        return Some(Finding::fail(
            "sources",
            format!("{name}: {address} has the name {all}, which does not have this address"),
            format!("give {all} the address {address} (A or AAAA): many receivers refuse mail without"),
        ));
    }
    let is_helo = ptr.iter().any(|(name, _)| name == helo);
    (!is_helo).then(|| {
        Finding::warn(
            "sources",
            format!("{name}: {address} has the name {all}, and its EHLO name is {helo}"),
            "set `helo` of the source to the name, or the name to `helo`",
        )
    })
}

/// Says whether the EHLO name has the address.
fn forward_name(source: &SourceFacts, address: IpAddr, found: &Result<Vec<IpAddr>, String>) -> Finding {
    let SourceFacts { name, helo, .. } = source;
    match found {
        Ok(addresses) if addresses.contains(&address) => {
            Finding::ok("sources", format!("{name}: {address} and {helo} lead to each other"))
        }
        Ok(_) => Finding::warn(
            "sources",
            format!("{name}: the EHLO name {helo} does not have the address {address}"),
            format!("give {helo} the address (A or AAAA)"),
        ),
        Err(error) => Finding::warn(
            "sources",
            format!("{name}: cannot look up the EHLO name {helo}: {error}"),
            format!("give {helo} the address {address} (A or AAAA), if it has none"),
        ),
    }
}

/// The resolver answers, and fast enough.
pub(super) fn dns(node: &NodeFacts) -> Option<Finding> {
    let DnsFacts { domain, hosts, took } = node.dns.as_ref()?;
    let took = (took.as_millis(), *took);
    Some(match hosts {
        Ok(hosts) if took.1 <= LOOKUP_WARN => {
            Finding::ok("dns", format!("{hosts} mail hosts of {domain} in {} ms", took.0))
        }
        Ok(_) => Finding::warn(
            "dns",
            format!("looking up the mail hosts of {domain} took {} ms", took.0),
            "use a resolver of your own near the nodes (`dns.resolver`), such as unbound",
        ),
        Err(error) => Finding::fail(
            "dns",
            format!("cannot look up the mail hosts of {domain}: {error}"),
            "see that `/etc/resolv.conf` or `dns.resolver` names a resolver that this machine may ask over UDP and TCP",
        ),
    })
}

/// Mail hosts can be reached on port 25.
pub(super) fn port_25(node: &NodeFacts) -> Vec<Finding> {
    let finding = |PortFacts { from, to, greeting }: &PortFacts| match greeting {
        Ok(line) if line.starts_with('2') => Finding::ok("port 25", format!("{to} greets {from}: {line}")),
        Ok(line) => Finding::warn(
            "port 25",
            format!("{to} refuses {from}: {line}"),
            "the port is open; what the receiver says is about your address: `postroad classify` knows what it means",
        ),
        Err(error) => Finding::fail(
            "port 25",
            format!("{from} cannot reach {to}: {error}"),
            "see whether a firewall, a NetworkPolicy or the provider blocks outgoing port 25: many providers do until asked",
        ),
    };
    node.port_25.iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::check, *};
    use crate::doctor::finding::Level::{Fail, Ok as Good, Warn};

    const ADDRESS: [u8; 4] = [192, 0, 2, 7];

    fn names(ptr: &[(&str, &[[u8; 4]])], helo: &[[u8; 4]]) -> NameFacts {
        let addresses = |list: &[[u8; 4]]| list.iter().copied().map(IpAddr::from).collect::<Vec<_>>();
        let ptr = ptr.iter().map(|(name, list)| ((*name).to_owned(), addresses(list))).collect();
        NameFacts { ptr: Ok(ptr), helo: Ok(addresses(helo)) }
    }

    fn source_with(names: NameFacts) -> SourceFacts {
        SourceFacts {
            name: "one".to_owned(),
            helo: "mail.example.org".to_owned(),
            has_owner: true,
            has_share: true,
            address: Some(ADDRESS.into()),
            is_private: false,
            owners: Vec::new(),
            usable_here: Some(Ok(())),
            names: Some(names),
        }
    }

    fn check_source(source: SourceFacts, expected: &[(crate::doctor::finding::Level, &str)]) {
        let cluster = ClusterFacts { sources: vec![source], ..ClusterFacts::default() };
        check(sources(&cluster), expected);
    }

    #[test]
    fn the_names_of_a_source_lead_to_it_and_back() {
        let (there, away) = (ADDRESS, [192, 0, 2, 8]);
        let check_names = |ptr: &[(&str, &[[u8; 4]])], helo: &[[u8; 4]], level, part: &str| {
            check_source(source_with(names(ptr, helo)), &[(level, part)]);
        };
        check_names(&[("mail.example.org", &[there])], &[away, there], Good, "lead to each other");
        check_names(&[], &[there], Fail, "has no name (PTR)");
        check_names(&[("mail.example.org", &[away])], &[there], Fail, "does not have this address");
        check_names(
            &[("host7.provider.example", &[there])],
            &[there],
            Warn,
            "its EHLO name is mail.example.org",
        );
        check_names(&[("mail.example.org", &[there])], &[away], Warn, "does not have the address 192.0.2.7");
        let failed = NameFacts { ptr: Err("timed out".to_owned()), ..names(&[], &[]) };
        check_source(source_with(failed), &[(Warn, "timed out")]);
    }

    #[test]
    fn a_source_without_owner_address_or_public_address_is_found() {
        let good = || source_with(names(&[("mail.example.org", &[ADDRESS])], &[ADDRESS]));
        check_source(
            SourceFacts { has_owner: false, ..good() },
            &[(Fail, "mail that needs it waits"), (Good, "lead to each other")],
        );
        check_source(
            SourceFacts { has_owner: false, has_share: false, ..good() },
            &[(Good, "lead to each other")],
        );
        let lacking = SourceFacts { usable_here: Some(Err("not here".to_owned())), names: None, ..good() };
        check_source(lacking, &[(Fail, "192.0.2.7 cannot be used on this machine: not here")]);
        let private = SourceFacts { is_private: true, names: None, ..good() };
        check_source(private, &[(Warn, "receivers see another one")]);
        check_source(SourceFacts { names: None, ..good() }, &[(Good, "has an owner")]);
        let unknown = ClusterFacts { no_policy: Some("no answer".to_owned()), ..ClusterFacts::default() };
        check(sources(&unknown), &[(Warn, "not known: no answer")]);
    }
}
