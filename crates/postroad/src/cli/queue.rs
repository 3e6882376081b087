//! The command line of `postroad queue` and `postroad top`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use postroad_core::DurationText;
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

/// Flags of `top`.
#[derive(Args, Debug)]
pub struct TopArgs {
    /// What deliveries are counted by
    #[arg(long, value_name = "BY", default_value = "site")]
    pub by: GroupedBy,
    /// How often the cluster is asked, from `1s` to `1m`
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = top_interval)]
    pub interval: DurationText,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// A count younger than two seconds is not made again.
fn top_interval(text: &str) -> Result<DurationText, String> {
    let allowed = DurationText(Duration::from_secs(1))..=DurationText(Duration::from_mins(1));
    let interval = text.parse().ok().filter(|interval| allowed.contains(interval));
    interval.ok_or_else(|| "expected a duration from 1s to 1m".to_owned())
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
