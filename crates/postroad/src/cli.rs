//! The command line: one subcommand per role, and the operator's commands.

pub mod certificate;
pub mod doctor;
pub mod message;
pub mod policy;
pub mod queue;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use postroad_core::{Address, ClusterId, Domain, DurationText, GroupId, NodeId};
use postroad_net::Role;
use postroad_settings::HostPort;

use self::{
    certificate::CertificateCommand,
    doctor::{DoctorArgs, SupportCommand},
    message::MessageCommand,
    policy::{DeleteArgs, DescribeArgs, DiffArgs, EditArgs, ExportArgs, GetArgs},
    queue::{QueueArgs, TopArgs},
};
use crate::{output::OutputArgs, route::RouteArgument};

mod scope;

pub use scope::{GetScopeArgs, ListArgs, ProbeArgs, ResumeArgs, ScopeCommand, SiteCommand, SuspendArgs};

/// A mail delivery cluster that an organisation runs itself.
#[derive(Debug, Parser)]
#[command(name = "postroad", version, propagate_version = true, after_help = crate::operator::EXIT_STATUS_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run every role in one process on loopback, and capture what is sent
    Dev(Box<DevArgs>),
    /// Run an ingress node: accepts mail over SMTP and gRPC
    Ingress(RoleArgs),
    /// Run a queue node: stores mail on a majority of disks and schedules it; `queue list` shows what waits
    Queue(QueueArgs),
    /// Run an outbound node: delivers mail
    Outbound(RoleArgs),
    /// Run a control node: keeps the history and serves the console
    Control(RoleArgs),
    /// Check or print a configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Create a cluster, or a node's certificate, configuration or data directory
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Apply a policy file: tenants, credentials, pools, sources, limits and routes
    Apply(ApplyArgs),
    /// Show the items of the policy in force, without keys and passwords
    Get(GetArgs),
    /// Show one item with what refers to it and what follows from it
    Describe(DescribeArgs),
    /// Show what `apply` would change; status 5 when it is something
    Diff(DiffArgs),
    /// Print the policy in force, or some of its items, as a policy file without keys and passwords
    Export(ExportArgs),
    /// Open items of the policy in force in an editor (`VISUAL`, `EDITOR`), and apply what is saved
    Edit(EditArgs),
    /// Delete items of the policy in force
    Delete(DeleteArgs),
    /// Show, renew and replace the certificates between nodes
    #[command(subcommand)]
    Certificate(CertificateCommand),
    /// Check the cluster, and with a role this machine as a node: each finding says what to do
    Doctor(DoctorArgs),
    /// Gather what others need to help
    #[command(subcommand)]
    Support(SupportCommand),
    /// List, show, retry, hold, release or cancel messages that are in the queue
    #[command(subcommand)]
    Message(Box<MessageCommand>),
    /// Show the sites that mail goes to; suspend and resume them; probe a domain
    #[command(subcommand)]
    Site(SiteCommand),
    /// Show lanes, from a source to a site; suspend and resume them
    #[command(subcommand)]
    Lane(ScopeCommand),
    /// Show sources and the outbound nodes that own them; suspend and resume them
    #[command(subcommand)]
    Source(ScopeCommand),
    /// Show pools of sources; suspend and resume them
    #[command(subcommand)]
    Pool(ScopeCommand),
    /// Show tenants; suspend and resume them
    #[command(subcommand)]
    Tenant(ScopeCommand),
    /// Show outbound nodes; suspend and resume them
    #[command(subcommand)]
    Node(ScopeCommand),
    /// Show what waits and what flows, live in the terminal
    Top(TopArgs),
    /// Name the clusters that you work with, so that commands need neither `--config` nor `--server`
    #[command(subcommand)]
    Context(ContextCommand),
    /// Send a message over SMTP as an application does, and wait for its final outcome
    Send(Box<SendArgs>),
    /// Do nothing until stopped: for a container in which an operator runs commands
    #[command(hide = true)]
    Idle,
    /// Show what the rules make of receivers' replies: kind, class, party, suppress, lane and rule, one reply a line
    Classify(ClassifyArgs),
    /// Print a script with which a shell completes the commands and flags of postroad
    Completion(CompletionArgs),
}

/// Flags of `completion`.
#[derive(Args, Debug)]
pub struct CompletionArgs {
    /// The shell that reads the script
    pub shell: Shell,
}

/// A shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// `source <(postroad completion bash)`.
    Bash,
    /// `postroad completion zsh > "${fpath[1]}/_postroad"`.
    Zsh,
    /// `postroad completion fish > ~/.config/fish/completions/postroad.fish`.
    Fish,
}

