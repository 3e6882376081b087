//! `postroad dev --cluster` under load, while the leader of every group in turn is killed and started again.
//!
//! The group of an acknowledgement is read from its message id, so gaps are measured as the client sees them.
//! Acknowledged messages are compared with the sink's copies, and duplicates with control's record.

mod report;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use postroad_core::GroupId;
use postroad_testkit::{
    Sink, SinkConfig,
    checker::{Acknowledged, Findings},
    dev::DevCluster,
    failover::{Kill, Queues, lose_leader},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    ClientArgs,
    grpc::WhenEnded,
    load::{Load, LoadSpec, RECIPIENT},
    report::{Tally, write_json},
};

use report::{Report, Run};

/// The groups of `dev --cluster`: the directory, and a ledger for each queue node.
const GROUPS: [GroupId; 4] = [GroupId::DIRECTORY, GroupId(1), GroupId(2), GroupId(3)];

/// How long a group may take to accept mail again.
const ACCEPTS_WITHIN: Duration = Duration::from_secs(180);

/// Flags of `failover`.
#[derive(Args, Clone, Debug)]
pub(crate) struct FailoverArgs {
    /// The release binary of Postroad
    #[arg(long, value_name = "FILE")]
    postroad: PathBuf,
    /// Number of messages; more are sent if the last kill takes longer
    #[arg(long, default_value_t = 100_000)]
    messages: u64,
    /// Messages per second, half of them over SMTP and half over gRPC
    #[arg(long, default_value_t = 1000.0, value_parser = positive)]
    rate: f64,
    /// Kills of each group's leader
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    kills: u16,
    /// Bytes of each message, header included
    #[arg(long, default_value_t = 8192)]
    size: usize,
    #[command(flatten)]
    clients: ClientArgs,
    /// Where to create the data directory; it is removed unless the run fails
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    data: PathBuf,
    /// After this long without a delivery, missing messages count as lost
    #[arg(long, value_name = "SECS", default_value_t = 60)]
    patience_secs: u64,
    /// Also write the report to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn positive(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "expected a number above zero".to_owned())
}

/// Runs until the result is known, or until interrupted.
///
/// # Errors
/// An acknowledged message is lost, a message was accepted twice, a duplicate is unexplained, a process ended that was
/// not killed, or the run failed.
pub(crate) async fn run(arguments: FailoverArgs) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new()
        .prefix("postroad-failover-")
        .tempdir_in(&arguments.data)
        .with_context(|| format!("cannot create a directory in `{}`", arguments.data.display()))?;
    let result = tokio::select! {
        result = start_and_measure(&arguments, dir.path().join("data")) => result,
        interrupted = interrupted() => return interrupted.and(Err(anyhow!("interrupted"))),
    };
    if result.is_err() {
        eprintln!("kept data and logs in {}", dir.keep().display());
    }
    result
}

/// Dropping this stops the cluster.
async fn start_and_measure(arguments: &FailoverArgs, data: PathBuf) -> anyhow::Result<()> {
    let sink = Sink::start(SinkConfig::default()).await?;
    eprintln!("starting postroad dev --cluster");
    let mut cluster = DevCluster::start(&arguments.postroad, &data, sink.address()).await?;
    let result = measure(arguments, &mut cluster, &sink).await;
    all_of([result, cluster.stop().await, sink.stop().await.map_err(Into::into)])
}

/// Returns all errors together.
fn all_of(results: impl IntoIterator<Item = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut errors: Vec<anyhow::Error> = results.into_iter().filter_map(Result::err).collect();
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        number => {
            let errors: Vec<String> = errors.iter().map(|error| format!("{error:#}")).collect();
            bail!("{number} errors:\n{}", errors.join("\n"))
        }
    }
}

pub(crate) async fn interrupted() -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn measure(arguments: &FailoverArgs, cluster: &mut DevCluster, sink: &Sink) -> anyhow::Result<()> {
    let FailoverArgs { messages, rate, size, clients, .. } = arguments.clone();
    // Only queue nodes are killed: an ingress node that ends a stream has a fault.
    let spec = LoadSpec { messages, rate: Some(rate), size, clients, when_ended: WhenEnded::Fail };
    let load = Load::start(&spec, cluster.smtp().collect(), cluster.grpc().collect());
    let (tally, started) = (load.tally.clone(), load.started);
    let mut leaders = Leaders { cluster, tally: &tally };
    let mut kills = Vec::new();
    // After an error, acknowledged messages are still checked, and all errors are returned.
    let killed = kill_in_turn(arguments, &mut leaders, &load, sink, &mut kills).await;
    let sent = load.finish().await;
    let ended = postroad_env::now();
    eprintln!("waiting for deliveries and for control's record");
    let accepted = tally.accepted();
    let acknowledged = accepted
        .iter()
        .filter_map(|accepted| accepted.id.map(|id| Acknowledged { id, recipients: vec![RECIPIENT.into()] }));
    let acknowledged: Vec<Acknowledged> = acknowledged.collect();
    let patience = Duration::from_secs(arguments.patience_secs);
    let (findings, explained) =
        Findings::collect(&acknowledged, &sink.ledger(), leaders.cluster.control(), patience).await;
    let running = leaders.cluster.require_running();
    let names = |index| leaders.cluster.name(index).to_owned();
    let run = Run { started, ended, kills: &kills, findings: &findings };
    let report = Report::new(arguments, &tally, &run, names);
    println!("{report}");
    let written = arguments.json.as_ref().map_or(Ok(()), |path| write_json(path, &report));
    let named = require_ids(accepted.len(), acknowledged.len());
    let explained = explained.context("cannot explain duplicates");
    all_of([killed, sent, explained, running, named, report.require_nothing_wrong(), written])
}

