//! Postroad: the release binary, durable, with all mail routed to the sink.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Context;
use tokio::process::{Child, Command};

use super::round::{Server, free_port, terminate, wait_for_port};

#[derive(Debug)]
pub(super) struct Postroad {
    process: Child,
    server: Server,
    dir: PathBuf,
}

impl Postroad {
    /// Starts `postroad dev` with empty data and all mail routed to the sink.
    pub(super) async fn start(binary: &Path, parent: &Path, sink: SocketAddr) -> anyhow::Result<Self> {
        let dir = parent.join("postroad");
        fs::create_dir_all(&dir)?;
        let port = free_port()?;
        let mut command = Command::new(binary);
        command.arg("dev").arg("--data").arg(dir.join("data"));
        command.arg("--listen-smtp").arg(format!("127.0.0.1:{port}"));
        for flag in
            ["--listen-smtps", "--listen-grpc", "--listen-http", "--listen-metrics", "--listen-operator"]
        {
            command.arg(flag).arg(format!("127.0.0.1:{}", free_port()?));
        }
        command.arg("--route").arg(format!("*={sink}"));
        let log = fs::File::create(dir.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let mut process = command.spawn().with_context(|| format!("cannot start `{}`", binary.display()))?;
        wait_for_port(port, &mut process).await.context("Postroad")?;
        let pid = process.id().context("Postroad has ended")?;
        Ok(Self { process, server: Server { port, pid }, dir })
    }

    pub(super) fn server(&self) -> Server {
        self.server
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        terminate(self.process).await?;
        fs::remove_dir_all(&self.dir).context("cannot remove the data directory")
    }
}
