//! The role: its listeners, what they share, and the end.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use postroad_cluster::{DirectoryWatch, Endpoints, LeaderCalls, LeaderWatch, SubmitConfig, Submitter};
use postroad_core::{GroupId, NodeId};
use postroad_dns::Resolver;
use postroad_net::{
    ServerTls, public,
    smtp::server::{ListenerConfig, serve},
};
use postroad_smtp::server::ServerConfig;
use postroad_telemetry::{Component, Health};
use tokio::{net::TcpListener, task::JoinSet, time};
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use crate::{
    IngressConfig, SmtpListener, StartError,
    auth::Authenticator,
    grpc::{self, Submissions},
    submission::Intake,
    metrics::{CATALOGUE, Metrics},
    policy::SmtpPolicy,
};

/// What the role is given by the process it runs in.
#[derive(Debug)]
pub struct IngressDeps {
    /// Which node it is.
    pub node: NodeId,
    /// The connections to all queue nodes.
    pub endpoints: Endpoints,
    /// The number of ledger groups in the cluster.
    pub ledger_groups: u16,
    /// Whom to ask for the sites of recipients.
    pub resolver: Resolver,
    /// The certificate of the listeners.
    pub tls: Option<ServerTls>,
    /// Where readiness is told.
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
    intake: Arc<Intake>,
    authenticator: Arc<Authenticator>,
    calls: LeaderCalls,
    ledger_groups: u16,
    ready: Component,
    /// What the intake stands on; ends after the last client.
    background: Background,
}

struct Background {
    _leaders: LeaderWatch,
    _directory: DirectoryWatch,
    _submitter: JoinSet<()>,
}

/// How often readiness is looked at.
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
    /// Opens the ports; clients are served once it runs.
    ///
    /// # Errors
    /// A port cannot be opened, or a listener that needs a certificate has none.
    pub async fn start(config: IngressConfig, deps: IngressDeps) -> Result<Self, StartError> {
        postroad_telemetry::describe(CATALOGUE);
        let config = Arc::new(config);
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
            SubmitConfig { deadline: config.submit_timeout(), ..SubmitConfig::default() },
        );
        let metrics = Arc::new(Metrics::new());
        let authenticator = Arc::new(Authenticator::new(directory.subscribe(), Arc::clone(&metrics)));
        let view = directory.subscribe();
        let intake = Intake::new(Arc::clone(&config), metrics, view, submitter, deps.resolver);
        Ok(Self {
            config,
            node: deps.node,
            tls: deps.tls,
            smtp,
            smtp_addresses,
            grpc: grpc.map(|(listener, _)| listener),
            grpc_address,
            intake: Arc::new(intake),
            authenticator,
            calls: LeaderCalls::new(&deps.endpoints, &leaders.subscribe()),
            ledger_groups: deps.ledger_groups,
            ready: deps.health.component("ingress"),
            background: Background { _leaders: leaders, _directory: directory, _submitter: submitting },
        })
    }

    /// Returns where SMTP is spoken, in the order of the configuration, with the ports that were given.
    #[must_use]
    pub fn smtp_addresses(&self) -> &[SocketAddr] {
        &self.smtp_addresses
    }

    /// Returns where gRPC is spoken.
    #[must_use]
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc_address
    }

    /// Serves clients until `shutdown`, and then those who are sending until they are done or the time for that is over.
    pub async fn run(mut self, shutdown: CancellationToken) {
        tracing::info!(node = %self.node, smtp = ?self.smtp_addresses, grpc = ?self.grpc_address, "ingress serves");
        let reporter = HealthReporter::new();
        let mut serving = JoinSet::new();
        for (listener, socket) in std::mem::take(&mut self.smtp) {
            let policy = SmtpPolicy {
                service: listener.service,
                intake: Arc::clone(&self.intake),
                authenticator: Arc::clone(&self.authenticator),
            };
            let config = self.listener_config(&listener);
            serving.spawn(serve(socket, config, Arc::new(policy), shutdown.clone()));
        }
        if let Some(socket) = self.grpc.take() {
            let submissions = Submissions {
                intake: Arc::clone(&self.intake),
                authenticator: Arc::clone(&self.authenticator),
                calls: self.calls.clone(),
                ledger_groups: self.ledger_groups,
            };
            let tls = self.tls.as_ref().filter(|_| !self.config.grpc_plaintext);
            let listener = public::listen(socket, tls);
            serving.spawn(grpc::serve(listener, submissions, reporter.clone(), shutdown.clone()));
        }
        let (intake, patience) = (Arc::clone(&self.intake), self.config.submit_timeout());
        serving.spawn(tell_readiness(intake, self.ready, reporter, patience, shutdown));
        while serving.join_next().await.is_some() {}
        drop(self.background);
        tracing::info!(node = %self.node, "ingress has stopped");
    }

    fn listener_config(&self, listener: &SmtpListener) -> ListenerConfig {
        let config = &self.config;
        let service = match listener.service {
            crate::ListenerService::Submission => "submission",
            crate::ListenerService::Relay => "relay",
        };
        ListenerConfig {
            name: service.into(),
            server: ServerConfig {
                hostname: config.hostname.as_str().into(),
                service: listener.service.into(),
                message_size_max: config.message_size_max,
                recipients_max: config.recipients_max,
                command_timeout: Duration::from_secs(config.command_timeout_secs),
                data_timeout: Duration::from_secs(config.data_timeout_secs),
                ..ServerConfig::default()
            },
            tls: self.tls.clone(),
            implicit_tls: listener.implicit_tls,
            connections_max: config.connections_max,
            connections_per_network_max: config.connections_per_network_max,
            drain_timeout: config.drain_timeout(),
            ..ListenerConfig::default()
        }
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

/// Tells readiness until `shutdown`; new clients are sent away only when mail could not be stored for some time.
async fn tell_readiness(
    intake: Arc<Intake>,
    ready: Component,
    reporter: HealthReporter,
    patience: Duration,
    shutdown: CancellationToken,
) {
    let mut every = time::interval(READINESS_EVERY);
    let mut last_ready = Instant::now();
    let mut told = None;
    while shutdown.run_until_cancelled(every.tick()).await.is_some() {
        let is_ready = intake.is_ready();
        if is_ready {
            last_ready = Instant::now();
        }
        // An election is shorter than the patience of a client that is submitting already.
        intake.set_accepting(last_ready.elapsed() < patience);
        if told != Some(is_ready) {
            told = Some(is_ready);
            tracing::info!(ready = is_ready, "readiness of ingress has changed");
            ready.set_ready(is_ready);
            grpc::report(&reporter, is_ready).await;
        }
    }
    ready.set_ready(false);
    grpc::report(&reporter, false).await;
}
