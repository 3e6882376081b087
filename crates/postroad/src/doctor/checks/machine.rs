//! Checks of this machine as a node.

use std::time::Duration;

use postroad_core::{ByteSize, Timestamp};

use super::{
    super::{
        facts::{DataFacts, FileLimit, ListenerFacts, ListenerState, NodeFacts, SyncTimes},
        finding::Finding,
    },
    cluster::certificate_finding,
};
use crate::{certificate::remaining, cli::RoleName, nodes::days_until};

/// Every accepted message waits for a sync; the disks of servers take less.
const SYNC_WARN: Duration = Duration::from_millis(5);
const SYNC_FAIL: Duration = Duration::from_millis(25);
/// A single sync that takes longer delays heartbeats, and so may cost a leader its lead.
const SLOWEST_WARN: Duration = Duration::from_millis(250);

/// The node runs and is ready.
pub(super) fn readiness(node: &NodeFacts) -> Finding {
    let role = node.role.as_str();
    match &node.not_ready {
        Ok(not_ready) if not_ready.is_empty() => {
            Finding::ok("readiness", format!("{role} {} is ready", node.node))
        }
        Ok(not_ready) => Finding::fail(
            "readiness",
            format!("{role} {} runs and is not ready: {}", node.node, not_ready.join(", ")),
            "the log of the node says what the component waits for",
        ),
        Err(error) => Finding::warn(
            "readiness",
            format!("{role} {} does not run here: {error}", node.node),
            format!("start it, unless it is stopped on purpose: `postroad {role} --config FILE`"),
        ),
    }
}

/// What the node listens on is there, or can be.
pub(super) fn ports(node: &NodeFacts) -> Vec<Finding> {
    let runs = node.not_ready.is_ok();
    let finding = |listener: &ListenerFacts| {
        let ListenerFacts { setting, address, state } = listener;
        let found = format!("{address} (`{setting}`)");
        match state {
            ListenerState::Open if runs => Finding::ok("ports", format!("{found} accepts connections")),
            ListenerState::Open => Finding::fail(
                "ports",
                format!("{found} is in use, and the node does not run"),
                format!("another program listens there: stop it, or set another address in `{setting}`"),
            ),
            ListenerState::Free if runs => Finding::fail(
                "ports",
                format!("{found} does not accept connections, and the node runs"),
                "the node was started with another configuration: restart it",
            ),
            ListenerState::Free => Finding::ok("ports", format!("{found} is free")),
            ListenerState::Unusable(error) => Finding::fail(
                "ports",
                format!("{found}: cannot listen: {error}"),
                "run this as the user of the service; ports under 1024 need CAP_NET_BIND_SERVICE, and the address must be \
                 one of this machine",
            ),
        }
    };
    node.listeners.iter().map(finding).collect()
}

/// The node may open enough files and connections.
pub(super) fn files(node: &NodeFacts) -> Finding {
    let FileLimit { max, needed, is_of_node } = node.files;
    let whose =
        if is_of_node { "the running node" } else { "this shell; the unit of the service has its own" };
    let found = format!("{max} open files for {whose}; the configuration can need {needed}");
    match max {
        _ if max >= needed => Finding::ok("file limit", found),
        _ if is_of_node => {
            Finding::fail("file limit", found, "raise `LimitNOFILE` of the unit, or `ulimit -n`")
        }
        _ => Finding::warn("file limit", found, "see that `LimitNOFILE` of the unit is higher"),
    }
}

/// The data directory has room, and on a queue node its disk is fast enough.
pub(super) fn data(node: &NodeFacts) -> Vec<Finding> {
    let data = match &node.data {
        None => return Vec::new(),
        Some(Err(error)) => {
            let advice = if node.role == RoleName::Queue {
                "mount the volume, or for a new node run `postroad cluster form` or `rejoin`"
            } else {
                "create it for the user of the service"
            };
            return vec![Finding::fail("disk", error.clone(), advice)];
        }
        Some(Ok(data)) => data,
    };
    let mut findings = vec![space(data)];
    findings.extend(data.sync.map(sync));
    findings
}

