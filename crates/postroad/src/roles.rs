//! A role as a process: reads its whole configuration, opens its ports and files, and runs until SIGINT or SIGTERM.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use postroad_control::{Control, ControlConfig, ControlDeps};
use postroad_core::NodeId;
use postroad_ingress::{Ingress, IngressConfig, IngressDeps};
use postroad_net::{ClientTls, Guard, NodeTls, Transport};
use postroad_outbound::{Outbound, OutboundConfig, OutboundDeps};
use postroad_queue::{Queue, QueueConfig, QueueDeps};
use postroad_storage::{Disk, DiskId, Identity, Origin, RealFs};
use postroad_telemetry::{Health, TelemetryConfig};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    cli::RoleName,
    components::Components,
    config::{ConfigError, Loader, Section},
    resolver::resolver,
    sections::{
        ClusterSection, DnsSection, GuardSection, HttpSection, MetricsSection, NodeSection, TlsSection,
    },
    signal,
};

const NAV: postroad_control::Nav = &[("Overview", "/"), ("Messages", "/messages")];

/// How often certificate files are checked for changes.
const RELOAD_EVERY: Duration = Duration::from_secs(60);

/// The sections of every role's file.
struct Common {
    node: NodeSection,
    cluster: ClusterSection,
    telemetry: TelemetryConfig,
    metrics: MetricsSection,
}

impl Common {
    fn read(loader: &mut Loader) -> Self {
        Self {
            node: loader.section("node"),
            cluster: loader.section("cluster"),
            telemetry: loader.section("telemetry"),
            metrics: loader.section("metrics"),
        }
    }
}

/// The file of an ingress node.
struct IngressFile {
    common: Common,
    tls: TlsSection,
    dns: DnsSection,
    ingress: IngressConfig,
}

impl IngressFile {
    fn read(mut loader: Loader) -> Result<(Self, toml::Table), ConfigError> {
        let file = Self {
            common: Common::read(&mut loader),
            tls: loader.section("tls"),
            dns: loader.section("dns"),
            ingress: loader.section("ingress"),
        };
        if file.ingress.unprotected_grpc(file.tls.is_given()).is_some() {
            loader.problem(
                "ingress.grpc_listen",
                "expected a certificate in `[tls]`, an address on loopback, or `grpc_plaintext = true`, which sends API keys in the clear",
            );
        }
        Ok((file, loader.finish()?))
    }
}

/// The file of a queue node.
struct QueueFile {
    common: Common,
    queue: QueueConfig,
}

impl QueueFile {
    fn read(mut loader: Loader) -> Result<(Self, toml::Table), ConfigError> {
        let file = Self { common: Common::read(&mut loader), queue: loader.section("queue") };
        Ok((file, loader.finish()?))
    }
}

/// The file of an outbound node.
struct OutboundFile {
    common: Common,
    dns: DnsSection,
    guard: GuardSection,
    outbound: OutboundConfig,
}

impl OutboundFile {
    fn read(mut loader: Loader) -> Result<(Self, toml::Table), ConfigError> {
        let file = Self {
            common: Common::read(&mut loader),
            dns: loader.section("dns"),
            guard: loader.section("guard"),
            outbound: loader.section("outbound"),
        };
        Ok((file, loader.finish()?))
    }
}

/// The file of a control node.
struct ControlFile {
    common: Common,
    http: HttpSection,
    control: ControlConfig,
}

impl ControlFile {
    fn read(mut loader: Loader) -> Result<(Self, toml::Table), ConfigError> {
        let file = Self {
            common: Common::read(&mut loader),
            http: loader.section("http"),
            control: loader.section("control"),
        };
        Ok((file, loader.finish()?))
    }
}

fn table_of(role: RoleName, config: &Path) -> Result<toml::Table, ConfigError> {
    let loader = Loader::read(config)?;
    Ok(match role {
        RoleName::Ingress => IngressFile::read(loader)?.1,
        RoleName::Queue => QueueFile::read(loader)?.1,
        RoleName::Outbound => OutboundFile::read(loader)?.1,
        RoleName::Control => ControlFile::read(loader)?.1,
    })
}

