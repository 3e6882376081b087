//! What commands print: a reading command makes one value, which is shown as text for people or written for programs.
//!
//! What a command prints is its result, so what cannot be written is an error.

mod table;

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use clap::{Args, ValueEnum};
use postroad_core::text::is_printable;
use serde::Serialize;

pub use table::{Column, Row, number, table, text};

/// The flag of every reading command.
#[derive(Args, Clone, Copy, Debug)]
pub struct OutputArgs {
    /// Print a table for people, or a value for programs
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people; may change.
    Table,
    /// For programs: fields are only added.
    Json,
    /// The same value as YAML.
    Yaml,
}

/// A result of a reading command. Its fields are what programs get; people get [`Shown::text`].
pub trait Shown: Serialize {
    /// Returns it as text for a person.
    fn text(&self, screen: Screen) -> String;
}

/// Where text for a person goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// The columns of the terminal; `None` where output goes to a file or program, and nothing is cut.
    pub width: Option<usize>,
}

impl Screen {
    /// Returns that of standard output.
    #[must_use]
    pub fn stdout() -> Self {
        let stdout = io::stdout();
        let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten();
        Self { width: size.map(|size| usize::from(size.ws_col)).filter(|width| *width > 0) }
    }
}

impl Format {
    /// Returns what is to be printed.
    ///
    /// # Errors
    /// The value cannot be written in the format, which every value of ours can.
    pub fn show<T: Shown>(self, value: &T) -> anyhow::Result<String> {
        match self {
            Self::Table => Ok(value.text(Screen::stdout())),
            Self::Json => Ok(serde_json::to_string_pretty(value)? + "\n"),
            Self::Yaml => Ok(serde_yaml_ng::to_string(value)?),
        }
    }
}

/// Returns text from a peer or a message on one line: control characters, which a terminal would obey, are escaped.
#[must_use]
pub fn line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if is_printable(c) {
            line.push(c);
        } else {
            line.extend(c.escape_default());
        }
    }
    line
}

/// Writes to standard output.
///
/// A reader that has read enough, such as `head`, is not an error.
///
/// # Errors
/// It cannot be written, such as on a full disk: what was written of it may be incomplete.
pub fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(text.as_bytes()).map(drop)
}

/// Writes bytes to standard output, such as those of a message.
///
/// # Errors
/// See [`fn@print`].
pub fn print_bytes(bytes: &[u8]) -> anyhow::Result<Reader> {
    let mut output = io::stdout().lock();
    // Without the flush, what is left in the buffer would be lost without an error when the process ends.
    written(output.write_all(bytes).and_then(|()| output.flush()))
}

/// Writes a line to standard error, for a person.
pub fn complain(text: &str) {
    note(&format!("postroad: {text}\n"));
}

/// Writes text to standard error as it is. It is no command's result: where it cannot be written, such as to a log that is
/// full, the command goes on.
pub fn note(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Shows how far a command is, in one line of the terminal that the next call replaces; nothing where standard error is
/// no terminal.
pub fn progress(text: &str) {
    let mut stderr = io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r{text}\x1b[K");
    }
}

/// Whether somebody still reads what a command prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// There is more to print for it.
    Reads,
    /// It has read enough.
    Gone,
}

/// Says what the result of writing to standard output means for the command.
///
/// # Errors
/// See [`fn@print`].
pub fn written(result: io::Result<()>) -> anyhow::Result<Reader> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        result => result.map(|()| Reader::Reads).context("cannot write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Value {
        name: &'static str,
        count: u64,
    }

    impl Shown for Value {
        fn text(&self, _: Screen) -> String {
            format!("{} of {}\n", self.count, self.name)
        }
    }

    #[test]
    fn one_value_is_shown_in_every_format() {
        let value = Value { name: "site", count: 3 };
        let show = |format: Format| format.show(&value).unwrap();
        assert_eq!(show(Format::Table), "3 of site\n");
        assert_eq!(show(Format::Json), "{\n  \"name\": \"site\",\n  \"count\": 3\n}\n");
        assert_eq!(show(Format::Yaml), "name: site\ncount: 3\n");
    }

    #[test]
    fn what_a_receiver_says_cannot_steer_the_terminal() {
        assert_eq!(line("550 \u{1b}[2Jno\r\nsuch\tuser"), "550 \\u{1b}[2Jno\\r\\nsuch\\tuser");
        assert_eq!(line("a\u{202e}b\u{9b}c"), "a\\u{202e}b\\u{9b}c");
        assert_eq!(line("Grüße 👋"), "Grüße 👋");
    }
}
