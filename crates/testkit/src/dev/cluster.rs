//! `postroad dev --cluster` as an operator uses it: queue nodes are killed by the process ids that it prints,
//! and started again with the commands that it prints.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use postroad_core::GroupId;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    cluster::leader_of,
    process::{Process, ProcessSpec, consecutive_free_ports},
};

/// How long the cluster may take to form, and a process to become ready.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// `dev` waits for each of its processes in turn.
const STOP_WITHIN: Duration = Duration::from_secs(120);
/// How often its output is checked.
const CHECK_EVERY: Duration = Duration::from_millis(50);
/// How many ingress nodes it starts.
const INGRESSES: u16 = 2;
/// The last line that it prints when it is ready.
const READY: &str = "Ctrl-C stops all.";

/// The listeners of `dev --cluster`: the flag's name, and the number of ports from the given one on.
const LISTENERS: [(&str, u16); 6] =
    [("smtp", 2), ("smtps", 2), ("grpc", 2), ("http", 2), ("metrics", 8), ("operator", 4)];

/// A running `postroad dev --cluster`.
///
/// Dropping it stops it too, blocking the thread.
#[derive(Debug)]
pub struct DevCluster {
    dev: Process,
    queues: Vec<QueueNode>,
    ports: Ports,
    program: PathBuf,
}

/// A queue node: its process, and how to start it again.
#[derive(Debug)]
struct QueueNode {
    banner: BannerLine,
    log: PathBuf,
    metrics: SocketAddr,
    process: QueueProcess,
}

#[derive(Debug)]
enum QueueProcess {
    /// Started by `dev`.
    Original(Pid),
    /// Started again after a kill.
    Restarted(Box<Process>),
    Killed,
}

#[derive(Debug)]
struct Ports([u16; 6]);

impl Ports {
    fn at(&self, name: &str, offset: u16) -> SocketAddr {
        let index = LISTENERS.iter().position(|(listener, _)| *listener == name);
        let first = self.0[index.expect("a listener of the table")];
        SocketAddr::from((Ipv4Addr::LOCALHOST, first + offset))
    }
}

impl DevCluster {
    /// Starts it with its data in `data` and all mail routed to `receiver`, and waits until all its nodes are ready.
    ///
    /// # Errors
    /// It cannot be started, or does not become ready; the error has the last lines of its log.
    pub async fn start(program: &Path, data: &Path, receiver: SocketAddr) -> anyhow::Result<Self> {
        let mut next = consecutive_free_ports(LISTENERS.iter().map(|(_, number)| number).sum())?;
        let ports = Ports(LISTENERS.map(|(_, number)| {
            next += number;
            next - number
        }));
        let mut arguments: Vec<OsString> =
            vec!["dev".into(), "--cluster".into(), "--data".into(), data.into()];
        for (name, _) in LISTENERS {
            arguments.extend([format!("--listen-{name}").into(), ports.at(name, 0).to_string().into()]);
        }
        arguments.extend(["--route".into(), format!("*={receiver}").into()]);
        std::fs::create_dir_all(data)?;
        let dev = Process::start(ProcessSpec {
            name: "postroad dev --cluster".to_owned(),
            program: program.to_owned(),
            arguments,
            log: data.join("dev.log"),
            metrics: ports.at("metrics", 0),
        })?;
        let mut cluster = Self { dev, queues: Vec::new(), ports, program: program.to_owned() };
        cluster.wait_for_line(READY).await?;
        cluster.queues = cluster.read_banner()?;
        cluster.dev.wait_ready(READY_WITHIN).await?;
        Ok(cluster)
    }

    /// Returns the SMTP address of each ingress node.
    pub fn smtp(&self) -> impl Iterator<Item = SocketAddr> {
        (0..INGRESSES).map(|number| self.ports.at("smtp", number))
    }

    /// Returns the gRPC address of each ingress node.
    pub fn grpc(&self) -> impl Iterator<Item = SocketAddr> {
        (0..INGRESSES).map(|number| self.ports.at("grpc", number))
    }

    /// Returns the HTTP address of the control node.
    #[must_use]
    pub fn control(&self) -> SocketAddr {
        self.ports.at("http", 0)
    }

    /// Returns the name of a queue node.
    #[must_use]
    pub fn name(&self, index: usize) -> &str {
        self.queues.get(index).map_or("", |node| &node.banner.name)
    }

