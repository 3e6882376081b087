//! Writes the examples of all alerts as a test for `promtool test rules`.

use std::fmt::Write;

use crate::ALERTS;

/// The labels that every scrape adds.
const SCRAPED: &str = "job=\"postroad\",cluster=\"c\",namespace=\"n\"";

const HEAD: &str = "\
# Made from crates/monitoring; `POSTROAD_WRITE_DOCS=1 cargo test -p postroad-monitoring` writes it again.
# Every alert is quiet, fires, and has ended, at the given minutes of its example.
rule_files: [../../helm/postroad/rules/postroad.yaml]
evaluation_interval: 1m
tests:
";

pub(crate) fn stories() -> String {
    let mut text = HEAD.to_owned();
    for alert in ALERTS.iter().flat_map(|group| group.alerts) {
        let name = alert.name;
        let _ = write!(text, "  - name: {name}\n    interval: 1m\n    input_series:\n");
        for (series, values) in alert.story.series {
            let series = match series.split_once('{') {
                Some((metric, labels)) => format!("{metric}{{{SCRAPED},{labels}"),
                None => format!("{series}{{{SCRAPED}}}"),
            };
            let _ = writeln!(text, "      - {{series: '{series}', values: '{values}'}}");
        }
        text.push_str("    promql_expr_test:\n");
        for (at, firing) in alert.story.quiet_fires_ended.iter().zip([0, 1, 0]) {
            let expr =
                format!("count(ALERTS{{alertname=\"{name}\",alertstate=\"firing\"}}) > bool 0 or vector(0)");
            let _ = write!(
                text,
                "      - expr: '{expr}'\n        eval_time: {at}\n        exp_samples: [{{labels: '{{}}', value: {firing}}}]\n"
            );
        }
    }
    text
}