/// Flags of `classify`.
#[derive(Args, Debug)]
pub struct ClassifyArgs {
    /// What lines without a phase answer: connect, ehlo, starttls, mail, rcpt, data or dot; without it, `PHASE<TAB>REPLY`
    #[arg(long, value_name = "PHASE", value_parser = crate::classify::named_phase)]
    pub phase: Option<postroad_shaping::Phase>,
}

/// Flags of `dev`.
#[derive(Args, Clone, Debug)]
pub struct DevArgs {
    /// Keep messages, history, sandbox and applied policy here between runs; otherwise a temporary directory is used
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Listen here for SMTP with STARTTLS [default: 127.0.0.1:2525, or a free port where that is in use]
    #[arg(long, value_name = "ADDRESS")]
    pub listen_smtp: Option<SocketAddr>,
    /// Listen here for SMTP with implicit TLS [default: 127.0.0.1:4650, or a free port where that is in use]
    #[arg(long, value_name = "ADDRESS")]
    pub listen_smtps: Option<SocketAddr>,
    /// Listen here for gRPC submission [default: 127.0.0.1:5051, or a free port where that is in use]
    #[arg(long, value_name = "ADDRESS")]
    pub listen_grpc: Option<SocketAddr>,
    /// Listen here for HTTP: console and sandbox [default: 127.0.0.1:8080, or a free port where that is in use]
    #[arg(long, value_name = "ADDRESS")]
    pub listen_http: Option<SocketAddr>,
    /// Listen here for HTTP: metrics and health [default: 127.0.0.1:9090, or a free port where that is in use]
    #[arg(long, value_name = "ADDRESS")]
    pub listen_metrics: Option<SocketAddr>,
    /// Listen here for the operator's commands [default: 127.0.0.1:7070, or a free port where that is in use]
    #[arg(long, value_name = "ADDRESS")]
    pub listen_operator: Option<SocketAddr>,
    /// Let browsers use this name for console and sandbox, besides IP addresses, `localhost` and the name of this machine; may be repeated
    #[arg(long = "http-host", value_name = "NAME", value_parser = Domain::parse)]
    pub http_hosts: Vec<Domain>,
    /// Deliver to real receivers, by MX, instead of capturing, in this run
    #[arg(long)]
    pub deliver: bool,
    /// Send mail for DOMAIN (`*`: every other domain) to this host and port, in this run; may be repeated
    #[arg(long = "route", value_name = "DOMAIN=HOST:PORT")]
    pub routes: Vec<RouteArgument>,
    /// Use this DNS resolver instead of the system's
    #[arg(long, value_name = "IP:PORT")]
    pub resolver: Option<SocketAddr>,
    /// Allow delivery to special-purpose addresses in this network, refused by default; may be repeated
    #[arg(long = "allow-address", value_name = "CIDR")]
    pub allow_addresses: Vec<IpNet>,
    /// Connect to MX hosts on this port
    #[arg(long, value_name = "PORT", default_value_t = 25, hide = true)]
    pub smtp_port: u16,
    /// Start 3 queue, 2 ingress, 2 outbound and 1 control process with mutual TLS instead
    #[arg(long)]
    pub cluster: bool,
}

/// Flags of a role, and of the commands for its data directory.
#[derive(Args, Clone, Debug)]
pub struct RoleArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "POSTROAD_CONFIG")]
    pub config: PathBuf,
}

/// A role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleName {
    /// Ingress.
    Ingress,
    /// Queue.
    Queue,
    /// Outbound.
    Outbound,
    /// Control.
    Control,
}

impl RoleName {
    /// Returns the name of the subcommand.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Queue => "queue",
            Self::Outbound => "outbound",
            Self::Control => "control",
        }
    }
}

/// What to do with a configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Report every error in a configuration file and in the files it names, without starting the role
    Check(ConfigArgs),
    /// Print the settings in effect: file, environment and defaults
    Print(ConfigArgs),
    /// Print the JSON Schema of a role's file
    Schema(SchemaArgs),
}

/// Which configuration.
#[derive(Args, Debug)]
pub struct ConfigArgs {
    /// The role that the file configures
    pub role: RoleName,
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "POSTROAD_CONFIG")]
    pub config: PathBuf,
}

/// Which schema.
#[derive(Args, Debug)]
pub struct SchemaArgs {
    /// The role that a file is for
    pub role: RoleName,
}

