//! Reads a policy file: every problem is found before any is reported, each with its line, key, value and what was expected.
//!
//! Every item is read by itself, and of an item that is wrong every key by itself, beside valid values for the keys that it needs.

use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_yaml_ng::{Mapping, Value};

use super::{
    CredentialPolicy, LimitsPolicy, MemberPolicy, Policy, PoolPolicy, RemovePolicy, RoutePolicy,
    SourcePolicy, TenantPolicy,
};

/// Characters of a value that an error shows.
const VALUE_CHARS_MAX: usize = 80;
/// Keys whose values are secret.
const SECRET_KEYS: &[&str] = &["api_key", "api_key_sha256", "password", "password_hash"];
const SECTIONS: &str = "`sources`, `pools`, `tenants`, `credentials`, `limits`, `routes` or `remove`";

/// A step from a node of the file to one within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The value of this key.
    Key(String),
    /// The item at this position.
    Index(usize),
}

/// Where a value is in the file, from the top.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place(pub Vec<Step>);

impl Place {
    /// Returns the place of an item of a section.
    #[must_use]
    pub fn item(section: &str, index: usize) -> Self {
        Self(vec![Step::Key(section.to_owned()), Step::Index(index)])
    }

    /// Returns the place of a key's value within this.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Key(key.to_owned()));
        Self(steps)
    }

    /// Returns the place of an item within this.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Index(index));
        Self(steps)
    }

    fn is_secret(&self) -> bool {
        let secret = |step: &Step| matches!(step, Step::Key(key) if SECRET_KEYS.contains(&key.as_str()));
        self.0.iter().any(secret)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if position == 0 => write!(f, "{key}")?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// One thing that is wrong with a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is.
    pub place: Place,
    /// What was expected.
    pub expected: String,
}

impl Problem {
    /// Returns a problem of the value at `place`.
    #[must_use]
    pub fn new(place: Place, expected: impl Into<String>) -> Self {
        Self { place, expected: expected.into() }
    }
}

/// Everything that is wrong with a policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    lines: Vec<String>,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problems = if self.lines.len() == 1 { "problem" } else { "problems" };
        write!(f, "the policy has {} {problems}; nothing was changed", self.lines.len())?;
        self.lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl std::error::Error for PolicyError {}

/// A policy file that was read.
#[derive(Clone, Debug)]
pub struct PolicyFile {
    name: String,
    text: String,
    root: Value,
    /// What it says.
    pub policy: Policy,
}

impl PolicyFile {
    /// Reads a policy file; `name` is how errors call it.
    ///
    /// # Errors
    /// Everything that can be seen to be wrong without the cluster.
    pub fn read(name: &str, text: &str) -> Result<Self, PolicyError> {
        let root = serde_yaml_ng::from_str(text).map_err(|error| syntax(name, &error))?;
        let mut file = Self { name: name.to_owned(), text: text.to_owned(), root, policy: Policy::default() };
        let mut reader = Reader::default();
        file.policy = reader.policy(&file.root);
        reader.problems.extend(file.policy.problems());
        if reader.problems.is_empty() { Ok(file) } else { Err(file.error(reader.problems)) }
    }

    /// Returns the error that names problems, in the order of the file.
    #[must_use]
    pub fn error(&self, problems: Vec<Problem>) -> PolicyError {
        let mut lines: Vec<(usize, String)> = problems.iter().map(|problem| self.line(problem)).collect();
        lines.sort();
        lines.dedup();
        PolicyError { lines: lines.into_iter().map(|(_, line)| line).collect() }
    }

    /// The line of a problem in the file, and the text that says so.
    fn line(&self, problem: &Problem) -> (usize, String) {
        let Problem { place, expected } = problem;
        let line = locate(&self.text, &place.0).unwrap_or(1);
        let value = value_at(&self.root, &place.0).and_then(|value| shown(value, place));
        let value = value.map(|value| format!(" = {value}")).unwrap_or_default();
        (line, format!("{}:{line}: `{place}`{value}: {expected}", self.name))
    }
}

fn syntax(name: &str, error: &serde_yaml_ng::Error) -> PolicyError {
    let line = error.location().map_or(1, |at| at.line());
    PolicyError { lines: vec![format!("{name}:{line}: expected YAML: {error}")] }
}

/// The value in one line; secrets and long values are not shown.
fn shown(value: &Value, place: &Place) -> Option<String> {
    if place.is_secret() {
        return Some("(not shown)".to_owned());
    }
    let text = match value {
        Value::Mapping(_) | Value::Sequence(_) | Value::Tagged(_) | Value::Null => return None,
        Value::String(text) => format!("`{text}`"),
        other => serde_yaml_ng::to_string(other).ok()?.trim().to_owned(),
    };
    let is_short = text.chars().count() <= VALUE_CHARS_MAX;
    is_short.then_some(text)
}

