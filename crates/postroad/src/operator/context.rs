//! Contexts: the clusters that this user works with, by name, in one file that `postroad context` changes.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use postroad_settings::HostPort;
use serde::{Deserialize, Serialize};

use crate::{
    cli::{ContextAddArgs, ContextCommand},
    config,
    output::{Column, Row, Screen, Shown, table, text},
};

/// The variable that names the file, for tests and for several sets of contexts.
const FILE_VARIABLE: &str = "POSTROAD_CONTEXTS";

/// The longest name of a context.
const NAME_CHARACTERS_MAX: usize = 64;

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contexts {
    /// The context of commands that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) current: Option<String>,
    #[serde(default, rename = "context")]
    by_name: BTreeMap<String, Context>,
}

/// How one cluster is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Context {
    /// The operator's configuration; without it the connection is not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) config: Option<PathBuf>,
    /// The queue nodes to ask, instead of those in the configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    server: Vec<String>,
}

impl Context {
    /// Returns the queue nodes to ask.
    pub(super) fn servers(&self) -> anyhow::Result<Vec<HostPort>> {
        let parse = |server: &String| server.parse().with_context(|| format!("`server` = `{server}`"));
        self.server.iter().map(parse).collect()
    }
}

impl Contexts {
    /// Reads the file of this user; there are none where it does not exist.
    pub(super) fn load() -> anyhow::Result<Self> {
        match file() {
            Some(file) => Self::read(&file),
            None => Ok(Self::default()),
        }
    }

    fn read(file: &Path) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            text => text.with_context(|| format!("cannot read the contexts in `{}`", file.display()))?,
        };
        toml::from_str(&text).with_context(|| format!("`{}` is not a file of contexts", file.display()))
    }

    /// Replaces the file whole, so that a crash leaves the old one or the new one.
    fn write(&self, file: &Path) -> anyhow::Result<()> {
        let directory = file.parent().unwrap_or(Path::new("."));
        let write = || -> anyhow::Result<()> {
            fs::create_dir_all(directory)?;
            let mut new = tempfile::NamedTempFile::new_in(directory)?;
            new.write_all(toml::to_string(self)?.as_bytes())?;
            new.as_file().sync_all()?;
            new.persist(file)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write the contexts to `{}`", file.display()))
    }

    pub(super) fn get(&self, name: &str) -> anyhow::Result<&Context> {
        self.by_name.get(name).with_context(|| {
            let known: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
            format!("context `{name}` does not exist; there are: {}", known.join(", "))
        })
    }

    fn add(&mut self, name: &str, context: Context) {
        self.by_name.insert(name.to_owned(), context);
        // Somebody with one cluster need not name it.
        self.current.get_or_insert_with(|| name.to_owned());
    }

    fn select(&mut self, name: &str) -> anyhow::Result<()> {
        self.get(name)?;
        self.current = Some(name.to_owned());
        Ok(())
    }

    fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        self.get(name)?;
        self.by_name.remove(name);
        self.current.take_if(|current| current == name);
        Ok(())
    }
}

/// The variable's file, or the one in the user's configuration directory.
fn file() -> Option<PathBuf> {
    let path = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    path(FILE_VARIABLE).or_else(|| {
        let config = path("XDG_CONFIG_HOME").or_else(|| path("HOME").map(|home| home.join(".config")));
        config.map(|config| config.join("postroad/contexts.toml"))
    })
}

/// Runs `postroad context`.
///
/// # Errors
/// The file is invalid or cannot be written, or the context does not exist.
pub fn context(command: &ContextCommand) -> anyhow::Result<String> {
    let file = file().context("no home directory: set `HOME`, `XDG_CONFIG_HOME` or `POSTROAD_CONTEXTS`")?;
    let mut contexts = Contexts::read(&file)?;
    let done = match command {
        ContextCommand::List(output) => return output.output.show(&Listed::of(&contexts)),
        ContextCommand::Use { name } => {
            contexts.select(name)?;
            format!("`{name}` is the current context\n")
        }
        ContextCommand::Add(args) => add(&mut contexts, args)?,
        ContextCommand::Remove { name } => {
            contexts.remove(name)?;
            format!("context `{name}` was removed\n")
        }
    };
    contexts.write(&file)?;
    Ok(done)
}

