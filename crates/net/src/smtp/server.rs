//! Serving SMTP clients on one listener.
//!
//! Every connection is a task of its own and ends with the listener.
//! On shutdown the idle ones are told to come back, those that are sending a message may finish it,
//! and after the time for draining whoever is left is cut off.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use postroad_core::Reply;
use postroad_smtp::server::{Answer, Question, ServerConfig, TlsInfo, write_reply};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

mod admission;
mod connection;

#[cfg(test)]
mod tests;

use admission::{Admission, Full, Permit};
use connection::Connection;

use crate::{accept::next_connection, metrics, tls::ServerTls};

/// What policy may know of a session when it answers a question.
#[derive(Debug)]
pub struct Session<'a, I> {
    /// The client's address.
    pub client: SocketAddr,
    /// What it calls itself; empty before it did.
    pub helo: &'a str,
    /// It said EHLO and not HELO.
    pub extended: bool,
    /// The TLS of the connection.
    pub tls: Option<&'a TlsInfo>,
    /// Who it is, once that is known.
    pub identity: Option<&'a I>,
}

/// What the role behind a listener decides.
pub trait Policy: Send + Sync + 'static {
    /// Who a client is.
    type Identity: Clone + Send + Sync + 'static;

    /// Returns who every client at this address is, where the address alone says it.
    fn network_identity(&self, client: IpAddr) -> Option<Self::Identity>;

    /// Answers a question; a positive answer to a message must be true when it is given.
    ///
    /// The future is dropped when the time for draining is over.
    fn decide(
        &self,
        session: Session<'_, Self::Identity>,
        question: Question,
    ) -> impl Future<Output = Answer<Self::Identity>> + Send;

    /// Says whether mail can be taken at all; the reply is given instead of the greeting.
    ///
    /// # Errors
    /// Not now, with a reply of code 421.
    fn accepting(&self) -> Result<(), Reply> {
        Ok(())
    }
}

/// One listener.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// Its name in metrics and logs.
    pub name: Box<str>,
    /// What it offers; whether TLS can be had follows from `tls`.
    pub server: ServerConfig,
    /// Its certificate.
    pub tls: Option<ServerTls>,
    /// TLS begins with the connection (RFC 8314) instead of with STARTTLS; needs `tls`.
    pub implicit_tls: bool,
    /// Connections at once; more are sent away.
    pub connections_max: usize,
    /// Connections at once from one network: an address of IPv4, a /64 of IPv6.
    pub connections_per_network_max: usize,
    /// For the whole handshake.
    pub handshake_timeout: Duration,
    /// For sessions that are busy when the node shuts down.
    pub drain_timeout: Duration,
    /// How long to listen for a client that speaks before it is greeted; with zero only what is there already counts.
    pub greeting_delay: Duration,
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            name: "smtp".into(),
            server: ServerConfig::default(),
            tls: None,
            implicit_tls: false,
            connections_max: 10_000,
            connections_per_network_max: 1_000,
            handshake_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            greeting_delay: Duration::ZERO,
        }
    }
}

/// What the connections of a listener share.
struct Listener<P> {
    server: Arc<ServerConfig>,
    acceptor: Option<TlsAcceptor>,
    implicit_tls: bool,
    handshake_timeout: Duration,
    greeting_delay: Duration,
    policy: Arc<P>,
    metrics: metrics::Listener,
    shutdown: CancellationToken,
}

/// Serves clients until `shutdown`, and then until the last connection has ended.
pub async fn serve<P: Policy>(
    listener: TcpListener,
    config: ListenerConfig,
    policy: Arc<P>,
    shutdown: CancellationToken,
) {
    // Its connections inherit it; a system where they do not makes replies late and nothing worse.
    if let Err(error) = SockRef::from(&listener).set_tcp_nodelay(true) {
        tracing::warn!(%error, "replies may be late: TCP_NODELAY cannot be set");
    }
    let admission = Admission::new(config.connections_max, config.connections_per_network_max);
    let drain_timeout = config.drain_timeout;
    let shared = Arc::new(Listener::new(config, policy, shutdown));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => break,
            (stream, client) = next_connection(&listener) => {
                match admission.admit(client.ip()) {
                    Ok(permit) => drop(connections.spawn(run(Arc::clone(&shared), stream, client, permit))),
                    Err(full) => shared.refuse(&stream, full),
                }
                shared.metrics.open.set(admission.open() as f64);
            }
            Some(ended) = connections.join_next() => {
                note_end(ended);
                shared.metrics.open.set(admission.open() as f64);
            }
        }
    }
    // Nobody new: the kernel refuses from here on.
    drop(listener);
    drain(&shared, connections, drain_timeout).await;
    shared.metrics.open.set(0.0);
}

async fn run<P: Policy>(shared: Arc<Listener<P>>, stream: TcpStream, client: SocketAddr, permit: Permit) {
    Box::pin(Connection::new(shared, client).run(stream)).await;
    drop(permit);
}

fn note_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        // The connection is lost and nothing else; the client has no answer and may try again.
        tracing::error!(%error, "an SMTP connection panicked");
    }
}

async fn drain<P>(shared: &Listener<P>, mut connections: JoinSet<()>, limit: Duration) {
    let all_ended = async {
        while let Some(ended) = connections.join_next().await {
            note_end(ended);
        }
    };
    if time::timeout(limit, all_ended).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections cut off: the time for draining is over");
        shared.metrics.cut.increment(connections.len() as u64);
        connections.shutdown().await;
    }
}

impl<P> Listener<P> {
    fn new(config: ListenerConfig, policy: Arc<P>, shutdown: CancellationToken) -> Self {
        let mut server = config.server;
        server.tls_available = config.tls.is_some();
        Self {
            server: Arc::new(server),
            acceptor: config.tls.map(|tls| tls.acceptor(&[])),
            implicit_tls: config.implicit_tls,
            handshake_timeout: config.handshake_timeout,
            greeting_delay: config.greeting_delay,
            policy,
            metrics: metrics::Listener::new(&config.name),
            shutdown,
        }
    }

    /// Sends a client away; a socket that was just accepted has room for one line.
    fn refuse(&self, stream: &TcpStream, full: Full) {
        let (subject, detail, text, counter) = match full {
            Full::Total => (3, 2, "too many connections", &self.metrics.refused_total),
            Full::Network => (7, 0, "too many connections from your network", &self.metrics.refused_network),
        };
        counter.increment(1);
        if self.implicit_tls {
            return;
        }
        let mut line = bytes::BytesMut::new();
        write_reply(&mut line, &Reply::new(421, subject, detail, format!("{} {text}", self.server.hostname)));
        // Who cannot be told is sent away all the same.
        let _ = SockRef::from(stream).send(&line);
    }
}
