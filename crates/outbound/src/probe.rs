//! Probes of sites that operators ask for: what an attempt would do, and what a connection says up to EHLO and STARTTLS.
//!
//! No mail is sent, so a probe counts in no rate; its connection is one of those that its lane may have.

use std::{sync::Arc, time::Duration};

use postroad_core::{Domain, DurationText, SourceId};
use postroad_directory::{Rate, Source};
use postroad_net::smtp::client::Connection;
use postroad_proto::queue::{Probe, ProbeResult, ProbedConnection, ProbedHost, ProbedReply};
use postroad_smtp::client::{ClientConfig, Ended, Phase, TlsUse};
use tokio::time;

use crate::{
    context::DeliveryContext, destination::Destination, lanes::Lanes, pending_attempts::LaneName,
    permit::while_permitted, plan::Target, result,
};

/// How long a whole probe may take.
const WITHIN: Duration = Duration::from_secs(60);
/// How long the lookup of the site may take.
const SITE_WITHIN: Duration = Duration::from_secs(5);

/// Carries out a probe. Whatever goes wrong is part of its result.
pub(crate) async fn run(context: &Arc<DeliveryContext>, lanes: &Arc<Lanes>, request: Probe) -> ProbeResult {
    let id = request.id;
    let failed = |failure: &str| ProbeResult { id, failure: failure.to_owned(), ..ProbeResult::default() };
    let Some(source) = lanes.source(SourceId(request.source)) else {
        return failed("this node no longer owns the source");
    };
    let Ok(domain) = Domain::parse(&request.domain) else { return failed("not a domain") };
    let probe = Probing { context, lanes, source, domain };
    let mut result = ProbeResult { id, ..ProbeResult::default() };
    if time::timeout(WITHIN, probe.run(request.connect, &mut result)).await.is_err() {
        result.failure = "the probe took longer than 60 s".to_owned();
    }
    result
}

struct Probing<'a> {
    context: &'a Arc<DeliveryContext>,
    lanes: &'a Arc<Lanes>,
    source: Arc<Source>,
    domain: Domain,
}

impl Probing<'_> {
    async fn run(&self, connect: bool, result: &mut ProbeResult) {
        let view = self.context.view();
        let site: Arc<str> = match view.route(&self.domain) {
            Some(route) => {
                result.route = format!("{}:{}", route.host, route.port);
                route.site().into()
            }
            None => self.context.resolver.site(&self.domain, SITE_WITHIN).await.into(),
        };
        result.site = site.to_string();
        let limits = view.lane_limits(self.source.id, &site);
        result.connections_max = limits.connections_max;
        result.messages_per_connection_max = limits.messages_per_connection_max;
        result.window = limits.window;
        result.rates = limits.rates.iter().map(rate).collect();
        let targets = match Destination::find(self.context, &self.domain).await {
            Ok(destination) => {
                result.hosts = hosts(&destination);
                destination.targets(self.context, self.source.address, false)
            }
            Err(outcome) => Err(outcome),
        };
        match targets {
            Err(outcome) => outcome.text.as_ref().clone_into(&mut result.failure),
            Ok(targets) if targets.is_empty() => {
                "4.4.4 the route has no address of the source's family (IPv4 or IPv6)"
                    .clone_into(&mut result.failure);
            }
            Ok(targets) => {
                result.targets = targets.iter().map(Target::remote).collect();
                if connect {
                    self.connect(&site, &targets, result).await;
                }
            }
        }
    }

    /// Connects to one target after the other, as an attempt does, until one has answered.
    async fn connect(&self, site: &Arc<str>, targets: &[Target], result: &mut ProbeResult) {
        let lane = LaneName { source: self.source.id, site: site.clone() };
        let taken = match self.lanes.take_connection(self.context, &lane, self.source.epoch) {
            Ok(taken) => taken,
            Err(not_taken) => {
                result.failure = not_taken.to_string();
                return;
            }
        };
        for target in targets.iter().take(self.context.config.sessions_max) {
            let started = postroad_env::now();
            let lease = &self.context.lease;
            let Some(mut probed) = while_permitted(lease, &taken.abort(), self.session(target)).await else {
                "the lease on the source ended during the probe".clone_into(&mut result.failure);
                return;
            };
            probed.took_millis = u64::try_from(postroad_env::since(started).as_millis()).unwrap_or(u64::MAX);
            let answered = probed.failure.is_empty();
            result.connections.push(probed);
            if answered {
                return;
            }
        }
    }

    async fn session(&self, target: &Target) -> ProbedConnection {
        let context = self.context;
        let mut probed = ProbedConnection { remote: target.remote(), ..ProbedConnection::default() };
        let stream = match context.connect(target, self.source.address).await {
            Ok(stream) => stream,
            Err(error) => {
                probed.failure = error.with_cause();
                return probed;
            }
        };
        let (helo, tls) = (self.source.helo.clone(), TlsUse::Opportunistic);
        let config = ClientConfig { helo, tls, timeouts: context.timeouts };
        let (said, opened) = Connection::open_recorded(stream, config, &context.tls, &target.host).await;
        probed.replies = said
            .iter()
            .map(|(phase, reply)| ProbedReply {
                phase: phase_name(*phase).to_owned(),
                text: reply.to_string(),
            })
            .collect();
        match opened {
            Ok(connection) => {
                connection.tls().clone_into(&mut probed.tls);
                connection.quit().await;
            }
            Err(Ended::Refused(..)) => "the receiver refused the session".clone_into(&mut probed.failure),
            Err(ended) => result::outcome_of_session(&ended).text.as_ref().clone_into(&mut probed.failure),
        }
        probed
    }
}

fn hosts(destination: &Destination) -> Vec<ProbedHost> {
    let texts = |addresses: &[std::net::IpAddr]| addresses.iter().map(ToString::to_string).collect();
    match destination {
        Destination::Route(route, addresses) => {
            vec![ProbedHost { name: route.host.to_string(), preference: 0, addresses: texts(addresses) }]
        }
        Destination::Hosts(hosts) => {
            let host = |host: &postroad_dns::MailHost| ProbedHost {
                name: host.name.to_string(),
                preference: host.preference.into(),
                addresses: texts(&host.addresses),
            };
            hosts.hosts.iter().map(host).collect()
        }
    }
}

fn rate(rate: &Rate) -> String {
    format!("{} per {}", rate.messages, DurationText(rate.per))
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Greeting => "connect",
        Phase::Hello => "ehlo",
        Phase::StartTls => "starttls",
        Phase::Mail => "mail",
        Phase::Recipient => "rcpt",
        Phase::Data => "data",
        Phase::Message => "dot",
    }
}
