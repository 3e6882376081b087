//! The command line of `postroad doctor` and `postroad support`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use postroad_core::Domain;

use super::{RoleName, TargetArgs};
use crate::output::OutputArgs;

/// Flags of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Check this machine too, as a node of this role, whose configuration is `--config`; run it as the user of the service
    pub role: Option<RoleName>,
    /// Look up the mail hosts of this domain, and on outbound nodes connect to one of them on port 25: greeting and QUIT
    #[arg(long, value_name = "DOMAIN", default_value = "gmail.com", value_parser = Domain::parse)]
    pub probe: Domain,
    /// Look up nothing and connect to nobody outside of the cluster
    #[arg(long)]
    pub no_probe: bool,
    /// How the findings are shown
    #[command(flatten)]
    pub output: OutputArgs,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// What is gathered for support.
#[derive(Debug, Subcommand)]
pub enum SupportCommand {
    /// Write what others need to help into one archive: no mail, no keys, no passwords, and no addresses of recipients but those in a log of `--log`
    Bundle(SupportBundleArgs),
}

/// Flags of `support bundle`.
#[derive(Args, Debug)]
pub struct SupportBundleArgs {
    /// Include this machine as a node of this role, whose configuration is `--config`: settings, metrics, disk
    pub role: Option<RoleName>,
    /// Write the archive to this file, which must not exist; `-` for standard output
    #[arg(short, long, value_name = "FILE", default_value = "postroad-support.tar")]
    pub file: PathBuf,
    /// Include the last 4 MiB of this log file; may be repeated. A mail log may name addresses
    #[arg(long, value_name = "FILE")]
    pub log: Vec<PathBuf>,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}
