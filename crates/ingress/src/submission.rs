//! Submits a message of an authenticated client to the queue; shared by SMTP and gRPC.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use postroad_cluster::Submitter;
use postroad_core::{Address, Domain, MessageId, Recipients, Timestamp};
use postroad_directory::{Tenant, View};
use postroad_dns::Resolver;
use postroad_proto::{
    CONTENT_BYTES_MAX,
    queue::{Recipient, Submission},
};
use postroad_smtp::headers::{Hop, Protocol};
use postroad_telemetry::{mail_log::Mailbox, trace};
use tokio::sync::watch;

use crate::{
    IngressConfig,
    auth::Identity,
    author,
    content::{self, Completed},
    error::{Refusal, SizeLimit},
    metrics::Metrics,
    records::{self, Client, Refused},
};

/// Concurrent chunks of one message.
const CHUNKS_AT_ONCE: usize = 4;
/// Concurrent site lookups of one message.
const SITES_AT_ONCE: usize = 64;

/// Accepts messages of authenticated clients.
pub(crate) struct SubmissionHandler {
    pub(crate) config: Arc<IngressConfig>,
    pub(crate) metrics: Arc<Metrics>,
    directory: watch::Receiver<Arc<View>>,
    submitter: Submitter,
    resolver: Resolver,
    in_flight_bytes: AtomicU64,
    accepting: AtomicBool,
}

/// A received message and its client.
#[derive(Debug)]
pub(crate) struct Incoming<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) sender: Option<Address>,
    /// Never empty.
    pub(crate) recipients: Recipients,
    pub(crate) content: Bytes,
    /// Fields such as `X Priority: 1` are carried.
    pub(crate) tolerant: bool,
    /// The client requested SMTPUTF8.
    pub(crate) smtputf8: bool,
    pub(crate) client: Option<IpAddr>,
    pub(crate) helo: &'a str,
    pub(crate) with: Protocol,
    pub(crate) tls: &'a str,
    /// The trace context of the client; empty without one.
    pub(crate) traceparent: &'a str,
}

impl Incoming<'_> {
    /// Returns the client, for the records.
    pub(crate) fn client(&self) -> Client<'_> {
        Client { address: self.client, protocol: self.with, helo: self.helo }
    }

    /// Describes the message as one that was refused, for the records.
    fn refused<'a>(&'a self, tenant: Option<&'a Tenant>, traceparent: &'a str) -> Refused<'a> {
        let stage = match self.with {
            Protocol::Smtp { .. } => "message",
            Protocol::Grpc => "submit",
        };
        let from = Mailbox::sender(self.sender.as_ref());
        Refused { stage, client: self.client(), tenant, from, to: Mailbox::None, traceparent }
    }
}

impl SubmissionHandler {
    pub(crate) fn new(
        config: Arc<IngressConfig>,
        metrics: Arc<Metrics>,
        directory: watch::Receiver<Arc<View>>,
        submitter: Submitter,
        resolver: Resolver,
    ) -> Self {
        Self {
            config,
            metrics,
            directory,
            submitter,
            resolver,
            in_flight_bytes: AtomicU64::new(0),
            accepting: AtomicBool::new(true),
        }
    }

