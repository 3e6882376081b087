//! Mail is not accepted, or is not sent.

use crate::alert::{
    Alert,
    Severity::{Critical, Warning},
    Story,
};

pub(super) const ALERTS: &[Alert] = &[
    Alert {
        name: "PostroadMailRefused",
        severity: Critical,
        lasts: "5m",
        expr: "postroad:ingress_faults:rate5m / (postroad:ingress_faults:rate5m + on (cluster, namespace) sum by (cluster, namespace) (rate(postroad_ingress_messages_total[5m]))) > 0.05",
        summary: "{{ $value | humanizePercentage }} of mail is refused for reasons of our own",
        story: Story {
            series: &[
                ("postroad_ingress_messages_total{node=\"i\"}", "0+60x80"),
                (
                    "postroad_ingress_rejections_total{node=\"i\",reason=\"unavailable\"}",
                    "0+0x10 0+60x30 1800+0x40",
                ),
                ("postroad_ingress_rejections_total{node=\"i\",reason=\"relay\"}", "0+600x80"),
                // Without a queue node in reach every connection gets 421.
                ("postroad_net_smtp_refused_total{node=\"i\",bound=\"policy\"}", "0+0x40 0+60x20 1200+0x20"),
                ("postroad_net_smtp_refused_total{node=\"i\",bound=\"connections\"}", "0+600x80"),
            ],
            quiet_fires_ended: ["9m", "58m", "75m"],
        },
    },
    Alert {
        name: "PostroadConnectionsNotAccepted",
        severity: Critical,
        lasts: "2m",
        expr: "rate(postroad_net_accept_failures_total[5m]) > 0",
        summary: "{{ $labels.node }} cannot accept connections",
        story: Story {
            series: &[("postroad_net_accept_failures_total{node=\"i\"}", "0+0x10 0+5x20 100+0x30")],
            quiet_fires_ended: ["9m", "25m", "50m"],
        },
    },
    Alert {
        name: "PostroadConnectionsRefused",
        severity: Warning,
        lasts: "10m",
        expr: "sum by (cluster, namespace, node, listener, bound) (rate(postroad_net_smtp_refused_total{bound=~\"connections.*\"}[5m])) > 0.1",
        summary: "{{ $labels.node }} refuses clients of listener {{ $labels.listener }}: bound {{ $labels.bound }} is reached",
        story: Story {
            series: &[(
                "postroad_net_smtp_refused_total{node=\"i\",listener=\"submission\",bound=\"connections\"}",
                "0+0x10 0+60x30 1800+0x40",
            )],
            quiet_fires_ended: ["9m", "35m", "60m"],
        },
    },
    Alert {
        name: "PostroadQueueGrows",
        severity: Warning,
        lasts: "15m",
        expr: "sum by (cluster, namespace) (postroad:queue_deliveries:sum) > 5000 and sum by (cluster, namespace) (postroad:queue_deliveries:sum) > 1.5 * sum by (cluster, namespace) (postroad:queue_deliveries:sum offset 1h )",
        summary: "{{ $value | humanize }} deliveries wait, and half as many again as an hour ago",
        story: Story {
            series: &[(
                "postroad_queue_deliveries{node=\"q\",group=\"1\",state=\"queued\"}",
                "1000+0x60 1000+200x60 13000+0x120",
            )],
            quiet_fires_ended: ["60m", "110m", "220m"],
        },
    },
    Alert {
        name: "PostroadQueueWaits",
        severity: Warning,
        lasts: "10m",
        expr: "max by (cluster, namespace, group) (postroad_queue_longest_wait_seconds) > <30m>",
        summary: "A delivery of group {{ $labels.group }} has been due for {{ $value | humanizeDuration }} and was not sent",
        story: Story {
            series: &[("postroad_queue_longest_wait_seconds{node=\"q\",group=\"1\"}", "0+60x60 0+0x30")],
            quiet_fires_ended: ["20m", "50m", "70m"],
        },
    },
    Alert {
        name: "PostroadNoOutbound",
        severity: Critical,
        lasts: "2m",
        expr: "max by (cluster, namespace, group) (postroad_queue_sessions) == 0 and on (cluster, namespace, group) max by (cluster, namespace, group) (postroad_queue_leading) == 1",
        summary: "No outbound node is connected to the leader of group {{ $labels.group }}",
        story: Story {
            series: &[
                ("postroad_queue_sessions{node=\"q\",group=\"1\"}", "2+0x10 0+0x20 2+0x20"),
                ("postroad_queue_leading{node=\"q\",group=\"1\"}", "1+0x60"),
            ],
            quiet_fires_ended: ["9m", "20m", "40m"],
        },
    },
    Alert {
        name: "PostroadSourcesUnowned",
        severity: Critical,
        lasts: "5m",
        expr: "(postroad_queue_sources_unowned and on (cluster, namespace, node) postroad_queue_leading{group=\"0\"} == 1) > 0",
        summary: "{{ $value }} sources have no outbound node that sends from them",
        story: Story {
            series: &[
                ("postroad_queue_sources_unowned{node=\"q\"}", "0+0x10 1+0x20 0+0x20"),
                ("postroad_queue_leading{node=\"q\",group=\"0\"}", "1+0x60"),
            ],
            quiet_fires_ended: ["9m", "25m", "40m"],
        },
    },
    Alert {
        name: "PostroadSourceWithoutAddress",
        severity: Warning,
        lasts: "10m",
        expr: "postroad_outbound_sources_without_address > 0",
        summary: "{{ $labels.node }} has not the address of {{ $value }} of its sources",
        story: Story {
            series: &[("postroad_outbound_sources_without_address{node=\"o\"}", "0+0x10 1+0x30 0+0x20")],
            quiet_fires_ended: ["9m", "35m", "55m"],
        },
    },
    Alert {
        name: "PostroadLeaseLost",
        severity: Warning,
        lasts: "0m",
        expr: "increase(postroad_outbound_lease_ends_total[15m]) > 0",
        summary: "{{ $labels.node }} stopped sending: it could not renew its lease",
        story: Story {
            series: &[("postroad_outbound_lease_ends_total{node=\"o\"}", "0+0x10 1+0x40")],
            quiet_fires_ended: ["9m", "15m", "40m"],
        },
    },
];
