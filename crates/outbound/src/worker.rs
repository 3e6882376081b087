//! A worker of a lane: delivers its jobs one after the other, over at most one connection at a time.
//!
//! The connection is kept for the next job under the conditions of D-030: same source, host, port and TLS.
//! How a transaction ended decides what follows: the next job, a new connection, or the next host.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use postroad_core::{BounceClass, Domain, Outcome, OutcomeKind};
use postroad_directory::Source;
use postroad_mail::finish::Offered;
use postroad_smtp::client::{Capabilities, RecipientResult};
use postroad_telemetry::trace;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    attempt::Attempt,
    content::Content,
    context::DeliveryContext,
    destination::Destination,
    job::{AttemptResult, Job},
    lane::{Lane, Next, Signal},
    lanes::{LaneHandle, Lanes},
    permit::{source_lost, while_permitted},
    plan::Target,
    result::{self, EndOfConnection, Reading},
    suspension::stops_job,
};

mod connection;

use connection::{OpenConnection, SessionFailure};

/// How long a connection is reused for its domain without another DNS lookup.
const PLAN_FOR: Duration = Duration::from_secs(30);

/// Runs a worker of a lane until it has nothing to do.
pub(crate) async fn run(lanes: Arc<Lanes>, context: Arc<DeliveryContext>, handle: Arc<LaneHandle>) {
    handle.with(Lane::worker_started);
    let mut slot = WorkerSlot { lanes, context, handle, exit_counted: false };
    let mut worker = Worker { context: slot.context.clone(), handle: slot.handle.clone(), open: None };
    loop {
        match slot.lanes.next(&slot.context, &slot.handle) {
            Next::Start(job) => {
                let signal = worker.work(*job).await;
                slot.lanes.ended(&slot.handle, signal);
            }
            Next::Wait(until) if worker.wait(until).await => {}
            Next::Wait(_) | Next::Exit => break,
        }
    }
    slot.exit_counted = true;
    // The slot is freed after the connection is closed: the receiver counts the connection until then.
    worker.close_connection().await;
}

/// A worker's slot in its lane; dropping this frees it, also after a panic.
struct WorkerSlot {
    lanes: Arc<Lanes>,
    context: Arc<DeliveryContext>,
    handle: Arc<LaneHandle>,
    /// The lane has decided that the worker exits.
    exit_counted: bool,
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        if !self.exit_counted {
            self.handle.with(|lane| drop(lane.begin_exit()));
        }
        self.lanes.worker_exited(&self.context, &self.handle);
    }
}

struct Worker {
    context: Arc<DeliveryContext>,
    handle: Arc<LaneHandle>,
    open: Option<OpenConnection>,
}

/// What one attempt uses: its source, and the domain of its recipients.
struct AttemptContext {
    source: Arc<Source>,
    abort: CancellationToken,
    domain: Domain,
}

/// How a transaction ended.
enum TransactionEnd {
    /// All recipients are reported or given back.
    Done,
    /// The connection is over: a new one may take at once what remains of the message (D-031, D-036).
    Reconnect,
    /// This host did not take the message: another may (D-036).
    NextHost { host: Target, failed: SessionFailure },
}

/// What an attempt has tried so far.
#[derive(Default)]
struct Tried {
    /// Addresses of hosts with which a session was begun, however many times.
    hosts: usize,
    ipv6_failed: bool,
    failure: Option<SessionFailure>,
    /// The host that did not take the message over the reused connection: it has been asked.
    reused: Option<Target>,
}

impl Tried {
    fn add(&mut self, failed: SessionFailure) {
        self.hosts += usize::from(failed.connected);
        self.failure = Some(match self.failure.take() {
            None => failed,
            Some(before) => before.and(failed),
        });
    }

    fn add_reused(&mut self, target: Target, failed: SessionFailure) {
        self.reused = Some(target);
        self.add(failed);
    }
}

