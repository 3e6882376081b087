//! `postroad-faults simulate`: clusters in virtual time whose disks, networks and clocks fail.
//!
//! Every seed is a process of its own with one thread: [`world`] is the cluster, [`plan`] the faults, [`nodes`] what the
//! simulated processes run, [`network`] and [`process`] what they run on.

use std::{process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use mimalloc::MiMalloc;
use postroad_machine::Counting;
use postroad_telemetry::LogFilter;

mod counters;
mod driver;
mod known;
mod network;
mod nodes;
mod observer;
mod plan;
mod process;
mod record;
mod run;
mod shrink;
mod trace;
mod world;

#[global_allocator]
static ALLOCATOR: Counting<MiMalloc> = Counting(MiMalloc);

#[derive(Parser)]
#[command(about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs many seeds and prints what they found; exit status 1 when something is wrong that is not known yet.
    Simulate(driver::SimulateArgs),
    /// Runs one seed and prints its faults, its verdict and the story of the first violation.
    Run(RunArgs),
}

#[derive(Args)]
struct RunArgs {
    /// The seed.
    seed: u64,
    /// How long faults happen, in virtual seconds.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// A theme for the plan, instead of the one that the seed has or has not.
    #[arg(long)]
    theme: Option<plan::Theme>,
    /// Only these faults of the plan, by number.
    #[arg(long, value_delimiter = ',')]
    only: Option<Vec<usize>>,
    /// Print the result as one line of JSON.
    #[arg(long)]
    json: bool,
    /// Write the history to this file, for `postroad-oracle`.
    #[arg(long)]
    history: Option<std::path::PathBuf>,
    /// Write everything that happened, with a running hash, to this file.
    #[arg(long)]
    trace: Option<std::path::PathBuf>,
    /// Print what the nodes log from this level on, such as `info` or `debug`.
    #[arg(long, value_parser = LogFilter::parse)]
    log: Option<LogFilter>,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Simulate(args) => driver::simulate(&args),
        Command::Run(args) => {
            let options = run::Options {
                seed: args.seed,
                length: Duration::from_secs(args.seconds),
                only: args.only,
                theme: args.theme,
                history: args.history,
                trace: args.trace,
                log: args.log,
            };
            run::run(options, args.json)
        }
    }
}
