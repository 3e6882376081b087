//! `postroad dev --cluster` as an operator has it: queue nodes are killed by the process ids that it prints, and started
//! again by the commands that it prints.

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
    process::{Process, ProcessSpec, free_ports_in_a_row},
};

/// How long the cluster may take to form, and a process to become ready.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// `dev` waits for each of its processes in turn.
const STOP_WITHIN: Duration = Duration::from_secs(120);
/// How often its output is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Ingress nodes that it starts.
const INGRESSES: u16 = 2;
/// The last line of what it prints when it is ready.
const READY: &str = "Ctrl-C stops all.";

/// Where `dev --cluster` listens: each flag names the first port of several.
const LISTENERS: [(&str, u16); 6] =
    [("smtp", 2), ("smtps", 2), ("grpc", 2), ("http", 2), ("metrics", 8), ("operator", 4)];

/// A running `postroad dev --cluster`.
///
/// It is stopped when it is dropped too, on the thread that drops it.
#[derive(Debug)]
pub struct DevCluster {
    dev: Process,
    queues: Vec<QueueNode>,
    ports: Ports,
    program: PathBuf,
}

/// A queue node: its process, and how to start another one.
#[derive(Debug)]
struct QueueNode {
    printed: Printed,
    log: PathBuf,
    metrics: SocketAddr,
    run: Run,
}

#[derive(Debug)]
enum Run {
    /// As `dev` started it.
    Theirs(Pid),
    /// As it was started again.
    Ours(Box<Process>),
    Dead,
}

#[derive(Debug)]
struct Ports([u16; 6]);

impl Ports {
    fn at(&self, name: &str, offset: u16) -> SocketAddr {
        let place = LISTENERS.iter().position(|(listener, _)| *listener == name);
        let first = self.0[place.expect("a listener of the table")];
        SocketAddr::from((Ipv4Addr::LOCALHOST, first + offset))
    }
}

impl DevCluster {
    /// Starts it with its data in `data`, sends everything on to `receiver`, and waits until all its nodes are ready.
    ///
    /// # Errors
    /// It cannot be started, or does not become ready; the end of its log is told.
    pub async fn start(program: &Path, data: &Path, receiver: SocketAddr) -> anyhow::Result<Self> {
        let mut next = free_ports_in_a_row(LISTENERS.iter().map(|(_, number)| number).sum())?;
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

    /// Returns where each ingress node speaks SMTP.
    pub fn smtp(&self) -> impl Iterator<Item = SocketAddr> {
        (0..INGRESSES).map(|number| self.ports.at("smtp", number))
    }

    /// Returns where each ingress node speaks gRPC.
    pub fn grpc(&self) -> impl Iterator<Item = SocketAddr> {
        (0..INGRESSES).map(|number| self.ports.at("grpc", number))
    }

    /// Returns where control serves HTTP.
    #[must_use]
    pub fn control(&self) -> SocketAddr {
        self.ports.at("http", 0)
    }

    /// Returns the name of a queue node.
    #[must_use]
    pub fn name(&self, place: usize) -> &str {
        self.queues.get(place).map_or("", |node| &node.printed.name)
    }

    /// Returns the place among the queue nodes of the one that leads a group, as they say.
    pub async fn leader(&self, group: GroupId) -> Option<usize> {
        let running = self.queues.iter().enumerate().filter(|(_, node)| !matches!(node.run, Run::Dead));
        leader_of(running.map(|(place, node)| (place, node.metrics)), group).await
    }

    /// Fails unless all runs that was not killed: `dev`, what it started, and what was started again.
    ///
    /// # Errors
    /// Something has ended by itself; all of it is named.
    pub fn require_running(&mut self) -> anyhow::Result<()> {
        let killed = self.queues.iter().filter(|node| !matches!(node.run, Run::Theirs(_)));
        let killed: Vec<&str> = killed.map(|node| &*node.printed.name).collect();
        let mut ended = ended_by_themselves(&self.dev.log(), &killed);
        if !self.dev.is_running() {
            ended.push(format!("`{}` has ended", self.dev.spec().name));
        }
        for node in &mut self.queues {
            if let Run::Ours(process) = &mut node.run
                && !process.is_running()
            {
                ended.push(format!("`{}` has ended after it was started again", node.printed.name));
            }
        }
        ensure!(ended.is_empty(), "not killed, and yet: {}", ended.join(", "));
        Ok(())
    }

    /// Kills a queue node with SIGKILL.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill(&mut self, place: usize) -> anyhow::Result<()> {
        let dev_says_so = self.has_ended(self.name(place));
        let node = self.queues.get_mut(place).context("there is no such node")?;
        let has_ended = match &mut node.run {
            Run::Theirs(_) => dev_says_so,
            Run::Ours(process) => !process.is_running(),
            Run::Dead => true,
        };
        ensure!(!has_ended, "`{}` does not run", node.printed.name);
        match std::mem::replace(&mut node.run, Run::Dead) {
            Run::Theirs(pid) => kill_process(pid, Signal::KILL)?,
            Run::Ours(mut process) => process.kill().await?,
            Run::Dead => {}
        }
        Ok(())
    }

