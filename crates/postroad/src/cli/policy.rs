//! The command line of `postroad get`, `describe`, `diff`, `export`, `edit` and `delete`.

use std::path::PathBuf;

use clap::Args;

use super::TargetArgs;
use crate::{output::OutputArgs, policy::PolicyKind};

/// Which items of the policy in force.
#[derive(Args, Clone, Debug, Default)]
pub struct Selection {
    /// Only items of this kind
    pub kind: Option<PolicyKind>,
    /// Only the item with this name; a route is named by its domain
    #[arg(requires = "kind")]
    pub name: Option<String>,
}

/// Flags of `get`.
#[derive(Args, Debug)]
pub struct GetArgs {
    /// Which items
    #[command(flatten)]
    pub selection: Selection,
    /// How they are shown; as YAML and JSON they are a policy
    #[command(flatten)]
    pub output: OutputArgs,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Flags of `describe`.
#[derive(Args, Debug)]
pub struct DescribeArgs {
    /// The kind of the item
    pub kind: PolicyKind,
    /// Its name; a route is named by its domain
    pub name: String,
    /// How it is shown
    #[command(flatten)]
    pub output: OutputArgs,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Flags of `export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Which items
    #[command(flatten)]
    pub selection: Selection,
    /// Write the policy to this file, which must not exist, instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Flags of `diff`.
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// The policy file, YAML; `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Name the items, too, that the cluster has and the file does not: `apply` leaves them as they are
    #[arg(long)]
    pub all: bool,
    /// Accept the removal of items that do not exist
    #[arg(long)]
    pub ignore_missing: bool,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Flags of `edit`.
#[derive(Args, Debug)]
pub struct EditArgs {
    /// Which items
    #[command(flatten)]
    pub selection: Selection,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Flags of `delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// The kind of the items
    pub kind: PolicyKind,
    /// Their names; a route is named by its domain
    #[arg(required = true)]
    pub names: Vec<String>,
    /// Delete without asking
    #[arg(long)]
    pub yes: bool,
    /// Accept names of items that do not exist
    #[arg(long)]
    pub ignore_missing: bool,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}
