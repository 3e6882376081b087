//! Checks that `docs/reference/conformance.md` is current: which tests check which row of the standards.
//!
//! The page is generated from `docs/reference/standards.toml` and the names of the tests in the workspace.
//! `POSTROAD_WRITE_CONFORMANCE=1 cargo test -p postroad-tests --test conformance` writes it.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Standards {
    section: Vec<Section>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    title: String,
    row: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    priority: Priority,
    statement: String,
    waits_for: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Priority {
    Must,
    Should,
    Delight,
}

/// Tests by the id of the row that they check, each with its file relative to the root.
type Tests = BTreeMap<String, Vec<(String, PathBuf)>>;

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn the_conformance_page_is_current() {
    let text = fs::read_to_string(root().join("docs/reference/standards.toml")).expect("the rows are there");
    let standards: Standards = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}"));
    let tests = all_tests();
    let page = page(&standards, &tests);
    let path = root().join("docs/reference/conformance.md");
    if std::env::var_os("POSTROAD_WRITE_CONFORMANCE").is_some() {
        fs::write(&path, &page).expect("the page can be written");
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/reference/conformance.md is out of date; write it with\n\
         POSTROAD_WRITE_CONFORMANCE=1 cargo test -p postroad-tests --test conformance"
    );
    let wrong: Vec<&str> = standards
        .section
        .iter()
        .flat_map(|section| &section.row)
        .filter(|row| tests.contains_key(&row.id) == row.waits_for.is_some())
        .map(|row| row.id.as_str())
        .collect();
    assert!(wrong.is_empty(), "a row must have either a test or `waits_for`: {wrong:?}");
}

fn page(standards: &Standards, tests: &Tests) -> String {
    let rows = || standards.section.iter().flat_map(|section| &section.row);
    let tested = rows().filter(|row| tests.contains_key(&row.id)).count();
    let mut page = format!(
        "# Conformance\n\n\
         What the SMTP server does in each case, and the tests that check it.\n\
         Generated from `standards.toml` and the names of the tests; `tests/tests/conformance.rs` fails when this page is out of date.\n\
         {tested} of {} rows have tests.\n",
        rows().count()
    );
    for section in &standards.section {
        let _ =
            write!(page, "\n## {}\n\n| row | priority | rule | tests |\n|---|---|---|---|\n", section.title);
        for row in &section.row {
            let priority = match row.priority {
                Priority::Must => "MUST",
                Priority::Should => "SHOULD",
                Priority::Delight => "DELIGHT",
            };
            let Row { id, statement, .. } = row;
            let _ = writeln!(page, "| {id} | {priority} | {statement} | {} |", tests_of(row, tests));
        }
    }
    page
}

fn tests_of(row: &Row, tests: &Tests) -> String {
    match (tests.get(&row.id), &row.waits_for) {
        (Some(tests), _) => tests
            .iter()
            .map(|(name, path)| format!("[`{name}`](../../{})", path.display()))
            .collect::<Vec<_>>()
            .join("<br>"),
        (None, Some(waits_for)) => format!("not yet; waits for {waits_for}"),
        (None, None) => "not yet".to_owned(),
    }
}

/// Every dialogue, and every function of a Rust file, whose name begins with an id.
fn all_tests() -> Tests {
    let mut tests = Tests::new();
    for path in files_below(&root().join("tests/dialogues")) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        note(&mut tests, &name, &path);
    }
    for folder in ["crates", "tests", "loadtest"] {
        for path in files_below(&root().join(folder))
            .into_iter()
            .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        {
            let text = fs::read_to_string(&path).expect("a file of ours is UTF-8");
            for line in text.lines() {
                let Some((_, rest)) =
                    line.split_once("fn ").filter(|(before, _)| before.trim_start().len() <= 6)
                else {
                    continue;
                };
                let name = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or("");
                note(&mut tests, name, &path);
            }
        }
    }
    for names in tests.values_mut() {
        names.sort();
    }
    tests
}

fn note(tests: &mut Tests, name: &str, path: &Path) {
    let below = path.strip_prefix(root()).expect("all files are below the root").to_owned();
    for id in ids(name) {
        tests.entry(id).or_default().push((name.to_owned(), below.clone()));
    }
}

/// `s_022_many` checks S-022, `s_012_and_s_040_senders` two rows, `s_101_to_s_106_ends` six.
fn ids(name: &str) -> Vec<String> {
    let Some((letter, first)) = id_at(name) else { return Vec::new() };
    let id = |number| format!("{letter}-{number:03}");
    let rest = &name[6..];
    let through = |rest: &str| rest.strip_prefix("to_").and_then(id_at).filter(|(other, _)| *other == letter);
    match (through(rest), rest.strip_prefix("and_")) {
        (Some((_, last)), _) => (first..=last).map(id).collect(),
        (None, Some(more)) => std::iter::once(id(first)).chain(ids(more)).collect(),
        (None, None) => vec![id(first)],
    }
}

/// An id such as `s_022_` at the start of a name.
fn id_at(name: &str) -> Option<(char, u32)> {
    let [letter @ b'a'..=b'z', b'_', digits @ .., b'_'] = name.as_bytes().get(..6)? else { return None };
    let number = digits.iter().all(u8::is_ascii_digit).then(|| name[2..5].parse().ok())??;
    Some((letter.to_ascii_uppercase() as char, number))
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a folder of ours can be read").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

#[test]
fn names_of_tests_contain_the_rows_that_they_check() {
    let check = |name: &str, expected: &[&str]| assert_eq!(ids(name), expected, "{name}");
    check("s_022_many", &["S-022"]);
    check("s_101_to_s_103_ends", &["S-101", "S-102", "S-103"]);
    check("s_012_and_s_040_senders", &["S-012", "S-040"]);
    check("s_022_and_more", &["S-022"]);
    check("s_22_many", &[]);
    check("start", &[]);
    check("s_abc_x", &[]);
}
