//! The description agrees with the catalogues of the crates, with the pages it links to, and with the files made from it.
//!
//! `POSTROAD_WRITE_DOCS=1 cargo test -p postroad-monitoring` writes the files again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use postroad::metrics::catalogues;
use postroad_monitoring::{
    ALERTS, DASHBOARDS, RECORDING_RULES, SCRAPE_LABELS, outputs,
    promql::{Selector, reads},
};
use postroad_telemetry::Kind;
use serde_json::Value;

/// Metrics of Prometheus itself, and their labels besides those of a scrape.
const OF_PROMETHEUS: &[(&str, &[&str])] = &[("up", &[]), ("ALERTS", &["alertname", "alertstate"])];
/// Metrics that no panel and no alert reads, and why.
const UNREAD: &[(&str, &str)] = &[
    ("postroad_sandbox_captured_total", "only `postroad dev` has a sandbox"),
    ("postroad_sandbox_dropped_total", "the same"),
    ("postroad_sandbox_messages", "the same"),
    ("postroad_sandbox_kept_bytes", "the same"),
];
/// Functions of counters.
const RATES: &[&str] = &["rate", "increase"];
/// Functions of what goes up and down, over a range.
const OVER_TIME: &[&str] =
    &["deriv", "changes", "predict_linear", "max_over_time", "min_over_time", "avg_over_time"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_files_are_what_the_description_says() {
    let mut old = Vec::new();
    for output in outputs() {
        let path = root().join(&output.path);
        if std::env::var_os("POSTROAD_WRITE_DOCS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &output.content).unwrap();
        }
        if fs::read_to_string(&path).unwrap_or_default() != output.content {
            old.push(output.path);
        }
    }
    assert!(old.is_empty(), "old, run with POSTROAD_WRITE_DOCS=1: {old:?}");
    let dashboards = fs::read_dir(root().join("helm/postroad/dashboards")).unwrap().count();
    assert_eq!(
        dashboards,
        DASHBOARDS.len(),
        "helm/postroad/dashboards has files that are not made from here"
    );
}

/// What can be read of a series: its kind, and its labels besides those of a scrape.
struct Series {
    kind: Kind,
    labels: Vec<&'static str>,
}

/// Every series by its name: histograms have three names.
fn series() -> BTreeMap<String, Series> {
    let mut all = BTreeMap::new();
    let catalogues = catalogues();
    for metric in catalogues.iter().flat_map(|catalogue| catalogue.metrics) {
        let labels: Vec<&str> = metric.labels.iter().map(|label| label.name).collect();
        if metric.kind != Kind::Histogram {
            all.insert(metric.name.to_owned(), Series { kind: metric.kind, labels });
            continue;
        }
        for (suffix, more) in [("_bucket", &["le"][..]), ("_sum", &[]), ("_count", &[])] {
            let labels = labels.iter().chain(more).copied().collect();
            // They are counters: of samples, or of what was measured.
            all.insert(format!("{}{suffix}", metric.name), Series { kind: Kind::Counter, labels });
        }
    }
    for rule in RECORDING_RULES {
        all.insert(rule.name.to_owned(), Series { kind: Kind::Gauge, labels: rule.labels.to_vec() });
    }
    for (name, labels) in OF_PROMETHEUS {
        all.insert((*name).to_owned(), Series { kind: Kind::Gauge, labels: labels.to_vec() });
    }
    all
}

/// Every query of the description: where it is, the query, and its legend where it has one.
fn queries() -> Vec<(String, String, Option<&'static str>)> {
    let panels = DASHBOARDS.iter().flat_map(|dashboard| {
        dashboard.panels().flat_map(move |panel| {
            let place = format!("{}, {}", dashboard.title, panel.title);
            panel.queries.iter().map(move |query| (place.clone(), query.promql(), Some(query.legend)))
        })
    });
    let alerts = ALERTS.iter().flat_map(|group| group.alerts);
    let alerts = alerts.map(|alert| (alert.name.to_owned(), alert.expr.to_owned(), None));
    let recorded = RECORDING_RULES.iter().map(|rule| (rule.name.to_owned(), rule.expr.to_owned(), None));
    panels.chain(alerts).chain(recorded).collect()
}

fn of_a_scrape(label: &str) -> bool {
    SCRAPE_LABELS.iter().any(|(name, _)| *name == label)
}

#[test]
fn every_query_reads_metrics_and_labels_that_exist_as_their_kind_is_read() {
    let series = series();
    let mut wrong = Vec::new();
    for (place, query, legend) in queries() {
        let reads = reads(&query);
        assert!(!reads.selectors.is_empty(), "{place} reads nothing: {query}");
        let mut labels = BTreeSet::new();
        for selector in &reads.selectors {
            let Some(found) = series.get(&selector.metric) else {
                wrong.push(format!("{place}: there is no `{}`", selector.metric));
                continue;
            };
            labels.extend(found.labels.iter().copied());
            let unknown = selector
                .labels
                .iter()
                .filter(|label| !found.labels.contains(&&***label) && !of_a_scrape(label));
            wrong.extend(unknown.map(|label| format!("{place}: `{}` has no `{label}`", selector.metric)));
            wrong.extend(
                misread(selector, found.kind).map(|why| format!("{place}: `{}` {why}", selector.metric)),
            );
        }
        let shown = |label: &str| labels.contains(label) || of_a_scrape(label);
        let unknown = reads.grouping.iter().filter(|label| !shown(label));
        wrong.extend(unknown.map(|label| format!("{place}: nothing has a label `{label}`")));
        for label in legend.into_iter().flat_map(|legend| legend.split("{{").skip(1)) {
            let label = label.split("}}").next().unwrap();
            let is_left = if reads.grouping.is_empty() {
                shown(label)
            } else {
                reads.grouping.iter().any(|by| by == label)
            };
            if !is_left {
                wrong.push(format!("{place}: its series have no `{label}` for the legend"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Says what is wrong with the way a series is read.
fn misread(selector: &Selector, kind: Kind) -> Option<&'static str> {
    let function = selector.function.as_str();
    let is_rate = RATES.contains(&function);
    match (kind, selector.is_range) {
        (Kind::Counter, true) if is_rate => None,
        (Kind::Counter, _) => Some("is a counter: read it with `rate` or `increase`"),
        (_, true) if OVER_TIME.contains(&function) => None,
        (_, true) => Some("is not a counter: read its range with `deriv`, `changes` or the like"),
        (_, false) if is_rate => Some("needs a range"),
        (_, false) => None,
    }
}

#[test]
fn a_wrong_reading_is_noticed() {
    let check = |query: &str, kind, expected: bool| {
        let selector = &reads(query).selectors[0];
        assert_eq!(misread(selector, kind).is_some(), expected, "{query}");
    };
    check("rate(x_total[5m])", Kind::Counter, false);
    check("x_total", Kind::Counter, true);
    check("deriv(x_total[5m])", Kind::Counter, true);
    check("rate(x[5m])", Kind::Gauge, true);
    check("deriv(x[5m])", Kind::Gauge, false);
    check("sum(x)", Kind::Gauge, false);
}

#[test]
fn every_metric_is_read_by_a_panel_or_an_alert() {
    let read: BTreeSet<String> = queries()
        .iter()
        .flat_map(|(_, query, _)| reads(query).selectors)
        .map(|selector| selector.metric)
        .collect();
    let mut unread = Vec::new();
    let catalogues = catalogues();
    for metric in catalogues.iter().flat_map(|catalogue| catalogue.metrics) {
        let is_read = ["", "_bucket", "_sum", "_count"]
            .iter()
            .any(|suffix| read.contains(&format!("{}{suffix}", metric.name)));
        if is_read == UNREAD.iter().any(|(name, _)| *name == metric.name) {
            unread.push(metric.name);
        }
    }
    assert!(unread.is_empty(), "read by nothing, or read and in the list of those that are not: {unread:#?}");
    let unused = RECORDING_RULES.iter().map(|rule| rule.name).filter(|name| !read.contains(*name));
    assert_eq!(unused.collect::<Vec<_>>(), [""; 0], "recorded and read by nothing");
}

/// The headings of a page as links spell them.
fn anchors(page: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("docs/operating").join(page));
    let text = text.unwrap_or_else(|error| panic!("docs/operating/{page}: {error}"));
    let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
    let spelled = |heading: &str| -> String {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(spelled).collect()
}

#[test]
fn every_panel_and_every_alert_links_to_a_heading_that_exists() {
    let mut wrong = Vec::new();
    for dashboard in DASHBOARDS {
        for panel in
            dashboard.panels().filter(|panel| !anchors(panel.runbook.page).contains(panel.runbook.anchor))
        {
            wrong.push(format!("{}, {}: {:?}", dashboard.title, panel.title, panel.runbook));
        }
    }
    let alerts: BTreeSet<String> =
        ALERTS.iter().flat_map(|group| group.alerts).map(|alert| alert.anchor()).collect();
    let headings = anchors("alerts.md");
    wrong
        .extend(alerts.difference(&headings).map(|alert| format!("docs/operating/alerts.md has no {alert}")));
    let described =
        headings.iter().filter(|heading| heading.starts_with("postroad") && !alerts.contains(*heading));
    wrong.extend(described.map(|heading| format!("docs/operating/alerts.md: there is no alert {heading}")));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_page_says_which_labels_a_scrape_must_set() {
    let page = fs::read_to_string(root().join("docs/operating/monitoring.md")).unwrap();
    for (label, meaning) in SCRAPE_LABELS {
        let row = format!("| `{label}` | {meaning} |");
        assert!(page.contains(&row), "docs/operating/monitoring.md lacks: {row}");
    }
}

#[test]
fn names_are_unique_and_variables_have_values() {
    let mut seen = BTreeSet::new();
    let alerts = ALERTS.iter().flat_map(|group| group.alerts);
    for alert in alerts {
        assert!(alert.name.starts_with("Postroad") && seen.insert(alert.name), "{}", alert.name);
        assert!(!alert.summary.ends_with('.') && !alert.story.series.is_empty(), "{}", alert.name);
    }
    let series = series();
    for dashboard in DASHBOARDS {
        let mut titles = BTreeSet::new();
        for panel in dashboard.panels() {
            assert!(titles.insert(panel.title), "{} has two panels `{}`", dashboard.title, panel.title);
            assert!(panel.description.ends_with('.') && !panel.queries.is_empty(), "{}", panel.title);
        }
        for variable in dashboard.all_variables() {
            let labels = &series[variable.metric].labels;
            assert!(of_a_scrape(variable.label) || labels.contains(&variable.label), "{variable:?}");
            let used = |panel: &postroad_monitoring::dashboard::Panel| {
                panel.queries.iter().any(|query| query.promql().contains(&format!("${}\"", variable.label)))
            };
            assert!(dashboard.panels().any(used), "{}: nothing follows {variable:?}", dashboard.title);
        }
    }
}

#[test]
fn panels_do_not_overlap() {
    for output in outputs().iter().filter(|output| output.path.contains("/dashboards/")) {
        let dashboard: Value = serde_json::from_str(&output.content).unwrap();
        let number = |panel: &Value, field: &str| panel["gridPos"][field].as_u64().unwrap();
        let mut taken = BTreeMap::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let (left, top) = (number(panel, "x"), number(panel, "y"));
            assert!(left + number(panel, "w") <= 24, "{}: {panel}", output.path);
            for cell in (left..left + number(panel, "w"))
                .flat_map(|x| (top..top + number(panel, "h")).map(move |y| (x, y)))
            {
                let before = taken.insert(cell, panel["id"].clone());
                assert_eq!(before, None, "{}: {panel} is on another panel", output.path);
            }
        }
    }
}
