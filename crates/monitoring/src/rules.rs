//! Writes recording rules and alerts as a rule file of Prometheus.

use std::fmt::Write;

use crate::{ALERTS, RECORDING_RULES, promql};

const HEAD: &str = "\
# Made from crates/monitoring; `POSTROAD_WRITE_DOCS=1 cargo test -p postroad-monitoring` writes it again.
# Every series needs the labels job, cluster, namespace and node: see docs/operating/monitoring.md.
";

/// Makes the rule file, with all times divided by `faster`: 1 for use, more for trying alerts.
#[must_use]
pub fn rules(faster: u64) -> String {
    let mut text = format!("{HEAD}groups:\n  - name: postroad-recording\n    rules:\n");
    for rule in RECORDING_RULES {
        let expr = promql::faster(rule.expr, faster);
        let _ = write!(text, "      - record: {}\n        expr: |-\n          {expr}\n", rule.name);
    }
    for group in ALERTS {
        let _ = write!(text, "  - name: {}\n    rules:\n", group.name);
        for alert in group.alerts {
            let expr = promql::faster(alert.expr, faster);
            let lasts = promql::divided(alert.lasts, faster);
            let (name, severity) = (alert.name, alert.severity.as_str());
            let _ = write!(
                text,
                "      - alert: {name}\n        expr: |-\n          {expr}\n        for: {lasts}\n        \
                 labels:\n          severity: {severity}\n        annotations:\n          \
                 summary: {:?}\n          runbook_url: {:?}\n",
                alert.summary,
                alert.runbook_url()
            );
        }
    }
    text
}
