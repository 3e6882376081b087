//! What a dashboard is made of.
//!
//! Queries are PromQL with three words of ours: `{SCOPE}` selects by the variables cluster and namespace, `{NODE}` by node
//! too, and `[RATE]` is the interval that suits the width of the graph. Further matchers follow behind a comma.

use crate::Runbook;

/// A page of panels.
#[derive(Clone, Copy, Debug)]
pub struct Dashboard {
    /// The name of its file and its address in Grafana.
    pub uid: &'static str,
    /// Its title.
    pub title: &'static str,
    /// What it answers.
    pub description: &'static str,
    /// What can be chosen on it, besides the cluster and the namespace.
    pub variables: &'static [Variable],
    /// The panels, under headings.
    pub rows: &'static [Row],
}

/// Panels under one heading.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The heading.
    pub title: &'static str,
    /// From left to right, and on.
    pub panels: &'static [Panel],
}

/// A choice that every query of a dashboard follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// The label that it chooses.
    pub label: &'static str,
    /// The word beside it.
    pub title: &'static str,
    /// The metric whose series have the values.
    pub metric: &'static str,
}

/// The cluster: every dashboard has it.
pub const CLUSTER: Variable = Variable { label: "cluster", title: "Cluster", metric: "postroad_build_info" };
/// The namespace: every dashboard has it.
pub const NAMESPACE: Variable =
    Variable { label: "namespace", title: "Namespace", metric: "postroad_build_info" };
/// The node.
pub const NODE: Variable = Variable { label: "node", title: "Node", metric: "postroad_build_info" };
/// The site of a receiver.
pub const SITE: Variable =
    Variable { label: "site", title: "Site", metric: "postroad_outbound_site_attempts_total" };
/// The tenant.
pub const TENANT: Variable =
    Variable { label: "tenant", title: "Tenant", metric: "postroad_ingress_messages_total" };

/// One graph or number.
#[derive(Clone, Copy, Debug)]
pub struct Panel {
    /// What it shows.
    pub title: &'static str,
    /// How to read it.
    pub description: &'static str,
    /// How it looks.
    pub kind: Kind,
    /// The unit of its values.
    pub unit: Unit,
    /// What it asks.
    pub queries: &'static [Query],
    /// The page to read when it looks wrong.
    pub runbook: Runbook,
    /// The fault that it is there to show: a test causes the fault and sees the panel move.
    pub moved_by: Moved,
}

/// How a panel looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Lines over time.
    Lines,
    /// Lines over time, one on top of the other: for parts of a whole.
    Stack,
    /// One number, red from this value on.
    Number(u32),
}

/// A unit as Grafana names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Things per second.
    PerSecond,
    /// Bytes.
    Bytes,
    /// Bytes per second.
    BytesPerSecond,
    /// Seconds.
    Seconds,
    /// A share from 0 to 1.
    Share,
}

impl Unit {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Count => "short",
            Self::PerSecond => "ops",
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "Bps",
            Self::Seconds => "s",
            Self::Share => "percentunit",
        }
    }
}

/// A query and the name of its series.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// The query; see the words above.
    pub query: &'static str,
    /// The legend, in which `{{label}}` is the value of a label.
    pub legend: &'static str,
}

/// What moves a panel, and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// Its values rise, or appear.
    Up(Fault),
    /// Its values fall, or vanish.
    Down(Fault),
}

/// What happens to the cluster in the test of the dashboards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Mail begins to flow.
    Load,
    /// A site answers 421 to every connection.
    SiteBusy,
    /// A site defers every recipient with 451.
    SiteDefers,
    /// A site refuses every recipient with 550.
    SiteRefuses,
    /// A site takes seconds for every reply.
    SiteSlow,
    /// A site does not listen.
    SiteDown,
    /// The DNS resolver fails.
    DnsFails,
    /// Clients log in wrongly, fail their handshakes, send malformed lines, and hang.
    BadClients,
    /// A follower is killed.
    FollowerKilled,
    /// A node is killed and started, again and again.
    NodeRestarts,
    /// A follower hangs.
    FollowerHangs,
    /// The leader of a group is killed.
    LeaderKilled,
    /// A majority of the queue nodes is killed.
    MajorityKilled,
    /// Every outbound node is killed.
    OutboundKilled,
    /// Control hangs.
    ControlHangs,
    /// Every sync of one queue node's disk takes long.
    DiskSlow,
    /// The disk of one queue node fills up.
    DiskFills,
    /// A certificate that is about to end is in use.
    CertificateEnds,
}

impl Fault {
    /// Returns its name in the tests.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::SiteBusy => "site_busy",
            Self::SiteDefers => "site_defers",
            Self::SiteRefuses => "site_refuses",
            Self::SiteSlow => "site_slow",
            Self::SiteDown => "site_down",
            Self::DnsFails => "dns_fails",
            Self::BadClients => "bad_clients",
            Self::FollowerKilled => "follower_killed",
            Self::NodeRestarts => "node_restarts",
            Self::FollowerHangs => "follower_hangs",
            Self::LeaderKilled => "leader_killed",
            Self::MajorityKilled => "majority_killed",
            Self::OutboundKilled => "outbound_killed",
            Self::ControlHangs => "control_hangs",
            Self::DiskSlow => "disk_slow",
            Self::DiskFills => "disk_fills",
            Self::CertificateEnds => "certificate_ends",
        }
    }
}

impl Dashboard {
    /// Returns all panels.
    pub fn panels(&self) -> impl Iterator<Item = &'static Panel> {
        self.rows.iter().flat_map(|row| row.panels)
    }

    /// Returns all variables, those that every dashboard has first.
    pub fn all_variables(&self) -> impl Iterator<Item = Variable> {
        [CLUSTER, NAMESPACE].into_iter().chain(self.variables.iter().copied())
    }
}

impl Query {
    /// Returns the query as Grafana runs it.
    #[must_use]
    pub fn promql(&self) -> String {
        const SCOPE: &str = "cluster=~\"$cluster\",namespace=~\"$namespace\"";
        self.query
            .replace("{NODE", &format!("{{{SCOPE},node=~\"$node\""))
            .replace("{SCOPE", &format!("{{{SCOPE}"))
            .replace("[RATE]", "[$__rate_interval]")
    }
}
