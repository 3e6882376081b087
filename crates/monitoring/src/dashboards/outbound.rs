//! Outbound: how receivers take mail, by site and by source.

use super::{alert, query, reading};
use crate::dashboard::{Dashboard, Fault, Kind, Moved, NODE, Panel, Row, SITE, Unit};

pub(super) const DASHBOARD: Dashboard = Dashboard {
    uid: "postroad-outbound",
    title: "Postroad / Outbound",
    description: "How receivers take mail, by site and by source.",
    variables: &[NODE, SITE],
    rows: &[
        Row {
            title: "Sites",
            panels: &[
                Panel {
                    title: "Attempts by site",
                    description: "The sites with most volume; the others share `other`.",
                    kind: Kind::Stack,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum by (site) (rate(postroad_outbound_site_attempts_total{NODE,site=~\"$site\"}[RATE]))",
                        "{{site}}",
                    )],
                    runbook: reading("outbound"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Deferred",
                    description: "The share of attempts that are tried again, by site.",
                    kind: Kind::Lines,
                    unit: Unit::Share,
                    queries: &[query(
                        "sum by (site) (rate(postroad_outbound_site_attempts_total{NODE,site=~\"$site\",outcome=~\"soft|site_soft|policy_block|unknown\"}[RATE])) / (sum by (site) (rate(postroad_outbound_site_attempts_total{NODE,site=~\"$site\"}[RATE])) > 0)",
                        "{{site}}",
                    )],
                    runbook: alert("postroadsitedefers"),
                    moved_by: Moved::Up(Fault::SiteDefers),
                },
                Panel {
                    title: "Bounced",
                    description: "The share of attempts that a receiver refused for good, by site.",
                    kind: Kind::Lines,
                    unit: Unit::Share,
                    queries: &[query(
                        "sum by (site) (rate(postroad_outbound_site_attempts_total{NODE,site=~\"$site\",outcome=\"hard\"}[RATE])) / (sum by (site) (rate(postroad_outbound_site_attempts_total{NODE,site=~\"$site\"}[RATE])) > 0)",
                        "{{site}}",
                    )],
                    runbook: alert("postroadsitebounces"),
                    moved_by: Moved::Up(Fault::SiteRefuses),
                },
                Panel {
                    title: "Waiting",
                    description: "Deliveries that have not ended, by site.",
                    kind: Kind::Stack,
                    unit: Unit::Count,
                    queries: &[query(
                        "sum by (site) (postroad_queue_site_deliveries{SCOPE,site=~\"$site\"})",
                        "{{site}}",
                    )],
                    runbook: alert("postroadlanepaused"),
                    moved_by: Moved::Up(Fault::SiteSlow),
                },
                Panel {
                    title: "Paused lanes",
                    description: "A lane pauses when its site asks to slow down or cannot be reached.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[query(
                        "sum by (site) (postroad_outbound_paused_lanes{NODE,site=~\"$site\"})",
                        "{{site}}",
                    )],
                    runbook: alert("postroadlanepaused"),
                    moved_by: Moved::Up(Fault::SiteBusy),
                },
                Panel {
                    title: "Pauses",
                    description: "How often lanes begin to pause, by site, and in all.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[
                        query(
                            "sum by (site) (rate(postroad_outbound_site_lane_pauses_total{NODE,site=~\"$site\"}[RATE]))",
                            "{{site}}",
                        ),
                        query("sum(rate(postroad_outbound_lane_pauses_total{NODE}[RATE]))", "all"),
                    ],
                    runbook: alert("postroadlanepaused"),
                    moved_by: Moved::Up(Fault::SiteBusy),
                },
                Panel {
                    title: "Time of an attempt",
                    description: "95 of 100 are faster, by site.",
                    kind: Kind::Lines,
                    unit: Unit::Seconds,
                    queries: &[query(
                        "histogram_quantile(0.95, sum by (site, le) (rate(postroad_outbound_site_attempt_seconds_bucket{NODE,site=~\"$site\"}[RATE])))",
                        "{{site}}",
                    )],
                    runbook: reading("outbound"),
                    moved_by: Moved::Up(Fault::SiteSlow),
                },
                Panel {
                    title: "Time to delivery",
                    description: "From acceptance to delivery; 95 of 100 are faster, by site.",
                    kind: Kind::Lines,
                    unit: Unit::Seconds,
                    queries: &[query(
                        "histogram_quantile(0.95, sum by (site, le) (rate(postroad_outbound_site_delivery_delay_seconds_bucket{NODE,site=~\"$site\"}[RATE])))",
                        "{{site}}",
                    )],
                    runbook: alert("postroadqueuewaits"),
                    moved_by: Moved::Up(Fault::SiteSlow),
                },
            ],
        },
        Row {
            title: "Sources",
            panels: &[
                Panel {
                    title: "Attempts by source",
                    description: "By the address that is sent from.",
                    kind: Kind::Stack,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum by (source) (rate(postroad_outbound_source_attempts_total{NODE}[RATE]))",
                        "{{source}}",
                    )],
                    runbook: reading("outbound"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Blocked by source",
                    description: "The share of attempts that receivers refuse by policy: the reputation of an address or of its mail.",
                    kind: Kind::Lines,
                    unit: Unit::Share,
                    queries: &[query(
                        "sum by (source) (rate(postroad_outbound_source_attempts_total{NODE,outcome=\"policy_block\"}[RATE])) / (sum by (source) (rate(postroad_outbound_source_attempts_total{NODE}[RATE])) > 0)",
                        "{{source}}",
                    )],
                    runbook: alert("postroadblocked"),
                    moved_by: Moved::Up(Fault::SiteRefuses),
                },
                Panel {
                    title: "Time to delivery by source",
                    description: "95 of 100 are faster.",
                    kind: Kind::Lines,
                    unit: Unit::Seconds,
                    queries: &[query(
                        "histogram_quantile(0.95, sum by (source, le) (rate(postroad_outbound_source_delivery_delay_seconds_bucket{NODE}[RATE])))",
                        "{{source}}",
                    )],
                    runbook: alert("postroadqueuewaits"),
                    moved_by: Moved::Up(Fault::SiteSlow),
                },
                Panel {
                    title: "Lease",
                    description: "Time until each node must have renewed its lease on its sources, and leases that ended before: the node does not send then.",
                    kind: Kind::Lines,
                    unit: Unit::Seconds,
                    queries: &[query("postroad_outbound_lease_remaining_seconds{NODE}", "{{node}}")],
                    runbook: alert("postroadleaselost"),
                    moved_by: Moved::Down(Fault::MajorityKilled),
                },
                Panel {
                    title: "Sources in trouble",
                    description: "Leases that ended within five minutes, and sources whose address the machine does not have.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[
                        query("sum(increase(postroad_outbound_lease_ends_total{NODE}[5m]))", "leases ended"),
                        query("sum(postroad_outbound_sources_without_address{NODE})", "without address"),
                    ],
                    runbook: alert("postroadleaselost"),
                    moved_by: Moved::Up(Fault::MajorityKilled),
                },
            ],
        },
        Row {
            title: "Connections",
            panels: &[
                Panel {
                    title: "Open",
                    description: "Connections to receivers.",
                    kind: Kind::Stack,
                    unit: Unit::Count,
                    queries: &[query("sum by (node) (postroad_outbound_open_connections{NODE})", "{{node}}")],
                    runbook: reading("outbound"),
                    moved_by: Moved::Up(Fault::SiteSlow),
                },
                Panel {
                    title: "Tried",
                    description: "By result.",
                    kind: Kind::Stack,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum by (result) (rate(postroad_outbound_connections_total{NODE}[RATE]))",
                        "{{result}}",
                    )],
                    runbook: reading("outbound"),
                    moved_by: Moved::Up(Fault::SiteDown),
                },
                Panel {
                    title: "Reused",
                    description: "Transactions over a connection that had carried one before.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum(rate(postroad_outbound_reused_connections_total{NODE}[RATE]))",
                        "reused",
                    )],
                    runbook: reading("outbound"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Lanes",
                    description: "In memory: a lane is forgotten some time after its last job.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[query("sum by (node) (postroad_outbound_lanes{NODE})", "{{node}}")],
                    runbook: reading("outbound"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Time of all attempts",
                    description: "Half, and 99 of 100, are faster.",
                    kind: Kind::Lines,
                    unit: Unit::Seconds,
                    queries: &[
                        query(
                            "histogram_quantile(0.5, sum by (le) (rate(postroad_outbound_attempt_seconds_bucket{NODE}[RATE])))",
                            "half",
                        ),
                        query(
                            "histogram_quantile(0.99, sum by (le) (rate(postroad_outbound_attempt_seconds_bucket{NODE}[RATE])))",
                            "99 %",
                        ),
                    ],
                    runbook: reading("outbound"),
                    moved_by: Moved::Up(Fault::SiteSlow),
                },
                Panel {
                    title: "Given back and waits",
                    description: "Jobs given back to the queue without an attempt, and times that a budget of memory was used up.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[
                        query("sum(rate(postroad_outbound_given_back_total{NODE}[RATE]))", "given back"),
                        query(
                            "sum(rate(postroad_outbound_content_budget_waits_total{NODE}[RATE]))",
                            "content budget",
                        ),
                        query(
                            "sum(rate(postroad_outbound_conversion_waits_total{NODE}[RATE]))",
                            "conversion to 7-bit",
                        ),
                    ],
                    runbook: reading("outbound"),
                    moved_by: Moved::Up(Fault::SiteBusy),
                },
                Panel {
                    title: "Odd receivers",
                    description: "Replies that broke the rules of SMTP and were understood, plaintext behind STARTTLS, and addresses that the guard denies.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[
                        query(
                            "sum(rate(postroad_outbound_irregular_replies_total{NODE}[RATE]))",
                            "irregular replies",
                        ),
                        query("sum(rate(postroad_outbound_starttls_injected_total{NODE}[RATE]))", "injected"),
                        query("sum(rate(postroad_net_connects_denied_total{NODE}[RATE]))", "denied"),
                    ],
                    runbook: reading("outbound"),
                    moved_by: Moved::Up(Fault::SiteDefers),
                },
            ],
        },
    ],
};
