//! Checks of the cluster as a whole.

use std::collections::BTreeSet;

use postroad_cluster::ClockDifference;
use postroad_core::Timestamp;

use super::super::{
    facts::{ClusterFacts, ReplicaFacts},
    finding::Finding,
};
use crate::{
    certificate::{Remaining, remaining},
    nodes::{self, RUNNING_WITHIN, days_until},
};

/// Clocks that differ by less are as they should be.
const APART_WARN_MILLIS: u64 = 500;
/// Clocks that differ by more make times in logs and in the history useless, and in the end certificates and mail expire.
const APART_FAIL_MILLIS: u64 = 5000;

/// A follower that has all but so many bytes of the log has caught up: under load something is always on its way.
const CAUGHT_UP_BYTES: u64 = 1 << 20;

/// Enough queue nodes answer, and every group has a leader.
pub(super) fn quorum(cluster: &ClusterFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let total = cluster.queue.len();
    let down: Vec<String> = cluster
        .queue
        .iter()
        .filter_map(|(node, answer)| answer.as_ref().err().map(|error| format!("queue {node}: {error}")))
        .collect();
    let (up, majority) = (total - down.len(), total / 2 + 1);
    let spare = up.saturating_sub(majority);
    let found = format!("{up} of {total} queue nodes answer, {majority} are a majority");
    findings.push(match () {
        () if down.is_empty() => Finding::ok("quorum", found),
        () if up >= majority => Finding::warn(
            "quorum",
            format!("{found}; {}", down.join("; ")),
            format!("{spare} more may fail before no mail is accepted: start what is down"),
        ),
        () => Finding::fail(
            "quorum",
            format!("{found}; {}", down.join("; ")),
            "no mail is accepted or delivered, as far as this machine can see: start queue nodes until there is a majority",
        ),
    });
    let without: Vec<String> = cluster
        .leaders
        .iter()
        .filter(|(_, leader)| leader.is_none())
        .map(|(group, _)| group.to_string())
        .collect();
    if !without.is_empty() {
        findings.push(Finding::fail(
            "quorum",
            format!("no leader in group {}", without.join(", ")),
            "look at the logs of the queue nodes: they say why no election succeeds",
        ));
    } else if !cluster.leaders.is_empty() {
        findings
            .push(Finding::ok("quorum", format!("each of {} groups has a leader", cluster.leaders.len())));
    }
    findings
}

/// Every queue node is a voter of every group and has caught up: the next one may be stopped.
pub(super) fn replicas(cluster: &ClusterFacts) -> Option<Finding> {
    if cluster.replicas.is_empty() {
        return None;
    }
    // The flags may name only some of the queue nodes.
    let voters = cluster.replicas.values().map(|facts| facts.voters).max().unwrap_or(0);
    let total = cluster.queue.len().max(voters);
    let silent = cluster.queue.iter().filter(|(_, answer)| answer.is_err());
    let silent = silent.map(|(node, _)| format!("queue {node} does not answer"));
    let missing = cluster
        .replicas
        .iter()
        .filter_map(|(group, facts)| Some(format!("group {group}: {}", missing_replicas(facts, total)?)));
    let missing: Vec<String> = silent.chain(missing).collect();
    let groups = cluster.replicas.len();
    Some(if missing.is_empty() && groups >= cluster.leaders.len() {
        Finding::ok("replicas", format!("all {total} queue nodes follow in each of {groups} groups"))
    } else if missing.is_empty() {
        let (led, all) = (groups, cluster.leaders.len());
        Finding::warn("replicas", format!("{led} of {all} leaders could be asked"), ADVICE)
    } else {
        Finding::warn("replicas", missing.join("; "), ADVICE)
    })
}

const ADVICE: &str = "stop no other queue node until they do; one that runs catches up by itself";

