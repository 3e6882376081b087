//! The queue has no leader, or the next failure takes it.

use crate::alert::{
    Alert,
    Severity::{Critical, Warning},
    Story,
};

pub(super) const ALERTS: &[Alert] = &[
    Alert {
        name: "PostroadNoLeader",
        severity: Critical,
        lasts: "1m",
        expr: "max by (cluster, namespace, group) (postroad_queue_leading) == 0",
        summary: "Group {{ $labels.group }} has no leader: its mail is neither accepted nor sent",
        story: Story {
            series: &[
                ("postroad_queue_leading{node=\"q1\",group=\"1\"}", "1+0x10 0+0x20 0+0x20"),
                ("postroad_queue_leading{node=\"q2\",group=\"1\"}", "0+0x10 0+0x20 1+0x20"),
            ],
            quiet_fires_ended: ["9m", "20m", "40m"],
        },
    },
    Alert {
        name: "PostroadQueueDown",
        severity: Critical,
        lasts: "1m",
        expr: "(sum by (cluster, namespace) (max_over_time(postroad_queue_directory_revision[1h])) unless on (cluster, namespace) sum by (cluster, namespace) (postroad_queue_directory_revision)) > 0",
        summary: "No queue node of {{ $labels.cluster }} shows metrics",
        story: Story {
            series: &[("postroad_queue_directory_revision{node=\"q\"}", "7+0x10 _x30 7+0x20")],
            quiet_fires_ended: ["9m", "30m", "55m"],
        },
    },
    Alert {
        name: "PostroadQuorumAtRisk",
        severity: Warning,
        lasts: "5m",
        // With one more of them silent, fewer than a majority of the voters would answer.
        expr: "max by (cluster, namespace, group) (postroad_queue_voters_answering) - 1 < floor(max by (cluster, namespace, group) (postroad_queue_voters) / 2) + 1 and max by (cluster, namespace, group) (postroad_queue_voters) > 1",
        summary: "Group {{ $labels.group }} loses its majority with the next queue node that fails",
        story: Story {
            series: &[
                ("postroad_queue_voters{node=\"q\",group=\"1\"}", "3+0x60"),
                ("postroad_queue_voters_answering{node=\"q\",group=\"1\"}", "3+0x10 2+0x20 3+0x30"),
            ],
            quiet_fires_ended: ["9m", "25m", "45m"],
        },
    },
    Alert {
        name: "PostroadReplicationBehind",
        severity: Warning,
        lasts: "5m",
        expr: "max by (cluster, namespace, group, follower) (postroad_queue_follower_behind_bytes) > 67108864",
        summary: "Queue node {{ $labels.follower }} is {{ $value | humanize1024 }}B behind in group {{ $labels.group }}",
        story: Story {
            series: &[(
                "postroad_queue_follower_behind_bytes{node=\"q\",group=\"1\",follower=\"2\"}",
                "0+0x10 0+10000000x30 0+0x20",
            )],
            quiet_fires_ended: ["9m", "35m", "55m"],
        },
    },
    Alert {
        name: "PostroadLeaderChanges",
        severity: Warning,
        lasts: "0m",
        expr: "max by (cluster, namespace, group) (changes(postroad_queue_term[15m])) > 3",
        summary: "Group {{ $labels.group }} had {{ $value }} new terms in a quarter of an hour",
        story: Story {
            series: &[("postroad_queue_term{node=\"q\",group=\"1\"}", "3+0x10 3+1x20 23+0x40")],
            quiet_fires_ended: ["9m", "25m", "60m"],
        },
    },
    Alert {
        name: "PostroadNodeDown",
        severity: Warning,
        lasts: "5m",
        expr: "up{job=~\".*postroad.*\"} == 0",
        summary: "{{ $labels.node }} shows no metrics",
        story: Story {
            series: &[("up{node=\"q\"}", "1+0x10 0+0x20 1+0x20")],
            quiet_fires_ended: ["9m", "25m", "40m"],
        },
    },
    Alert {
        name: "PostroadNodeUnready",
        severity: Warning,
        lasts: "10m",
        expr: "min by (cluster, namespace, node, component) (postroad_ready) == 0",
        summary: "{{ $labels.node }} is not ready: {{ $labels.component }}",
        story: Story {
            series: &[("postroad_ready{node=\"q\",component=\"disk\"}", "1+0x10 0+0x30 1+0x20")],
            quiet_fires_ended: ["9m", "35m", "50m"],
        },
    },
    Alert {
        name: "PostroadDiskRefused",
        severity: Critical,
        lasts: "1m",
        expr: "postroad_queue_disk_refused == 1",
        summary: "The other queue nodes refuse the disk of {{ $labels.node }}",
        story: Story {
            series: &[("postroad_queue_disk_refused{node=\"q\"}", "0+0x10 1+0x20 0+0x20")],
            quiet_fires_ended: ["9m", "20m", "40m"],
        },
    },
    Alert {
        name: "PostroadCertificateEndsSoon",
        severity: Warning,
        lasts: "15m",
        expr: "postroad_net_certificate_ends_timestamp_seconds - time() < 21 * 86400",
        summary: "The certificate `{{ $labels.certificate }}` of {{ $labels.node }} ends in {{ $value | humanizeDuration }}",
        story: Story {
            series: &[(
                "postroad_net_certificate_ends_timestamp_seconds{node=\"q\",certificate=\"node\"}",
                "9000000+0x10 1000000+0x90 9000000+0x30",
            )],
            quiet_fires_ended: ["9m", "95m", "110m"],
        },
    },
    Alert {
        name: "PostroadCertificateEnds",
        severity: Critical,
        lasts: "10m",
        expr: "postroad_net_certificate_ends_timestamp_seconds - time() < 3 * 86400",
        summary: "The certificate `{{ $labels.certificate }}` of {{ $labels.node }} ends in {{ $value | humanizeDuration }}: the node stops working then",
        story: Story {
            series: &[(
                "postroad_net_certificate_ends_timestamp_seconds{node=\"q\",certificate=\"node\"}",
                "9000000+0x10 100000+0x30 9000000+0x30",
            )],
            quiet_fires_ended: ["9m", "35m", "60m"],
        },
    },
    Alert {
        name: "PostroadNodeHandshakesFail",
        severity: Warning,
        lasts: "10m",
        expr: "sum by (cluster, namespace, node) (rate(postroad_net_node_handshake_failures_total[5m])) > 0",
        summary: "{{ $labels.node }} and other nodes refuse each other's certificates",
        story: Story {
            series: &[(
                "postroad_net_node_handshake_failures_total{node=\"q\",side=\"accept\"}",
                "0+0x10 0+10x30 300+0x30",
            )],
            quiet_fires_ended: ["9m", "35m", "60m"],
        },
    },
];
