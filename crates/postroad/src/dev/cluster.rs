//! `postroad dev --cluster`: eight processes with mutual TLS on this machine, for trying out failures.
//!
//! It is ready when every process is; one that ends before that ends all, with its status and the last lines of its log.
//! After that no process is restarted automatically: each is printed with the command that starts it again.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Redirect},
    routing::get,
};
use postroad_core::{Domain, MessageId, NodeId};
use postroad_net::{NodeTls, Transport};
use postroad_telemetry::Health;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Data, banner, listen::Listeners, routes, start_sandbox, start_telemetry};
use crate::{
    cli::{DevArgs, NodeAddress, RoleName},
    cluster::ClusterDirectory,
    components::Components,
    demo,
    operator::endpoints_of,
    output,
    roles::{self, serve_pages},
    signal,
    template::NodeTemplate,
};

const NAV: postroad_sandbox::Nav = &[("Sandbox", "/sandbox")];
const QUEUES: u16 = 3;
const INGRESSES: u16 = 2;
const OUTBOUNDS: u16 = 2;
/// How long the processes may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How often processes are looked at.
const CHECK_EVERY: Duration = Duration::from_millis(100);
/// Lines of a process's log that are printed when it has ended.
const LOG_LINES: usize = 10;
/// Bytes of the end of a log that are read for them.
const LOG_BYTES: u64 = 8192;
/// How long a process may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(45);

/// Runs until it is asked to stop.
///
/// # Errors
/// The files cannot be written, a port is in use, or a process cannot be started or ends before all are ready.
pub async fn run(args: &DevArgs) -> anyhow::Result<()> {
    let shutdown = signal::shutdown()?;
    let telemetry = start_telemetry()?;
    let data = Data::open(args.data.as_deref())?;
    let mut components = Components::default();
    let mut listeners = Listeners::of(args);
    let mut processes = Vec::new();
    let started = tokio::select! {
        started = start(args, &data, &mut listeners, &mut components, &mut processes) => started.map(Some),
        () = shutdown.cancelled() => Ok(None),
    };
    let mut printed = Ok(());
    if let Ok(Some(cluster)) = &started {
        printed = output::print(&banner_text(args, &listeners, &data, cluster, &processes));
        if printed.is_ok() {
            watch(&mut processes, &shutdown).await;
        }
    }
    // Ingress first, the queue last.
    for process in processes.iter_mut().rev() {
        process.stop().await;
    }
    components.stop().await;
    telemetry.shutdown().await;
    started.map(drop).and(printed)
}

/// Starts everything, and returns when every process is ready.
async fn start(
    args: &DevArgs,
    data: &Data,
    listeners: &mut Listeners,
    components: &mut Components,
    processes: &mut Vec<Process>,
) -> anyhow::Result<ClusterDirectory> {
    data.make_certificate()?;
    let (cluster, nodes) = lay_out(args, data, listeners)?;
    let sandbox = start_sandbox(&Health::new(), NAV, data.sandbox()).await?;
    let pages = tokio::net::TcpListener::bind(sandbox_pages(listeners)).await;
    let pages =
        pages.with_context(|| format!("cannot listen on {} (`--listen-http`)", sandbox_pages(listeners)))?;
    let routes = routes(args, sandbox.local_addr());
    let router = sandbox.router().merge(to_console(listeners.http.address));
    let router = roles::site(router, NAV, &args.http_hosts);
    components.spawn("sandbox", |shutdown| sandbox.run(shutdown));
    components.spawn("pages", |shutdown| serve_pages(pages, router, shutdown));

    let (queues, others): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node.role == RoleName::Queue);
    for plan in queues {
        processes.push(Process::start(plan)?);
    }
    let record = data.run_routes();
    // Outbound starts when the routes of this run are in force.
    tokio::select! {
        formed = form(&cluster, &routes, &record) => formed?,
        ended = first_to_end(processes) => return Err(ended),
    }
    for plan in others {
        processes.push(Process::start(plan)?);
    }
    let addresses: Vec<(String, SocketAddr)> =
        processes.iter().map(|process| (process.plan.name.clone(), process.plan.metrics)).collect();
    tokio::select! {
        ready = all_ready(&addresses) => ready?,
        ended = first_to_end(processes) => return Err(ended),
    }
    Ok(cluster)
}

