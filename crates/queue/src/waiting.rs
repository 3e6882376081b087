//! Why deliveries wait, with the names that people know: the dispatcher's reason, and the directory's names.

use std::sync::Arc;

use postroad_core::{NodeId, PoolId, Scope, SourceId, Timestamp};
use postroad_directory::{Source, View};
use postroad_ledger::dispatch::WaitReason;
use postroad_proto::queue::{self as wire, WaitKind};

/// Returns a reason for people and programs; `pool` is that of the deliveries that wait.
pub(crate) fn explain(view: &View, pool: PoolId, reason: &WaitReason, site: &str) -> wire::WaitReason {
    let reason = match reason {
        // A suspended node owns no sources, so that the dispatcher does not know of it.
        WaitReason::NoOwner => suspended_node(view, pool)
            .map_or(WaitReason::NoOwner, |node| WaitReason::Suspended(Scope::Node(node))),
        reason => reason.clone(),
    };
    let lane = |source| format!("lane {}/{site}", source_name(view, source));
    let plain = |kind: WaitKind| wire::WaitReason { kind: kind.into(), ..Default::default() };
    match reason {
        WaitReason::Next => plain(WaitKind::Next),
        WaitReason::NotConnected => plain(WaitKind::NotConnected),
        WaitReason::NoOwner => plain(WaitKind::NoOwner),
        WaitReason::NoSource => plain(WaitKind::NoSource),
        WaitReason::Held => plain(WaitKind::Held),
        WaitReason::NotDue(due) => {
            wire::WaitReason { until_millis: due.as_millis(), ..plain(WaitKind::NotDue) }
        }
        WaitReason::WindowFull { source } => {
            wire::WaitReason { subject: lane(source), ..plain(WaitKind::WindowFull) }
        }
        WaitReason::RateUsedUp { until, source } => wire::WaitReason {
            subject: lane(source),
            until_millis: until.map_or(0, Timestamp::as_millis),
            ..plain(WaitKind::RateUsedUp)
        },
        WaitReason::LanePaused { until, source, reason } => wire::WaitReason {
            subject: lane(source),
            detail: reason.to_string(),
            until_millis: until.as_millis(),
            ..plain(WaitKind::LanePaused)
        },
        WaitReason::Suspended(scope) => suspended(view, &scope),
    }
}

fn suspended(view: &View, scope: &Scope) -> wire::WaitReason {
    let kind = WaitKind::Suspended.into();
    match view.suspension(scope) {
        Some(held) => wire::WaitReason {
            kind,
            subject: held.name.to_string(),
            detail: format!("{} ({})", held.reason, held.actor),
            until_millis: held.until.map_or(0, Timestamp::as_millis),
        },
        // Resumed a moment ago.
        None => wire::WaitReason { kind, subject: scope.kind().to_owned(), ..Default::default() },
    }
}

/// Returns a suspended node that could own a source of the pool that has no owner, where no other node could.
fn suspended_node(view: &View, pool: PoolId) -> Option<NodeId> {
    let is_suspended = |node: NodeId| view.suspension(&Scope::Node(node)).is_some();
    let sources = view.pool(pool)?.members.iter().filter(|(_, weight)| *weight > 0);
    let unowned =
        sources.filter_map(|(source, _)| view.source(*source)).filter(|source| source.owner.is_none());
    let candidates = |source: &Arc<Source>| -> Vec<NodeId> {
        view.nodes().map(|(node, _)| node).filter(|node| source.may_be_owned_by(*node)).collect()
    };
    let is_stopped = |nodes: &Vec<NodeId>| !nodes.is_empty() && nodes.iter().all(|node| is_suspended(*node));
    unowned.map(candidates).find(is_stopped)?.first().copied()
}

fn source_name(view: &View, source: SourceId) -> String {
    view.source(source).map_or_else(|| source.to_string(), |source| source.name.to_string())
}

#[cfg(test)]
mod tests {
    use postroad_core::Domain;
    use postroad_directory::{Change, Command, Directory, Put, PutPool, PutSource, PutSuspension, ScopeName};

    use super::*;

    #[test]
    fn a_suspended_node_is_named_also_where_another_source_has_no_running_node() {
        let source = |name: &str, node| {
            let helo = Domain::parse("mail.example").unwrap();
            Put::Source(PutSource { name: name.into(), address: None, helo, nodes: vec![NodeId(node)] })
        };
        let members = vec![("first".into(), 1), ("second".into(), 1)];
        let suspension = PutSuspension {
            scope: ScopeName::Node(NodeId(2)),
            reason: "maintenance".into(),
            actor: "eve".into(),
            since: Timestamp::ZERO,
            until: None,
        };
        let puts = [
            source("first", 1),
            source("second", 2),
            Put::Pool(PutPool { name: "default".into(), members }),
            Put::Suspension(suspension),
        ];
        let mut directory = Directory::new();
        directory.apply(&Command::Claim { node: NodeId(2), incarnation: 1 }).unwrap();
        directory.apply(&Command::Change(puts.map(Change::Put).into())).unwrap();
        let view = View::empty().apply(directory.everything());
        let pool = view.pools().next().unwrap().id;
        let reason = explain(&view, pool, &WaitReason::NoOwner, "x.example");
        assert_eq!((reason.kind(), &*reason.subject), (WaitKind::Suspended, "node 2"));
    }
}
