//! Arguments of the commands about sites, lanes, sources, pools, tenants and outbound nodes.

use clap::{Args, Subcommand};
use postroad_core::{Domain, DurationText};

use super::TargetArgs;
use crate::output::OutputArgs;

/// What to do with sites.
#[derive(Debug, Subcommand)]
pub enum SiteCommand {
    /// What every kind has.
    #[command(flatten)]
    Scope(ScopeCommand),
    /// Show what an attempt for a domain would do: its site, hosts, addresses and limits, from the outbound node that would send it
    Probe(ProbeArgs),
}

/// What to do with sites, lanes, sources, pools, tenants or outbound nodes.
#[derive(Debug, Subcommand)]
pub enum ScopeCommand {
    /// List them, with what is sent and what is suspended
    List(ListArgs),
    /// Show one, with its suspension and its lanes
    Get(GetScopeArgs),
    /// Stop their mail within seconds: nothing new is sent, attempts under way finish, and mail is accepted as before
    Suspend(SuspendArgs),
    /// End their suspensions
    Resume(ResumeArgs),
}

/// Flags of `list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only those that are suspended
    #[arg(long)]
    pub suspended: bool,
    /// How it is shown
    #[command(flatten)]
    pub output: OutputArgs,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Flags of `get`.
#[derive(Args, Debug)]
pub struct GetScopeArgs {
    /// Its name; that of a lane is SOURCE/SITE, that of an outbound node its number
    pub name: String,
    /// How it is shown
    #[command(flatten)]
    pub output: OutputArgs,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Flags of `suspend`.
#[derive(Args, Debug)]
pub struct SuspendArgs {
    /// Their names; that of a lane is SOURCE/SITE, that of an outbound node its number
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Why, for the next person on call: shown wherever mail waits for it
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// For how long, such as 30m or 2h; without it, until it is resumed
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub length: Option<DurationText>,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Flags of `resume`.
#[derive(Args, Debug)]
pub struct ResumeArgs {
    /// Their names; that of a lane is SOURCE/SITE, that of an outbound node its number
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Flags of `site probe`.
#[derive(Args, Debug)]
pub struct ProbeArgs {
    /// The domain of a recipient
    #[arg(value_parser = Domain::parse)]
    pub domain: Domain,
    /// From this source; without it, from one of the pool
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// From a source of this pool; without it, of any
    #[arg(long, value_name = "NAME", conflicts_with = "source")]
    pub pool: Option<String>,
    /// Connect, up to EHLO and STARTTLS; no mail is sent
    #[arg(long)]
    pub connect: bool,
    /// How it is shown
    #[command(flatten)]
    pub output: OutputArgs,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

fn duration(text: &str) -> Result<DurationText, String> {
    let length: DurationText =
        text.parse().map_err(|error: postroad_core::duration::DurationTextError| error.to_string())?;
    if length.0.is_zero() { Err("expected a duration above 0".to_owned()) } else { Ok(length) }
}
