//! `postroad-oracle FILE…`: judges the history in these files.
//!
//! Exit status 0: nothing is violated; 1: something is; 2: the files are not a history.

use std::{
    fs,
    io::{self, Write},
    process::ExitCode,
};

use postroad_oracle::{Bounds, Facts, History, NOT_JUDGED, Verdict, Violation, judge, story, text};

/// More of a story is not printed.
const STORY_MAX: usize = 200;

fn main() -> ExitCode {
    let files: Vec<String> = std::env::args().skip(1).collect();
    let is_usage = files.is_empty() || files.iter().any(|file| file.starts_with('-'));
    let result =
        if is_usage { Err("usage: postroad-oracle FILE…".to_owned()) } else { judge_files(&files) };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            // Nobody may be there to read it.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether nothing is violated.
fn judge_files(files: &[String]) -> Result<bool, String> {
    let mut records = Vec::new();
    for file in files {
        let content = fs::read_to_string(file).map_err(|error| format!("cannot read `{file}`: {error}"))?;
        let read = text::read(&content).map_err(|error| match std::error::Error::source(&error) {
            Some(source) => format!("`{file}`: {error}: {source}"),
            None => format!("`{file}`: {error}"),
        })?;
        records.extend(read.records);
    }
    let history = History::new(records);
    let verdict = judge(&history, &Bounds::default()).map_err(|error| error.to_string())?;
    print(&history, &verdict).map_err(|error| format!("cannot print: {error}"))?;
    Ok(verdict.holds())
}

fn print(history: &History, verdict: &Verdict) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for judgement in &verdict.judgements {
        writeln!(out, "{judgement}")?;
    }
    for (id, reason) in NOT_JUDGED {
        writeln!(out, "{id:<4}not judged: {reason}")?;
    }
    match verdict.violations().next() {
        Some(violation) => print_violation(&mut out, history, violation),
        None => Ok(()),
    }
}

/// Prints a violation with the records about its message; those that prove it are marked.
fn print_violation(out: &mut impl Write, history: &History, violation: &Violation) -> io::Result<()> {
    writeln!(out, "\n{violation}\n")?;
    let facts = Facts::new(history).map_err(io::Error::other)?;
    let about = violation
        .subject
        .message()
        .map_or_else(Vec::new, |message| story::of_message(history, &facts, message));
    let mut numbers = about;
    numbers.extend(&violation.proof);
    numbers.sort_unstable();
    numbers.dedup();
    for number in numbers.iter().take(STORY_MAX) {
        let mark = if violation.proof.contains(number) { '>' } else { ' ' };
        writeln!(out, "{mark} {number:>6} {}", history.records[number - 1])?;
    }
    match numbers.len().checked_sub(STORY_MAX) {
        Some(more) if more > 0 => writeln!(out, "and {more} more records"),
        _ => Ok(()),
    }
}
