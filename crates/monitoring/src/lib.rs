//! The dashboards, recording rules and alerts of Postroad: described here as data, and written for Grafana and Prometheus.
//!
//! [`outputs`] makes every file that is derived from the description; all are committed, and a test finds those that are
//! old. Another test compares every query with the catalogues of the crates: a metric or a label that does not exist, and
//! a counter that is not read through `rate`, fail it.
//! This crate is not part of the program and knows no metric but by its name.

pub mod alert;
pub mod dashboard;
pub mod promql;

mod alerts;
mod dashboards;
mod grafana;
mod panels;
mod recording;
mod rules;
mod stories;

pub use alerts::ALERTS;
pub use dashboards::DASHBOARDS;
pub use recording::RECORDING_RULES;
pub use rules::rules;

/// Where the pages that panels and alerts link to are.
const PAGES: &str = "https://github.com/postroad/postroad/blob/main/docs/operating/";

/// The labels that whatever scrapes must add to every series, and what they say; `docs/operating/monitoring.md` shows how.
pub const SCRAPE_LABELS: &[(&str, &str)] = &[
    ("job", "contains `postroad`"),
    ("cluster", "the name of the Postroad cluster"),
    ("namespace", "the Kubernetes namespace, or any word for the place where the cluster runs"),
    ("node", "the name of the pod or of the node"),
];

/// A page below `docs/operating/` and one of its headings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runbook {
    /// The file.
    pub page: &'static str,
    /// The heading as the link spells it: lower case, with hyphens.
    pub anchor: &'static str,
}

impl Runbook {
    /// Returns the address of the heading.
    #[must_use]
    pub fn url(self) -> String {
        format!("{PAGES}{}#{}", self.page, self.anchor)
    }
}

/// A file that is made from the description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Where it is, from the root of the repository.
    pub path: String,
    /// What it holds.
    pub content: String,
}

/// Makes every file that is derived from the description.
#[must_use]
pub fn outputs() -> Vec<Output> {
    let file = |path: &str, content: String| Output { path: path.to_owned(), content };
    let mut outputs = vec![
        file("helm/postroad/rules/postroad.yaml", rules(1)),
        file("tests/observability/stories.yaml", stories::stories()),
        file("tests/observability/panels.json", panels::panels()),
    ];
    outputs.extend(DASHBOARDS.iter().map(|dashboard| {
        file(&format!("helm/postroad/dashboards/{}.json", dashboard.uid), grafana::dashboard(dashboard))
    }));
    outputs
}
