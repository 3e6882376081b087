//! `postroad-oracle FILE…`: judges the history in these files.
//!
//! Exit status 0: nothing is violated; 1: something is; 2: the files are not a history.

use std::{
    fs,
    io::{self, Write},
    process::ExitCode,
};

use postroad_oracle::{Bounds, History, NOT_JUDGED, Verdict, judge, story, text};

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
        Some(violation) => writeln!(out, "\n{}", story::of_violation(history, violation)),
        None => Ok(()),
    }
}
