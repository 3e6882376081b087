//! The grammar of a file of rules. Every error is reported, each with its line.

use std::{collections::BTreeMap, fmt, num::NonZeroU8};

use postroad_core::{BounceClass, LaneEffect, OutcomeKind, Party, Retry};

use super::{CodePattern, Consequence, EnhancedPattern, Outcomes, Rule, Rules, pattern::Pattern};
use crate::verdict::{Ending, Phase};

/// How many rules a file may have.
const RULES_MAX: usize = 2000;

/// Where a file comes from decides when its patterns are compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Origin {
    /// An operator's file: compiled at once, so that its errors are reported.
    #[default]
    Given,
    /// The file of this crate, which a test has compiled.
    BuiltIn,
}

/// What is wrong with a file of rules, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleError {
    /// The line, counted from 1.
    pub line: usize,
    /// The value and what was expected.
    pub message: String,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for RuleError {}

/// A line with what continues it.
struct Entry {
    line: usize,
    indented: bool,
    key: String,
    value: String,
}

pub(super) fn parse(file: &str, origin: Origin) -> Result<Rules, Vec<RuleError>> {
    let mut reader = Reader { origin, ..Reader::default() };
    for entry in entries(file, &mut reader.errors) {
        reader.read(entry);
    }
    reader.finish(file.lines().count().max(1))
}

/// Splits a file into entries; comments and blank lines are dropped, lines that begin with `|` are appended.
fn entries(file: &str, errors: &mut Vec<RuleError>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for (index, raw) in file.lines().enumerate() {
        let line = index + 1;
        let text = raw.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let indented = raw.starts_with([' ', '\t']);
        if indented && text.starts_with('|') {
            match entries.last_mut() {
                Some(entry) if matches!(&*entry.key, "words" | "without" | "let") => {
                    entry.value.push_str(text)
                }
                _ => errors.push(RuleError {
                    line,
                    message: "`|` continues only `words`, `without` and `let`".to_owned(),
                }),
            }
            continue;
        }
        let (key, value) = text.split_once([' ', '\t']).unwrap_or((text, ""));
        entries.push(Entry { line, indented, key: key.to_owned(), value: value.trim().to_owned() });
    }
    entries
}

/// A rule while its lines are read.
struct Draft {
    line: usize,
    rule: Rule,
}

#[derive(Default)]
struct Reader {
    origin: Origin,
    errors: Vec<RuleError>,
    names: BTreeMap<String, String>,
    done: Vec<Rule>,
    draft: Option<Draft>,
}

impl Reader {
    fn read(&mut self, entry: Entry) {
        if entry.indented {
            return self.read_part(entry);
        }
        self.close_draft();
        match &*entry.key {
            "let" => self.read_let(&entry),
            "rule" => self.open_draft(&entry),
            _ => self
                .error(entry.line, format!("`{}`: expected `rule NAME` or `let NAME = PATTERN`", entry.key)),
        }
    }

    fn error(&mut self, line: usize, message: String) {
        self.errors.push(RuleError { line, message });
    }

    fn read_let(&mut self, entry: &Entry) {
        let Some((name, pattern)) = entry.value.split_once('=') else {
            return self.error(entry.line, format!("`{}`: expected `let NAME = PATTERN`", entry.value));
        };
        let name = name.trim();
        if !is_name(name) {
            return self.error(entry.line, format!("`{name}`: expected a name of a-z, 0-9 and _"));
        }
        if let Some(pattern) = self.expand(entry.line, pattern.trim())
            && self.names.insert(name.to_owned(), format!("(?:{pattern})")).is_some()
        {
            self.error(entry.line, format!("`{name}` is defined twice"));
        }
    }

