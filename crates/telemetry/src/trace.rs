//! Traces across processes: W3C `traceparent` as text, in and out.
//!
//! Everything here is free when no OTLP endpoint is configured.

use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The target of exported spans; other spans are not exported.
pub(crate) const TARGET: &str = "postroad_trace";

static ENABLED: AtomicBool = AtomicBool::new(false);

pub(crate) fn set_enabled(enabled: bool) {
    ENABLED.store(enabled, Ordering::Relaxed);
}

/// Returns true when traces are exported.
#[must_use]
pub fn is_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Starts a span for one step in the life of a message, under the remote parent that `traceparent` names.
///
/// An invalid traceparent counts as none; the span then starts a new trace.
#[must_use]
pub fn span(name: &'static str, traceparent: &str) -> Span {
    if !is_enabled() {
        return Span::none();
    }
    let span = tracing::info_span!(target: TARGET, parent: None, "postroad", otel.name = name);
    if let Some(parent) = parse(traceparent) {
        // It fails only for a span that has started, or where no trace layer is installed.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
    span
}

/// Returns the traceparent of the current span: empty when there is none or traces are off.
#[must_use]
pub fn traceparent() -> String {
    traceparent_of(&Span::current())
}

/// Returns the traceparent of `span`: empty when there is none or traces are off.
#[must_use]
pub fn traceparent_of(span: &Span) -> String {
    if !is_enabled() {
        return String::new();
    }
    let context = span.context();
    let context = context.span().span_context().clone();
    if !context.is_valid() {
        return String::new();
    }
    format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8())
}

/// Returns true for a well-formed traceparent of version 00.
#[must_use]
pub fn is_traceparent(text: &str) -> bool {
    parse(text).is_some()
}

/// W3C Trace Context 3.2: version 00 is exactly 55 characters of lower-case hexadecimal and hyphens.
fn parse(text: &str) -> Option<SpanContext> {
    if text.len() != 55 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-')) {
        return None;
    }
    let mut fields = text.split('-');
    let version = fields.next()?;
    let trace = fields.next().filter(|field| field.len() == 32)?;
    let parent = fields.next().filter(|field| field.len() == 16)?;
    let flags = fields.next().filter(|field| field.len() == 2)?;
    if version != "00" || fields.next().is_some() {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(parent).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_version_00_is_read() {
        assert!(is_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        for text in [
            "",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b-701",
        ] {
            assert!(!is_traceparent(text), "{text:?}");
        }
    }

    #[test]
    fn nothing_is_traced_while_it_is_off() {
        let span = span("submit", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        assert!(span.is_none() && traceparent_of(&span).is_empty() && traceparent().is_empty());
    }
}
