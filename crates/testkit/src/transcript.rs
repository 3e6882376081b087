//! Commands of a documentation page with the output that the page shows, so that a test can carry the page out.
//!
//! A fenced block of the language `console` is a transcript: lines that begin with `$ ` are commands, and the lines below a
//! command are what it prints. A command continues in the next line after `\`, and in lines that begin with `> `.
//! In them `…` stands for any text within a line, and for any number of lines where it is a line of its own.
//! Message ids and times of the page need only have the same shape; one id of the page is always the same one of the run, and
//! a command that names it gets the id of the run.
//!
//! A reader may have to wait before a command shows what the page shows: such a command begins with `sleep`. A test does not
//! wait that long; it repeats the command until it does.

use std::{collections::BTreeMap, time::Duration};

/// The pause before a command is repeated.
const REPEAT_AFTER: Duration = Duration::from_millis(100);

/// One command and its expected output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The line of the page.
    pub line: usize,
    /// The command, to be run by a shell.
    pub command: String,
    /// The lines that it prints.
    pub expected: Vec<String>,
}

/// Reads the transcripts of a Markdown page, in order.
#[must_use]
pub fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut place = Place::Prose;
    for (line, text) in (1..).zip(page.lines()) {
        place = match (place, text) {
            (Place::Prose, "```console") => Place::Output,
            (Place::Prose, fence) if fence.starts_with("```") => Place::OtherBlock,
            (Place::Prose, _) => Place::Prose,
            (_, "```") => Place::Prose,
            (Place::OtherBlock, _) => Place::OtherBlock,
            (Place::Command, more) => continued(&mut steps, more),
            (Place::Output, text) => read_line(&mut steps, line, text),
        };
    }
    steps
}

/// Reads a line of a transcript that is not within a command.
fn read_line(steps: &mut Vec<Step>, line: usize, text: &str) -> Place {
    if let Some(command) = text.strip_prefix("$ ") {
        steps.push(Step { line, command: String::new(), expected: Vec::new() });
        return continued(steps, command);
    }
    let step = steps.last_mut().unwrap_or_else(|| panic!("line {line}: output without a command"));
    match text.strip_prefix("> ") {
        Some(more) if step.expected.is_empty() => {
            step.command.push('\n');
            continued(steps, more)
        }
        _ => {
            step.expected.push(text.to_owned());
            Place::Output
        }
    }
}

/// Where the reader of a page is.
#[derive(Clone, Copy)]
enum Place {
    Prose,
    OtherBlock,
    /// In a command that continues.
    Command,
    /// In a transcript, below a command or before one.
    Output,
}

fn continued(steps: &mut [Step], text: &str) -> Place {
    let command = &mut steps.last_mut().expect("a command has begun").command;
    command.push_str(text);
    if text.ends_with('\\') {
        command.push('\n');
        Place::Command
    } else {
        Place::Output
    }
}

impl Step {
    /// Runs the command, and compares what it prints with the page; one that begins with `sleep` is repeated for `patience`.
    ///
    /// # Errors
    /// What differs.
    pub fn carry_out(
        &self,
        ids: &mut Ids,
        patience: Duration,
        mut run: impl FnMut(&str) -> String,
    ) -> Result<(), String> {
        let command = ids.in_command(&self.command);
        let (command, patience) = match command.strip_prefix("sleep ").and_then(|rest| rest.split_once("; "))
        {
            Some((_, repeated)) => (repeated, patience),
            None => (&*command, Duration::ZERO),
        };
        let until = postroad_env::now() + patience;
        loop {
            let printed = run(command);
            let Err(problem) = ids.compare(&self.expected, &printed) else { return Ok(()) };
            if postroad_env::now() >= until {
                return Err(format!("line {}: $ {command}\n{problem}\n== it printed\n{printed}", self.line));
            }
            postroad_env::pause(REPEAT_AFTER);
        }
    }
}

/// The message ids of a page and those of the run.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    run: BTreeMap<String, String>,
}

impl Ids {
    /// Returns the command with the ids of the run in place of those of the page.
    #[must_use]
    pub fn in_command(&self, command: &str) -> String {
        self.run.iter().fold(command.to_owned(), |command, (page, run)| command.replace(page, run))
    }

    /// Compares what a command printed with what the page shows, and learns the ids that the page names for the first time.
    ///
    /// # Errors
    /// The first line of the page that the output does not have.
    pub fn compare(&mut self, expected: &[String], printed: &str) -> Result<(), String> {
        let printed: Vec<&str> = printed.lines().map(str::trim_end).collect();
        let mut learned = self.clone();
        learned.lines(expected, &printed)?;
        *self = learned;
        Ok(())
    }

