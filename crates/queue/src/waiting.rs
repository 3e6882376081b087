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
    let stopped = unowned.map(candidates).find(|nodes| nodes.iter().all(|node| is_suspended(*node)))?;
    stopped.first().copied()
}

fn source_name(view: &View, source: SourceId) -> String {
    view.source(source).map_or_else(|| source.to_string(), |source| source.name.to_string())
}
