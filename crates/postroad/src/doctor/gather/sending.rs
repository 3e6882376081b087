//! Looks names up, and connects to mail hosts as an outbound node would.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use futures::{StreamExt, future::join_all, stream};
use postroad_core::Domain;
use postroad_dns::{MailHosts, Resolver};
use postroad_net::{Connector, Guard, Socket};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    time::{Instant as Deadline, timeout, timeout_at},
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
/// Sources whose names are looked up at once.
const LOOKUPS_MAX: usize = 16;
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

/// Looks up the names of every source with a public address: for each source in its place what was found, if it was asked.
pub(super) async fn look_up_names(resolver: &Resolver, sources: &[SourceFacts]) -> Vec<Option<NameFacts>> {
    let deadline = Deadline::now() + OUTSIDE_MAX;
    look_up(sources, deadline, |address, helo| names(resolver, address, helo)).await
}

async fn look_up<F: Future<Output = NameFacts>>(
    sources: &[SourceFacts],
    deadline: Deadline,
    lookup: impl Fn(IpAddr, Domain) -> F,
) -> Vec<Option<NameFacts>> {
    let lookups = sources.iter().enumerate().filter_map(|(at, source)| {
        let address = source.address.filter(|_| !source.is_private)?;
        let lookup = timeout_at(deadline, lookup(address, Domain::parse(&source.helo).ok()?));
        Some(async move { (at, lookup.await.unwrap_or_else(|_| no_answer())) })
    });
    let mut found: Vec<Option<NameFacts>> = sources.iter().map(|_| None).collect();
    let mut answers = stream::iter(lookups).buffer_unordered(LOOKUPS_MAX);
    while let Some((at, names)) = answers.next().await {
        found[at] = Some(names);
    }
    found
}

fn no_answer() -> NameFacts {
    let late = || "no answer in time".to_owned();
    NameFacts { ptr: Err(late()), helo: Err(late()) }
}

async fn names(resolver: &Resolver, address: IpAddr, helo: Domain) -> NameFacts {
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
    let asked_at = postroad_env::now();
    let hosts = resolver.mail_hosts(probe).await;
    DnsFacts {
        domain: probe.to_string(),
        hosts: hosts.map(|hosts| hosts.hosts.len()).map_err(|error| error.to_string()),
        took: postroad_env::since(asked_at),
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
    let deadline = Deadline::now() + OUTSIDE_MAX;
    let connections = sources.map(|source| connection(hosts, port, guard, source, deadline));
    join_all(connections).await.into_iter().flatten().collect()
}

/// The first address that answers, or the last one that did not; `None` where no address is of the source's family.
async fn connection(
    hosts: &MailHosts,
    port: u16,
    guard: &Guard,
    source: &SourceFacts,
    deadline: Deadline,
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
    let stream = Connector::Tcp.connect(guard, to, from, STEP_MAX).await;
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

async fn first_line(stream: &mut Socket) -> std::io::Result<String> {
    let mut line = Vec::new();
    BufReader::new(stream.take(GREETING_BYTES_MAX)).read_until(b'\n', &mut line).await?;
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use postroad_dns::MailHost;
    use tokio::{net::TcpListener, task::yield_now};

    use super::*;

    fn source(number: u8, is_private: bool) -> SourceFacts {
        SourceFacts {
            name: format!("out-{number}"),
            helo: "mail.example".to_owned(),
            has_owner: true,
            has_share: true,
            address: Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, number))),
            is_private,
            owners: Vec::new(),
            usable_here: Some(Ok(())),
            names: None,
        }
    }

    #[tokio::test]
    async fn the_names_of_many_sources_are_looked_up_a_few_at_once_and_by_one_deadline() {
        // Every third one is private, and is not asked about.
        let sources: Vec<SourceFacts> = (0..200).map(|number| source(number, number % 3 == 0)).collect();
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (running, most) = (&running, &most);
        let lookup = |address: IpAddr, _| async move {
            most.fetch_max(running.fetch_add(1, Relaxed) + 1, Relaxed);
            yield_now().await;
            running.fetch_sub(1, Relaxed);
            NameFacts { ptr: Ok(vec![(address.to_string(), Vec::new())]), helo: Ok(Vec::new()) }
        };
        let found = look_up(&sources, Deadline::now() + Duration::from_secs(3600), lookup).await;
        assert_eq!(most.load(Relaxed), LOOKUPS_MAX);
        for (source, names) in sources.iter().zip(&found) {
            let name = names.as_ref().map(|names| names.ptr.as_ref().unwrap()[0].0.clone());
            let asked = source.address.filter(|_| !source.is_private);
            assert_eq!(name, asked.map(|address| address.to_string()));
        }

        let silent = look_up(&sources, Deadline::now(), |_, _| std::future::pending()).await;
        let late = silent.iter().flatten().filter(|names| names.helo == Err("no answer in time".to_owned()));
        assert_eq!(late.count(), found.iter().flatten().count());
    }

    #[tokio::test]
    async fn all_sources_are_tried_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sources: Vec<SourceFacts> = (1..=8).map(|last| source(last, true)).collect();
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