/// Checks a role's file; the error lists everything that is wrong with it.
///
/// # Errors
/// See [`ConfigError`].
pub fn check(role: RoleName, config: &Path) -> anyhow::Result<String> {
    table_of(role, config)?;
    Ok(format!("{}: good\n", config.display()))
}

/// Returns the settings in effect: the role's file, the environment and defaults.
///
/// # Errors
/// See [`ConfigError`].
pub fn print(role: RoleName, config: &Path) -> anyhow::Result<String> {
    Ok(toml::to_string_pretty(&table_of(role, config)?)?)
}

/// Runs `cluster form`: creates the data directory of a queue node of a new cluster.
///
/// # Errors
/// The configuration is invalid, or the directory is in use or holds a log.
pub fn form(config: &Path) -> anyhow::Result<String> {
    let disk = format_data(config, Origin::Form)?;
    Ok(format!("formatted disk {disk} for a new cluster, which forms when all queue nodes are started\n"))
}

/// Runs `cluster rejoin`: creates the data directory of a queue node whose disk was lost.
///
/// # Errors
/// As for [`form`]; and the node is the cluster's only queue node.
pub fn rejoin(config: &Path) -> anyhow::Result<String> {
    let disk = format_data(config, Origin::Rejoin)?;
    Ok(format!(
        "formatted disk {disk}, empty; when the node is started it joins as a learner and gets everything from the others\n"
    ))
}

fn format_data(config: &Path, origin: Origin) -> anyhow::Result<DiskId> {
    let (QueueFile { common, .. }, _) = QueueFile::read(Loader::read(config)?)?;
    let is_alone = common.cluster.queue.len() == 1;
    anyhow::ensure!(
        !is_alone || origin == Origin::Form,
        "cannot rejoin: the cluster has no other queue node to get the data from"
    );
    let fs = RealFs::new(&common.node.data);
    let identity = Identity { cluster: common.cluster.cluster(), node: common.node.node() };
    let disk = Disk { id: DiskId(rand::random()), origin };
    let formatted = postroad_storage::format(&fs, identity, disk);
    Ok(formatted.with_context(|| format!("`{}`", common.node.data.display()))?.id)
}

/// What a role's process runs besides the role.
struct Process {
    shutdown: CancellationToken,
    telemetry: postroad_telemetry::Telemetry,
    transport: Transport,
    health: Health,
    components: Components,
}

impl Process {
    async fn start(common: &Common, role: RoleName) -> anyhow::Result<Self> {
        let shutdown = signal::shutdown()?;
        let telemetry = postroad_telemetry::init(&common.telemetry, service_name(role))?;
        let tls = common.cluster.node_tls()?;
        check_identity(&tls, common, role)?;
        let (health, mut components) = (Health::new(), Components::default());
        let metrics = TcpListener::bind(common.metrics.listen).await;
        let metrics = metrics
            .with_context(|| format!("cannot listen on {} (`metrics.listen`)", common.metrics.listen))?;
        let ready = health.clone();
        components.spawn("metrics", |shutdown| serve_metrics(metrics, ready, shutdown));
        let reloaded = tls.clone();
        components.spawn("certificates", |shutdown| async move {
            reload(shutdown, || reloaded.reload()).await;
        });
        Ok(Self { shutdown, telemetry, transport: Transport::Mutual(tls), health, components })
    }

    /// Runs until the process is asked to stop, or a component stops by itself.
    async fn run(mut self, name: &'static str) -> anyhow::Result<()> {
        tracing::info!(role = name, version = env!("CARGO_PKG_VERSION"), "started");
        let failed = tokio::select! {
            () = self.shutdown.cancelled() => None,
            component = self.components.first_to_end() => Some(component),
        };
        self.components.stop().await;
        tracing::info!(role = name, "stopped");
        self.telemetry.shutdown().await;
        match failed {
            None => Ok(()),
            Some(component) => anyhow::bail!("component `{component}` stopped by itself; the log says why"),
        }
    }
}

