//! A process under test: started, killed and started again; never left running.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use parking_lot::Mutex;
use rand::RngExt;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
};

/// How often to check whether a process is ready.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// What to start.
#[derive(Clone, Debug)]
pub struct ProcessSpec {
    /// Its name, in errors.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The file to which its output is appended.
    pub log: PathBuf,
    /// The address where it serves `/readyz` and `/metrics`.
    pub metrics: SocketAddr,
}

/// A process; it is killed when dropped.
#[derive(Debug)]
pub struct Process {
    spec: ProcessSpec,
    child: Option<Child>,
}

impl Process {
    /// Starts the process.
    ///
    /// # Errors
    /// The program cannot be started, or the log cannot be written.
    pub fn start(spec: ProcessSpec) -> anyhow::Result<Self> {
        let mut process = Self { spec, child: None };
        process.start_again()?;
        Ok(process)
    }

    /// Starts the process again after it has ended.
    ///
    /// # Errors
    /// It is running, or cannot be started.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let spec = &self.spec;
        ensure!(self.child.is_none(), "`{}` is running", spec.name);
        let log = File::options().create(true).append(true).open(&spec.log)?;
        let child = Command::new(&spec.program)
            .args(&spec.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start `{}`", spec.name))?;
        self.child = Some(child);
        Ok(())
    }

    /// Returns the process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Returns what the process was started with.
    #[must_use]
    pub fn spec(&self) -> &ProcessSpec {
        &self.spec
    }

    /// Returns true while the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// The process has ended or is not ready in time; the error has the last lines of its log.
    pub async fn wait_ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        let ready = async {
            loop {
                if matches!(http_get(self.spec.metrics, "/readyz").await, Ok((200, _))) {
                    return Ok(());
                }
                if !self.is_running() {
                    bail!("`{}` has ended", self.spec.name);
                }
                tokio::time::sleep(CHECK_EVERY).await;
            }
        };
        let ready = tokio::time::timeout(limit, ready).await;
        let ready =
            ready.unwrap_or_else(|_| Err(anyhow::anyhow!("`{}` is not ready in time", self.spec.name)));
        ready.with_context(|| format!("its log ends with\n{}", self.log_tail()))
    }

    /// Kills the process with SIGKILL.
    ///
    /// # Errors
    /// Waiting for its end fails.
    pub async fn kill(&mut self) -> io::Result<()> {
        match self.child.take() {
            Some(mut child) => child.kill().await,
            None => Ok(()),
        }
    }

    /// Sends SIGTERM, and waits until the process has ended.
    ///
    /// # Errors
    /// It does not end in time; then it is killed.
    pub async fn terminate(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let mut child = self.child.take().with_context(|| format!("`{}` is not running", self.spec.name))?;
        signal(&child, Signal::TERM)?;
        if let Ok(status) = tokio::time::timeout(limit, child.wait()).await {
            return Ok(status?);
        }
        child.kill().await?;
        bail!("`{}` did not end in time; its log ends with\n{}", self.spec.name, self.log_tail())
    }

    /// Sends SIGTERM if the process is running, and blocks until it has ended: for use in `drop`.
    ///
    /// If it does not end in time, it is killed.
    pub fn terminate_blocking(&mut self, limit: Duration) {
        let Some(mut child) = self.child.take() else { return };
        let end = postroad_env::now() + limit;
        // An error means that it has already ended.
        let _ = signal(&child, Signal::TERM);
        while matches!(child.try_wait(), Ok(None)) && postroad_env::now() < end {
            postroad_env::pause(CHECK_EVERY);
        }
    }

    /// Sends the process SIGHUP, as logrotate does.
    ///
    /// # Errors
    /// It is not running.
    pub fn hang_up(&self) -> anyhow::Result<()> {
        signal(self.child.as_ref().context("the process is not running")?, Signal::HUP)
    }

    /// Freezes the process with SIGSTOP, like a machine that hangs.
    ///
    /// # Errors
    /// It is not running.
    pub fn freeze(&self) -> anyhow::Result<()> {
        signal(self.child.as_ref().context("the process is not running")?, Signal::STOP)
    }

    /// Continues a frozen process.
    ///
    /// # Errors
    /// It is not running.
    pub fn thaw(&self) -> anyhow::Result<()> {
        signal(self.child.as_ref().context("the process is not running")?, Signal::CONT)
    }

    /// Returns the whole log.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.spec.log).unwrap_or_default()
    }

    /// Returns the last lines of the log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        const LINES: usize = 40;
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

fn signal(child: &Child, signal: Signal) -> anyhow::Result<()> {
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    kill_process(id.context("the process has ended")?, signal)?;
    Ok(())
}

