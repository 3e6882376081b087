//! JSON Schema (2020-12) of a configuration file, for editors and for checks before a rollout.

use serde_json::{Map, Value, json};

use crate::{Choice, Kind, Setting, SettingValue};

/// Returns the schema of a configuration file.
#[must_use]
pub fn json_schema<T: SettingValue>(title: &str) -> Value {
    let mut schema = kind(&T::kind());
    schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".to_owned(), json!(title));
    Value::Object(schema)
}

fn kind(kind: &Kind) -> Map<String, Value> {
    let value = match kind {
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Integer => json!({ "type": "integer", "minimum": 0 }),
        Kind::Fraction => json!({ "type": "number" }),
        Kind::Size => {
            json!({ "type": ["string", "integer"], "pattern": "^[0-9]+ *([KMGT]iB)?$", "minimum": 0 })
        }
        Kind::Duration => json!({ "type": "string", "pattern": "^[0-9]+ *(ms|s|m|h|d)$" }),
        Kind::Text { example, .. } => json!({ "type": "string", "examples": [example] }),
        Kind::Choice(choices) => json!({ "oneOf": choices.iter().map(choice).collect::<Vec<_>>() }),
        Kind::List(items) => json!({ "type": "array", "items": self::kind(items) }),
        Kind::Table(settings) => return table(settings),
    };
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn choice(choice: &Choice) -> Value {
    json!({ "const": choice.name, "description": choice.doc.trim() })
}

fn table(settings: &[Setting]) -> Map<String, Value> {
    let properties: Map<String, Value> =
        settings.iter().map(|setting| (setting.name.to_owned(), Value::Object(property(setting)))).collect();
    let needed = |setting: &&Setting| setting.required || needs_something(&setting.kind);
    let required: Vec<&str> = settings.iter().filter(needed).map(|setting| setting.name).collect();
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), Value::Object(properties));
    schema.insert("additionalProperties".to_owned(), json!(false));
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    schema
}

/// A table that holds a required setting cannot be left out.
fn needs_something(kind: &Kind) -> bool {
    match kind {
        Kind::Table(settings) => {
            settings.iter().any(|setting| setting.required || needs_something(&setting.kind))
        }
        _ => false,
    }
}

fn property(setting: &Setting) -> Map<String, Value> {
    let mut schema = kind(&setting.kind);
    schema.insert("description".to_owned(), json!(setting.doc));
    if let Some(default) = &setting.default {
        schema.insert("default".to_owned(), plain(default));
    }
    // JSON Schema has no order of sizes and durations: there the bounds are only said.
    let keys = match setting.kind {
        Kind::Integer | Kind::Fraction => ["minimum", "maximum"],
        _ => ["x-minimum", "x-maximum"],
    };
    for (key, bound) in keys.into_iter().zip([&setting.min, &setting.max]) {
        if let Some(bound) = bound {
            schema.insert(key.to_owned(), plain(bound));
        }
    }
    if setting.reload {
        schema.insert("x-reload".to_owned(), json!(true));
    }
    schema
}

fn plain(value: &toml::Value) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}
