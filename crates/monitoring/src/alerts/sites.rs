//! Receivers that defer, refuse or block.

use crate::alert::{Alert, Severity::Warning, Story};

pub(super) const ALERTS: &[Alert] = &[
    Alert {
        name: "PostroadLanePaused",
        severity: Warning,
        lasts: "1h",
        // A pause ends for a moment whenever the site is tried again.
        expr: "sum by (cluster, namespace, site) (max_over_time(postroad_outbound_paused_lanes{site!=\"other\"}[10m])) > 0 and on (cluster, namespace, site) sum by (cluster, namespace, site) (postroad_queue_site_deliveries) > 0",
        summary: "Site {{ $labels.site }} has been paused for an hour, with mail waiting",
        story: Story {
            series: &[
                ("postroad_outbound_paused_lanes{node=\"o\",site=\"a.test\"}", "_x10 1+0x90 0+0x60"),
                ("postroad_queue_site_deliveries{node=\"q\",group=\"1\",site=\"a.test\"}", "50+0x180"),
            ],
            quiet_fires_ended: ["60m", "90m", "130m"],
        },
    },
    Alert {
        name: "PostroadDeferralRate",
        severity: Warning,
        lasts: "15m",
        expr: "sum by (cluster, namespace) (postroad:site_attempts:rate30m{outcome=~\"soft|site_soft|policy_block|unknown\"}) / sum by (cluster, namespace) (postroad:site_attempts:rate30m) > 0.3 and sum by (cluster, namespace) (postroad:site_attempts:rate30m) > 0.05",
        summary: "{{ $value | humanizePercentage }} of all attempts are deferred",
        story: Story {
            series: &[
                (
                    "postroad_outbound_site_attempts_total{node=\"o\",site=\"a\",outcome=\"delivered\"}",
                    "0+100x180",
                ),
                (
                    "postroad_outbound_site_attempts_total{node=\"o\",site=\"a\",outcome=\"soft\"}",
                    "0+0x20 0+100x60 6000+0x100",
                ),
            ],
            quiet_fires_ended: ["20m", "75m", "130m"],
        },
    },
    Alert {
        name: "PostroadSiteDefers",
        severity: Warning,
        lasts: "30m",
        expr: "sum by (cluster, namespace, site) (postroad:site_attempts:rate30m{outcome=~\"soft|site_soft|policy_block|unknown\"}) / sum by (cluster, namespace, site) (postroad:site_attempts:rate30m) > 0.8 and sum by (cluster, namespace, site) (postroad:site_attempts:rate30m) > 0.01",
        summary: "Site {{ $labels.site }} defers {{ $value | humanizePercentage }} of attempts",
        story: Story {
            series: &[
                (
                    "postroad_outbound_site_attempts_total{node=\"o\",site=\"a\",outcome=\"delivered\"}",
                    "0+10x20 200+0x70 200+10x100",
                ),
                (
                    "postroad_outbound_site_attempts_total{node=\"o\",site=\"a\",outcome=\"site_soft\"}",
                    "0+0x20 0+100x70 7000+0x100",
                ),
            ],
            quiet_fires_ended: ["20m", "85m", "170m"],
        },
    },
    Alert {
        name: "PostroadBounceRate",
        severity: Warning,
        lasts: "15m",
        expr: "sum by (cluster, namespace) (postroad:site_attempts:rate30m{outcome=\"hard\"}) / sum by (cluster, namespace) (postroad:site_attempts:rate30m) > 0.1 and sum by (cluster, namespace) (postroad:site_attempts:rate30m) > 0.05",
        summary: "{{ $value | humanizePercentage }} of all attempts bounce",
        story: Story {
            series: &[
                (
                    "postroad_outbound_site_attempts_total{node=\"o\",site=\"a\",outcome=\"delivered\"}",
                    "0+100x180",
                ),
                (
                    "postroad_outbound_site_attempts_total{node=\"o\",site=\"a\",outcome=\"hard\"}",
                    "0+0x20 0+50x60 3000+0x100",
                ),
            ],
            quiet_fires_ended: ["20m", "75m", "130m"],
        },
    },
    Alert {
        name: "PostroadSiteBounces",
        severity: Warning,
        lasts: "30m",
        expr: "sum by (cluster, namespace, site) (postroad:site_attempts:rate30m{outcome=\"hard\"}) / sum by (cluster, namespace, site) (postroad:site_attempts:rate30m) > 0.3 and sum by (cluster, namespace, site) (postroad:site_attempts:rate30m) > 0.01",
        summary: "Site {{ $labels.site }} refuses {{ $value | humanizePercentage }} of attempts for good",
        story: Story {
            series: &[
                (
                    "postroad_outbound_site_attempts_total{node=\"o\",site=\"a\",outcome=\"delivered\"}",
                    "0+10x180",
                ),
                (
                    "postroad_outbound_site_attempts_total{node=\"o\",site=\"a\",outcome=\"hard\"}",
                    "0+0x20 0+100x70 7000+0x100",
                ),
            ],
            quiet_fires_ended: ["20m", "85m", "150m"],
        },
    },
    Alert {
        name: "PostroadBlocked",
        severity: Warning,
        lasts: "15m",
        expr: "sum by (cluster, namespace, site) (postroad:site_attempts:rate30m{outcome=\"policy_block\"}) / sum by (cluster, namespace, site) (postroad:site_attempts:rate30m) > 0.1 and sum by (cluster, namespace, site) (postroad:site_attempts:rate30m) > 0.01",
        summary: "Site {{ $labels.site }} blocks {{ $value | humanizePercentage }} of attempts by policy",
        story: Story {
            series: &[
                (
                    "postroad_outbound_site_attempts_total{node=\"o\",site=\"a\",outcome=\"delivered\"}",
                    "0+100x180",
                ),
                (
                    "postroad_outbound_site_attempts_total{node=\"o\",site=\"a\",outcome=\"policy_block\"}",
                    "0+0x20 0+50x60 3000+0x100",
                ),
            ],
            quiet_fires_ended: ["20m", "75m", "130m"],
        },
    },
];