impl Worker {
    /// Waits for a job; false when there is none and the worker exits.
    async fn wait(&mut self, until: Option<Instant>) -> bool {
        let idle_until = postroad_env::now() + self.context.config.idle_timeout;
        let wake_at = match (until, &self.open) {
            (Some(until), Some(_)) => until.min(idle_until),
            (None, Some(_)) => idle_until,
            (Some(until), None) => until,
            (None, None) => postroad_env::now(),
        };
        let woken = tokio::select! {
            biased;
            () = self.handle.notified() => true,
            () = time::sleep_until(wake_at.into()) => until.is_some_and(|until| until <= wake_at),
        };
        let exits = self.handle.with(|lane| {
            lane.worker_woken();
            !woken && until.is_none() && lane.try_exit()
        });
        if !woken && !exits {
            self.close_connection().await;
        }
        !exits
    }

    async fn work(&mut self, job: Job) -> Signal {
        let (source, abort) = self.handle.source();
        let span = trace::span("deliver", &job.traceparent);
        let mut attempt = Attempt::begin(job, self.handle.metrics.clone());
        let Some(domain) = attempt.open().first().and_then(|recipient| recipient.address.domain()) else {
            // D-020: submission refuses address literals.
            let text = "5.1.3 mail to address literals is not supported";
            let outcome = Outcome::new(OutcomeKind::Hard, Some(BounceClass::InvalidRecipient), 0, text);
            attempt.report_all(&AttemptResult::without_remote(outcome));
            return Signal::Silent;
        };
        let attempt_context = AttemptContext { source, abort, domain };
        self.deliver(&mut attempt, &attempt_context).instrument(span).await;
        attempt.signal()
    }

    async fn deliver(&mut self, attempt: &mut Attempt, attempt_context: &AttemptContext) {
        let Some(content) = self.content(attempt, attempt_context).await else {
            return attempt.give_back();
        };
        let mut targets = None;
        if !self.is_planned(&attempt_context.domain) {
            match self.targets(attempt_context).await {
                Ok(found) => targets = Some(found),
                Err(outcome) => return report_without_session(attempt, *outcome),
            }
        }
        let mut tried = Tried::default();
        if self.can_reuse(attempt_context, targets.as_deref()) {
            match self.transact(attempt, &content, attempt_context).await {
                TransactionEnd::Done => return,
                TransactionEnd::NextHost { host, failed } => tried.add_reused(host, failed),
                TransactionEnd::Reconnect => {}
            }
        }
        self.close_connection().await;
        let targets = match targets {
            Some(targets) => targets,
            None => match self.targets(attempt_context).await {
                Ok(targets) => targets,
                // What was said over the reused connection tells more.
                Err(_) if tried.failure.is_some() => Vec::new(),
                Err(outcome) => return report_without_session(attempt, *outcome),
            },
        };
        self.try_targets(attempt, &targets, &content, attempt_context, tried).await;
    }

    /// Returns true when an operator has suspended what the attempt belongs to. A connection or a transaction may begin long
    /// after the lane gave the job out: a receiver may be slow to greet, and a message may have many recipients.
    fn is_suspended(&self, attempt: &Attempt) -> bool {
        self.handle.with(|lane| lane.is_suspended()) || stops_job(&self.context.view(), &attempt.job)
    }

    /// Returns the content; `None` when it cannot be fetched.
    async fn content(&self, attempt: &mut Attempt, attempt_context: &AttemptContext) -> Option<Content> {
        if let Some(content) = attempt.job.content.take() {
            return Some(Content::whole(content, attempt.job.budget.clone()));
        }
        let (group, message) = (attempt.job.attempts.group, attempt.job.message);
        let fetch = self.context.content.fetch(group, message, attempt.job.size);
        match while_permitted(&self.context.lease, &attempt_context.abort, fetch).await? {
            Ok(content) => Some(content),
            Err(status) => {
                tracing::warn!(%message, %status, "cannot fetch the content of a large message");
                None
            }
        }
    }

    /// Returns true when the connection was opened for this domain, and recently.
    fn is_planned(&self, domain: &Domain) -> bool {
        self.open
            .as_ref()
            .is_some_and(|open| open.planned.0 == *domain && postroad_env::since(open.planned.1) < PLAN_FOR)
    }

