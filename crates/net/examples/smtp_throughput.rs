//! Measures SMTP client and server: messages of 8 KiB over reused connections, to a policy that accepts all.
//!
//! `cargo run --release -p postroad-net --example smtp_throughput -- [CONNECTIONS] [MESSAGES]`
//!
//! The server is a separate process, so that its CPU time can be measured.
//! There are two clients: our `Connection`, which pipelines MAIL, RCPT and DATA,
//! and one that waits for every reply, as most applications do.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for people at a terminal")]

use std::{
    future::pending,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use postroad_core::{Address, Domain, Reply};
use postroad_net::{
    ClientTls,
    connect::Connector,
    smtp::{
        client::Connection,
        server::{ListenerConfig, Policy, Session, serve},
    },
};
use postroad_smtp::{
    client::{ClientConfig, RecipientResult, Timeouts, TlsUse, Transaction},
    server::{Answer, Question},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct AcceptAll;

impl Policy for AcceptAll {
    type Identity = ();

    fn network_identity(&self, _: IpAddr) -> Option<()> {
        Some(())
    }

    async fn decide(&self, _: Session<'_, ()>, question: Question) -> Answer<()> {
        match question {
            Question::Message(_) => Answer::Reply(Reply::new(250, 0, 0, "queued")),
            _ => Answer::Yes,
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "serve") {
        return runtime().block_on(serve_until_stdin_closes());
    }
    let number = |index: usize, default| arguments.get(index).map_or(default, |text| text.parse().unwrap());
    let (connections, messages): (usize, usize) = (number(0, 50), number(1, 100_000));
    let each = messages / connections;
    measure("pipelined", connections * each, |address| {
        runtime().block_on(pipelined(address, connections, each))
    });
    measure("lockstep", connections * each, |address| lockstep(address, connections, each));
    measure("one message per connection", messages / 5, |address| {
        runtime().block_on(one_each(address, connections, messages / 5 / connections));
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn serve_until_stdin_closes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let serving =
        tokio::spawn(serve(listener, ListenerConfig::default(), Arc::new(AcceptAll), shutdown.clone()));
    postroad_env::blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    shutdown.cancel();
    serving.await.unwrap();
    let (user, system) = cpu();
    println!("{user} {system}");
}

/// User and system time of this process, in milliseconds.
fn cpu() -> (u64, u64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let millis = |field: usize| fields[field].parse::<u64>().unwrap() * 10;
    (millis(11), millis(12))
}

fn measure(what: &str, messages: usize, send: impl FnOnce(SocketAddr)) {
    let mut server = Command::new(std::env::current_exe().unwrap())
        .arg("serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let address = lines.next().unwrap().unwrap().parse().unwrap();
    let before = cpu();
    let start = postroad_env::now();
    send(address);
    let elapsed = postroad_env::since(start).as_secs_f64();
    let after = cpu();
    drop(server.stdin.take());
    let used = lines.next().unwrap().unwrap();
    server.wait().unwrap();
    let each = |millis: u64| millis as f64 * 1000.0 / messages as f64;
    let (user, system) = used.split_once(' ').unwrap();
    let (user, system) = (each(user.parse().unwrap()), each(system.parse().unwrap()));
    println!(
        "{what}: {:.0} messages/s; server {:.1} µs each ({user:.1} user, {system:.1} system), client {:.1} µs",
        messages as f64 / elapsed,
        user + system,
        each(after.0 - before.0 + after.1 - before.1),
    );
}

fn content() -> Vec<Bytes> {
    let header = Bytes::from_static(b"From: a@b.example\r\nTo: c@d.example\r\nSubject: load\r\n\r\n");
    vec![header, Bytes::from(format!("{}\r\n", "x".repeat(78)).repeat(102))]
}

fn transaction() -> Transaction {
    Transaction {
        sender: Some(Address::parse("a@b.example").unwrap()),
        recipients: vec![Address::parse("c@d.example").unwrap()],
        content: content(),
        smtputf8: false,
        eight_bit: false,
    }
}

async fn open(address: SocketAddr) -> Connection {
    let stream = Connector::Tcp.connect_trusted(address, None, Duration::from_secs(5)).await.unwrap();
    let helo = Domain::parse("load.example").unwrap();
    let config = ClientConfig { helo, tls: TlsUse::Never, timeouts: Timeouts::default() };
    Connection::open(stream, config, &ClientTls::opportunistic(), "localhost").await.unwrap()
}

async fn deliver(connection: &mut Connection, transaction: Transaction) {
    let delivery = connection.deliver(transaction, pending()).await;
    assert!(
        matches!(&delivery.results[..], [RecipientResult::Reply(_, reply)] if reply.code == 250),
        "{delivery:?}"
    );
}

async fn pipelined(address: SocketAddr, connections: usize, each: usize) {
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..connections {
        clients.spawn(async move {
            let mut connection = open(address).await;
            let transaction = transaction();
            for _ in 0..each {
                deliver(&mut connection, transaction.clone()).await;
            }
            connection.quit().await;
        });
    }
    clients.join_all().await;
}

async fn one_each(address: SocketAddr, connections: usize, each: usize) {
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..connections {
        clients.spawn(async move {
            for _ in 0..each {
                let mut connection = open(address).await;
                deliver(&mut connection, transaction()).await;
                connection.quit().await;
            }
        });
    }
    clients.join_all().await;
}

fn lockstep(address: SocketAddr, connections: usize, each: usize) {
    let clients: Vec<_> = (0..connections)
        .map(|_| {
            postroad_env::thread("client", move || lockstep_client(address, each)).expect("a thread starts")
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
}

fn lockstep_client(address: SocketAddr, each: usize) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut replies = BufReader::new(stream.try_clone().unwrap());
    let mut body = content().concat();
    body.extend_from_slice(b".\r\n");
    let mut line = String::new();
    let mut expect_reply = |code: &str| loop {
        line.clear();
        replies.read_line(&mut line).unwrap();
        assert!(line.starts_with(code), "{line}");
        if line.as_bytes()[3] == b' ' {
            return;
        }
    };
    expect_reply("220");
    stream.write_all(b"EHLO load.example\r\n").unwrap();
    expect_reply("250");
    for _ in 0..each {
        let steps: [(&[u8], &str); 4] = [
            (b"MAIL FROM:<a@b.example>\r\n", "250"),
            (b"RCPT TO:<c@d.example>\r\n", "250"),
            (b"DATA\r\n", "354"),
            (&body, "250"),
        ];
        for (bytes, code) in steps {
            stream.write_all(bytes).unwrap();
            expect_reply(code);
        }
    }
}
