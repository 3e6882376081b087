//! Postroad and another server in turn: the same source, sink and disk.

mod postfix;
mod postroad;
mod round;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use postroad_testkit::{Sink, SinkConfig};

use round::{Measured, Source};

/// The server to compare with.
#[derive(Debug, Subcommand)]
pub(crate) enum Compare {
    /// Compare with Debian's Postfix; needs root, as Postfix does
    Postfix(PostfixArgs),
}

/// Flags of `compare postfix`.
#[derive(Args, Clone, Debug)]
pub(crate) struct PostfixArgs {
    /// Messages per run
    #[arg(long, default_value_t = 10_000)]
    messages: u64,
    /// Bytes of the body of each message
    #[arg(long, default_value_t = 8192)]
    size: usize,
    /// Concurrent connections
    #[arg(long, default_value_t = 50)]
    connections: usize,
    /// Runs of each server, in turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Send many messages per connection instead of one
    #[arg(long)]
    reuse: bool,
    /// The release binary of Postroad; without it only Postfix and the ceiling are measured
    #[arg(long, value_name = "FILE")]
    postroad: Option<PathBuf>,
    /// Where to create the data directories; they are removed afterwards
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    data: PathBuf,
    /// Time limit of one run
    #[arg(long, value_name = "SECS", default_value_t = 300)]
    limit_secs: u64,
}

/// If Postfix accepts fewer messages per second than this, something else used the machine.
const POSTFIX_ACCEPTS_AT_LEAST: f64 = 350.0;

pub(crate) async fn run(compare: Compare) -> anyhow::Result<()> {
    let Compare::Postfix(arguments) = compare;
    let dir = tempfile::Builder::new()
        .prefix("postroad-compare-")
        .tempdir_in(&arguments.data)
        .with_context(|| format!("cannot create a directory in `{}`", arguments.data.display()))?;
    let source = Source {
        messages: arguments.messages,
        size: arguments.size,
        connections: arguments.connections,
        reuse: arguments.reuse,
        limit: Duration::from_secs(arguments.limit_secs),
    };
    let sink = Sink::start(SinkConfig::default()).await?;
    let mut results = Results::default();
    for number in 1..=arguments.rounds.max(1) {
        eprintln!("round {number} of {}", arguments.rounds.max(1));
        results.ceiling.push(round::ceiling(&source).await.context("smtp-source against smtp-sink")?);
        let postfix = postfix::Postfix::start(dir.path(), sink.address()).await?;
        results.postfix.push(round::through(&source, postfix.server(), &sink).await.context("Postfix")?);
        postfix.stop().await?;
        if let Some(binary) = &arguments.postroad {
            let postroad = postroad::Postroad::start(binary, dir.path(), sink.address()).await?;
            results
                .postroad
                .push(round::through(&source, postroad.server(), &sink).await.context("Postroad")?);
            postroad.stop().await?;
        }
    }
    sink.stop().await?;
    results.print(&arguments)
}

#[derive(Debug, Default)]
struct Results {
    /// Messages per second from smtp-source directly to smtp-sink.
    ceiling: Vec<f64>,
    postfix: Vec<Measured>,
    postroad: Vec<Measured>,
}

impl Results {
    fn print(&self, arguments: &PostfixArgs) -> anyhow::Result<()> {
        let PostfixArgs { messages, size, connections, reuse, .. } = arguments;
        let connection = if *reuse { "many messages per connection" } else { "one message per connection" };
        println!(
            "{messages} messages of {size} bytes, {connections} connections, {connection}, {} cores",
            cores()
        );
        let ceiling = Spread::of(&self.ceiling);
        println!("smtp-source to smtp-sink  {ceiling}/s");
        print_server("postfix", &self.postfix, &ceiling);
        print_server("postroad", &self.postroad, &ceiling);
        if !self.postroad.is_empty() {
            let ratio = |of: fn(&Measured) -> f64| {
                Spread::of_all(&self.postroad, of).median / Spread::of_all(&self.postfix, of).median
            };
            println!(
                "postroad to postfix       {:.1} × accepted, {:.1} × delivered, {:.2} × cpu",
                ratio(|m| m.accepted_per_s),
                ratio(|m| m.delivered_per_s),
                ratio(|m| m.cpu_us_per_message)
            );
        }
        let slow = self.postfix.iter().filter(|m| m.accepted_per_s < POSTFIX_ACCEPTS_AT_LEAST).count();
        if slow > 0 {
            println!(
                "disturbed: Postfix accepted fewer than {POSTFIX_ACCEPTS_AT_LEAST}/s in {slow} runs; something else used the machine"
            );
        }
        let all = self.postfix.iter().chain(&self.postroad);
        ensure!(all.clone().all(|m| m.lost == 0), "{} messages were lost", all.map(|m| m.lost).sum::<u64>());
        Ok(())
    }
}

fn print_server(name: &str, runs: &[Measured], ceiling: &Spread) {
    if runs.is_empty() {
        return;
    }
    let delivered = Spread::of_all(runs, |m| m.delivered_per_s);
    println!("{name:<10} accepted       {}/s", Spread::of_all(runs, |m| m.accepted_per_s));
    println!(
        "{name:<10} delivered      {delivered}/s, {:.0} % of the ceiling",
        100.0 * delivered.median / ceiling.median
    );
    println!("{name:<10} cpu            {} µs per message", Spread::of_all(runs, |m| m.cpu_us_per_message));
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The median of some runs, with minimum and maximum.
#[derive(Debug)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(at(middle.wrapping_sub(1)), at(middle))
        } else {
            at(middle)
        };
        Self { median, min: at(0), max: at(sorted.len().wrapping_sub(1)) }
    }

    fn of_all(runs: &[Measured], value: impl Fn(&Measured) -> f64) -> Self {
        Self::of(&runs.iter().map(value).collect::<Vec<_>>())
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} ({:.0} to {:.0})", self.median, self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let check = |values: &[f64], text: &str| assert_eq!(Spread::of(values).to_string(), text);
        check(&[3.0, 1.0, 2.0], "2 (1 to 3)");
        check(&[4.0, 1.0, 2.0, 8.0], "3 (1 to 8)");
        check(&[], "0 (0 to 0)");
    }
}
