//! A DNS server on loopback, UDP and TCP, that answers from a small map or fails on request.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{CNAME, MX, SOA, TXT},
    },
};
use parking_lot::{Mutex, RwLock};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The TTL of every answer.
const TTL_SECS: u32 = 1;
/// CNAME records followed in one answer.
const ALIASES_MAX: usize = 8;
/// TCP connections at one time.
const CONNECTIONS_MAX: usize = 1000;

/// The records and failures of names. Names are lower case without a final dot.
#[derive(Clone, Debug, Default)]
pub struct Zones {
    records: BTreeMap<Box<str>, Vec<RData>>,
    failures: BTreeMap<Box<str>, Failure>,
    /// Answers over UDP are truncated, so that clients retry over TCP.
    pub truncate: bool,
    /// The delay before every answer.
    pub delay: Duration,
}

/// How a name fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// SERVFAIL.
    Server,
    /// NXDOMAIN, even if the map has the name.
    NoSuchName,
    /// REFUSED.
    Refused,
    /// No answer.
    Silence,
}

impl Zones {
    /// Adds an MX record; an exchange of `.` means that the domain accepts no mail.
    #[must_use]
    pub fn mx(self, name: &str, preference: u16, exchange: &str) -> Self {
        self.record(name, RData::MX(MX::new(preference, name_of(exchange))))
    }

    /// Adds an A or AAAA record.
    #[must_use]
    pub fn address(self, name: &str, address: impl Into<IpAddr>) -> Self {
        self.record(name, RData::from(address.into()))
    }

    /// Adds a TXT record.
    #[must_use]
    pub fn txt(self, name: &str, text: &str) -> Self {
        self.record(name, RData::TXT(TXT::new(vec![text.to_owned()])))
    }

    /// Makes a name an alias of another.
    #[must_use]
    pub fn cname(self, name: &str, target: &str) -> Self {
        self.record(name, RData::CNAME(CNAME(name_of(target))))
    }

    /// Makes every query for a name fail.
    #[must_use]
    pub fn fail(mut self, name: &str, failure: Failure) -> Self {
        self.failures.insert(name.into(), failure);
        self
    }

    fn record(mut self, name: &str, data: RData) -> Self {
        self.records.entry(name.into()).or_default().push(data);
        self
    }

    /// Returns true for a name with records, and for a parent of such a name.
    fn exists(&self, name: &str) -> bool {
        let below = format!(".{name}");
        self.records.contains_key(name) || self.records.keys().any(|other| other.ends_with(&below))
    }

    fn fill(&self, response: &mut Message, name: &Name, kind: RecordType) {
        let mut owner = name.clone();
        for _ in 0..ALIASES_MAX {
            let records = self.records.get(text_of(&owner).as_str()).map_or(&[][..], Vec::as_slice);
            let alias = records.iter().find_map(|data| match data {
                RData::CNAME(target) if kind != RecordType::CNAME => Some(target.0.clone()),
                _ => None,
            });
            let wanted = records.iter().filter(|data| alias.is_some() || data.record_type() == kind);
            let of_owner = |data: &RData| Record::from_rdata(owner.clone(), TTL_SECS, data.clone());
            response.add_answers(wanted.map(of_owner));
            match alias {
                Some(target) => owner = target,
                None => break,
            }
        }
        if !self.exists(&text_of(&owner)) {
            response.metadata.response_code = ResponseCode::NXDomain;
        }
        if response.answers.is_empty() || response.metadata.response_code == ResponseCode::NXDomain {
            let soa = SOA::new(name_of("ns.test"), name_of("root.test"), 1, 60, 60, 60, TTL_SECS);
            response.add_authority(Record::from_rdata(Name::root(), TTL_SECS, RData::SOA(soa)));
        }
    }
}

/// Panics on an invalid name, which only a test could have written.
fn name_of(text: &str) -> Name {
    let mut name = Name::from_ascii(text).expect("a test names a domain");
    name.set_fqdn(true);
    name
}

fn text_of(name: &Name) -> String {
    name.to_lowercase().to_ascii().trim_end_matches('.').to_owned()
}

/// A running server; it stops when dropped.
#[derive(Debug)]
pub struct FakeDns {
    address: SocketAddr,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    zones: RwLock<Arc<Zones>>,
    asked: Mutex<BTreeMap<(String, String), u64>>,
}

impl FakeDns {
    /// Listens on a free port of loopback, UDP and TCP.
    ///
    /// # Errors
    /// No port is free for both.
    pub async fn start(zones: Zones) -> io::Result<Self> {
        let (udp, tcp) = bind().await?;
        let address = udp.local_addr()?;
        let shared = Arc::new(Shared { zones: RwLock::new(Arc::new(zones)), asked: Mutex::default() });
        let shutdown = CancellationToken::new();
        let (for_udp, for_tcp) = (shared.clone(), shared.clone());
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(serve_udp(Arc::new(udp), for_udp)));
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(serve_tcp(tcp, for_tcp, shutdown.clone())));
        Ok(Self { address, shared, shutdown })
    }

    /// Returns where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the map.
    pub fn set_zones(&self, zones: Zones) {
        *self.shared.zones.write() = Arc::new(zones);
    }

    /// Returns the number of queries for a name without its final dot and a type, such as `MX`.
    #[must_use]
    pub fn asked(&self, name: &str, kind: &str) -> u64 {
        self.shared.asked.lock().get(&(name.to_owned(), kind.to_owned())).copied().unwrap_or(0)
    }
}

