//! What differs between two readings of the same file.

use toml::Value;

use crate::{Kind, SettingValue};

/// A setting with another value than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Section and key.
    pub key: String,
    /// A running process applies the new value.
    pub reload: bool,
}

/// Returns the settings that differ, in the order of their declarations.
#[must_use]
pub fn changes<T: SettingValue>(old: &T, new: &T) -> Vec<Change> {
    let mut found = Vec::new();
    compare("", &T::kind(), old.write().as_ref(), new.write().as_ref(), &mut found);
    found
}

fn compare(path: &str, kind: &Kind, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<Change>) {
    let Kind::Table(settings) = kind else { return };
    for setting in settings {
        let key = if path.is_empty() { setting.name.to_owned() } else { format!("{path}.{}", setting.name) };
        let value = |table: Option<&Value>| table.and_then(|table| table.get(setting.name)).cloned();
        let (old, new) = (value(old), value(new));
        if matches!(setting.kind, Kind::Table(_)) {
            compare(&key, &setting.kind, old.as_ref(), new.as_ref(), found);
        } else if old != new {
            found.push(Change { key, reload: setting.reload });
        }
    }
}
