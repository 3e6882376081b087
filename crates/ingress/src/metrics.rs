//! What an ingress node counts.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use postroad_core::TenantId;
use postroad_directory::Tenant;
use postroad_smtp::{headers::Protocol, tolerance::Tolerance};
use postroad_telemetry::{Counter, Gauge, Histogram, Label, RankedCounter, Ranking};

use crate::error::Refusal;

const TENANT: Label =
    Label::ranked("tenant", "the names of tenants; `unknown` before a client has said who it is");
const PROTOCOL: Label = Label::one_of("protocol", &["smtp", "grpc"]);
const REASON: Label = Label::one_of("reason", Refusal::LABELS);
/// What is tolerated over gRPC.
const TOLERATED_OVER_GRPC: [Tolerance; 2] = [Tolerance::MboxLine, Tolerance::FieldName];
const TOLERANCES: [&str; 2] = [TOLERATED_OVER_GRPC[0].label(), TOLERATED_OVER_GRPC[1].label()];
const TOLERANCE: Label = Label::one_of("tolerance", &TOLERANCES);
const RESULT: Label = Label::one_of("result", &["good", "cached", "wrong", "unavailable"]);

postroad_telemetry::catalogue! {
    /// Messages accepted: a majority of the queue's disks has synced them
    ranked_counter MESSAGES = "postroad_ingress_messages_total" [TENANT, PROTOCOL];
    /// Recipients of the messages accepted
    ranked_counter RECIPIENTS = "postroad_ingress_recipients_total" [TENANT];
    /// Bytes of the messages accepted
    ranked_counter BYTES = "postroad_ingress_accepted_bytes_total" [TENANT];
    /// Senders, recipients and messages refused, by reason
    ranked_counter REJECTIONS = "postroad_ingress_rejections_total" [TENANT, REASON];
    /// Logins and API keys checked: good, good and in the cache, wrong, or not checked for lack of a directory or of time
    counter LOGINS = "postroad_ingress_logins_total" [RESULT];
    /// Deviations from the syntax that were accepted over gRPC; ingress.grpc_strict_syntax refuses them
    counter TOLERATED = "postroad_ingress_grpc_tolerated_total" [TOLERANCE];
    /// Bytes of a message as it is stored
    histogram MESSAGE_BYTES = "postroad_ingress_message_bytes" [];
    /// Time from the end of a message to the answer of the queue
    histogram SUBMIT_SECONDS = "postroad_ingress_submit_seconds" [];
    /// Bytes of messages that wait for their commit; ingress.in_flight_bytes_max bounds them
    gauge IN_FLIGHT_BYTES = "postroad_ingress_in_flight_bytes" [];
}

static TENANTS: Ranking = Ranking::new(&[&MESSAGES, &RECIPIENTS, &BYTES, &REJECTIONS]);

/// The most tenants whose handles are cached; the ranking bounds the series.
const TENANTS_MAX: usize = 10_000;

/// Handles of the metrics above.
#[derive(Debug)]
pub(crate) struct Metrics {
    tenants: Mutex<HashMap<Option<TenantId>, Arc<TenantMetrics>>>,
    bytes: Histogram,
    submit_seconds: Histogram,
    pub(crate) in_flight: Gauge,
    pub(crate) login_good: Counter,
    pub(crate) login_cached: Counter,
    pub(crate) login_wrong: Counter,
    pub(crate) login_unavailable: Counter,
    tolerated: [(Tolerance, Counter); 2],
}

/// The handles of one tenant.
#[derive(Debug)]
struct TenantMetrics {
    smtp: RankedCounter,
    grpc: RankedCounter,
    recipients: RankedCounter,
    bytes: RankedCounter,
    /// In the order of the labels.
    rejections: Vec<RankedCounter>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            tenants: Mutex::default(),
            bytes: MESSAGE_BYTES.with([]),
            submit_seconds: SUBMIT_SECONDS.with([]),
            in_flight: IN_FLIGHT_BYTES.with([]),
            login_good: LOGINS.with(["good"]),
            login_cached: LOGINS.with(["cached"]),
            login_wrong: LOGINS.with(["wrong"]),
            login_unavailable: LOGINS.with(["unavailable"]),
            tolerated: TOLERATED_OVER_GRPC.map(|tolerance| (tolerance, TOLERATED.with([tolerance.label()]))),
        }
    }

    /// Counts deviations from the syntax that were accepted over gRPC.
    pub(crate) fn note_tolerated(&self, tolerated: &[Tolerance]) {
        for (_, counter) in self.tolerated.iter().filter(|(tolerance, _)| tolerated.contains(tolerance)) {
            counter.increment(1);
        }
    }

    pub(crate) fn note_accepted(
        &self,
        tenant: &Tenant,
        protocol: Protocol,
        recipients: usize,
        bytes: u64,
        took: Duration,
    ) {
        let handles = self.of(Some(tenant));
        match protocol {
            Protocol::Smtp { .. } => handles.smtp.increment(1),
            Protocol::Grpc => handles.grpc.increment(1),
        }
        handles.recipients.increment(recipients as u64);
        handles.bytes.increment(bytes);
        self.bytes.record(bytes as f64);
        self.submit_seconds.record(took);
    }

    /// Counts what was refused for a reason of [`Refusal::LABELS`].
    pub(crate) fn note_rejected(&self, tenant: Option<&Tenant>, reason: &'static str) {
        let place = Refusal::LABELS.iter().position(|label| *label == reason);
        debug_assert!(place.is_some(), "`{reason}` is not in the list of labels");
        if let Some(counter) = place.and_then(|place| self.of(tenant).rejections.get(place).cloned()) {
            counter.increment(1);
        }
    }

    fn of(&self, tenant: Option<&Tenant>) -> Arc<TenantMetrics> {
        let mut tenants = self.tenants.lock();
        let id = tenant.map(|tenant| tenant.id);
        if let Some(handles) = tenants.get(&id) {
            return Arc::clone(handles);
        }
        if tenants.len() >= TENANTS_MAX {
            tenants.clear();
        }
        let handles = Arc::new(TenantMetrics::new(tenant.map_or("unknown", |tenant| &tenant.name)));
        tenants.insert(id, Arc::clone(&handles));
        handles
    }
}

impl TenantMetrics {
    fn new(name: &str) -> Self {
        let tenant = TENANTS.value(name);
        Self {
            smtp: tenant.counter(&MESSAGES, &["smtp"]),
            grpc: tenant.counter(&MESSAGES, &["grpc"]),
            recipients: tenant.counter(&RECIPIENTS, &[]),
            bytes: tenant.counter(&BYTES, &[]),
            rejections: Refusal::LABELS.iter().map(|label| tenant.counter(&REJECTIONS, &[label])).collect(),
        }
    }
}
