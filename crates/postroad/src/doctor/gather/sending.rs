//! Looks names up, and connects to mail hosts as an outbound node would.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use futures::future::join_all;
use postroad_core::Domain;
use postroad_dns::{MailHosts, Resolver};
use postroad_net::{Guard, connect};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::{timeout, timeout_at},
};

use super::super::{
    NodeSetup,
    facts::{DnsFacts, NameFacts, PortFacts, SourceFacts},
};
use crate::cli::RoleName;

/// For all names, and for all connections.
const OUTSIDE_MAX: Duration = Duration::from_secs(12);
/// For connecting, and for the greeting.
const STEP_MAX: Duration = Duration::from_secs(5);
/// Addresses of mail hosts that are tried before port 25 is taken for closed.
const ADDRESSES_MAX: usize = 2;
/// Sources that a connection is tried from.
const SOURCES_MAX: usize = 16;
/// The longest line of a greeting that is read.
const GREETING_BYTES_MAX: u64 = 512;
/// An address of the Internet, by which the system chooses a source; nothing is sent to it.
const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), 53);

/// Says of each source that this outbound node may own whether it can be used here.
pub(super) fn use_of_sources(setup: &NodeSetup, sources: &mut [SourceFacts]) {
    if setup.role != RoleName::Outbound {
        return;
    }
    for source in sources.iter_mut().filter(|source| source.may_be_owned_by(setup.node)) {
        let usable = match source.address {
            Some(address) => UdpSocket::bind((address, 0)).map(|_| address),
            None => chosen_by_the_system(),
        };
        if let (None, Ok(address)) = (source.address, &usable) {
            source.is_private = Guard::default().check(*address).is_err();
            source.address = Some(*address);
        }
        source.usable_here = Some(usable.map(drop).map_err(|error| error.to_string()));
    }
}

fn chosen_by_the_system() -> std::io::Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(ANYWHERE)?;
    Ok(socket.local_addr()?.ip())
}

/// Looks up the names of every source with a public address.
pub(super) async fn look_up_names(resolver: &Resolver, sources: &mut [SourceFacts]) {
    let lookups = sources.iter_mut().filter(|source| !source.is_private).map(async |source| {
        let (Some(address), Ok(helo)) = (source.address, Domain::parse(&source.helo)) else { return };
        let names = timeout(OUTSIDE_MAX, names(resolver, address, &helo)).await;
        source.names = Some(names.unwrap_or_else(|_| {
            let late = || "no answer in time".to_owned();
            NameFacts { ptr: Err(late()), helo: Err(late()) }
        }));
    });
    join_all(lookups).await;
}

async fn names(resolver: &Resolver, address: IpAddr, helo: &Domain) -> NameFacts {
    let (ptr, helo) = tokio::join!(resolver.names(address), resolver.addresses(helo.as_str()));
    let ptr = match ptr {
        Err(error) => Err(error.to_string()),
        Ok(names) => {
            let mut found = Vec::new();
            for name in names {
                let addresses = resolver.addresses(&name).await.unwrap_or_default();
                found.push((name, addresses));
            }
            Ok(found)
        }
    };
    NameFacts { ptr, helo: helo.map_err(|error| error.to_string()) }
}

/// Looks up the mail hosts of a domain.
pub(super) async fn dns(resolver: &Resolver, probe: &Domain) -> DnsFacts {
    let asked_at = Instant::now();
    let hosts = resolver.mail_hosts(probe).await;
    DnsFacts {
        domain: probe.to_string(),
        hosts: hosts.map(|hosts| hosts.hosts.len()).map_err(|error| error.to_string()),
        took: asked_at.elapsed(),
    }
}

/// Connects from each source of an outbound node to a mail host of a domain.
pub(super) async fn port_25(
    setup: &NodeSetup,
    resolver: &Resolver,
    probe: &Domain,
    sources: &[SourceFacts],
) -> Vec<PortFacts> {
    let (Some((port, guard)), Ok(hosts)) = (&setup.sends, resolver.mail_hosts(probe).await) else {
        return Vec::new();
    };
    let usable = sources.iter().filter(|source| matches!(source.usable_here, Some(Ok(()))));
    connections(&hosts, *port, guard, usable.take(SOURCES_MAX)).await
}

