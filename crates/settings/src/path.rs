//! Paths. Each says what it is for, so that `config check` can open it.

use std::{
    fmt, fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use toml::Value;

use crate::{Given, Kind, Reading, SettingValue, Wrong};

/// A file that must be there and is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadableFile(pub PathBuf);

/// A directory that files are made in; what uses it makes it where it does not exist, with those above it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WritableDirectory(pub PathBuf);

/// A file that is written; what uses it makes it where it does not exist, with the directories above it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WritableFile(pub PathBuf);

macro_rules! paths {
    ($($type:ident: $what:literal, $example:literal, $open:ident;)*) => {$(
        impl SettingValue for $type {
            fn kind() -> Kind {
                Kind::Text { what: $what, example: $example }
            }

            fn placeholder() -> Self {
                Self::default()
            }

            fn read(given: &Given, reading: &mut Reading<'_>) -> Result<Self, Wrong> {
                let path = given.scalar(|value| value.as_str().filter(|path| !path.is_empty()).map(str::to_owned))?;
                let path = reading.base().join(path);
                if reading.opens_files() {
                    $open(&path).map_err(|reason| Wrong::Because(reason_for(&path, &reason)))?;
                }
                Ok(Self(path))
            }

            fn write(&self) -> Option<Value> {
                Some(Value::String(self.0.display().to_string()))
            }
        }

        impl AsRef<Path> for $type {
            fn as_ref(&self) -> &Path {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.display().fmt(f)
            }
        }
    )*};
}

paths! {
    ReadableFile: "the path of a file", "server.pem", open_to_read;
    WritableDirectory: "the path of a directory", "/var/lib/postroad", can_make_files;
    WritableFile: "the path of a file", "/var/log/postroad/mail.log", can_write;
}

/// The path is said too, since the one in the file may be relative.
fn reason_for(path: &Path, reason: &str) -> String {
    format!("`{}` {reason}", path.display())
}

fn open_to_read(path: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot be read: {error}");
    let mut file = fs::File::open(path).map_err(failed)?;
    // A directory opens, and only then refuses to be read.
    file.read(&mut [0]).map(drop).map_err(failed)
}

/// A directory that does not exist yet is made in the nearest one that does.
fn can_make_files(path: &Path) -> Result<(), String> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    if !existing.is_dir() {
        return Err(format!("cannot be used: `{}` is not a directory", existing.display()));
    }
    may(existing, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| match existing == path {
        true => format!("is not writable: {error}"),
        false => format!("cannot be created in `{}`: {error}", existing.display()),
    })
}

fn can_write(path: &Path) -> Result<(), String> {
    if path.is_dir() {
        return Err("is a directory; expected a file".to_owned());
    }
    match path.parent() {
        Some(directory) if !path.exists() => can_make_files(directory)
            .map_err(|reason| format!("cannot be created: `{}` {reason}", directory.display())),
        _ => may(path, Access::WRITE_OK).map_err(|error| format!("is not writable: {error}")),
    }
}

/// Asks for the effective user, without changing anything.
fn may(path: &Path, access: Access) -> io::Result<()> {
    accessat(CWD, path, access, AtFlags::EACCESS).map_err(io::Error::from)
}