/// What to do with a cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Create a cluster: its id, its certificate authority, and an operator's certificate
    Init(ClusterInitArgs),
    /// Create the certificate and the configuration of one node
    Join(ClusterJoinArgs),
    /// On a queue node of a new cluster: create its data directory, once, before its first start
    Form(RoleArgs),
    /// On a queue node whose disk was lost: create an empty data directory, with which it rejoins when started
    Rejoin(RoleArgs),
    /// In Kubernetes: issue the certificate of a pod, replacing what is in its directory
    #[command(hide = true)]
    Certificate(CertificateArgs),
    /// In Kubernetes: create the certificate authority as a Secret, unless the Secret exists
    #[command(hide = true)]
    Authority(AuthorityArgs),
    /// In Kubernetes: form the data directory of a queue node of a new cluster; of one that exists, wait for `rejoin`
    #[command(hide = true)]
    Prepare(PrepareArgs),
    /// In Kubernetes: wait until every group has a leader, and record that the cluster has formed
    #[command(hide = true)]
    Formed(FormedArgs),
}

/// Flags of `cluster certificate`.
#[derive(Args, Debug)]
pub struct CertificateArgs {
    /// What the certificate is for: a role, or `operator`
    #[arg(value_parser = certificate_role)]
    pub role: Role,
    /// The node's id; not for an operator
    #[arg(long, value_name = "ID", value_parser = node_id, required_if_eq_any = [("role", "ingress"), ("role", "queue"), ("role", "outbound"), ("role", "control")])]
    pub node: Option<NodeId>,
    /// The directory with `authority.pem` and `authority.key`
    #[arg(long, value_name = "DIR")]
    pub authority: PathBuf,
    /// Write `authority.pem`, `node.pem` and `node.key` here
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How long the certificate is valid: 1m to 3650d
    #[arg(long, value_name = "DURATION", default_value = "365d", value_parser = lifetime)]
    pub lifetime: DurationText,
    /// Keep running: issue again when less than a third of the lifetime is left, and when the authority has changed
    #[arg(long)]
    pub renew: bool,
}

/// Reads how long a certificate is valid.
fn lifetime(text: &str) -> Result<DurationText, String> {
    let allowed = DurationText(Duration::from_mins(1))..=DurationText(Duration::from_hours(24 * 3650));
    let lifetime = text.parse().ok().filter(|lifetime| allowed.contains(lifetime));
    lifetime.ok_or_else(|| "expected a duration from 1m to 3650d".to_owned())
}

/// Reads what a certificate is for.
fn certificate_role(text: &str) -> Result<Role, String> {
    text.parse().map_err(|_| "expected ingress, queue, outbound, control or operator".to_owned())
}

/// Flags of `cluster authority`.
#[derive(Args, Debug)]
pub struct AuthorityArgs {
    /// The id of the cluster
    #[arg(long, value_name = "ID", value_parser = cluster_id)]
    pub id: ClusterId,
    /// The name of the Secret, in the namespace of this pod
    #[arg(long, value_name = "NAME")]
    pub kubernetes_secret: String,
}

/// Reads a cluster's id as a configuration can hold it.
fn cluster_id(text: &str) -> Result<ClusterId, String> {
    let number = text.parse::<i64>().ok().and_then(|number| u64::try_from(number).ok());
    let id = number.filter(|number| *number > 0).map(ClusterId);
    id.ok_or_else(|| format!("expected a cluster id from 1 to {}", i64::MAX))
}

/// Flags of `cluster prepare`.
#[derive(Args, Debug)]
pub struct PrepareArgs {
    /// The configuration file of the queue node
    #[arg(long, value_name = "FILE", env = "POSTROAD_CONFIG")]
    pub config: PathBuf,
    /// The file that exists once the cluster has formed, and says when
    #[arg(long, value_name = "FILE")]
    pub formed: PathBuf,
}

/// Flags of `cluster formed`.
#[derive(Args, Debug)]
pub struct FormedArgs {
    /// The operator's configuration
    #[arg(long, value_name = "FILE", env = "POSTROAD_OPERATOR_CONFIG")]
    pub config: PathBuf,
    /// The name of the ConfigMap, in the namespace of this pod
    #[arg(long, value_name = "NAME")]
    pub kubernetes_configmap: String,
}

/// Flags of `send`.
#[derive(Args, Debug)]
pub struct SendArgs {
    /// The ingress node, or the balancer in front of several
    #[arg(long, value_name = "HOST:PORT")]
    pub server: HostPort,
    /// The sender's address
    #[arg(long, value_name = "ADDRESS", value_parser = Address::parse)]
    pub from: Address,
    /// The recipient's address
    #[arg(long, value_name = "ADDRESS", value_parser = Address::parse)]
    pub to: Address,
    /// A directory with the files `login` and `password` of a credential; without it, none is used
    #[arg(long, value_name = "DIR")]
    pub credentials: Option<PathBuf>,
    /// TLS begins with the connection, as on port 465, instead of with STARTTLS
    #[arg(long)]
    pub implicit_tls: bool,
    /// The name in the server's certificate, where it is not the host of `--server`
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<String>,
    /// The CA of the server's certificate, PEM; without it, those that browsers trust
    #[arg(long, value_name = "FILE")]
    pub authority: Option<PathBuf>,
    /// Accept any certificate
    #[arg(long, conflicts_with = "authority")]
    pub insecure: bool,
    /// The console of the control node, which is asked for the outcome; without it, `send` ends once the message is accepted
    #[arg(long, value_name = "HOST:PORT")]
    pub history: Option<HostPort>,
    /// How many seconds the message may take until its final outcome
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
}

