//! What was given: a TOML file, each value with its line, and the environment laid over it.

use std::collections::BTreeMap;

use toml::{
    Spanned, Value,
    de::{DeTable, DeValue},
};

use crate::{Problem, Wrong};

/// Overrides begin with this: `POSTROAD__INGRESS__CONNECTIONS_MAX=100`.
const PREFIX: &str = "POSTROAD__";

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// In this line of the file.
    Line(usize),
    /// In this environment variable.
    Variable(String),
}

/// A value as it was given.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    /// Where; `None` for a table that was left out.
    pub origin: Option<Origin>,
    /// What.
    pub item: Item,
    /// The text of the environment variable, which may be meant as text though it reads as something else.
    pub text: Option<String>,
}

/// What was given.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// Text, a number and so on.
    Scalar(Value),
    /// A list.
    List(Vec<Given>),
    /// A table.
    Table(BTreeMap<String, Given>),
}

impl Given {
    /// Stands for a table that was left out.
    #[must_use]
    pub fn nothing() -> Self {
        Self { origin: None, item: Item::Table(BTreeMap::new()), text: None }
    }

    /// Reads a single value.
    ///
    /// # Errors
    /// `parse` refuses it, or it is a list or a table.
    pub fn scalar<T>(&self, parse: impl Fn(&Value) -> Option<T>) -> Result<T, Wrong> {
        let value = match &self.item {
            Item::Scalar(value) => parse(value),
            _ => None,
        };
        let as_text = || self.text.clone().and_then(|text| parse(&Value::String(text)));
        value.or_else(as_text).ok_or(Wrong::Unexpected)
    }

    /// Returns the value as a person wrote it, in short.
    pub(crate) fn shown(&self) -> String {
        match &self.item {
            Item::Scalar(value) => value.to_string(),
            Item::List(items) if items.is_empty() => "[]".to_owned(),
            Item::List(_) => "[…]".to_owned(),
            Item::Table(_) => "{…}".to_owned(),
        }
    }
}

/// Reads TOML; everything that can be read is returned beside the errors of syntax.
pub(crate) fn parse(text: &str) -> (BTreeMap<String, Given>, Vec<Problem>) {
    let mut text = text.to_owned();
    let mut problems = Vec::new();
    let mut last_stop = 0;
    loop {
        let (table, mut errors) = DeTable::parse_recoverable(&text);
        errors.sort_by_key(|error| error.span().map(|span| span.start));
        let lines = Lines(&text);
        let mut stop = None;
        for error in errors {
            let line = error.span().map_or(0, |span| lines.of(span.start));
            // What comes before the last stop has been found already.
            if line <= last_stop || stop.is_some() {
                continue;
            }
            let reason = format!("not TOML: {}", error.message());
            problems.push(Problem {
                origin: Some(Origin::Line(line)),
                key: String::new(),
                value: None,
                reason,
            });
            stop = error.message().starts_with(STOPS).then_some(line);
        }
        let table = lines.table(table.get_ref());
        let Some(line) = stop else { return (table, problems) };
        blank(&mut text, line);
        last_stop = line;
    }
}

/// The one error after which toml gives up on the rest of the file.
const STOPS: &str = "key with no value";

/// Empties a line, so that the others keep their numbers.
fn blank(text: &mut String, line: usize) {
    let keep = |(number, content): (usize, &str)| match number + 1 == line {
        true if content.ends_with('\n') => "\n".to_owned(),
        true => String::new(),
        false => content.to_owned(),
    };
    *text = text.split_inclusive('\n').enumerate().map(keep).collect();
}

/// Finds the line of a place in the text.
struct Lines<'a>(&'a str);

impl Lines<'_> {
    fn of(&self, place: usize) -> usize {
        1 + self.0.as_bytes().iter().take(place).filter(|byte| **byte == b'\n').count()
    }

    fn table(&self, table: &DeTable<'_>) -> BTreeMap<String, Given> {
        let entry = |(key, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
            (key.get_ref().to_string(), self.given(key.span().start, value.get_ref()))
        };
        table.iter().map(entry).collect()
    }

    fn given(&self, place: usize, value: &DeValue<'_>) -> Given {
        let item = match value {
            DeValue::Table(table) => Item::Table(self.table(table)),
            DeValue::Array(items) => {
                Item::List(items.iter().map(|item| self.given(item.span().start, item.get_ref())).collect())
            }
            scalar => Item::Scalar(plain(scalar)),
        };
        Given { origin: Some(Origin::Line(self.of(place))), item, text: None }
    }
}

/// A number that does not fit stays text, which no setting takes for a number.
fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::String(number.to_string()), Value::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| Value::String(number.to_string()), Value::Float)
        }
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => Value::String(String::new()),
    }
}

