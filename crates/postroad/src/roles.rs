//! A role as a process: reads its whole configuration, opens its ports and files, and runs until SIGINT or SIGTERM.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use postroad_cluster::{AboutNode, announce};
use postroad_control::{Control, ControlDeps};
use postroad_core::{Domain, NodeId};
use postroad_ingress::{Ingress, IngressDeps};
use postroad_net::{ClientTls, Connector, Guard, NodeTls, Transport};
use postroad_outbound::{Home, Outbound, OutboundDeps};
use postroad_queue::{Queue, QueueDeps, Voter};
use postroad_settings::{Change, changes};
use postroad_storage::{Disk, DiskId, Identity, Origin, RealFs};
use postroad_telemetry::{Component, Health, Telemetry, mail_log, show_data_disk};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::{
    certificate::{Remaining, remaining},
    cli::RoleName,
    cluster,
    components::Components,
    config::{self, ControlFile, IngressFile, OutboundFile, QueueFile, RoleFile},
    nodes::days_until,
    resolver::resolver,
    sections::{ClusterSection, QueueNode},
    signal,
};

const NAV: postroad_control::Nav = &[("Overview", "/"), ("Messages", "/messages")];

/// How often certificate files are checked for changes.
const RELOAD_EVERY: Duration = Duration::from_secs(60);

/// Runs `cluster form`: creates the data directory of a queue node of a new cluster.
///
/// # Errors
/// The configuration is invalid, or the directory is in use or holds a log.
pub fn form(config: &Path) -> anyhow::Result<String> {
    let disk = format_data(&config::read(config)?, Origin::Form)?;
    Ok(format!("formatted disk {disk} for a new cluster, which forms when all queue nodes are started\n"))
}

/// Runs `cluster rejoin`: creates the data directory of a queue node whose disk was lost.
///
/// # Errors
/// As for [`form`]; and the node is the cluster's only queue node.
pub fn rejoin(config: &Path) -> anyhow::Result<String> {
    let disk = format_data(&config::read(config)?, Origin::Rejoin)?;
    Ok(format!(
        "formatted disk {disk}, empty; when the node is started it joins as a learner and gets everything from the others\n"
    ))
}

/// Formats the data directory of a queue node.
pub(crate) fn format_data(file: &QueueFile, origin: Origin) -> anyhow::Result<DiskId> {
    let is_alone = file.cluster.queue.len() == 1;
    anyhow::ensure!(
        !is_alone || origin == Origin::Form,
        "cannot rejoin: the cluster has no other queue node to get the data from"
    );
    let data = &file.node.data.0;
    let fs = RealFs::new(data);
    let identity = Identity { cluster: file.cluster.id, node: file.node.id };
    let disk = Disk { id: DiskId(postroad_env::random()), origin };
    let formatted = postroad_storage::format(&fs, identity, disk);
    Ok(formatted.with_context(|| format!("`{}`", data.display()))?.id)
}

/// What a role's process runs besides the role.
struct Process {
    shutdown: CancellationToken,
    /// SIGHUP: the configuration is read again.
    hangup: Signal,
    /// The same for what reloads its own files.
    hangups: watch::Sender<()>,
    telemetry: Telemetry,
    transport: Transport,
    health: Health,
    /// Ready once the role has started and added its own component.
    started: Component,
    components: Components,
}

impl Process {
    async fn start<T: RoleFile>(file: &T) -> anyhow::Result<Self> {
        let shutdown = signal::shutdown()?;
        let hangup = signal(SignalKind::hangup())?;
        let common = file.common();
        let telemetry = postroad_telemetry::init(common.telemetry, service_name(T::ROLE))?;
        postroad_net::metrics::show_failures();
        let tls = common.cluster.node_tls()?;
        tls.record_ends();
        let (health, mut components) = (Health::new(), Components::default());
        // Without it `/readyz` would say ready before the role has added its own.
        let started = health.component("start");
        let metrics = TcpListener::bind(common.metrics.listen).await;
        let metrics = metrics
            .with_context(|| format!("cannot listen on {} (`metrics.listen`)", common.metrics.listen))?;
        let ready = health.clone();
        components.spawn("metrics", |shutdown| serve_metrics(metrics, ready, shutdown));
        let (hangups, about) =
            (watch::Sender::new(()), watch::Sender::new(about_node(T::ROLE, common.node, &tls)));
        let transport = Transport::Mutual(tls.clone());
        let (endpoints, described) = (common.cluster.endpoints(&transport), about.subscribe());
        components.spawn("announcements", |shutdown| async move {
            shutdown.run_until_cancelled(announce(endpoints, described)).await;
        });
        let at_once = hangups.subscribe();
        components.spawn("certificates", |shutdown| async move {
            let mut days_logged = None;
            reload(shutdown, at_once, || {
                let changed = tls.reload();
                about.send_if_modified(|about| {
                    let certificates = Some(tls.certificates());
                    let differs = about.certificates != certificates;
                    about.certificates = certificates;
                    differs
                });
                warn_of_end(&tls, &mut days_logged);
                changed
            })
            .await;
        });
        Ok(Self { shutdown, hangup, hangups, telemetry, transport, health, started, components })
    }

