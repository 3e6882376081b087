//! Searches the tree for the words that `docs/glossary.md` lists under "Words we do not use".
//!
//! A quotation is a line that begins with `> `, in Markdown or behind a comment mark. Other exceptions are in [`EXCEPTIONS`].

use std::fs;

use postroad_tests::{files, relative, root};

const GLOSSARY: &str = "docs/glossary.md";
const HEADING: &str = "## Words we do not use";

/// Where a listed word may occur: path from the root or the start of one, word, reason.
///
/// Only for data that comes from other programs or standards, and for the list itself; our own text is reworded instead.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (GLOSSARY, EVERY_WORD, "the list itself"),
    ("tests/tests/glossary.rs", EVERY_WORD, "the exceptions themselves"),
    ("crates/shaping/tests/corpus.tsv", "octets", "replies in the words of receivers"),
    ("crates/testkit/src/failover.rs", "Cell", "the standard library's"),
];

const EVERY_WORD: &str = "";

/// A listed word or phrase.
struct Banned {
    text: String,
    instead: String,
}

impl Banned {
    /// A name has a capital: it is compared as it is written.
    fn is_name(&self) -> bool {
        self.text.contains(|c: char| c.is_uppercase())
    }

    /// Whether it begins in a line; a phrase may continue in the next one.
    fn occurs(&self, line: &str, words: &[String], next: &[String]) -> bool {
        if self.is_name() {
            let mut identifiers = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            return line.contains(&self.text) && identifiers.any(|identifier| identifier == self.text);
        }
        (0..words.len()).any(|start| {
            let mut following = words[start..].iter().chain(next);
            self.text.split(' ').all(|wanted| following.next().is_some_and(|word| word == wanted))
        })
    }
}

/// The words of a line in lower case, with identifiers split at `_` and at capitals.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in line.chars() {
        if !c.is_alphanumeric() || (c.is_uppercase() && before.is_lowercase()) {
            words.push(String::new());
        }
        if c.is_alphanumeric() {
            words.last_mut().expect("it begins with one").extend(c.to_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

/// A line without its comment mark.
fn uncommented(line: &str) -> &str {
    let line = line.trim_start();
    ["///", "//!", "//", "#", "--"]
        .iter()
        .find_map(|mark| line.strip_prefix(mark))
        .unwrap_or(line)
        .trim_start()
}

fn is_quotation(line: &str) -> bool {
    uncommented(line).starts_with("> ")
}

/// Reads the table under [`HEADING`].
fn banned(glossary: &str) -> Vec<Banned> {
    let (_, list) = glossary.split_once(HEADING).expect("the glossary has the list");
    let rows = list.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    rows.take_while(|line| line.starts_with('|'))
        .map(|row| {
            let [text, instead] = row.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>()[..]
            else {
                panic!("a row has a word and what to write instead: {row}");
            };
            assert!(!text.is_empty() && !instead.is_empty(), "{row}");
            Banned { text: text.to_owned(), instead: instead.to_owned() }
        })
        .collect()
}

fn is_exception(path: &str, word: &str) -> bool {
    EXCEPTIONS.iter().any(|(start, exempt, _)| path.starts_with(start) && [EVERY_WORD, word].contains(exempt))
}

/// Returns every listed word in a text with the number of its line, except in quotations.
fn find<'b>(text: &str, list: &'b [Banned]) -> Vec<(usize, &'b Banned)> {
    let lines: Vec<&str> =
        text.lines().map(|line| if is_quotation(line) { "" } else { uncommented(line) }).collect();
    let words: Vec<Vec<String>> = lines.iter().map(|line| words(line)).collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let next = words.get(index + 1).map_or(&[][..], Vec::as_slice);
        let here = list.iter().filter(|word| word.occurs(line, &words[index], next));
        found.extend(here.map(|word| (index + 1, word)));
    }
    found
}

#[test]
fn words_that_the_glossary_bans_are_not_used() {
    let glossary = fs::read_to_string(root().join(GLOSSARY)).expect("the glossary is readable");
    let list = banned(&glossary);
    assert!(list.len() > 10, "the list was not read");
    let mut problems = Vec::new();
    for file in files() {
        let path = relative(&file);
        // Fixtures of the disk and wire formats are not text.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let found = find(&text, &list).into_iter().filter(|(_, word)| !is_exception(&path, &word.text));
        problems.extend(
            found.map(|(line, word)| format!("{path}:{line}: `{}`; instead: {}", word.text, word.instead)),
        );
    }
    assert!(problems.is_empty(), "{} banned words:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn words_are_found_in_prose_comments_and_identifiers_but_not_in_quotations() {
    let list = banned(&format!(
        "{HEADING}\n\n| word | instead |\n|---|---|\n| murk | x |\n| old way | x |\n| Foo | x |\n"
    ));
    let check = |text: &str, expected: &[(usize, &str)]| {
        let found: Vec<(usize, &str)> =
            find(text, &list).into_iter().map(|(line, word)| (line, word.text.as_str())).collect();
        assert_eq!(found, expected, "{text:?}");
    };
    check("the murk", &[(1, "murk")]);
    check("fn the_murk_is_gone() {}", &[(1, "murk")]);
    check("struct MurkGuard;", &[(1, "murk")]);
    check("murky murks", &[]);
    check("a\n// The old\n// way of it", &[(2, "old way")]);
    check("Foo, foo, FooBar", &[(1, "Foo")]);
    check("FooBar foo", &[]);
    check("> the murk", &[]);
    check("    /// > the murk\n    /// > of the old way", &[]);
    check("a > murk", &[(1, "murk")]);
}
