//! `postroad dev` as a process under test: all roles in one process, on free ports.

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
    /// Starts it with additional flags, and waits until it is ready.
    ///
    /// # Errors
    /// The binary does not build, or it does not become ready.
    pub async fn start(flags: &[&str]) -> anyhow::Result<Self> {
        // Building the binary may take long; other tests go on meanwhile.
        let binary = postroad_env::blocking(postroad_binary).await??;
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

    /// Returns its address for SMTP with STARTTLS.
    #[must_use]
    pub fn smtp(&self) -> SocketAddr {
        self.ports[0]
    }

    /// Returns its address for SMTP over TLS.
    #[must_use]
    pub fn smtps(&self) -> SocketAddr {
        self.ports[1]
    }

    /// Returns its gRPC address.
    #[must_use]
    pub fn grpc(&self) -> SocketAddr {
        self.ports[2]
    }

    /// Returns its HTTP address, with the console and the sandbox.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.ports[3]
    }

    /// Returns its address for the operator's commands.
    #[must_use]
    pub fn operator(&self) -> SocketAddr {
        self.ports[5]
    }

    /// Returns its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Returns the directory of its data and log.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Stops it; returns the last lines of its log.
    pub async fn stop(mut self, limit: Duration) -> String {
        let ended = self.process.terminate(limit).await;
        format!("{ended:?}\n{}", self.process.log_tail())
    }
}
