//! Writes what the test with real programs asks: every query and every variable, and what moves each panel.

use serde_json::{Value, json};

use crate::{
    DASHBOARDS,
    dashboard::{Dashboard, Moved, Panel},
};

pub(crate) fn panels() -> String {
    let dashboards: Vec<Value> = DASHBOARDS.iter().map(dashboard).collect();
    format!("{:#}\n", Value::from(dashboards))
}

fn dashboard(dashboard: &Dashboard) -> Value {
    let variables = dashboard.all_variables();
    let variables = variables.map(|variable| json!({"label": variable.label, "metric": variable.metric}));
    let panels: Vec<Value> = dashboard.panels().map(panel).collect();
    json!({"dashboard": dashboard.title, "variables": variables.collect::<Vec<_>>(), "panels": panels})
}

fn panel(panel: &Panel) -> Value {
    let (fault, moves) = match panel.moved_by {
        Moved::Up(fault) => (fault, "up"),
        Moved::Down(fault) => (fault, "down"),
    };
    let queries: Vec<String> = panel.queries.iter().map(|query| query.promql()).collect();
    json!({"title": panel.title, "fault": fault.as_str(), "moves": moves, "queries": queries})
}
