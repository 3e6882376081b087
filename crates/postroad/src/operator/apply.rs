//! `postroad apply`: changes the directory as a policy file says.

use std::{io::Read, path::Path};

use anyhow::Context;
use postroad_cluster::{Applied, DirectoryClient, Endpoints, LeaderWatch};

use super::{Operator, WITHIN};
use crate::{
    cli::ApplyArgs,
    policy::{Changes, Policy},
};

/// Applies changes.
///
/// # Errors
/// The cluster cannot be reached, or refuses the changes.
pub async fn apply(endpoints: &Endpoints, changes: &Changes) -> anyhow::Result<Applied> {
    let leaders = LeaderWatch::start(endpoints);
    let directory = DirectoryClient::new(endpoints, &leaders.subscribe());
    Ok(directory.apply(&changes.puts, &changes.removals, false, WITHIN).await?)
}

/// Runs `postroad apply`.
///
/// # Errors
/// The policy file is invalid, or the cluster cannot be reached or refuses the changes.
pub async fn apply_file(args: &ApplyArgs) -> anyhow::Result<String> {
    let text =
        read(&args.file).with_context(|| format!("cannot read the policy file `{}`", args.file.display()))?;
    let policy = Policy::parse(&text).with_context(|| format!("`{}`", args.file.display()))?;
    let changes = policy.changes().with_context(|| format!("`{}`", args.file.display()))?;
    let operator = Operator::connect(&args.target)?;
    let applied = operator.directory().apply(&changes.puts, &changes.removals, args.dry_run, WITHIN).await;
    let action = format!("apply `{}`", args.file.display());
    let Applied { revision, changed } = applied.map_err(|error| operator.failed(&action, error))?;
    let verb = if args.dry_run { "would change" } else { "changed" };
    let items = if changed == 1 { "item" } else { "items" };
    Ok(format!("{verb} {changed} {items}; the directory is at revision {revision}\n"))
}

fn read(file: &Path) -> std::io::Result<String> {
    if file != Path::new("-") {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}