fn value_at<'v>(root: &'v Value, steps: &[Step]) -> Option<&'v Value> {
    steps.iter().try_fold(root, |value, step| match step {
        Step::Key(key) => value.get(key.as_str()),
        Step::Index(index) => value.get(*index),
    })
}

/// Returns the line of the value at `steps`, or of the deepest value on the way that exists.
fn locate(text: &str, steps: &[Step]) -> Option<usize> {
    (0..=steps.len()).rev().find_map(|depth| {
        let seek = Seek(&steps[..depth]);
        let error = seek.deserialize(serde_yaml_ng::Deserializer::from_str(text)).err()?;
        Some(error.location()?.line())
    })
}

/// Fails at the value that it seeks: the parser gives positions in errors only.
struct Seek<'s>(&'s [Step]);

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

/// A scalar is an error by default, which is what the last step wants.
impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the value that is sought")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((step, rest)) = self.0.split_first() else { return Err(A::Error::custom("found")) };
        while let Some(key) = map.next_key::<Value>()? {
            if matches!(step, Step::Key(wanted) if key.as_str() == Some(wanted)) {
                map.next_value_seed(Seek(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Some((step, rest)) = self.0.split_first() else { return Err(A::Error::custom("found")) };
        let mut position = 0;
        loop {
            let wanted = *step == Step::Index(position);
            let more = if wanted {
                items.next_element_seed(Seek(rest))?.is_some()
            } else {
                items.next_element::<IgnoredAny>()?.is_some()
            };
            if !more {
                return Ok(());
            }
            position += 1;
        }
    }
}

/// A key whose value is a list of items of their own, and how to read it.
type List = (&'static str, fn(&mut Reader, &Value, &Place));

/// An item of a section, as the file has it.
trait Section: DeserializeOwned {
    /// A valid item with the keys that every one needs, and no others.
    const SAMPLE: &str;
    /// Its list, if it has one.
    const LIST: Option<List> = None;
}

impl Section for SourcePolicy {
    const SAMPLE: &str = "{name: a, helo: a.example}";
}

impl Section for PoolPolicy {
    const SAMPLE: &str = "{name: a, sources: []}";
    const LIST: Option<List> =
        Some(("sources", |reader, value, place| drop(reader.items::<MemberPolicy>(value, place))));
}

impl Section for MemberPolicy {
    const SAMPLE: &str = "{source: a}";
}

impl Section for TenantPolicy {
    const SAMPLE: &str = "{name: a, pool: a}";
}

impl Section for CredentialPolicy {
    const SAMPLE: &str = "{name: a, tenant: a}";
}

impl Section for LimitsPolicy {
    const SAMPLE: &str = "{name: a}";
}

impl Section for RoutePolicy {
    const SAMPLE: &str = "{domain: a.example, host: a.example, port: 25}";
}

impl Section for RemovePolicy {
    const SAMPLE: &str = "{}";
}

#[derive(Debug, Default)]
struct Reader {
    problems: Vec<Problem>,
}

impl Reader {
    fn policy(&mut self, root: &Value) -> Policy {
        let mut policy = Policy::default();
        let sections = match root {
            Value::Null => return policy,
            Value::Mapping(sections) => sections,
            _ => {
                self.problem(Place::default(), format!("expected the sections {SECTIONS}"));
                return policy;
            }
        };
        for (key, value) in sections {
            let name = key_text(key);
            let place = Place::default().key(&name);
            match name.as_str() {
                "sources" => policy.sources = self.items(value, &place),
                "pools" => policy.pools = self.items(value, &place),
                "tenants" => policy.tenants = self.items(value, &place),
                "credentials" => policy.credentials = self.items(value, &place),
                "limits" => policy.limits = self.items(value, &place),
                "routes" => policy.routes = self.items(value, &place),
                "remove" if value.is_null() => {}
                "remove" => policy.remove = self.item(value, &place).unwrap_or_default(),
                _ => self.problem(place, format!("no such section: expected {SECTIONS}")),
            }
        }
        policy
    }

    fn items<T: Section>(&mut self, value: &Value, place: &Place) -> Vec<T> {
        match value {
            Value::Null => Vec::new(),
            Value::Sequence(items) => {
                let read = |(index, item)| self.item(item, &place.index(index));
                items.iter().enumerate().filter_map(read).collect()
            }
            _ => {
                self.problem(place.clone(), "expected a list");
                Vec::new()
            }
        }
    }

    fn item<T: Section>(&mut self, value: &Value, place: &Place) -> Option<T> {
        let Value::Mapping(fields) = value else {
            self.problem(place.clone(), "expected keys and values");
            return None;
        };
        let error = match serde_yaml_ng::from_value(value.clone()) {
            Ok(item) => return Some(item),
            Err(error) => error,
        };
        let before = self.problems.len();
        let sample: Mapping = serde_yaml_ng::from_str(T::SAMPLE).expect("a sample is YAML");
        for key in sample.keys().filter(|key| !fields.contains_key(*key)) {
            self.problem(place.clone(), format!("`{}` is missing", key_text(key)));
        }
        for (key, value) in fields {
            self.field::<T>(&sample, key, value, place);
        }
        if self.problems.len() == before {
            self.problem(place.clone(), error.to_string());
        }
        None
    }

    /// Reads one key beside the sample: an error is then the key's own.
    fn field<T: Section>(&mut self, sample: &Mapping, key: &Value, value: &Value, place: &Place) {
        let mut alone = sample.clone();
        alone.insert(key.clone(), value.clone());
        let Err(error) = serde_yaml_ng::from_value::<T>(Value::Mapping(alone)) else { return };
        let name = key_text(key);
        let place = place.key(&name);
        match T::LIST {
            Some((list, read)) if list == name => read(self, value, &place),
            _ => self.problem(place, error.to_string()),
        }
    }

    fn problem(&mut self, place: Place, expected: impl Into<String>) {
        self.problems.push(Problem::new(place, expected));
    }
}

fn key_text(key: &Value) -> String {
    let other = || serde_yaml_ng::to_string(key).unwrap_or_default().trim().to_owned();
    key.as_str().map_or_else(other, str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let error = PolicyFile::read("policy.yaml", text).map(|_| ()).unwrap_err();
        assert_eq!(error.lines, expected);
    }

    #[test]
    fn every_problem_has_its_line_key_value_and_expectation() {
        check(
            "tenants:\n\
             - {name: a, pol: b}\n\
             - name: b\n  pool: p\n  message_size_max: huge\n\
             limits:\n- {name: l, rates: [fast]}\n\
             pools:\n- name: p\n  sources:\n  - {source: one}\n  - {source: two, weight: heavy}\n\
             routes:\n- {domain: 'a b', host: mx.example, port: 25}\n- {domain: c.example, host: mx.example, port: 0}\n\
             credentials:\n- {name: c, tenant: a, api_key: short}\n- {name: d, tenant: a}\n\
             speed: 1\n",
            &[
                "policy.yaml:2: `tenants[0].pol` = `b`: unknown field `pol`, expected one of `name`, `domains`, `pool`, `message_size_max`",
                "policy.yaml:2: `tenants[0]`: `pool` is missing",
                "policy.yaml:5: `tenants[1].message_size_max` = `huge`: expected a whole number of bytes, optionally with KiB, MiB, GiB or TiB",
                "policy.yaml:7: `limits[0].rates`: `fast`: expected a rate such as `100/s`, `5000/h` or `10/30s`",
                "policy.yaml:12: `pools[0].sources[1].weight` = `heavy`: invalid type: string \"heavy\", expected u32",
                "policy.yaml:14: `routes[0].domain` = `a b`: expected a domain or `*`",
                "policy.yaml:15: `routes[1]`: expected a port from 1",
                "policy.yaml:17: `credentials[0].api_key` = (not shown): expected at least 16 characters",
                "policy.yaml:18: `credentials[1]`: expected one of `api_key`, `api_key_sha256`, `login` with `password` or `password_hash`, `stored_secret: true`, or `networks` alone",
                "policy.yaml:19: `speed` = 1: no such section: expected `sources`, `pools`, `tenants`, `credentials`, `limits`, `routes` or `remove`",
            ],
        );
    }

    #[test]
    fn text_that_is_not_a_policy_is_one_problem() {
        check(
            "a: [",
            &[
                "policy.yaml:2: expected YAML: did not find expected node content at line 2 column 1, while parsing a flow node",
            ],
        );
        check(
            "- a\n",
            &[
                "policy.yaml:1: ``: expected the sections `sources`, `pools`, `tenants`, `credentials`, `limits`, `routes` or `remove`",
            ],
        );
    }

    #[test]
    fn an_empty_file_changes_nothing() {
        for text in ["", "# nothing\n", "tenants:\nremove:\n"] {
            assert_eq!(PolicyFile::read("policy.yaml", text).unwrap().policy, Policy::default(), "{text:?}");
        }
    }
}
