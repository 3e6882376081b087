//! Asks a person before something is changed.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, ensure};

/// Returns when a person has said yes, by the flag `--yes` or at the terminal.
///
/// # Errors
/// A person said no, or there is no terminal to ask at.
pub(crate) fn confirm(yes: bool, question: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    let stdin = io::stdin();
    ensure!(
        stdin.is_terminal(),
        "nothing was changed: `--yes` is needed where there is no terminal to ask at\n{question}"
    );
    let mut stderr = io::stderr();
    write!(stderr, "{question} [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).context("cannot read the answer")?;
    ensure!(is_yes(&answer), "nothing was changed");
    Ok(())
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim(), "y" | "Y" | "yes" | "Yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_but_yes_is_no() {
        for yes in ["y\n", "Y", " yes \n"] {
            assert!(is_yes(yes), "{yes:?}");
        }
        for no in ["", "\n", "n\n", "yess", "ye"] {
            assert!(!is_yes(no), "{no:?}");
        }
        assert!(confirm(true, "Go on?").is_ok());
    }
}
