//! `postroad dev` as a process under test: one node with everything, on free ports.

mod cluster;

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use tempfile::TempDir;

pub use cluster::DevCluster;

use crate::process::{Process, ProcessSpec, free_ports, postroad_binary};

/// How long it may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A running `postroad dev`; it is killed and its data removed when it is dropped.
#[derive(Debug)]
pub struct Dev {
    process: Process,
    ports: [SocketAddr; 6],
    dir: TempDir,
}

impl Dev {
    /// Starts it with flags besides those for its data and ports, and waits until it is ready.
    ///
    /// # Errors
    /// The binary does not build, or it does not become ready.
    pub async fn start(flags: &[&str]) -> anyhow::Result<Self> {
        // The first build of a day takes longer than any test should hold up others.
        let binary = tokio::task::spawn_blocking(postroad_binary).await??;
        let dir = tempfile::Builder::new().prefix("postroad-dev-").tempdir()?;
        let ports = free_ports::<6>()?.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let names = ["smtp", "smtps", "grpc", "http", "metrics", "operator"];
        let mut arguments: Vec<OsString> =
            vec!["dev".into(), "--data".into(), dir.path().join("data").into()];
        for (name, port) in names.iter().zip(ports) {
            arguments.extend([format!("--listen-{name}").into(), port.to_string().into()]);
        }
        arguments.extend(flags.iter().map(OsString::from));
        let mut process = Process::start(ProcessSpec {
            name: "postroad dev".to_owned(),
            program: binary.to_owned(),
            arguments,
            log: dir.path().join("log"),
            metrics: ports[4],
        })?;
        process.wait_ready(READY_WITHIN).await?;
        Ok(Self { process, ports, dir })
    }

    /// Returns where it speaks SMTP with STARTTLS.
    #[must_use]
    pub fn smtp(&self) -> SocketAddr {
        self.ports[0]
    }

    /// Returns where it speaks SMTP over TLS.
    #[must_use]
    pub fn smtps(&self) -> SocketAddr {
        self.ports[1]
    }

    /// Returns where it speaks gRPC.
    #[must_use]
    pub fn grpc(&self) -> SocketAddr {
        self.ports[2]
    }

    /// Returns where the console and the sandbox are.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.ports[3]
    }

    /// Returns its process, to be killed and started again.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Returns where it keeps its data.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Asks it to end; returns the end of its log.
    pub async fn stop(mut self, limit: Duration) -> String {
        let ended = self.process.terminate(limit).await;
        format!("{ended:?}\n{}", self.process.log_tail())
    }
}