fn missing_replicas(facts: &ReplicaFacts, total: usize) -> Option<String> {
    if facts.voters < total {
        return Some(format!("{} of {total} queue nodes are voters", facts.voters));
    }
    if facts.silent > 0 {
        return Some(format!("{} of {total} queue nodes do not answer the leader", facts.silent));
    }
    let (node, bytes) = facts.behind.iter().max_by_key(|(_, bytes)| **bytes)?;
    (*bytes > CAUGHT_UP_BYTES).then(|| format!("queue {node} is {} MiB behind", bytes >> 20))
}

/// Nodes that were seen today run.
pub(super) fn nodes(cluster: &ClusterFacts) -> Vec<Finding> {
    if cluster.queue.values().all(Result::is_err) {
        return Vec::new();
    }
    let silent = cluster.nodes.iter().filter(|node| node.age > RUNNING_WITHIN);
    let mut findings: Vec<Finding> = silent
        .map(|node| {
            let found = format!("{} was seen {}", nodes::name_and_address(node), nodes::seen(node.age));
            Finding::warn(
                "nodes",
                found,
                "start it, if it was not removed on purpose: then it is forgotten after a day",
            )
        })
        .collect();
    if findings.is_empty() {
        let names: Vec<String> = cluster.nodes.iter().map(nodes::name).collect();
        findings.push(match names.len() {
            0 => Finding::ok("nodes", "none has announced itself: nodes of older versions do not"),
            _ => Finding::ok(
                "nodes",
                format!("seen within {} s: {}", RUNNING_WITHIN.as_secs(), names.join(", ")),
            ),
        });
    }
    findings
}

/// All nodes, and this command, have one version.
pub(super) fn versions(cluster: &ClusterFacts, ours: &str) -> Option<Finding> {
    let versions: BTreeSet<&str> = cluster.nodes.iter().map(|node| node.about.version.as_str()).collect();
    let of = |version: &&str| {
        let nodes = cluster.nodes.iter().filter(|node| node.about.version == *version);
        format!("{version}: {}", nodes.map(nodes::name).collect::<Vec<_>>().join(", "))
    };
    match versions.iter().copied().collect::<Vec<_>>()[..] {
        [] => None,
        [version] if version == ours => Some(Finding::ok("versions", format!("every node runs {version}"))),
        [version] => Some(Finding::warn(
            "versions",
            format!("every node runs {version}, and this command is {ours}"),
            "use the command of the cluster's version: another may not know all that it says",
        )),
        _ => Some(Finding::warn(
            "versions",
            versions.iter().map(of).collect::<Vec<_>>().join("; "),
            "finish the upgrade: nodes of two versions work together, but new features wait for the last one",
        )),
    }
}

/// The clocks of the queue nodes against this machine's, and those of the other nodes against the queue nodes'.
pub(super) fn clocks(cluster: &ClusterFacts) -> Vec<Finding> {
    let queue = cluster.queue.iter().filter_map(|(node, clock)| {
        Some(clock_of(&format!("queue {node} against this machine"), *clock.as_ref().ok()?))
    });
    let running = cluster.nodes.iter().filter(|node| node.age <= RUNNING_WITHIN);
    let others = running.filter_map(|node| {
        Some(clock_of(&format!("{} against a queue node", nodes::name(node)), node.clock?))
    });
    let all: Vec<Finding> = queue.chain(others).collect();
    let count = all.len();
    let apart: Vec<Finding> = all.into_iter().filter(|finding| !finding.advice.is_empty()).collect();
    if apart.is_empty() && count > 0 {
        let found = format!("no clock is more than {APART_WARN_MILLIS} ms apart from another");
        return vec![Finding::ok("clock", found)];
    }
    apart
}

fn clock_of(which: &str, clock: ClockDifference) -> Finding {
    let ClockDifference { offset_millis, round_trip } = clock;
    // What can be the way is not held against the clock.
    let uncertain = u64::try_from(round_trip.as_millis() / 2).unwrap_or(u64::MAX);
    let apart = offset_millis.unsigned_abs().saturating_sub(uncertain);
    let direction = if offset_millis < 0 { "behind" } else { "ahead" };
    let found = format!("{which}: {} {direction}", length(offset_millis.unsigned_abs()));
    let advice = "let both take the time from the same servers by NTP (chrony, systemd-timesyncd), and see that it runs";
    match apart {
        0..=APART_WARN_MILLIS => Finding::ok("clock", found),
        _ if apart <= APART_FAIL_MILLIS => Finding::warn("clock", found, advice),
        _ => Finding::fail("clock", found, advice),
    }
}

