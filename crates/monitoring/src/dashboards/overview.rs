//! Overview: does mail flow, how much waits, and is anything broken?

use super::{alert, query, reading};
use crate::dashboard::{Dashboard, Fault, Kind, Moved, Panel, Row, Unit};

pub(super) const DASHBOARD: Dashboard = Dashboard {
    uid: "postroad-overview",
    title: "Postroad / Overview",
    description: "Does mail flow, how much waits, and is anything broken?",
    variables: &[],
    rows: &[
        Row {
            title: "Now",
            panels: &[
                Panel {
                    title: "Groups without a leader",
                    description: "Their mail is neither accepted nor sent. Anything but 0 for more than some seconds is an outage.",
                    kind: Kind::Number(1),
                    unit: Unit::Count,
                    queries: &[query(
                        "count(max by (cluster, namespace, group) (postroad_queue_leading{SCOPE}) == 0) or vector(0)",
                        "groups",
                    )],
                    runbook: alert("postroadnoleader"),
                    moved_by: Moved::Up(Fault::MajorityKilled),
                },
                Panel {
                    title: "Components not ready",
                    description: "What `/readyz` of the nodes names.",
                    kind: Kind::Number(1),
                    unit: Unit::Count,
                    queries: &[query("count(postroad_ready{SCOPE} == 0) or vector(0)", "components")],
                    runbook: alert("postroadnodeunready"),
                    moved_by: Moved::Up(Fault::MajorityKilled),
                },
                Panel {
                    title: "Nodes down",
                    description: "Nodes that show no metrics.",
                    kind: Kind::Number(1),
                    unit: Unit::Count,
                    queries: &[query("count(up{SCOPE,job=~\".*postroad.*\"} == 0) or vector(0)", "nodes")],
                    runbook: alert("postroadnodedown"),
                    moved_by: Moved::Up(Fault::FollowerKilled),
                },
                Panel {
                    title: "Alerts",
                    description: "Alerts of this cluster that fire.",
                    kind: Kind::Number(1),
                    unit: Unit::Count,
                    queries: &[query(
                        "count(ALERTS{SCOPE,alertname=~\"Postroad.*\",alertstate=\"firing\"}) or vector(0)",
                        "alerts",
                    )],
                    runbook: reading("alerts"),
                    moved_by: Moved::Up(Fault::MajorityKilled),
                },
            ],
        },
        Row {
            title: "Mail",
            panels: &[
                Panel {
                    title: "Accepted and ended",
                    description: "Messages accepted, and messages that ended for every recipient. When the first is above the second for long, the queue grows.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[
                        query("sum(rate(postroad_ingress_messages_total{SCOPE}[RATE]))", "accepted"),
                        query("sum(rate(postroad_queue_finished_total{SCOPE}[RATE]))", "ended"),
                    ],
                    runbook: reading("overview"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Attempts by outcome",
                    description: "Every attempt to deliver to one recipient. `soft` and `site_soft` are tried again, `hard` bounces, `policy_block` is a refusal by policy.",
                    kind: Kind::Stack,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum by (outcome) (rate(postroad_outbound_attempts_total{SCOPE}[RATE]))",
                        "{{outcome}}",
                    )],
                    runbook: alert("postroaddeferralrate"),
                    moved_by: Moved::Up(Fault::SiteDefers),
                },
                Panel {
                    title: "Refused for reasons of our own",
                    description: "Mail that a healthy cluster would have accepted: no leader, no directory, full disk, or too much at once; and SMTP connections that get 421, because no queue node can be reached.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[
                        query(
                            "sum by (reason) (rate(postroad_ingress_rejections_total{SCOPE,reason=~\"no_directory|busy|unavailable|unknown|storage_full\"}[RATE]))",
                            "{{reason}}",
                        ),
                        query(
                            "sum(rate(postroad_net_smtp_refused_total{SCOPE,bound=\"policy\"}[RATE]))",
                            "connections",
                        ),
                    ],
                    runbook: alert("postroadmailrefused"),
                    moved_by: Moved::Up(Fault::MajorityKilled),
                },
                Panel {
                    title: "Deliveries that wait",
                    description: "By state: queued (deferred ones too), being sent, and held by an operator.",
                    kind: Kind::Stack,
                    unit: Unit::Count,
                    queries: &[query(
                        "sum by (state) (max by (cluster, namespace, group, state) (postroad_queue_deliveries{SCOPE}))",
                        "{{state}}",
                    )],
                    runbook: alert("postroadqueuegrows"),
                    moved_by: Moved::Up(Fault::SiteSlow),
                },
                Panel {
                    title: "Longest wait for a lane",
                    description: "How long the delivery that is due for longest has waited for room in a lane. Near zero while sites take mail as fast as it comes.",
                    kind: Kind::Lines,
                    unit: Unit::Seconds,
                    queries: &[query("max(postroad_queue_longest_wait_seconds{SCOPE})", "longest wait")],
                    runbook: alert("postroadqueuewaits"),
                    moved_by: Moved::Up(Fault::SiteSlow),
                },
                Panel {
                    title: "Time to delivery",
                    description: "From the acceptance of a message to its delivery: half, and 95 of 100, are faster.",
                    kind: Kind::Lines,
                    unit: Unit::Seconds,
                    queries: &[
                        query(
                            "histogram_quantile(0.5, sum by (le) (rate(postroad_outbound_site_delivery_delay_seconds_bucket{SCOPE}[RATE])))",
                            "half",
                        ),
                        query(
                            "histogram_quantile(0.95, sum by (le) (rate(postroad_outbound_site_delivery_delay_seconds_bucket{SCOPE}[RATE])))",
                            "95 %",
                        ),
                    ],
                    runbook: alert("postroadqueuewaits"),
                    moved_by: Moved::Up(Fault::SiteSlow),
                },
            ],
        },
        Row {
            title: "Nodes",
            panels: &[
                Panel {
                    title: "CPU",
                    description: "Cores that each node uses.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[query(
                        "rate(process_cpu_seconds_total{SCOPE,job=~\".*postroad.*\"}[RATE])",
                        "{{node}}",
                    )],
                    runbook: reading("overview"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Memory",
                    description: "Resident memory of each node.",
                    kind: Kind::Lines,
                    unit: Unit::Bytes,
                    queries: &[query(
                        "process_resident_memory_bytes{SCOPE,job=~\".*postroad.*\"}",
                        "{{node}}",
                    )],
                    runbook: reading("overview"),
                    moved_by: Moved::Up(Fault::FollowerHangs),
                },
                Panel {
                    title: "Restarts",
                    description: "How often each node started within the last hour: a line that is not flat is a node that crashes or is replaced.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[query(
                        "changes(process_start_time_seconds{SCOPE,job=~\".*postroad.*\"}[1h])",
                        "{{node}}",
                    )],
                    runbook: alert("postroadnoderestarts"),
                    moved_by: Moved::Up(Fault::NodeRestarts),
                },
                Panel {
                    title: "Versions",
                    description: "How many nodes run each version: two only during an upgrade.",
                    kind: Kind::Stack,
                    unit: Unit::Count,
                    queries: &[query("count by (version) (postroad_build_info{SCOPE})", "{{version}}")],
                    runbook: reading("overview"),
                    moved_by: Moved::Down(Fault::MajorityKilled),
                },
            ],
        },
    ],
};
