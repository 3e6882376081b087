//! A declaration as data, for everything that speaks about settings: errors, schema and reference page.

use std::fmt;

use toml::Value;

/// What is declared about one setting.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The key in its table.
    pub name: &'static str,
    /// What it does: the doc comment of its declaration.
    pub doc: String,
    /// What values look like.
    pub kind: Kind,
    /// The value when it is left out; `None` for one that then does not exist, or must be given.
    pub default: Option<Value>,
    /// It must be given.
    pub required: bool,
    /// No value is smaller.
    pub min: Option<Value>,
    /// No value is larger.
    pub max: Option<Value>,
    /// A running process applies a new value on SIGHUP; other settings need a restart.
    pub reload: bool,
}

/// What values of a setting look like.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Integer,
    /// A number with a fraction.
    Fraction,
    /// A number of bytes, as `"25MiB"` or as a plain number.
    Size,
    /// A duration, as `"30s"`.
    Duration,
    /// Text of some form.
    Text {
        /// What it is, such as `an address and port`.
        what: &'static str,
        /// A text of that form.
        example: &'static str,
    },
    /// One of some words.
    Choice(&'static [Choice]),
    /// A list.
    List(Box<Kind>),
    /// A table of settings.
    Table(Vec<Setting>),
}

/// One of the words that a setting may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The word.
    pub name: &'static str,
    /// What it means.
    pub doc: &'static str,
}

impl Kind {
    /// Returns the settings of a table, or of the tables in a list.
    #[must_use]
    pub fn settings(&self) -> Option<&[Setting]> {
        match self {
            Self::Table(settings) => Some(settings),
            Self::List(kind) => kind.settings(),
            _ => None,
        }
    }
}

impl Setting {
    /// Says what was expected where a value is wrong.
    #[must_use]
    pub fn expected(&self) -> String {
        let Self { kind, min, max, .. } = self;
        match (min, max) {
            (Some(min), Some(max)) => format!("expected {kind}, {} to {}", shown(min), shown(max)),
            (Some(min), None) => format!("expected {kind}, at least {}", shown(min)),
            (None, Some(max)) => format!("expected {kind}, at most {}", shown(max)),
            (None, None) => format!("expected {kind}"),
        }
    }
}

/// A bound as a person reads it: without quotes.
pub(crate) fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What is expected, as in "expected a whole number".
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("`true` or `false`"),
            Self::Integer => f.write_str("a whole number"),
            Self::Fraction => f.write_str("a number"),
            Self::Size => f.write_str("a size such as \"25MiB\""),
            Self::Duration => f.write_str("a duration such as \"30s\""),
            Self::Text { what, example } => write!(f, "{what} such as \"{example}\""),
            Self::Choice(choices) => {
                let names: Vec<String> =
                    choices.iter().map(|choice| format!("\"{}\"", choice.name)).collect();
                match names.split_last() {
                    Some((last, rest)) if !rest.is_empty() => write!(f, "{} or {last}", rest.join(", ")),
                    _ => f.write_str(&names.concat()),
                }
            }
            Self::List(kind) => write!(f, "a list, each {kind}"),
            Self::Table(_) => f.write_str("a table"),
        }
    }
}
