//! Checks that `docs/reference/conformance.md` is current: which tests check which row of the contract.
//!
//! The page is generated from `docs/reference/standards.toml` and the names of the tests in the workspace.
//! `POSTROAD_WRITE_CONFORMANCE=1 cargo test -p postroad-tests --test conformance` writes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use postroad_tests::{files_in, relative, root};
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
    intro: Option<String>,
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

/// How far a row is kept.
enum Status<'a> {
    /// Tests check all of it.
    Held,
    /// Tests check a part; the rest waits for this.
    Partly(&'a str),
    /// No test checks it; it waits for this.
    Waits(&'a str),
    /// It has neither a test nor a reason.
    Unknown,
}

impl Row {
    fn status(&self, tests: &Tests) -> Status<'_> {
        match (tests.contains_key(&self.id), self.waits_for.as_deref()) {
            (true, None) => Status::Held,
            (true, Some(what)) => Status::Partly(what),
            (false, Some(what)) => Status::Waits(what),
            (false, None) => Status::Unknown,
        }
    }
}

/// Tests by the id of the row that they check, each with its file relative to the root.
type Tests = BTreeMap<String, Vec<(String, PathBuf)>>;

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
        .filter(|row| matches!(row.status(&tests), Status::Unknown))
        .map(|row| row.id.as_str())
        .collect();
    assert!(wrong.is_empty(), "a row must have a test or `waits_for`: {wrong:?}");
    let rows: BTreeSet<&str> =
        standards.section.iter().flat_map(|section| &section.row).map(|row| row.id.as_str()).collect();
    let unknown: Vec<&String> = tests.keys().filter(|id| !rows.contains(id.as_str())).collect();
    assert!(unknown.is_empty(), "tests name rows that do not exist: {unknown:?}");
}

fn page(standards: &Standards, tests: &Tests) -> String {
    let rows = || standards.section.iter().flat_map(|section| &section.row);
    let count = |wanted: fn(&Status<'_>) -> bool| rows().filter(|row| wanted(&row.status(tests))).count();
    let mut page = format!(
        "# Conformance\n\n\
         What Postroad must do in each case, and the tests that check it.\n\
         Generated from `standards.toml` and the names of the tests; `tests/tests/conformance.rs` fails when this page is out of date.\n\
         Of {} rows {} are held, {} partly, and {} wait for something that does not exist yet; a row that is held in part counts as partly.\n",
        rows().count(),
        count(|status| matches!(status, Status::Held)),
        count(|status| matches!(status, Status::Partly(_))),
        count(|status| matches!(status, Status::Waits(_))),
    );
    for section in &standards.section {
        let _ = write!(page, "\n## {}\n", section.title);
        if let Some(intro) = &section.intro {
            let _ = write!(page, "\n{}\n", cell(intro));
        }
        page.push_str("\n| row | priority | rule | status | tests |\n|---|---|---|---|---|\n");
        for row in &section.row {
            let priority = match row.priority {
                Priority::Must => "MUST",
                Priority::Should => "SHOULD",
                Priority::Delight => "DELIGHT",
            };
            let status = match row.status(tests) {
                Status::Held => "held".to_owned(),
                Status::Partly(what) => format!("partly (waits for {what})"),
                Status::Waits(what) => format!("waits for {what}"),
                Status::Unknown => "unknown".to_owned(),
            };
            let Row { id, statement, .. } = row;
            let (statement, status) = (cell(statement), cell(&status));
            let _ =
                writeln!(page, "| {id} | {priority} | {statement} | {status} | {} |", tests_of(row, tests));
        }
    }
    page
}

fn tests_of(row: &Row, tests: &Tests) -> String {
    let tests = tests.get(&row.id).map_or(&[][..], Vec::as_slice);
    let links = tests.iter().map(|(name, path)| format!("[`{name}`](../../{})", path.display()));
    links.collect::<Vec<_>>().join("<br>")
}

/// Writes text so that a table of Markdown shows it: outside of code `<` begins no tag, and `|` ends no cell.
fn cell(text: &str) -> String {
    let pieces = text.split('`').enumerate().map(|(number, piece)| {
        let piece = piece.replace('|', "\\|");
        if number % 2 == 0 { piece.replace('<', "&lt;") } else { piece }
    });
    pieces.collect::<Vec<_>>().join("`")
}

/// Every dialogue, and every test of a Rust or Python file, whose name begins with an id.
fn all_tests() -> Tests {
    let mut tests = Tests::new();
    for path in files_in(&root().join("tests/dialogues")) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        note(&mut tests, &name, &path);
    }
    for folder in ["crates", "tests", "loadtest"] {
        for path in files_in(&root().join(folder))
            .into_iter()
            .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        {
            let text = fs::read_to_string(&path).expect("a file of ours is UTF-8");
            for name in tests_in(&text) {
                note(&mut tests, name, &path);
            }
        }
    }
    let is_python = |path: &PathBuf| path.extension().is_some_and(|end| end == "py");
    for path in files_in(&root().join("tests")).into_iter().filter(is_python) {
        let text = fs::read_to_string(&path).expect("a file of ours is UTF-8");
        for name in python_tests_in(&text) {
            note(&mut tests, name, &path);
        }
    }
    for names in tests.values_mut() {
        names.sort();
    }
    tests
}

