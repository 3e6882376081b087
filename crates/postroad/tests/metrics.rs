//! `docs/reference/metrics.md` says what the declarations say, and a running node shows each of them.
//!
//! `POSTROAD_WRITE_DOCS=1 cargo test -p postroad --test metrics` writes the page again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use postroad::metrics::catalogues;
use postroad_telemetry::{Kind, Label, Metric, Values};
use postroad_testkit::{
    Script, Sink, SinkConfig,
    client::{Submitted, submit, submit_grpc},
    dev::Dev,
    exposition::Exposition,
    process::http_get,
    sink::{Phase, Receiver, Rule},
};
use tokio::net::TcpSocket;

/// All that a test waits for comes within this, or never.
const PATIENCE: Duration = Duration::from_secs(120);

const INTRODUCTION: &str = "# Metrics

Every process serves its metrics at `/metrics`, in Prometheus' text format, where `metrics.listen` says; `postroad dev` shows those of all roles together.
This page is made from the declarations in the `metrics.rs` of each crate, by `crates/postroad/tests/metrics.rs`, which fails when it is old.

Counters end in `_total`; times are in seconds and sizes in bytes.
Counters start at zero with the process, so use `rate()` and `increase()`; gauges and histograms can be added up over nodes, but for those of which the text says that the leader of a group shows them.

## Labels with many values

A label that is ranked, such as `site`, can have any number of values.
At most `telemetry.label_values_max` of them, 100 unless it is set, have series of their own; all others share the value `other`.

- A value gets a series at its first event while there are fewer than that, and later, once a minute, when it had more than twice the events of the value with fewest; events of earlier minutes count half each time.
- What is counted while a value has no series of its own is counted in `other` and stays there. The series of a value that lost its place ends and is not added to `other`. So every event is counted once, every series only grows while it is there, and sums of rates are right; sums of the counters themselves are not.
- Gauges are computed each time: the largest values have series, and `other` is the sum of the rest.

No label holds an address of a sender or a recipient.
";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for catalogue in catalogues() {
        write!(page, "\n## {}\n\nShown by {}.\n\n", catalogue.title, catalogue.shown_by).unwrap();
        page.push_str("| metric | kind | unit | labels | |\n|---|---|---|---|---|\n");
        for metric in catalogue.metrics {
            let Metric { name, kind, help, labels } = metric;
            let unit = if metric.unit().is_empty() { "–" } else { metric.unit() };
            let label = |label: &Label| match label.values {
                Values::Ranked(_) => format!("`{}` (ranked)", label.name),
                Values::OneOf(_) | Values::Few(_) => format!("`{}`", label.name),
            };
            let labels: Vec<String> = labels.iter().map(label).collect();
            let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
            writeln!(page, "| `{name}` | {} | {unit} | {labels} | {help} |", kind.as_str()).unwrap();
        }
        page.push_str(&labels_of(catalogue.metrics));
    }
    page
}

