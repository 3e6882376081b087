//! What the directory's suspensions stop on this node.

use std::sync::Arc;

use postroad_core::Scope;
use postroad_directory::{Source, View};

use crate::job::Job;

/// Returns true when nothing may start from a source: it or its node is suspended.
pub(crate) fn stops_source(view: &View, source: &Source) -> bool {
    let node = source.owner.map(|owner| Scope::Node(owner.node));
    is_any(view, || [Some(Scope::Source(source.id)), node])
}

/// Returns true when nothing may start in a lane.
pub(crate) fn stops_lane(view: &View, source: &Source, site: &Arc<str>) -> bool {
    let lane = || Scope::Lane { source: source.id, site: site.clone() };
    stops_source(view, source) || is_any(view, || [Some(Scope::Site(site.clone())), Some(lane())])
}

/// Returns true when a job may not start in any lane.
pub(crate) fn stops_job(view: &View, job: &Job) -> bool {
    is_any(view, || [Some(Scope::Tenant(job.tenant)), Some(Scope::Pool(job.pool))])
}

/// Nothing is looked up while nothing is suspended: this is asked for every job.
fn is_any<const N: usize>(view: &View, scopes: impl FnOnce() -> [Option<Scope>; N]) -> bool {
    let is_suspended = |scope| view.suspension(&scope).is_some();
    view.suspensions().next().is_some() && scopes().into_iter().flatten().any(is_suspended)
}
