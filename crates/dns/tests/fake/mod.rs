//! A name server with scripted answers, over UDP and TCP on one loopback port.

use std::{collections::HashMap, io::ErrorKind, net::SocketAddr, sync::Arc};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, MX, PTR},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};

/// The answer to a query.
#[derive(Clone)]
pub(crate) enum Answer {
    Records(Vec<Record>),
    Failure(ResponseCode),
    NoReply,
}

pub(crate) type Zone = HashMap<(&'static str, RecordType), Answer>;

/// A name server that runs until it is dropped.
pub(crate) struct FakeDns {
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl FakeDns {
    /// Starts the server. Names outside the zone get NXDOMAIN; names with other record types only get an empty answer.
    pub(crate) async fn start(zone: Zone) -> Self {
        let zone = Arc::new(zone);
        let (udp, tcp) = sockets().await;
        let address = udp.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, Arc::clone(&zone)));
        tasks.spawn(serve_tcp(tcp, zone));
        Self { address, _tasks: tasks }
    }
}

/// Takes a port that is free for both.
async fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        match TcpListener::bind(udp.local_addr().unwrap()).await {
            Ok(tcp) => return (udp, tcp),
            Err(error) => assert_eq!(error.kind(), ErrorKind::AddrInUse, "{error}"),
        }
    }
}

async fn serve_udp(socket: UdpSocket, zone: Arc<Zone>) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((len, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(mut response) = respond(&buffer[..len], &zone) else { continue };
        let mut bytes = response.to_vec().unwrap();
        if bytes.len() > 1232 {
            response.answers.clear();
            response.metadata.truncation = true;
            bytes = response.to_vec().unwrap();
        }
        socket.send_to(&bytes, peer).await.unwrap();
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<Zone>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let zone = Arc::clone(&zone);
        connections.spawn(async move { serve_connection(stream, &zone).await.ok() });
    }
}

async fn serve_connection(mut stream: TcpStream, zone: &Zone) -> std::io::Result<()> {
    loop {
        let len = stream.read_u16().await?;
        let mut question = vec![0; usize::from(len)];
        stream.read_exact(&mut question).await?;
        let Some(response) = respond(&question, zone) else { continue };
        let bytes = response.to_vec().unwrap();
        stream.write_u16(u16::try_from(bytes.len()).unwrap()).await?;
        stream.write_all(&bytes).await?;
    }
}

fn respond(question: &[u8], zone: &Zone) -> Option<Message> {
    let request = Message::from_vec(question).unwrap();
    let query = request.queries[0].clone();
    let query_name = query.name().to_ascii().to_lowercase();
    let name = query_name.trim_end_matches('.');
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata.recursion_available = true;
    response.add_query(query.clone());
    let known = |(zone_name, _): &&(&str, RecordType)| *zone_name == name;
    match zone.iter().find(|((n, t), _)| *n == name && *t == query.query_type()).map(|(_, answer)| answer) {
        Some(Answer::Records(records)) => {
            for record in records {
                let mut record = record.clone();
                if record.name.is_root() {
                    record.name = query.name().clone();
                }
                response.add_answer(record);
            }
        }
        Some(Answer::Failure(code)) => response.metadata.response_code = *code,
        Some(Answer::NoReply) => return None,
        None if zone.keys().any(|key| known(&key)) => {}
        None => response.metadata.response_code = ResponseCode::NXDomain,
    }
    Some(response)
}

fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

fn record(owner: Option<&str>, data: RData) -> Record {
    Record::from_rdata(owner.map_or_else(Name::root, name), 60, data)
}

/// MX records; an empty host is the root.
pub(crate) fn mx(hosts: &[(u16, &str)]) -> Answer {
    let record = |(preference, host): &(u16, &str)| record(None, RData::MX(MX::new(*preference, name(host))));
    Answer::Records(hosts.iter().map(record).collect())
}

pub(crate) fn a(addresses: &[[u8; 4]]) -> Answer {
    Answer::Records(
        addresses.iter().map(|ip| record(None, RData::A(A::from(std::net::Ipv4Addr::from(*ip))))).collect(),
    )
}

pub(crate) fn aaaa(address: &str) -> Answer {
    Answer::Records(vec![record(None, RData::AAAA(AAAA(address.parse().unwrap())))])
}

pub(crate) fn ptr(hosts: &[&str]) -> Answer {
    Answer::Records(hosts.iter().map(|host| record(None, RData::PTR(PTR(name(host))))).collect())
}

/// A chain of CNAMEs from the query name to an address.
pub(crate) fn alias(hops: &[&str], address: [u8; 4]) -> Answer {
    let mut records = Vec::new();
    let mut owner = None;
    for hop in hops {
        records.push(record(owner, RData::CNAME(CNAME(name(hop)))));
        owner = Some(*hop);
    }
    records.push(record(owner, RData::A(A::from(std::net::Ipv4Addr::from(address)))));
    Answer::Records(records)
}
