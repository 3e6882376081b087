//! `postroad apply` changes the directory as a policy file says; `postroad get` prints it as one.

use std::{io::Read, path::Path};

use anyhow::Context;
use postroad_cluster::{Applied, ApplyOptions};
use postroad_directory::View;

use super::{Operator, OperatorError, WITHIN};
use crate::{
    cli::{ApplyArgs, GetArgs},
    policy::{Policy, PolicyFile, PolicyKind, describe, stored_name, to_yaml},
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
    Ok(to_yaml(&selected(args, &stored)?, stored.revision())?)
}

/// Returns the items that the command line selects.
fn selected(args: &GetArgs, stored: &View) -> Result<Policy, OperatorError> {
    let Some(kind) = args.kind.map(PolicyKind::kind) else { return Ok(Policy::of(stored, |_| true)) };
    let Some(written) = &args.name else { return Ok(Policy::of(stored, |item| item.kind == kind)) };
    let not_found = |cause| OperatorError::NotFound { action: "read the policy".to_owned(), cause };
    let name = stored_name(kind, written)
        .map_err(|expected| not_found(format!("`{kind} {written}`: {expected}")))?;
    match Policy::of(stored, |item| *item == name) {
        nothing if nothing == Policy::default() => Err(not_found(format!("`{name}` does not exist"))),
        policy => Ok(policy),
    }
}

fn read(file: &Path) -> std::io::Result<String> {
    if file != Path::new("-") {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use postroad_directory::{Change, Command, Directory};

    use super::*;
    use crate::cli::{self, Cli};

    fn get(arguments: &[&str], stored: &View) -> Result<Policy, String> {
        let arguments = [&["postroad", "get"], arguments].concat();
        let cli::Command::Get(args) = Cli::parse_from(arguments).command else { panic!("it is `get`") };
        selected(&args, stored).map_err(|error| error.to_string())
    }

    #[test]
    fn an_item_is_selected_by_its_name_and_a_route_by_its_domain_in_any_spelling() {
        let text = "
sources: [{name: one, helo: mail.example.org}]
routes: [{domain: Partner.Example, host: a.example, port: 25}, {domain: bücher.example, host: b.example, port: 25}]
";
        let mut directory = Directory::new();
        let view = |directory: &Directory| View::empty().apply(directory.everything());
        let file = PolicyFile::read("policy.yaml", text).unwrap();
        let changes = file.policy.changes(&view(&directory), ApplyOptions::default()).unwrap();
        directory.apply(&Command::Change(changes.puts.into_iter().map(Change::Put).collect())).unwrap();
        let stored = view(&directory);

        let host =
            |domain: &str| get(&["routes", domain], &stored).map(|policy| policy.routes[0].host.clone());
        assert_eq!(host("PARTNER.example").as_deref(), Ok("a.example"));
        assert_eq!(host("Bücher.example").as_deref(), Ok("b.example"));
        assert_eq!(host("xn--bcher-kva.example").as_deref(), Ok("b.example"));
        let missing = host("*").unwrap_err();
        assert_eq!(missing, "cannot read the policy: `route *` does not exist");
        assert_eq!(get(&["routes"], &stored).unwrap().routes.len(), 2);
        assert_eq!(get(&["sources", "one"], &stored).unwrap().sources.len(), 1);
        assert_eq!(
            get(&["sources", "ONE"], &stored).unwrap_err(),
            "cannot read the policy: `source ONE` does not exist"
        );
    }
}
