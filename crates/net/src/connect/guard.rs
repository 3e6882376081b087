//! Forbids connections to special-purpose addresses.
//!
//! DNS records of strangers can point at this machine, its private network, or a cloud's metadata service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The address is a special-purpose address that the operator has not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("connections to special-purpose address `{0}` are not allowed")]
pub struct Denied(pub IpAddr);

/// The addresses we may connect to: the public Internet and the networks that the operator allows.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// Special-purpose networks that are allowed.
    pub allow: Vec<IpNet>,
}

/// IANA's registry of special-purpose addresses, and multicast.
const DENIED_V4: &[Ipv4Net] = &[
    v4([0, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 0, 0], 24),
    v4([192, 0, 2, 0], 24),
    v4([192, 88, 99, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
];

/// The same for IPv6, including formats that embed an IPv4 address and are not unwrapped below.
const DENIED_V6: &[Ipv6Net] = &[
    // Unspecified, loopback, and IPv4-compatible addresses.
    v6([0; 8], 96),
    // Local-use NAT64: the position of the embedded IPv4 address is unknown.
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64),
    // Teredo and the other protocol assignments.
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    // 6to4, deprecated by RFC 7526.
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16),
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

const fn v4(bytes: [u8; 4], len: u8) -> Ipv4Net {
    let [a, b, c, d] = bytes;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len)
}

const fn v6(segments: [u16; 8], len: u8) -> Ipv6Net {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), len)
}

impl Guard {
    /// Checks an address that is about to be connected to.
    ///
    /// # Errors
    /// It is a special-purpose address in no allowed network.
    pub fn check(&self, address: IpAddr) -> Result<(), Denied> {
        let target = unwrap_ipv4(address);
        let allowed = |net: &IpNet| net.contains(&address) || net.contains(&target);
        if !is_special(target) || self.allow.iter().any(allowed) { Ok(()) } else { Err(Denied(address)) }
    }
}

fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => DENIED_V4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => DENIED_V6.iter().any(|net| net.contains(&address)),
    }
}

/// Returns the embedded IPv4 address of IPv4-mapped and NAT64 addresses, otherwise the address itself.
fn unwrap_ipv4(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return v4.into();
    }
    match v6.segments() {
        // RFC 6052 2.1: the well-known prefix, through which IPv6-only networks reach IPv4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
            Ipv4Addr::new(a, b, c, d).into()
        }
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(guard: &Guard, address: &str) -> bool {
        guard.check(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn c_110_every_special_purpose_range_is_denied_from_its_first_to_its_last_address() {
        let guard = Guard::default();
        let v4 = DENIED_V4.iter().copied().map(IpNet::V4);
        for net in v4.chain(DENIED_V6.iter().copied().map(IpNet::V6)) {
            assert!(guard.check(net.network()).is_err(), "{net}");
            assert!(guard.check(net.broadcast()).is_err(), "{net}");
        }
    }

    #[test]
    fn c_110_special_purpose_addresses_are_denied() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.19.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:10.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::808:808",
            "100::1",
            "2001::1",
            "2001:0:7f00:1::",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:808:808::1",
            "fc00::1",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!allows(&Guard::default(), address), "{address}");
        }
    }

    #[test]
    fn c_110_public_addresses_are_allowed() {
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2606:4700::1111",
            "2a00:1450::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            assert!(allows(&Guard::default(), address), "{address}");
        }
    }

    #[test]
    fn d_015_allowed_networks_include_embedded_ipv4_addresses() {
        let guard = Guard { allow: vec!["127.0.0.0/8".parse().unwrap(), "fd00:1::/32".parse().unwrap()] };
        for address in ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "fd00:1::5"] {
            assert!(allows(&guard, address), "{address}");
        }
        for address in ["10.0.0.1", "::1", "fd00:2::5"] {
            assert!(!allows(&guard, address), "{address}");
        }
    }
}
