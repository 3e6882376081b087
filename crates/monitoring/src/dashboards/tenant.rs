//! Tenant: what each tenant sends, what is refused, and what waits.

use super::{alert, query, reading};
use crate::dashboard::{Dashboard, Fault, Kind, Moved, Panel, Row, TENANT, Unit};

pub(super) const DASHBOARD: Dashboard = Dashboard {
    uid: "postroad-tenant",
    title: "Postroad / Tenant",
    description: "What each tenant sends, what is refused, and what waits.",
    variables: &[TENANT],
    rows: &[Row {
        title: "Tenants",
        panels: &[
            Panel {
                title: "Messages",
                description: "Accepted, by tenant.",
                kind: Kind::Stack,
                unit: Unit::PerSecond,
                queries: &[query(
                    "sum by (tenant) (rate(postroad_ingress_messages_total{SCOPE,tenant=~\"$tenant\"}[RATE]))",
                    "{{tenant}}",
                )],
                runbook: reading("tenant"),
                moved_by: Moved::Up(Fault::Load),
            },
            Panel {
                title: "Recipients",
                description: "Of the messages accepted, by tenant.",
                kind: Kind::Stack,
                unit: Unit::PerSecond,
                queries: &[query(
                    "sum by (tenant) (rate(postroad_ingress_recipients_total{SCOPE,tenant=~\"$tenant\"}[RATE]))",
                    "{{tenant}}",
                )],
                runbook: reading("tenant"),
                moved_by: Moved::Up(Fault::Load),
            },
            Panel {
                title: "Bytes",
                description: "Of the messages accepted, by tenant.",
                kind: Kind::Stack,
                unit: Unit::BytesPerSecond,
                queries: &[query(
                    "sum by (tenant) (rate(postroad_ingress_accepted_bytes_total{SCOPE,tenant=~\"$tenant\"}[RATE]))",
                    "{{tenant}}",
                )],
                runbook: reading("tenant"),
                moved_by: Moved::Up(Fault::Load),
            },
            Panel {
                title: "Refused",
                description: "By tenant and reason; `unknown` is a client that has not said who it is.",
                kind: Kind::Stack,
                unit: Unit::PerSecond,
                queries: &[query(
                    "sum by (tenant, reason) (rate(postroad_ingress_rejections_total{SCOPE,tenant=~\"$tenant\"}[RATE])) > 0",
                    "{{tenant}} {{reason}}",
                )],
                runbook: reading("tenant"),
                moved_by: Moved::Up(Fault::BadClients),
            },
            Panel {
                title: "Waiting",
                description: "Deliveries that have not ended, by tenant.",
                kind: Kind::Stack,
                unit: Unit::Count,
                queries: &[query(
                    "sum by (tenant) (postroad_queue_tenant_deliveries{SCOPE,tenant=~\"$tenant\"})",
                    "{{tenant}}",
                )],
                runbook: alert("postroadqueuegrows"),
                moved_by: Moved::Up(Fault::SiteSlow),
            },
        ],
    }],
};
