//! Storage and disks: are the disks fast enough and large enough, and when do certificates end?

use super::{alert, query, reading};
use crate::dashboard::{Dashboard, Fault, Kind, Moved, NODE, Panel, Row, Unit};

pub(super) const DASHBOARD: Dashboard = Dashboard {
    uid: "postroad-storage",
    title: "Postroad / Storage and disks",
    description: "Are the disks fast enough and large enough, and when do certificates end?",
    variables: &[NODE],
    rows: &[
        Row {
            title: "Disks",
            panels: &[
                Panel {
                    title: "Used",
                    description: "The share of the file system that holds the data of each node.",
                    kind: Kind::Lines,
                    unit: Unit::Share,
                    queries: &[query(
                        "1 - postroad_data_disk_available_bytes{NODE} / postroad_data_disk_size_bytes{NODE}",
                        "{{node}}",
                    )],
                    runbook: alert("postroaddisklow"),
                    moved_by: Moved::Up(Fault::DiskFills),
                },
                Panel {
                    title: "Available",
                    description: "Bytes that the node may still use.",
                    kind: Kind::Lines,
                    unit: Unit::Bytes,
                    queries: &[query("postroad_data_disk_available_bytes{NODE}", "{{node}}")],
                    runbook: alert("postroaddiskfillsup"),
                    moved_by: Moved::Down(Fault::DiskFills),
                },
                Panel {
                    title: "Full or refused",
                    description: "1 while a node accepts no mail because its disk is full, or while the others refuse its disk.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[
                        query("postroad_queue_disk_full{NODE}", "{{node}} full"),
                        query("postroad_queue_disk_refused{NODE}", "{{node}} refused"),
                    ],
                    runbook: alert("postroaddiskfull"),
                    moved_by: Moved::Up(Fault::DiskFills),
                },
                Panel {
                    title: "Time of a sync",
                    description: "Writing one batch to the log and syncing it; 90 and 99 of 100 are faster.",
                    kind: Kind::Lines,
                    unit: Unit::Seconds,
                    queries: &[
                        query(
                            "histogram_quantile(0.9, sum by (node, le) (rate(postroad_storage_sync_seconds_bucket{NODE}[RATE])))",
                            "{{node}} 90 %",
                        ),
                        query(
                            "histogram_quantile(0.99, sum by (node, le) (rate(postroad_storage_sync_seconds_bucket{NODE}[RATE])))",
                            "{{node}} 99 %",
                        ),
                    ],
                    runbook: alert("postroadsyncslow"),
                    moved_by: Moved::Up(Fault::DiskSlow),
                },
                Panel {
                    title: "Syncs",
                    description: "Batches written to the log, each with one sync.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum by (node) (rate(postroad_queue_log_batches_total{NODE}[RATE]))",
                        "{{node}}",
                    )],
                    runbook: reading("storage-and-disks"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Written",
                    description: "Bytes written to the log, the message bodies among them, and bodies moved because they outlived their segment.",
                    kind: Kind::Lines,
                    unit: Unit::BytesPerSecond,
                    queries: &[
                        query(
                            "sum by (node) (rate(postroad_queue_log_written_bytes_total{NODE}[RATE]))",
                            "{{node}} all",
                        ),
                        query(
                            "sum by (node) (rate(postroad_queue_log_body_bytes_total{NODE}[RATE]))",
                            "{{node}} bodies",
                        ),
                        query(
                            "sum by (node) (rate(postroad_queue_log_moved_bytes_total{NODE}[RATE]))",
                            "{{node}} moved",
                        ),
                    ],
                    runbook: reading("storage-and-disks"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Events kept",
                    description: "Bytes of events that control has not read.",
                    kind: Kind::Lines,
                    unit: Unit::Bytes,
                    queries: &[query("max by (group) (postroad_queue_event_bytes{NODE})", "group {{group}}")],
                    runbook: alert("postroadeventsunread"),
                    moved_by: Moved::Up(Fault::ControlHangs),
                },
            ],
        },
        Row {
            title: "Files, logs and certificates",
            panels: &[
                Panel {
                    title: "File descriptors",
                    description: "The share of the limit that is open.",
                    kind: Kind::Lines,
                    unit: Unit::Share,
                    queries: &[query(
                        "process_open_fds{NODE,job=~\".*postroad.*\"} / process_max_fds{NODE,job=~\".*postroad.*\"}",
                        "{{node}}",
                    )],
                    runbook: alert("postroadfiledescriptors"),
                    moved_by: Moved::Up(Fault::BadClients),
                },
                Panel {
                    title: "Mail log",
                    description: "Lines written, left out because clients caused too many, and lost.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[
                        query("sum(rate(postroad_mail_log_lines_total{NODE}[RATE]))", "written"),
                        query("sum(rate(postroad_mail_log_omitted_lines_total{NODE}[RATE]))", "left out"),
                        query("sum(rate(postroad_mail_log_lost_lines_total{NODE}[RATE]))", "lost"),
                    ],
                    runbook: alert("postroadmaillogloses"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Certificates",
                    description: "Seconds until each certificate ends: of the node, of the authority of the cluster, and of the listener.",
                    kind: Kind::Lines,
                    unit: Unit::Seconds,
                    queries: &[query(
                        "min by (node, certificate) (postroad_net_certificate_ends_timestamp_seconds{NODE}) - time()",
                        "{{node}} {{certificate}}",
                    )],
                    runbook: alert("postroadcertificateendssoon"),
                    moved_by: Moved::Down(Fault::CertificateEnds),
                },
                Panel {
                    title: "Handshakes between nodes that failed",
                    description: "By side.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum by (node, side) (rate(postroad_net_node_handshake_failures_total{NODE}[RATE]))",
                        "{{node}} {{side}}",
                    )],
                    runbook: alert("postroadnodehandshakesfail"),
                    moved_by: Moved::Up(Fault::CertificateEnds),
                },
            ],
        },
    ],
};