    /// Returns the index among the queue nodes of the leader of a group, according to their metrics.
    pub async fn leader(&self, group: GroupId) -> Option<usize> {
        let running =
            self.queues.iter().enumerate().filter(|(_, node)| !matches!(node.process, QueueProcess::Killed));
        leader_of(running.map(|(index, node)| (index, node.metrics)), group).await
    }

    /// Fails if a process has ended that was not killed here.
    ///
    /// # Errors
    /// The names of these processes.
    pub fn require_running(&mut self) -> anyhow::Result<()> {
        let killed = self.queues.iter().filter(|node| !matches!(node.process, QueueProcess::Original(_)));
        let killed: Vec<&str> = killed.map(|node| &*node.banner.name).collect();
        let mut ended = ended_by_themselves(&self.dev.log(), &killed);
        if !self.dev.is_running() {
            ended.push(format!("`{}` has ended", self.dev.spec().name));
        }
        for node in &mut self.queues {
            if let QueueProcess::Restarted(process) = &mut node.process
                && !process.is_running()
            {
                ended.push(format!("`{}` has ended after its restart", node.banner.name));
            }
        }
        ensure!(ended.is_empty(), "not killed here: {}", ended.join(", "));
        Ok(())
    }

    /// Kills a queue node with SIGKILL.
    ///
    /// # Errors
    /// It is not running.
    pub async fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        let ended_in_dev = self.has_ended(self.name(index));
        let node = self.queues.get_mut(index).context("no such node")?;
        let has_ended = match &mut node.process {
            QueueProcess::Original(_) => ended_in_dev,
            QueueProcess::Restarted(process) => !process.is_running(),
            QueueProcess::Killed => true,
        };
        ensure!(!has_ended, "`{}` is not running", node.banner.name);
        match std::mem::replace(&mut node.process, QueueProcess::Killed) {
            QueueProcess::Original(pid) => kill_process(pid, Signal::KILL)?,
            QueueProcess::Restarted(mut process) => process.kill().await?,
            QueueProcess::Killed => {}
        }
        Ok(())
    }

    /// Starts a killed queue node with the printed command, and waits until it is ready.
    ///
    /// # Errors
    /// It is running, cannot be started, or does not become ready.
    pub async fn start_again(&mut self, index: usize) -> anyhow::Result<()> {
        let node = self.queues.get(index).context("no such node")?;
        ensure!(matches!(node.process, QueueProcess::Killed), "`{}` is running", node.banner.name);
        self.wait_for_line(&end_of(&node.banner.name)).await?;
        let node = self.queues.get_mut(index).context("no such node")?;
        let process = Process::start(ProcessSpec {
            name: node.banner.name.clone(),
            program: self.program.clone(),
            arguments: node.banner.arguments.iter().map(OsString::from).collect(),
            log: node.log.clone(),
            metrics: node.metrics,
        })?;
        node.process = QueueProcess::Restarted(Box::new(process));
        match &mut node.process {
            QueueProcess::Restarted(process) => process.wait_ready(READY_WITHIN).await,
            QueueProcess::Original(_) | QueueProcess::Killed => unreachable!("it was just started"),
        }
    }

    /// Stops `dev`, and kills the restarted processes.
    ///
    /// # Errors
    /// `dev` does not stop in time.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.dev.terminate(STOP_WITHIN).await?;
        for node in &mut self.queues {
            if let QueueProcess::Restarted(process) = &mut node.process {
                process.kill().await?;
            }
            node.process = QueueProcess::Killed;
        }
        Ok(())
    }

    fn has_ended(&self, name: &str) -> bool {
        self.dev.log().contains(&end_of(name))
    }

    /// Waits until `dev` has printed something.
    async fn wait_for_line(&self, text: &str) -> anyhow::Result<()> {
        let printed = async {
            while !self.dev.log().contains(text) {
                tokio::time::sleep(CHECK_EVERY).await;
            }
        };
        let printed = tokio::time::timeout(READY_WITHIN, printed).await;
        printed.with_context(|| {
            format!("`dev` did not print `{text}`; its log ends with\n{}", self.dev.log_tail())
        })
    }

    /// Reads the queue nodes from the banner; they are in the order of their metrics ports.
    fn read_banner(&self) -> anyhow::Result<Vec<QueueNode>> {
        let log = self.dev.log();
        let queues =
            log.lines().filter_map(BannerLine::parse).filter(|banner| banner.name.starts_with("queue-"));
        let queues = queues.zip(0..).map(|(banner, number)| {
            let pid = Pid::from_raw(banner.pid).context("a process id of zero")?;
            let config = Path::new(banner.arguments.last().context("a command without arguments")?);
            let (log, metrics) = (config.with_file_name("log"), self.ports.at("metrics", number));
            Ok(QueueNode { log, metrics, process: QueueProcess::Original(pid), banner })
        });
        let queues: Vec<QueueNode> = queues.collect::<anyhow::Result<_>>()?;
        ensure!(queues.len() == 3, "expected three queue nodes in\n{log}");
        Ok(queues)
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        // If it were killed, its child processes would keep running.
        self.dev.terminate_blocking(STOP_WITHIN);
    }
}

