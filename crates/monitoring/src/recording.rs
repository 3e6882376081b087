//! Series that are computed once for alerts and dashboards.

use crate::alert::RecordingRule;

/// All of them.
pub const RECORDING_RULES: &[RecordingRule] = &[
    RecordingRule {
        // Every replica of a group shows its deliveries: one of them counts.
        name: "postroad:queue_deliveries:sum",
        labels: &["cluster", "namespace", "state"],
        expr: "sum by (cluster, namespace, state) (max by (cluster, namespace, group, state) (postroad_queue_deliveries))",
    },
    RecordingRule {
        name: "postroad:site_attempts:rate30m",
        labels: &["cluster", "namespace", "site", "outcome"],
        expr: "sum by (cluster, namespace, site, outcome) (rate(postroad_outbound_site_attempts_total[30m]))",
    },
    RecordingRule {
        // What a client could have been spared: the reasons that are ours, not the client's.
        name: "postroad:ingress_faults:rate5m",
        labels: &["cluster", "namespace"],
        expr: "sum by (cluster, namespace) (rate(postroad_ingress_rejections_total{reason=~\"no_directory|busy|unavailable|unknown|storage_full\"}[5m]) or rate(postroad_net_smtp_refused_total{bound=\"policy\"}[5m]))",
    },
];
