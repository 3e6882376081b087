//! Disks, and control, which frees the queue of its events.

use crate::alert::{
    Alert,
    Severity::{Critical, Warning},
    Story,
};

pub(super) const ALERTS: &[Alert] = &[
    Alert {
        name: "PostroadDiskFull",
        severity: Critical,
        lasts: "0m",
        expr: "postroad_queue_disk_full == 1",
        summary: "The disk of {{ $labels.node }} is full: it accepts no mail",
        story: Story {
            series: &[("postroad_queue_disk_full{node=\"q\"}", "0+0x10 1+0x20 0+0x20")],
            quiet_fires_ended: ["9m", "20m", "40m"],
        },
    },
    Alert {
        name: "PostroadDiskFillsUp",
        severity: Warning,
        lasts: "30m",
        expr: "predict_linear(postroad_data_disk_available_bytes[6h], <1d>) < 0 and postroad_data_disk_available_bytes / postroad_data_disk_size_bytes < 0.5",
        summary: "The disk of {{ $labels.node }} will be full within a day",
        story: Story {
            series: &[
                ("postroad_data_disk_size_bytes{node=\"q\"}", "100000+0x1200"),
                ("postroad_data_disk_available_bytes{node=\"q\"}", "90000+0x100 90000-100x600 90000+0x500"),
            ],
            quiet_fires_ended: ["100m", "690m", "1190m"],
        },
    },
    Alert {
        name: "PostroadDiskLow",
        severity: Warning,
        lasts: "10m",
        expr: "postroad_data_disk_available_bytes / postroad_data_disk_size_bytes < 0.1",
        summary: "The disk of {{ $labels.node }} has {{ $value | humanizePercentage }} left",
        story: Story {
            series: &[
                ("postroad_data_disk_size_bytes{node=\"q\"}", "100+0x80"),
                ("postroad_data_disk_available_bytes{node=\"q\"}", "50+0x10 5+0x30 50+0x30"),
            ],
            quiet_fires_ended: ["9m", "35m", "60m"],
        },
    },
    Alert {
        name: "PostroadSyncSlow",
        severity: Warning,
        lasts: "10m",
        expr: "histogram_quantile(0.9, sum by (cluster, namespace, node, le) (rate(postroad_storage_sync_seconds_bucket[5m]))) > 0.1",
        summary: "One write to the log in ten takes {{ $value | humanizeDuration }} on {{ $labels.node }}",
        story: Story {
            series: &[
                ("postroad_storage_sync_seconds_bucket{node=\"q\",le=\"0.1\"}", "0+60x10 600+0x30 600+60x40"),
                ("postroad_storage_sync_seconds_bucket{node=\"q\",le=\"0.5\"}", "0+60x80"),
                ("postroad_storage_sync_seconds_bucket{node=\"q\",le=\"+Inf\"}", "0+60x80"),
            ],
            quiet_fires_ended: ["9m", "35m", "60m"],
        },
    },
    Alert {
        name: "PostroadContentUnreadable",
        severity: Critical,
        lasts: "0m",
        expr: "increase(postroad_queue_unreadable_contents_total[1h]) > 0",
        summary: "{{ $labels.node }} cannot read message bodies from its disk",
        story: Story {
            series: &[("postroad_queue_unreadable_contents_total{node=\"q\",group=\"1\"}", "0+0x10 1+0x120")],
            quiet_fires_ended: ["9m", "30m", "100m"],
        },
    },
    Alert {
        name: "PostroadEventsUnread",
        severity: Warning,
        lasts: "10m",
        expr: "max by (cluster, namespace, group) (postroad_queue_event_fill_ratio) > 0.5",
        summary: "Events of group {{ $labels.group }} fill {{ $value | humanizePercentage }} of their room; the oldest are dropped when it is full",
        story: Story {
            series: &[("postroad_queue_event_fill_ratio{node=\"q\",group=\"1\"}", "0+0x10 0.6+0x30 0+0x30")],
            quiet_fires_ended: ["9m", "35m", "60m"],
        },
    },
    Alert {
        name: "PostroadControlBehind",
        severity: Warning,
        lasts: "15m",
        expr: "sum by (cluster, namespace) (max by (cluster, namespace, group) (postroad_queue_unread_events)) > 20000",
        summary: "Control has not read {{ $value | humanize }} events: the history is behind",
        story: Story {
            series: &[("postroad_queue_unread_events{node=\"q\",group=\"1\"}", "0+0x10 30000+0x30 0+0x30")],
            quiet_fires_ended: ["9m", "35m", "60m"],
        },
    },
    Alert {
        name: "PostroadEventsLost",
        severity: Critical,
        lasts: "0m",
        expr: "increase(postroad_control_lost_events_total[1h]) > 0",
        summary: "The history of {{ $labels.cluster }} lacks {{ $value | humanize }} events: the queue had dropped them",
        story: Story {
            series: &[("postroad_control_lost_events_total{node=\"c\"}", "0+0x10 500+0x120")],
            quiet_fires_ended: ["9m", "30m", "100m"],
        },
    },
    Alert {
        name: "PostroadHistoryNotWritten",
        severity: Warning,
        lasts: "5m",
        expr: "rate(postroad_control_write_failures_total[5m]) > 0",
        summary: "{{ $labels.node }} cannot write to its database",
        story: Story {
            series: &[("postroad_control_write_failures_total{node=\"c\"}", "0+0x10 0+30x30 900+0x30")],
            quiet_fires_ended: ["9m", "35m", "60m"],
        },
    },
];
