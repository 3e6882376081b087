//! A worker of a lane: takes its jobs one after the other, over at most one connection at a time.
//!
//! The connection is kept for the next job within the bounds of D-030: same source, host, port and TLS,
//! and a server that can do what the message needs.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use postroad_core::{BounceClass, Domain, Outcome, OutcomeKind};
use postroad_directory::Source;
use postroad_telemetry::trace;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    attempt::Attempt,
    content::Content,
    context::Workshop,
    job::{Attempted, Job},
    lane::{Lane, Next, Signal},
    lanes::{Cell, Lanes},
    permit::{given_up, while_permitted},
    plan::{Rules, Target, plan},
    result,
};

mod connection;

use connection::{Failure, Open};

/// How long an answer of the DNS is trusted without asking the resolver's cache.
const PLAN_FOR: Duration = Duration::from_secs(30);

/// Works in a lane until there is nothing to do.
pub(crate) async fn run(lanes: Arc<Lanes>, workshop: Arc<Workshop>, cell: Arc<Cell>) {
    cell.with(Lane::arrived);
    let mut place = Place { lanes, workshop, cell, told_to_leave: false };
    let mut worker = Worker { workshop: place.workshop.clone(), cell: place.cell.clone(), open: None };
    loop {
        match place.lanes.next(&place.workshop, &place.cell) {
            Next::Start(job) => {
                let signal = worker.work(*job).await;
                place.lanes.ended(&place.cell, signal);
            }
            Next::Wait(until) if worker.wait(until).await => {}
            Next::Wait(_) | Next::Leave => break,
        }
    }
    place.told_to_leave = true;
    // The place is taken until the connection is closed: the receiver counts it until then.
    worker.say_goodbye().await;
}

/// A worker's place in its lane: free again when this is dropped, however that comes about.
struct Place {
    lanes: Arc<Lanes>,
    workshop: Arc<Workshop>,
    cell: Arc<Cell>,
    told_to_leave: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.told_to_leave {
            self.cell.with(|lane| drop(lane.leave()));
        }
        self.lanes.left(&self.workshop, &self.cell);
    }
}

struct Worker {
    workshop: Arc<Workshop>,
    cell: Arc<Cell>,
    open: Option<Open>,
}

/// What an attempt goes by.
struct Use {
    source: Arc<Source>,
    abort: CancellationToken,
    domain: Domain,
}

/// How a transaction went.
enum Sent {
    /// The recipients are settled.
    Settled(Signal),
    /// The connection had gone stale, and nothing was said (D-031).
    Stale,
}

impl Worker {
    /// Waits for work; false when there is none and this worker is to leave.
    async fn wait(&mut self, until: Option<Instant>) -> bool {
        let idle_until = Instant::now() + Duration::from_secs(self.workshop.config.idle_secs);
        let wake_at = match (until, &self.open) {
            (Some(until), Some(_)) => until.min(idle_until),
            (None, Some(_)) => idle_until,
            (Some(until), None) => until,
            (None, None) => Instant::now(),
        };
        let woken = tokio::select! {
            biased;
            () = self.cell.woken() => true,
            () = time::sleep_until(wake_at.into()) => until.is_some_and(|until| until <= wake_at),
        };
        let leaves = self.cell.with(|lane| {
            lane.woken();
            !woken && until.is_none() && lane.may_leave()
        });
        if !woken && !leaves {
            self.say_goodbye().await;
        }
        !leaves
    }

    async fn work(&mut self, job: Job) -> Signal {
        let (source, abort) = self.cell.source();
        let span = trace::span("deliver", &job.traceparent);
        let metrics = self.workshop.metrics.clone();
        let mut attempt = Attempt::begin(job, self.cell.source, metrics);
        let Some(domain) = attempt.open().first().and_then(|recipient| recipient.address.domain()) else {
            // D-020: submission refuses address literals.
            let text = "5.1.3 mail for address literals is not sent";
            let outcome = Outcome::new(OutcomeKind::Hard, Some(BounceClass::InvalidRecipient), 0, text);
            attempt.settle_all(&Attempted::alone(outcome));
            return Signal::Silent;
        };
        let going = Use { source, abort, domain };
        self.deliver(&mut attempt, &going).instrument(span).await
    }

