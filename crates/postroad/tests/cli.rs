//! `docs/reference/cli.md` is what the declarations of the command line say.
//!
//! `POSTROAD_WRITE_DOCS=1 cargo test -p postroad --test cli` writes the page.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test that cannot go on has failed")]

use std::{fmt::Write, fs, path::Path};

use clap::{Arg, ArgAction, Command, CommandFactory};
use postroad::cli::Cli;

const INTRODUCTION: &str = "# Commands

Every command with its arguments and flags, as `postroad help COMMAND` says it too.
[The command line](../operating/command-line.md) says how a command finds its cluster, and what its exit status means.
";

/// The heading of the flags that every command has which talks to a cluster: they are listed once.
const CLUSTER: &str = "Which cluster";

#[test]
fn the_page_of_commands_is_what_the_declarations_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/cli.md");
    let mut command = Cli::command();
    command.build();
    let mut page = INTRODUCTION.to_owned();
    let get = command.find_subcommand("get").unwrap();
    write!(page, "\n## {CLUSTER}\n\nEvery command that talks to a cluster has these flags.\n").unwrap();
    table(&mut page, get.get_arguments().filter(|argument| is_of_cluster(argument)), "postroad get");
    for command in command.get_subcommands().filter(|command| is_shown(command)) {
        describe(&mut page, command, &format!("postroad {}", command.get_name()), 2);
    }
    if std::env::var_os("POSTROAD_WRITE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/reference/cli.md is old: run with POSTROAD_WRITE_DOCS=1");
}

fn is_shown(command: &Command) -> bool {
    command.get_name() != "help" && !command.is_hide_set()
}

fn describe(page: &mut String, command: &Command, path: &str, depth: usize) {
    let about = command.get_about().unwrap_or_else(|| panic!("{path} says what it does"));
    write!(page, "\n{} `{path}`\n\n{about}.\n", "#".repeat(depth)).unwrap();
    let own = |argument: &&Arg| is_own(argument) && !is_of_cluster(argument);
    table(page, command.get_arguments().filter(own), path);
    if command.get_arguments().any(is_of_cluster) {
        page.push_str("\nAnd [which cluster](#which-cluster).\n");
    }
    for command in command.get_subcommands().filter(|command| is_shown(command)) {
        describe(page, command, &format!("{path} {}", command.get_name()), depth + 1);
    }
}

fn table<'a>(page: &mut String, arguments: impl Iterator<Item = &'a Arg>, path: &str) {
    let mut arguments = arguments.peekable();
    if arguments.peek().is_some() {
        page.push_str("\n| argument | default | |\n|---|---|---|\n");
    }
    for argument in arguments {
        row(page, argument, path);
    }
}

fn is_of_cluster(argument: &Arg) -> bool {
    argument.get_help_heading() == Some(CLUSTER)
}

/// Every command has `--help` and `--version`.
fn is_own(argument: &Arg) -> bool {
    !argument.is_hide_set() && !["help", "version"].contains(&argument.get_id().as_str())
}

fn row(page: &mut String, argument: &Arg, path: &str) {
    let help = argument.get_help().unwrap_or_else(|| panic!("{path} {}: it is explained", argument.get_id()));
    let values = argument.get_possible_values();
    let choices: Vec<String> = values
        .iter()
        .filter(|value| !value.is_hide_set() && takes_value(argument))
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    let choices = if choices.is_empty() { String::new() } else { format!(": {}", choices.join(", ")) };
    let defaults: Vec<String> =
        argument.get_default_values().iter().map(|value| format!("`{}`", value.display())).collect();
    let default = match (defaults.is_empty() || !takes_value(argument), argument.is_required_set()) {
        (false, _) => defaults.join(", "),
        (true, true) => "required".to_owned(),
        (true, false) => "–".to_owned(),
    };
    let variable = argument.get_env().map(|name| format!(" [env: {}]", name.display())).unwrap_or_default();
    // The help may hold what a table takes for its own.
    let text = format!("{help}{choices}{variable}").replace('|', "\\|");
    writeln!(page, "| `{}` | {default} | {text} |", name(argument)).unwrap();
}

fn takes_value(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Set | ArgAction::Append)
}

/// As it is written on the command line: `--file FILE`, `-f, --file FILE` or `NAME...`.
fn name(argument: &Arg) -> String {
    let value = argument.get_value_names().unwrap_or_default().first().map(ToString::to_string);
    let value = value.unwrap_or_else(|| argument.get_id().as_str().to_uppercase());
    let many = if matches!(argument.get_action(), ArgAction::Append) { "..." } else { "" };
    let short = argument.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    match argument.get_long() {
        Some(long) if takes_value(argument) => format!("{short}--{long} {value}{many}"),
        Some(long) => format!("{short}--{long}"),
        None => format!("{value}{many}"),
    }
}