/// Sends a GET request; returns the status and the body.
///
/// # Errors
/// There is no answer, or it is not HTTP.
pub async fn http_get(address: SocketAddr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let answer = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, answer).await.map_err(io::Error::from)??;
    parse_answer(&answer).ok_or_else(|| io::Error::other("the answer is not HTTP"))
}

fn parse_answer(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let header_end = memchr::memmem::find(answer, b"\r\n\r\n")?;
    let status = std::str::from_utf8(answer.get(..header_end)?).ok()?.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer[header_end + 4..].to_vec()))
}

/// The range of ports for servers: below the system's range for outgoing connections.
const PORTS: std::ops::Range<u16> = 20_001..32_000;
/// Ports are tried at random, since other test processes search at the same time; this many tries.
const TRIES: usize = 1000;

static RESERVED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Returns free ports of loopback; none is returned twice in this process.
///
/// # Errors
/// No free port was found.
pub fn free_ports<const N: usize>() -> io::Result<[u16; N]> {
    let mut reserved = RESERVED.lock();
    let mut ports = [0; N];
    for port in &mut ports {
        let mut tries = std::iter::repeat_with(|| postroad_env::Random.random_range(PORTS)).take(TRIES);
        *port = tries.find(|port| is_free(&reserved, *port)).ok_or(io::ErrorKind::AddrInUse)?;
        reserved.insert(*port);
    }
    Ok(ports)
}

/// Returns the first of `number` consecutive free ports of loopback; none is returned twice in this process.
///
/// # Errors
/// No free ports were found.
pub fn consecutive_free_ports(number: u16) -> io::Result<u16> {
    let mut reserved = RESERVED.lock();
    let last = PORTS.end.saturating_sub(number).max(PORTS.start + 1);
    let first = std::iter::repeat_with(|| postroad_env::Random.random_range(PORTS.start..last))
        .take(TRIES)
        .find(|first| (*first..first + number).all(|port| is_free(&reserved, port)))
        .ok_or(io::ErrorKind::AddrInUse)?;
    reserved.extend(first..first + number);
    Ok(first)
}

fn is_free(reserved: &BTreeSet<u16>, port: u16) -> bool {
    !reserved.contains(&port) && std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Returns the `postroad` binary named by `POSTROAD_BINARY`; without it, builds one, once.
///
/// # Errors
/// The build fails.
pub fn postroad_binary() -> anyhow::Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let binary = BINARY.get_or_init(|| find_binary().map_err(|error| format!("{error:#}")));
    binary.as_deref().map_err(|error| anyhow::anyhow!("{error}"))
}

fn find_binary() -> anyhow::Result<PathBuf> {
    if let Some(binary) = std::env::var_os("POSTROAD_BINARY") {
        return Ok(binary.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // A test of the package `postroad` needs its binary. Built by `cargo build`, it would have dependencies with other
    // features than in `cargo test --workspace`, and compile most of them a second time.
    let built = std::process::Command::new(cargo)
        .args(["test", "--quiet", "--locked", "--workspace", "--no-run", "--test", "permissions"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .status()
        .context("cannot start cargo")?;
    ensure!(built.success(), "building the binary failed");
    // A test runs from TARGET/PROFILE/deps.
    let test = std::env::current_exe()?;
    let target = test.ancestors().nth(3).context("the test is not in a target directory")?;
    Ok(target.join("debug/postroad"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_killed_restarted_and_terminated() {
        let dir = tempfile::tempdir().unwrap();
        let [port] = free_ports().unwrap();
        let mut process = Process::start(ProcessSpec {
            name: "sleeper".into(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), "echo started; exec sleep 60".into()],
            log: dir.path().join("log"),
            metrics: ([127, 0, 0, 1], port).into(),
        })
        .unwrap();
        assert!(process.is_running() && process.start_again().is_err());
        process.kill().await.unwrap();
        assert!(!process.is_running() && process.pid().is_none());
        process.start_again().unwrap();
        let error = process.wait_ready(Duration::from_millis(500)).await.unwrap_err();
        assert!(format!("{error:#}").contains("started"), "{error:#}");
        process.freeze().unwrap();
        process.thaw().unwrap();
        process.terminate(Duration::from_secs(10)).await.unwrap();
        process.start_again().unwrap();
        process.terminate_blocking(Duration::from_secs(10));
        assert!(process.pid().is_none());
    }

    #[test]
    fn consecutive_ports_are_returned_once() {
        let (one, other) = (consecutive_free_ports(3).unwrap(), consecutive_free_ports(3).unwrap());
        assert!(one.abs_diff(other) >= 3);
        let again = is_free(&RESERVED.lock(), one + 2);
        assert!(!again);
    }

    #[test]
    fn an_http_answer_has_a_status_and_a_body() {
        assert_eq!(parse_answer(b"HTTP/1.1 503 no\r\nx: y\r\n\r\nbody"), Some((503, b"body".to_vec())));
        assert_eq!(parse_answer(b"hello"), None);
    }
}
