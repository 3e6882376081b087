//! All dashboards.

use crate::{
    Runbook,
    dashboard::{Dashboard, Query},
};

mod ingress;
mod outbound;
mod overview;
mod queue;
mod storage;
mod tenant;

/// All of them, in the order in which Grafana lists them best: the overview first.
pub const DASHBOARDS: &[Dashboard] = &[
    overview::DASHBOARD,
    ingress::DASHBOARD,
    queue::DASHBOARD,
    outbound::DASHBOARD,
    storage::DASHBOARD,
    tenant::DASHBOARD,
];

const fn query(query: &'static str, legend: &'static str) -> Query {
    Query { query, legend }
}

/// A part of the page of alerts.
const fn alert(anchor: &'static str) -> Runbook {
    Runbook { page: "alerts.md", anchor }
}

/// A part of the page about what is normal.
const fn reading(anchor: &'static str) -> Runbook {
    Runbook { page: "monitoring.md", anchor }
}
