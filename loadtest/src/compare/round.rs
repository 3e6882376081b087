//! One run of one server: smtp-source in front, the sink behind.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use postroad_testkit::{Sink, process::free_ports};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use crate::{cpu::CpuMeter, report::per_second};

/// Flags for smtp-source.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) messages: u64,
    pub(super) size: usize,
    pub(super) connections: usize,
    pub(super) reuse: bool,
    pub(super) limit: Duration,
}

/// A server that listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server {
    pub(super) port: u16,
    pub(super) pid: u32,
}

/// What one run came to.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) accepted_per_s: f64,
    pub(super) delivered_per_s: f64,
    pub(super) cpu_us_per_message: f64,
    pub(super) lost: u64,
}

/// Messages a second from smtp-source to smtp-sink, with nothing between.
pub(super) async fn ceiling(source: &Source) -> anyhow::Result<f64> {
    let port = free_port()?;
    let mut sink = Command::new("smtp-sink")
        .args(["-u", "nobody", &format!("127.0.0.1:{port}"), "1024"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start smtp-sink (Debian package postfix)")?;
    wait_for_port(port, &mut sink).await?;
    let before = Instant::now();
    source.run(port).await?;
    let secs = before.elapsed().as_secs_f64();
    sink.kill().await?;
    Ok(per_second(source.messages, secs))
}

/// Sends everything to `server` and waits until the sink has it.
pub(super) async fn through(source: &Source, server: Server, sink: &Sink) -> anyhow::Result<Measured> {
    let ledger = sink.ledger();
    let had = ledger.count();
    let cpu = CpuMeter::start(server.pid)?;
    let before = Instant::now();
    source.run(server.port).await?;
    let accept_secs = before.elapsed().as_secs_f64();
    ledger.wait_for_count(had + source.messages, source.limit).await;
    let deliver_secs = before.elapsed().as_secs_f64();
    let arrived = ledger.count() - had;
    Ok(Measured {
        accepted_per_s: per_second(source.messages, accept_secs),
        delivered_per_s: per_second(arrived, deliver_secs),
        cpu_us_per_message: cpu.elapsed()?.as_secs_f64() * 1e6 / source.messages as f64,
        lost: source.messages.saturating_sub(arrived),
    })
}

impl Source {
    async fn run(&self, port: u16) -> anyhow::Result<()> {
        let mut command = Command::new("smtp-source");
        command.args(["-s", &self.connections.to_string(), "-m", &self.messages.to_string()]);
        command.args(["-l", &self.size.to_string(), "-f", "load@example.test", "-t", "load@sink.test"]);
        if self.reuse {
            command.arg("-d");
        }
        command.arg(format!("127.0.0.1:{port}")).stdin(Stdio::null()).kill_on_drop(true);
        let status = tokio::time::timeout(self.limit, command.status())
            .await
            .context("smtp-source takes too long")?
            .context("cannot start smtp-source (Debian package postfix)")?;
        ensure!(status.success(), "smtp-source ended with {status}");
        Ok(())
    }
}

/// Returns a port that was free a moment ago.
pub(super) fn free_port() -> anyhow::Result<u16> {
    let [port] = free_ports()?;
    Ok(port)
}

/// Waits until somebody listens on the port; an error when the process ends before.
pub(super) async fn wait_for_port(port: u16, process: &mut Child) -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    for _ in 0..600 {
        if TcpStream::connect(address).await.is_ok() {
            return Ok(());
        }
        if let Some(status) = process.try_wait()? {
            bail!("the server ended with {status}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("nobody listens on port {port}")
}

/// Asks a process to end, and ends it after a while.
pub(super) async fn terminate(mut process: Child) -> anyhow::Result<()> {
    if let Some(pid) = process.id() {
        Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
    }
    if tokio::time::timeout(Duration::from_secs(20), process.wait()).await.is_err() {
        process.kill().await?;
    }
    Ok(())
}