    /// Returns true when the connection may be used for this job (D-030); `targets` are those of its domain, if looked up.
    fn can_reuse(&mut self, attempt_context: &AttemptContext, targets: Option<&[Target]>) -> bool {
        let messages_max = self.handle.with(|lane| lane.messages_per_connection());
        let Some(open) = &mut self.open else { return false };
        let same_source = (open.source.address, &open.source.helo)
            == (attempt_context.source.address, &attempt_context.source.helo);
        let same_destination = targets.is_none_or(|targets| targets.contains(&open.target));
        let can_reuse =
            same_source && same_destination && open.messages < messages_max && open.connection.is_usable();
        if can_reuse && targets.is_some() {
            open.planned = (attempt_context.domain.clone(), postroad_env::now());
        }
        can_reuse
    }

    async fn targets(&self, attempt_context: &AttemptContext) -> Result<Vec<Target>, Box<Outcome>> {
        let destination = Destination::find(&self.context, &attempt_context.domain).await?;
        let avoid_ipv6 = self.handle.with(|lane| lane.avoids_ipv6(postroad_env::now()));
        destination.targets(&self.context, attempt_context.source.address, avoid_ipv6)
    }

    /// Tries one address after the other until one has taken or refused the message.
    async fn try_targets(
        &mut self,
        attempt: &mut Attempt,
        targets: &[Target],
        content: &Content,
        attempt_context: &AttemptContext,
        mut tried: Tried,
    ) {
        for target in targets {
            if tried.reused.as_ref() == Some(target) {
                continue;
            }
            if tried.hosts >= self.context.config.sessions_max {
                break;
            }
            if self.try_target(attempt, target, content, attempt_context, &mut tried).await {
                return;
            }
        }
        let Some(SessionFailure { result, signal, .. }) = tried.failure else {
            let text = "4.4.4 the route has no address of the source's family (IPv4 or IPv6)";
            let outcome = Outcome::new(OutcomeKind::Soft, Some(BounceClass::Connection), 0, text);
            return report_without_session(attempt, outcome);
        };
        attempt.note(signal);
        attempt.report_all(&result);
    }

    /// Tries one address; false when another may be tried.
    async fn try_target(
        &mut self,
        attempt: &mut Attempt,
        target: &Target,
        content: &Content,
        attempt_context: &AttemptContext,
        tried: &mut Tried,
    ) -> bool {
        let lease = self.context.lease.clone();
        loop {
            if self.is_suspended(attempt) {
                attempt.give_back();
                return true;
            }
            let opened = self.open(target, attempt_context);
            match while_permitted(&lease, &attempt_context.abort, opened).await {
                None => {
                    attempt.give_back();
                    return true;
                }
                Some(Err(failed)) => {
                    tried.ipv6_failed |= target.address.is_ipv6();
                    tried.add(failed);
                    return false;
                }
                Some(Ok(open)) => self.open = Some(open),
            }
            if tried.ipv6_failed && target.address.is_ipv4() {
                self.handle.with(|lane| lane.avoid_ipv6(postroad_env::now()));
            }
            match self.transact(attempt, content, attempt_context).await {
                TransactionEnd::Done => return true,
                // A transaction came before that reported somebody or lowered the number of recipients, counts in the
                // rates and held nothing back; or the connection had carried a message and took nothing of this one.
                TransactionEnd::Reconnect => self.close_connection().await,
                TransactionEnd::NextHost { failed, .. } => {
                    self.close_connection().await;
                    tried.add(failed);
                    return false;
                }
            }
        }
    }

    /// Sends the message, and again to recipients that were too many for one transaction (D-035).
    async fn transact(
        &mut self,
        attempt: &mut Attempt,
        content: &Content,
        attempt_context: &AttemptContext,
    ) -> TransactionEnd {
        loop {
            let Some(open) = &self.open else { return TransactionEnd::Done };
            let Capabilities { eight_bit_mime, smtputf8, .. } = open.connection.capabilities();
            let offered = Offered { eight_bit_mime, smtputf8 };
            let finishing = self.context.conversions.finish(content, offered, attempt.finished.take());
            let finished =
                while_permitted(&self.context.lease, &attempt_context.abort, finishing).await.flatten();
            let Some(finished) = finished else {
                attempt.give_back();
                // It has been silent for a while, which the receiver may not allow for much longer.
                self.close_connection().await;
                return TransactionEnd::Done;
            };
            if self.is_suspended(attempt) {
                attempt.give_back();
                return TransactionEnd::Done;
            }
            let Some(open) = &mut self.open else { return TransactionEnd::Done };
            let transaction = attempt.transaction(&finished);
            attempt.finished = Some(finished);
            let until = source_lost(&self.context.lease, &attempt_context.abort);
            let delivery = open.connection.deliver(transaction, until).await;
            if delivery.stale {
                return TransactionEnd::Reconnect;
            }
            if delivery.not_started {
                self.open = None;
                attempt.give_back();
                return TransactionEnd::Done;
            }
            let reading = result::read_transaction(&delivery.results);
            if let Some(end) = self.not_taken(&delivery.results, &reading.outcomes) {
                return end;
            }
            if let Some(end) = self.report(attempt, reading).await {
                return end;
            }
        }
    }