    fn lines(&mut self, expected: &[String], printed: &[&str]) -> Result<(), String> {
        let Some((first, rest)) = expected.split_first() else {
            return printed
                .first()
                .map_or(Ok(()), |line| Err(format!("printed, and not on the page: {line}")));
        };
        if first != "…" {
            let (line, below) = printed.split_first().ok_or_else(|| format!("not printed: {first}"))?;
            self.line(first, line)?;
            return self.lines(rest, below);
        }
        let tail = (0..=printed.len()).find_map(|skipped| {
            let mut tried = self.clone();
            tried.lines(rest, &printed[skipped..]).ok().map(|()| tried)
        });
        *self = tail.ok_or_else(|| format!("not printed below `…`: {}", rest.join("\n")))?;
        Ok(())
    }

    fn line(&mut self, expected: &str, printed: &str) -> Result<(), String> {
        let differs = || format!("expected: {expected}\nprinted:  {printed}");
        let (pattern, page) = shape(expected.trim_end());
        let (text, run) = shape(printed);
        if !fits(&pattern, &text) {
            return Err(differs());
        }
        if page.len() != run.len() {
            // `…` stands for an id too: nothing says which is which.
            return Ok(());
        }
        for (page, run) in page.into_iter().zip(run) {
            if self.run.entry(page).or_insert_with(|| run.clone()) != &run {
                return Err(differs());
            }
        }
        Ok(())
    }
}

/// Returns a line with a placeholder for each time and message id, and the ids.
fn shape(line: &str) -> (String, Vec<String>) {
    let (mut text, mut ids) = (String::new(), Vec::new());
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-:.".contains(c);
    let mut rest = line;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
        let (word, below) = rest.split_at(end);
        if is_id(word) {
            ids.push(word.to_owned());
            text.push_str("<id>");
        } else if is_time(word) {
            text.push_str("<time>");
        } else {
            text.push_str(word);
        }
        let next = below.chars().next();
        text.extend(next);
        rest = &below[next.map_or(0, char::len_utf8)..];
    }
    (text, ids)
}

/// A message id: 26 digits of Crockford's base 32.
fn is_id(word: &str) -> bool {
    word.len() == 26
        && word.starts_with('0')
        && word.chars().all(|c| c.is_ascii_digit() || c.is_ascii_uppercase())
}

/// A time as in RFC 3339: `2026-11-30T22:20:57.547Z`.
fn is_time(word: &str) -> bool {
    let shape: String = word.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape.starts_with("0000-00-00T00:00:00") && shape.ends_with('Z')
}

/// Whether a text fits a pattern in which `…` stands for any text.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_as_commands_and_their_output() {
        let page = "Text\n\n```sh\n$ not this\n```\n\n```console\n$ one \\\n  --flag\nprinted\n\n$ two\n> more\n```\n$ nor this\n";
        let step = |line, command: &str, expected: &[&str]| Step {
            line,
            command: command.to_owned(),
            expected: expected.iter().map(|line| (*line).to_owned()).collect(),
        };
        assert_eq!(steps(page), [step(8, "one \\\n  --flag", &["printed", ""]), step(12, "two\nmore", &[])]);
    }

    #[test]
    fn output_fits_when_it_differs_in_ids_times_and_what_is_left_out() {
        let check = |expected: &[&str], printed: &str, fits: bool| {
            let expected: Vec<String> = expected.iter().map(|line| (*line).to_owned()).collect();
            let compared = Ids::default().compare(&expected, printed);
            assert_eq!(compared.is_ok(), fits, "{expected:?} {printed:?} {compared:?}");
        };
        check(&["a"], "a\n", true);
        check(&["a"], "b\n", false);
        check(&["a"], "a\nb\n", false);
        check(&["a", "b"], "a\n", false);
        check(&["a…z"], "a to z\n", true);
        check(&["a…z"], "a to y\n", false);
        check(&["a…m…z"], "a m\n", false);
        check(&["…"], "", true);
        check(&["…", "z"], "a\nb\nz\n", true);
        check(&["…", "z"], "a\nb\n", false);
        check(&["a", "…"], "a\nb\n", true);
        check(&["due 2026-11-30T22:20:57.547Z"], "due 2027-01-01T00:00:00.1Z\n", true);
        check(&["due 2026-11-30T22:20:57.547Z"], "due never\n", false);
    }

    #[test]
    fn an_id_of_the_page_is_one_id_of_the_run() {
        let (page, run, other) =
            ("01M8Q8R0T9000M4QX1BK154F41", "01M9AAAAAA000M4QX1BK154F41", "01M9BBBBBB000M4QX1BK154F41");
        let mut ids = Ids::default();
        ids.compare(&[format!("accepted {page}")], &format!("accepted {run}\n")).unwrap();
        assert_eq!(ids.in_command(&format!("get {page} now")), format!("get {run} now"));
        ids.compare(&[format!("{page} delivered")], &format!("{run} delivered\n")).unwrap();
        ids.compare(&[format!("{page} delivered")], &format!("{other} delivered\n")).unwrap_err();
        ids.compare(&[format!("accepted {page}")], "accepted nothing\n").unwrap_err();
    }
}
