//! Load tests: an open-loop generator over SMTP and gRPC, failover under load, what each role takes, and a comparison with
//! Postfix.
//!
//! Latencies count from the time at which a message was due, not from when a connection was free:
//! the delay of a stalled server counts for every message that had to wait.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports to people")]

mod compare;
mod cpu;
mod failover;
mod grpc;
mod load;
mod message;
mod plan;
mod report;
mod roles;
mod smtp;
mod tracker;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use postroad_testkit::{Sink, SinkConfig};

use crate::{
    cpu::CpuMeter, grpc::WhenEnded, message::MessageMaker, plan::Plan, report::Tally, tracker::Tracker,
};

/// Sends mail to a server at a given rate, and reports what was accepted, delivered and lost.
#[derive(Debug, Parser)]
#[command(name = "postroad-loadtest")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Submit over SMTP
    Smtp(LoadArgs),
    /// Submit over gRPC
    Grpc(LoadArgs),
    /// Run `postroad dev --cluster` and kill the leader of every group under load
    Failover(failover::FailoverArgs),
    /// Measure what each role of a cluster takes: memory, CPU, disk, time to be ready and to drain, idle and under load
    Roles(roles::RolesArgs),
    /// Run Postroad and another server in turn, against the same sink
    #[command(subcommand)]
    Compare(compare::Compare),
}

/// Flags of a load run.
#[derive(Args, Clone, Debug)]
struct LoadArgs {
    /// The server
    #[arg(long, value_name = "HOST:PORT")]
    target: String,
    /// Number of messages
    #[arg(long, default_value_t = 10_000)]
    messages: u64,
    /// Bytes of each message, header included
    #[arg(long, default_value_t = 8192)]
    size: usize,
    #[command(flatten)]
    clients: ClientArgs,
    /// Messages per second; without it as fast as the connections allow
    #[arg(long)]
    rate: Option<f64>,
    /// The envelope sender
    #[arg(long, default_value = "load@example.test")]
    sender: String,
    /// The envelope recipient
    #[arg(long, default_value = "load@sink.test")]
    recipient: String,
    /// Also write the report to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Count deliveries in the ledger file of a running sink
    #[arg(long, value_name = "FILE", conflicts_with = "sink")]
    sink_ledger: Option<PathBuf>,
    /// Run a sink at this address and count its deliveries
    #[arg(long, value_name = "ADDRESS")]
    sink: Option<SocketAddr>,
    /// After this long without a delivery, missing messages count as lost
    #[arg(long, value_name = "SECS", default_value_t = 30)]
    patience_secs: u64,
    /// Report the CPU time of this process and its children
    #[arg(long)]
    pid: Option<u32>,
}

/// Flags for the connections to the server.
#[derive(Args, Clone, Debug)]
struct ClientArgs {
    /// Concurrent connections
    #[arg(long, default_value_t = 50)]
    connections: usize,
    /// Messages per SMTP connection; 0 for any number
    #[arg(long, default_value_t = 0)]
    messages_per_connection: u64,
    /// Unanswered messages per gRPC stream
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// The API key for gRPC
    #[arg(long, default_value = "demo-loopback-only")]
    api_key: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Smtp(arguments) => load(arguments, Protocol::Smtp).await,
        Command::Grpc(arguments) => load(arguments, Protocol::Grpc).await,
        Command::Failover(arguments) => failover::run(arguments).await,
        Command::Roles(arguments) => roles::run(arguments).await,
        Command::Compare(arguments) => compare::run(arguments).await,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Smtp,
    Grpc,
}

async fn load(arguments: LoadArgs, protocol: Protocol) -> anyhow::Result<()> {
    let maker = MessageMaker::new(&arguments.sender, &arguments.recipient, arguments.size);
    let sink = match arguments.sink {
        Some(address) => Some(
            Sink::start(SinkConfig { address, ..SinkConfig::default() })
                .await
                .with_context(|| format!("cannot listen on `{address}`"))?,
        ),
        None => None,
    };
    let mut tracker = match (&sink, &arguments.sink_ledger) {
        (Some(sink), _) => Some(Tracker::of_sink(sink.ledger(), maker.run())),
        (None, Some(path)) => Some(Tracker::of_file(path, maker.run())?),
        (None, None) => None,
    };
    let cpu = arguments.pid.map(CpuMeter::start).transpose().context("cannot read the process's CPU time")?;
    let plan = Arc::new(Plan::new(arguments.messages, arguments.rate));
    let tally = Arc::new(Tally::new(arguments.messages));
    let progress = tokio::spawn(report::show_progress(tally.clone(), sink.as_ref().map(Sink::ledger)));
    match protocol {
        Protocol::Smtp => smtp::run(&arguments.target, &arguments.clients, &plan, &tally, &maker).await?,
        Protocol::Grpc => {
            let when_ended = WhenEnded::ConnectAgain;
            grpc::run(&arguments.target, &arguments.clients, &plan, &tally, &maker, when_ended).await?
        }
    }
    tally.finish();
    if let Some(tracker) = &mut tracker {
        let patience = Duration::from_secs(arguments.patience_secs);
        tracker.wait_for(&tally.accepted(), patience).await?;
    }
    progress.abort();
    let cpu = cpu.map(|cpu| cpu.elapsed()).transpose().context("cannot read the process's CPU time")?;
    let report = report::Report::new(&arguments, &plan, &tally, tracker.as_ref(), cpu);
    println!("{report}");
    if let Some(path) = &arguments.json {
        report::write_json(path, &report)?;
    }
    if let Some(sink) = sink {
        sink.stop().await?;
    }
    Ok(())
}