    /// Runs until the process is asked to stop, or a component stops by itself; on SIGHUP reloads the configuration.
    async fn run<T: RoleFile>(mut self, started: T, path: &Path) -> anyhow::Result<()> {
        let (name, mut last) = (T::ROLE.as_str(), started.clone());
        self.started.set_ready(true);
        tracing::info!(role = name, version = env!("CARGO_PKG_VERSION"), "started");
        let failed = loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break None,
                component = self.components.first_to_end() => break Some(component),
                Some(()) = self.hangup.recv() => {
                    self.hangups.send_replace(());
                    reload_configuration(&started, &mut last, path, &self.telemetry);
                },
            }
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

/// Applies the settings that can change while running; logs those that differ from what the process was started with.
fn reload_configuration<T: RoleFile>(started: &T, last: &mut T, path: &Path, telemetry: &Telemetry) {
    // First, so that logrotate gets its file even where the configuration is wrong.
    mail_log::reopen();
    let new: T = match config::read(path) {
        Ok(new) => new,
        Err(error) => return tracing::error!(%error, "configuration not reloaded"),
    };
    for Change { key, .. } in changes(started, &new).iter().filter(|change| !change.reload) {
        tracing::warn!(setting = key, "setting changed in the configuration: restart to apply it");
    }
    for Change { key, .. } in changes(last, &new).iter().filter(|change| change.reload) {
        tracing::info!(setting = key, "setting reloaded");
    }
    telemetry.set_log_filter(&new.common().telemetry.log_filter);
    *last = new;
}

/// Describes this process to the queue nodes.
fn about_node(role: RoleName, node: NodeId, tls: &NodeTls) -> AboutNode {
    AboutNode {
        role: cluster::net_role(role),
        node,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: postroad_env::wall(),
        certificates: Some(tls.certificates()),
    }
}

/// Logs, once for each day that is left, that a certificate of this node ends soon.
fn warn_of_end(tls: &NodeTls, days_logged: &mut Option<i64>) {
    let (now, certificates) = (postroad_env::wall(), tls.certificates());
    let all = std::iter::once(&certificates.own).chain(&certificates.authorities);
    let Some(first) = all.min_by_key(|certificate| certificate.not_after) else { return };
    let days = days_until(first.not_after, now);
    if remaining(first, now) == Remaining::Enough || *days_logged == Some(days) {
        return;
    }
    *days_logged = Some(days);
    let what =
        if *first == certificates.own { "certificate of this node" } else { "certificate of the authority" };
    tracing::warn!(days_left = days, ends_at = %first.not_after, "the {what} ends soon: renew it");
}

fn service_name(role: RoleName) -> &'static str {
    match role {
        RoleName::Ingress => "postroad-ingress",
        RoleName::Queue => "postroad-queue",
        RoleName::Outbound => "postroad-outbound",
        RoleName::Control => "postroad-control",
    }
}

pub(crate) async fn serve_metrics(listener: TcpListener, health: Health, shutdown: CancellationToken) {
    if let Err(error) = postroad_telemetry::serve(listener, health, shutdown).await {
        tracing::error!(%error, "the metrics listener failed");
    }
}

