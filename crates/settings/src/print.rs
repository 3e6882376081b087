//! What file, environment and defaults come to, as TOML in the order of the declarations.

use std::fmt::Write;

use toml::Value;

use crate::{Kind, Setting, SettingValue};

/// Returns every setting with its value; one that does not exist is a comment.
#[must_use]
pub fn print<T: SettingValue>(file: &T) -> String {
    let mut out = String::new();
    if let (Kind::Table(sections), Some(value)) = (T::kind(), file.write()) {
        table(&mut out, "", &sections, &value);
    }
    out
}

fn table(out: &mut String, path: &str, settings: &[Setting], value: &Value) {
    let (tables, plain): (Vec<&Setting>, Vec<&Setting>) =
        settings.iter().partition(|setting| matches!(setting.kind, Kind::Table(_)));
    if !path.is_empty() {
        let gap = if out.is_empty() { "" } else { "\n" };
        let _ = writeln!(out, "{gap}[{path}]");
    }
    for setting in plain {
        let _ = match value.get(setting.name) {
            Some(value) => writeln!(out, "{} = {value}", setting.name),
            None => writeln!(out, "# {} is not set", setting.name),
        };
    }
    for setting in tables {
        if let (Kind::Table(settings), Some(value)) = (&setting.kind, value.get(setting.name)) {
            let path =
                if path.is_empty() { setting.name.to_owned() } else { format!("{path}.{}", setting.name) };
            table(out, &path, settings, value);
        }
    }
}
