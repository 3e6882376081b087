//! Ingress: who submits mail, how fast it is accepted, and what is refused.

use super::{alert, query, reading};
use crate::dashboard::{Dashboard, Fault, Kind, Moved, NODE, Panel, Row, Unit};

pub(super) const DASHBOARD: Dashboard = Dashboard {
    uid: "postroad-ingress",
    title: "Postroad / Ingress",
    description: "Who submits mail, how fast it is accepted, and what is refused.",
    variables: &[NODE],
    rows: &[
        Row {
            title: "Mail that comes in",
            panels: &[
                Panel {
                    title: "Accepted",
                    description: "Messages by protocol.",
                    kind: Kind::Stack,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum by (protocol) (rate(postroad_ingress_messages_total{NODE}[RATE]))",
                        "{{protocol}}",
                    )],
                    runbook: reading("ingress"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Recipients for each message",
                    description: "The mean.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[query(
                        "sum(rate(postroad_ingress_recipients_total{NODE}[RATE])) / (sum(rate(postroad_ingress_messages_total{NODE}[RATE])) > 0)",
                        "recipients",
                    )],
                    runbook: reading("ingress"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Size",
                    description: "Bytes of messages: half, and 95 of 100, are smaller.",
                    kind: Kind::Lines,
                    unit: Unit::Bytes,
                    queries: &[
                        query(
                            "histogram_quantile(0.5, sum by (le) (rate(postroad_ingress_message_bytes_bucket{NODE}[RATE])))",
                            "half",
                        ),
                        query(
                            "histogram_quantile(0.95, sum by (le) (rate(postroad_ingress_message_bytes_bucket{NODE}[RATE])))",
                            "95 %",
                        ),
                    ],
                    runbook: reading("ingress"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Time to 250",
                    description: "From the end of a message to the answer of the queue: a majority of its disks has synced then.",
                    kind: Kind::Lines,
                    unit: Unit::Seconds,
                    queries: &[
                        query(
                            "histogram_quantile(0.5, sum by (le) (rate(postroad_ingress_submit_seconds_bucket{NODE}[RATE])))",
                            "half",
                        ),
                        query(
                            "histogram_quantile(0.99, sum by (le) (rate(postroad_ingress_submit_seconds_bucket{NODE}[RATE])))",
                            "99 %",
                        ),
                    ],
                    runbook: alert("postroadsyncslow"),
                    moved_by: Moved::Up(Fault::DiskSlow),
                },
                Panel {
                    title: "Waiting for their commit",
                    description: "Bytes of messages that clients have sent and the queue has not answered; `ingress.in_flight_bytes_max` bounds them.",
                    kind: Kind::Lines,
                    unit: Unit::Bytes,
                    queries: &[query("sum by (node) (postroad_ingress_in_flight_bytes{NODE})", "{{node}}")],
                    runbook: alert("postroadmailrefused"),
                    moved_by: Moved::Up(Fault::MajorityKilled),
                },
                Panel {
                    title: "Received",
                    description: "Bytes from SMTP clients.",
                    kind: Kind::Lines,
                    unit: Unit::BytesPerSecond,
                    queries: &[query(
                        "sum by (listener) (rate(postroad_net_smtp_received_bytes_total{NODE}[RATE]))",
                        "{{listener}}",
                    )],
                    runbook: reading("ingress"),
                    moved_by: Moved::Up(Fault::Load),
                },
            ],
        },
        Row {
            title: "Clients",
            panels: &[
                Panel {
                    title: "Open connections",
                    description: "SMTP connections by listener.",
                    kind: Kind::Stack,
                    unit: Unit::Count,
                    queries: &[query(
                        "sum by (listener) (postroad_net_smtp_connections_open{NODE})",
                        "{{listener}}",
                    )],
                    runbook: alert("postroadconnectionsrefused"),
                    moved_by: Moved::Up(Fault::BadClients),
                },
                Panel {
                    title: "New connections",
                    description: "SMTP connections accepted.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum by (listener) (rate(postroad_net_smtp_connections_total{NODE}[RATE]))",
                        "{{listener}}",
                    )],
                    runbook: reading("ingress"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Connections refused",
                    description: "By the bound that was hit, and those that the system could not give us.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[
                        query(
                            "sum by (bound) (rate(postroad_net_smtp_refused_total{NODE}[RATE]))",
                            "{{bound}}",
                        ),
                        query("sum(rate(postroad_net_accept_failures_total{NODE}[RATE]))", "not accepted"),
                    ],
                    runbook: alert("postroadconnectionsrefused"),
                    moved_by: Moved::Up(Fault::BadClients),
                },
                Panel {
                    title: "Refused",
                    description: "Senders, recipients and messages, by reason.",
                    kind: Kind::Stack,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum by (reason) (rate(postroad_ingress_rejections_total{NODE}[RATE]))",
                        "{{reason}}",
                    )],
                    runbook: reading("ingress"),
                    moved_by: Moved::Up(Fault::BadClients),
                },
                Panel {
                    title: "Logins",
                    description: "By result. Many that are wrong are somebody who guesses.",
                    kind: Kind::Stack,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum by (result) (rate(postroad_ingress_logins_total{NODE}[RATE]))",
                        "{{result}}",
                    )],
                    runbook: reading("ingress"),
                    moved_by: Moved::Up(Fault::BadClients),
                },
                Panel {
                    title: "Clients in trouble",
                    description: "Failed TLS handshakes, timeouts, connections cut at the end of a drain, and messages whose client left before it read the 250: it may send them again.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[
                        query(
                            "sum(rate(postroad_net_smtp_handshake_failures_total{NODE}[RATE]))",
                            "TLS failed",
                        ),
                        query("sum(rate(postroad_net_smtp_timeouts_total{NODE}[RATE]))", "timeout"),
                        query("sum(rate(postroad_net_smtp_drain_aborted_total{NODE}[RATE]))", "cut"),
                        query(
                            "sum(rate(postroad_net_smtp_ack_undelivered_total{NODE}[RATE]))",
                            "left before 250",
                        ),
                    ],
                    runbook: reading("ingress"),
                    moved_by: Moved::Up(Fault::BadClients),
                },
                Panel {
                    title: "Tolerated",
                    description: "Deviations from the syntax that were accepted, by kind.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[
                        query(
                            "sum by (tolerance) (rate(postroad_net_smtp_tolerated_total{NODE}[RATE]))",
                            "SMTP {{tolerance}}",
                        ),
                        query(
                            "sum by (tolerance) (rate(postroad_ingress_grpc_tolerated_total{NODE}[RATE]))",
                            "gRPC {{tolerance}}",
                        ),
                    ],
                    runbook: reading("ingress"),
                    moved_by: Moved::Up(Fault::BadClients),
                },
            ],
        },
        Row {
            title: "DNS",
            panels: &[
                Panel {
                    title: "Lookups",
                    description: "Of the mail hosts of recipients, by result.",
                    kind: Kind::Stack,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum by (result) (rate(postroad_dns_lookups_total{NODE}[RATE]))",
                        "{{result}}",
                    )],
                    runbook: reading("dns"),
                    moved_by: Moved::Up(Fault::DnsFails),
                },
                Panel {
                    title: "Time of lookups",
                    description: "Half, and 95 of 100, are faster.",
                    kind: Kind::Lines,
                    unit: Unit::Seconds,
                    queries: &[
                        query(
                            "histogram_quantile(0.5, sum by (le) (rate(postroad_dns_lookup_seconds_bucket{NODE}[RATE])))",
                            "half",
                        ),
                        query(
                            "histogram_quantile(0.95, sum by (le) (rate(postroad_dns_lookup_seconds_bucket{NODE}[RATE])))",
                            "95 %",
                        ),
                    ],
                    runbook: reading("dns"),
                    moved_by: Moved::Up(Fault::DnsFails),
                },
                Panel {
                    title: "Where sites come from",
                    description: "The cache, a lookup, or the domain itself when no lookup ended in time.",
                    kind: Kind::Stack,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum by (from) (rate(postroad_dns_sites_total{NODE}[RATE]))",
                        "{{from}}",
                    )],
                    runbook: reading("dns"),
                    moved_by: Moved::Up(Fault::DnsFails),
                },
            ],
        },
    ],
};
