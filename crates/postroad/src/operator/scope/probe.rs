//! `postroad site probe`: what an attempt for a domain would do.

use std::{fmt::Write as _, time::Duration};

use anyhow::Context as _;
use postroad_core::GroupId;
use postroad_directory::View;
use postroad_proto::queue::{
    ProbeResult, ProbeSiteRequest, ProbeSiteResponse, ProbedReply, queue_service_client::QueueServiceClient,
};
use serde::Serialize;
use tokio::time;

use super::{Flow, Operator, OperatorError};
use crate::{
    cli::ProbeArgs,
    output::{Screen, Shown, line},
};

/// How long the probe may take; the outbound node gives up earlier.
const PROBE_WITHIN: Duration = Duration::from_secs(95);

/// Runs `postroad site probe`.
///
/// # Errors
/// No outbound node could be asked. That the domain gets no mail is a result.
pub(super) async fn run(args: &ProbeArgs) -> anyhow::Result<String> {
    let operator = Operator::connect(&args.target)?;
    let action = format!("probe `{}`", args.domain);
    let flow = Flow::read(&operator, "", &action).await?;
    let not_found = |kind: &str, name: &str| OperatorError::NotFound {
        action: action.clone(),
        cause: format!("`{kind} {name}` does not exist"),
    };
    let source = match &args.source {
        None => 0,
        Some(name) => {
            let source = flow.view.sources().find(|source| *source.name == **name);
            source.ok_or_else(|| not_found("source", name))?.id.0
        }
    };
    let pool = match &args.pool {
        None => 0,
        Some(name) => {
            let pool = flow.view.pools().find(|pool| *pool.name == **name);
            pool.ok_or_else(|| not_found("pool", name))?.id.0
        }
    };
    let request =
        ProbeSiteRequest { domain: args.domain.to_string(), source, pool, connect: args.connect, group: 0 };
    let response = ask(&operator, request, &action).await?;
    let shown = ShownProbe::of(args, &flow, response).context("the answer has no result")?;
    args.output.output.show(&shown)
}

/// Asks the leader of any ledger group. A probe takes longer than other calls, and is not repeated.
async fn ask(
    operator: &Operator,
    request: ProbeSiteRequest,
    action: &str,
) -> anyhow::Result<ProbeSiteResponse> {
    let mut leaders = operator.leaders.subscribe();
    let found = leaders.wait_for(|table| table.keys().any(|group| *group != GroupId::DIRECTORY));
    let table = match time::timeout(super::WITHIN, found).await {
        Ok(Ok(table)) => table.clone(),
        Ok(Err(_)) | Err(_) => Default::default(),
    };
    let mut last = "no ledger group has a leader".to_owned();
    for (group, leader) in table.into_iter().filter(|(group, _)| *group != GroupId::DIRECTORY) {
        let Some(channel) = operator.endpoints.get(&leader.node) else { continue };
        let mut client = QueueServiceClient::new(channel.clone());
        let request = ProbeSiteRequest { group: group.0.into(), ..request.clone() };
        match time::timeout(PROBE_WITHIN, client.probe_site(request)).await {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            Ok(Err(status)) => status.message().clone_into(&mut last),
            Err(_) => "the outbound node did not answer in time".clone_into(&mut last),
        }
    }
    let addresses = operator.addresses.clone();
    Err(OperatorError::Unreachable { action: action.to_owned(), addresses, cause: last }.into())
}

/// What a probe found.
#[derive(Debug, Serialize)]
struct ShownProbe {
    domain: String,
    site: String,
    /// The route that replaces the MX.
    route: Option<String>,
    source: ShownSource,
    limits: ShownLimits,
    /// In the order in which they are tried.
    hosts: Vec<ShownHost>,
    /// The addresses that an attempt would try, in this order.
    targets: Vec<String>,
    connections: Vec<ShownConnection>,
    /// Why no attempt can be made.
    failure: Option<String>,
    /// Suspensions that keep mail from being sent so.
    suspended: Vec<super::ShownSuspension>,
}

#[derive(Debug, Serialize)]
struct ShownSource {
    name: String,
    address: Option<String>,
    helo: String,
    node: u64,
}