/// Lays environment variables over what the file says, leaving out those of `other_sections`.
pub(crate) fn overlay(
    table: &mut BTreeMap<String, Given>,
    variables: &[(String, String)],
    other_sections: &[&str],
) {
    let mut ours: Vec<&(String, String)> =
        variables.iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    ours.sort();
    for (name, text) in ours {
        let path: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_lowercase).collect();
        if !other_sections.contains(&path[0].as_str()) {
            insert(table, &path, variable(name, text));
        }
    }
}

/// A variable is TOML, or text where it is none.
fn variable(name: &str, text: &str) -> Given {
    let origin = Some(Origin::Variable(name.to_owned()));
    let mut given = match DeValue::parse(text) {
        Ok(value) => Lines(text).given(0, value.get_ref()),
        Err(_) => Given { origin: None, item: Item::Scalar(Value::String(text.to_owned())), text: None },
    };
    given.text = Some(text.to_owned());
    from_variable(&mut given, &origin);
    given
}

/// Lines within a variable mean nothing.
fn from_variable(given: &mut Given, origin: &Option<Origin>) {
    given.origin.clone_from(origin);
    match &mut given.item {
        Item::Scalar(_) => {}
        Item::List(items) => items.iter_mut().for_each(|item| from_variable(item, origin)),
        Item::Table(table) => table.values_mut().for_each(|item| from_variable(item, origin)),
    }
}

/// Sets a value below some tables, which replace what is not a table.
fn insert(table: &mut BTreeMap<String, Given>, path: &[String], given: Given) {
    match path {
        [] => {}
        [key] => drop(table.insert(key.clone(), given)),
        [key, rest @ ..] => {
            let below = table.entry(key.clone()).or_insert_with(Given::nothing);
            if !matches!(below.item, Item::Table(_)) {
                // What was given for the whole value is gone, so its place is to blame for nothing.
                *below = Given::nothing();
            }
            below.origin = below.origin.take().or_else(|| given.origin.clone());
            if let Item::Table(below) = &mut below.item {
                insert(below, rest, given);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_knows_its_line() {
        let (table, problems) = parse("[a]\nb = 1\nc = [\n  { d = 2 },\n]\n\n[[a.e]]\nf = 3\n");
        assert_eq!(problems, []);
        let line = |given: &Given| given.origin.clone();
        let Item::Table(a) = &table["a"].item else { panic!("{table:?}") };
        let Item::List(c) = &a["c"].item else { panic!("{a:?}") };
        let Item::Table(c) = &c[0].item else { panic!("{c:?}") };
        let Item::List(e) = &a["e"].item else { panic!("{a:?}") };
        let Item::Table(e) = &e[0].item else { panic!("{e:?}") };
        let lines = [&a["b"], &a["c"], &c["d"], &e["f"]].map(line);
        assert_eq!(lines, [2, 3, 4, 8].map(|line| Some(Origin::Line(line))));
    }

    #[test]
    fn every_error_of_syntax_is_found() {
        let (table, problems) = parse("[a]\nb = \nc = 1\nc = 2\nd = \"x\n[e]\nf = 1\n");
        let lines: Vec<Option<Origin>> = problems.iter().map(|problem| problem.origin.clone()).collect();
        assert!(lines.len() >= 3, "{problems:?}");
        assert!(lines.contains(&Some(Origin::Line(2))), "{problems:?}");
        assert!(table.contains_key("e"), "{table:?}");
    }

    #[test]
    fn variables_are_toml_or_text_and_those_of_other_sections_are_left_out() {
        let mut table = BTreeMap::new();
        let variables = [
            ("POSTROAD__A__B", "[::]:25"),
            ("POSTROAD__A__C__D", "[{e = 1}]"),
            ("POSTROAD__OTHER__X", "1"),
            ("POSTROAD_PORT", "tcp://10.0.0.1:25"),
        ];
        let variables = variables.map(|(name, text)| (name.to_owned(), text.to_owned()));
        overlay(&mut table, &variables, &["other"]);
        assert_eq!(table.keys().collect::<Vec<_>>(), ["a"]);
        let Item::Table(a) = &table["a"].item else { panic!("{table:?}") };
        assert_eq!(a["b"].item, Item::Scalar(Value::String("[::]:25".to_owned())));
        let Item::Table(c) = &a["c"].item else { panic!("{a:?}") };
        let Item::List(d) = &c["d"].item else { panic!("{c:?}") };
        assert_eq!(d[0].origin, Some(Origin::Variable("POSTROAD__A__C__D".to_owned())));
    }
}
