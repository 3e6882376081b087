//! `postroad dev --cluster`: eight processes with mutual TLS on this machine, for trying out failures.
//!
//! No process is restarted automatically: each is printed with the command that starts it again.

use std::{
    fs::File,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context;
use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Redirect},
    routing::get,
};
use postroad_core::{MessageId, NodeId};
use postroad_net::{NodeTls, Transport};
use postroad_telemetry::Health;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::{Data, bind, routes, start_sandbox, start_telemetry};
use crate::{
    cli::{DevArgs, NodeAddress, RoleName},
    cluster::ClusterDirectory,
    components::Components,
    demo,
    operator::endpoints_of,
    roles::{self, serve_pages},
    signal,
    template::NodeTemplate,
};

const NAV: postroad_sandbox::Nav = &[("Sandbox", "/sandbox")];
const QUEUES: u16 = 3;
const INGRESSES: u16 = 2;
const OUTBOUNDS: u16 = 2;
/// How long a process may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(45);

/// Runs until it is asked to stop.
///
/// # Errors
/// The files cannot be written, a process cannot be started, or the cluster does not form.
pub async fn run(args: &DevArgs) -> anyhow::Result<()> {
    let shutdown = signal::shutdown()?;
    let telemetry = start_telemetry()?;
    let data = Data::open(args.data.as_deref())?;
    let mut components = Components::default();
    let sandbox = start_sandbox(&Health::new(), NAV).await?;
    let pages = bind(sandbox_pages(args)).await?;
    let routes = routes(args, sandbox.local_addr());
    let router = sandbox.router().merge(to_console(args.listen_http));
    components.spawn("sandbox", |shutdown| sandbox.run(shutdown));
    components.spawn("pages", |shutdown| serve_pages(pages, router, shutdown));
    let (cluster, nodes) = lay_out(args, data.path())?;
    let mut processes = nodes.into_iter().map(Process::start).collect::<anyhow::Result<Vec<_>>>()?;
    let formed = tokio::select! {
        formed = form(&cluster, &routes) => formed,
        () = shutdown.cancelled() => Ok(()),
    };
    if formed.is_ok() && !shutdown.is_cancelled() {
        std::io::stdout().write_all(banner(args, &cluster, &processes).as_bytes())?;
        watch(&mut processes, &shutdown).await;
    }
    // Ingress first, the queue last.
    for process in processes.iter_mut().rev() {
        process.stop().await;
    }
    components.stop().await;
    telemetry.shutdown().await;
    formed
}