#[derive(Debug, Serialize)]
struct ShownLimits {
    connections_max: u32,
    messages_per_connection_max: u32,
    window: u32,
    rates: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ShownHost {
    name: String,
    preference: u32,
    addresses: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ShownConnection {
    remote: String,
    /// What the receiver said.
    replies: Vec<ShownReply>,
    tls: Option<String>,
    failure: Option<String>,
    took_millis: u64,
}

#[derive(Debug, Serialize)]
struct ShownReply {
    phase: String,
    text: String,
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl ShownReply {
    fn of(reply: ProbedReply) -> Self {
        Self { phase: reply.phase, text: reply.text }
    }
}

impl ShownProbe {
    fn of(args: &ProbeArgs, flow: &Flow, response: ProbeSiteResponse) -> Option<Self> {
        let ProbeSiteResponse { source, node, result } = response;
        let ProbeResult { site, route, hosts, targets, failure, rates, connections, .. } =
            result.as_ref()?.clone();
        let result = result?;
        let view: &View = &flow.view;
        let known = view.source(postroad_core::SourceId(source));
        let lane = std::sync::Arc::<str>::from(site.as_str());
        Some(Self {
            domain: args.domain.to_string(),
            suspended: flow.suspensions_of(
                postroad_core::SourceId(source),
                postroad_core::NodeId(node),
                &lane,
            ),
            site,
            route: some(route),
            source: ShownSource {
                name: flow.source_name(source),
                address: known.and_then(|source| source.address).map(|address| address.to_string()),
                helo: known.map(|source| source.helo.to_string()).unwrap_or_default(),
                node,
            },
            limits: ShownLimits {
                connections_max: result.connections_max,
                messages_per_connection_max: result.messages_per_connection_max,
                window: result.window,
                rates,
            },
            hosts: hosts
                .into_iter()
                .map(|host| ShownHost {
                    name: host.name,
                    preference: host.preference,
                    addresses: host.addresses,
                })
                .collect(),
            targets,
            connections: connections
                .into_iter()
                .map(|connection| ShownConnection {
                    remote: connection.remote,
                    replies: connection.replies.into_iter().map(ShownReply::of).collect(),
                    tls: some(connection.tls),
                    failure: some(connection.failure),
                    took_millis: connection.took_millis,
                })
                .collect(),
            failure: some(failure),
        })
    }
}

impl Shown for ShownProbe {
    fn text(&self, _: Screen) -> String {
        let mut text = String::new();
        let mut put = |name: &str, value: &str| {
            let _ = writeln!(text, "{name:<12}{}", line(value));
        };
        put("domain", &self.domain);
        put("site", &self.site);
        if let Some(route) = &self.route {
            put("route", route);
        }
        let ShownSource { name, address, helo, node } = &self.source;
        let address = address.as_deref().unwrap_or("address chosen by the system");
        put("source", &format!("{name} ({address}, {helo}), owned by outbound node {node}"));
        let ShownLimits { connections_max, messages_per_connection_max, window, rates } = &self.limits;
        let rates = if rates.is_empty() { "no rate".to_owned() } else { rates.join(", ") };
        put(
            "limits",
            &format!(
                "{connections_max} connections, {messages_per_connection_max} messages each, window {window}, {rates}"
            ),
        );
        for suspension in &self.suspended {
            put("", &format!("{} {}", suspension.scope, suspension.summary()));
        }
        for host in &self.hosts {
            put(
                "host",
                &format!("{} (preference {}): {}", host.name, host.preference, host.addresses.join(", ")),
            );
        }
        for target in &self.targets {
            put("tries", target);
        }
        for connection in &self.connections {
            put("connection", &format!("{} in {} ms", connection.remote, connection.took_millis));
            for ShownReply { phase, text } in &connection.replies {
                put("", &format!("{phase}: {text}"));
            }
            put("", &format!("TLS: {}", connection.tls.as_deref().unwrap_or("none")));
            if let Some(failure) = &connection.failure {
                put("", failure);
            }
        }
        if let Some(failure) = &self.failure {
            put("result", failure);
        }
        text
    }
}