fn require_ids(accepted: usize, with_id: usize) -> anyhow::Result<()> {
    ensure!(accepted == with_id, "{} messages were accepted without an id", accepted - with_id);
    Ok(())
}

/// Kills the leaders of all groups in turn, spread over the shortest time that the messages take.
async fn kill_in_turn(
    arguments: &FailoverArgs,
    leaders: &mut Leaders<'_>,
    load: &Load,
    sink: &Sink,
    kills: &mut Vec<Kill>,
) -> anyhow::Result<()> {
    let groups = GROUPS.repeat(arguments.kills.into());
    let spacing =
        Duration::from_secs_f64(arguments.messages as f64 / arguments.rate) / (groups.len() as u32 + 1);
    for (number, group) in (1..).zip(&groups) {
        tokio::time::sleep_until((load.started + spacing * number).into()).await;
        let loss = tokio::time::timeout(ACCEPTS_WITHIN, lose_leader(leaders, *group)).await;
        let loss = loss.unwrap_or_else(|_| Err(anyhow!("group `{group}` does not accept mail again")));
        let loss = loss.with_context(|| format!("kill {number}"))?;
        let name = leaders.cluster.name(loss.index).to_owned();
        let kill = loss.start_again(leaders).await;
        let kill = kill.with_context(|| format!("kill {number}: `{name}` did not start again"))?;
        eprintln!(
            "{:4.0} s: {} accepted, {} delivered; kill {number} of {}: {} leading {}, accepted again after {:.2} s, \
             ready after {:.2} s",
            postroad_env::since(load.started).as_secs_f64(),
            load.tally.accepted_count(),
            sink.ledger().count(),
            groups.len(),
            name,
            report::name_of(*group),
            kill.accepted_after.as_secs_f64(),
            kill.ready_after.as_secs_f64(),
        );
        kills.push(kill);
    }
    Ok(())
}

/// The cluster whose leaders are killed, and the acknowledgements of its load.
struct Leaders<'a> {
    cluster: &'a mut DevCluster,
    tally: &'a Tally,
}

impl Queues for Leaders<'_> {
    type Error = anyhow::Error;

    async fn leader(&mut self, group: GroupId) -> Option<usize> {
        self.cluster.leader(group).await
    }

    async fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        self.cluster.kill(index).await
    }

    async fn start_again(&mut self, index: usize) -> anyhow::Result<()> {
        self.cluster.start_again(index).await
    }

    fn acknowledged(&self, group: GroupId) -> u64 {
        if group == GroupId::DIRECTORY { self.tally.accepted_count() } else { self.tally.accepted_of(group) }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use postroad_core::MessageId;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        arguments: FailoverArgs,
    }

    #[test]
    fn a_run_has_at_least_one_kill() {
        let check = |kills: &str, expected: Option<u16>| {
            let parsed = Cli::try_parse_from(["failover", "--postroad", "postroad", "--kills", kills]);
            assert_eq!(parsed.ok().map(|cli| cli.arguments.kills), expected, "{kills}");
        };
        check("1", Some(1));
        check("10", Some(10));
        check("0", None);
        check("-1", None);
        check("65536", None);
    }

    #[test]
    fn a_message_accepted_twice_fails_the_run_and_an_unacknowledged_one_does_not() {
        let cli = Cli::try_parse_from(["failover", "--postroad", "postroad"]).unwrap();
        let check = |findings: &Findings, figures: &str, good: bool| {
            let started = postroad_env::now();
            let run = Run { started, ended: started, kills: &[], findings };
            let report = Report::new(&cli.arguments, &Tally::new(0), &run, |_| String::new());
            assert!(report.to_string().contains(figures), "{report}");
            assert_eq!(report.require_nothing_wrong().is_ok(), good, "{report}");
        };
        let ids = [1, 2].map(MessageId::from_u128);
        check(&Findings::default(), "0 accepted twice, 0 unacknowledged", true);
        let findings = Findings { unacknowledged: 3, ..Findings::default() };
        check(&findings, "0 accepted twice, 3 unacknowledged", true);
        let findings =
            Findings { accepted_twice: vec![ids.into()], unacknowledged: 1, ..Findings::default() };
        check(&findings, "1 accepted twice, 1 unacknowledged", false);
        let findings = Findings { lost: vec![(ids[0], RECIPIENT.into())], ..Findings::default() };
        check(&findings, "1 lost, 0 extra copies", false);
    }

    #[test]
    fn all_errors_are_returned() {
        let check = |errors: &[Option<&'static str>], expected: &str| {
            let results = errors.iter().map(|error| error.map_or(Ok(()), |error| Err(anyhow!(error))));
            let text = all_of(results).map_or_else(|error| format!("{error:#}"), |()| String::new());
            assert_eq!(text, expected);
        };
        check(&[], "");
        check(&[None, None], "");
        check(&[None, Some("a"), None], "a");
        check(&[Some("a"), None, Some("b")], "2 errors:\na\nb");
    }
}