    /// Replaces `{name}` by what `let` says of it; `{2,3}` is left as it is.
    fn expand(&mut self, line: usize, pattern: &str) -> Option<String> {
        let mut out = String::with_capacity(pattern.len());
        let mut rest = pattern;
        while let Some((before, after)) = rest.split_once('{') {
            out.push_str(before);
            let Some((name, behind)) = after.split_once('}').filter(|(name, _)| is_name(name)) else {
                out.push('{');
                rest = after;
                continue;
            };
            let Some(meaning) = self.names.get(name) else {
                self.error(line, format!("`{{{name}}}`: expected a name that a `let` above defines"));
                return None;
            };
            out.push_str(meaning);
            rest = behind;
        }
        out.push_str(rest);
        Some(out)
    }

    fn open_draft(&mut self, entry: &Entry) {
        let name = &*entry.value;
        if !is_name(name) {
            self.error(entry.line, format!("`{name}`: expected a rule's name of a-z, 0-9 and _"));
        }
        if self.done.iter().any(|rule| *rule.name == *name) {
            self.error(entry.line, format!("there are two rules `{name}`: expected each name once"));
        }
        let rule = Rule {
            name: name.into(),
            why: "".into(),
            phases: Vec::new(),
            codes: Vec::new(),
            enhanced: Vec::new(),
            provider: None,
            words: Vec::new(),
            without: Vec::new(),
            outcomes: Outcomes::default(),
        };
        self.draft = Some(Draft { line: entry.line, rule });
    }

    fn close_draft(&mut self) {
        let Some(Draft { line, rule }) = self.draft.take() else { return };
        if rule.why.is_empty() {
            self.error(line, format!("rule `{}` has no `why`", rule.name));
        }
        if rule.outcomes.transient.is_none() && rule.outcomes.permanent.is_none() {
            self.error(line, format!("rule `{}` has no outcome: expected `4yz`, `5yz` or both", rule.name));
        }
        if rule.suppresses() && !rule.speaks_only_of_recipients() {
            let message =
                format!("rule `{}`: `suppress` expected a `phase` of rcpt, data and dot only", rule.name);
            self.error(line, message);
        }
        if self.done.len() == RULES_MAX {
            self.error(line, format!("expected at most {RULES_MAX} rules"));
        }
        self.done.push(rule);
    }

    fn read_part(&mut self, entry: Entry) {
        let Some(mut draft) = self.draft.take() else {
            return self.error(entry.line, format!("`{}` stands outside a rule", entry.key));
        };
        if let Err(message) = self.read_part_into(&mut draft.rule, &entry) {
            self.error(entry.line, message);
        }
        self.draft = Some(draft);
    }

    fn read_part_into(&mut self, rule: &mut Rule, entry: &Entry) -> Result<(), String> {
        let value = &*entry.value;
        if value.is_empty() {
            return Err(format!("`{}` has no value", entry.key));
        }
        match &*entry.key {
            "why" => once(&rule.why.is_empty(), "why").map(|()| rule.why = value.into()),
            "provider" => {
                once(&rule.provider.is_none(), "provider").map(|()| rule.provider = Some(value.into()))
            }
            "phase" => each(value, phase).map(|phases| rule.phases.extend(phases)),
            "code" => each(value, code).map(|codes| rule.codes.extend(codes)),
            "enhanced" => each(value, enhanced).map(|codes| rule.enhanced.extend(codes)),
            "words" => {
                rule.words.extend(self.pattern(entry));
                Ok(())
            }
            "without" => {
                rule.without.extend(self.pattern(entry));
                Ok(())
            }
            "4yz" => set(&mut rule.outcomes.transient, transient(value)?, "4yz"),
            "5yz" => set(&mut rule.outcomes.permanent, consequence(value)?, "5yz"),
            "early" => set(&mut rule.outcomes.early, consequence(value)?, "early"),
            key => Err(format!(
                "`{key}`: expected why, phase, code, enhanced, provider, words, without, 4yz, 5yz or early"
            )),
        }
    }

    /// Compiles a pattern. Texts are folded before, so patterns are bytes without Unicode tables.
    fn pattern(&mut self, entry: &Entry) -> Option<Pattern> {
        let source = self.expand(entry.line, &entry.value)?;
        if self.origin == Origin::BuiltIn {
            return Some(Pattern::built_in(&source));
        }
        Pattern::checked(&source)
            .map_err(|error| self.error(entry.line, format!("`{}`: {}", entry.value, one_line(&error))))
            .ok()
    }