/// Flags of `cluster init`.
#[derive(Args, Debug)]
pub struct ClusterInitArgs {
    /// Write the files of the cluster here; the directory must be empty or not exist
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// A queue node's id and address; repeat for each of 1, 3 or 5 queue nodes
    #[arg(long = "queue", value_name = "NODE=HOST:PORT", required = true)]
    pub queue: Vec<NodeAddress>,
    /// The number of ledger groups, 1 to 64; cannot be changed later
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(GroupId::LEDGERS_MAX)))]
    pub ledger_groups: Option<u16>,
}

/// Flags of `cluster join`.
#[derive(Args, Debug)]
pub struct ClusterJoinArgs {
    /// The directory that `cluster init` wrote
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// The node's role
    pub role: RoleName,
    /// The node's id: never used before in this cluster, in any role
    #[arg(long, value_name = "ID", value_parser = node_id)]
    pub node: NodeId,
    /// The node's data directory, on the node; a relative path counts from its configuration file. Not for ingress
    #[arg(long, value_name = "DIR", required_if_eq_any = [("role", "queue"), ("role", "outbound"), ("role", "control")])]
    pub data: Option<PathBuf>,
    /// The public name of an ingress node, which its clients see; without it, this machine's full name
    #[arg(long, value_name = "NAME", value_parser = Domain::parse)]
    pub hostname: Option<Domain>,
    /// Write the files of the node here
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// A node's id and address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The node's id.
    pub node: NodeId,
    /// Host and port.
    pub address: HostPort,
}

impl std::str::FromStr for NodeAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected NODE=HOST:PORT".to_owned();
        let (node, address) = text.split_once('=').ok_or_else(expected)?;
        Ok(Self { node: node_id(node)?, address: address.parse().map_err(|_| expected())? })
    }
}

/// Reads a node's id as the configuration of a node can hold it: integers of TOML have 63 bits besides the sign.
fn node_id(text: &str) -> Result<NodeId, String> {
    let number = text.parse::<i64>().ok().and_then(|number| u64::try_from(number).ok());
    let id = number.map(NodeId).filter(|id| *id > NodeId(0));
    id.ok_or_else(|| format!("expected a node id from 1 to {}", i64::MAX))
}

/// Which cluster an operator talks to; without any of them, the current context or `postroad dev` on this machine.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Which cluster")]
pub struct TargetArgs {
    /// The operator's configuration, written by `cluster init` [env: POSTROAD_OPERATOR_CONFIG]
    #[arg(long, value_name = "FILE", conflicts_with = "context")]
    pub config: Option<PathBuf>,
    /// A context that `postroad context add` named [env: POSTROAD_CONTEXT]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// Ask this queue node instead of those in the configuration, such as one behind a forwarded port; alone, without encryption and on this machine only: `postroad dev` (`--listen-operator`); may be repeated [env: POSTROAD_SERVER]
    #[arg(long, value_name = "HOST:PORT")]
    pub server: Vec<HostPort>,
}

/// What to do with contexts.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List the contexts of this user
    List(OutputArgs),
    /// Make a context the current one, for commands that name no cluster
    Use {
        /// Its name
        name: String,
    },
    /// Add a context; the first one is the current one
    Add(ContextAddArgs),
    /// Remove a context; the cluster is not changed
    Remove {
        /// Its name
        name: String,
    },
}

/// Flags of `context add`.
#[derive(Args, Debug)]
pub struct ContextAddArgs {
    /// Its name
    #[arg(value_parser = crate::operator::context_name)]
    pub name: String,
    /// The operator's configuration, written by `cluster init`
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Ask this queue node instead of those in the configuration; alone, without encryption; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    pub server: Vec<HostPort>,
    /// Replace a context of that name
    #[arg(long)]
    pub replace: bool,
}

/// Flags of `apply`.
#[derive(Args, Debug)]
pub struct ApplyArgs {
    /// The policy file, YAML; `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Show each item and field that would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Accept the removal of items that do not exist
    #[arg(long)]
    pub ignore_missing: bool,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}
