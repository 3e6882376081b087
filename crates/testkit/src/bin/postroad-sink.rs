//! A mail receiver for tests and load, as a program.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use clap::Parser;
use postroad_testkit::{Script, Sink, SinkConfig};
use tokio::signal::unix::{SignalKind, signal};

/// Accepts mail, or refuses it as a script says, and records every copy.
#[derive(Debug, Parser)]
#[command(name = "postroad-sink")]
struct Arguments {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:2526")]
    listen: SocketAddr,
    /// A script in TOML; without it all mail is accepted at once
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Append a line for each accepted copy to this file
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Threads that serve connections
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(arguments.threads.max(1))
        .enable_all()
        .build()
        .context("cannot start threads")?
        .block_on(run(arguments))
}

#[allow(clippy::print_stdout)]
async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let script = match &arguments.script {
        Some(path) => Script::read(path).with_context(|| format!("in `{}`", path.display()))?,
        None => Script::default(),
    };
    let config = SinkConfig { address: arguments.listen, script, ledger_file: arguments.ledger };
    let sink =
        Sink::start(config).await.with_context(|| format!("cannot listen on `{}`", arguments.listen))?;
    println!("listening on {}", sink.address());
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    let (ledger, meters) = (sink.ledger(), sink.meters());
    sink.stop().await.context("cannot write the ledger")?;
    println!("accepted {} copies; {} bare CR or LF received", ledger.count(), ledger.bare_newlines());
    for meter in meters {
        println!(
            "{} to {}: at most {} connections at once, at most {:?} messages per window, {} limit violations",
            meter.source, meter.domain, meter.connections_peak, meter.window_peaks, meter.violations
        );
    }
    Ok(())
}