/// Reports every process that ends, until `shutdown`.
async fn watch(processes: &mut [Process], shutdown: &tokio_util::sync::CancellationToken) {
    loop {
        for process in processes.iter_mut() {
            process.report_end();
        }
        let pause = tokio::time::sleep(Duration::from_millis(200));
        if shutdown.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

/// Applies the demo tenant as soon as the directory group has a leader.
async fn form(cluster: &ClusterDirectory, routes: &[crate::route::RouteArgument]) -> anyhow::Result<()> {
    let path = |name: &str| cluster.path().join(name);
    let tls = NodeTls::from_files(path("authority.pem"), path("operator.pem"), path("operator.key"))?;
    let endpoints = endpoints_of(&cluster.file.queue, &Transport::Mutual(tls));
    let mut tries = 0;
    loop {
        match demo::apply(&endpoints, routes).await {
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

fn offset(address: SocketAddr, by: u16) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port().saturating_add(by))
}

/// The control process serves the console; this process serves the sandbox, on the next port.
fn sandbox_pages(args: &DevArgs) -> SocketAddr {
    offset(args.listen_http, 1)
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
}

/// Writes every node's configuration and certificates, unless an earlier run in this directory did.
fn lay_out(args: &DevArgs, data: &Path) -> anyhow::Result<(ClusterDirectory, Vec<NodePlan>)> {
    let dir = data.join("cluster");
    let queue_address = |number| offset(args.listen_operator, number).to_string().parse();
    let is_new = !dir.join("cluster.toml").exists();
    let cluster = if is_new {
        let node =
            |number: u16| Ok(NodeAddress { node: NodeId(number.into()), address: queue_address(number)? });
        let nodes: anyhow::Result<Vec<NodeAddress>> = (1..=QUEUES).map(node).collect();
        ClusterDirectory::init(&dir, &nodes?, QUEUES)?
    } else {
        ClusterDirectory::open(&dir)?
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
            let out = data.join(&name);
            let config = out.join(format!("{}.toml", role.as_str()));
            let metrics = offset(args.listen_metrics, u16::try_from(nodes.len()).unwrap_or(0));
            if is_new {
                let own = sections(args, role, number);
                let data = (role != RoleName::Ingress).then_some(Path::new("data"));
                let node = NodeId((base + number).into());
                cluster.join(&NodeTemplate { role, node, data, out: &out, metrics, own })?;
                if role == RoleName::Queue {
                    roles::form(&config)?;
                }
            }
            nodes.push(NodePlan { log: out.join("log"), name, role, config });
        }
    }
    Ok((cluster, nodes))
}

/// The role's own sections of its `number`th node.
fn sections(args: &DevArgs, role: RoleName, number: u16) -> String {
    let resolver =
        args.resolver.map_or_else(String::new, |resolver| format!("[dns]\nresolver = \"{resolver}\"\n\n"));
    match role {
        RoleName::Queue => format!("[queue]\nlisten = \"{}\"\n", offset(args.listen_operator, number)),
        RoleName::Outbound => {
            let allow: Vec<String> = args.allow_addresses.iter().map(ToString::to_string).collect();
            format!("{resolver}[guard]\nallow = {allow:?}\n\n[outbound]\nsmtp_port = {}\n", args.smtp_port)
        }
        RoleName::Control => format!("[http]\nlisten = \"{}\"\n", args.listen_http),
        RoleName::Ingress => {
            let at = |address| offset(address, number - 1);
            let addresses = [args.listen_smtp, args.listen_smtps, args.listen_grpc];
            let on_loopback = addresses.iter().all(|address| address.ip().is_loopback());
            // A node that other hosts reach needs a name.
            let hostname = if on_loopback { "localhost" } else { "dev.localhost" };
            format!(
                "{resolver}[tls]\nself_signed = true\n\n[ingress]\nhostname = \"{hostname}\"\ngrpc_listen = \"{}\"\ngrpc_plaintext = true\nconnections_per_network_max = 10000\n\
                 listeners = [\n  {{ listen = \"{}\" }},\n  {{ listen = \"{}\", implicit_tls = true }},\n]\n",
                at(args.listen_grpc),
                at(args.listen_smtp),
                at(args.listen_smtps)
            )
        }
    }
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

    /// Reports the end of the process, once.
    fn report_end(&mut self) {
        if self.ended {
            return;
        }
        if let Ok(Some(status)) = self.child.try_wait() {
            self.ended = true;
            let _ = writeln!(
                std::io::stdout(),
                "{} has ended ({status}); to start it again: {}",
                self.plan.name,
                self.command()
            );
        }
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

fn banner(args: &DevArgs, cluster: &ClusterDirectory, processes: &[Process]) -> String {
    let (demo, secret) = (demo::LOGIN, demo::SECRET);
    let mut text = format!(
        "\npostroad dev --cluster is ready: login {demo}, password and API key {secret}\n\n\
         \x20 console   http://{}/       sandbox  http://{}/sandbox\n\
         \x20 SMTP      {}, {}       gRPC  {}, {}\n\
         \x20 operator  postroad message get ID --config {}\n\n",
        args.listen_http,
        sandbox_pages(args),
        args.listen_smtp,
        offset(args.listen_smtp, 1),
        args.listen_grpc,
        offset(args.listen_grpc, 1),
        cluster.path().join("operator.toml").display(),
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
