//! The declarations of all metrics: for the reference page, and for the test that finds each of them on a running node.

use postroad_telemetry::Metric;

/// The metrics that are declared in one place.
#[derive(Clone, Copy, Debug)]
pub struct Catalogue {
    /// The heading in the reference.
    pub title: &'static str,
    /// Which processes show them.
    pub shown_by: &'static str,
    /// The declarations.
    pub metrics: &'static [&'static Metric],
}

/// Returns the metrics of every crate, in the order of the reference.
#[must_use]
pub fn catalogues() -> Vec<Catalogue> {
    let of = |title, shown_by, metrics| Catalogue { title, shown_by, metrics };
    vec![
        of("Ingress", "ingress", postroad_ingress::metrics::CATALOGUE),
        of("Queue", "queue", postroad_queue::metrics::CATALOGUE),
        of("Directory", "queue", postroad_queue::metrics::DIRECTORY_CATALOGUE),
        of("Storage", "queue", postroad_storage::metrics::CATALOGUE),
        of("Outbound", "outbound", postroad_outbound::metrics::CATALOGUE),
        of("Control", "control", postroad_control::metrics::CATALOGUE),
        of(
            "Connections",
            "ingress for SMTP clients, and every role for the rest",
            postroad_net::metrics::CATALOGUE,
        ),
        of("DNS", "ingress and outbound", postroad_dns::metrics::CATALOGUE),
        of("Mail log", "every role", postroad_telemetry::CATALOGUE),
        of("Readiness", "every role", postroad_telemetry::HEALTH_CATALOGUE),
        of("Data directory", "queue, outbound and control", postroad_telemetry::DATA_DISK_CATALOGUE),
        of("Process", "every role", postroad_telemetry::PROCESS_CATALOGUE),
        of("Sandbox", "`postroad dev`", postroad_sandbox::metrics::CATALOGUE),
    ]
}
