//! One run of one server: smtp-source sends to it, and it delivers to the sink.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
    time::Duration,
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

/// A running server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server {
    pub(super) port: u16,
    pub(super) pid: u32,
}

/// The results of one run.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) accepted_per_s: f64,
    pub(super) delivered_per_s: f64,
    pub(super) cpu_us_per_message: f64,
    pub(super) lost: u64,
}

/// Measures messages per second from smtp-source directly to smtp-sink.
pub(super) async fn ceiling(source: &Source) -> anyhow::Result<f64> {
    let port = free_port()?;
    let mut sink = Command::new("smtp-sink")
        .args(["-u", "nobody", &format!("127.0.0.1:{port}"), "1024"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start smtp-sink (Debian package postfix)")?;
    wait_for_port(port, &mut sink).await?;
    let before = postroad_env::now();
    source.run(port).await?;
    let secs = postroad_env::since(before).as_secs_f64();
    sink.kill().await?;
    Ok(per_second(source.messages, secs))
}

/// Sends all messages to `server` and waits until the sink has them.
pub(super) async fn through(source: &Source, server: Server, sink: &Sink) -> anyhow::Result<Measured> {
    let ledger = sink.ledger();
    let before_run = ledger.count();
    let cpu = CpuMeter::start(server.pid)?;
    let before = postroad_env::now();
    source.run(server.port).await?;
    let accept_secs = postroad_env::since(before).as_secs_f64();
    ledger.wait_for_count(before_run + source.messages, source.limit).await;
    let deliver_secs = postroad_env::since(before).as_secs_f64();
    let arrived = ledger.count() - before_run;
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
            .context("smtp-source did not finish in time")?
            .context("cannot start smtp-source (Debian package postfix)")?;
        ensure!(status.success(), "smtp-source ended with {status}");
        Ok(())
    }
}

/// Returns a free port.
pub(super) fn free_port() -> anyhow::Result<u16> {
    let [port] = free_ports()?;
    Ok(port)
}

/// Waits until the process listens on the port; fails if it ends before.
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
    bail!("the server does not listen on port {port}")
}

/// Sends SIGTERM to a process, and kills it if it does not end in time.
pub(super) async fn terminate(mut process: Child) -> anyhow::Result<()> {
    if let Some(pid) = process.id() {
        Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
    }
    if tokio::time::timeout(Duration::from_secs(20), process.wait()).await.is_err() {
        process.kill().await?;
    }
    Ok(())
}
