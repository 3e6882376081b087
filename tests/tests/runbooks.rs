//! One runbook of docs/operating is carried out under load; tests/operating/run carries out all.

use std::process::Command;

use postroad_testkit::process::postroad_binary;
use postroad_tests::root;

#[test]
fn every_node_is_restarted_by_the_runbook_and_no_mail_is_lost() {
    let python = Command::new("python3").arg("--version").output();
    if !python.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this test needs python3");
        return;
    }
    // Without root and namespaces it says so, and succeeds.
    let mut command = Command::new(root().join("tests/operating/run"));
    command.arg("restart").env("POSTROAD_BINARY", postroad_binary().expect("it builds"));
    let output = command.output().expect("it can be run");
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{text}");
}