fn space(data: &DataFacts) -> Finding {
    let DataFacts { available_bytes, size_bytes, .. } = *data;
    let per_cent = available_bytes.saturating_mul(100) / size_bytes.max(1);
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / ByteSize::gib(1).bytes() as f64);
    let found = format!("{} of {} are free ({per_cent} %)", gib(available_bytes), gib(size_bytes));
    let advice = "enlarge the disk, or find out what fills it: mail that is not delivered, or something else";
    match per_cent {
        0..5 => Finding::fail("disk", found, advice),
        5..15 => Finding::warn("disk", found, advice),
        _ => Finding::ok("disk", found),
    }
}

fn sync(times: SyncTimes) -> Finding {
    let SyncTimes { median, slowest, writes } = times;
    let millis = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    let found =
        format!("a sync takes {} (median of {writes}), the slowest {}", millis(median), millis(slowest));
    let advice = "every message waits for a sync on a majority of queue nodes: use local SSDs or faster volumes, and nothing \
                  else on them";
    match () {
        () if median > SYNC_FAIL => Finding::fail("disk", found, advice),
        () if median > SYNC_WARN || slowest > SLOWEST_WARN => Finding::warn("disk", found, advice),
        () => Finding::ok("disk", found),
    }
}

/// The certificates in the node's files.
pub(super) fn certificates(node: &NodeFacts, now: Timestamp) -> Vec<Finding> {
    let finding =
        |(what, certificate): &(String, Result<postroad_net::Certificate, String>)| match certificate {
            Err(error) => {
                let advice = "`postroad config check` says what is wrong with the file";
                Finding::fail("certificates", format!("{what}: {error}"), advice)
            }
            Ok(certificate) => {
                let days = days_until(certificate.not_after, now);
                certificate_finding(what, remaining(certificate, now), days)
                    .unwrap_or_else(|| Finding::ok("certificates", format!("{what}: {days} days left")))
            }
        };
    node.certificates.iter().map(finding).collect()
}

