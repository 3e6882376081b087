//! Serves SMTP clients on one listener.
//!
//! Every connection is a task that the listener waits for.
//! On shutdown idle connections get 421 and are closed, those that are sending a message may finish it,
//! and connections that are still open after the drain timeout are cut off.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use postroad_core::Reply;
use postroad_smtp::server::{Answer, Question, ServerConfig, SessionError, TlsInfo, write_reply};
use postroad_telemetry::mail_log::{self, Mailbox, Rejected, Said, Trace};
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

use admission::{Admission, LimitHit, Permit};
use connection::Connection;

use crate::{accept::next_connection, metrics, tls::ServerTls};

/// The session data that a policy sees.
#[derive(Debug)]
pub struct Session<'a, I> {
    /// The client's address.
    pub client: SocketAddr,
    /// The client's EHLO or HELO name; empty before that.
    pub helo: &'a str,
    /// The client sent EHLO, not HELO.
    pub extended: bool,
    /// The TLS of the connection, if any.
    pub tls: Option<&'a TlsInfo>,
    /// The identity of the client, if known.
    pub identity: Option<&'a I>,
    /// The client has authenticated with AUTH.
    pub logged_in: bool,
}

/// The decisions of the role behind a listener.
pub trait Policy: Send + Sync + 'static {
    /// The identity of an authenticated client.
    type Identity: Clone + Send + Sync + 'static;

    /// Returns the identity of a client by its address alone, if its network is a credential.
    fn network_identity(&self, client: IpAddr) -> Option<Self::Identity>;

    /// Returns the message size limit of an identity, if it has its own; the listener's limit holds too.
    fn message_size_max(&self, _identity: &Self::Identity) -> Option<u64> {
        None
    }

    /// Answers a question. A positive reply to a message means that it is stored.
    ///
    /// The future is dropped when the drain timeout has passed.
    fn decide(
        &self,
        session: Session<'_, Self::Identity>,
        question: Question,
    ) -> impl Future<Output = Answer<Self::Identity>> + Send;

    /// Checks whether this node can accept mail at all.
    ///
    /// # Errors
    /// The node cannot accept mail now; the reply, a 421, is sent instead of the greeting.
    fn accepting(&self) -> Result<(), Reply> {
        Ok(())
    }
}

/// One listener.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// The name in metrics and logs.
    pub name: Box<str>,
    /// The settings of sessions; `tls` decides whether TLS is offered.
    pub server: ServerConfig,
    /// The certificate, if any.
    pub tls: Option<ServerTls>,
    /// Connections begin with TLS (RFC 8314) instead of STARTTLS; needs `tls`.
    pub implicit_tls: bool,
    /// Concurrent connections; more get 421.
    pub connections_max: usize,
    /// Concurrent connections from one network: an IPv4 address or an IPv6 /64.
    pub connections_per_network_max: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long sessions that are receiving a message may continue after shutdown.
    pub drain_timeout: Duration,
    /// How long to wait before the greeting for clients that speak too early; with zero, only bytes already received count.
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

/// Shared by the connections of a listener.
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

/// Serves clients until `shutdown`, then waits for the open connections.
pub async fn serve<P: Policy>(
    listener: TcpListener,
    config: ListenerConfig,
    policy: Arc<P>,
    shutdown: CancellationToken,
) {
    // Accepted connections inherit it; if not, replies are only slower.
    if let Err(error) = SockRef::from(&listener).set_tcp_nodelay(true) {
        tracing::warn!(%error, "cannot set TCP_NODELAY: replies may be slow");
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
                    Err(limit) => shared.refuse(&stream, client.ip(), limit),
                }
                shared.metrics.open.set(admission.open() as f64);
            }
            Some(ended) = connections.join_next() => {
                log_panic(ended);
                shared.metrics.open.set(admission.open() as f64);
            }
        }
    }
    // From here on the kernel refuses new connections.
    drop(listener);
    drain(&shared, connections, drain_timeout).await;
    shared.metrics.open.set(0.0);
}

async fn run<P: Policy>(shared: Arc<Listener<P>>, stream: TcpStream, client: SocketAddr, permit: Permit) {
    Box::pin(Connection::new(shared, client).run(stream)).await;
    drop(permit);
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        // Only this connection is lost; the client got no reply and will retry.
        tracing::error!(%error, "SMTP connection panicked");
    }
}

async fn drain<P>(shared: &Listener<P>, mut connections: JoinSet<()>, limit: Duration) {
    let all_ended = async {
        while let Some(ended) = connections.join_next().await {
            log_panic(ended);
        }
    };
    if time::timeout(limit, all_ended).await.is_err() {
        tracing::warn!(connections = connections.len(), "drain timeout passed: open connections cut off");
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

    /// Refuses a client with 421; the buffer of a new socket has room for one line.
    fn refuse(&self, stream: &TcpStream, client: IpAddr, limit: LimitHit) {
        let (error, reason, counter) = match limit {
            LimitHit::Total => (SessionError::TooManyConnections, "connections", &self.metrics.refused_total),
            LimitHit::Network => (
                SessionError::TooManyConnectionsOfNetwork,
                "connections_per_network",
                &self.metrics.refused_network,
            ),
        };
        counter.increment(1);
        let reply = error.reply_with(&self.server.hostname);
        log_refused("connect", reason, client, None, &reply);
        if self.implicit_tls {
            return;
        }
        let mut line = bytes::BytesMut::new();
        write_reply(&mut line, &reply);
        // The connection is closed either way.
        let _ = SockRef::from(stream).send(&line);
    }
}

/// Writes to the mail log what was refused without asking the policy, or by it before a session began.
fn log_refused(stage: &'static str, reason: &'static str, client: IpAddr, helo: Option<&str>, reply: &Reply) {
    if !mail_log::is_enabled() {
        return;
    }
    mail_log::write(&Rejected {
        stage,
        reason,
        reply: Said(&reply.to_string()),
        client: Some(client.to_canonical()),
        tenant: None,
        from: Mailbox::None,
        to: Mailbox::None,
        protocol: "smtp",
        helo,
        trace: Trace(""),
    });
}
