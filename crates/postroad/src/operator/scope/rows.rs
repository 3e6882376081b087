//! The rows of `list` and `get`: one type for each kind.

use std::{collections::BTreeMap, sync::Arc};

use postroad_core::{NodeId, PoolId, Scope, SourceId, Timestamp};
use postroad_directory::{Pool, ScopeName, Source};
use postroad_proto::queue::LaneView;
use serde::Serialize;

use super::{Flow, ShownSuspension};
use crate::{
    cli::ListArgs,
    output::{Column, Row, Screen, Shown, number, table, text},
};

/// A row that may be suspended.
pub(super) trait Suspendable: Row + Serialize {
    fn suspension(&self) -> Option<&ShownSuspension>;
}

/// What flows through some lanes.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Traffic {
    lanes: u64,
    lanes_paused: u64,
    connections: u64,
    /// Deliveries that are assigned and not yet reported.
    sending: u64,
    /// Since their outbound node began to use the lanes.
    delivered: u64,
    failed: u64,
}

impl Traffic {
    fn of<'a>(lanes: impl IntoIterator<Item = &'a LaneView>) -> Self {
        let mut traffic = Self::default();
        for lane in lanes {
            traffic.lanes += 1;
            traffic.lanes_paused += u64::from(lane.paused_until_millis > 0);
            traffic.connections += u64::from(lane.connections);
            traffic.sending += u64::from(lane.assigned);
            traffic.delivered += lane.delivered;
            traffic.failed += lane.failed;
        }
        traffic
    }

    fn cells(&self) -> [String; 6] {
        let Self { lanes, lanes_paused, connections, sending, delivered, failed } = self;
        [lanes, lanes_paused, connections, sending, delivered, failed].map(u64::to_string)
    }
}

/// Shows rows as a list.
pub(super) fn listed<R: Suspendable>(
    args: &ListArgs,
    mut rows: Vec<R>,
    flow: &Flow,
) -> anyhow::Result<String> {
    if args.suspended {
        rows.retain(|row| row.suspension().is_some());
    }
    args.output.output.show(&List { items: rows, lanes_left_out: flow.left_out() })
}

#[derive(Serialize)]
struct List<R> {
    items: Vec<R>,
    /// Lanes that are in no row, because there are too many.
    lanes_left_out: u64,
}

impl<R: Row + Serialize> Shown for List<R> {
    fn text(&self, screen: Screen) -> String {
        let left_out = match self.lanes_left_out {
            0 => String::new(),
            count => format!("{count} lanes with little mail are left out\n"),
        };
        table(&self.items, screen, "none") + &left_out
    }
}

fn summary(suspension: Option<&ShownSuspension>) -> String {
    suspension.map(ShownSuspension::summary).unwrap_or_default()
}

/// Declares a row with its columns, its cells and its suspension.
macro_rules! row {
    ($name:ident { $($column:expr),* } |$row:ident| $cells:expr) => {
        impl Row for $name {
            const COLUMNS: &'static [Column] = &[$($column,)* text("STATE")];

            fn cells(&self) -> Vec<String> {
                let $row = self;
                $cells
            }
        }

        impl Suspendable for $name {
            fn suspension(&self) -> Option<&ShownSuspension> {
                self.suspended.as_ref()
            }
        }
    };
}

/// A site to which mail goes, or that is suspended.
#[derive(Debug, Serialize)]
pub(super) struct SiteRow {
    pub(super) site: String,
    #[serde(flatten)]
    traffic: Traffic,
    suspended: Option<ShownSuspension>,
}

row! {
    SiteRow {
        text("SITE"), number("LANES"), number("PAUSED"), number("CONNECTIONS"), number("SENDING"),
        number("DELIVERED"), number("FAILED")
    } |row| [&[row.site.clone()][..], &row.traffic.cells(), &[summary(row.suspended.as_ref())]].concat()
}

