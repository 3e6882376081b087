//! `postroad apply` changes the directory as a policy file says; `postroad get` prints it as one.

use std::{io::Read, path::Path};

use anyhow::Context;
use postroad_cluster::{Applied, ApplyOptions};
use postroad_directory::ItemName;

use super::{Operator, OperatorError, WITHIN};
use crate::{
    cli::{ApplyArgs, GetArgs},
    policy::{Policy, PolicyFile, describe, to_yaml},
};

/// Runs `postroad apply`.
///
/// # Errors
/// The policy file is invalid, or the cluster cannot be reached or refuses the changes.
pub async fn apply_file(args: &ApplyArgs) -> anyhow::Result<String> {
    let name = args.file.display().to_string();
    let text = read(&args.file).with_context(|| format!("cannot read the policy file `{name}`"))?;
    let file = PolicyFile::read(&name, &text)?;
    let operator = Operator::connect(&args.target)?;
    let action = format!("apply `{name}`");
    let stored = operator.view(&action).await?;
    let options = ApplyOptions { dry_run: args.dry_run, ignore_missing: args.ignore_missing };
    let changes = file.policy.changes(&stored, options).map_err(|problems| file.error(problems))?;
    let applied = operator.directory().apply(&changes.puts, &changes.removals, options, WITHIN).await;
    let Applied { revision, changed, warnings } = applied.map_err(|error| operator.failed(&action, error))?;
    let items = describe(&changes, &stored, args.dry_run);
    let verb = if args.dry_run { "would change" } else { "changed" };
    let number = if changed == 1 { "item" } else { "items" };
    let warnings: String = warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    Ok(format!("{warnings}{items}{verb} {changed} {number}; the directory is at revision {revision}\n"))
}

/// Runs `postroad get`.
///
/// # Errors
/// The cluster cannot be reached, or has no item of that name.
pub async fn get(args: &GetArgs) -> anyhow::Result<String> {
    let operator = Operator::connect(&args.target)?;
    let stored = operator.view("read the policy").await?;
    let is_wanted = |item: &ItemName| {
        args.kind.is_none_or(|kind| kind.kind() == item.kind)
            && args.name.as_ref().is_none_or(|name| **name == *item.name)
    };
    let policy = Policy::of(&stored, is_wanted);
    if let (Some(kind), Some(name)) = (args.kind, &args.name)
        && policy == Policy::default()
    {
        let cause = format!("`{} {name}` does not exist", kind.kind());
        return Err(OperatorError::NotFound { action: "read the policy".to_owned(), cause }.into());
    }
    Ok(to_yaml(&policy, stored.revision())?)
}

fn read(file: &Path) -> std::io::Result<String> {
    if file != Path::new("-") {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}
