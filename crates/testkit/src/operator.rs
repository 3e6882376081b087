//! An operator's commands as processes, in the directory with the operator's files.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use tokio::process::Command;

/// Runs commands of the binary in one directory, without a terminal.
#[derive(Clone, Debug)]
pub struct Operator {
    binary: PathBuf,
    directory: PathBuf,
}

impl Operator {
    /// Commands of a binary in a directory.
    #[must_use]
    pub fn new(binary: &Path, directory: &Path) -> Self {
        // The commands run in the directory, not where this path may be relative to.
        let binary = std::path::absolute(binary).unwrap_or_else(|_| binary.to_owned());
        Self { binary, directory: directory.to_owned() }
    }

    /// Returns a path in the directory.
    #[must_use]
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }

    /// Runs a command.
    ///
    /// # Panics
    /// The binary cannot be started.
    pub async fn postroad(&self, arguments: &[&str]) -> Output {
        self.run(arguments).await.expect("the binary starts")
    }

    /// Runs a command.
    pub(crate) async fn run(&self, arguments: &[impl AsRef<OsStr>]) -> io::Result<Output> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).current_dir(&self.directory).stdin(Stdio::null());
        command.kill_on_drop(true).output().await
    }

    /// Runs a command that ends with this status and prints this among other things; returns all that it prints.
    ///
    /// # Panics
    /// It ends otherwise.
    pub async fn check(&self, arguments: &[&str], status: i32, part: &str) -> String {
        let output = self.postroad(arguments).await;
        let text =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
        assert!(text.contains(part), "{arguments:?}: {text}");
        text
    }
}
