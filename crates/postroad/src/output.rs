//! Standard output: what a command prints is its result, so what cannot be written is an error.

use std::io::{self, Write};

use anyhow::Context;

/// Writes to standard output.
///
/// A reader that has read enough, such as `head`, is not an error.
///
/// # Errors
/// It cannot be written, such as on a full disk: what was written of it may be incomplete.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    // Without the flush, what is left in the buffer would be lost without an error when the process ends.
    written(output.write_all(text.as_bytes()).and_then(|()| output.flush())).map(drop)
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
