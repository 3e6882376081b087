//! `postroad`: see `postroad --help`.

use std::{io::Write, process::ExitCode};

use clap::Parser;
use postroad::{cli::Cli, command, operator};
use rustix::fs::Mode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Mail, keys and databases are readable by this user only, whatever umask the shell or the unit has.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    match command::run(Cli::parse().command) {
        Ok(text) => {
            // A closed standard output is not an error.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "postroad: {error:#}");
            operator::exit_code(&error)
        }
    }
}
