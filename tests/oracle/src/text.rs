//! The text form of a history: a first line with the version, then one JSON object for each record.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::history::{History, Record};

/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    postroad_history: u32,
}

/// A text is not a history.
#[derive(Debug)]
pub enum TextError {
    /// The first line does not name a version that can be read.
    Version {
        /// The line.
        line: String,
    },
    /// A line is not a record.
    Line {
        /// Its number; the first is 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { line } => {
                write!(f, "expected `{{\"postroad_history\":{VERSION}}}` in the first line, found `{line}`")
            }
            Self::Line { line, .. } => write!(f, "line {line} is not a record"),
        }
    }
}

impl std::error::Error for TextError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Version { .. } => None,
            Self::Line { source, .. } => Some(source),
        }
    }
}

/// Returns the first line of a file, with its line end.
#[must_use]
pub fn header() -> String {
    format!("{{\"postroad_history\":{VERSION}}}\n")
}

/// Returns the line of one record, with its line end.
#[must_use]
pub fn line(record: &Record) -> String {
    let mut line = serde_json::to_string(record).expect("a record has only texts, numbers and lists");
    line.push('\n');
    line
}

/// Returns the whole file.
#[must_use]
pub fn write(history: &History) -> String {
    std::iter::once(header()).chain(history.records.iter().map(line)).collect()
}

/// Reads a file; its records may be in any order.
///
/// # Errors
/// The version is another one, or a line is not a record: a field that is not known is refused, not skipped.
pub fn read(text: &str) -> Result<History, TextError> {
    let mut lines = (1..).zip(text.lines());
    let first = lines.next().map_or("", |(_, line)| line);
    let known =
        serde_json::from_str(first).is_ok_and(|Header { postroad_history }| postroad_history == VERSION);
    if !known {
        return Err(TextError::Version { line: first.chars().take(80).collect() });
    }
    let read = |(number, line)| {
        serde_json::from_str(line).map_err(|source| TextError::Line { line: number, source })
    };
    Ok(History::new(lines.map(read).collect::<Result<_, _>>()?))
}