/// What `dev` prints when a child process has ended.
fn end_of(name: &str) -> String {
    format!("{name} has ended")
}

/// Returns the ends of child processes that `dev` has printed, except of those in `killed` that ended by SIGKILL.
fn ended_by_themselves(log: &str, killed: &[&str]) -> Vec<String> {
    let started = log.lines().filter_map(BannerLine::parse);
    let ended = started.filter_map(|BannerLine { name, .. }| {
        let said = log.lines().find_map(|line| line.strip_prefix(&end_of(&name)))?;
        let status = said.split(';').next().unwrap_or_default();
        let by_us = killed.contains(&&*name) && status.contains("SIGKILL");
        (!by_us).then(|| format!("`{name}` has ended{status}"))
    });
    ended.collect()
}

/// A line of the banner of `dev --cluster`: `queue-1  pid 7  postroad queue --config FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BannerLine {
    name: String,
    pid: i32,
    /// The arguments of the command.
    arguments: Vec<String>,
}

impl BannerLine {
    fn parse(line: &str) -> Option<Self> {
        // The file is the last argument, and may contain spaces.
        let (front, config) = line.split_once(" --config ")?;
        let words: Vec<&str> = front.split_whitespace().collect();
        let [name, "pid", pid, "postroad", role] = words[..] else { return None };
        let arguments = [role, "--config", config].map(str::to_owned).to_vec();
        Some(Self { name: name.to_owned(), pid: pid.parse().ok()?, arguments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_parsed_from_its_banner_line() {
        let line = "  queue-1     pid 4711     postroad queue --config /a b/queue-1/queue.toml";
        let banner = BannerLine::parse(line).unwrap();
        assert_eq!((&*banner.name, banner.pid), ("queue-1", 4711));
        assert_eq!(banner.arguments, ["queue", "--config", "/a b/queue-1/queue.toml"]);
        for other in [
            "  operator  postroad message get ID --config /x/operator.toml",
            "queue-1 has ended (signal: 9 (SIGKILL)); to start it again: postroad queue --config /x",
            "",
        ] {
            assert_eq!(BannerLine::parse(other), None, "{other}");
        }
    }

    #[test]
    fn processes_that_ended_without_a_kill_are_named() {
        let log = "  queue-1     pid 7     postroad queue --config /a/queue-1/queue.toml\n  \
                   outbound-1  pid 8     postroad outbound --config /a/outbound-1/outbound.toml\n  \
                   control     pid 9     postroad control --config /a/control/control.toml\n\
                   Ctrl-C stops all.\n";
        let ends = "queue-1 has ended (signal: 9 (SIGKILL)); to start it again: postroad queue --config /a\n\
                    outbound-1 has ended (signal: 6 (SIGABRT)); to start it again: postroad outbound --config /a\n";
        let check = |log: &str, killed: &[&str], expected: &[&str]| {
            assert_eq!(ended_by_themselves(log, killed), expected);
        };
        check(log, &[], &[]);
        let log = format!("{log}{ends}");
        check(&log, &["queue-1"], &["`outbound-1` has ended (signal: 6 (SIGABRT))"]);
        let both =
            ["`queue-1` has ended (signal: 9 (SIGKILL))", "`outbound-1` has ended (signal: 6 (SIGABRT))"];
        check(&log, &[], &both);
        check(&log, &["queue-1", "outbound-1"], &both[1..]);
    }
}
