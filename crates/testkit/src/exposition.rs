//! What `/metrics` shows, read and judged as `promtool check metrics` does.

use std::collections::{BTreeMap, BTreeSet};

/// The families of one page.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    families: BTreeMap<String, Family>,
    problems: Vec<String>,
}

/// One metric family.
#[derive(Clone, Debug, Default)]
struct Family {
    kind: String,
    has_help: bool,
    /// Name and labels of each series as they stand there, and its value.
    series: BTreeMap<String, f64>,
}

/// Words that a name of Prometheus does not have: units that are no base units, and abbreviations of units.
const NO_UNITS: &[&str] = &[
    "ms",
    "us",
    "ns",
    "sec",
    "secs",
    "second",
    "millis",
    "millisecond",
    "milliseconds",
    "micros",
    "microseconds",
    "minutes",
    "hours",
    "days",
    "b",
    "byte",
    "kb",
    "mb",
    "kib",
    "mib",
    "kilobytes",
    "megabytes",
    "percent",
];
/// Base units end a name, or stand before `total`.
const UNITS: &[&str] = &["seconds", "bytes"];

impl Exposition {
    /// Reads a page in the text format.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut page = Self::default();
        let mut current = String::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                page.begin(&mut current, rest, |family| std::mem::replace(&mut family.has_help, true));
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let kind = rest.split(' ').nth(1).unwrap_or_default().to_owned();
                page.begin(&mut current, rest, |family| {
                    !std::mem::replace(&mut family.kind, kind).is_empty()
                });
            } else {
                page.sample(&current, line);
            }
        }
        page.judge();
        page
    }

    /// Returns everything that is wrong with the page.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Returns true when the page has a series of this family.
    #[must_use]
    pub fn has(&self, family: &str) -> bool {
        self.families.get(family).is_some_and(|family| !family.series.is_empty())
    }

    /// Returns the sum over all series of a family: of a histogram, the number of its samples.
    #[must_use]
    pub fn sum(&self, family: &str) -> f64 {
        let Some(found) = self.families.get(family) else { return 0.0 };
        let counted = format!("{family}_count");
        let counts = |series: &str| found.kind != "histogram" || series.split('{').next() == Some(&counted);
        found.series.iter().filter(|(series, _)| counts(series)).map(|(_, value)| value).sum()
    }

    /// Returns the value of one series, as `name{label="value"}`.
    #[must_use]
    pub fn value(&self, series: &str) -> Option<f64> {
        self.families.values().find_map(|family| family.series.get(series).copied())
    }

    /// Returns the names of all families.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.families.keys().map(String::as_str)
    }

    fn begin(&mut self, current: &mut String, rest: &str, note: impl FnOnce(&mut Family) -> bool) {
        let name = rest.split(' ').next().unwrap_or_default();
        let family = self.families.entry(name.to_owned()).or_default();
        if note(family) || (name != current && !family.series.is_empty()) {
            self.problems.push(format!("`{name}` is declared twice"));
        }
        name.clone_into(current);
    }

    fn sample(&mut self, current: &str, line: &str) {
        let (series, value) = line.rsplit_once(' ').unwrap_or((line, ""));
        let name = series.split('{').next().unwrap_or(series);
        let Ok(value) = value.parse::<f64>() else {
            return self.problems.push(format!("`{line}` has no value"));
        };
        let Some(family) =
            self.families.get_mut(current).filter(|family| belongs(name, current, &family.kind))
        else {
            return self.problems.push(format!("`{name}` has no HELP and TYPE before it"));
        };
        if family.series.insert(series.to_owned(), value).is_some() {
            self.problems.push(format!("`{series}` is there twice"));
        }
    }

    fn judge(&mut self) {
        for (name, family) in &self.families {
            let mut say = |problem: &str| self.problems.push(format!("`{name}` {problem}"));
            if !family.has_help || family.kind.is_empty() {
                say("lacks HELP or TYPE");
            }
            if (family.kind == "counter") != name.ends_with("_total") {
                say("is a counter that does not end in `_total`, or something else that does");
            }
            judge_name(name, &mut say);
            if family.series.keys().any(|series| series.contains('@')) {
                say("has an address in a label");
            }
            if family.kind == "histogram" {
                judge_histogram(name, &family.series, &mut say);
            }
        }
    }
}

