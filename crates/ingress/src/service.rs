//! The ingress role: opens its listeners, serves clients and shuts down.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use postroad_cluster::{DirectoryWatch, Endpoints, LeaderCalls, LeaderWatch, SubmitConfig, Submitter};
use postroad_core::{GroupId, NodeId};
use postroad_dns::Resolver;
use postroad_net::{
    ServerTls, public,
    smtp::server::{ListenerConfig, serve},
};
use postroad_smtp::{server::ServerConfig, tolerance::Tolerant};
use postroad_telemetry::{Component, Health};
use tokio::{net::TcpListener, task::JoinSet, time};
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use crate::{
    IngressConfig, SmtpListener, StartError,
    auth::Authenticator,
    grpc::{self, GrpcService},
    metrics::Metrics,
    policy::SmtpPolicy,
    submission::SubmissionHandler,
};

/// What the process provides to the role.
#[derive(Debug)]
pub struct IngressDeps {
    /// The id of this node.
    pub node: NodeId,
    /// Channels to all queue nodes.
    pub endpoints: Endpoints,
    /// The number of ledger groups in the cluster.
    pub ledger_groups: u16,
    /// Looks up the sites of recipients.
    pub resolver: Resolver,
    /// The certificate of the listeners, if any.
    pub tls: Option<ServerTls>,
    /// Receives the readiness of the role.
    pub health: Health,
}

/// An ingress node whose ports are open.
pub struct Ingress {
    config: Arc<IngressConfig>,
    node: NodeId,
    tls: Option<ServerTls>,
    smtp: Vec<(SmtpListener, TcpListener)>,
    smtp_addresses: Vec<SocketAddr>,
    grpc: Option<TcpListener>,
    grpc_address: Option<SocketAddr>,
    handler: Arc<SubmissionHandler>,
    authenticator: Arc<Authenticator>,
    calls: LeaderCalls,
    ledger_groups: u16,
    ready: Component,
    /// Background tasks that must outlive the last client.
    background: Background,
}

struct Background {
    _leaders: LeaderWatch,
    _directory: DirectoryWatch,
    _submitter: JoinSet<()>,
}

/// How often readiness is checked.
const READINESS_EVERY: Duration = Duration::from_millis(100);

impl std::fmt::Debug for Ingress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingress")
            .field("node", &self.node)
            .field("smtp", &self.smtp_addresses)
            .finish_non_exhaustive()
    }
}