impl Drop for FakeDns {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn bind() -> io::Result<(UdpSocket, TcpListener)> {
    let mut last = None;
    for _ in 0..20 {
        let udp = UdpSocket::bind("127.0.0.1:0").await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other("no port is free")))
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let tracker = TaskTracker::new();
    let mut buffer = [0; 4096];
    loop {
        let Ok((len, client)) = socket.recv_from(&mut buffer).await else { continue };
        let (query, socket, shared) = (buffer[..len].to_vec(), socket.clone(), shared.clone());
        tracker.spawn(async move {
            if let Some(response) = answer(&shared, &query, true).await {
                let _ = socket.send_to(&response, client).await;
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>, shutdown: CancellationToken) {
    let tracker = TaskTracker::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        if tracker.len() < CONNECTIONS_MAX {
            let serve = serve_connection(stream, shared.clone());
            tracker.spawn(shutdown.clone().run_until_cancelled_owned(serve));
        }
    }
}

async fn serve_connection(mut stream: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    loop {
        let len = stream.read_u16().await?;
        let mut query = vec![0; usize::from(len)];
        stream.read_exact(&mut query).await?;
        let Some(response) = answer(&shared, &query, false).await else { continue };
        let len = u16::try_from(response.len()).map_err(io::Error::other)?;
        stream.write_all(&[&len.to_be_bytes()[..], &response].concat()).await?;
    }
}

async fn answer(shared: &Shared, query: &[u8], udp: bool) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?.clone();
    let (name, kind) = (text_of(question.name()), question.query_type());
    *shared.asked.lock().entry((name.clone(), kind.to_string())).or_default() += 1;
    let zones = shared.zones.read().clone();
    tokio::time::sleep(zones.delay).await;
    let mut response = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.authoritative = true;
    response.add_query(question.clone());
    match zones.failures.get(name.as_str()) {
        Some(Failure::Silence) => return None,
        Some(Failure::Server) => response.metadata.response_code = ResponseCode::ServFail,
        Some(Failure::NoSuchName) => response.metadata.response_code = ResponseCode::NXDomain,
        Some(Failure::Refused) => response.metadata.response_code = ResponseCode::Refused,
        None if udp && zones.truncate => response.metadata.truncation = true,
        None => zones.fill(&mut response, question.name(), kind),
    }
    response.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{OpCode, Query};

    use super::*;

    async fn ask(dns: &FakeDns, name: &str, kind: RecordType) -> Message {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(name_of(name), kind));
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&query.to_vec().unwrap(), dns.address()).await.unwrap();
        let mut buffer = [0; 4096];
        let len =
            tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.unwrap().unwrap();
        Message::from_vec(&buffer[..len]).unwrap()
    }

    #[tokio::test]
    async fn names_are_answered_from_the_map_or_fail_on_request() {
        let zones = Zones::default()
            .mx("example.test", 10, "mx.example.test")
            .cname("mx.example.test", "host.test")
            .address("host.test", [127, 0, 0, 1])
            .fail("broken.test", Failure::Server);
        let dns = FakeDns::start(zones).await.unwrap();
        let check = async |name: &str, kind, code, answers| {
            let response = ask(&dns, name, kind).await;
            assert_eq!((response.metadata.response_code, response.answers.len()), (code, answers), "{name}");
        };
        check("EXAMPLE.test", RecordType::MX, ResponseCode::NoError, 1).await;
        check("example.test", RecordType::A, ResponseCode::NoError, 0).await;
        check("mx.example.test", RecordType::A, ResponseCode::NoError, 2).await;
        check("test", RecordType::MX, ResponseCode::NoError, 0).await;
        check("nothing.test", RecordType::MX, ResponseCode::NXDomain, 0).await;
        check("broken.test", RecordType::MX, ResponseCode::ServFail, 0).await;
        assert_eq!(dns.asked("example.test", "MX"), 1);
        dns.set_zones(Zones { truncate: true, ..Zones::default().address("host.test", [127, 0, 0, 2]) });
        assert!(ask(&dns, "host.test", RecordType::A).await.metadata.truncation);
        let mut stream = TcpStream::connect(dns.address()).await.unwrap();
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(name_of("host.test"), RecordType::A));
        let query = query.to_vec().unwrap();
        stream.write_u16(u16::try_from(query.len()).unwrap()).await.unwrap();
        stream.write_all(&query).await.unwrap();
        let mut response = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut response).await.unwrap();
        assert_eq!(Message::from_vec(&response).unwrap().answers.len(), 1);
    }
}
