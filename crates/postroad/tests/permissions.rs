//! Who may read what a process writes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Bits of group and others.
const OTHERS: u32 = 0o077;
/// The longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(120);

/// A process; it is killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Adds the directory and all below it, with their modes.
fn modes(path: &Path, found: &mut Vec<(PathBuf, u32)>) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    found.push((path.to_owned(), metadata.permissions().mode() & 0o777));
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            match modes(&entry?.path(), found) {
                // A temporary file that was renamed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                outcome => outcome?,
            }
        }
    }
    Ok(())
}

#[test]
fn mail_keys_and_databases_are_for_their_user_only_under_any_umask() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 0; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_postroad"), "dev", "--data"]);
    shell.arg(&data);
    for name in ["smtp", "smtps", "grpc", "http", "metrics", "operator"] {
        shell.args([&format!("--listen-{name}"), "127.0.0.1:0"]);
    }
    let log = fs::File::create(home.path().join("log")).unwrap();
    shell.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let mut dev = Running(shell.spawn().unwrap());

    // The history is opened last.
    let is_database = |(path, _): &(PathBuf, u32)| path.extension().is_some_and(|end| end == "sqlite");
    let start = postroad_env::now();
    let found = loop {
        let mut found = Vec::new();
        let complete = modes(&data, &mut found).is_ok() && found.iter().any(is_database) && found.len() > 8;
        if complete {
            break found;
        }
        let log = || fs::read_to_string(home.path().join("log")).unwrap();
        assert!(dev.0.try_wait().unwrap().is_none(), "it has ended: {}", log());
        assert!(postroad_env::since(start) < PATIENCE, "{found:?}\n{}", log());
        postroad_env::pause(Duration::from_millis(50));
    };
    let open: Vec<_> = found.iter().filter(|(_, mode)| mode & OTHERS != 0).collect();
    assert!(open.is_empty(), "others can read {open:?}");
}

#[test]
fn the_files_of_a_cluster_are_for_their_user_only_under_any_umask() {
    let home = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 0; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_postroad"), "cluster", "init"]);
    let output = shell.args(["--dir", "cluster", "--queue", "1=q1:7000"]).current_dir(home.path()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found = Vec::new();
    modes(&home.path().join("cluster"), &mut found).unwrap();
    let is_certificate = |(path, _): &(PathBuf, u32)| path.ends_with("authority.pem");
    assert!(found.iter().any(is_certificate), "{found:?}");
    let open: Vec<_> = found.iter().filter(|(_, mode)| mode & OTHERS != 0).collect();
    assert!(open.is_empty(), "others can read {open:?}");
}
