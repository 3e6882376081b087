//! Pages of the documentation whose transcripts are carried out: each `console` block's commands print what the page shows.
//! Runbooks, which need hosts, are carried out by tests/operating.
//!
//! A page names what runs beside it in a comment: `<!-- transcript: dev -->`, with the flags of `postroad dev`.
//! It runs in a network of its own, so that the default ports are free.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use postroad_testkit::{
    process::postroad_binary,
    transcript::{Ids, steps},
};
use postroad_tests::{files_in, relative, root};

/// The longest that a command is repeated.
const PATIENCE: Duration = Duration::from_secs(180);

const MARK: &str = "<!-- transcript: ";
/// The marks of pages that `tests/operating/run` and `three_nights` carry out.
const OTHER_MARKS: [&str; 2] = ["<!-- runbook: ", "<!-- transcript: three_nights -->"];

/// Starts what the page needs in the background, then reads commands; everything ends with the namespaces.
const PRELUDE: &str = r#"
set -u
ip link set lo up
"$@" > dev.log 2>&1 < /dev/null &
until grep -q 'Ctrl-C stops' dev.log; do
  kill -0 $! 2>/dev/null || { cat dev.log; exit 1; }
  sleep 0.1
done
echo "== begin"
"#;

/// A shell in namespaces of its own, with `postroad dev` beside it.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn start(directory: &Path, dev: &str) -> Self {
        let binary = postroad_binary().expect("it builds");
        let programs = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{programs}", binary.parent().expect("it is a file").display());
        let mut command = Command::new("unshare");
        command.args(["--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["sh", "-s", "postroad"]).args(dev.split(' '));
        command.current_dir(directory).env("PATH", path).env("HOME", directory);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare can be run");
        let mut input = child.stdin.take().expect("it is piped");
        input.write_all(PRELUDE.as_bytes()).expect("the shell reads");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut shell = Self { child, input, output };
        let before = shell.read_until("== begin");
        assert_eq!(before, "");
        shell
    }

    /// Runs a command; returns what it prints on both streams.
    fn run(&mut self, command: &str) -> String {
        let line = format!("{{ {command}\n}} 2>&1 < /dev/null; echo; echo '== end'\n");
        self.input.write_all(line.as_bytes()).expect("the shell reads");
        let printed = self.read_until("== end");
        // The line end that was added: output need not end with one.
        printed.strip_suffix('\n').unwrap_or(&printed).to_owned()
    }

    fn read_until(&mut self, end: &str) -> String {
        let mut text = String::new();
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).expect("its output is text");
            assert!(read > 0, "the shell has ended after\n{text}");
            if line.trim_end() == end {
                return text;
            }
            text.push_str(&line);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // With `unshare` all that it started ends.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pages with transcripts, but those that a test of their own carries out.
fn pages() -> Vec<(PathBuf, String)> {
    let read = |file: &PathBuf| fs::read_to_string(file).ok();
    let pages = files_in(&root().join("docs")).into_iter().filter_map(|file| Some((read(&file)?, file)));
    let is_of_others = |text: &str| OTHER_MARKS.iter().any(|mark| text.contains(mark));
    let is_ours = |text: &str| text.contains("```console\n") && !is_of_others(text);
    pages.filter(|(text, _)| is_ours(text)).map(|(text, file)| (file, text)).collect()
}

fn follow(page: &Path, text: &str) {
    let name = relative(page);
    let (_, mark) = text.split_once(MARK).unwrap_or_else(|| panic!("{name}: no `{MARK}dev -->`"));
    let (dev, _) = mark.split_once(" -->").unwrap_or_else(|| panic!("{name}: the mark has no end"));
    let directory = tempfile::tempdir().expect("a directory can be made");
    let mut shell = Shell::start(directory.path(), dev);
    let mut ids = Ids::default();
    for step in steps(text) {
        let carried_out = step.carry_out(&mut ids, PATIENCE, |command| shell.run(command));
        carried_out.unwrap_or_else(|problem| panic!("{name}: {problem}"));
    }
}

#[test]
fn what_the_pages_show_is_what_the_commands_print() {
    let namespaces = Command::new("unshare").args(["--net", "--pid", "--mount", "--fork", "true"]).output();
    let curl = Command::new("curl").arg("--version").output();
    if !namespaces.is_ok_and(|output| output.status.success()) || curl.is_err() {
        eprintln!("skipped: this test needs root, namespaces (`unshare --net --pid --mount`) and curl");
        return;
    }
    let pages = pages();
    assert!(pages.iter().any(|(page, _)| page.ends_with("tutorial.md")), "the tutorial has transcripts");
    for (page, text) in pages {
        follow(&page, &text);
    }
}
