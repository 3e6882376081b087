//! `postroad-monitoring rules N` prints the rules with all times divided by N, to see alerts begin and end within minutes.

use std::{
    io::{self, Write},
    process::ExitCode,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text = match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["rules", faster] => faster.parse().ok().filter(|faster| *faster > 0).map(postroad_monitoring::rules),
        _ => None,
    };
    let written = match &text {
        Some(text) => io::stdout().write_all(text.as_bytes()),
        None => io::stderr().write_all(b"usage: postroad-monitoring rules N\n"),
    };
    if text.is_some() && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
