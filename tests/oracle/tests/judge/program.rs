//! The program: what it prints, and its exit status.

use std::{fs, path::PathBuf, process::Command};

use postroad_oracle::{History, text};

use crate::build::Script;

struct File(PathBuf);

impl File {
    fn new(name: &str, content: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("oracle-{name}"));
        fs::write(&path, content).expect("the directory for tests is writable");
        Self(path)
    }

    fn of(name: &str, history: &History) -> Self {
        Self::new(name, &text::write(history))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Returns the exit status, and what is printed as output and as errors.
fn run(files: &[&File]) -> (Option<i32>, String, String) {
    let paths = files.iter().map(|file| &file.0);
    let output = Command::new(env!("CARGO_BIN_EXE_postroad-oracle")).args(paths).output().expect("it starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn done() -> Script {
    Script::new().stored(1).copy(1, 1).delivered(1, 1)
}

#[test]
fn a_good_history_has_status_0() {
    let (status, out, errors) = run(&[&File::of("good", &done().quiet().history())]);
    assert_eq!((status, &*errors), (Some(0), ""), "{out}");
    assert!(out.starts_with("I1  no loss                        holds             1 judged\n"), "{out}");
    assert!(out.contains("I7  cancel                         nothing to judge  0 judged\n"), "{out}");
    assert!(out.contains("I15 not judged: webhooks"), "{out}");
}

#[test]
fn a_violation_has_status_1_and_its_story() {
    let (status, out, errors) = run(&[&File::of("bad", &done().copy(2, 1).quiet().history())]);
    assert_eq!((status, &*errors), (Some(1), ""), "{out}");
    assert!(out.contains("VIOLATED          1 judged, 1 violations\n"), "{out}");
    assert!(out.contains("\nI4: receivers have 2 copies of"), "{out}");
    let story = out.split_once("\nI4: ").expect("the first violation is printed").1;
    let marked: Vec<&str> = story.lines().filter(|line| line.starts_with('>')).collect();
    assert_eq!(marked.len(), 2, "{story}");
    assert!(
        marked[0].starts_with(">      6       0.006000 s  receiver: transaction 1 has a message"),
        "{story}"
    );
    assert!(story.contains("event 2 of group 1: attempt 1 at"), "{story}");
}

#[test]
fn several_files_are_one_history() {
    let history = done().quiet().history();
    let (even, odd) = history.numbered().partition::<Vec<_>, _>(|(number, _)| number % 2 == 0);
    let of = |records: Vec<(usize, &postroad_oracle::Record)>| {
        History::new(records.into_iter().map(|(_, record)| record.clone()).collect())
    };
    let (status, out, errors) = run(&[&File::of("even", &of(even)), &File::of("odd", &of(odd))]);
    assert_eq!((status, &*errors), (Some(0), ""), "{out}");
}

#[test]
fn what_is_no_history_has_status_2() {
    #[track_caller]
    fn check(files: &[&File], expected: &str) {
        let (status, out, errors) = run(files);
        assert_eq!((status, &*out), (Some(2), ""), "{errors}");
        assert!(errors.contains(expected), "{errors}");
    }
    check(&[], "usage: postroad-oracle FILE…");
    check(
        &[&File::new("text", "hello\n")],
        "expected `{\"postroad_history\":1}` in the first line, found `hello`",
    );
    check(
        &[&File::new("line", &format!("{}{{}}\n", text::header()))],
        "line 2 is not a record: missing field `at`",
    );
    check(
        &[&File::of("contradiction", &Script::new().accept(1).history())],
        "record 1: the submission has not begun",
    );
    let missing = File(PathBuf::from("/nonexistent/history"));
    check(&[&missing], "cannot read `/nonexistent/history`");
}