/// Waits until a process ends, and returns how.
async fn first_to_end(processes: &mut [Process]) -> anyhow::Error {
    loop {
        if let Some(end) = processes.iter_mut().find_map(Process::end) {
            return anyhow::Error::msg(end);
        }
        tokio::time::sleep(CHECK_EVERY).await;
    }
}

/// Waits until every process answers that it is ready, all of them in one round.
async fn all_ready(processes: &[(String, SocketAddr)]) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    let mut waiting = Vec::new();
    while Instant::now() < deadline {
        waiting.clear();
        for (name, address) in processes {
            if !is_ready(*address).await {
                waiting.push(format!("`{name}` (http://{address}/readyz)"));
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(CHECK_EVERY).await;
    }
    bail!("not ready after {} s: {}", READY_WITHIN.as_secs(), waiting.join(", "))
}

async fn is_ready(metrics: SocketAddr) -> bool {
    let answer = async {
        let mut stream = TcpStream::connect(metrics).await?;
        stream.write_all(format!("GET /readyz HTTP/1.0\r\nHost: {metrics}\r\n\r\n").as_bytes()).await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        io::Result::Ok(status.ends_with(b" 200"))
    };
    tokio::time::timeout(Duration::from_secs(2), answer).await.is_ok_and(|ready| ready.unwrap_or(false))
}

/// Reports every process that ends, until `shutdown`.
async fn watch(processes: &mut [Process], shutdown: &CancellationToken) {
    loop {
        for end in processes.iter_mut().filter_map(Process::end) {
            // The other processes run on.
            if let Err(error) = output::print(&format!("{end}\n")) {
                tracing::error!(%error, end, "cannot print that a process has ended");
            }
        }
        let pause = tokio::time::sleep(CHECK_EVERY);
        if shutdown.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

/// Applies the demo tenant as soon as the directory group has a leader.
async fn form(
    cluster: &ClusterDirectory,
    routes: &[crate::route::RouteArgument],
    record: &Path,
) -> anyhow::Result<()> {
    let path = |name: &str| cluster.path().join(name);
    let tls = NodeTls::from_files(path("authority.pem"), path("operator.pem"), path("operator.key"))?;
    let endpoints = endpoints_of(&cluster.file.queue, &Transport::Mutual(tls));
    let mut tries = 0;
    loop {
        match demo::apply(&endpoints, routes, record).await {
            Ok(()) => return Ok(()),
            Err(error) if tries == 5 => {
                return Err(error.context(
                    "the queue nodes did not form a cluster; their logs are in the data directory",
                ));
            }
            Err(_) => tries += 1,
        }
    }
}

/// The control process serves the console; this process serves the sandbox, on the next port.
fn sandbox_pages(listeners: &Listeners) -> SocketAddr {
    listeners.http.at(1)
}

/// Redirects the sandbox's links to the timeline of a message to the console.
fn to_console(console: SocketAddr) -> Router {
    let redirect = move |axum::extract::Path(id): axum::extract::Path<String>| async move {
        match id.parse::<MessageId>() {
            Ok(id) => Redirect::to(&format!("http://{console}/messages/{id}")).into_response(),
            Err(_) => StatusCode::NOT_FOUND.into_response(),
        }
    };
    Router::new().route("/messages/{id}", get(redirect))
}

/// A node to be started.
struct NodePlan {
    name: String,
    role: RoleName,
    config: PathBuf,
    log: PathBuf,
    metrics: SocketAddr,
}

/// Chooses ports and writes every node's configuration; certificates and data directories in the first run only.
fn lay_out(
    args: &DevArgs,
    data: &Data,
    listeners: &mut Listeners,
) -> anyhow::Result<(ClusterDirectory, Vec<NodePlan>)> {
    let dir = data.path().join("cluster");
    let is_new = !dir.join("cluster.toml").exists();
    find_ports(listeners)?;
    let cluster = if is_new {
        listeners.operator.find(QUEUES + 1)?;
        let address = |number| listeners.operator.at(number).to_string();
        let node =
            |number: u16| Ok(NodeAddress { node: NodeId(number.into()), address: address(number).parse()? });
        let nodes: anyhow::Result<Vec<NodeAddress>> = (1..=QUEUES).map(node).collect();
        ClusterDirectory::init(&dir, &nodes?, QUEUES)?
    } else {
        let cluster = ClusterDirectory::open(&dir)?;
        require_free(args, &cluster)?;
        cluster
    };
    let kinds = [
        (RoleName::Queue, 0, QUEUES),
        (RoleName::Outbound, 20, OUTBOUNDS),
        (RoleName::Control, 30, 1),
        (RoleName::Ingress, 10, INGRESSES),
    ];
    let mut nodes = Vec::new();
    for (role, base, count) in kinds {
        for number in 1..=count {
            let name = format!("{}-{number}", role.as_str());
            let out = data.path().join(&name);
            let config = out.join(format!("{}.toml", role.as_str()));
            let metrics = listeners.metrics.at(u16::try_from(nodes.len()).unwrap_or(0));
            let own = sections(args, data, listeners, &cluster, role, number)?;
            let node = NodeId((base + number).into());
            let data = (role != RoleName::Ingress).then_some(Path::new("data"));
            let template = NodeTemplate { role, node, data, out: &out, metrics, own };
            if is_new {
                cluster.join(&template)?;
                if role == RoleName::Queue {
                    roles::form(&config)?;
                }
            } else {
                // What the flags of an earlier run set ends with it.
                cluster.reconfigure(&template)?;
            }
            nodes.push(NodePlan { log: out.join("log"), name, role, config, metrics });
        }
    }
    Ok((cluster, nodes))
}

/// Every listener but the queue nodes', whose addresses belong to the cluster.
fn find_ports(listeners: &mut Listeners) -> anyhow::Result<()> {
    listeners.find_ingress(INGRESSES)?;
    // The console, and the sandbox beside it.
    listeners.http.find(2)?;
    listeners.metrics.find(QUEUES + OUTBOUNDS + 1 + INGRESSES)
}

/// The queue nodes of a kept cluster cannot move: the others know their addresses.
fn require_free(args: &DevArgs, cluster: &ClusterDirectory) -> anyhow::Result<()> {
    let dir = cluster.path().display();
    for queue in &cluster.file.queue {
        let address: SocketAddr =
            queue.address.as_str().parse().with_context(|| format!("`{}`", queue.address))?;
        // Port 0 asks for any.
        let first = args.listen_operator.filter(|first| first.port() != 0);
        let node = u16::try_from(queue.node.0).unwrap_or_default();
        let wanted = first.map(|first| SocketAddr::new(first.ip(), first.port().saturating_add(node)));
        ensure!(
            wanted.is_none_or(|wanted| wanted == address),
            "queue node {} of the cluster in {dir} has the address {address}, which cannot change (`--listen-operator`)",
            queue.node
        );
        std::net::TcpListener::bind(address).with_context(|| {
            format!(
                "cannot listen on {address}, the address of queue node {} of the cluster in {dir}: \
                 stop what listens there, or use another `--data`",
                queue.node
            )
        })?;
    }
    Ok(())
}

/// The role's own sections of its `number`th node.
fn sections(
    args: &DevArgs,
    data: &Data,
    listeners: &Listeners,
    cluster: &ClusterDirectory,
    role: RoleName,
    number: u16,
) -> anyhow::Result<String> {
    let resolver =
        args.resolver.map_or_else(String::new, |resolver| format!("[dns]\nresolver = \"{resolver}\"\n\n"));
    Ok(match role {
        RoleName::Queue => {
            let queue = cluster.file.queue.iter().find(|queue| queue.node == NodeId(number.into()));
            let queue = queue.with_context(|| format!("`cluster.toml` has no queue node {number}"))?;
            format!("[queue]\nlisten = \"{}\"\n", queue.address)
        }
        RoleName::Outbound => {
            let allow: Vec<String> = args.allow_addresses.iter().map(ToString::to_string).collect();
            format!("{resolver}[guard]\nallow = {allow:?}\n\n[outbound]\nsmtp_port = {}\n", args.smtp_port)
        }
        RoleName::Control => {
            let hosts: Vec<&str> = args.http_hosts.iter().map(Domain::as_str).collect();
            format!("[http]\nlisten = \"{}\"\nhosts = {hosts:?}\n", listeners.http.address)
        }
        RoleName::Ingress => {
            let path = |path: PathBuf| -> anyhow::Result<_> {
                let path = std::path::absolute(&path)?;
                Ok(toml::Value::String(path.display().to_string()))
            };
            let (certificate, key) = (path(data.certificate())?, path(data.key())?);
            let at = |listen: &super::listen::Listen| listen.at(number - 1);
            let public = [&listeners.smtp, &listeners.smtps, &listeners.grpc];
            // A node that other hosts reach needs a name.
            let on_loopback = public.iter().all(|listen| listen.address.ip().is_loopback());
            let hostname = if on_loopback { "localhost" } else { "dev.localhost" };
            format!(
                "{resolver}[tls]\ncertificate = {certificate}\nkey = {key}\n\n[ingress]\nhostname = \"{hostname}\"\ngrpc_listen = \"{}\"\ngrpc_plaintext = true\nconnections_per_network_max = 10000\n\
                 listeners = [\n  {{ listen = \"{}\" }},\n  {{ listen = \"{}\", implicit_tls = true }},\n]\n",
                at(&listeners.grpc),
                at(&listeners.smtp),
                at(&listeners.smtps)
            )
        }
    })
}

/// A child process.
struct Process {
    plan: NodePlan,
    child: Child,
    ended: bool,
}

impl Process {
    fn start(plan: NodePlan) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(&plan.log)?;
        let child = Command::new(std::env::current_exe()?)
            .args([plan.role.as_str(), "--config"])
            .arg(&plan.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A process group of its own: Ctrl-C reaches only this process, which stops the others in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the process `{}`", plan.name))?;
        Ok(Self { plan, child, ended: false })
    }

    fn command(&self) -> String {
        format!("postroad {} --config {}", self.plan.role.as_str(), self.plan.config.display())
    }

    /// Says how the process has ended, once.
    fn end(&mut self) -> Option<String> {
        if self.ended {
            return None;
        }
        let status = self.child.try_wait().ok()??;
        self.ended = true;
        Some(self.end_text(status))
    }

    fn end_text(&self, status: ExitStatus) -> String {
        let NodePlan { name, log, .. } = &self.plan;
        let lines = log_tail(log).unwrap_or_else(|error| format!("    (unreadable: {error})"));
        format!(
            "{name} has ended ({status}); to start it again: {}\n  the end of {}:\n{lines}",
            self.command(),
            log.display()
        )
    }

    async fn stop(&mut self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // An error means that the process has ended already.
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(STOP_WITHIN, self.child.wait()).await.is_err() {
            tracing::warn!(process = self.plan.name, "process did not stop in time and is killed");
            let _ = self.child.kill().await;
        }
    }
}

/// Returns the last lines of a log, indented.
fn log_tail(log: &Path) -> io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(LOG_LINES)..].iter();
    Ok(last.map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n"))
}

fn banner_text(
    args: &DevArgs,
    listeners: &Listeners,
    data: &Data,
    cluster: &ClusterDirectory,
    processes: &[Process],
) -> String {
    let (demo, secret) = (demo::LOGIN, demo::SECRET);
    let Listeners { smtp, smtps, grpc, http, metrics, .. } = listeners;
    let mut text = format!(
        "\npostroad dev --cluster is ready: login {demo}, password and API key {secret}\n\n\
         \x20 console   http://{}/       sandbox  http://{}/sandbox\n\
         \x20 SMTP      {}, {}       gRPC  {}, {}\n\
         \x20 SMTP      {}, {} (TLS)\n\
         \x20 metrics   http://{}/metrics and the next {} ports\n\
         \x20 operator  postroad message get ID --config {}\n\
         \x20 data      {}{}\n{}\n{}\n",
        http.address,
        sandbox_pages(listeners),
        smtp.address,
        smtp.at(1),
        grpc.address,
        grpc.at(1),
        smtps.address,
        smtps.at(1),
        metrics.address,
        QUEUES + OUTBOUNDS + INGRESSES,
        cluster.path().join("operator.toml").display(),
        data.path().display(),
        if args.data.is_some() { "" } else { "  (temporary)" },
        listeners.moved(),
        banner::examples(listeners, data),
    );
    for process in processes {
        let pid = process.child.id().unwrap_or(0);
        text.push_str(&format!("  {:<11} pid {pid:<8} {}\n", process.plan.name, process.command()));
    }
    text.push_str(
        "\nProcesses are not restarted automatically; each log is beside its configuration. Ctrl-C stops all.\n",
    );
    text
}