    /// Starts a queue node that was killed by the command that was printed, and waits until it is ready.
    ///
    /// # Errors
    /// It runs, cannot be started, or does not become ready.
    pub async fn start_again(&mut self, place: usize) -> anyhow::Result<()> {
        let node = self.queues.get(place).context("there is no such node")?;
        ensure!(matches!(node.run, Run::Dead), "`{}` runs", node.printed.name);
        self.wait_for_line(&end_of(&node.printed.name)).await?;
        let node = self.queues.get_mut(place).context("there is no such node")?;
        let process = Process::start(ProcessSpec {
            name: node.printed.name.clone(),
            program: self.program.clone(),
            arguments: node.printed.arguments.iter().map(OsString::from).collect(),
            log: node.log.clone(),
            metrics: node.metrics,
        })?;
        node.run = Run::Ours(Box::new(process));
        match &mut node.run {
            Run::Ours(process) => process.wait_ready(READY_WITHIN).await,
            Run::Theirs(_) | Run::Dead => unreachable!("it was just started"),
        }
    }

    /// Ends everything: what `dev` started as it does, what was started again at once.
    ///
    /// # Errors
    /// `dev` does not end in time.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.dev.terminate(STOP_WITHIN).await?;
        for node in &mut self.queues {
            if let Run::Ours(process) = &mut node.run {
                process.kill().await?;
            }
            node.run = Run::Dead;
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
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let printed = tokio::time::timeout(READY_WITHIN, printed).await;
        printed
            .with_context(|| format!("`{text}` was not printed; the log ends with\n{}", self.dev.log_tail()))
    }

    /// Queue nodes come first, in the order of their metrics' ports.
    fn read_banner(&self) -> anyhow::Result<Vec<QueueNode>> {
        let log = self.dev.log();
        let queues =
            log.lines().filter_map(Printed::parse).filter(|printed| printed.name.starts_with("queue-"));
        let queues = queues.zip(0..).map(|(printed, number)| {
            let pid = Pid::from_raw(printed.pid).context("a process has an id above zero")?;
            let config = Path::new(printed.arguments.last().context("a command has arguments")?);
            let (log, metrics) = (config.with_file_name("log"), self.ports.at("metrics", number));
            Ok(QueueNode { log, metrics, run: Run::Theirs(pid), printed })
        });
        let queues: Vec<QueueNode> = queues.collect::<anyhow::Result<_>>()?;
        ensure!(queues.len() == 3, "expected three queue nodes in\n{log}");
        Ok(queues)
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        // Killed at once it would leave its processes behind.
        self.dev.terminate_blocking(STOP_WITHIN);
    }
}

/// What `dev` prints when a process of its own has ended.
fn end_of(name: &str) -> String {
    format!("{name} has ended")
}

/// Returns what `dev` has printed of the ends of its processes, those left out that ended because they were killed.
///
/// One that ended a moment before it would have been killed has another status.
fn ended_by_themselves(log: &str, killed: &[&str]) -> Vec<String> {
    let started = log.lines().filter_map(Printed::parse);
    let ended = started.filter_map(|Printed { name, .. }| {
        let said = log.lines().find_map(|line| line.strip_prefix(&end_of(&name)))?;
        let status = said.split(';').next().unwrap_or_default();
        let by_us = killed.contains(&&*name) && status.contains("SIGKILL");
        (!by_us).then(|| format!("`{name}` has ended{status}"))
    });
    ended.collect()
}

/// A process as `dev --cluster` prints it: `queue-1  pid 7  postroad queue --config FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Printed {
    name: String,
    pid: i32,
    /// What follows the program in the command.
    arguments: Vec<String>,
}

impl Printed {
    fn parse(line: &str) -> Option<Self> {
        // The file comes last, and may have spaces in it.
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
    fn a_process_is_read_from_the_line_that_names_it() {
        let line = "  queue-1     pid 4711     postroad queue --config /a b/queue-1/queue.toml";
        let printed = Printed::parse(line).unwrap();
        assert_eq!((&*printed.name, printed.pid), ("queue-1", 4711));
        assert_eq!(printed.arguments, ["queue", "--config", "/a b/queue-1/queue.toml"]);
        for other in [
            "  operator  postroad message get ID --config /x/operator.toml",
            "queue-1 has ended (signal: 9 (SIGKILL)); to start it again: postroad queue --config /x",
            "",
        ] {
            assert_eq!(Printed::parse(other), None, "{other}");
        }
    }

    #[test]
    fn what_ended_without_being_killed_is_named() {
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