pub(super) fn sites(flow: &Flow) -> Vec<SiteRow> {
    let mut by_site: BTreeMap<&str, Vec<&LaneView>> = BTreeMap::new();
    for lane in &flow.lanes {
        by_site.entry(&lane.site).or_default().push(lane);
    }
    for suspension in flow.view.suspensions() {
        if let Scope::Site(site) = &suspension.scope {
            by_site.entry(site).or_default();
        }
    }
    let row = |(site, lanes): (&str, Vec<&LaneView>)| SiteRow {
        site: site.to_owned(),
        traffic: Traffic::of(lanes),
        suspended: flow.suspended(&Scope::Site(site.into())),
    };
    let mut rows: Vec<SiteRow> = by_site.into_iter().map(row).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.traffic.sending));
    rows
}

/// A lane.
#[derive(Debug, Serialize)]
pub(super) struct LaneRow {
    pub(super) lane: String,
    source: String,
    site: String,
    /// The outbound node that reports it.
    node: u64,
    connections: u32,
    connections_max: u32,
    /// Messages that wait in the outbound node for a connection.
    waiting: u32,
    /// Deliveries that are assigned and not yet reported.
    sending: u32,
    delivered: u64,
    failed: u64,
    paused_until: Option<String>,
    /// The receiver's reply, or the error.
    pause_reason: Option<String>,
    /// When its rates allow the next message; `null` for at once.
    rate_ready_at: Option<String>,
    /// A rate is 0.
    rate_never: bool,
    suspended: Option<ShownSuspension>,
}

row! {
    LaneRow {
        text("LANE"), number("NODE"), number("CONNECTIONS"), number("WAITING"), number("SENDING"),
        number("DELIVERED"), number("FAILED")
    } |row| {
        let connections = format!("{}/{}", row.connections, row.connections_max);
        let numbers = [row.node.to_string(), connections, row.waiting.to_string(), row.sending.to_string()];
        let ended = [row.delivered.to_string(), row.failed.to_string()];
        [&[row.lane.clone()][..], &numbers, &ended, &[row.state()]].concat()
    }
}

impl LaneRow {
    fn of(flow: &Flow, lane: &LaneView) -> Self {
        let time = |millis: u64| (millis > 0).then(|| Timestamp::from_millis(millis).to_string());
        let (source, site): (_, Arc<str>) = (SourceId(lane.source), lane.site.as_str().into());
        let name = flow.source_name(lane.source);
        let scopes = [Scope::Lane { source, site: site.clone() }, Scope::Source(source), Scope::Site(site)];
        Self {
            lane: format!("{name}/{}", lane.site),
            source: name,
            site: lane.site.clone(),
            node: lane.node,
            connections: lane.connections,
            connections_max: lane.connections_max,
            waiting: lane.waiting,
            sending: lane.assigned,
            delivered: lane.delivered,
            failed: lane.failed,
            paused_until: time(lane.paused_until_millis),
            pause_reason: (lane.paused_until_millis > 0).then(|| lane.pause_reason.clone()),
            rate_ready_at: time(lane.rate_ready_at_millis),
            rate_never: lane.rate_never,
            suspended: scopes
                .iter()
                .chain([&Scope::Node(NodeId(lane.node))])
                .find_map(|scope| flow.suspended(scope)),
        }
    }

    /// Returns why nothing starts, if so.
    fn state(&self) -> String {
        if let Some(suspension) = &self.suspended {
            return suspension.summary();
        }
        match (&self.paused_until, &self.rate_ready_at) {
            (Some(until), _) => {
                format!("paused until {until}: {}", self.pause_reason.as_deref().unwrap_or_default())
            }
            (None, _) if self.rate_never => "stopped by a rate of 0".to_owned(),
            (None, Some(at)) => format!("rate used up until {at}"),
            (None, None) => String::new(),
        }
    }
}