    /// Returns the current directory; its revision is 0 until it is loaded.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.directory.borrow())
    }

    /// Returns true when the directory is loaded and at least one ledger has a leader.
    pub(crate) fn is_ready(&self) -> bool {
        self.directory.borrow().revision() > 0 && self.submitter.is_ready()
    }

    /// Sets whether new SMTP clients are greeted or get 421.
    pub(crate) fn set_accepting(&self, accepting: bool) {
        self.accepting.store(accepting, Ordering::Relaxed);
    }

    pub(crate) fn is_accepting(&self) -> bool {
        self.accepting.load(Ordering::Relaxed)
    }

    /// Returns the tenant of a client, unless its credential was removed since it authenticated.
    pub(crate) fn tenant(&self, identity: &Identity) -> Result<Arc<Tenant>, Refusal> {
        identity.tenant(&self.view()).ok_or(Refusal::NoIdentity)
    }

    /// Checks the envelope sender and the announced size.
    pub(crate) fn check_sender(
        &self,
        tenant: &Tenant,
        sender: Option<&Address>,
        announced_bytes: u64,
    ) -> Result<(), Refusal> {
        self.check_size(tenant, announced_bytes)?;
        author::check_envelope(sender, &tenant.domains)
    }

    fn check_size(&self, tenant: &Tenant, bytes: u64) -> Result<(), Refusal> {
        let limit = self.config.message_size_max.bytes().min(tenant.message_size_max.unwrap_or(u64::MAX));
        if bytes > limit { Err(Refusal::TooLarge(SizeLimit(limit))) } else { Ok(()) }
    }

    /// Accepts a message. When it returns the id, a majority of queue nodes has synced the message.
    pub(crate) async fn accept(&self, incoming: Incoming<'_>) -> Result<MessageId, Refusal> {
        let started = postroad_env::now();
        let span = trace::span("ingress.submit", incoming.traceparent);
        let own = trace::traceparent_of(&span);
        let traceparent = if own.is_empty() { incoming.traceparent.to_owned() } else { own };
        let view = self.view();
        let tenant = incoming.identity.tenant(&view);
        let accepted = match &tenant {
            Some(tenant) => Box::pin(self.submit(&incoming, &view, tenant, &traceparent)).await,
            None => Err(Refusal::NoIdentity),
        };
        drop(span);
        match (&accepted, &tenant) {
            (Ok((id, bytes)), Some(tenant)) => {
                records::accepted(
                    &self.metrics,
                    &incoming,
                    tenant,
                    *id,
                    *bytes,
                    &traceparent,
                    postroad_env::since(started),
                );
            }
            (Err(refusal), tenant) => {
                let refused = incoming.refused(tenant.as_deref(), &traceparent);
                records::rejected(&self.metrics, &refused, refusal);
            }
            (Ok(_), None) => {}
        }
        accepted.map(|(id, _)| id)
    }

    async fn submit(
        &self,
        incoming: &Incoming<'_>,
        view: &View,
        tenant: &Tenant,
        traceparent: &str,
    ) -> Result<(MessageId, u64), Refusal> {
        self.check_size(tenant, incoming.content.len() as u64)?;
        let header = content::check(&incoming.content, incoming.tolerant)?;
        author::check(&incoming.content[..header.len], &tenant.domains)?;

        let random: u64 = postroad_env::random();
        let group = self.submitter.pick_group(postroad_env::random()).ok_or(Refusal::Unavailable)?;
        let now = postroad_env::wall();
        let id = MessageId::new(now, group, random);
        let completed = content::complete(&incoming.content, &header, &self.hop(incoming, id, now));
        let _reserved = self.reserve(completed.bytes)?;

        let bytes = completed.bytes;
        let sites = self.sites(view, &incoming.recipients).await;
        let envelope = Submission {
            message_id: Bytes::copy_from_slice(&id.as_u128().to_be_bytes()),
            tenant: tenant.id.0,
            sender: incoming.sender.as_ref().map(|sender| sender.as_str().to_owned()),
            recipients: recipients(&incoming.recipients, sites, tenant.pool.0),
            size_bytes: bytes,
            smtputf8: needs_smtputf8(incoming, &completed),
            eight_bit: completed.eight_bit,
            origin: incoming.identity.origin(incoming.client),
            traceparent: traceparent.to_owned(),
            ..Submission::default()
        };
        self.send_to_queue(id, envelope, completed).await?;
        Ok((id, bytes))
    }

    fn hop<'a>(&'a self, incoming: &Incoming<'a>, id: MessageId, at: Timestamp) -> Hop<'a> {
        let shown = !self.config.hide_clients;
        Hop {
            helo: Some(incoming.helo).filter(|helo| shown && !helo.is_empty()),
            client: incoming.client.filter(|_| shown),
            by: self.config.hostname.as_str(),
            with: incoming.with,
            tls: incoming.tls,
            id,
            at,
        }
    }

    async fn send_to_queue(
        &self,
        id: MessageId,
        mut submission: Submission,
        completed: Completed,
    ) -> Result<(), Refusal> {
        submission.subject = completed.subject;
        if completed.bytes <= CONTENT_BYTES_MAX as u64 {
            submission.content = completed.parts;
        } else {
            submission.chunks = self.send_chunks(id, &submission.message_id, completed.parts).await?;
        }
        // The queue answers after a majority has synced; only then does the client get 250 or OK.
        Ok(self.submitter.submit(id, submission).await?)
    }

    /// Sends the content of a large message; returns the number of chunks.
    async fn send_chunks(
        &self,
        id: MessageId,
        message_id: &Bytes,
        parts: Vec<Bytes>,
    ) -> Result<u32, Refusal> {
        let chunks = chunks(parts);
        let count = u32::try_from(chunks.len()).map_err(|_| Refusal::TooLarge(SizeLimit(u32::MAX.into())))?;
        stream::iter((0..count).zip(chunks))
            .map(|(number, content)| {
                let message_id = message_id.clone();
                let chunk = Submission { message_id, content, chunk: Some(number), ..Submission::default() };
                self.submitter.submit(id, chunk)
            })
            .buffer_unordered(CHUNKS_AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(count)
    }

    /// Returns the site of every recipient, in order.
    async fn sites(&self, view: &View, recipients: &[Address]) -> Vec<Box<str>> {
        let limit = self.config.site_timeout;
        if let [recipient] = recipients {
            return vec![self.site(view, recipient.domain(), limit).await];
        }
        let mut indexes = HashMap::new();
        let mut domains = Vec::new();
        let index_of: Vec<usize> = recipients
            .iter()
            .map(|recipient| {
                let domain = recipient.domain();
                *indexes.entry(domain.clone()).or_insert_with(|| {
                    domains.push(domain);
                    domains.len() - 1
                })
            })
            .collect();
        // All lookups together may take at most twice as long as one.
        let deadline = postroad_env::now() + 2 * limit;
        let site_names: Vec<Box<str>> = stream::iter(domains)
            .map(|domain| {
                let left = deadline.saturating_duration_since(postroad_env::now());
                self.site(view, domain, limit.min(left))
            })
            .buffered(SITES_AT_ONCE)
            .collect()
            .await;
        index_of.into_iter().map(|index| site_names[index].clone()).collect()
    }

    /// Returns the site of a domain. A configured route has its own site, whatever the MX.
    async fn site(&self, view: &View, domain: Option<Domain>, limit: Duration) -> Box<str> {
        let Some(domain) = domain else { return "literal".into() };
        match view.route(&domain) {
            Some(route) => route.site().into(),
            None => self.resolver.site(&domain, limit).await,
        }
    }

    /// Reserves bytes of the limit until the guard is dropped.
    fn reserve(&self, bytes: u64) -> Result<Reserved<'_>, Refusal> {
        let before = self.in_flight_bytes.fetch_add(bytes, Ordering::Relaxed);
        let reserved = Reserved { handler: self, bytes };
        self.metrics.in_flight.increment(bytes as f64);
        if before + bytes > self.config.in_flight_bytes_max.bytes() {
            Err(Refusal::Busy)
        } else {
            Ok(reserved)
        }
    }
}

