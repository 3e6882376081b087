//! The reference of settings in Markdown.

use std::fmt::Write;

use crate::{Kind, Setting, setting::shown};

/// The files that a section is in, with its settings in each.
type Section<'a> = (&'static str, Vec<(&'a str, &'a [Setting])>);

/// Returns a heading and a table for each section of some roles' files.
#[must_use]
pub fn reference(files: &[(&str, Kind)]) -> String {
    let mut out = String::new();
    let sections = sections(files);
    out.push_str("\n| role | sections |\n|---|---|\n");
    for (role, file) in files {
        let names: Vec<String> = file
            .settings()
            .unwrap_or_default()
            .iter()
            .map(|section| format!("[{0}](#{0})", section.name))
            .collect();
        let _ = writeln!(out, "| {role} | {} |", names.join(", "));
    }
    for (name, within) in &sections {
        section(&mut out, name, within);
    }
    out
}

fn sections<'a>(files: &'a [(&str, Kind)]) -> Vec<Section<'a>> {
    let mut sections: Vec<Section<'a>> = Vec::new();
    for (role, file) in files {
        for setting in file.settings().unwrap_or_default() {
            let within = (*role, setting.kind.settings().unwrap_or_default());
            match sections.iter_mut().find(|(name, _)| *name == setting.name) {
                Some((_, roles)) => roles.push(within),
                None => sections.push((setting.name, vec![within])),
            }
        }
    }
    sections
}

/// A setting that only some of the roles with this section have says which.
fn section(out: &mut String, name: &str, within: &[(&str, &[Setting])]) {
    let mut rows: Vec<(Setting, Vec<&str>)> = Vec::new();
    for (role, settings) in within {
        for setting in *settings {
            match rows.iter_mut().find(|(known, _)| known.name == setting.name) {
                Some((_, roles)) => roles.push(role),
                None => rows.push((setting.clone(), vec![role])),
            }
        }
    }
    let settings: Vec<Setting> = rows
        .into_iter()
        .map(|(mut setting, roles)| {
            if roles.len() < within.len() {
                let _ = write!(setting.doc, " Only for {}.", roles.join(", "));
            }
            setting
        })
        .collect();
    table(out, name, &settings, false);
}

fn table(out: &mut String, path: &str, settings: &[Setting], is_list: bool) {
    let heading = if is_list { format!("[[{path}]]") } else { format!("[{path}]") };
    let _ = write!(out, "\n## {heading}\n\n");
    let plain = |setting: &&Setting| !matches!(setting.kind, Kind::Table(_));
    if settings.iter().any(|setting| plain(&setting)) {
        out.push_str("| key | default | values | |\n|---|---|---|---|\n");
    }
    for setting in settings.iter().filter(plain) {
        row(out, setting);
    }
    for setting in settings {
        if let Some(inner) = setting.kind.settings() {
            let is_list = matches!(setting.kind, Kind::List(_));
            table(out, &format!("{path}.{}", setting.name), inner, is_list);
        }
    }
}

fn row(out: &mut String, setting: &Setting) {
    let default = match &setting.default {
        Some(default) => format!("`{default}`"),
        None if setting.required => "required".to_owned(),
        None => "–".to_owned(),
    };
    let reload = if setting.reload { " Can be changed while running." } else { "" };
    let Setting { name, doc, .. } = setting;
    let _ = writeln!(out, "| `{name}` | {default} | {} | {doc}{reload} |", values(setting));
}

fn values(setting: &Setting) -> String {
    let bounds = match (&setting.min, &setting.max) {
        (Some(min), Some(max)) => format!(", {} to {}", shown(min), shown(max)),
        (Some(min), None) => format!(", at least {}", shown(min)),
        _ => String::new(),
    };
    format!("{}{bounds}", kind(&setting.kind))
}

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Flag => "`true`, `false`".to_owned(),
        Kind::Integer => "number".to_owned(),
        Kind::Fraction => "fraction".to_owned(),
        Kind::Size => "size".to_owned(),
        Kind::Duration => "duration".to_owned(),
        Kind::Text { what, .. } => (*what).to_owned(),
        Kind::Choice(choices) => {
            let lines: Vec<String> =
                choices.iter().map(|choice| format!("`{}`: {}", choice.name, choice.doc.trim())).collect();
            lines.join("<br>")
        }
        Kind::List(items) if items.settings().is_some() => "list of tables, below".to_owned(),
        Kind::List(items) => format!("list: {}", self::kind(items)),
        Kind::Table(_) => "table".to_owned(),
    }
}