pub(super) fn lanes(flow: &Flow) -> Vec<LaneRow> {
    let mut rows: Vec<LaneRow> = flow.lanes.iter().map(|lane| LaneRow::of(flow, lane)).collect();
    let known = |rows: &[LaneRow], name: &str| rows.iter().any(|row| row.lane == name);
    for suspension in flow.view.suspensions() {
        let Scope::Lane { source, site } = &suspension.scope else { continue };
        let unused = LaneView { source: source.0, site: site.to_string(), ..LaneView::default() };
        let unused = LaneRow::of(flow, &unused);
        if !known(&rows, &unused.lane) {
            rows.push(unused);
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.sending));
    rows
}

/// Returns the lanes that belong to a scope.
pub(super) fn lanes_of(flow: &Flow, scope: &ScopeName) -> Vec<LaneRow> {
    let mut rows = lanes(flow);
    let in_pool = |name: &str, source: &str| {
        let pool = flow.view.pools().find(|pool| *pool.name == *name);
        pool.is_some_and(|pool| flow.members(pool).any(|(member, _)| *member.name == *source))
    };
    rows.retain(|row| match scope {
        ScopeName::Site(site) => row.site == **site,
        ScopeName::Source(source) => row.source == **source,
        ScopeName::Pool(pool) => in_pool(pool, &row.source),
        ScopeName::Node(node) => row.node == node.0,
        ScopeName::Lane { .. } | ScopeName::Tenant(_) => false,
    });
    rows
}

/// A source.
#[derive(Debug, Serialize)]
pub(super) struct SourceRow {
    pub(super) source: String,
    /// `null`: the system chooses.
    address: Option<String>,
    helo: String,
    /// The outbound node that owns it.
    node: Option<u64>,
    /// The names of its pools, with its weight in each.
    pools: BTreeMap<String, u32>,
    #[serde(flatten)]
    traffic: Traffic,
    suspended: Option<ShownSuspension>,
}

row! {
    SourceRow {
        text("SOURCE"), text("ADDRESS"), text("HELO"), number("NODE"), text("POOLS"), number("LANES"),
        number("PAUSED"), number("CONNECTIONS"), number("SENDING"), number("DELIVERED"), number("FAILED")
    } |row| {
        let pools: Vec<String> = row.pools.iter().map(|(pool, weight)| format!("{pool}:{weight}")).collect();
        let node = row.node.map(|node| node.to_string()).unwrap_or_default();
        let address = row.address.clone().unwrap_or_default();
        let state = match (&row.suspended, row.node) {
            (None, None) => "no outbound node owns it".to_owned(),
            (suspended, _) => summary(suspended.as_ref()),
        };
        let first = [row.source.clone(), address, row.helo.clone(), node, pools.join(",")];
        [&first[..], &row.traffic.cells(), &[state]].concat()
    }
}

pub(super) fn sources(flow: &Flow) -> Vec<SourceRow> {
    let row = |source: &Arc<Source>| {
        let weight = |pool: &Arc<Pool>| {
            let member = flow.members(pool).find(|(member, _)| member.id == source.id);
            member.map(|(_, weight)| (pool.name.to_string(), weight))
        };
        SourceRow {
            source: source.name.to_string(),
            address: source.address.map(|address| address.to_string()),
            helo: source.helo.to_string(),
            node: source.owner.map(|owner| owner.node.0),
            pools: flow.view.pools().filter_map(weight).collect(),
            traffic: Traffic::of(flow.lanes.iter().filter(|lane| lane.source == source.id.0)),
            suspended: flow.suspended(&Scope::Source(source.id)),
        }
    };
    flow.view.sources().map(row).collect()
}

/// A pool.
#[derive(Debug, Serialize)]
pub(super) struct PoolRow {
    pub(super) pool: String,
    /// The names of its sources, with their weights.
    sources: BTreeMap<String, u32>,
    /// The names of the tenants whose mail it sends.
    tenants: Vec<String>,
    /// Sources with a weight that have an owner.
    sources_in_use: u64,
    suspended: Option<ShownSuspension>,
}

