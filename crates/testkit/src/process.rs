//! A process of ours under test: started, killed and started again, and never left behind.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
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

/// How often is looked whether a process is ready.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What to start.
#[derive(Clone, Debug)]
pub struct ProcessSpec {
    /// Its name, in errors.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where its output goes; appended to.
    pub log: PathBuf,
    /// Where it serves `/readyz`.
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
    /// There is no such program, or the log cannot be written.
    pub fn start(spec: ProcessSpec) -> anyhow::Result<Self> {
        let mut process = Self { spec, child: None };
        process.start_again()?;
        Ok(process)
    }

    /// Starts the process again after it has ended.
    ///
    /// # Errors
    /// It runs, or cannot be started.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let spec = &self.spec;
        ensure!(self.child.is_none(), "`{}` runs", spec.name);
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

    /// Waits until `/readyz` says yes.
    ///
    /// # Errors
    /// The process has ended or is not ready in time; the end of its log is told.
    pub async fn wait_ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        let ready = async {
            loop {
                if matches!(http_get(self.spec.metrics, "/readyz").await, Ok((200, _))) {
                    return Ok(());
                }
                if !self.is_running() {
                    bail!("`{}` has ended", self.spec.name);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let ready = tokio::time::timeout(limit, ready).await;
        let ready =
            ready.unwrap_or_else(|_| Err(anyhow::anyhow!("`{}` is not ready in time", self.spec.name)));
        ready.with_context(|| format!("its log ends with\n{}", self.log_tail()))
    }

    /// Kills the process as a power cut would: it is told nothing.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub async fn kill(&mut self) -> io::Result<()> {
        match self.child.take() {
            Some(mut child) => child.kill().await,
            None => Ok(()),
        }
    }

    /// Asks the process to end, and waits for it.
    ///
    /// # Errors
    /// It does not end in time; it is killed then.
    pub async fn terminate(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let mut child = self.child.take().with_context(|| format!("`{}` does not run", self.spec.name))?;
        signal(&child, Signal::TERM)?;
        if let Ok(status) = tokio::time::timeout(limit, child.wait()).await {
            return Ok(status?);
        }
        child.kill().await?;
        bail!("`{}` did not end in time; its log ends with\n{}", self.spec.name, self.log_tail())
    }

    /// Asks the process to end if it runs, and waits on this thread: for what is dropped, and can await nothing.
    ///
    /// It is killed when it does not end in time.
    pub fn terminate_blocking(&mut self, limit: Duration) {
        let Some(mut child) = self.child.take() else { return };
        let end = Instant::now() + limit;
        // An error means that it has ended.
        let _ = signal(&child, Signal::TERM);
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Stops the process where it stands, as a machine that hangs does.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> anyhow::Result<()> {
        signal(self.child.as_ref().context("it does not run")?, Signal::STOP)
    }

    /// Lets a frozen process go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self) -> anyhow::Result<()> {
        signal(self.child.as_ref().context("it does not run")?, Signal::CONT)
    }

    /// Returns all that the process has written.
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
    kill_process(id.context("it has ended")?, signal)?;
    Ok(())
}

/// Asks an HTTP server for a path; returns the status and the body.
///
/// # Errors
/// Nobody answers, or it is not HTTP.
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

/// Where ports for servers are looked for: below those that the system gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 20_001..32_000;
/// Other test processes look at the same time, so each looks at places of its own choice, so often.
const TRIES: usize = 1000;

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Returns ports of loopback that were free a moment ago; this process is given none of them twice.
///
/// # Errors
/// There are none.
pub fn free_ports<const N: usize>() -> io::Result<[u16; N]> {
    let mut given = GIVEN.lock();
    let mut ports = [0; N];
    for port in &mut ports {
        let mut tries = std::iter::repeat_with(|| rand::rng().random_range(PORTS)).take(TRIES);
        *port = tries.find(|port| is_free(&given, *port)).ok_or(io::ErrorKind::AddrInUse)?;
        given.insert(*port);
    }
    Ok(ports)
}

/// Returns the first of `number` ports of loopback in a row that were free a moment ago; this process is given none of
/// them twice.
///
/// # Errors
/// There are none.
pub fn free_ports_in_a_row(number: u16) -> io::Result<u16> {
    let mut given = GIVEN.lock();
    let last = PORTS.end.saturating_sub(number).max(PORTS.start + 1);
    let first = std::iter::repeat_with(|| rand::rng().random_range(PORTS.start..last))
        .take(TRIES)
        .find(|first| (*first..first + number).all(|port| is_free(&given, port)))
        .ok_or(io::ErrorKind::AddrInUse)?;
    given.extend(first..first + number);
    Ok(first)
}

fn is_free(given: &BTreeSet<u16>, port: u16) -> bool {
    !given.contains(&port) && std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Returns the `postroad` binary: the one that `POSTROAD_BINARY` names, or one that is built now, once.
///
/// # Errors
/// It does not build.
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
    let built = std::process::Command::new(cargo)
        .args(["build", "--quiet", "--locked", "--package", "postroad", "--bin", "postroad"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .status()
        .context("cannot start cargo")?;
    ensure!(built.success(), "the binary does not build");
    // A test runs from TARGET/PROFILE/deps.
    let test = std::env::current_exe()?;
    let target = test.ancestors().nth(3).context("a test is in the target directory")?;
    Ok(target.join("debug/postroad"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_killed_started_again_and_asked_to_end() {
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
    fn ports_in_a_row_are_given_once() {
        let (one, other) = (free_ports_in_a_row(3).unwrap(), free_ports_in_a_row(3).unwrap());
        assert!(one.abs_diff(other) >= 3);
        let again = is_free(&GIVEN.lock(), one + 2);
        assert!(!again);
    }

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        assert_eq!(parse_answer(b"HTTP/1.1 503 no\r\nx: y\r\n\r\nbody"), Some((503, b"body".to_vec())));
        assert_eq!(parse_answer(b"hello"), None);
    }
}
