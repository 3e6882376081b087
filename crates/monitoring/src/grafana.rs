//! Writes a dashboard as Grafana 10 and later read it.

use serde_json::{Value, json};

use crate::dashboard::{Dashboard, Kind, Panel, Query, Variable};

/// The version of Grafana's schema for dashboards that Grafana 10.4 writes.
const SCHEMA_VERSION: u32 = 39;
/// The columns of a dashboard.
const COLUMNS: u32 = 24;
const PANEL_HEIGHT: u32 = 8;
const PANEL_WIDTH: u32 = 8;
const NUMBER_HEIGHT: u32 = 4;
const NUMBER_WIDTH: u32 = 6;

pub(crate) fn dashboard(dashboard: &Dashboard) -> String {
    let mut variables = vec![data_source_variable()];
    variables.extend(dashboard.all_variables().map(variable));
    let made = json!({
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["postroad"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": "now-3h", "to": "now"},
        "annotations": {"list": []},
        "links": [{
            "type": "dashboards", "title": "Postroad", "tags": ["postroad"], "asDropdown": true,
            "includeVars": true, "keepTime": true, "targetBlank": false, "icon": "external link", "tooltip": "", "url": ""
        }],
        "templating": {"list": variables},
        "panels": panels(dashboard),
    });
    format!("{made:#}\n")
}

fn data_source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

fn data_source_variable() -> Value {
    json!({
        "type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus",
        "hide": 0, "includeAll": false, "multi": false, "refresh": 1, "regex": "", "options": [], "current": {},
    })
}

fn variable(variable: Variable) -> Value {
    // A cluster has the namespaces and nodes that the choices before it leave.
    let scope = match variable.label {
        "cluster" => "",
        "namespace" => "{cluster=~\"$cluster\"}",
        _ => "{cluster=~\"$cluster\",namespace=~\"$namespace\"}",
    };
    let query = format!("label_values({}{scope}, {})", variable.metric, variable.label);
    json!({
        "type": "query", "name": variable.label, "label": variable.title, "datasource": data_source(),
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "definition": query, "includeAll": true, "allValue": ".*", "multi": true, "refresh": 2, "sort": 1, "hide": 0,
        "regex": "", "options": [], "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
    })
}

/// Lays the panels out from left to right under the headings of their rows.
fn panels(dashboard: &Dashboard) -> Vec<Value> {
    let mut made = Vec::new();
    let mut top = 0;
    for row in dashboard.rows {
        made.push(json!({
            "id": made.len() + 1, "type": "row", "title": row.title, "collapsed": false, "panels": [],
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
        }));
        top += 1;
        let (mut left, mut bottom) = (0, top);
        for panel in row.panels {
            let (width, height) = size(panel);
            if left + width > COLUMNS {
                (left, top) = (0, bottom);
            }
            let place = json!({"x": left, "y": top, "w": width, "h": height});
            made.push(one(panel, made.len() + 1, &place));
            left += width;
            bottom = bottom.max(top + height);
        }
        top = bottom;
    }
    made
}

fn size(panel: &Panel) -> (u32, u32) {
    match panel.kind {
        Kind::Number(_) => (NUMBER_WIDTH, NUMBER_HEIGHT),
        Kind::Lines | Kind::Stack => (PANEL_WIDTH, PANEL_HEIGHT),
    }
}

fn one(panel: &Panel, id: usize, place: &Value) -> Value {
    let is_number = matches!(panel.kind, Kind::Number(_));
    json!({
        "id": id,
        "type": if is_number { "stat" } else { "timeseries" },
        "title": panel.title,
        "description": panel.description,
        "datasource": data_source(),
        "gridPos": place,
        "links": [{"title": "What to do", "url": panel.runbook.url(), "targetBlank": true}],
        "fieldConfig": {"defaults": field(panel), "overrides": []},
        "options": if is_number { number_options() } else { graph_options() },
        "targets": panel.queries.iter().zip('A'..='Z').map(target).collect::<Vec<_>>(),
    })
}

fn field(panel: &Panel) -> Value {
    let unit = panel.unit.as_str();
    match panel.kind {
        Kind::Number(red_from) => json!({
            "unit": unit, "min": 0, "color": {"mode": "thresholds"},
            "thresholds": {"mode": "absolute", "steps": [
                {"color": "green", "value": null}, {"color": "red", "value": red_from},
            ]},
        }),
        Kind::Lines => json!({"unit": unit, "min": 0, "custom": lines(10, "none")}),
        Kind::Stack => json!({"unit": unit, "min": 0, "custom": lines(40, "normal")}),
    }
}

fn lines(fill: u32, stacking: &str) -> Value {
    json!({
        "drawStyle": "line", "lineWidth": 1, "fillOpacity": fill, "showPoints": "never", "spanNulls": false,
        "stacking": {"mode": stacking, "group": "A"},
    })
}

fn graph_options() -> Value {
    json!({
        "legend": {"showLegend": true, "displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    })
}

fn number_options() -> Value {
    json!({
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
        "colorMode": "value", "graphMode": "area", "justifyMode": "auto", "orientation": "auto", "textMode": "auto",
    })
}

fn target((query, reference): (&Query, char)) -> Value {
    json!({
        "refId": reference.to_string(), "datasource": data_source(), "editorMode": "code", "range": true,
        "expr": query.promql(), "legendFormat": query.legend,
    })
}