fn service_name(role: RoleName) -> &'static str {
    match role {
        RoleName::Ingress => "postroad-ingress",
        RoleName::Queue => "postroad-queue",
        RoleName::Outbound => "postroad-outbound",
        RoleName::Control => "postroad-control",
    }
}

/// Refuses a certificate of another node or cluster, which every other node would refuse.
fn check_identity(tls: &NodeTls, common: &Common, role: RoleName) -> anyhow::Result<()> {
    let identity = tls.identity();
    let matches = identity.cluster == common.cluster.cluster()
        && identity.node == common.node.node()
        && identity.role.name() == role.as_str();
    anyhow::ensure!(
        matches,
        "`cluster.certificate` is for `{identity}`, which does not match `node.id`, `cluster.id` and the role"
    );
    Ok(())
}

pub(crate) async fn serve_metrics(listener: TcpListener, health: Health, shutdown: CancellationToken) {
    if let Err(error) = postroad_telemetry::serve(listener, health, shutdown).await {
        tracing::error!(%error, "the metrics listener failed");
    }
}

/// Reloads changed certificates; when that fails, the old ones stay in use.
async fn reload<E: std::fmt::Display>(shutdown: CancellationToken, load: impl Fn() -> Result<bool, E>) {
    while shutdown.run_until_cancelled(tokio::time::sleep(RELOAD_EVERY)).await.is_some() {
        match load() {
            Ok(true) => tracing::info!("certificates reloaded"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "cannot reload certificates; the old ones stay in use"),
        }
    }
}

/// Runs `postroad queue`.
///
/// # Errors
/// The configuration is invalid, or the role does not start or stops by itself.
pub async fn queue(config: &Path) -> anyhow::Result<()> {
    let (QueueFile { common, mut queue }, _) = QueueFile::read(Loader::read(config)?)?;
    let mut process = Process::start(&common, RoleName::Queue).await?;
    queue.voters = common.cluster.voters();
    queue.ledger_groups = common.cluster.ledger_groups;
    let deps = QueueDeps {
        identity: Identity { cluster: common.cluster.cluster(), node: common.node.node() },
        fs: Arc::new(RealFs::new(&common.node.data)),
        transport: process.transport.clone(),
        health: process.health.clone(),
    };
    let role = Queue::start(queue, deps).await?;
    process.components.spawn("queue", |shutdown| role.run(shutdown));
    process.run("queue").await
}

/// Runs `postroad ingress`.
///
/// # Errors
/// The configuration is invalid, or the role does not start or stops by itself.
pub async fn ingress(config: &Path) -> anyhow::Result<()> {
    let (IngressFile { common, tls, dns, ingress }, _) = IngressFile::read(Loader::read(config)?)?;
    let mut process = Process::start(&common, RoleName::Ingress).await?;
    let tls = tls.server_tls(&ingress.hostname)?;
    if let Some(tls) = tls.clone() {
        process.components.spawn("listener-certificates", |shutdown| async move {
            reload(shutdown, || tls.reload()).await;
        });
    }
    let deps = IngressDeps {
        node: common.node.node(),
        endpoints: common.cluster.endpoints(&process.transport),
        ledger_groups: common.cluster.ledger_groups,
        resolver: resolver(dns.resolver)?,
        tls,
        health: process.health.clone(),
    };
    let role = Ingress::start(ingress, deps).await?;
    process.components.spawn("ingress", |shutdown| role.run(shutdown));
    process.run("ingress").await
}

/// Runs `postroad outbound`.
///
/// # Errors
/// The configuration is invalid, or the role does not start or stops by itself.
pub async fn outbound(config: &Path) -> anyhow::Result<()> {
    let (OutboundFile { common, dns, guard, mut outbound }, _) = OutboundFile::read(Loader::read(config)?)?;
    let mut process = Process::start(&common, RoleName::Outbound).await?;
    outbound.data_directory.clone_from(&common.node.data);
    let deps = OutboundDeps {
        node: common.node.node(),
        endpoints: common.cluster.endpoints(&process.transport),
        resolver: resolver(dns.resolver)?,
        guard: Guard { allow: guard.allow },
        tls: ClientTls::opportunistic(),
        health: process.health.clone(),
    };
    let role = Outbound::start(outbound, deps)?;
    process.components.spawn("outbound", |shutdown| role.run(shutdown));
    process.run("outbound").await
}