    fn finish(mut self, last_line: usize) -> Result<Rules, Vec<RuleError>> {
        self.close_draft();
        for phase in Phase::ALL.iter().copied() {
            for (permanent, name) in [(false, "4yz"), (true, "5yz")] {
                if !self.done.iter().any(|rule| rule.is_default_for(phase, permanent)) {
                    let message = format!(
                        "no rule catches every {name} of phase `{phase}`: expected one without conditions"
                    );
                    self.error(last_line, message);
                }
            }
        }
        self.errors.sort_by_key(|error| error.line);
        if self.errors.is_empty() { Ok(Rules { rules: self.done }) } else { Err(self.errors) }
    }
}

/// The regex crate draws its syntax errors over several lines; the last one says what is wrong.
fn one_line(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines().next_back().unwrap_or_default().trim().trim_start_matches("error: ").to_owned()
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn once(first: &bool, key: &str) -> Result<(), String> {
    if *first { Ok(()) } else { Err(format!("`{key}` stands twice in one rule")) }
}

fn set(slot: &mut Option<Consequence>, value: Consequence, key: &str) -> Result<(), String> {
    once(&slot.is_none(), key)?;
    *slot = Some(value);
    Ok(())
}

fn each<T>(value: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    value.split_whitespace().map(parse).collect()
}

fn phase(word: &str) -> Result<Phase, String> {
    Phase::from_name(word)
        .ok_or_else(|| format!("`{word}`: expected connect, ehlo, starttls, mail, rcpt, data or dot"))
}

fn code(word: &str) -> Result<CodePattern, String> {
    let expected = || format!("`{word}`: expected three digits, or `x` for any, such as 550 or 55x");
    let bytes: [u8; 3] = word.as_bytes().try_into().map_err(|_| expected())?;
    if !matches!(bytes[0], b'4' | b'5' | b'x') {
        return Err(format!("`{word}`: expected 4, 5 or x first"));
    }
    let mut digits = [None; 3];
    for (digit, byte) in digits.iter_mut().zip(bytes) {
        *digit = match byte {
            b'x' => None,
            b'0'..=b'9' => Some(byte - b'0'),
            _ => return Err(expected()),
        };
    }
    Ok(CodePattern(digits))
}

fn enhanced(word: &str) -> Result<EnhancedPattern, String> {
    let expected = || format!("`{word}`: expected x.SUBJECT.DETAIL, such as x.7.1, x.7.20-30 or x.7.*");
    let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n <= 999).ok_or_else(expected);
    let (subject, detail) =
        word.strip_prefix("x.").and_then(|rest| rest.split_once('.')).ok_or_else(expected)?;
    let subject = number(subject)?;
    let (detail_from, detail_to) = match (detail, detail.split_once('-')) {
        ("*", _) => (0, 999),
        (_, Some((from, to))) => (number(from)?, number(to)?),
        (one, None) => (number(one)?, number(one)?),
    };
    if detail_from > detail_to {
        return Err(expected());
    }
    Ok(EnhancedPattern { subject, detail_from, detail_to })
}

/// A temporary reply never ends a delivery.
fn transient(value: &str) -> Result<Consequence, String> {
    let consequence = consequence(value)?;
    match consequence.ending {
        Ending::Hard { .. } => {
            Err("`hard`: a 4yz never ends a delivery; expected soft, site_soft or policy_block".to_owned())
        }
        Ending::PolicyBlock { retry: Retry::Distant { .. } } => {
            Err("`tries`: a 4yz is tried on the usual schedule".to_owned())
        }
        Ending::PolicyBlock { .. } => {
            Ok(Consequence { ending: Ending::PolicyBlock { retry: Retry::Normal }, ..consequence })
        }
        Ending::Soft | Ending::SiteSoft => Ok(consequence),
    }
}

