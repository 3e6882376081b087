//! The command line of `postroad queue`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use postroad_proto::queue::GroupBy;

use super::TargetArgs;
use crate::output::OutputArgs;

/// Flags of the role, or what to do with the queue.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct QueueArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "POSTROAD_CONFIG", required = true)]
    pub config: Option<PathBuf>,
    /// What to do with the queue of a running cluster
    #[command(subcommand)]
    pub command: Option<QueueCommand>,
}

/// What to do with the queue of a running cluster.
#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// Count what waits, by site, tenant, pool, source or sender domain: how much, how old, when next, why
    List(QueueListArgs),
}

/// Flags of `queue list`.
#[derive(Args, Debug)]
pub struct QueueListArgs {
    /// What deliveries are counted by
    #[arg(long, value_name = "BY", default_value = "site")]
    pub by: GroupedBy,
    /// Show as many rows, those with the most deliveries; the rest is counted as `(other)`
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub top: usize,
    /// How it is shown
    #[command(flatten)]
    pub output: OutputArgs,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// What deliveries are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GroupedBy {
    /// The site of the receiver: its MX hosts, or a domain.
    Site,
    /// The tenant whose they are.
    Tenant,
    /// The pool that they are sent from.
    Pool,
    /// The source that is sending them.
    Source,
    /// The domain of the envelope sender.
    SenderDomain,
}

impl GroupedBy {
    /// Returns the word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Tenant => "tenant",
            Self::Pool => "pool",
            Self::Source => "source",
            Self::SenderDomain => "sender-domain",
        }
    }

    pub(crate) fn wire(self) -> GroupBy {
        match self {
            Self::Site => GroupBy::Site,
            Self::Tenant => GroupBy::Tenant,
            Self::Pool => GroupBy::Pool,
            Self::Source => GroupBy::Source,
            Self::SenderDomain => GroupBy::SenderDomain,
        }
    }
}