/// Connects from all sources at once, within one deadline: where port 25 is blocked, every connection waits for its end.
async fn connections<'a>(
    hosts: &MailHosts,
    port: u16,
    guard: &Guard,
    sources: impl Iterator<Item = &'a SourceFacts>,
) -> Vec<PortFacts> {
    let deadline = tokio::time::Instant::now() + OUTSIDE_MAX;
    let connections = sources.map(|source| connection(hosts, port, guard, source, deadline));
    join_all(connections).await.into_iter().flatten().collect()
}

/// The first address that answers, or the last one that did not; `None` where no address is of the source's family.
async fn connection(
    hosts: &MailHosts,
    port: u16,
    guard: &Guard,
    source: &SourceFacts,
    deadline: tokio::time::Instant,
) -> Option<PortFacts> {
    let fits = |address: &&IpAddr| source.address.is_none_or(|from| from.is_ipv4() == address.is_ipv4());
    let addresses = hosts.hosts.iter().flat_map(|host| &host.addresses).filter(fits).take(ADDRESSES_MAX);
    let mut last = None;
    for address in addresses {
        let to = SocketAddr::new(*address, port);
        let greeting = timeout_at(deadline, greeting(guard, to, source.address)).await;
        let greeting = greeting.unwrap_or_else(|_| Err("no connection in time".to_owned()));
        let answered = greeting.is_ok();
        last = Some(PortFacts { from: format!("source {}", source.name), to: to.to_string(), greeting });
        if answered {
            break;
        }
    }
    last
}

async fn greeting(guard: &Guard, to: SocketAddr, from: Option<IpAddr>) -> Result<String, String> {
    let stream = connect::connect(guard, to, from, STEP_MAX).await;
    let mut stream = stream.map_err(|error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })?;
    let line = timeout(STEP_MAX, first_line(&mut stream)).await;
    let line = line.map_err(|_| "connected, and no greeting in time".to_owned())?;
    let line = line.map_err(|error| format!("connected, and then: {error}"))?;
    // It is polite, and nothing depends on it.
    let _ = timeout(STEP_MAX, stream.write_all(b"QUIT\r\n")).await;
    if line.is_empty() { Err("connected, and the connection was closed".to_owned()) } else { Ok(line) }
}

async fn first_line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    BufReader::new(stream.take(GREETING_BYTES_MAX)).read_until(b'\n', &mut line).await?;
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use postroad_dns::MailHost;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn all_sources_are_tried_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sources: Vec<SourceFacts> = (1..=8)
            .map(|last| SourceFacts {
                name: format!("out-{last}"),
                helo: "mail.example".to_owned(),
                has_owner: true,
                has_share: true,
                address: Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))),
                is_private: true,
                owners: Vec::new(),
                usable_here: Some(Ok(())),
                names: None,
            })
            .collect();
        // The host greets nobody before all have come.
        let host = async {
            let mut connected = Vec::new();
            for _ in &sources {
                connected.push(listener.accept().await.unwrap().0);
            }
            for stream in &mut connected {
                stream.write_all(b"220 mx.example\r\n").await.unwrap();
            }
            connected
        };
        let host_of_test = MailHost {
            name: Domain::parse("mx.example").unwrap(),
            preference: 1,
            addresses: vec![Ipv4Addr::LOCALHOST.into()],
        };
        let hosts = MailHosts { hosts: vec![host_of_test], implicit: false };
        let guard = Guard { allow: vec!["127.0.0.0/8".parse().unwrap()] };
        let (found, _connected) = tokio::join!(connections(&hosts, port, &guard, sources.iter()), host);
        let greetings: Vec<_> = found.iter().map(|one| one.greeting.as_deref()).collect();
        assert_eq!(greetings, [Ok("220 mx.example"); 8]);
    }
}
