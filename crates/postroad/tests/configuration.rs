//! `docs/reference/configuration.md` says what the configuration structs say, with their defaults.
//!
//! `POSTROAD_WRITE_DOCS=1 cargo test -p postroad --test configuration` writes it anew.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fmt::Write, fs, path::Path};

use postroad::sections::{
    ClusterSection, DnsSection, GuardSection, HttpSection, MetricsSection, NodeSection, TlsSection,
};
use postroad_control::ControlConfig;
use postroad_ingress::IngressConfig;
use postroad_outbound::OutboundConfig;
use postroad_queue::QueueConfig;
use postroad_telemetry::TelemetryConfig;
use serde::Serialize;
use toml::{Table, Value};

const INTRODUCTION: &str = "# Configuration

A role is started with `postroad ROLE --config FILE`; the file is TOML.
Every key has a default, shown here; a key that is not known, and every value that cannot be, is reported with file, key and value before anything is opened, all of them together.
`postroad config check ROLE --config FILE` does only that; `postroad config print ROLE --config FILE` shows what file, environment and defaults come to.

The environment overrides the file: `POSTROAD__SECTION__KEY=VALUE`, with the value as TOML or as plain text, such as `POSTROAD__INGRESS__CONNECTIONS_MAX=500`.

Sizes are in bytes, times in the unit that ends the key's name.

| role | sections |
|---|---|
| ingress | node, cluster, telemetry, metrics, tls, dns, ingress |
| queue | node, cluster, telemetry, metrics, queue |
| outbound | node, cluster, telemetry, metrics, dns, guard, outbound |
| control | node, cluster, telemetry, metrics, http, control |
";

/// A struct's text in its source.
struct Source {
    text: String,
}

impl Source {
    fn read(path: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        Self { text: fs::read_to_string(path).unwrap() }
    }

    /// The fields of a struct, each with what is said about it.
    fn fields(&self, name: &str) -> Vec<(String, String)> {
        let start =
            self.text.find(&format!("pub struct {name} {{")).unwrap_or_else(|| panic!("no struct {name}"));
        let (mut fields, mut said) = (Vec::new(), Vec::new());
        for line in self.text[start..].lines().skip(1).map(str::trim).take_while(|line| *line != "}") {
            if let Some(doc) = line.strip_prefix("///") {
                said.push(doc.trim().to_owned());
            } else if let Some((field, _)) = line.strip_prefix("pub ").and_then(|rest| rest.split_once(':')) {
                fields.push((field.to_owned(), said.join(" ")));
                said.clear();
            }
        }
        fields
    }
}

fn section<T: Default + Serialize>(out: &mut String, name: &str, path: &str, type_name: &str) {
    let defaults = Table::try_from(T::default()).unwrap();
    table(out, name, &Source::read(path), type_name, &defaults);
}

fn table(out: &mut String, name: &str, source: &Source, type_name: &str, defaults: &Table) {
    write!(out, "\n## [{name}]\n\n| key | default | |\n|---|---|---|\n").unwrap();
    for (field, said) in source.fields(type_name) {
        let default = match defaults.get(&field) {
            // A table has a section of its own; what comes from elsewhere is not read here.
            Some(Value::Table(_)) => continue,
            Some(value) => format!("`{value}`"),
            None if said.contains("Comes from `[") => continue,
            None => "–".to_owned(),
        };
        writeln!(out, "| `{field}` | {default} | {said} |").unwrap();
    }
}

fn page() -> String {
    let mut out = INTRODUCTION.to_owned();
    let sections = "postroad/src/sections.rs";
    section::<NodeSection>(&mut out, "node", sections, "NodeSection");
    section::<ClusterSection>(&mut out, "cluster", sections, "ClusterSection");
    section::<TelemetryConfig>(&mut out, "telemetry", "telemetry/src/start.rs", "TelemetryConfig");
    section::<MetricsSection>(&mut out, "metrics", sections, "MetricsSection");
    section::<TlsSection>(&mut out, "tls", sections, "TlsSection");
    section::<DnsSection>(&mut out, "dns", sections, "DnsSection");
    section::<GuardSection>(&mut out, "guard", sections, "GuardSection");
    section::<HttpSection>(&mut out, "http", sections, "HttpSection");
    section::<IngressConfig>(&mut out, "ingress", "ingress/src/config.rs", "IngressConfig");
    out.push_str("\nEach of `listeners` is a table:\n");
    table(
        &mut out,
        "[ingress.listeners]",
        &Source::read("ingress/src/config.rs"),
        "SmtpListener",
        &Table::new(),
    );
    let queue = Table::try_from(QueueConfig::default()).unwrap();
    let source = Source::read("queue/src/config.rs");
    table(&mut out, "queue", &source, "QueueConfig", &queue);
    table(&mut out, "queue.retry", &source, "RetryConfig", queue["retry"].as_table().unwrap());
    table(&mut out, "queue.election", &source, "ElectionConfig", queue["election"].as_table().unwrap());
    table(&mut out, "queue.lease", &source, "LeaseConfig", queue["lease"].as_table().unwrap());
    let outbound = Table::try_from(OutboundConfig::default()).unwrap();
    let source = Source::read("outbound/src/config.rs");
    table(&mut out, "outbound", &source, "OutboundConfig", &outbound);
    table(&mut out, "outbound.timeouts", &source, "TimeoutConfig", outbound["timeouts"].as_table().unwrap());
    section::<ControlConfig>(&mut out, "control", "control/src/config.rs", "ControlConfig");
    out
}

#[test]
fn the_configuration_page_is_what_the_structs_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/configuration.md");
    let page = page();
    if std::env::var_os("POSTROAD_WRITE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/reference/configuration.md is old: run with POSTROAD_WRITE_DOCS=1");
}
