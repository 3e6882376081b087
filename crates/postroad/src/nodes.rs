//! The running nodes of a cluster, as they announced themselves to its queue nodes.

use std::{collections::BTreeMap, time::Duration};

use postroad_cluster::{AnnouncedNode, NodeList, list_nodes, nodes::ANNOUNCE_EVERY};
use postroad_core::{NodeId, Timestamp};
use postroad_net::Role;
use tonic::Status;

use crate::operator::{Operator, OperatorError, WITHIN};

/// A node that is silent for three announcements is not taken for running.
pub(crate) const RUNNING_WITHIN: Duration = ANNOUNCE_EVERY.saturating_mul(3);

/// What each queue node answered.
pub(crate) type Lists = BTreeMap<NodeId, Result<NodeList, Status>>;

/// Asks every queue node.
pub(crate) async fn lists(operator: &Operator) -> Lists {
    list_nodes(operator.endpoints(), WITHIN).await
}

/// Returns every node that one of the queue nodes has seen within a day.
///
/// # Errors
/// No queue node answered.
pub(crate) async fn all(operator: &Operator, action: &str) -> Result<Vec<AnnouncedNode>, OperatorError> {
    let lists = lists(operator).await;
    if lists.values().any(Result::is_ok) {
        return Ok(merged(&lists));
    }
    let last = lists.into_values().filter_map(Result::err).next();
    let cause = last.map_or_else(|| "no queue node is configured".to_owned(), |status| cause(&status));
    Err(operator.unreachable(action, cause))
}

/// An older queue node knows no such call.
pub(crate) fn cause(status: &Status) -> String {
    match status.code() {
        tonic::Code::Unimplemented => "an older version that does not list nodes".to_owned(),
        _ => {
            let source = std::error::Error::source(status).map(ToString::to_string);
            source.map_or_else(
                || status.message().to_owned(),
                |source| format!("{}: {source}", status.message()),
            )
        }
    }
}

/// Of a node that several queue nodes have seen, the latest announcement counts.
pub(crate) fn merged(lists: &Lists) -> Vec<AnnouncedNode> {
    let mut nodes: BTreeMap<(Role, NodeId, &str), &AnnouncedNode> = BTreeMap::new();
    for node in lists.values().flatten().flat_map(|list| &list.nodes) {
        let key = (node.about.role, node.about.node, node.address.as_str());
        if nodes.get(&key).is_none_or(|known| node.age < known.age) {
            nodes.insert(key, node);
        }
    }
    nodes.into_values().cloned().collect()
}

/// How people name a node: `queue 1`.
pub(crate) fn name(node: &AnnouncedNode) -> String {
    format!("{} {}", node.about.role, node.about.node)
}

/// How people find a node, also where several share an id: `ingress 40 at 10.0.0.7`.
pub(crate) fn name_and_address(node: &AnnouncedNode) -> String {
    match node.address.as_str() {
        "" => name(node),
        address => format!("{} at {address}", name(node)),
    }
}

/// How long ago a node was seen, for people.
pub(crate) fn seen(age: Duration) -> String {
    format!("{} ago", in_words(age))
}

/// A length of time in its largest whole unit.
pub(crate) fn in_words(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Returns whole days, rounded down: negative once `end` has passed.
pub(crate) fn days_until(end: Timestamp, now: Timestamp) -> i64 {
    postroad_cluster::nodes::difference(end.as_millis(), now.as_millis()).div_euclid(86_400_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_in_their_largest_unit_and_days_are_rounded_down() {
        let check = |seconds, expected| assert_eq!(in_words(Duration::from_secs(seconds)), expected);
        check(0, "0 s");
        check(119, "119 s");
        check(120, "2 min");
        check(7300, "2 h");
        check(200_000, "2 days");
        let at = |millis| Timestamp::from_millis(millis);
        assert_eq!(days_until(at(86_400_000), at(0)), 1);
        assert_eq!(days_until(at(86_399_999), at(0)), 0);
        assert_eq!(days_until(at(0), at(1)), -1);
    }
}