row! {
    PoolRow { text("POOL"), number("SOURCES"), number("IN USE"), number("TENANTS") } |row| {
        let state = match &row.suspended {
            None if row.sources_in_use == 0 => "no source that sends".to_owned(),
            suspended => summary(suspended.as_ref()),
        };
        let numbers = [row.sources.len() as u64, row.sources_in_use, row.tenants.len() as u64];
        [&[row.pool.clone()][..], &numbers.map(|number| number.to_string()), &[state]].concat()
    }
}

pub(super) fn pools(flow: &Flow) -> Vec<PoolRow> {
    let row = |pool: &Arc<Pool>| {
        let in_use = flow.members(pool).filter(|(source, weight)| *weight > 0 && source.owner.is_some());
        let tenants = flow.tenants().filter(|tenant| tenant.pool == pool.id);
        PoolRow {
            pool: pool.name.to_string(),
            sources: flow.members(pool).map(|(source, weight)| (source.name.to_string(), weight)).collect(),
            tenants: tenants.map(|tenant| tenant.name.to_string()).collect(),
            sources_in_use: in_use.count() as u64,
            suspended: flow.suspended(&Scope::Pool(pool.id)),
        }
    };
    flow.view.pools().map(row).collect()
}

/// A tenant.
#[derive(Debug, Serialize)]
pub(super) struct TenantRow {
    pub(super) tenant: String,
    pool: String,
    suspended: Option<ShownSuspension>,
}

row! {
    TenantRow { text("TENANT"), text("POOL") }
        |row| vec![row.tenant.clone(), row.pool.clone(), summary(row.suspended.as_ref())]
}

pub(super) fn tenants(flow: &Flow) -> Vec<TenantRow> {
    let pool = |id: PoolId| flow.view.pool(id).map(|pool| pool.name.to_string()).unwrap_or_default();
    let rows = flow.tenants().map(|tenant| TenantRow {
        tenant: tenant.name.to_string(),
        pool: pool(tenant.pool),
        suspended: flow.suspended(&Scope::Tenant(tenant.id)),
    });
    rows.collect()
}

/// An outbound node that has a lease, or that is suspended.
#[derive(Debug, Serialize)]
pub(super) struct NodeRow {
    pub(super) node: u64,
    /// It has a lease.
    running: bool,
    /// The names of the sources that it owns.
    sources: Vec<String>,
    #[serde(flatten)]
    traffic: Traffic,
    suspended: Option<ShownSuspension>,
}

row! {
    NodeRow {
        number("NODE"), number("SOURCES"), number("LANES"), number("PAUSED"), number("CONNECTIONS"),
        number("SENDING"), number("DELIVERED"), number("FAILED")
    } |row| {
        let state = match &row.suspended {
            None if !row.running => "not running".to_owned(),
            suspended => summary(suspended.as_ref()),
        };
        let first = [row.node.to_string(), row.sources.len().to_string()];
        [&first[..], &row.traffic.cells(), &[state]].concat()
    }
}

pub(super) fn nodes(flow: &Flow) -> Vec<NodeRow> {
    let mut nodes: BTreeMap<NodeId, bool> = flow.view.nodes().map(|(node, _)| (node, true)).collect();
    for suspension in flow.view.suspensions() {
        if let Scope::Node(node) = suspension.scope {
            nodes.entry(node).or_insert(false);
        }
    }
    let row = |(node, running): (NodeId, bool)| {
        let owned = |source: &&Arc<Source>| source.owner.is_some_and(|owner| owner.node == node);
        NodeRow {
            node: node.0,
            running,
            sources: flow.view.sources().filter(owned).map(|source| source.name.to_string()).collect(),
            traffic: Traffic::of(flow.lanes.iter().filter(|lane| lane.node == node.0)),
            suspended: flow.suspended(&Scope::Node(node)),
        }
    };
    nodes.into_iter().map(row).collect()
}