/// Reserved bytes of a message that waits for its commit.
struct Reserved<'a> {
    handler: &'a SubmissionHandler,
    bytes: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.handler.in_flight_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.handler.metrics.in_flight.decrement(self.bytes as f64);
    }
}

fn recipients(addresses: &[Address], sites: Vec<Box<str>>, pool: u32) -> Vec<Recipient> {
    let recipient = |(address, site): (&Address, Box<str>)| Recipient {
        address: address.as_str().to_owned(),
        site: site.into(),
        pool,
        not_before_millis: 0,
    };
    addresses.iter().zip(sites).map(recipient).collect()
}

/// Returns whether the next hop needs SMTPUTF8, whatever this client requested (RFC 6531 3.1).
fn needs_smtputf8(incoming: &Incoming<'_>, completed: &Completed) -> bool {
    let mut addresses = incoming.recipients.iter().chain(&incoming.sender);
    addresses.any(|address| !address.is_ascii()) || (incoming.smtputf8 && completed.header_eight_bit)
}

/// Splits parts into full chunks and a last smaller one; slices, does not copy.
fn chunks(parts: Vec<Bytes>) -> Vec<Vec<Bytes>> {
    let mut chunks = vec![Vec::new()];
    let mut room = CONTENT_BYTES_MAX;
    for mut part in parts {
        while !part.is_empty() {
            if room == 0 {
                chunks.push(Vec::new());
                room = CONTENT_BYTES_MAX;
            }
            let cut = part.split_to(part.len().min(room));
            room -= cut.len();
            if let Some(last) = chunks.last_mut() {
                last.push(cut);
            }
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_chunks_but_the_last_are_full() {
        let bytes: Bytes =
            (0..2 * CONTENT_BYTES_MAX + 10).map(|index| index as u8).collect::<Vec<u8>>().into();
        for cuts in
            [vec![0], vec![5], vec![CONTENT_BYTES_MAX - 1, CONTENT_BYTES_MAX], vec![2 * CONTENT_BYTES_MAX]]
        {
            let mut rest = bytes.clone();
            let mut parts = Vec::new();
            let mut before = 0;
            for cut in cuts {
                parts.push(rest.split_to(cut - before));
                before = cut;
            }
            parts.push(rest);
            let chunks = chunks(parts);
            let sizes: Vec<usize> = chunks.iter().map(|chunk| chunk.iter().map(Bytes::len).sum()).collect();
            assert_eq!(sizes, [CONTENT_BYTES_MAX, CONTENT_BYTES_MAX, 10]);
            assert_eq!(chunks.concat().concat(), bytes);
        }
    }
}