/// Returns the names of the functions that are tests, those of `proptest!` and `dialogues!` blocks included.
fn tests_in(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        let Some((_, rest)) = line.split_once("fn ").filter(|(before, _)| ["", "async "].contains(before))
        else {
            continue;
        };
        if std::mem::take(&mut is_test) {
            let name = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next();
            names.extend(name);
        }
    }
    names
}

/// Returns the names of the methods that are tests for Python's unittest, without their prefix.
fn python_tests_in(text: &str) -> Vec<&str> {
    let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("def test_"));
    names.filter_map(|name| name.split('(').next()).collect()
}

fn note(tests: &mut Tests, name: &str, path: &Path) {
    let below = PathBuf::from(relative(path));
    for id in ids(name) {
        tests.entry(id).or_default().push((name.to_owned(), below.clone()));
    }
}

/// `s_022_many` checks S-022, `s_012_and_s_040_senders` two rows, `s_101_to_s_106_ends` six.
fn ids(name: &str) -> Vec<String> {
    let Some((Id { letter, number, digits }, rest)) = id_at(name) else { return Vec::new() };
    let id = |number| format!("{letter}-{number:0digits$}");
    let last = rest.strip_prefix("to_").and_then(id_at).filter(|(other, _)| other.letter == letter);
    match (last, rest.strip_prefix("and_")) {
        (Some((last, _)), _) => (number..=last.number).map(id).collect(),
        (None, Some(more)) => std::iter::once(id(number)).chain(ids(more)).collect(),
        (None, None) => vec![id(number)],
    }
}

/// `s_022` or `r_02`.
struct Id {
    letter: char,
    number: u32,
    digits: usize,
}

/// Splits an id such as `s_022_` from the start of a name.
fn id_at(name: &str) -> Option<(Id, &str)> {
    let (letter, rest) = name.split_once('_')?;
    let (digits, rest) = rest.split_once('_')?;
    let letter = letter.chars().next().filter(|c| letter.len() == 1 && c.is_ascii_lowercase())?;
    let is_id = (2..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    // The other letters are marks of other lists, such as those of fuzzers and load runs.
    if !is_id || !"sacdr".contains(letter) {
        return None;
    }
    let id = Id { letter: letter.to_ascii_uppercase(), number: digits.parse().ok()?, digits: digits.len() };
    Some((id, rest))
}

#[test]
fn names_of_tests_contain_the_rows_that_they_check() {
    let check = |name: &str, expected: &[&str]| assert_eq!(ids(name), expected, "{name}");
    check("s_022_many", &["S-022"]);
    check("s_101_to_s_103_ends", &["S-101", "S-102", "S-103"]);
    check("s_012_and_s_040_senders", &["S-012", "S-040"]);
    check("s_022_and_more", &["S-022"]);
    check("r_02_a_leader_dies", &["R-02"]);
    check("s_2_many", &[]);
    check("z_01_never_panics", &[]);
    check("start", &[]);
    check("s_abc_x", &[]);
}

#[test]
fn only_tests_count() {
    let text = "fn s_001_helper() {}\n#[test]\nfn s_002_a() {}\n\n#[tokio::test(start_paused = true)]\n/// Words.\n\
        async fn s_003_b() {\n    fn s_004_inner() {}\n}\nproptest! {\n    #[test]\n    fn s_005_c(x in 0..1) {}\n}\n\
        // #[test]\n// fn s_006_d() {}\n";
    assert_eq!(tests_in(text), ["s_002_a", "s_003_b", "s_005_c"]);
}

#[test]
fn cells_are_shown_as_they_are_written() {
    assert_eq!(cell("a < b `c < d | e` | f"), "a &lt; b `c < d \\| e` \\| f");
}