fn belongs(name: &str, family: &str, kind: &str) -> bool {
    match name.strip_prefix(family) {
        Some("") => kind != "histogram",
        Some("_bucket" | "_sum" | "_count") => kind == "histogram",
        _ => false,
    }
}

fn judge_name(name: &str, say: &mut impl FnMut(&str)) {
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_') {
        say("is not in lower case with underscores");
    }
    let words: Vec<&str> = name.strip_suffix("_total").unwrap_or(name).split('_').collect();
    if words.iter().any(|word| NO_UNITS.contains(word)) {
        say("has a unit that is no base unit");
    }
    if words.iter().rev().skip(1).any(|word| UNITS.contains(word)) {
        say("has its unit in the middle");
    }
    if words.iter().any(|word| ["counter", "gauge", "histogram", "total"].contains(word)) {
        say("has its kind in its name");
    }
}

/// Buckets count up, and the last one is the count.
fn judge_histogram(name: &str, series: &BTreeMap<String, f64>, say: &mut impl FnMut(&str)) {
    let mut sets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (series, count) in series {
        let Some(labels) = series.strip_prefix(name).and_then(|rest| rest.strip_prefix("_bucket{")) else {
            continue;
        };
        let (before, bound) = labels.rsplit_once("le=\"").unwrap_or((labels, ""));
        let bound = bound.trim_end_matches("\"}").parse().unwrap_or(f64::NAN);
        sets.entry(before.trim_end_matches(',').to_owned()).or_default().push((bound, *count));
    }
    let counted: BTreeSet<&str> =
        series.keys().filter_map(|series| series.strip_prefix(name)?.strip_prefix("_count")).collect();
    if counted.len() != sets.len() {
        say("has a count without buckets, or buckets without a count");
    }
    for (labels, mut buckets) in sets {
        buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let count = series.get(&format!("{name}_count{braces}")).copied();
        if buckets.windows(2).any(|pair| pair[0].1 > pair[1].1) || buckets.last().map(|last| last.1) != count
        {
            say("has buckets that do not add up");
        }
        if !series.contains_key(&format!("{name}_sum{braces}")) {
            say("has no sum");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP x_mail_bytes_total Mail\n# TYPE x_mail_bytes_total counter\n\
        x_mail_bytes_total{site=\"a\"} 3\nx_mail_bytes_total{site=\"b\"} 4\n\n\
        # HELP x_wait_seconds Wait\n# TYPE x_wait_seconds histogram\n\
        x_wait_seconds_bucket{le=\"1\"} 1\nx_wait_seconds_bucket{le=\"+Inf\"} 2\n\
        x_wait_seconds_sum 3.5\nx_wait_seconds_count 2\n";

    #[test]
    fn a_good_page_is_read_without_a_problem() {
        let page = Exposition::read(GOOD);
        assert!(page.problems().is_empty(), "{:?}", page.problems());
        assert_eq!((page.sum("x_mail_bytes_total"), page.sum("x_wait_seconds")), (7.0, 2.0));
        assert_eq!(page.value("x_mail_bytes_total{site=\"b\"}"), Some(4.0));
        assert!(page.has("x_wait_seconds") && !page.has("x_wait_seconds_sum"));
        assert_eq!(page.names().count(), 2);
    }

    #[test]
    fn everything_that_is_wrong_is_found() {
        let check = |page: &str, problem: &str| {
            let problems = Exposition::read(page).problems().join("; ");
            assert!(problems.contains(problem), "{problem} is not in {problems}");
        };
        check("x_total 1\n", "no HELP and TYPE");
        check(&GOOD.replace("# HELP x_wait_seconds Wait\n", ""), "lacks HELP");
        check(&GOOD.replace("site=\"b\"", "site=\"a\""), "is there twice");
        check(&GOOD.replace("site=\"b\"", "site=\"b@c\""), "an address in a label");
        check(&GOOD.replace("bytes_total", "bytes"), "does not end in `_total`");
        check(&GOOD.replace("x_mail_bytes_total", "x_bytes_mail_total"), "its unit in the middle");
        check(&GOOD.replace("wait_seconds", "wait_ms"), "no base unit");
        check(&GOOD.replace("count 2", "count 3"), "do not add up");
        check(&GOOD.replace("x_wait_seconds_sum 3.5\n", ""), "has no sum");
        check(&format!("{GOOD}{GOOD}"), "is declared twice");
    }
}