/// `KIND CLASS PARTY [LANE] [suppress] [tries=N]`.
fn consequence(value: &str) -> Result<Consequence, String> {
    let mut words = value.split_whitespace();
    let mut next = |what: &str| words.next().ok_or_else(|| format!("`{value}`: expected {what}"));
    let kind = next("a kind")?;
    let class = class(next("a class after the kind")?)?;
    let party = next("a party after the class")?;
    let party = Party::from_name(party)
        .ok_or_else(|| format!("`{party}`: expected recipient, sender, ip, domain, content or receiver"))?;
    let (mut lane, mut suppress, mut tries) = (LaneEffect::None, false, None);
    for word in words {
        if let Some(effect) = LaneEffect::from_name(word) {
            lane = effect;
        } else if word == "suppress" {
            suppress = true;
        } else if let Some(number) = word.strip_prefix("tries=") {
            let expected = || format!("`{word}`: expected a number from 1 to 255");
            tries = Some(number.parse::<NonZeroU8>().map_err(|_| expected())?);
        } else {
            return Err(format!("`{word}`: expected none, slow, pause, reconnect, suppress or tries=N"));
        }
    }
    let ending = ending(kind, suppress, tries)?;
    if suppress && !(party == Party::Recipient && may_suppress(class)) {
        return Err(
            "`suppress`: expected party recipient and class invalid_recipient or inactive_mailbox".to_owned()
        );
    }
    Ok(Consequence { ending, class, party, lane })
}

/// Only a mailbox that is not there or closed is never mailed again (D-052).
fn may_suppress(class: BounceClass) -> bool {
    matches!(class, BounceClass::InvalidRecipient | BounceClass::InactiveMailbox)
}

fn class(word: &str) -> Result<BounceClass, String> {
    let found = BounceClass::ALL.iter().copied().find(|class| class.as_str() == word);
    found.ok_or_else(|| format!("`{word}`: expected a class, such as invalid_recipient"))
}

