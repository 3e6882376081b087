//! `postroad edit` and `postroad delete`: changes of single items by hand.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail, ensure};
use postroad_cluster::ApplyOptions;
use postroad_directory::{ItemName, Put};

use super::{
    Operator, apply,
    confirm::confirm,
    policy::{READ, named, selected},
};
use crate::{
    cli::policy::{DeleteArgs, EditArgs},
    policy::{Changes, Policy, PolicyFile, describe, to_yaml},
};

/// Runs `postroad edit`: opens items in an editor, and applies what was saved.
///
/// # Errors
/// The cluster cannot be reached, the editor fails, or what was saved cannot be applied; the file is then kept.
pub async fn edit(args: &EditArgs) -> anyhow::Result<String> {
    let operator = Operator::connect(&args.target)?;
    let stored = operator.view(READ).await?;
    let policy = selected(&args.selection, &stored)?;
    let mut draft = Draft::new(to_yaml(&policy, stored.revision())?)?;
    let done = apply_draft(&operator, args, &policy, &mut draft).await;
    match done {
        Ok(text) => {
            draft.remove();
            Ok(text)
        }
        Err(error) => Err(error.context(format!("your version is kept in {}", draft.path.display()))),
    }
}

/// Opens the editor until what is saved can be applied, or nothing was changed.
async fn apply_draft(
    operator: &Operator,
    args: &EditArgs,
    before: &Policy,
    draft: &mut Draft,
) -> anyhow::Result<String> {
    loop {
        let Some(file) = draft.edit()? else { return Ok(NOTHING.to_owned()) };
        let stored = operator.view(READ).await?;
        // It may be gone, too. What is changed between this and the next call is lost: the time of one call.
        if !selected(&args.selection, &stored).is_ok_and(|now| now == *before) {
            bail!(
                "nothing was changed: somebody else has changed the same items since the editor was opened"
            );
        }
        match file.policy.changes(&stored, ApplyOptions::default()) {
            Ok(changes) => {
                let left_out = left_out(&before.names(), &changes);
                if describe(&changes, &stored, true).is_empty() {
                    return Ok(format!("{left_out}{NOTHING}"));
                }
                let action = "apply what was edited";
                let made = apply::make(operator, action, &changes, &stored, ApplyOptions::default()).await?;
                return Ok(format!("{left_out}{made}"));
            }
            Err(problems) => draft.refuse(&file.error(problems).to_string())?,
        }
    }
}

const NOTHING: &str = "nothing was changed\n";

/// Names the items that were taken out of the file, one a line: as with `apply`, they stay as they are.
fn left_out(before: &[ItemName], changes: &Changes) -> String {
    let named: HashSet<ItemName> =
        changes.puts.iter().map(Put::name).chain(changes.removals.iter().cloned()).collect();
    let left_out = before.iter().filter(|name| !named.contains(name));
    left_out
        .map(|name| {
            format!("not deleted, though it is no longer in the file: {name} (`postroad delete` does)\n")
        })
        .collect()
}

/// A policy in an editor.
struct Draft {
    path: PathBuf,
    /// What was in the file when the editor was opened.
    text: String,
}

/// Stands before each line of an error at the top of the file.
const ERROR_MARK: &str = "# error: ";

impl Draft {
    fn new(text: String) -> anyhow::Result<Self> {
        let file = tempfile::Builder::new().prefix("postroad-edit-").suffix(".yaml").tempfile()?;
        let (_, path) = file.keep()?;
        fs::write(&path, &text)?;
        Ok(Self { path, text })
    }

    /// Opens the editor until what is saved can be read; `None` when nothing was changed.
    fn edit(&mut self) -> anyhow::Result<Option<PolicyFile>> {
        let name = self.path.display().to_string();
        loop {
            open_editor(&self.path)?;
            let saved = fs::read_to_string(&self.path).with_context(|| format!("cannot read `{name}`"))?;
            if saved == self.text {
                ensure!(
                    !saved.starts_with(ERROR_MARK),
                    "nothing was changed: the file still has the same errors"
                );
                return Ok(None);
            }
            self.text.clone_from(&saved);
            match PolicyFile::read(&name, &saved) {
                Ok(file) => return Ok(Some(file)),
                Err(error) => self.refuse(&error.to_string())?,
            }
        }
    }

    /// Puts an error at the top of the file, in place of an earlier one.
    fn refuse(&mut self, error: &str) -> anyhow::Result<()> {
        self.text = with_error(&self.text, error);
        Ok(fs::write(&self.path, &self.text)?)
    }

    fn remove(&self) {
        // It is in the directory for temporary files: nobody needs it, and nobody is in its way.
        let _ = fs::remove_file(&self.path);
    }
}

fn with_error(text: &str, error: &str) -> String {
    let marked = error.lines().map(|line| format!("{ERROR_MARK}{line}\n"));
    let kept = text.lines().filter(|line| !line.starts_with(ERROR_MARK)).map(|line| format!("{line}\n"));
    marked.chain(kept).collect()
}

/// Waits until the editor that the environment names has ended; the variable may have arguments.
fn open_editor(file: &Path) -> anyhow::Result<()> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let editor = variable("VISUAL").or_else(|| variable("EDITOR")).unwrap_or_else(|| "vi".to_owned());
    let status = Command::new("sh").args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(file).status();
    let is_missing = match &status {
        // The shell found no such program.
        Ok(status) => status.code() == Some(127),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    ensure!(
        !is_missing,
        "nothing was changed: there is no editor `{editor}` on this machine; name one in `EDITOR`, \
         or change what `postroad export` prints where there is one, and `postroad apply` it here"
    );
    let status = status.with_context(|| format!("cannot start the editor `{editor}`"))?;
    ensure!(status.success(), "nothing was changed: the editor `{editor}` ended with {status}");
    Ok(())
}

/// Runs `postroad delete`.
///
/// # Errors
/// An item does not exist or is in use, the cluster cannot be reached, or a person said no.
pub async fn delete(args: &DeleteArgs) -> anyhow::Result<String> {
    let operator = Operator::connect(&args.target)?;
    let action = format!("delete {}", args.names.join(", "));
    let stored = operator.view(&action).await?;
    let names = args.names.iter().map(|name| named(args.kind, name)).collect::<Result<Vec<_>, _>>()?;
    let changes = Changes { puts: Vec::new(), removals: distinct(names) };
    let options = |dry_run| ApplyOptions { dry_run, ignore_missing: args.ignore_missing };
    // What would be refused is refused before a person is asked.
    let would = apply::make(&operator, &action, &changes, &stored, options(true)).await?;
    confirm(args.yes, &format!("{would}Delete in {}?", operator.cluster))?;
    Ok(apply::make(&operator, &action, &changes, &stored, options(false)).await?)
}

/// An item that is named twice is meant once.
fn distinct(names: Vec<ItemName>) -> Vec<ItemName> {
    let mut distinct: Vec<ItemName> = Vec::new();
    for name in names {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    distinct
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_at_the_top_of_the_file_and_an_earlier_one_is_gone() {
        let once = with_error("tenants: []\n", "first\n  of two lines");
        assert_eq!(once, "# error: first\n# error:   of two lines\ntenants: []\n");
        assert_eq!(with_error(&once, "second"), "# error: second\ntenants: []\n");
    }
}