fn add(contexts: &mut Contexts, args: &ContextAddArgs) -> anyhow::Result<String> {
    let ContextAddArgs { name, config, server, replace } = args;
    if contexts.by_name.contains_key(name) && !replace {
        bail!("context `{name}` exists; `--replace` replaces it");
    }
    ensure!(config.is_some() || !server.is_empty(), "a context needs `--config` or `--server`");
    let config = match config {
        Some(config) => {
            config::load_operator(config)?;
            Some(std::path::absolute(config)?)
        }
        None => None,
    };
    let server = server.iter().map(ToString::to_string).collect();
    contexts.add(name, Context { config, server });
    if contexts.current.as_deref() == Some(name) {
        return Ok(format!("context `{name}` was added and is the current one\n"));
    }
    Ok(format!("context `{name}` was added; `postroad context use {name}` makes it the current one\n"))
}

/// Reads the name of a context.
///
/// # Errors
/// It could not be a key of the file, or a word of a command.
pub(crate) fn context_name(text: &str) -> Result<String, String> {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=NAME_CHARACTERS_MAX).contains(&text.len()) && text.chars().all(is_valid) {
        return Ok(text.to_owned());
    }
    Err(format!("expected letters, digits, `-`, `_` and `.`, at most {NAME_CHARACTERS_MAX}"))
}

/// The contexts of a user.
#[derive(Debug, Serialize)]
struct Listed {
    contexts: Vec<ListedContext>,
}

#[derive(Debug, Serialize)]
struct ListedContext {
    name: String,
    current: bool,
    config: Option<PathBuf>,
    server: Vec<String>,
}

impl Listed {
    fn of(contexts: &Contexts) -> Self {
        let one = |(name, context): (&String, &Context)| ListedContext {
            name: name.clone(),
            current: contexts.current.as_ref() == Some(name),
            config: context.config.clone(),
            server: context.server.clone(),
        };
        Self { contexts: contexts.by_name.iter().map(one).collect() }
    }
}

impl Shown for Listed {
    fn text(&self, screen: Screen) -> String {
        table(&self.contexts, screen, "no context; `postroad context add` adds one")
    }
}

impl Row for ListedContext {
    const COLUMNS: &'static [Column] = &[text("CURRENT"), text("NAME"), text("SERVER"), text("CONFIG")];

    fn cells(&self) -> Vec<String> {
        let config = self.config.as_ref().map_or_else(String::new, |config| config.display().to_string());
        let current = if self.current { "*" } else { " " };
        vec![current.to_owned(), self.name.clone(), self.server.join(","), config]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(server: &str) -> Context {
        Context { config: None, server: vec![server.to_owned()] }
    }

    #[test]
    fn the_first_context_is_the_current_one_until_another_is_used_or_it_is_removed() {
        let mut contexts = Contexts::default();
        contexts.add("test", context("127.0.0.1:7070"));
        contexts.add("prod-1", context("127.0.0.1:7400"));
        assert_eq!(contexts.current.as_deref(), Some("test"));
        contexts.select("prod-1").unwrap();
        let missing = contexts.select("prod").unwrap_err().to_string();
        assert_eq!(missing, "context `prod` does not exist; there are: prod-1, test");
        assert_eq!(contexts.current.as_deref(), Some("prod-1"));
        contexts.remove("test").unwrap();
        assert_eq!(contexts.current.as_deref(), Some("prod-1"));
        contexts.remove("prod-1").unwrap();
        assert_eq!(contexts, Contexts::default());
    }

    #[test]
    fn contexts_are_read_back_as_they_are_written_and_a_broken_file_names_the_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("new/contexts.toml");
        assert_eq!(Contexts::read(&file).unwrap(), Contexts::default());
        let mut contexts = Contexts::default();
        contexts.add(
            "prod",
            Context { config: Some("/etc/postroad/operator.toml".into()), ..context("[::1]:1") },
        );
        contexts.write(&file).unwrap();
        assert_eq!(Contexts::read(&file).unwrap(), contexts);
        fs::write(&file, "current = 'x'\n[context.x]\nservers = []\n").unwrap();
        let error = format!("{:#}", Contexts::read(&file).unwrap_err());
        for part in
            ["contexts.toml` is not a file of contexts", "line 3", "unknown field `servers`", "`server`"]
        {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_context_has_a_name_that_needs_no_quotes() {
        for name in ["prod", "eu-1.mail_test"] {
            assert_eq!(context_name(name).as_deref(), Ok(name));
        }
        for name in ["", "a b", "a'b", "ä", "a\n", &"a".repeat(65)] {
            assert!(context_name(name).is_err(), "{name:?}");
        }
    }
}
