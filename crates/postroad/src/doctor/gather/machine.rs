//! Looks at this machine as a node: its process, ports, files and disk.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::join_all;
use postroad_net::Certificate;
use rustix::process::{Resource, getrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::super::{
    NodeSetup,
    facts::{DataFacts, FileLimit, ListenerFacts, ListenerState, NodeFacts, SyncTimes},
};
use crate::cli::RoleName;

/// How long the node itself may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// The most that is read of a page of the node.
const PAGE_BYTES_MAX: u64 = 32 << 20;
/// Writes that are measured, unless they take too long.
const WRITES: usize = 100;
const WRITES_WITHIN: Duration = Duration::from_secs(5);
const WRITE_BYTES: usize = 4096;

pub(super) async fn gather(setup: &NodeSetup) -> NodeFacts {
    let (not_ready, node_files) = tokio::join!(not_ready(setup.metrics), files_of_node(setup.metrics));
    let listeners = setup.listeners.iter().map(async |(setting, address)| {
        let state = listener(*address).await;
        ListenerFacts { setting: setting.clone(), address: *address, state }
    });
    let listeners = join_all(listeners).await;
    let data = setup.data.clone().map(|data| (data, setup.role == RoleName::Queue));
    let data = postroad_env::blocking(move || data.map(|(path, measure)| disk(&path, measure))).await;
    let limit = getrlimit(Resource::Nofile).current;
    NodeFacts {
        role: setup.role,
        node: setup.node,
        not_ready,
        files: FileLimit {
            max: node_files.or(limit).unwrap_or(u64::MAX),
            needed: setup.files_needed,
            is_of_node: node_files.is_some(),
        },
        data: data.expect("looking at a disk does not panic"),
        listeners,
        certificates: certificates(setup),
        open_keys: open_keys(setup),
        dns: None,
        port_25: Vec::new(),
    }
}

/// Asks the node for what is not ready.
async fn not_ready(metrics: SocketAddr) -> Result<Vec<String>, String> {
    let (status, page) = http_get(metrics, "/readyz").await.map_err(|error| error.to_string())?;
    match status {
        200 => Ok(Vec::new()),
        503 => Ok(page.trim().trim_start_matches("not ready: ").split(", ").map(str::to_owned).collect()),
        _ => Err(format!("{metrics} answers {status} to /readyz: another program listens there")),
    }
}

async fn files_of_node(metrics: SocketAddr) -> Option<u64> {
    let (_, page) = http_get(metrics, "/metrics").await.ok()?;
    let line = page.lines().find_map(|line| line.strip_prefix("process_max_fds "))?;
    // The text format writes numbers as fractions.
    line.trim().parse::<f64>().ok().map(|max| max as u64)
}

/// Gets a page from the node that listens there, on this machine.
///
/// # Errors
/// Nothing answers, or not as HTTP.
pub(crate) async fn http_get(listen: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let address = reachable(listen);
    let answer = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(PAGE_BYTES_MAX).read_to_end(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = timeout(ANSWER_MAX, answer).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let text = String::from_utf8_lossy(&answer);
    let parsed = text.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    });
    parsed.ok_or_else(|| io::Error::other("the answer is not HTTP"))
}

/// An address that this machine can connect to where a node listens on all of them.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn listener(address: SocketAddr) -> ListenerState {
    if let Ok(Ok(_)) = timeout(ANSWER_MAX, TcpStream::connect(reachable(address))).await {
        return ListenerState::Open;
    }
    match TcpListener::bind(address) {
        Ok(_) => ListenerState::Free,
        Err(error) => ListenerState::Unusable(error.to_string()),
    }
}

fn disk(data: &Path, measure: bool) -> Result<DataFacts, String> {
    let named = |error: &dyn std::fmt::Display| format!("`{}` (`node.data`): {error}", data.display());
    let found = rustix::fs::statvfs(data).map_err(|error| named(&error))?;
    let sync = if measure { Some(sync_times(data).map_err(|error| named(&error))?) } else { None };
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(DataFacts { available_bytes: bytes(found.f_bavail), size_bytes: bytes(found.f_blocks), sync })
}

/// Writes and syncs as the log does, in a file that has no name.
fn sync_times(data: &Path) -> io::Result<SyncTimes> {
    let mut file: File = tempfile::tempfile_in(data)?;
    let (block, started) = ([0x5a; WRITE_BYTES], postroad_env::now());
    // The first one allocates.
    file.write_all(&block)?;
    file.sync_data()?;
    let mut times = Vec::new();
    while times.len() < WRITES && postroad_env::since(started) < WRITES_WITHIN {
        let began = postroad_env::now();
        file.write_all(&block)?;
        file.sync_data()?;
        times.push(postroad_env::since(began));
    }
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    Ok(SyncTimes {
        median: at(times.len() / 2),
        slowest: at(times.len().saturating_sub(1)),
        writes: times.len(),
    })
}

fn certificates(setup: &NodeSetup) -> Vec<(String, Result<Certificate, String>)> {
    let read =
        |file: &Path| Certificate::read_all(file).map_err(|error| format!("`{}`: {error}", file.display()));
    let first = |file: &Path| read(file).map(|mut all| all.swap_remove(0));
    let mut all = vec![("this node".to_owned(), first(&setup.cluster.certificate.0))];
    match read(&setup.cluster.authority.0) {
        Ok(authorities) => all.extend(authorities.into_iter().map(|one| ("authority".to_owned(), Ok(one)))),
        Err(error) => all.push(("authority".to_owned(), Err(error))),
    }
    if let Some((certificate, _)) = &setup.listener_certificate {
        all.push(("listeners".to_owned(), first(certificate)));
    }
    all
}

fn open_keys(setup: &NodeSetup) -> Vec<(PathBuf, u32)> {
    let of_listeners = setup.listener_certificate.iter().map(|(_, key)| key.clone());
    let keys = std::iter::once(setup.cluster.key.0.clone()).chain(of_listeners);
    let open = keys.filter_map(|key| {
        let mode = fs::metadata(&key).ok()?.permissions().mode() & 0o7777;
        (mode & 0o004 != 0).then_some((key, mode))
    });
    open.collect()
}
