//! `postroad dev`: every role in one process on loopback, and a sandbox that captures what would be sent.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use postroad_cluster::Endpoints;
use postroad_control::{Control, ControlConfig, ControlDeps};
use postroad_core::{ClusterId, NodeId};
use postroad_ingress::{Ingress, IngressDeps};
use postroad_net::{
    ClientTls, Connector, Expect, Guard, MemoryNet, Role, ServerTls, Transport,
    authority::{write_new_file, write_secret},
};
use postroad_outbound::{Home, Outbound, OutboundConfig, OutboundDeps};
use postroad_queue::{Queue, QueueConfig, QueueDeps, Voter};
use postroad_sandbox::{Sandbox, SandboxConfig, SandboxDeps};
use postroad_storage::{Disk, DiskId, Identity, Origin, RealFs};
use postroad_telemetry::{Health, LogFilter, OtlpEndpoint, Telemetry, TelemetryConfig, show_data_disk};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::DevArgs,
    components::Components,
    demo,
    dev::listen::Listeners,
    output,
    resolver::resolver,
    roles::{serve_metrics, serve_pages, site},
    route::RouteArgument,
    signal,
};

mod banner;
mod listen;
mod run_routes;

pub mod cluster;

pub(crate) use run_routes::RunRoutes;

/// Always the same id, so that `dev` can open a data directory again.
const CLUSTER: ClusterId = ClusterId(1);
const QUEUE: NodeId = NodeId(1);
const INGRESS: NodeId = NodeId(2);
const OUTBOUND: NodeId = NodeId(3);
const LEDGER_GROUPS: u16 = 1;
/// How often ingress may lose a port to another process between finding and opening it.
const INGRESS_RETRIES: u32 = 3;
const NAV: postroad_sandbox::Nav = &[("Overview", "/"), ("Messages", "/messages"), ("Sandbox", "/sandbox")];
/// The queue's address in the in-memory network; no port is opened.
const QUEUE_ADDRESS: &str = "127.0.0.1:7400";

/// Runs until it is asked to stop.
///
/// # Errors
/// A port is taken, the data directory cannot be used, or a role does not start.
pub async fn run(args: &DevArgs) -> anyhow::Result<()> {
    let shutdown = signal::shutdown()?;
    let telemetry = start_telemetry()?;
    let data = Data::open(args.data.as_deref())?;
    show_data_disk(data.path());
    postroad_net::metrics::show_failures();
    let mut components = Components::default();
    let mut listeners = Listeners::of(args);
    let started = tokio::select! {
        started = start(args, &data, &mut listeners, &mut components) => started.map(|()| true),
        () = shutdown.cancelled() => Ok(false),
    };
    let printed = match &started {
        Ok(true) => output::print(&banner::text(args, &listeners, &data)).map(|()| true),
        _ => Ok(false),
    };
    if let Ok(true) = printed {
        tokio::select! {
            () = shutdown.cancelled() => {}
            name = components.first_to_end() => tracing::error!(component = name, "component stopped by itself"),
        }
    }
    components.stop().await;
    telemetry.shutdown().await;
    started.and(printed).map(drop)
}

/// `dev` logs only warnings and errors unless `POSTROAD_LOG` says otherwise.
fn start_telemetry() -> anyhow::Result<Telemetry> {
    let filter = std::env::var("POSTROAD_LOG").unwrap_or_else(|_| "warn".to_owned());
    let log_filter =
        LogFilter::parse(&filter).with_context(|| format!("`POSTROAD_LOG` = `{filter}` is no log filter"))?;
    let endpoint = std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok();
    let otlp_endpoint = endpoint
        .map(|url| {
            let expected = || format!("`OTEL_EXPORTER_OTLP_ENDPOINT` = `{url}`: expected a URL");
            OtlpEndpoint::parse(&url).with_context(expected)
        })
        .transpose()?;
    let config =
        TelemetryConfig { log_filter, otlp_endpoint, otlp_sample_ratio: 1.0, ..TelemetryConfig::default() };
    Ok(postroad_telemetry::init(&config, "postroad-dev")?)
}

/// The data directory: kept, or removed when the process ends.
enum Data {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Data {
    fn open(kept: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = kept else {
            return Ok(Self::Temporary(tempfile::Builder::new().prefix("postroad-").tempdir()?));
        };
        std::fs::create_dir_all(path)
            .with_context(|| format!("cannot create the data directory `{}` (`--data`)", path.display()))?;
        Ok(Self::Kept(path.to_owned()))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }

    /// Where the sandbox keeps its captures between runs, if it does.
    fn sandbox(&self) -> Option<PathBuf> {
        match self {
            Self::Kept(path) => Some(path.join("sandbox")),
            Self::Temporary(_) => None,
        }
    }

    /// The record of what the flags of a run did to the routes.
    fn run_routes(&self) -> PathBuf {
        self.path().join("run-routes.toml")
    }

    /// The self-signed certificate of the listeners, which clients can be given as their authority.
    fn certificate(&self) -> PathBuf {
        self.path().join("certificate.pem")
    }

    /// Its key.
    fn key(&self) -> PathBuf {
        self.path().join("certificate.key")
    }

    /// Generates the certificate in the first run.
    fn make_certificate(&self) -> anyhow::Result<()> {
        if self.certificate().exists() && self.key().exists() {
            return Ok(());
        }
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let (certificate, key) = ServerTls::self_signed_pem(&names)?;
        let written = write_secret(&self.key(), key.as_bytes())
            .and_then(|()| write_new_file(&self.certificate(), certificate.as_bytes()));
        written.with_context(|| format!("cannot write `{}`", self.certificate().display()))
    }
}

/// Starts the roles, the queue first; they stop in reverse order.
async fn start(
    args: &DevArgs,
    data: &Data,
    listeners: &mut Listeners,
    components: &mut Components,
) -> anyhow::Result<()> {
    let (health, net) = (Health::new(), MemoryNet::new());
    // Ports of flags that are taken are found before anything is started.
    listeners.find_ingress(1)?;
    let http = listeners.http.bind().await?;
    let metrics = listeners.metrics.bind().await?;
    let operator = listeners.operator.bind().await?;
    start_queue(data.path(), operator, &net, &health, components).await?;
    let channel = Transport::Memory(net).channel(QUEUE_ADDRESS, Expect::node(Role::Queue, QUEUE));
    let endpoints = Endpoints::from([(QUEUE, channel)]);

    let sandbox = start_sandbox(&health, NAV, data.sandbox()).await?;
    let routes = routes(args, sandbox.local_addr());
    let applied = demo::apply(&endpoints, &routes, &data.run_routes()).await;
    applied.context("cannot apply the demo tenant")?;
    let control_deps = ControlDeps {
        data_directory: data.path().to_owned(),
        endpoints: endpoints.clone(),
        ledger_groups: LEDGER_GROUPS,
        health: health.clone(),
        nav: NAV,
    };
    let control =
        Control::start(ControlConfig::default(), control_deps).await.context("cannot start control")?;
    let pages = site(control.router().merge(sandbox.router()), NAV, &args.http_hosts);
    components.spawn("sandbox", |shutdown| sandbox.run(shutdown));
    components.spawn("control", |shutdown| control.run(shutdown));
    components.spawn("pages", |shutdown| serve_pages(http, pages, shutdown));

    start_outbound(args, data.path(), &endpoints, &health, components)?;
    start_ingress(args, data, listeners, endpoints, &health, components).await?;
    let ready = health.clone();
    components.spawn("metrics", |shutdown| serve_metrics(metrics, health, shutdown));
    while !ready.is_ready() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// The routes of the flags, and without `--deliver` one to the sandbox for every other domain.
fn routes(args: &DevArgs, sandbox: SocketAddr) -> Vec<RouteArgument> {
    let mut routes = args.routes.clone();
    if !args.deliver && routes.iter().all(|route| route.domain.is_some()) {
        routes.push(RouteArgument::any(&sandbox.ip().to_string(), sandbox.port()));
    }
    routes
}

/// The sandbox listens on a free port: outbound finds it by its route.
async fn start_sandbox(
    health: &Health,
    nav: postroad_sandbox::Nav,
    directory: Option<PathBuf>,
) -> anyhow::Result<Sandbox> {
    let config = SandboxConfig { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..SandboxConfig::default() };
    let deps = SandboxDeps { health: health.clone(), nav, directory };
    Sandbox::start(config, deps).await.context("cannot start the sandbox")
}

async fn start_queue(
    data: &Path,
    operator: TcpListener,
    net: &MemoryNet,
    health: &Health,
    components: &mut Components,
) -> anyhow::Result<()> {
    let config = QueueConfig {
        listen: QUEUE_ADDRESS.parse().expect("the name is an address"),
        ..QueueConfig::default()
    };
    let (identity, fs) = (Identity { cluster: CLUSTER, node: QUEUE }, RealFs::new(&data.join("queue")));
    // An empty directory is always a new cluster here: there are no other nodes.
    let disk = Disk { id: DiskId(postroad_env::random()), origin: Origin::Form };
    postroad_storage::format(&fs, identity, disk).context("cannot use the queue's data directory")?;
    let deps = QueueDeps {
        identity,
        voters: vec![Voter { node: QUEUE, address: QUEUE_ADDRESS.to_owned() }],
        ledger_groups: LEDGER_GROUPS,
        fs: Arc::new(fs),
        transport: Transport::Memory(net.clone()),
        health: health.clone(),
    };
    let queue = Queue::start(config, deps).await.context("cannot start the queue")?;
    components.spawn("queue", |shutdown| queue.run(shutdown));
    let net = net.clone();
    components.spawn("operators", |shutdown| operators(operator, net, shutdown));
    Ok(())
}

/// Forwards connections of `postroad apply` and `postroad message` to the queue's in-memory network.
async fn operators(listener: TcpListener, net: MemoryNet, shutdown: CancellationToken) {
    let mut calls = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            Ok((stream, _)) = listener.accept() => drop(calls.spawn(forward(stream, net.clone()))),
            Some(_) = calls.join_next() => {}
        }
    }
}

