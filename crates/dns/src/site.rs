//! Sites: one name for all domains that share the same mail hosts.
//!
//! The name depends on the hosts of the lowest preference value, which receive the mail normally:
//! - all under one registrable domain: that domain, `google.com`;
//! - otherwise the registrable domain of the first host and a hash of the set, `example.net+1c7fb0a2`;
//! - no MX, or lookup failed: the recipient's domain.
//!
//! A name has at most 253 bytes. The same set has the same name on every node and in every version.

use postroad_core::Domain;

use crate::hosts::Target;

/// Room for the domain in a name of 253 bytes with `+` and hash.
const SHOWN_BYTES_MAX: usize = 253 - 9;

/// Returns the name of the site of `targets`, which are sorted by preference, then by name.
pub(crate) fn name(targets: &[Target]) -> Option<Box<str>> {
    let lowest = targets.first()?.preference;
    let mut names: Vec<&Domain> =
        targets.iter().filter(|target| target.preference == lowest).map(|target| &target.name).collect();
    names.sort_unstable();
    let first = registrable(names[0]);
    if names.iter().all(|name| registrable(name) == first) {
        return Some(first.into());
    }
    let shown = &first[..first.len().min(SHOWN_BYTES_MAX)];
    Some(format!("{shown}+{:08x}", hash(&names)).into())
}

/// Returns the registrable domain of a host (public suffix list), or the whole name if there is none.
fn registrable(host: &Domain) -> &str {
    psl::domain_str(host.as_str()).unwrap_or(host.as_str())
}

/// FNV-1a, folded to 32 bits. Must never change, as it is part of the site name.
fn hash(names: &[&Domain]) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for name in names {
        for byte in name.as_str().bytes().chain([b'\n']) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    (hash >> 32) as u32 ^ hash as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(targets: &[(u16, &str)], expected: &str) {
        let targets: Vec<Target> = targets
            .iter()
            .map(|(preference, name)| Target { preference: *preference, name: Domain::parse(name).unwrap() })
            .collect();
        assert_eq!(name(&targets).as_deref(), Some(expected), "{targets:?}");
    }

    #[test]
    fn d_063_domains_with_the_same_mail_hosts_are_one_site() {
        check(&[(5, "gmail-smtp-in.l.google.com"), (10, "alt1.gmail-smtp-in.l.google.com")], "google.com");
        check(
            &[(1, "aspmx.l.google.com"), (5, "alt1.aspmx.l.google.com"), (9, "mx.backup.example")],
            "google.com",
        );
        check(&[(0, "example-org.mail.protection.outlook.com")], "outlook.com");
        check(&[(10, "mx.mail.example.co.uk"), (10, "mx2.example.co.uk")], "example.co.uk");
    }

    #[test]
    fn a_set_of_hosts_of_several_owners_has_a_stable_name() {
        check(&[(10, "mx.one.example"), (10, "mx.two.example")], "one.example+a8f18ce1");
        check(&[(10, "mx.one.example"), (10, "mx3.two.example")], "one.example+b238ca11");
        assert_eq!(name(&[]), None);
    }
}
