//! What each role of a cluster takes, for `deploy/sizing.md`: memory, CPU and disk, idle and under load; the time to be ready,
//! and to end after SIGTERM; memory per queued delivery; how fast a backlog is accepted and delivered, with two outbound nodes
//! and with one.
//!
//! Everything runs on this machine, load and receiver included. Acknowledged mail is compared with what the receiver got.

mod figures;
mod usage;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use postroad_testkit::{
    Sink, SinkConfig,
    checker::{Acknowledged, Duplicate, Findings},
    cluster::{API_KEY, Cluster, ClusterSpec, Role},
    exposition::Exposition,
    process::http_get,
};
use tokio::time::sleep;

use crate::{
    ClientArgs,
    failover::{interrupted, positive},
    grpc::WhenEnded,
    load::{Load, LoadSpec, RECIPIENT},
    report::write_json,
};

use figures::Figures;
use usage::Usage;

/// Sources settle and caches are filled before something is measured.
const SETTLE: Duration = Duration::from_secs(10);
/// How long idle nodes are measured.
const IDLE: Duration = Duration::from_secs(20);
/// The longest that a node may take to be ready, or to end.
const NODE_WITHIN: Duration = Duration::from_secs(120);
/// The longest time without a delivery.
const PATIENCE: Duration = Duration::from_secs(60);

const ROLES: [(Role, &str); 4] = [
    (Role::Queue, "queue"),
    (Role::Ingress, "ingress"),
    (Role::Outbound, "outbound"),
    (Role::Control, "control"),
];

/// Metrics of a queue node.
const SYNCS: &str = "postroad_storage_sync_seconds";
const LOGGED: &str = "postroad_queue_log_written_bytes_total";

const MIB: f64 = 1024.0 * 1024.0;

/// Flags of `roles`.
#[derive(Args, Clone, Debug)]
pub(crate) struct RolesArgs {
    /// The release binary of Postroad
    #[arg(long, value_name = "FILE")]
    postroad: PathBuf,
    /// Messages per second, half of them over SMTP and half over gRPC
    #[arg(long, default_value_t = 1000.0, value_parser = positive)]
    rate: f64,
    /// How long the load is measured
    #[arg(long, value_name = "SECS", default_value_t = 60)]
    load_secs: u64,
    /// Bytes of each message, header included
    #[arg(long, default_value_t = 8192)]
    size: usize,
    /// Messages that are queued, and then delivered, for the figures of a backlog
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(4..))]
    backlog: u64,
    /// Repeats everything with a cluster of its own; medians are printed
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    #[command(flatten)]
    clients: ClientArgs,
    /// Also write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs all rounds, or until interrupted, and prints the figures of those that are over.
///
/// # Errors
/// A node fails, or mail is lost.
pub(crate) async fn run(arguments: RolesArgs) -> anyhow::Result<()> {
    let mut figures = Figures::default();
    let result = tokio::select! {
        result = measure(&arguments, &mut figures) => result,
        interrupted = interrupted() => interrupted.and(Err(anyhow!("interrupted"))),
    };
    println!("{figures}");
    arguments.json.as_ref().map_or(Ok(()), |path| write_json(path, &figures))?;
    result
}

async fn measure(arguments: &RolesArgs, figures: &mut Figures) -> anyhow::Result<()> {
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        let sink = Sink::start(SinkConfig::default()).await?;
        let cluster = Cluster::start(ClusterSpec::usual(&arguments.postroad, sink.address())).await?;
        let mut run = Run { arguments, cluster, sink, acknowledged: Vec::new(), figures };
        run.all().await.with_context(|| run.cluster.logs())?;
    }
    Ok(())
}

/// One round.
struct Run<'a> {
    arguments: &'a RolesArgs,
    cluster: Cluster,
    sink: Sink,
    /// All messages of the round.
    acknowledged: Vec<Acknowledged>,
    figures: &'a mut Figures,
}

/// A half of a backlog.
struct Filled {
    /// Messages that were acknowledged: others may be refused.
    queued: f64,
    took: Duration,
}