/// Runs `postroad control`.
///
/// # Errors
/// The configuration is invalid, or the role does not start or stops by itself.
pub async fn control(config: &Path) -> anyhow::Result<()> {
    let (ControlFile { common, http, mut control }, _) = ControlFile::read(Loader::read(config)?)?;
    let mut process = Process::start(&common, RoleName::Control).await?;
    let listener = TcpListener::bind(http.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {} (`http.listen`)", http.listen))?;
    let deps = ControlDeps {
        endpoints: common.cluster.endpoints(&process.transport),
        health: process.health.clone(),
        nav: NAV,
    };
    if control.database.is_relative() {
        control.database = common.node.data.join(&control.database);
    }
    std::fs::create_dir_all(&common.node.data)?;
    let role = Control::start(control, deps).await?;
    let pages = role.router();
    process.components.spawn("control", |shutdown| role.run(shutdown));
    process.components.spawn("http", |shutdown| serve_pages(listener, pages, shutdown));
    process.run("control").await
}

/// Serves pages until `shutdown`.
pub(crate) async fn serve_pages(listener: TcpListener, pages: axum::Router, shutdown: CancellationToken) {
    let stop = shutdown.clone().cancelled_owned();
    let serve = axum::serve(listener, pages).with_graceful_shutdown(stop);
    // A browser that keeps a connection open must not delay the shutdown.
    let served = async move {
        tokio::select! {
            result = serve => result,
            () = async {
                shutdown.cancelled().await;
                tokio::time::sleep(Duration::from_secs(2)).await;
            } => Ok(()),
        }
    };
    if let Err(error) = served.await {
        tracing::error!(%error, "the HTTP listener failed");
    }
}

impl ClusterSection {
    fn voters(&self) -> Vec<postroad_queue::Voter> {
        let voter = |queue: &crate::sections::QueueNode| postroad_queue::Voter {
            node: NodeId(queue.node),
            address: queue.address.clone(),
        };
        self.queue.iter().map(voter).collect()
    }
}

impl Section for IngressConfig {
    fn problems(&self) -> Vec<(&'static str, String)> {
        Self::problems(self)
    }
}

impl Section for QueueConfig {
    fn problems(&self) -> Vec<(&'static str, String)> {
        Self::problems(self)
    }
}

impl Section for OutboundConfig {
    fn problems(&self) -> Vec<(&'static str, String)> {
        Self::problems(self)
    }
}

impl Section for ControlConfig {}

impl Section for TelemetryConfig {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns whether the file of an ingress node is refused because of this key.
    fn is_refused(key: &str, ingress: &str) -> bool {
        let table = ingress.parse().expect("the sample is TOML");
        let read = IngressFile::read(Loader::new("ingress.toml".into(), table));
        read.err().is_some_and(|error| error.problems.iter().any(|problem| problem.key == key))
    }

    #[test]
    fn config_check_refuses_grpc_in_the_clear_and_a_name_that_nobody_knows() {
        let grpc = "[ingress]\nhostname = \"mail.example.org\"\ngrpc_listen = \"192.0.2.1:50051\"\n";
        assert!(is_refused("ingress.grpc_listen", grpc));
        assert!(!is_refused("ingress.grpc_listen", &format!("{grpc}grpc_plaintext = true\n")));
        assert!(!is_refused("ingress.grpc_listen", &format!("[tls]\nself_signed = true\n{grpc}")));
        let unnamed = "[ingress]\nlisteners = [{ listen = \"0.0.0.0:587\" }]\n";
        assert!(is_refused("ingress.hostname", unnamed));
        assert!(!is_refused("ingress.hostname", &unnamed.replace("0.0.0.0", "127.0.0.1")));
    }
}
