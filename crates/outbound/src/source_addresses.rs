//! Whether this machine has the addresses of the sources that it owns.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, UdpSocket},
    sync::Arc,
};

use postroad_core::SourceId;
use postroad_directory::Source;

/// The sources whose address this machine lacks, as of the last check.
#[derive(Debug, Default)]
pub(crate) struct SourceAddresses {
    missing: BTreeSet<SourceId>,
}

impl SourceAddresses {
    /// Checks the sources; logs each that cannot be used, and each that can be used again. Returns how many cannot.
    pub(crate) fn check(&mut self, owned: &[Arc<Source>]) -> usize {
        let mut missing = BTreeSet::new();
        for source in owned {
            let Some(address) = source.address else { continue };
            let was_missing = self.missing.contains(&source.id);
            match can_send_from(address) {
                Ok(()) if was_missing => {
                    tracing::info!(source = %source.name, %address, "the address of a source is there");
                }
                Ok(()) => {}
                Err(error) => {
                    missing.insert(source.id);
                    if !was_missing {
                        tracing::error!(
                            source = %source.name,
                            %address,
                            %error,
                            "this machine cannot use the address of a source: nothing can be sent from it"
                        );
                    }
                }
            }
        }
        self.missing = missing;
        self.missing.len()
    }
}

/// Binds a socket that sends nothing: a port of UDP is never in the way of SMTP.
fn can_send_from(address: IpAddr) -> io::Result<()> {
    UdpSocket::bind((address, 0)).map(drop)
}

#[cfg(test)]
mod tests {
    use postroad_core::{Domain, Epoch};

    use super::*;

    fn source(id: u32, address: Option<&str>) -> Arc<Source> {
        Arc::new(Source {
            id: SourceId(id),
            name: format!("s{id}").into(),
            address: address.map(|address| address.parse().unwrap()),
            helo: Domain::parse("mail.example").unwrap(),
            nodes: Vec::new(),
            owner: None,
            epoch: Epoch(1),
        })
    }

    #[test]
    fn a_source_whose_address_the_machine_lacks_is_counted_until_it_is_gone() {
        let mut addresses = SourceAddresses::default();
        // RFC 5737: documentation, on no machine.
        let lacking = source(2, Some("192.0.2.77"));
        let owned = [source(1, Some("127.0.0.1")), lacking, source(3, None)];
        assert_eq!(addresses.check(&owned), 1);
        assert_eq!(addresses.missing, BTreeSet::from([SourceId(2)]));
        assert_eq!(addresses.check(&owned[..1]), 0);
    }
}