/// Reloads changed certificates every minute and on SIGHUP; when that fails, the old ones stay in use.
async fn reload<E: std::fmt::Display>(
    shutdown: CancellationToken,
    mut at_once: watch::Receiver<()>,
    mut load: impl FnMut() -> Result<bool, E>,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            // Without a sender only time is left.
            Ok(()) = at_once.changed() => {}
            () = tokio::time::sleep(RELOAD_EVERY) => {}
        }
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
    let file: QueueFile = config::load(config)?;
    let mut process = Process::start(&file).await?;
    let deps = QueueDeps {
        identity: Identity { cluster: file.cluster.id, node: file.node.id },
        voters: file.cluster.voters(),
        ledger_groups: file.cluster.ledger_groups,
        fs: Arc::new(RealFs::new(&file.node.data.0)),
        transport: process.transport.clone(),
        health: process.health.clone(),
    };
    show_data_disk(&file.node.data.0);
    let role = Queue::start(file.queue.clone(), deps).await?;
    process.components.spawn("queue", |shutdown| role.run(shutdown));
    process.run(file, config).await
}

/// Runs `postroad ingress`.
///
/// # Errors
/// The configuration is invalid, or the role does not start or stops by itself.
pub async fn ingress(config: &Path) -> anyhow::Result<()> {
    let file: IngressFile = config::load(config)?;
    let mut process = Process::start(&file).await?;
    let tls = file.tls.server_tls(file.ingress.hostname.as_str())?;
    if let Some(tls) = tls.clone() {
        tls.record_end();
        let at_once = process.hangups.subscribe();
        process.components.spawn("listener-certificates", |shutdown| async move {
            reload(shutdown, at_once, || tls.reload()).await;
        });
    }
    let deps = IngressDeps {
        node: file.node.id,
        endpoints: file.cluster.endpoints(&process.transport),
        ledger_groups: file.cluster.ledger_groups,
        resolver: resolver(file.dns.resolver)?,
        tls,
        health: process.health.clone(),
    };
    let role = Ingress::start(file.ingress.clone(), deps).await?;
    process.components.spawn("ingress", |shutdown| role.run(shutdown));
    process.run(file, config).await
}

/// Runs `postroad outbound`.
///
/// # Errors
/// The configuration is invalid, or the role does not start or stops by itself.
pub async fn outbound(config: &Path) -> anyhow::Result<()> {
    let file: OutboundFile = config::load(config)?;
    let mut process = Process::start(&file).await?;
    let deps = OutboundDeps {
        node: file.node.id,
        home: Home::Directory(file.node.data.0.clone()),
        endpoints: file.cluster.endpoints(&process.transport),
        resolver: resolver(file.dns.resolver)?,
        connector: Connector::Tcp,
        guard: Guard { allow: file.guard.allow.clone() },
        tls: ClientTls::opportunistic(),
        health: process.health.clone(),
    };
    show_data_disk(&file.node.data.0);
    let role = Outbound::start(file.outbound.clone(), deps)?;
    process.components.spawn("outbound", |shutdown| role.run(shutdown));
    process.run(file, config).await
}

/// Runs `postroad control`.
///
/// # Errors
/// The configuration is invalid, or the role does not start or stops by itself.
pub async fn control(config: &Path) -> anyhow::Result<()> {
    let file: ControlFile = config::load(config)?;
    let mut process = Process::start(&file).await?;
    let listener = TcpListener::bind(file.http.listen).await;
    let listener =
        listener.with_context(|| format!("cannot listen on {} (`http.listen`)", file.http.listen))?;
    let deps = ControlDeps {
        data_directory: file.node.data.0.clone(),
        endpoints: file.cluster.endpoints(&process.transport),
        ledger_groups: file.cluster.ledger_groups,
        health: process.health.clone(),
        nav: NAV,
    };
    let data = &file.node.data.0;
    std::fs::create_dir_all(data)
        .with_context(|| format!("cannot create `{}` (`node.data`)", data.display()))?;
    show_data_disk(data);
    let role = Control::start(file.control.clone(), deps).await?;
    let pages = site(role.router(), NAV, &file.http.hosts);
    process.components.spawn("control", |shutdown| role.run(shutdown));
    process.components.spawn("http", |shutdown| serve_pages(listener, pages, shutdown));
    process.run(file, config).await
}

/// Returns pages as this machine's listener serves them: to its own name and those of `http.hosts`.
pub(crate) fn site(pages: axum::Router, nav: postroad_control::Nav, hosts: &[Domain]) -> axum::Router {
    let machine = rustix::system::uname();
    let names = hosts.iter().map(Domain::as_str).chain(machine.nodename().to_str().ok());
    postroad_web::site(pages, nav, postroad_web::HostList::new(names))
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
    fn voters(&self) -> Vec<Voter> {
        let voter =
            |queue: &QueueNode| Voter { node: queue.node, address: queue.address.as_str().to_owned() };
        self.queue.iter().map(voter).collect()
    }
}