fn length(millis: u64) -> String {
    if millis < 10_000 { format!("{millis} ms") } else { format!("{} s", millis / 1000) }
}

/// The certificates of the running nodes, and the authorities that they trust.
pub(super) fn certificates(cluster: &ClusterFacts, now: Timestamp) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut longest: Option<i64> = None;
    for node in &cluster.nodes {
        let Some(facts) = &node.about.certificates else { continue };
        let all = std::iter::once((nodes::name(node), &facts.own));
        let authorities =
            facts.authorities.iter().map(|authority| ("an authority that it trusts".to_owned(), authority));
        for (what, certificate) in all.chain(authorities) {
            let days = days_until(certificate.not_after, now);
            longest = Some(longest.map_or(days, |longest| longest.min(days)));
            let what =
                if what == nodes::name(node) { what } else { format!("{}, {what}", nodes::name(node)) };
            findings.extend(certificate_finding(&what, remaining(certificate, now), days));
        }
    }
    if findings.is_empty()
        && let Some(days) = longest
    {
        findings
            .push(Finding::ok("certificates", format!("the first one between nodes ends in {days} days")));
    }
    findings
}

/// What is to be said of a certificate that does not have enough time left.
pub(super) fn certificate_finding(what: &str, remaining: Remaining, days: i64) -> Option<Finding> {
    let advice = "renew it: `postroad certificate renew`, for an authority `postroad certificate rotate`; one that \
                  another tool issues, there";
    match remaining {
        Remaining::Enough => None,
        Remaining::Low => Some(Finding::warn("certificates", format!("{what}: {days} days left"), advice)),
        Remaining::Little => Some(Finding::fail("certificates", format!("{what}: {days} days left"), advice)),
        Remaining::Ended => Some(Finding::fail("certificates", format!("{what}: has ended"), advice)),
        Remaining::NotYet => Some(Finding::fail(
            "certificates",
            format!("{what}: is not valid yet"),
            "look at the clocks of this machine and of the one that issued it",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use postroad_cluster::{AboutNode, AnnouncedNode};
    use postroad_core::{GroupId, NodeId};
    use postroad_net::Role;

    use super::{super::check, *};
    use crate::doctor::finding::Level::{Fail, Ok as Good, Warn};

    fn node(role: Role, node: u64, version: &str, age_secs: u64, clock_offset_millis: i64) -> AnnouncedNode {
        let about = AboutNode {
            role,
            node: NodeId(node),
            version: version.to_owned(),
            started_at: Timestamp::ZERO,
            certificates: None,
        };
        let clock = Some(ClockDifference { offset_millis: clock_offset_millis, round_trip: Duration::ZERO });
        AnnouncedNode { about, address: String::new(), age: Duration::from_secs(age_secs), clock }
    }

    fn clock(offset_millis: i64, round_trip_millis: u64) -> Result<ClockDifference, String> {
        Ok(ClockDifference { offset_millis, round_trip: Duration::from_millis(round_trip_millis) })
    }

    fn cluster<const N: usize>(clocks: [Result<ClockDifference, String>; N]) -> ClusterFacts {
        ClusterFacts { queue: (1..).map(NodeId).zip(clocks).collect(), ..ClusterFacts::default() }
    }

    #[test]
    fn a_majority_that_is_down_is_a_failure_and_a_minority_a_warning() {
        let (up, down) = (|| clock(0, 1), || Err("connection refused".to_owned()));
        check(quorum(&cluster([up(), up(), up()])), &[(Good, "3 of 3")]);
        check(
            quorum(&cluster([up(), down(), up()])),
            &[(Warn, "queue 2: connection refused 0 more may fail")],
        );
        check(quorum(&cluster([up(), down(), down()])), &[(Fail, "1 of 3")]);
        let mut without = cluster([up(), up(), up()]);
        without.leaders = [(GroupId(0), Some(NodeId(1))), (GroupId(1), None)].into();
        check(quorum(&without), &[(Good, "3 of 3"), (Fail, "no leader in group 1")]);
    }

    #[test]
    fn a_queue_node_that_does_not_follow_is_no_replica() {
        let up = || clock(0, 1);
        let mut facts = cluster([up(), up(), up()]);
        check(replicas(&facts), &[]);
        let follows = |voters, silent, behind| ReplicaFacts {
            voters,
            behind: [(NodeId(2), 0), (NodeId(3), behind)].into(),
            silent,
        };
        facts.leaders = [(GroupId(0), Some(NodeId(1))), (GroupId(1), Some(NodeId(1)))].into();
        facts.replicas = [(GroupId(0), follows(3, 0, 0))].into();
        check(replicas(&facts), &[(Warn, "1 of 2 leaders")]);
        for (of_group, expected) in [
            (follows(3, 0, 4096), (Good, "all 3 queue nodes follow in each of 2 groups")),
            (follows(3, 0, 5 << 20), (Warn, "group 1: queue 3 is 5 MiB behind")),
            (follows(3, 1, 5 << 20), (Warn, "group 1: 1 of 3 queue nodes do not answer")),
            (follows(2, 0, 0), (Warn, "group 1: 2 of 3 queue nodes are voters")),
        ] {
            facts.replicas.insert(GroupId(1), of_group);
            check(replicas(&facts), &[expected]);
        }
        facts.replicas.insert(GroupId(1), follows(3, 0, 0));
        // The leader has not missed it yet.
        facts.queue = cluster([up(), up(), Err("connection refused".to_owned())]).queue;
        check(replicas(&facts), &[(Warn, "queue 3 does not answer")]);
        // Asked by one address.
        facts.queue = cluster([up()]).queue;
        check(replicas(&facts), &[(Good, "all 3 queue nodes follow")]);
    }

    #[test]
    fn a_clock_is_judged_beyond_what_the_way_can_explain() {
        let clocks =
            |offset, round_trip| clocks(&cluster([clock(0, 1), clock(0, 1), clock(offset, round_trip)]));
        check(clocks(-400, 1), &[(Good, "500 ms")]);
        check(clocks(700, 500), &[(Good, "500 ms")]);
        check(clocks(-700, 2), &[(Warn, "queue 3 against this machine: 700 ms behind")]);
        check(clocks(70_000, 2), &[(Fail, "70 s ahead")]);
        let mut of_others = cluster([clock(0, 1), clock(0, 1), clock(0, 1)]);
        of_others.nodes =
            vec![node(Role::Ingress, 11, "1", 3, -960_000), node(Role::Control, 31, "1", 600, 9000)];
        check(super::clocks(&of_others), &[(Fail, "ingress 11 against a queue node: 960 s behind")]);
    }

    #[test]
    fn versions_and_nodes_that_are_missing_are_named() {
        let mut facts = cluster([clock(0, 1), clock(0, 1), clock(0, 1)]);
        check(versions(&facts, "1"), &[]);
        facts.nodes = vec![node(Role::Queue, 1, "1", 3, 0), node(Role::Ingress, 11, "1", 3, 0)];
        check(versions(&facts, "1"), &[(Good, "every node runs 1")]);
        check(versions(&facts, "2"), &[(Warn, "this command is 2")]);
        check(nodes(&facts), &[(Good, "queue 1, ingress 11")]);
        facts.nodes.push(node(Role::Outbound, 21, "2", 600, 0));
        check(versions(&facts, "1"), &[(Warn, "1: queue 1, ingress 11; 2: outbound 21")]);
        check(nodes(&facts), &[(Warn, "outbound 21 was seen 10 min ago")]);
    }
}