impl Run<'_> {
    async fn all(&mut self) -> anyhow::Result<()> {
        self.idle().await?;
        self.under_load().await?;
        self.restart_each("under load").await?;
        for outbounds in [2, 1] {
            self.backlog(outbounds).await?;
        }
        self.require_all_delivered().await
    }

    async fn idle(&mut self) -> anyhow::Result<()> {
        eprintln!("idle");
        for (role, name) in ROLES {
            self.restart(role, name, "idle").await?;
        }
        sleep(SETTLE).await;
        let before = self.usages()?;
        sleep(IDLE).await;
        let after = self.usages()?;
        self.add_usages("idle", &before, &after, IDLE);
        Ok(())
    }

    async fn under_load(&mut self) -> anyhow::Result<()> {
        let load = self.start_load(Some(self.arguments.rate));
        sleep(SETTLE).await;
        eprintln!("under load");
        let (before, delivered) = (self.usages()?, self.sink.ledger().count());
        let (syncs, logged) = (self.sum_of_queues(SYNCS).await?, self.sum_of_queues(LOGGED).await?);
        let (began, accepted) = (postroad_env::now(), load.tally.accepted_count());
        sleep(Duration::from_secs(self.arguments.load_secs)).await;
        let took = postroad_env::since(began);
        let accepted = (load.tally.accepted_count() - accepted) as f64;
        let delivered = (self.sink.ledger().count() - delivered) as f64;
        let syncs = self.sum_of_queues(SYNCS).await? - syncs;
        let logged = self.sum_of_queues(LOGGED).await? - logged;
        let after = self.usages()?;
        let nodes = self.cluster.nodes(Role::Queue).len() as f64;
        let written = |usages: &[(Role, Usage)]| -> u64 {
            usages.iter().filter(|(role, _)| *role == Role::Queue).map(|(_, usage)| usage.written).sum()
        };
        let written = (written(&after) - written(&before)) as f64;
        self.add_usages("under load", &before, &after, took);
        let secs = took.as_secs_f64();
        self.figures.add("messages/s accepted under load", accepted / secs);
        self.figures.add("messages/s delivered under load", delivered / secs);
        self.figures.add("bytes written by a queue node per message", written / nodes / accepted);
        self.figures.add("of these, to its log", logged / nodes / accepted);
        self.figures.add("syncs/s of a queue node", syncs / nodes / secs);
        self.figures.add("messages for each sync of a queue node", accepted * nodes / syncs);
        let latencies = load.tally.answers(load.started).latencies;
        self.figures.add("accept latency, p50, ms", latencies.p50_ms);
        self.figures.add("accept latency, p99, ms", latencies.p99_ms);
        self.finish_load(load).await
    }

    /// Stops and starts one node of each role while the load continues.
    async fn restart_each(&mut self, when: &str) -> anyhow::Result<()> {
        eprintln!("restarts under load");
        let load = self.start_load(Some(self.arguments.rate));
        sleep(SETTLE).await;
        for (role, name) in ROLES {
            self.restart(role, name, when).await?;
            sleep(SETTLE).await;
        }
        self.finish_load(load).await
    }

    async fn restart(&mut self, role: Role, name: &str, when: &str) -> anyhow::Result<()> {
        let mut nodes = self.cluster.nodes(role);
        let node = nodes.first_mut().context("every role has a node")?;
        let began = postroad_env::now();
        node.process.terminate(NODE_WITHIN).await?;
        let ended = postroad_env::since(began);
        let began = postroad_env::now();
        node.process.start_again()?;
        node.process.wait_ready(NODE_WITHIN).await?;
        let ready = postroad_env::since(began);
        self.figures.add(&format!("{name}, {when}: s from SIGTERM to the end"), ended.as_secs_f64());
        self.figures.add(&format!("{name}, {when}: s from start to ready"), ready.as_secs_f64());
        Ok(())
    }

    /// Queues a backlog for a suspended site, and delivers it with so many outbound nodes.
    async fn backlog(&mut self, outbounds: usize) -> anyhow::Result<()> {
        eprintln!("a backlog for {outbounds} outbound nodes");
        self.wait_delivered().await?;
        let site = format!("route:{}", self.sink.address());
        self.cluster.operate(&["site", "suspend", &site, "--reason", "backlog"]).await?;
        sleep(SETTLE).await;
        let empty = self.queue_pss()?;
        let first = self.fill().await?;
        let half = self.queue_pss()?;
        let second = self.fill().await?;
        sleep(SETTLE).await;
        let full = self.queue_pss()?;
        let count = first.queued + second.queued;
        self.figures
            .add("messages/s accepted into a backlog", count / (first.took + second.took).as_secs_f64());
        if outbounds == 2 {
            let nodes = self.cluster.nodes(Role::Queue).len() as f64;
            let name = "bytes of PSS of a queue node per queued delivery";
            self.figures.add(&format!("{name}, first half"), (half - empty) / nodes / first.queued);
            self.figures.add(&format!("{name}, second half"), (full - half) / nodes / second.queued);
        }
        for node in self.cluster.nodes(Role::Outbound).into_iter().skip(outbounds) {
            node.process.terminate(NODE_WITHIN).await?;
        }
        sleep(SETTLE).await;
        let began = postroad_env::now();
        self.cluster.operate(&["site", "resume", &site]).await?;
        self.wait_delivered().await?;
        let name = format!("messages/s delivered from a backlog, {outbounds} outbound nodes");
        self.figures.add(&name, count / postroad_env::since(began).as_secs_f64());
        Ok(())
    }

    /// Queues half of a backlog.
    async fn fill(&mut self) -> anyhow::Result<Filled> {
        let before = self.acknowledged.len();
        let load = self.start_load(None);
        let began = load.started;
        self.finish_load(load).await?;
        let (queued, took) = (self.acknowledged.len() - before, postroad_env::since(began));
        ensure!(queued > 0, "no message of a backlog was accepted");
        Ok(Filled { queued: queued as f64, took })
    }

    /// Starts load at a rate, or of half a backlog.
    fn start_load(&self, rate: Option<f64>) -> Load {
        let messages = if rate.is_some() { 0 } else { self.arguments.backlog / 2 };
        let clients = ClientArgs { api_key: API_KEY.to_owned(), ..self.arguments.clients.clone() };
        let (size, when_ended) = (self.arguments.size, WhenEnded::ConnectAgain);
        let spec = LoadSpec { messages, rate, size, clients, when_ended };
        Load::start(&spec, self.cluster.smtp(), self.cluster.grpc())
    }

    async fn finish_load(&mut self, load: Load) -> anyhow::Result<()> {
        let tally = load.tally.clone();
        load.finish().await?;
        let named = |id| Acknowledged { id, recipients: vec![RECIPIENT.into()] };
        self.acknowledged.extend(tally.accepted().iter().filter_map(|accepted| accepted.id.map(named)));
        Ok(())
    }

    /// Waits until the receiver has as many copies as messages were acknowledged.
    async fn wait_delivered(&self) -> anyhow::Result<()> {
        let (ledger, wanted) = (self.sink.ledger(), self.acknowledged.len() as u64);
        loop {
            let count = ledger.count();
            if count >= wanted {
                return Ok(());
            }
            ensure!(ledger.wait_for_count(count + 1, PATIENCE).await, "{count} of {wanted} were delivered");
        }
    }

    async fn require_all_delivered(&self) -> anyhow::Result<()> {
        let control = self.cluster.control().context("the cluster has a control node")?;
        let (findings, explained) =
            Findings::collect(&self.acknowledged, &self.sink.ledger(), control, PATIENCE).await;
        explained?;
        let unexplained =
            findings.duplicates.iter().filter(|copies| !Duplicate::is_explained(copies)).count();
        eprintln!(
            "{} acknowledged, {} lost, {} with more than one copy",
            self.acknowledged.len(),
            findings.lost.len(),
            findings.duplicates.len()
        );
        ensure!(findings.lost.is_empty() && unexplained == 0, "mail is lost, or has copies without reason");
        Ok(())
    }

    /// Returns what each running node has used.
    fn usages(&mut self) -> anyhow::Result<Vec<(Role, Usage)>> {
        let mut usages = Vec::new();
        for (role, _) in ROLES {
            for pid in self.cluster.nodes(role).iter().filter_map(|node| node.process.pid()) {
                usages.push((role, Usage::of(pid)?));
            }
        }
        Ok(usages)
    }

    /// Adds what a node of each role takes, on average over its nodes.
    fn add_usages(&mut self, when: &str, before: &[(Role, Usage)], after: &[(Role, Usage)], took: Duration) {
        for (role, name) in ROLES {
            let of_role = |usages: &[(Role, Usage)]| -> Vec<Usage> {
                usages.iter().filter(|(of, _)| *of == role).map(|(_, usage)| *usage).collect()
            };
            let (before, after) = (of_role(before), of_role(after));
            let nodes = after.len().max(1) as f64;
            let sum = |usages: &[Usage], what: fn(&Usage) -> f64| usages.iter().map(what).sum::<f64>();
            let cpu = |usage: &Usage| usage.cpu.as_secs_f64();
            let cpu = (sum(&after, cpu) - sum(&before, cpu)) / nodes / took.as_secs_f64();
            self.figures.add(&format!("{name}, {when}: millicores"), cpu * 1000.0);
            let rss = sum(&after, |usage| usage.rss as f64) / nodes / MIB;
            self.figures.add(&format!("{name}, {when}: MiB RSS"), rss);
            let pss = sum(&after, |usage| usage.pss as f64) / nodes / MIB;
            self.figures.add(&format!("{name}, {when}: MiB PSS"), pss);
        }
    }

    /// Returns the PSS of all queue nodes together.
    fn queue_pss(&mut self) -> anyhow::Result<f64> {
        let usages = self.usages()?;
        Ok(usages.iter().filter(|(role, _)| *role == Role::Queue).map(|(_, usage)| usage.pss as f64).sum())
    }

    /// Returns a metric's sum over all queue nodes; of a histogram, the number of samples.
    async fn sum_of_queues(&mut self, metric: &str) -> anyhow::Result<f64> {
        let mut sum = 0.0;
        for node in self.cluster.nodes(Role::Queue) {
            let (_, page) = http_get(node.process.spec().metrics, "/metrics").await?;
            let page = String::from_utf8_lossy(&page);
            sum += Exposition::read(&page).sum(metric);
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        arguments: RolesArgs,
    }

    #[test]
    fn every_half_of_a_backlog_has_a_message_of_each_protocol() {
        let check = |backlog: &str, expected: Option<u64>| {
            let parsed = Cli::try_parse_from(["roles", "--postroad", "postroad", "--backlog", backlog]);
            assert_eq!(parsed.ok().map(|cli| cli.arguments.backlog), expected, "{backlog}");
        };
        check("4", Some(4));
        check("100001", Some(100_001));
        check("3", None);
        check("0", None);
    }
}
