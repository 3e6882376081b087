//! `postroad`: see `postroad --help`.

use std::{io::Write, process::ExitCode};

use clap::Parser;
use postroad::{cli::Cli, command, operator, output};
use rustix::fs::Mode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Mail, keys and databases are readable by this user only, whatever umask the shell or the unit has.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    match command::run(Cli::parse().command).and_then(|text| output::print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "postroad: {error:#}");
            operator::exit_code(&error)
        }
    }
}
