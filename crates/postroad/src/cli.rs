//! The command line: one subcommand per role, and what an operator does by hand.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::route::RouteArgument;

/// A mail delivery cluster that an organisation runs itself.
#[derive(Debug, Parser)]
#[command(name = "postroad", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in one process on loopback, and capture what is sent
    Dev(Box<DevArgs>),
    /// Take mail in over SMTP and gRPC
    Ingress(RoleArgs),
    /// Keep mail durable and assign it
    Queue(RoleArgs),
    /// Deliver mail
    Outbound(RoleArgs),
    /// Keep the history and show the console
    Control(RoleArgs),
    /// Check or print a configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make a cluster, or a node's certificate and configuration
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Apply tenants, credentials, pools, sources, limits and routes from a file
    Apply(ApplyArgs),
    /// Look at one message, or change what becomes of it
    #[command(subcommand)]
    Message(MessageCommand),
    /// Show what the rules make of receivers' replies: kind, class, party, suppress, lane and rule, one reply a line
    Classify(ClassifyArgs),
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
    /// Keep data here between runs; without it a temporary directory is used
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// SMTP with STARTTLS
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:2525")]
    pub listen_smtp: SocketAddr,
    /// SMTP with TLS from the start
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4650")]
    pub listen_smtps: SocketAddr,
    /// gRPC submission
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5051")]
    pub listen_grpc: SocketAddr,
    /// Console and sandbox
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub listen_http: SocketAddr,
    /// Metrics and health
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
    pub listen_metrics: SocketAddr,
    /// What `postroad apply` and `postroad message` talk to
    #[arg(long, value_name = "ADDRESS", default_value = crate::operator::DEV_ADDRESS)]
    pub listen_operator: SocketAddr,
    /// Send for real, by MX, instead of capturing
    #[arg(long)]
    pub deliver: bool,
    /// Send mail for a domain (`*` for all others) to this host and port; may be repeated
    #[arg(long = "route", value_name = "DOMAIN=HOST:PORT")]
    pub routes: Vec<RouteArgument>,
    /// Ask this resolver instead of the system's
    #[arg(long, value_name = "IP:PORT")]
    pub resolver: Option<SocketAddr>,
    /// Let mail go to special-purpose addresses of this network, which is refused otherwise; may be repeated
    #[arg(long = "allow-address", value_name = "CIDR")]
    pub allow_addresses: Vec<IpNet>,
    /// The port that MX hosts listen on
    #[arg(long, value_name = "PORT", default_value_t = 25, hide = true)]
    pub smtp_port: u16,
    /// Start 3 queue, 2 ingress, 2 outbound and 1 control process with mutual TLS instead
    #[arg(long)]
    pub cluster: bool,
}

/// Flags of a role, and of what is done to its data.
#[derive(Args, Clone, Debug)]
pub struct RoleArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "POSTROAD_CONFIG")]
    pub config: PathBuf,
}

/// A role that a configuration can be for.
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
    /// Report everything that is wrong with a file, and open nothing
    Check(ConfigArgs),
    /// Print what a file, the environment and the defaults come to
    Print(ConfigArgs),
}

/// Which configuration.
#[derive(Args, Debug)]
pub struct ConfigArgs {
    /// The role the file is for
    pub role: RoleName,
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "POSTROAD_CONFIG")]
    pub config: PathBuf,
}

/// What to do with a cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Make a new cluster: its id, its certificate authority, and an operator's certificate
    Init(ClusterInitArgs),
    /// Make the certificate and the configuration of one node
    Join(ClusterJoinArgs),
    /// On a queue node of a new cluster: make its data directory, once, before it is started for the first time
    Form(RoleArgs),
    /// On a queue node whose disk was lost: make its data directory anew; the others take it in when it is started
    Rejoin(RoleArgs),
}

/// Flags of `cluster init`.
#[derive(Args, Debug)]
pub struct ClusterInitArgs {
    /// Where the files of the cluster go; must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// A queue node and where it can be reached; once for each of 1, 3 or 5
    #[arg(long = "queue", value_name = "NODE=HOST:PORT", required = true)]
    pub queue: Vec<NodeAddress>,
    /// The number of ledger groups; cannot be changed later
    #[arg(long, value_name = "N")]
    pub ledger_groups: Option<u16>,
}

/// Flags of `cluster join`.
#[derive(Args, Debug)]
pub struct ClusterJoinArgs {
    /// The directory that `cluster init` made
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// What the node is
    pub role: RoleName,
    /// Its id: never used before in this cluster, for any role
    #[arg(long, value_name = "ID")]
    pub node: u64,
    /// Where the node keeps its data
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Where the files of the node go
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// A node and where it can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The node's id.
    pub node: u64,
    /// Host and port.
    pub address: String,
}

impl std::str::FromStr for NodeAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected NODE=HOST:PORT".to_owned();
        let (node, address) = text.split_once('=').ok_or_else(expected)?;
        let node = node.parse().ok().filter(|node| *node > 0).ok_or_else(expected)?;
        let (host, port) = address.rsplit_once(':').ok_or_else(expected)?;
        port.parse::<u16>().ok().filter(|_| !host.is_empty()).ok_or_else(expected)?;
        Ok(Self { node, address: address.to_owned() })
    }
}

/// Which cluster an operator talks to.
#[derive(Args, Clone, Debug)]
pub struct TargetArgs {
    /// The operator's configuration, as `cluster init` made it; without it, a `postroad dev` on this machine
    #[arg(long, value_name = "FILE", env = "POSTROAD_OPERATOR_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where `postroad dev` listens for operators
    #[arg(long, value_name = "ADDRESS", default_value = crate::operator::DEV_ADDRESS)]
    pub dev: SocketAddr,
}

/// Flags of `apply`.
#[derive(Args, Debug)]
pub struct ApplyArgs {
    /// The file, YAML; `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Say what would happen, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// What to do with a message.
#[derive(Debug, Subcommand)]
pub enum MessageCommand {
    /// Show where each recipient stands
    Get(MessageArgs),
    /// Keep it from being sent until it is released
    Hold(MessageArgs),
    /// Let it go on, at once
    Release(MessageArgs),
    /// End it for every recipient that has not ended
    Cancel(MessageArgs),
}

/// Which message.
#[derive(Args, Debug)]
pub struct MessageArgs {
    /// The id that came with the 250
    pub id: String,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}