/// Says once for a crate what its labels can be.
fn labels_of(metrics: &[&Metric]) -> String {
    let mut text = String::new();
    let mut seen = BTreeSet::new();
    for label in metrics.iter().flat_map(|metric| metric.labels) {
        let values = match label.values {
            Values::OneOf(values) => {
                let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
                values.join(", ")
            }
            Values::Few(meaning) => meaning.to_owned(),
            Values::Ranked(meaning) => format!("(ranked) {meaning}"),
        };
        if seen.insert((label.name, values.clone())) {
            writeln!(text, "- `{}`: {values}", label.name).unwrap();
        }
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

#[test]
fn the_metrics_page_is_what_the_declarations_say() {
    let path = root().join("docs/reference/metrics.md");
    let page = page();
    if std::env::var_os("POSTROAD_WRITE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/reference/metrics.md is old: run with POSTROAD_WRITE_DOCS=1");
}

/// A crate that is not in the list of the binary would be missing on the page, and nobody would notice.
#[test]
fn every_metric_of_the_sources_is_declared_in_a_catalogue() {
    let declared: BTreeSet<&str> =
        catalogues().iter().flat_map(|catalogue| catalogue.metrics).map(|metric| metric.name).collect();
    let number: usize = catalogues().iter().map(|catalogue| catalogue.metrics.len()).sum();
    assert_eq!(declared.len(), number, "a name is declared twice");
    let mut missing = Vec::new();
    for file in sources(&root().join("crates")) {
        let text = fs::read_to_string(&file).unwrap();
        // What a test declares for itself is below its mark.
        let text = text.split("#[cfg(test)]").next().unwrap();
        for name in text.split("= \"postroad_").skip(1).filter_map(|rest| rest.split_once("\" [")) {
            let name = format!("postroad_{}", name.0);
            if !name.starts_with("postroad_example_") && !declared.contains(&*name) {
                missing.push(format!("{name} of {}", file.display()));
            }
        }
    }
    assert!(missing.is_empty(), "not in `postroad::metrics::catalogues`: {missing:?}");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tests") {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Metrics that stay at zero, or are not there, while mail goes through one node without faults; and why.
const SILENT: &[(&str, &str)] = &[
    ("postroad_control_lost_events_total", "control never falls so far behind"),
    ("postroad_control_repeated_events_total", "control does not restart"),
    ("postroad_control_unreadable_events_total", "all nodes have one version"),
    ("postroad_control_write_failures_total", "the database can be written"),
    ("postroad_dns_lookup_seconds", "every domain has a route; crates/dns/tests look domains up"),
    ("postroad_dns_lookups_total", "the same"),
    ("postroad_dns_sites_total", "the same"),
    ("postroad_ingress_grpc_tolerated_total", "every client writes as the standards say"),
    ("postroad_mail_log_lines_total", "`dev` writes no mail log; see tests/mail_log.rs"),
    ("postroad_mail_log_lost_lines_total", "the same"),
    ("postroad_mail_log_omitted_lines_total", "the same"),
    ("postroad_net_accept_failures_total", "file descriptors do not run out"),
    ("postroad_net_connects_denied_total", "routes are trusted, so the guard is not asked"),
    ("postroad_net_node_handshake_failures_total", "`dev` has no TLS between its roles"),
    ("postroad_net_smtp_ack_undelivered_total", "every client waits for its reply"),
    ("postroad_net_smtp_drain_aborted_total", "nothing shuts down"),
    ("postroad_net_smtp_handshake_failures_total", "no client fails its handshake"),
    ("postroad_net_smtp_refused_total", "there are fewer clients than any bound allows"),
    ("postroad_net_smtp_timeouts_total", "no client is slow"),
    ("postroad_net_smtp_tolerated_total", "every client writes as the standards say"),
    ("postroad_outbound_content_budget_waits_total", "all content fits the budget"),
    ("postroad_outbound_conversion_waits_total", "the receiver offers 8BITMIME"),
    ("postroad_outbound_given_back_total", "only jobs behind the one that pauses the lane are given back"),
    ("postroad_outbound_irregular_replies_total", "every receiver replies as the standards say"),
    ("postroad_outbound_lease_ends_total", "the lease is renewed in time"),
    ("postroad_outbound_starttls_injected_total", "nobody attacks"),
    ("postroad_queue_follower_behind_bytes", "one queue node has no followers"),
    ("postroad_queue_announcements_refused_total", "there are few nodes"),
    ("postroad_queue_lane_reports_dropped_total", "no node has that many lanes"),
    ("postroad_queue_log_moved_bytes_total", "no segment of the log is full"),
    ("postroad_queue_reclaims_total", "no source changes hands"),
    ("postroad_queue_suspensions_full_total", "nobody makes so many suspensions"),
    ("postroad_queue_unconfirmed_total", "every receiver confirms"),
    ("postroad_queue_unreadable_contents_total", "the disk is in order"),
    ("postroad_sandbox_dropped_total", "all captured messages fit"),
];

/// Counters of failures that alerts read: shown at zero, since `increase` misses the first event of one that appears with it.
const AT_ZERO: &[&str] = &[
    "postroad_control_lost_events_total",
    "postroad_control_write_failures_total",
    "postroad_mail_log_lost_lines_total",
    "postroad_net_accept_failures_total",
    "postroad_net_node_handshake_failures_total",
    "postroad_outbound_lease_ends_total",
    "postroad_queue_unreadable_contents_total",
];

#[tokio::test]
async fn a_node_under_load_shows_every_metric() {
    let sink = Sink::start(SinkConfig { script: script(), ..SinkConfig::default() }).await.unwrap();
    // A port that nobody listens on, and that is not given to anybody else. The lane of its route pauses because no
    // connection can be made, whatever the rules make of a reply.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let receivers = [
        ("one.test", sink.address()),
        ("later.test", sink.address()),
        ("closed.test", closed.local_addr().unwrap()),
    ];
    let routes = receivers.map(|(domain, address)| format!("{domain}={address}"));
    let flags: Vec<&str> = routes.iter().flat_map(|route| ["--route", route]).collect();
    let mut dev = Dev::start(&flags).await.unwrap_or_else(|error| panic!("{error:#}"));
    load(&dev).await;
    let metrics = dev.process().spec().metrics;
    let silent: BTreeMap<&str, &str> = SILENT.iter().copied().collect();
    let mut missing = Vec::new();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < deadline {
        let (_, page) = http_get(metrics, "/metrics").await.unwrap();
        let page = Exposition::read(&String::from_utf8(page).unwrap());
        assert!(page.problems().is_empty(), "{:#?}", page.problems());
        let all = catalogues();
        let all = all.iter().flat_map(|catalogue| catalogue.metrics);
        missing = all.filter(|metric| !silent.contains_key(metric.name) && !moves(&page, metric)).collect();
        if missing.is_empty() {
            let hidden: Vec<&&str> = AT_ZERO.iter().filter(|name| !page.has(name)).collect();
            assert!(hidden.is_empty(), "not shown before their first event: {hidden:?}");
            let undeclared = undeclared(&page);
            assert!(undeclared.is_empty(), "not declared: {undeclared:?}");
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let names: Vec<&str> = missing.iter().map(|metric| metric.name).collect();
    assert!(names.is_empty(), "not there or at zero: {names:#?}\n{}", dev.stop(PATIENCE).await);
}

/// A gauge may be at zero, and what is counted must have been counted.
fn moves(page: &Exposition, metric: &Metric) -> bool {
    match metric.kind {
        Kind::Gauge => page.has(metric.name),
        Kind::Counter | Kind::Histogram => page.sum(metric.name) > 0.0,
    }
}

fn undeclared(page: &Exposition) -> Vec<String> {
    let declared: BTreeSet<&str> =
        catalogues().iter().flat_map(|catalogue| catalogue.metrics).map(|metric| metric.name).collect();
    page.names().filter(|name| !declared.contains(name)).map(str::to_owned).collect()
}

/// One receiver that takes all, and one that takes nothing yet.
fn script() -> Script {
    let rules = vec![Rule::reply(Phase::Recipient, "450 4.2.0 greylisted, try again later")];
    Script::default().with_domain("later.test", Receiver { rules, ..Receiver::default() })
}

async fn load(dev: &Dev) {
    const CONTENT: &str = "From: <a@example.test>\r\nSubject: load\r\n\r\nhello\r\n";
    // More than `outbound.connections_initial`: so many failures in a row pause a lane.
    for _ in 0..10 {
        for recipients in
            [&["a@one.test", "a@captured.test"][..], &["b@one.test", "a@later.test"], &["a@closed.test"]]
        {
            let accepted = submit(dev.smtp(), "a@example.test", recipients, CONTENT).await;
            assert!(matches!(accepted, Submitted::Acknowledged(_)), "{accepted:?}");
        }
    }
    let by_grpc =
        submit_grpc(dev.grpc(), "demo-loopback-only", "a@example.test", &["a@one.test"], CONTENT).await;
    assert!(matches!(by_grpc, Submitted::Acknowledged(_)), "{by_grpc:?}");
    let wrong_key = submit_grpc(dev.grpc(), "wrong", "a@example.test", &["a@one.test"], CONTENT).await;
    assert!(!matches!(wrong_key, Submitted::Acknowledged(_)), "{wrong_key:?}");
    let literal = submit(dev.smtp(), "a@example.test", &["a@[192.0.2.1]"], CONTENT).await;
    assert!(!matches!(literal, Submitted::Acknowledged(_)), "{literal:?}");
}
