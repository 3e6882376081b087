//! The processes themselves.

use crate::alert::{Alert, Severity::Warning, Story};

pub(super) const ALERTS: &[Alert] = &[
    Alert {
        name: "PostroadNodeRestarts",
        severity: Warning,
        lasts: "0m",
        expr: "changes(process_start_time_seconds{job=~\".*postroad.*\"}[30m]) > 2",
        summary: "{{ $labels.node }} started {{ $value }} times in half an hour",
        story: Story {
            series: &[("process_start_time_seconds{node=\"q\"}", "100+0x10 100+300x5 1600+0x60")],
            quiet_fires_ended: ["9m", "20m", "60m"],
        },
    },
    Alert {
        name: "PostroadFileDescriptors",
        severity: Warning,
        lasts: "10m",
        expr: "process_open_fds{job=~\".*postroad.*\"} / process_max_fds{job=~\".*postroad.*\"} > 0.8",
        summary: "{{ $labels.node }} uses {{ $value | humanizePercentage }} of its file descriptors",
        story: Story {
            series: &[
                ("process_open_fds{node=\"i\"}", "100+0x10 900+0x30 100+0x30"),
                ("process_max_fds{node=\"i\"}", "1000+0x80"),
            ],
            quiet_fires_ended: ["9m", "35m", "60m"],
        },
    },
    Alert {
        name: "PostroadMailLogLoses",
        severity: Warning,
        lasts: "0m",
        expr: "increase(postroad_mail_log_lost_lines_total[15m]) > 0",
        summary: "{{ $labels.node }} lost {{ $value | humanize }} lines of its mail log",
        story: Story {
            series: &[("postroad_mail_log_lost_lines_total{node=\"i\"}", "0+0x10 40+0x60")],
            quiet_fires_ended: ["9m", "15m", "40m"],
        },
    },
];
