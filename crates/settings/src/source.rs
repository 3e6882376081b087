//! Where a configuration comes from: a file, and the environment.

use std::path::{Path, PathBuf};

use crate::{Problem, Problems, Reading, SettingValue, document};

/// A configuration file with the environment that it is read in.
#[derive(Clone, Debug)]
pub struct Source {
    file: PathBuf,
    variables: Vec<(String, String)>,
    other_sections: Vec<&'static str>,
    open_files: bool,
}

impl Source {
    /// Names a file, with the environment of this process.
    #[must_use]
    pub fn new(file: &Path) -> Self {
        // What is not Unicode cannot be a setting.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            file: file.to_owned(),
            variables: std::env::vars_os().filter_map(text).collect(),
            other_sections: Vec::new(),
            open_files: false,
        }
    }

    /// Takes these variables instead of the environment of this process.
    #[must_use]
    pub fn with_variables(self, variables: Vec<(String, String)>) -> Self {
        Self { variables, ..self }
    }

    /// Ignores environment variables of these sections, which files of other roles have.
    #[must_use]
    pub fn ignoring(self, other_sections: Vec<&'static str>) -> Self {
        Self { other_sections, ..self }
    }

    /// Opens the files that the configuration names as well, as `config check` does.
    #[must_use]
    pub fn opening_files(self) -> Self {
        Self { open_files: true, ..self }
    }

    /// Reads everything, and returns it with all that is wrong; the value may be used when that is nothing.
    #[must_use]
    pub fn read<T: SettingValue + Default>(&self) -> (T, Problems) {
        let mut problems = Problems::new(&self.file);
        let text = match std::fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(error) => {
                let reason = format!("cannot be read: {error}");
                problems.add(Problem { origin: None, key: String::new(), value: None, reason });
                return (T::default(), problems);
            }
        };
        let (mut table, wrong) = document::parse(&text);
        wrong.into_iter().for_each(|problem| problems.add(problem));
        document::overlay(&mut table, &self.variables, &self.other_sections);
        let given = document::Given { item: document::Item::Table(table), ..document::Given::nothing() };
        // A relative path is meant from the file that names it, wherever the command was started.
        let base = std::path::absolute(&self.file).unwrap_or_else(|_| self.file.clone());
        let base = base.parent().unwrap_or(Path::new("/"));
        let mut reading = Reading::new(base, self.open_files, &self.other_sections, &mut problems);
        let value = T::read(&given, &mut reading).unwrap_or_default();
        (value, problems)
    }
}