impl Ingress {
    /// Opens the ports. [`Ingress::run`] serves the clients.
    ///
    /// # Errors
    /// A port cannot be opened, or a listener that needs a certificate has none (gRPC included).
    pub fn start(config: IngressConfig, deps: IngressDeps) -> BoxFuture<'static, Result<Self, StartError>> {
        Box::pin(Self::open(config, deps))
    }

    async fn open(config: IngressConfig, deps: IngressDeps) -> Result<Self, StartError> {
        let config = Arc::new(config);
        if let Some(address) = config.unprotected_grpc(deps.tls.is_some()) {
            return Err(StartError::GrpcWithoutCertificate(address));
        }
        let (smtp, smtp_addresses) = bind_smtp(&config, deps.tls.is_some()).await?;
        let grpc = match config.grpc_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let grpc_address = grpc.as_ref().map(|(_, address)| *address);

        let leaders = LeaderWatch::start(&deps.endpoints);
        let directory = DirectoryWatch::start(&deps.endpoints);
        let mut submitting = JoinSet::new();
        let submitter = Submitter::start(
            &mut submitting,
            &deps.endpoints,
            &leaders.subscribe(),
            (1..=deps.ledger_groups).map(GroupId),
            SubmitConfig {
                deadline: config.submit_timeout,
                waiting_max: config.submit_waiting_max,
                batch_bytes_max: config.submit_batch_bytes_max.to_usize(),
                batch_messages_max: config.submit_batch_max,
            },
        );
        let metrics = Arc::new(Metrics::new());
        let authenticator = Arc::new(Authenticator::new(directory.subscribe(), Arc::clone(&metrics)));
        let view = directory.subscribe();
        let handler = SubmissionHandler::new(Arc::clone(&config), metrics, view, submitter, deps.resolver);
        Ok(Self {
            config,
            node: deps.node,
            tls: deps.tls,
            smtp,
            smtp_addresses,
            grpc: grpc.map(|(listener, _)| listener),
            grpc_address,
            handler: Arc::new(handler),
            authenticator,
            calls: LeaderCalls::new(&deps.endpoints, &leaders.subscribe()),
            ledger_groups: deps.ledger_groups,
            ready: deps.health.component("ingress"),
            background: Background { _leaders: leaders, _directory: directory, _submitter: submitting },
        })
    }

    /// Returns the SMTP addresses in the order of the configuration, with the actual ports.
    #[must_use]
    pub fn smtp_addresses(&self) -> &[SocketAddr] {
        &self.smtp_addresses
    }

    /// Returns the gRPC address, with the actual port.
    #[must_use]
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc_address
    }

    /// Serves clients until `shutdown`; then waits for clients that are sending, within the drain timeout.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(self.serve(shutdown))
    }

    async fn serve(mut self, shutdown: CancellationToken) {
        tracing::info!(node = %self.node, smtp = ?self.smtp_addresses, grpc = ?self.grpc_address, "ingress started");
        let reporter = HealthReporter::new();
        let mut serving = JoinSet::new();
        for (listener, socket) in std::mem::take(&mut self.smtp) {
            let policy = SmtpPolicy {
                service: listener.service,
                handler: Arc::clone(&self.handler),
                authenticator: Arc::clone(&self.authenticator),
            };
            let config = self.listener_config(&listener);
            serving.spawn(serve(socket, config, Arc::new(policy), shutdown.clone()));
        }
        if let Some(socket) = self.grpc.take() {
            let service = GrpcService {
                handler: Arc::clone(&self.handler),
                authenticator: Arc::clone(&self.authenticator),
                calls: self.calls.clone(),
                ledger_groups: self.ledger_groups,
                stopping: shutdown.clone(),
            };
            let tls = self.tls.as_ref().filter(|_| !self.config.grpc_plaintext);
            if tls.is_none() {
                warn_of_plaintext_grpc(self.grpc_address);
            }
            let listener = public::listen(socket, tls);
            serving.spawn(grpc::serve(listener, service, reporter.clone(), shutdown.clone()));
        }
        let (handler, submit_timeout) = (Arc::clone(&self.handler), self.config.submit_timeout);
        serving.spawn(report_readiness(handler, self.ready, reporter, submit_timeout, shutdown));
        while serving.join_next().await.is_some() {}
        drop(self.background);
        tracing::info!(node = %self.node, "ingress stopped");
    }

    fn listener_config(&self, listener: &SmtpListener) -> ListenerConfig {
        let config = &self.config;
        ListenerConfig {
            name: listener.service.as_str().into(),
            server: ServerConfig {
                hostname: config.hostname.as_str().into(),
                service: listener.service.into(),
                message_size_max: config.message_size_max.bytes(),
                recipients_max: config.recipients_max,
                refusals_max: config.refusals_max,
                tolerant: if listener.strict_syntax { Tolerant::Nobody } else { Tolerant::Known },
                // Follows from `tls` below.
                tls_available: false,
                command_timeout: config.command_timeout,
                data_timeout: config.data_timeout,
            },
            tls: self.tls.clone(),
            implicit_tls: listener.implicit_tls,
            connections_max: config.connections_max,
            connections_per_network_max: config.connections_per_network_max,
            handshake_timeout: config.handshake_timeout,
            drain_timeout: config.drain_timeout,
            greeting_delay: config.greeting_delay,
        }
    }
}

fn warn_of_plaintext_grpc(address: Option<SocketAddr>) {
    let Some(listen) = address else { return };
    if listen.ip().is_loopback() {
        tracing::info!(%listen, "gRPC without TLS on loopback");
    } else {
        tracing::warn!(%listen, "gRPC without TLS (`grpc_plaintext`): API keys are sent in the clear");
    }
}

/// Opens every SMTP listener's port.
async fn bind_smtp(
    config: &IngressConfig,
    has_certificate: bool,
) -> Result<(Vec<(SmtpListener, TcpListener)>, Vec<SocketAddr>), StartError> {
    let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
    for listener in &config.listeners {
        if listener.implicit_tls && !has_certificate {
            return Err(StartError::NoCertificate(listener.listen));
        }
        let (socket, address) = bind(listener.listen).await?;
        listeners.push((listener.clone(), socket));
        addresses.push(address);
    }
    Ok((listeners, addresses))
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |error| StartError::Listen(address, error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Reports readiness until `shutdown`. New clients get 421 only when mail could not be stored for the submit timeout.
async fn report_readiness(
    handler: Arc<SubmissionHandler>,
    ready: Component,
    reporter: HealthReporter,
    submit_timeout: Duration,
    shutdown: CancellationToken,
) {
    let mut every = time::interval(READINESS_EVERY);
    let mut last_ready = postroad_env::now();
    let mut reported = None;
    while shutdown.run_until_cancelled(every.tick()).await.is_some() {
        let is_ready = handler.is_ready();
        if is_ready {
            last_ready = postroad_env::now();
        }
        // An election is shorter than the submit timeout, so clients need not notice it.
        handler.set_accepting(postroad_env::since(last_ready) < submit_timeout);
        if reported != Some(is_ready) {
            reported = Some(is_ready);
            tracing::info!(ready = is_ready, "ingress readiness changed");
            ready.set_ready(is_ready);
            grpc::report(&reporter, is_ready).await;
        }
    }
    ready.set_ready(false);
    grpc::report(&reporter, false).await;
}