    async fn deliver(&mut self, attempt: &mut Attempt, going: &Use) -> Signal {
        let Some(content) = self.content(attempt, going).await else {
            attempt.give_back();
            return Signal::Silent;
        };
        let mut targets = None;
        if !self.is_planned(&going.domain) {
            match self.targets(going).await {
                Ok(found) => targets = Some(found),
                Err(outcome) => return undeliverable(attempt, *outcome),
            }
        }
        if self.fits(attempt, going, targets.as_deref()) {
            if let Sent::Settled(signal) = self.transact(attempt, &content, going).await {
                return signal;
            }
            self.open = None;
        }
        self.say_goodbye().await;
        let targets = match targets {
            Some(targets) => targets,
            None => match self.targets(going).await {
                Ok(targets) => targets,
                Err(outcome) => return undeliverable(attempt, *outcome),
            },
        };
        self.try_targets(attempt, &targets, &content, going).await
    }

    /// Returns the content; `None` when it cannot be had.
    async fn content(&self, attempt: &mut Attempt, going: &Use) -> Option<Content> {
        if let Some(content) = attempt.job.content.take() {
            return Some(Content::whole(content));
        }
        let (group, message) = (attempt.job.desk.group, attempt.job.message);
        let fetch = self.workshop.content.fetch(group, message, attempt.job.size);
        match while_permitted(&self.workshop.lease, &going.abort, fetch).await? {
            Ok(content) => Some(content),
            Err(status) => {
                tracing::warn!(%message, %status, "the content of a large message could not be fetched");
                None
            }
        }
    }

    /// Returns true when the connection was made for this domain, and not long ago.
    fn is_planned(&self, domain: &Domain) -> bool {
        self.open
            .as_ref()
            .is_some_and(|open| open.planned.0 == *domain && open.planned.1.elapsed() < PLAN_FOR)
    }

    /// Returns true when the connection may carry this job (D-030); `targets` are those of its domain, if they were asked for.
    fn fits(&mut self, attempt: &Attempt, going: &Use, targets: Option<&[Target]>) -> bool {
        let messages_max = self.cell.with(|lane| lane.messages_per_connection());
        let Some(open) = &mut self.open else { return false };
        let same_source =
            (open.source.address, &open.source.helo) == (going.source.address, &going.source.helo);
        let can_utf8 = !attempt.job.smtputf8 || open.connection.capabilities().smtputf8;
        let on_the_way = targets.is_none_or(|targets| targets.contains(&open.target));
        let fits = same_source
            && can_utf8
            && on_the_way
            && open.messages < messages_max
            && open.connection.is_usable();
        if fits && targets.is_some() {
            open.planned = (going.domain.clone(), Instant::now());
        }
        fits
    }

    async fn targets(&self, going: &Use) -> Result<Vec<Target>, Box<Outcome>> {
        let view = self.workshop.view();
        let source = going.source.address;
        if let Some(route) = view.route(&going.domain) {
            let found = self.workshop.resolver.addresses(&route.host).await;
            let addresses = found.map_err(|error| Box::new(result::outcome_of_dns(&error)))?;
            let of_family =
                addresses.iter().filter(|address| source.is_none_or(|s| s.is_ipv4() == address.is_ipv4()));
            let target = |address: &IpAddr| Target {
                host: route.host.clone(),
                address: (*address, route.port).into(),
                trusted: true,
            };
            return Ok(of_family.take(self.workshop.config.addresses_max).map(target).collect());
        }
        let found = self.workshop.resolver.mail_hosts(&going.domain).await;
        let hosts = found.map_err(|error| Box::new(result::outcome_of_dns(&error)))?;
        let rules = Rules {
            port: self.workshop.config.smtp_port,
            source,
            own: &self.workshop.own_addresses(),
            guard: &self.workshop.guard,
            avoid_ipv6: self.cell.with(|lane| lane.avoids_ipv6(Instant::now())),
            addresses_max: self.workshop.config.addresses_max,
        };
        plan(&hosts, &rules)
    }

