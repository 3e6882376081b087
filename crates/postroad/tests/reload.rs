//! A running role reads its configuration again on SIGHUP.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

const POSTROAD: &str = env!("CARGO_BIN_EXE_postroad");

fn postroad(arguments: &[&str], dir: &Path) {
    let status = Command::new(POSTROAD).args(arguments).current_dir(dir).stdout(Stdio::null()).status();
    assert!(status.unwrap().success(), "{arguments:?}");
}

/// A control node with its log.
struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Running {
    fn start(config: &Path) -> Self {
        let mut command = Command::new(POSTROAD);
        command.args(["control", "--config"]).arg(config).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    /// Reads the log up to a line with this text; returns what was read.
    fn read_until(&mut self, text: &str) -> String {
        let mut read = String::new();
        while self.log.read_line(&mut read).unwrap() > 0 {
            if read.lines().next_back().is_some_and(|line| line.contains(text)) {
                return read;
            }
        }
        panic!("the process ended without `{text}` in its log:\n{read}");
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

#[test]
fn on_sighup_the_log_filter_changes_and_other_changes_ask_for_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    postroad(&["cluster", "init", "--dir", "cluster", "--queue", "1=127.0.0.1:7400"], dir.path());
    let join =
        ["cluster", "join", "control", "--dir", "cluster", "--node", "31", "--data", "data", "--out", "out"];
    postroad(&join, dir.path());
    let config = dir.path().join("out/control.toml");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("127.0.0.1:9090", "127.0.0.1:0").replace("127.0.0.1:8080", "127.0.0.1:0");
    fs::write(&config, &text).unwrap();
    let mut running = Running::start(&config);
    running.read_until("started");

    fs::write(&config, format!("{text}\n[control]\nhistory_messages_max = 5000\n")).unwrap();
    running.signal(Signal::HUP);
    let line = running.read_until("setting changed in the configuration: restart to apply it");
    assert!(line.contains("control.history_messages_max"), "{line}");

    let quiet = format!("{text}\n[telemetry]\nlog_filter = \"error\"\n");
    fs::write(&config, &quiet).unwrap();
    running.signal(Signal::HUP);
    running.read_until("setting reloaded");

    fs::write(&config, format!("{quiet}log_format = \"xml\"\n")).unwrap();
    running.signal(Signal::HUP);
    running.read_until("configuration not reloaded");
    running.read_until("`telemetry.log_format` = \"xml\": expected \"text\" or \"json\"");

    running.signal(Signal::TERM);
    let mut rest = String::new();
    while running.log.read_line(&mut rest).unwrap() > 0 {}
    assert!(!rest.contains("stopped"), "the filter lets only errors through: {rest}");
    assert!(running.child.wait().unwrap().success());
}