async fn forward(mut stream: TcpStream, net: MemoryNet) {
    let Ok(mut queue) = net.connect(QUEUE_ADDRESS).await else { return };
    // An error here is one side hanging up.
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut queue).await;
}

fn start_outbound(
    args: &DevArgs,
    data: &Path,
    endpoints: &Endpoints,
    health: &Health,
    components: &mut Components,
) -> anyhow::Result<()> {
    let config = OutboundConfig { smtp_port: args.smtp_port, ..OutboundConfig::default() };
    let deps = OutboundDeps {
        node: OUTBOUND,
        home: Home::Directory(data.join("outbound")),
        endpoints: endpoints.clone(),
        resolver: resolver(args.resolver)?,
        connector: Connector::Tcp,
        guard: Guard { allow: args.allow_addresses.clone() },
        tls: ClientTls::opportunistic(),
        health: health.clone(),
    };
    let outbound = Outbound::start(config, deps).context("cannot start outbound")?;
    components.spawn("outbound", |shutdown| outbound.run(shutdown));
    Ok(())
}

async fn start_ingress(
    args: &DevArgs,
    data: &Data,
    listeners: &mut Listeners,
    endpoints: Endpoints,
    health: &Health,
    components: &mut Components,
) -> anyhow::Result<()> {
    data.make_certificate()?;
    let tls = ServerTls::from_files(data.certificate(), data.key())?;
    tls.record_end();
    let deps = || -> anyhow::Result<_> {
        Ok(IngressDeps {
            node: INGRESS,
            endpoints: endpoints.clone(),
            ledger_groups: LEDGER_GROUPS,
            resolver: resolver(args.resolver)?,
            tls: Some(tls.clone()),
            health: health.clone(),
        })
    };
    let mut tries = 0;
    let ingress = loop {
        listeners.find_ingress(1)?;
        let Listeners { smtp, smtps, grpc, .. } = listeners;
        let config = demo::ingress(smtp.address, smtps.address, grpc.address);
        match Ingress::start(config, deps()?).await {
            Ok(ingress) => break ingress,
            // Another process may have taken a port since it was found free.
            Err(_) if tries < INGRESS_RETRIES => tries += 1,
            Err(error) => return Err(error).context("cannot start ingress"),
        }
    };
    let Listeners { smtp, smtps, grpc, .. } = listeners;
    // Port 0 asks for any.
    for (listen, address) in [smtp, smtps].into_iter().zip(ingress.smtp_addresses()) {
        listen.address = *address;
    }
    grpc.address = ingress.grpc_address().unwrap_or(grpc.address);
    components.spawn("ingress", |shutdown| ingress.run(shutdown));
    Ok(())
}
