//! The reading of a file: every value by itself, so that each error names its key and none hides another.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{Field, Given, Item, Origin, Problem, Problems, SettingValue};

/// A file that is being read.
#[derive(Debug)]
pub struct Reading<'a> {
    path: String,
    base: PathBuf,
    open_files: bool,
    /// The file has errors of syntax: what seems to be missing may be there.
    is_partial: bool,
    /// Sections that only files of other roles have.
    other_sections: &'a [&'static str],
    problems: &'a mut Problems,
}

/// Why a value is not one of its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is not what was expected.
    Unexpected,
    /// This is wrong with it.
    Because(String),
    /// What is wrong with it has been reported.
    Reported,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(
        base: &Path,
        open_files: bool,
        other_sections: &'a [&'static str],
        problems: &'a mut Problems,
    ) -> Self {
        Self {
            path: String::new(),
            base: base.to_owned(),
            open_files,
            is_partial: !problems.is_empty(),
            other_sections,
            problems,
        }
    }

    /// Returns the directory that paths in the file are relative to.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Returns true when files that are named are to be opened.
    #[must_use]
    pub fn opens_files(&self) -> bool {
        self.open_files
    }

    /// Returns the key that is being read, with its section.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn below(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Reads at another key.
    pub(crate) fn at<T>(&mut self, path: String, read: impl FnOnce(&mut Self) -> T) -> T {
        let outer = std::mem::replace(&mut self.path, path);
        let result = read(self);
        self.path = outer;
        result
    }

    /// Reads a value at this key and reports what is wrong with it.
    pub(crate) fn value<T: SettingValue>(
        &mut self,
        given: &Given,
        expected: impl FnOnce() -> String,
    ) -> Option<T> {
        self.problems.remember(&self.path, given);
        let reason = match T::read(given, self) {
            Ok(value) => return Some(value),
            Err(Wrong::Reported) => return None,
            Err(Wrong::Because(reason)) => reason,
            Err(Wrong::Unexpected) => expected(),
        };
        self.report(given, reason);
        None
    }

    fn report(&mut self, given: &Given, reason: String) {
        let (origin, key) = (given.origin.clone(), self.path.clone());
        self.problems.add(Problem { origin, key, value: Some(given.shown()), reason });
    }

    /// Reports that some values that are each right do not fit together; the first is to blame.
    pub(crate) fn report_rule(&mut self, names: &[String], reason: impl FnOnce() -> String) {
        let keys: Vec<String> = names.iter().map(|name| self.below(name)).collect();
        // A value that could not be read has a placeholder here, which says nothing.
        if self.is_partial || keys.iter().any(|key| self.problems.concern(key)) {
            return;
        }
        if let Some(key) = keys.first() {
            self.problems.blame(key, reason());
        }
    }
}

/// A table that is being read, setting by setting.
#[derive(Debug)]
pub struct TableReader<'r, 'a> {
    reading: &'r mut Reading<'a>,
    left: BTreeMap<String, Given>,
    known: Vec<&'static str>,
}

impl<'r, 'a> TableReader<'r, 'a> {
    /// Begins to read a table.
    ///
    /// # Errors
    /// It is something else.
    pub fn new(given: &Given, reading: &'r mut Reading<'a>) -> Result<Self, Wrong> {
        let Item::Table(table) = &given.item else { return Err(Wrong::Unexpected) };
        Ok(Self { reading, left: table.clone(), known: Vec::new() })
    }

    /// Reads a setting; one that is wrong is reported and gets a value that may be looked at, but is never used.
    pub fn field<T: SettingValue>(&mut self, field: &Field<T>) -> T {
        self.known.push(field.name());
        let path = self.reading.below(field.name());
        let given = self.left.remove(field.name());
        self.reading.at(path, |reading| match given {
            Some(given) => read_field(field, &given, reading),
            None => absent_field(field, reading),
        })
    }

    /// Ends the table: settings that are left are unknown.
    pub fn finish(self) {
        let Self { reading, left, known } = self;
        let is_root = reading.path.is_empty();
        for (name, given) in left {
            let is_variable = matches!(given.origin, Some(Origin::Variable(_)));
            let reason = match reading.other_sections.contains(&name.as_str()) {
                true if is_root => format!("a section of other roles; expected one of {}", known.join(", ")),
                // A variable may be meant for another role.
                _ if is_root && is_variable => {
                    unknown("section", &name, &[&known, reading.other_sections].concat())
                }
                _ if is_root => unknown("section", &name, &known),
                _ => unknown("setting", &name, &known),
            };
            let key = reading.below(&name);
            let value = matches!(given.item, Item::Scalar(_)).then(|| given.shown());
            reading.problems.add(Problem { origin: given.origin, key, value, reason });
        }
    }
}

fn read_field<T: SettingValue>(field: &Field<T>, given: &Given, reading: &mut Reading<'_>) -> T {
    let expected = || field.declare().expected();
    match reading.value(given, expected) {
        Some(value) if field.allows(&value) => value,
        Some(_) => {
            reading.report(given, expected());
            field.initial()
        }
        None => field.initial(),
    }
}

fn absent_field<T: SettingValue>(field: &Field<T>, reading: &mut Reading<'_>) -> T {
    if let Some(default) = field.declared_default() {
        return default;
    }
    if !field.is_optional() && !reading.is_partial {
        let reason = format!("missing; {}", field.declare().expected());
        let key = reading.path.clone();
        reading.problems.add(Problem { origin: None, key, value: None, reason });
    }
    T::absent(reading)
}

fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(near) => format!("unknown {what}; did you mean `{near}`?"),
        None => format!("unknown {what}; expected one of {}", known.join(", ")),
    }
}

/// Returns the known name that was probably meant.
fn nearest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    let closeness = |known: &str| {
        let stems = name.starts_with(known) || known.starts_with(name);
        if stems { 1.0 } else { strsim::jaro_winkler(name, known) }
    };
    let best = known.iter().max_by(|a, b| closeness(a).total_cmp(&closeness(b)))?;
    (closeness(best) > 0.85).then_some(*best)
}