fn ending(kind: &str, suppress: bool, tries: Option<NonZeroU8>) -> Result<Ending, String> {
    let ending = match OutcomeKind::ALL.iter().find(|known| known.as_str() == kind) {
        Some(OutcomeKind::Hard) => Ending::Hard { suppress },
        Some(OutcomeKind::Soft) => Ending::Soft,
        Some(OutcomeKind::SiteSoft) => Ending::SiteSoft,
        Some(OutcomeKind::PolicyBlock) => Ending::PolicyBlock {
            retry: tries.map_or(Retry::Never, |tries_max| Retry::Distant { tries_max }),
        },
        _ => return Err(format!("`{kind}`: expected hard, soft, site_soft or policy_block")),
    };
    if suppress && !matches!(ending, Ending::Hard { .. }) {
        return Err(format!("`suppress`: expected kind hard, not {kind}"));
    }
    if tries.is_some() && !matches!(ending, Ending::PolicyBlock { .. }) {
        return Err(format!("`tries`: expected kind policy_block, not {kind}"));
    }
    Ok(ending)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(file: &str) -> Result<Rules, Vec<RuleError>> {
        super::parse(file, Origin::Given)
    }

    const REST: &str = "rule rest\n why the rest\n 4yz soft other receiver\n 5yz hard other receiver\n";

    /// Parses `file` with a rule behind it that catches everything, and compares lines and beginnings of errors.
    fn check(file: &str, expected: &[(usize, &str)]) {
        let found = parse(&format!("{file}\n{REST}")).err().unwrap_or_default();
        let same = found.len() == expected.len()
            && found
                .iter()
                .zip(expected)
                .all(|(error, (line, message))| error.line == *line && error.message.starts_with(message));
        assert!(same, "{file}\nexpected {expected:?}\nfound    {found:?}");
    }

    #[test]
    fn well_formed_rules_are_taken() {
        check(
            "# a comment\n\nlet box = mail ?box\n  |inbox\nrule full\n why it is full\n words {box} full\n |no space\n 5yz soft quota recipient",
            &[],
        );
        check(
            "rule r\n why w\n phase rcpt dot\n code 55x 4xx\n enhanced x.2.2 x.7.20-30 x.6.*\n provider p\n words a{2,3}\n without b\n 4yz policy_block policy ip pause\n 5yz policy_block policy ip pause tries=3\n early site_soft policy ip",
            &[],
        );
        check("rule r\n why w\n phase rcpt data dot\n 5yz hard invalid_recipient recipient suppress", &[]);
    }

    #[test]
    fn every_error_is_reported_with_its_line() {
        check("rule A\n why w\n 5yz hard policy ip", &[(1, "`A`: expected a rule's name")]);
        check("rule r\n 5yz hard policy ip", &[(1, "rule `r` has no `why`")]);
        check("rule r\n why w", &[(1, "rule `r` has no outcome")]);
        check("rule rest\n why w\n 5yz hard policy ip", &[(4, "there are two rules `rest`")]);
        check(" why w", &[(1, "`why` stands outside a rule")]);
        check("mule r", &[(1, "`mule`: expected `rule NAME` or")]);
        check("let x", &[(1, "`x`: expected `let NAME = PATTERN`")]);
        check("let x = a\nlet x = b", &[(2, "`x` is defined twice")]);
        check("rule r\n why w\n why v\n 5yz hard policy ip", &[(3, "`why` stands twice")]);
        check("rule r\n why w\n | more\n 5yz hard policy ip", &[(3, "`|` continues only")]);
        let anywhere = "rule r\n why w\n 5yz hard invalid_recipient recipient suppress";
        check(anywhere, &[(1, "rule `r`: `suppress` expected a `phase` of rcpt, data and dot only")]);
        let at_mail = "rule r\n why w\n phase mail rcpt\n 5yz hard invalid_recipient recipient suppress";
        check(at_mail, &[(1, "rule `r`: `suppress` expected")]);
        check("rule r\n why w\n words {nobody}\n 5yz hard policy ip", &[(3, "`{nobody}`: expected a name")]);
        check("rule r\n why w\n words (a\n 5yz hard policy ip", &[(3, "`(a`: unclosed group")]);
        check(
            "rule r\n why w\n phase later\n code 250 5x\n enhanced 5.1.1 x.1.9-3\n 4yz hard policy ip\n 5yz firm policy ip",
            &[
                (1, "rule `r` has no outcome"),
                (3, "`later`: expected connect"),
                (4, "`250`: expected 4, 5 or x first"),
                (5, "`5.1.1`: expected x.SUBJECT.DETAIL"),
                (6, "`hard`: a 4yz never ends a delivery"),
                (7, "`firm`: expected hard, soft"),
            ],
        );
        let outcome = |value: &str, message: &str| {
            check(&format!("rule r\n why w\n 4yz soft policy ip\n 5yz {value}"), &[(4, message)])
        };
        outcome("hard", "`hard`: expected a class");
        outcome("hard nonsense ip", "`nonsense`: expected a class");
        outcome("hard policy me", "`me`: expected recipient");
        outcome("hard policy ip often", "`often`: expected none");
        outcome("hard policy recipient suppress", "`suppress`: expected party recipient and class");
        outcome("policy_block invalid_recipient recipient suppress", "`suppress`: expected kind hard");
        outcome("soft policy ip tries=3", "`tries`: expected kind policy_block");
        outcome("policy_block policy ip tries=0", "`tries=0`: expected a number from 1");
        outcome("delivered policy ip", "`delivered`: expected hard, soft");
    }

    #[test]
    fn the_patterns_that_are_built_in_compile() {
        let errors = parse(include_str!("../../rules.txt")).err().unwrap_or_default();
        assert!(errors.is_empty(), "{errors:?}");
    }

    #[test]
    fn a_file_without_a_default_for_a_phase_is_refused() {
        let errors = parse("rule r\n why w\n phase rcpt\n 4yz soft other receiver\n 5yz hard other receiver")
            .unwrap_err();
        assert_eq!(errors.len(), 2 * (Phase::ALL.len() - 1));
        assert!(parse("").is_err());
        assert!(parse(REST).is_ok());
    }
}
