//! Configuration files: read, overlaid with the environment, checked as a whole.
//!
//! A file has one table per section. Every problem is found before any is reported, and none stops the search for others:
//! a section is read key by key, so that each complaint names its key.

use std::{fmt, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

/// Overrides begin with this: `POSTROAD__INGRESS__CONNECTIONS_MAX=100`.
const PREFIX: &str = "POSTROAD__";

/// A section of a configuration file.
pub trait Section: DeserializeOwned + Serialize + Default {
    /// Returns what is wrong with values that are well-formed, as key and expectation.
    fn problems(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Section and key, or the section alone.
    pub key: String,
    /// The value that was given, where there is one.
    pub value: Option<String>,
    /// What was expected.
    pub reason: String,
}

/// All that is wrong with a configuration.
#[derive(Debug)]
pub struct ConfigError {
    /// The file.
    pub file: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} problem(s)", self.problems.len())?;
        for Problem { key, value, reason } in &self.problems {
            match value {
                Some(value) => write!(f, "\n  {}: `{key}` = {value}: {reason}", self.file)?,
                None => write!(f, "\n  {}: `{key}`: {reason}", self.file)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// A configuration that is being read.
#[derive(Debug)]
pub struct Loader {
    file: String,
    table: Table,
    effective: Table,
    problems: Vec<Problem>,
}

impl Loader {
    /// Reads a file and lays the environment over it.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let failed = |key: &str, reason: String| ConfigError {
            file: file.clone(),
            problems: vec![Problem { key: key.to_owned(), value: None, reason }],
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| failed("(file)", format!("cannot be read: {error}")))?;
        let table = text
            .parse::<Table>()
            .map_err(|error| failed("(syntax)", error.to_string().trim().replace('\n', "\n    ")))?;
        let mut loader = Self::new(file, table);
        loader.overlay(std::env::vars());
        Ok(loader)
    }

    /// Starts from a table that was read already.
    #[must_use]
    pub fn new(file: String, table: Table) -> Self {
        Self { file, table, effective: Table::new(), problems: Vec::new() }
    }

    /// Lays variables over what the file says; a value is read as TOML, or as text where it is none.
    pub fn overlay(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        let mut ours: Vec<(String, String)> =
            variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
        ours.sort();
        for (name, text) in ours {
            let path: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_lowercase).collect();
            let Some((key, sections)) = path.split_last() else { continue };
            insert(&mut self.table, sections, key, parse_value(&text));
        }
    }

    /// Takes a section out of the file; problems are kept for [`Loader::finish`].
    pub fn section<T: Section>(&mut self, name: &str) -> T {
        let section = match self.table.remove(name) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                self.complain(name, Some(&other), "expected a table");
                Table::new()
            }
        };
        let good: Table =
            section.into_iter().filter(|(key, value)| self.reads_alone::<T>(name, key, value)).collect();
        match Value::Table(good).try_into::<T>() {
            Ok(section) => {
                if let Ok(effective) = Value::try_from(&section) {
                    self.effective.insert(name.to_owned(), effective);
                }
                for (key, reason) in section.problems() {
                    let key = format!("{name}.{key}");
                    // A value that could not be read has a default in its place, which says nothing.
                    if self.problems.iter().all(|problem| problem.key != key || problem.value.is_none()) {
                        self.complain(&key, None, &reason);
                    }
                }
                section
            }
            Err(error) => {
                self.complain(name, None, error.message());
                T::default()
            }
        }
    }

    /// Every section has defaults for all its keys, so one key by itself shows what is wrong with it.
    fn reads_alone<T: Section>(&mut self, section: &str, key: &str, value: &Value) -> bool {
        let alone = Table::from_iter([(key.to_owned(), value.clone())]);
        match Value::Table(alone).try_into::<T>() {
            Ok(_) => true,
            Err(error) => {
                self.complain(&format!("{section}.{key}"), Some(value), error.message());
                false
            }
        }
    }

    fn complain(&mut self, key: &str, value: Option<&Value>, reason: &str) {
        let value = value.map(ToString::to_string);
        self.problems.push(Problem { key: key.to_owned(), value, reason: reason.trim().to_owned() });
    }

    /// Adds a problem that was found by whoever looked at several sections.
    pub fn problem(&mut self, key: &str, reason: &str) {
        self.complain(key, None, reason);
    }

    /// Ends reading; sections that nobody asked for are problems too. Returns what file, environment and defaults come to.
    ///
    /// # Errors
    /// Everything that is wrong, together.
    pub fn finish(mut self) -> Result<Table, ConfigError> {
        for (name, _) in std::mem::take(&mut self.table) {
            self.complain(&name, None, "no such section");
        }
        if self.problems.is_empty() {
            Ok(self.effective)
        } else {
            Err(ConfigError { file: self.file, problems: self.problems })
        }
    }
}

/// Sets a key below some tables, which replace whatever stands in their place.
fn insert(table: &mut Table, sections: &[String], key: &str, value: Value) {
    let Some((section, rest)) = sections.split_first() else {
        table.insert(key.to_owned(), value);
        return;
    };
    let slot = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    if !slot.is_table() {
        *slot = Value::Table(Table::new());
    }
    if let Value::Table(inner) = slot {
        insert(inner, rest, key, value);
    }
}

fn parse_value(text: &str) -> Value {
    let as_toml = format!("value = {text}").parse::<Table>();
    as_toml.ok().and_then(|mut table| table.remove("value")).unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        listen: String,
        connections_max: u32,
    }

    impl Section for Sample {
        fn problems(&self) -> Vec<(&'static str, String)> {
            let zero = self.connections_max == 0;
            zero.then(|| ("connections_max", "expected at least 1".to_owned())).into_iter().collect()
        }
    }

    fn load(text: &str, variables: &[(&str, &str)]) -> (Sample, Result<Table, ConfigError>) {
        let mut loader = Loader::new("node.toml".into(), text.parse().expect("the sample is TOML"));
        loader.overlay(variables.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        let sample = loader.section("ingress");
        (sample, loader.finish())
    }

    #[test]
    fn the_environment_is_laid_over_the_file() {
        let text = "[ingress]\nlisten = \"a\"\nconnections_max = 1";
        let variables =
            [("POSTROAD__INGRESS__CONNECTIONS_MAX", "7"), ("POSTROAD__INGRESS__LISTEN", "[::]:25")];
        let (sample, result) = load(text, &variables);
        assert_eq!(sample, Sample { listen: "[::]:25".into(), connections_max: 7 });
        assert!(result.is_ok());
    }

    #[test]
    fn every_problem_is_reported_with_file_key_value_and_reason() {
        let text =
            "[ingress]\nlisten = 7\nconnections_max = \"many\"\nlisen = \"x\"\n[ingres]\nlisten = \"y\"";
        let report = load(text, &[]).1.unwrap_err();
        let keys: Vec<&str> = report.problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["ingress.connections_max", "ingress.lisen", "ingress.listen", "ingres"]);
        let text = report.to_string();
        assert!(text.contains("node.toml: `ingress.listen` = 7: invalid type: integer `7`"), "{text}");
        assert!(text.contains("`ingress.lisen` = \"x\": unknown field `lisen`"), "{text}");
        assert!(text.contains("`ingres`: no such section"), "{text}");
    }

    #[test]
    fn a_value_that_is_well_formed_and_wrong_is_a_problem() {
        let report = load("[ingress]\nconnections_max = 0", &[]).1.unwrap_err();
        assert!(report.to_string().contains("`ingress.connections_max`: expected at least 1"), "{report}");
    }
}