    /// Tries one address after the other until one gives a session.
    async fn try_targets(
        &mut self,
        attempt: &mut Attempt,
        targets: &[Target],
        content: &Content,
        going: &Use,
    ) -> Signal {
        let mut failure: Option<Failure> = None;
        let (mut sessions, mut ipv6_failed) = (0, false);
        for target in targets {
            if sessions >= self.workshop.config.sessions_max {
                break;
            }
            let opened = self.open(target, going, &mut sessions);
            let lease = self.workshop.lease.clone();
            match while_permitted(&lease, &going.abort, opened).await {
                None => {
                    attempt.give_back();
                    return Signal::Silent;
                }
                Some(Ok(open)) => {
                    if ipv6_failed && target.address.is_ipv4() {
                        self.cell.with(|lane| lane.avoid_ipv6(Instant::now()));
                    }
                    self.open = Some(open);
                    return match self.transact(attempt, content, going).await {
                        Sent::Settled(signal) => signal,
                        // It was closed between two transactions: those who were left over have not been tried.
                        Sent::Stale => {
                            attempt.give_back();
                            Signal::Silent
                        }
                    };
                }
                Some(Err(failed)) => {
                    ipv6_failed |= target.address.is_ipv6();
                    // What a server said is worth more than that another could not be reached.
                    if failed.attempted.outcome.code != 0 || failure.is_none() {
                        failure = Some(failed);
                    }
                }
            }
        }
        let Some(Failure { attempted, signal }) = failure else {
            let text = "4.4.4 the route has no address of the source's family";
            let outcome = Outcome::new(OutcomeKind::Soft, Some(BounceClass::Connection), 0, text);
            return undeliverable(attempt, outcome);
        };
        attempt.settle_all(&attempted);
        signal
    }

    /// Sends the message, and again for those who were too many in one transaction (D-035).
    async fn transact(&mut self, attempt: &mut Attempt, content: &Content, going: &Use) -> Sent {
        let messages_max = self.cell.with(|lane| lane.messages_per_connection());
        let mut result = Signal::Silent;
        let mut charged = true;
        loop {
            let Some(open) = &mut self.open else { return Sent::Settled(result) };
            let transaction = attempt.transaction(&content.parts);
            let until = given_up(&self.workshop.lease, &going.abort);
            let delivery = open.connection.deliver(transaction, until).await;
            if delivery.stale {
                return Sent::Stale;
            }
            if delivery.withheld {
                self.open = None;
                attempt.give_back();
                return Sent::Settled(result);
            }
            if open.messages > 0 {
                self.workshop.metrics.reused.increment(1);
            }
            open.messages += 1;
            let usable = open.connection.is_usable() && open.messages < messages_max;
            let mut left = if usable { result::left_over(&delivery.fates) } else { Vec::new() };
            if !left.is_empty() {
                charged = self.cell.with(|lane| lane.charge(Instant::now()));
            }
            if !charged {
                left.clear();
            }
            attempt.settle(&delivery.fates, &left, &open.remote, &open.tls);
            result = worse(result, result::signal_of(&delivery.fates));
            if !usable {
                self.say_goodbye().await;
            }
            if left.is_empty() {
                return Sent::Settled(result);
            }
        }
    }

    async fn say_goodbye(&mut self) {
        if let Some(open) = self.open.take() {
            open.quit().await;
        }
    }
}

fn undeliverable(attempt: &mut Attempt, outcome: Outcome) -> Signal {
    attempt.settle_all(&Attempted::alone(outcome));
    Signal::Silent
}

/// Of two signals of one attempt, the one the lane must hear.
fn worse(one: Signal, other: Signal) -> Signal {
    let rank = |signal: &Signal| match signal {
        Signal::Refused(_) => 3,
        Signal::Failed(_) => 2,
        Signal::Served => 1,
        Signal::Silent => 0,
    };
    if rank(&other) >= rank(&one) { other } else { one }
}