    /// Returns how to go on where the server took nothing of the message and another connection or host may.
    fn not_taken(&self, results: &[RecipientResult], outcomes: &[Outcome]) -> Option<TransactionEnd> {
        let open = self.open.as_ref()?;
        if open.messages > 0
            && let Some(end) = result::end_of_connection(results, outcomes)
        {
            if end == EndOfConnection::Messages {
                self.handle.with(|lane| lane.connection_ended_after(open.messages));
            }
            return Some(TransactionEnd::Reconnect);
        }
        if !result::may_try_next_host(results, outcomes) {
            return None;
        }
        let outcome = outcomes.first()?.clone();
        let result = AttemptResult { outcome, remote: open.remote.clone(), tls: open.tls.clone() };
        let failed = SessionFailure { result, signal: result::signal_of(outcomes), connected: true };
        Some(TransactionEnd::NextHost { host: open.target.clone(), failed })
    }

    /// Reports the outcomes of a transaction; `None` when the next one follows on this connection.
    async fn report(&mut self, attempt: &mut Attempt, reading: Reading) -> Option<TransactionEnd> {
        let messages_max = self.handle.with(|lane| lane.messages_per_connection());
        let Some(open) = &mut self.open else { return Some(TransactionEnd::Done) };
        if open.messages > 0 {
            self.context.metrics.reused.increment(1);
        }
        open.messages += 1;
        let is_full = open.messages >= messages_max;
        let is_usable = open.connection.is_usable() && !is_full;
        let goes_on = self.report_recipients(attempt, reading);
        if is_full {
            self.handle.with(Lane::connection_filled);
        }
        if is_usable {
            return if goes_on { None } else { Some(TransactionEnd::Done) };
        }
        self.close_connection().await;
        // The rest may go over a new connection at once: this one has carried some of the message.
        Some(if goes_on { TransactionEnd::Reconnect } else { TransactionEnd::Done })
    }

    /// Reports the recipients of a transaction; true when others remain and another transaction may begin.
    ///
    /// None follows one that slows or pauses the lane: the lane learns of it at the end of the attempt.
    fn report_recipients(&self, attempt: &mut Attempt, reading: Reading) -> bool {
        let Reading { outcomes, mut over_limit, recipients_max } = reading;
        let Some(open) = &self.open else { return false };
        let signal = result::signal_of(&outcomes);
        let remain = !over_limit.is_empty() || attempt.open().len() > outcomes.len();
        let goes_on = remain
            && !signal.holds_back()
            && self.handle.with(|lane| lane.try_count_transaction(postroad_env::now()));
        if !goes_on {
            over_limit.clear();
        }
        attempt.note(signal);
        attempt.report_outcomes(outcomes, &over_limit, &open.remote, &open.tls);
        if goes_on {
            recipients_max.into_iter().for_each(|max| attempt.limit_recipients(max));
        } else {
            let (remote, tls) = (open.remote.clone(), open.tls.clone());
            attempt.report_all(&AttemptResult { outcome: result::left_for_later(), remote, tls });
        }
        goes_on
    }

    async fn close_connection(&mut self) {
        if let Some(open) = self.open.take() {
            open.quit().await;
        }
    }
}

fn report_without_session(attempt: &mut Attempt, outcome: Outcome) {
    if outcome.kind == OutcomeKind::Internal {
        attempt.note(Signal::Local(outcome.text.clone()));
    }
    attempt.report_all(&AttemptResult::without_remote(outcome));
}
