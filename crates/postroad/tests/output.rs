//! What a command prints is its result: one that cannot be printed has failed.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test that cannot go on has failed")]

use std::{
    fs, io,
    io::Write,
    process::{Command, Output, Stdio},
};

/// Runs a command that prints much, and one that prints line by line.
fn check(output: impl Fn() -> Stdio, expected: impl Fn(&Output)) {
    for arguments in [["config", "schema", "queue"], ["classify", "--phase", "rcpt"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postroad"));
        command.args(arguments).stdin(Stdio::piped()).stdout(output()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command without need for it may have ended.
        let _ = child.stdin.take().unwrap().write_all(b"550 5.1.1 user unknown\n");
        expected(&child.wait_with_output().unwrap());
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into();
    check(full, |output| {
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("standard output: No space left on device"), "{error}");
    });
}

#[test]
fn a_reader_that_has_read_enough_is_not_an_error() {
    let closed = || {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        writer.into()
    };
    check(closed, |output| {
        assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
    });
}

#[test]
fn classify_ends_when_its_reader_has_gone_though_its_input_goes_on() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_postroad"));
    command.args(["classify", "--phase", "rcpt"]).stdin(Stdio::piped()).stdout(writer);
    let mut process = command.spawn().unwrap();
    let mut input = process.stdin.take().unwrap();
    let is_read = (0..20_000).all(|_| input.write_all(b"550 5.1.1 user unknown\n").is_ok());
    assert!(!is_read, "it reads on");
    drop(input);
    assert!(process.wait().unwrap().success());
}
