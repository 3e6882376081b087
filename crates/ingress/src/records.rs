//! What is recorded when a message is accepted, or when something is refused: counted, and written to the mail log.

use std::{net::IpAddr, time::Duration};

use postroad_core::MessageId;
use postroad_directory::Tenant;
use postroad_smtp::headers::Protocol;
use postroad_telemetry::mail_log::{self, Accepted, LoginFailed, Mailbox, Rejected, Said, Secs, Trace};

use crate::{error::Refusal, metrics::Metrics, submission::Incoming};

/// The client that something is recorded of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client<'a> {
    pub(crate) address: Option<IpAddr>,
    pub(crate) protocol: Protocol,
    /// Empty where it did not say.
    pub(crate) helo: &'a str,
}

/// What was refused, and to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused<'a> {
    /// `mail`, `rcpt`, `message` or `submit`.
    pub(crate) stage: &'static str,
    pub(crate) client: Client<'a>,
    pub(crate) tenant: Option<&'a Tenant>,
    pub(crate) from: Mailbox<'a>,
    pub(crate) to: Mailbox<'a>,
    pub(crate) traceparent: &'a str,
}

impl Client<'_> {
    fn helo(&self) -> Option<&str> {
        Some(self.helo).filter(|helo| !helo.is_empty())
    }
}

/// Records a message that a majority of the queue's disks holds.
pub(crate) fn accepted(
    metrics: &Metrics,
    incoming: &Incoming<'_>,
    tenant: &Tenant,
    id: MessageId,
    size: u64,
    traceparent: &str,
    took: Duration,
) {
    metrics.note_accepted(tenant, incoming.with, incoming.recipients.len(), size, took);
    if !mail_log::is_enabled() {
        return;
    }
    let client = incoming.client();
    mail_log::write(&Accepted {
        id,
        tenant: &tenant.name,
        client: client.address,
        size,
        recipients: incoming.recipients.len(),
        from: Mailbox::sender(incoming.sender.as_ref()),
        credential: incoming.identity.name(),
        protocol: name(client.protocol),
        helo: client.helo(),
        tls: Some(incoming.tls).filter(|tls| !tls.is_empty()),
        seconds: Secs(took),
        trace: Trace(traceparent),
    });
}

/// Records a refusal by policy.
pub(crate) fn rejected(metrics: &Metrics, refused: &Refused<'_>, refusal: &Refusal) {
    let reply = || match refused.client.protocol {
        Protocol::Smtp { .. } => refusal.reply().to_string(),
        Protocol::Grpc => format!("{:?} {refusal}", refusal.code()),
    };
    rejected_for(metrics, refused, refusal.label(), reply);
}

/// Records a refusal for a reason of [`Refusal::LABELS`], which the client got this reply to.
pub(crate) fn rejected_for(
    metrics: &Metrics,
    refused: &Refused<'_>,
    reason: &'static str,
    reply: impl FnOnce() -> String,
) {
    metrics.note_rejected(refused.tenant, reason);
    if !mail_log::is_enabled() {
        return;
    }
    mail_log::write(&Rejected {
        stage: refused.stage,
        reason,
        reply: Said(&reply()),
        client: refused.client.address,
        tenant: refused.tenant.map(|tenant| &*tenant.name),
        from: refused.from,
        to: refused.to,
        protocol: name(refused.client.protocol),
        helo: refused.client.helo(),
        trace: Trace(refused.traceparent),
    });
}

/// Writes to the mail log that a client did not authenticate; who checks credentials has counted it.
pub(crate) fn login_failed(client: &Client<'_>, login: Mailbox<'_>, reason: &'static str) {
    let (address, protocol) = (client.address, name(client.protocol));
    mail_log::write(&LoginFailed { reason, client: address, login, protocol, helo: client.helo() });
}

fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Smtp { .. } => "smtp",
        Protocol::Grpc => "grpc",
    }
}
