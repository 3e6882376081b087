//! What nodes report about themselves: each announces itself to every queue node, and operators list them.
//!
//! Only the end of a suspension waits for what queue nodes say of their clocks; a node that cannot announce itself works as before.

use std::{collections::BTreeMap, time::Duration};

use postroad_core::{NodeId, Timestamp};
use postroad_net::{Certificate, CertificateFacts, KeyId, PeerIdentity, Role};
use postroad_proto::node::{self as wire, node_service_client::NodeServiceClient};
use tokio::{sync::watch, task::JoinSet, time};
use tonic::{Status, transport::Channel};

use crate::Endpoints;

/// How often a node announces itself.
pub const ANNOUNCE_EVERY: Duration = Duration::from_secs(30);
/// The pause after an announcement that failed.
const RETRY_AFTER: Duration = Duration::from_secs(3);
/// How long a queue node may take to answer an announcement.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A running node as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AboutNode {
    /// Its role.
    pub role: Role,
    /// Its id.
    pub node: NodeId,
    /// The version that runs.
    pub version: String,
    /// When it started, by its own clock.
    pub started_at: Timestamp,
    /// The certificates that it uses towards other nodes; `None` without mutual TLS.
    pub certificates: Option<CertificateFacts>,
}

/// A node that has announced itself to a queue node within a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncedNode {
    /// What it said.
    pub about: AboutNode,
    /// The address that it connected from.
    pub address: String,
    /// Since its last announcement.
    pub age: Duration,
    /// Its clock minus the queue node's, as it measured it; `None` until it has.
    pub clock: Option<ClockDifference>,
}

/// The difference between two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockDifference {
    /// One clock minus the other, in milliseconds.
    pub offset_millis: i64,
    /// How long the answer took by which it was measured: the offset is right to half of it.
    pub round_trip: Duration,
}

impl ClockDifference {
    /// Returns the clock of the one who answers minus that of the one who asked.
    ///
    /// The answer has the first clock; `asked_at` is the other one when it was asked.
    fn measured(answered: u64, asked_at: Timestamp, round_trip: Duration) -> Self {
        let halfway = asked_at.after(round_trip / 2).as_millis();
        Self { offset_millis: difference(answered, halfway), round_trip }
    }
}

/// The nodes that have announced themselves to one queue node, and its clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeList {
    /// The nodes.
    pub nodes: Vec<AnnouncedNode>,
    /// The queue node's clock minus the caller's.
    pub clock: ClockDifference,
}

/// Announces a node to every queue node until it is dropped, and at once when its description changes.
pub async fn announce(endpoints: Endpoints, about: watch::Receiver<AboutNode>) {
    let mut callers = JoinSet::new();
    for (queue, channel) in endpoints {
        callers.spawn(announce_to(queue, channel, about.clone()));
    }
    // The callers never end.
    callers.join_next().await;
}

async fn announce_to(queue: NodeId, channel: Channel, mut about: watch::Receiver<AboutNode>) {
    let mut client = NodeServiceClient::new(channel);
    let mut clock = None;
    loop {
        let node = Some(to_wire(&about.borrow_and_update()));
        let is_first = clock.is_none();
        let request = wire::AnnounceRequest { node, clock };
        let (asked_at, asked) = (postroad_env::wall(), postroad_env::now());
        let pause = match time::timeout(ANSWER_MAX, client.announce(request)).await {
            Ok(Ok(response)) => {
                let answered = response.get_ref().clock_millis;
                let theirs = ClockDifference::measured(answered, asked_at, postroad_env::since(asked));
                let offset_millis = theirs.offset_millis.saturating_neg();
                clock = Some(clock_to_wire(ClockDifference { offset_millis, ..theirs }));
                // The first one also connects, so its time says little; the next one has a difference to report.
                if is_first { Duration::ZERO } else { ANNOUNCE_EVERY }
            }
            Ok(Err(status)) => {
                tracing::debug!(%queue, error = status.message(), "announcement failed");
                RETRY_AFTER
            }
            Err(_) => RETRY_AFTER,
        };
        let changed = async {
            if about.changed().await.is_err() {
                // Nothing can change it now.
                std::future::pending().await
            }
        };
        tokio::select! {
            () = time::sleep(pause) => {}
            () = changed => {}
        }
    }
}

/// Asks every queue node which nodes have announced themselves, all at the same time.
///
/// # Errors
/// Each queue node that did not answer within `limit`, or with something else, has its own error.
pub async fn list_nodes(
    endpoints: &Endpoints,
    limit: Duration,
) -> BTreeMap<NodeId, Result<NodeList, Status>> {
    let mut calls = JoinSet::new();
    for (queue, channel) in endpoints {
        let (queue, channel) = (*queue, channel.clone());
        calls.spawn(async move {
            let listed = time::timeout(limit, list(channel)).await;
            (queue, listed.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))))
        });
    }
    let mut lists = BTreeMap::new();
    while let Some(listed) = calls.join_next().await {
        let (queue, list) = listed.expect("the calls do not panic and are not aborted");
        lists.insert(queue, list);
    }
    lists
}

