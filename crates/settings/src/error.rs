//! Everything that is wrong with a configuration, reported together.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use crate::{Given, Origin};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was given; `None` for what is missing.
    pub origin: Option<Origin>,
    /// Section and key; empty for the file as a whole.
    pub key: String,
    /// The value that was given, where there is one.
    pub value: Option<String>,
    /// What was expected, or what is wrong.
    pub reason: String,
}

/// What has been found so far in a file and the environment.
#[derive(Debug)]
pub struct Problems {
    file: PathBuf,
    found: Vec<Problem>,
    /// What was given for each key, for problems that are found later.
    given: BTreeMap<String, (Option<Origin>, String)>,
}

impl Problems {
    pub(crate) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), found: Vec::new(), given: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, problem: Problem) {
        self.found.push(problem);
    }

    /// Remembers what was given for a key.
    pub(crate) fn remember(&mut self, key: &str, given: &Given) {
        self.given.insert(key.to_owned(), (given.origin.clone(), given.shown()));
    }

    /// Adds a problem that shows only when values are used.
    pub fn blame(&mut self, key: &str, reason: impl fmt::Display) {
        let (origin, value) = match self.given.get(key) {
            Some((origin, value)) => (origin.clone(), Some(value.clone())),
            None => (None, None),
        };
        self.add(Problem { origin, key: key.to_owned(), value, reason: reason.to_string() });
    }

    /// Returns true while nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Returns true when something is wrong with this key or what is below it; with the file as a whole for an empty key.
    #[must_use]
    pub fn concern(&self, key: &str) -> bool {
        let below = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
        self.found.iter().any(|problem| problem.key.strip_prefix(key).is_some_and(below))
    }

    /// Ends the search.
    ///
    /// # Errors
    /// Everything that was found.
    pub fn finish(mut self) -> Result<(), ConfigError> {
        if self.found.is_empty() {
            return Ok(());
        }
        self.found.sort_by(|a, b| a.origin.cmp(&b.origin));
        Err(ConfigError { file: self.file, problems: self.found })
    }
}

/// All that is wrong with a configuration.
#[derive(Debug)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// At least one, in the order of the file.
    pub problems: Vec<Problem>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.problems.len() {
            1 => write!(f, "1 error in the configuration `{file}`")?,
            count => write!(f, "{count} errors in the configuration `{file}`")?,
        }
        self.problems.iter().try_for_each(|problem| {
            write!(f, "\n  {file}")?;
            problem.fmt(f)
        })
    }
}

/// Follows the name of the file.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, key, value, reason } = self;
        match origin {
            Some(Origin::Line(line)) => write!(f, ":{line}: ")?,
            Some(Origin::Variable(name)) => write!(f, ": environment variable `{name}`: ")?,
            None => f.write_str(": ")?,
        }
        if !key.is_empty() {
            write!(f, "`{key}`")?;
            match value {
                Some(value) => write!(f, " = {value}: ")?,
                None => f.write_str(": ")?,
            }
        }
        f.write_str(reason)
    }
}
