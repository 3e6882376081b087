//! An operator's commands as processes, in the directory with the operator's files.

use std::{
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
        Self { binary: binary.to_owned(), directory: directory.to_owned() }
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
        let mut command = Command::new(&self.binary);
        command.args(arguments).current_dir(&self.directory).stdin(Stdio::null());
        command.kill_on_drop(true).output().await.expect("the binary starts")
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