/// Nobody else can read the node's keys.
pub(super) fn keys(node: &NodeFacts) -> Vec<Finding> {
    let finding = |(file, mode): &(std::path::PathBuf, u32)| {
        Finding::warn(
            "keys",
            format!("{} can be read by other users (mode {mode:04o})", file.display()),
            format!("chmod 0400 {}", file.display()),
        )
    };
    node.open_keys.iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use postroad_core::NodeId;
    use postroad_net::Certificate;

    use super::{super::check, *};
    use crate::doctor::finding::Level::{Fail, Ok as Good, Warn};

    fn node() -> NodeFacts {
        NodeFacts {
            role: RoleName::Queue,
            node: NodeId(1),
            not_ready: Ok(Vec::new()),
            files: FileLimit { max: 65_536, needed: 4096, is_of_node: true },
            data: None,
            listeners: Vec::new(),
            certificates: Vec::new(),
            open_keys: Vec::new(),
            dns: None,
            port_25: Vec::new(),
        }
    }

    #[test]
    fn a_port_is_judged_by_whether_the_node_runs() {
        let check_port = |state: ListenerState, runs: bool, level, part: &str| {
            let address = "127.0.0.1:7400".parse().unwrap();
            let listeners = vec![ListenerFacts { setting: "queue.listen".to_owned(), address, state }];
            let not_ready = if runs { Ok(Vec::new()) } else { Err("connection refused".to_owned()) };
            check(ports(&NodeFacts { listeners, not_ready, ..node() }), &[(level, part)]);
        };
        check_port(ListenerState::Open, true, Good, "accepts connections");
        check_port(ListenerState::Open, false, Fail, "another program listens there");
        check_port(ListenerState::Free, false, Good, "is free");
        check_port(ListenerState::Free, true, Fail, "restart it");
        check_port(
            ListenerState::Unusable("permission denied".to_owned()),
            false,
            Fail,
            "CAP_NET_BIND_SERVICE",
        );
    }

    #[test]
    fn a_disk_is_judged_by_room_and_time_of_a_sync() {
        let check_disk = |free: u64, median, slowest, expected: &[(_, &str)]| {
            let times = SyncTimes {
                median: Duration::from_micros(median),
                slowest: Duration::from_micros(slowest),
                writes: 100,
            };
            let data = DataFacts { available_bytes: free << 30, size_bytes: 100 << 30, sync: Some(times) };
            check(super::data(&NodeFacts { data: Some(Ok(data)), ..node() }), expected);
        };
        check_disk(40, 800, 3000, &[(Good, "40.0 GiB of 100.0 GiB are free (40 %)"), (Good, "0.8 ms")]);
        check_disk(14, 800, 300_000, &[(Warn, "14 %"), (Warn, "the slowest 300.0 ms")]);
        check_disk(4, 26_000, 30_000, &[(Fail, "4 %"), (Fail, "26.0 ms")]);
        let missing = Some(Err("`/data` does not exist".to_owned()));
        check(super::data(&NodeFacts { data: missing, ..node() }), &[(Fail, "mount the volume")]);
    }

    #[test]
    fn readiness_file_limit_and_keys_have_advice() {
        check([readiness(&node())], &[(Good, "queue 1 is ready")]);
        let waits = NodeFacts { not_ready: Ok(vec!["disk".to_owned()]), ..node() };
        check([readiness(&waits)], &[(Fail, "is not ready: disk")]);
        let stopped = NodeFacts { not_ready: Err("connection refused".to_owned()), ..node() };
        check([readiness(&stopped)], &[(Warn, "does not run here: connection refused")]);
        let limit = |max, is_of_node| {
            files(&NodeFacts { files: FileLimit { max, needed: 4096, is_of_node }, ..node() })
        };
        check(
            [limit(4096, true), limit(1024, true), limit(1024, false)],
            &[(Good, "4096 open files"), (Fail, "LimitNOFILE"), (Warn, "this shell")],
        );
        let open = NodeFacts { open_keys: vec![("/etc/postroad/queue.key".into(), 0o644)], ..node() };
        check(keys(&open), &[(Warn, "mode 0644")]);
    }

    #[test]
    fn a_certificate_is_judged_by_the_part_of_its_life_that_is_left() {
        let day = 86_400_000;
        let ends = |days: u64| Certificate {
            identity: None,
            not_before: Timestamp::from_millis(1000 * day),
            not_after: Timestamp::from_millis((1000 + days) * day),
            key: None,
            signed_by: None,
        };
        let at = |age: u64, life: u64| {
            let certificates = vec![("node".to_owned(), Ok(ends(life)))];
            certificates_at(&NodeFacts { certificates, ..node() }, Timestamp::from_millis((1000 + age) * day))
        };
        fn certificates_at(node: &NodeFacts, now: Timestamp) -> Vec<Finding> {
            certificates(node, now)
        }
        check(at(300, 365), &[(Good, "65 days left")]);
        check(at(340, 365), &[(Warn, "25 days left")]);
        check(at(360, 365), &[(Fail, "5 days left")]);
        check(at(366, 365), &[(Fail, "has ended")]);
        // Renewed by a tool at two thirds of ninety days.
        check(at(61, 90), &[(Good, "29 days left")]);
        let early = NodeFacts { certificates: vec![("node".to_owned(), Ok(ends(9)))], ..node() };
        check(certificates(&early, Timestamp::from_millis(999 * day)), &[(Fail, "not valid yet")]);
        let wrong = NodeFacts { certificates: vec![("node".to_owned(), Err("no PEM".to_owned()))], ..node() };
        check(certificates(&wrong, Timestamp::ZERO), &[(Fail, "no PEM")]);
    }
}