async fn list(channel: Channel) -> Result<NodeList, Status> {
    let mut client = NodeServiceClient::new(channel);
    // The first call also connects, which would count as time on the way.
    client.list_nodes(wire::ListNodesRequest {}).await?;
    let (asked_at, asked) = (postroad_env::wall(), postroad_env::now());
    let response = client.list_nodes(wire::ListNodesRequest {}).await?.into_inner();
    let clock = ClockDifference::measured(response.clock_millis, asked_at, postroad_env::since(asked));
    let nodes = response.nodes.into_iter().map(announced).collect::<Result<_, _>>()?;
    Ok(NodeList { nodes, clock })
}

/// Returns `one - other`.
#[must_use]
pub fn difference(one: u64, other: u64) -> i64 {
    i64::try_from(i128::from(one) - i128::from(other)).unwrap_or(if one > other {
        i64::MAX
    } else {
        i64::MIN
    })
}

fn announced(node: wire::AnnouncedNode) -> Result<AnnouncedNode, Status> {
    let wire::AnnouncedNode { node, address, age_millis, clock } = node;
    let about = node.ok_or_else(|| Status::data_loss("an announced node without a description"))?;
    let about = from_wire(about)?;
    let clock = clock.map(|clock| ClockDifference {
        offset_millis: clock.offset_millis,
        round_trip: Duration::from_millis(clock.round_trip_millis),
    });
    Ok(AnnouncedNode { about, address, age: Duration::from_millis(age_millis), clock })
}

fn clock_to_wire(clock: ClockDifference) -> wire::ClockDifference {
    let ClockDifference { offset_millis, round_trip } = clock;
    let round_trip_millis = u64::try_from(round_trip.as_millis()).unwrap_or(u64::MAX);
    wire::ClockDifference { offset_millis, round_trip_millis }
}

fn to_wire(about: &AboutNode) -> wire::Node {
    let AboutNode { role, node, version, started_at, certificates } = about;
    let authorities = certificates.iter().flat_map(|facts| &facts.authorities);
    wire::Node {
        role: role.name().to_owned(),
        id: node.0,
        version: version.clone(),
        started_at_millis: started_at.as_millis(),
        certificate: certificates.as_ref().map(|facts| certificate_to_wire(&facts.own)),
        authorities: authorities.map(certificate_to_wire).collect(),
    }
}

fn certificate_to_wire(certificate: &Certificate) -> wire::Certificate {
    let id = |id: &Option<KeyId>| id.as_ref().map(|id| id.as_bytes().to_vec()).unwrap_or_default().into();
    wire::Certificate {
        not_before_millis: certificate.not_before.as_millis(),
        not_after_millis: certificate.not_after.as_millis(),
        key: id(&certificate.key),
        signed_by: id(&certificate.signed_by),
    }
}

fn from_wire(node: wire::Node) -> Result<AboutNode, Status> {
    let role = node.role.parse().map_err(|_| Status::data_loss(format!("unknown role `{}`", node.role)))?;
    let own = node.certificate.as_ref().map(certificate_from_wire);
    let authorities = node.authorities.iter().map(certificate_from_wire).collect();
    Ok(AboutNode {
        role,
        node: NodeId(node.id),
        version: node.version,
        started_at: Timestamp::from_millis(node.started_at_millis),
        certificates: own.map(|own| CertificateFacts { own, authorities }),
    })
}

fn certificate_from_wire(certificate: &wire::Certificate) -> Certificate {
    Certificate {
        identity: None::<PeerIdentity>,
        not_before: Timestamp::from_millis(certificate.not_before_millis),
        not_after: Timestamp::from_millis(certificate.not_after_millis),
        key: KeyId::from_bytes(&certificate.key),
        signed_by: KeyId::from_bytes(&certificate.signed_by),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read_as_it_was_written() {
        let certificate = |end| Certificate {
            identity: None,
            not_before: Timestamp::from_millis(1000),
            not_after: Timestamp::from_millis(end),
            key: KeyId::from_bytes(&[1; 20]),
            signed_by: None,
        };
        let facts =
            CertificateFacts { own: certificate(5000), authorities: vec![certificate(7), certificate(8)] };
        let about = AboutNode {
            role: Role::Outbound,
            node: NodeId(21),
            version: "0.1.0".to_owned(),
            started_at: Timestamp::from_millis(9),
            certificates: Some(facts),
        };
        assert_eq!(from_wire(to_wire(&about)).unwrap(), about);
        let plain = AboutNode { certificates: None, ..about };
        assert_eq!(from_wire(to_wire(&plain)).unwrap(), plain);
    }

    #[test]
    fn a_clock_is_compared_with_the_middle_of_the_call() {
        let measured = |answered, asked_at, round_trip| {
            let round_trip = Duration::from_millis(round_trip);
            ClockDifference::measured(answered, Timestamp::from_millis(asked_at), round_trip).offset_millis
        };
        assert_eq!(measured(1010, 1000, 20), 0);
        assert_eq!(measured(2000, 1000, 20), 990);
        assert_eq!(measured(500, 1000, 20), -510);
    }

    #[test]
    fn clocks_differ_in_both_directions() {
        let check = |one, other, expected| assert_eq!(difference(one, other), expected);
        check(5, 3, 2);
        check(3, 5, -2);
        check(u64::MAX, 0, i64::MAX);
        check(0, u64::MAX, i64::MIN);
    }
}
