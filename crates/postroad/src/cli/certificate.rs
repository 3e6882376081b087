//! The command line of `postroad certificate`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::TargetArgs;
use crate::output::OutputArgs;

/// What to do with the certificates between nodes.
#[derive(Debug, Subcommand)]
pub enum CertificateCommand {
    /// List certificates and the days that are left: of the running nodes, or of files
    List(CertificateListArgs),
    /// Issue new certificates for nodes that have joined, or for the operator; running nodes load them within a minute
    Renew(CertificateRenewArgs),
    /// Replace the cluster's authority: each call takes the next of three steps, and only when every node is ready for it
    Rotate(CertificateRotateArgs),
}

/// Flags of `certificate list`.
#[derive(Args, Debug)]
pub struct CertificateListArgs {
    /// List the files of this directory, which `cluster init` wrote, instead of asking the cluster
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// With `--dir`: list the files of these directories, which `cluster join` wrote, too
    #[arg(value_name = "NODE_DIR", requires = "dir")]
    pub nodes: Vec<PathBuf>,
    /// How they are shown
    #[command(flatten)]
    pub output: OutputArgs,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Flags of `certificate renew`.
#[derive(Args, Debug)]
pub struct CertificateRenewArgs {
    /// The directory that `cluster init` wrote
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// The directories that `cluster join` wrote, each with the certificate of one node; settings are not changed
    #[arg(value_name = "NODE_DIR", required_unless_present = "operator")]
    pub nodes: Vec<PathBuf>,
    /// Renew the operator's certificate, in `--dir`
    #[arg(long)]
    pub operator: bool,
}

/// Flags of `certificate rotate`.
#[derive(Args, Debug)]
pub struct CertificateRotateArgs {
    /// The directory that `cluster init` wrote
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Take the step without asking the cluster whether its nodes are ready: those that are not lose their connections
    #[arg(long)]
    pub offline: bool,
    /// Say how far a replacement is, and change nothing
    #[arg(long, conflicts_with_all = ["offline", "yes"])]
    pub status: bool,
    /// After step 1: give the new authority up, which has signed nothing yet
    #[arg(long, conflicts_with_all = ["offline", "status", "yes"])]
    pub abort: bool,
    /// Do not ask whether to begin, nor whether the nodes that were checked are all that there are
    #[arg(long)]
    pub yes: bool,
}
