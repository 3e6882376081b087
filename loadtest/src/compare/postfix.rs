//! A private Postfix instance: our configuration, its own queue, one loopback port.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, ensure};
use tokio::process::{Child, Command};

use super::round::{Server, free_port, terminate, wait_for_port};

const MAIN_CF: &str = include_str!("../../postfix/main.cf");
const MASTER_CF: &str = include_str!("../../postfix/master.cf");
const MASTER: &str = "/usr/lib/postfix/sbin/master";

#[derive(Debug)]
pub(super) struct Postfix {
    master: Child,
    server: Server,
    dir: PathBuf,
}

impl Postfix {
    /// Starts a Postfix with an empty queue that relays all mail to the sink.
    pub(super) async fn start(parent: &Path, sink: SocketAddr) -> anyhow::Result<Self> {
        let dir = parent.join("postfix");
        let port = free_port()?;
        write_configuration(parent, &dir, port, sink.port())
            .context("cannot write Postfix's configuration")?;
        let config = dir.join("etc");
        // Creates the queue directories with the right owners.
        let checked =
            Command::new("postfix").arg("-c").arg(&config).arg("check").stdin(Stdio::null()).status().await;
        ensure!(
            checked.context("cannot start postfix (Debian package postfix)")?.success(),
            "postfix check failed"
        );
        let mut master = Command::new(MASTER)
            .arg("-c")
            .arg(&config)
            .arg("-d")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start Postfix's master")?;
        wait_for_port(port, &mut master).await.context("Postfix")?;
        let pid = master.id().context("Postfix's master has ended")?;
        Ok(Self { master, server: Server { port, pid }, dir })
    }

    pub(super) fn server(&self) -> Server {
        self.server
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        terminate(self.master).await?;
        fs::remove_dir_all(&self.dir).context("cannot remove Postfix's directory")
    }
}

fn write_configuration(parent: &Path, dir: &Path, port: u16, sink_port: u16) -> std::io::Result<()> {
    for name in ["etc", "queue", "data", "log"] {
        fs::create_dir_all(dir.join(name))?;
    }
    // Postfix's processes drop root privileges and still need access.
    for path in [parent, dir] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    let status = std::process::Command::new("chown").arg("postfix").arg(dir.join("data")).status()?;
    if !status.success() {
        return Err(std::io::Error::other("cannot change the owner of the data directory to `postfix`"));
    }
    let fill = |text: &str| {
        text.replace("@DIR@", &dir.to_string_lossy())
            .replace("@PORT@", &port.to_string())
            .replace("@SINK_PORT@", &sink_port.to_string())
    };
    fs::write(dir.join("etc/main.cf"), fill(MAIN_CF))?;
    fs::write(dir.join("etc/master.cf"), fill(MASTER_CF))
}
