//! Limits connections, in total and for each client network.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;

/// Counts open connections.
#[derive(Debug)]
pub(super) struct Admission {
    total_max: usize,
    network_max: usize,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    networks: HashMap<IpAddr, usize>,
}

/// Permits one connection; dropping it frees the slot.
#[derive(Debug)]
pub(super) struct Permit {
    network: IpAddr,
    counts: Arc<Mutex<Counts>>,
}

/// The limit that was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitHit {
    Total,
    Network,
}

impl Admission {
    pub(super) fn new(total_max: usize, network_max: usize) -> Self {
        Self { total_max, network_max, counts: Arc::default() }
    }

    pub(super) fn admit(&self, client: IpAddr) -> Result<Permit, LimitHit> {
        let network = network_of(client);
        let mut counts = self.counts.lock();
        if counts.total >= self.total_max {
            return Err(LimitHit::Total);
        }
        if counts.networks.get(&network).is_some_and(|open| *open >= self.network_max) {
            return Err(LimitHit::Network);
        }
        counts.total += 1;
        *counts.networks.entry(network).or_default() += 1;
        Ok(Permit { network, counts: Arc::clone(&self.counts) })
    }

    pub(super) fn open(&self) -> usize {
        self.counts.lock().total
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        counts.total -= 1;
        if let Some(open) = counts.networks.get_mut(&self.network) {
            *open -= 1;
            if *open == 0 {
                counts.networks.remove(&self.network);
            }
        }
    }
}

/// An IPv6 client usually controls its whole /64.
fn network_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(admission: &Admission, client: &str) -> Result<Permit, LimitHit> {
        admission.admit(client.parse().unwrap())
    }

    #[test]
    fn s_033_a_network_is_an_ipv4_address_or_an_ipv6_64() {
        let admission = Admission::new(4, 2);
        let first = admit(&admission, "192.0.2.1").unwrap();
        let _second = admit(&admission, "::ffff:192.0.2.1").unwrap();
        assert_eq!(admit(&admission, "192.0.2.1").unwrap_err(), LimitHit::Network);
        let _third = admit(&admission, "2001:db8::1").unwrap();
        let _fourth = admit(&admission, "2001:db8::2:1").unwrap();
        assert_eq!(admit(&admission, "2001:db8:0:1::1").unwrap_err(), LimitHit::Total);
        drop(first);
        assert_eq!(admit(&admission, "2001:db8::3").unwrap_err(), LimitHit::Network);
        let _fifth = admit(&admission, "192.0.2.1").unwrap();
        assert_eq!(admission.open(), 4);
    }

    #[test]
    fn s_033_networks_without_connections_are_forgotten() {
        let admission = Admission::new(10, 10);
        drop([admit(&admission, "192.0.2.1"), admit(&admission, "192.0.2.2")]);
        assert!(admission.counts.lock().networks.is_empty());
    }
}
