//! `postroad apply` changes the directory as a policy file says; `postroad diff` says what that would change.

use std::{collections::HashSet, io::Read, path::Path};

use anyhow::Context;
use postroad_cluster::{Applied, ApplyOptions};
use postroad_directory::{ItemName, Put, View};

use super::{Operator, OperatorError, WITHIN, error::Differs};
use crate::{
    cli::{ApplyArgs, policy::DiffArgs},
    output,
    policy::{Changes, Policy, PolicyFile, describe},
};

/// Runs `postroad apply`.
///
/// # Errors
/// The policy file is invalid, or the cluster cannot be reached or refuses the changes.
pub async fn apply_file(args: &ApplyArgs) -> anyhow::Result<String> {
    let name = args.file.display().to_string();
    let file = read_policy(&args.file, &name)?;
    let operator = Operator::connect(&args.target)?;
    let action = format!("apply `{name}`");
    let stored = operator.view(&action).await?;
    let options = ApplyOptions { dry_run: args.dry_run, ignore_missing: args.ignore_missing };
    let changes = file.policy.changes(&stored, options).map_err(|problems| file.error(problems))?;
    Ok(make(&operator, &action, &changes, &stored, options).await?)
}

/// Makes changes, or says what they would be.
pub(super) async fn make(
    operator: &Operator,
    action: &str,
    changes: &Changes,
    stored: &View,
    options: ApplyOptions,
) -> Result<String, OperatorError> {
    let applied = operator.directory().apply(&changes.puts, &changes.removals, options, WITHIN).await;
    let Applied { revision, changed, warnings } = applied.map_err(|error| operator.failed(action, error))?;
    let items = describe(changes, stored, options.dry_run);
    let verb = if options.dry_run { "would change" } else { "changed" };
    let cluster = &operator.cluster;
    let number = if changed == 1 { "item" } else { "items" };
    let warnings: String = warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    Ok(format!(
        "{warnings}{items}{verb} {changed} {number} in {cluster}; the directory is at revision {revision}\n"
    ))
}

/// Runs `postroad diff`: what `apply` would change is the result, and that something would is an error of its own.
///
/// # Errors
/// The policy and the cluster differ; or as for [`apply_file`].
pub async fn diff(args: &DiffArgs) -> anyhow::Result<String> {
    let name = args.file.display().to_string();
    let file = read_policy(&args.file, &name)?;
    let operator = Operator::connect(&args.target)?;
    let action = format!("compare `{name}`");
    let stored = operator.view(&action).await?;
    let options = ApplyOptions { dry_run: true, ignore_missing: args.ignore_missing };
    let changes = file.policy.changes(&stored, options).map_err(|problems| file.error(problems))?;
    let applied = operator.directory().apply(&changes.puts, &changes.removals, options, WITHIN).await;
    let Applied { revision, warnings, .. } = applied.map_err(|error| operator.failed(&action, error))?;
    let warnings: String = warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    let mut items = describe(&changes, &stored, true);
    if args.all {
        items += &only_stored(&changes, &stored);
    }
    if items.is_empty() {
        return Ok(format!("{warnings}no difference to {} at revision {revision}\n", operator.cluster));
    }
    output::print(&format!("{warnings}{items}"))?;
    Err(Differs { file: name, revision }.into())
}

/// Items that the cluster has and the file says nothing of, one a line.
fn only_stored(changes: &Changes, stored: &View) -> String {
    let named: HashSet<ItemName> =
        changes.puts.iter().map(Put::name).chain(changes.removals.iter().cloned()).collect();
    let policy = Policy::names_of(stored);
    policy.filter(|name| !named.contains(name)).map(|name| format!("only in the cluster: {name}\n")).collect()
}

fn read_policy(file: &Path, name: &str) -> anyhow::Result<PolicyFile> {
    let text = read(file).with_context(|| format!("cannot read the policy file `{name}`"))?;
    Ok(PolicyFile::read(name, &text)?)
}

fn read(file: &Path) -> std::io::Result<String> {
    if file != Path::new("-") {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}
