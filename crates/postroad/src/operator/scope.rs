//! `postroad site`, `lane`, `source`, `pool`, `tenant` and `node`: what is sent, and what is suspended.

mod flow;
mod probe;
mod rows;

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use postroad_cluster::SuspendOptions;
use postroad_core::{NodeId, Timestamp};
use postroad_directory::{Item, ItemName, Kind, ScopeName, Suspension, View};
use serde::Serialize;

use super::{Operator, OperatorError, WITHIN};
use crate::{
    cli::{GetScopeArgs, ListArgs, ResumeArgs, ScopeCommand, SiteCommand, SuspendArgs},
    output::{Row, Screen, Shown, line, table},
};

use flow::Flow;
use rows::LaneRow;

/// What a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeKind {
    /// `postroad site`.
    Site,
    /// `postroad lane`.
    Lane,
    /// `postroad source`.
    Source,
    /// `postroad pool`.
    Pool,
    /// `postroad tenant`.
    Tenant,
    /// `postroad node`.
    Node,
}

/// Runs `postroad site`.
///
/// # Errors
/// See [`scope`]; or the probe cannot be made.
pub async fn site(command: &SiteCommand) -> anyhow::Result<String> {
    match command {
        SiteCommand::Scope(command) => scope(ScopeKind::Site, command).await,
        SiteCommand::Probe(args) => probe::run(args).await,
    }
}

/// Runs `postroad lane`, `source`, `pool`, `tenant` or `node`, or what `postroad site` has in common with them.
///
/// # Errors
/// A name is of nothing that exists, or the cluster cannot be reached.
pub async fn scope(kind: ScopeKind, command: &ScopeCommand) -> anyhow::Result<String> {
    match command {
        ScopeCommand::List(args) => list(kind, args).await,
        ScopeCommand::Get(args) => get(kind, args).await,
        ScopeCommand::Suspend(args) => suspend(kind, args).await,
        ScopeCommand::Resume(args) => resume(kind, args).await,
    }
}

impl ScopeKind {
    fn word(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Lane => "lane",
            Self::Source => "source",
            Self::Pool => "pool",
            Self::Tenant => "tenant",
            Self::Node => "node",
        }
    }

    /// Reads a name as a person writes it.
    fn parse(self, name: &str) -> anyhow::Result<ScopeName> {
        let site = |site: &str| Arc::from(site.to_ascii_lowercase());
        Ok(match self {
            Self::Site => ScopeName::Site(site(name)),
            Self::Lane => {
                let (source, to) = name.split_once('/').with_context(|| {
                    format!("`{name}` is not a lane: expected SOURCE/SITE, such as `{name}/example.org`")
                })?;
                ScopeName::Lane { source: source.into(), site: site(to) }
            }
            Self::Source => ScopeName::Source(name.into()),
            Self::Pool => ScopeName::Pool(name.into()),
            Self::Tenant => ScopeName::Tenant(name.into()),
            Self::Node => {
                let node = name.parse::<NodeId>().ok().filter(|node| *node > NodeId(0));
                ScopeName::Node(node.with_context(|| {
                    format!("`{name}` is not an outbound node: expected its number, as `postroad node list` shows it")
                })?)
            }
        })
    }

    fn parse_all(self, names: &[String]) -> anyhow::Result<Vec<ScopeName>> {
        let mut scopes = names.iter().map(|name| self.parse(name)).collect::<anyhow::Result<Vec<_>>>()?;
        scopes.sort();
        scopes.dedup();
        ensure!(scopes.len() <= 1000, "expected at most 1000 names");
        Ok(scopes)
    }
}

/// A suspension as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ShownSuspension {
    /// Such as `site example.org`.
    scope: String,
    reason: String,
    actor: String,
    since: String,
    /// `null` until it is resumed.
    until: Option<String>,
}

impl ShownSuspension {
    fn of(suspension: &Suspension) -> Self {
        Self {
            scope: suspension.name.to_string(),
            reason: suspension.reason.to_string(),
            actor: suspension.actor.to_string(),
            since: suspension.since.to_string(),
            until: suspension.until.as_ref().map(Timestamp::to_string),
        }
    }

    /// Returns it in one line, without its scope.
    fn summary(&self) -> String {
        let Self { reason, actor, until, .. } = self;
        let until = until.as_ref().map(|until| format!(" until {until}")).unwrap_or_default();
        line(&format!("suspended{until}: {reason} ({actor})"))
    }
}

async fn list(kind: ScopeKind, args: &ListArgs) -> anyhow::Result<String> {
    let operator = Operator::connect(&args.target)?;
    let flow = Flow::read(&operator, "", &format!("list {}s", kind.word())).await?;
    let shown = match kind {
        ScopeKind::Site => rows::listed(args, rows::sites(&flow), &flow),
        ScopeKind::Lane => rows::listed(args, rows::lanes(&flow), &flow),
        ScopeKind::Source => rows::listed(args, rows::sources(&flow), &flow),
        ScopeKind::Pool => rows::listed(args, rows::pools(&flow), &flow),
        ScopeKind::Tenant => rows::listed(args, rows::tenants(&flow), &flow),
        ScopeKind::Node => rows::listed(args, rows::nodes(&flow), &flow),
    }?;
    flow.complete(shown)
}

async fn get(kind: ScopeKind, args: &GetScopeArgs) -> anyhow::Result<String> {
    let scope = kind.parse(&args.name)?;
    let operator = Operator::connect(&args.target)?;
    let site = match &scope {
        ScopeName::Site(site) | ScopeName::Lane { site, .. } => site,
        _ => "",
    };
    let flow = Flow::read(&operator, site, &format!("show {scope}")).await?;
    let find = Wanted { name: written(&scope), lanes: rows::lanes_of(&flow, &scope), scope: &scope, args };
    let shown = match kind {
        ScopeKind::Site => find.among(rows::sites(&flow), |row| row.site.clone()),
        ScopeKind::Lane => find.among(rows::lanes(&flow), |row| row.lane.clone()),
        ScopeKind::Source => find.among(rows::sources(&flow), |row| row.source.clone()),
        ScopeKind::Pool => find.among(rows::pools(&flow), |row| row.pool.clone()),
        ScopeKind::Tenant => find.among(rows::tenants(&flow), |row| row.tenant.clone()),
        ScopeKind::Node => find.among(rows::nodes(&flow), |row| row.node.to_string()),
    }?;
    flow.complete(shown)
}

/// One of a kind, with what belongs to it.
#[derive(Debug, Serialize)]
struct Detail<R> {
    #[serde(flatten)]
    row: R,
    lanes: Vec<LaneRow>,
}

/// What `get` looks for.
struct Wanted<'a> {
    name: String,
    lanes: Vec<LaneRow>,
    scope: &'a ScopeName,
    args: &'a GetScopeArgs,
}

impl Wanted<'_> {
    /// Finds the row of this name and shows it.
    fn among<R: Row + Serialize>(self, rows: Vec<R>, name: impl Fn(&R) -> String) -> anyhow::Result<String> {
        let row = rows.into_iter().find(|row| name(row) == self.name);
        let row = row.ok_or_else(|| not_found(self.scope))?;
        self.args.output.output.show(&Detail { row, lanes: self.lanes })
    }
}

/// Returns a name as the command line has it.
fn written(scope: &ScopeName) -> String {
    match scope {
        ScopeName::Site(name) | ScopeName::Source(name) | ScopeName::Pool(name) | ScopeName::Tenant(name) => {
            name.to_string()
        }
        ScopeName::Lane { source, site } => format!("{source}/{site}"),
        ScopeName::Node(node) => node.to_string(),
    }
}

fn not_found(scope: &ScopeName) -> OperatorError {
    let cause = match scope {
        ScopeName::Site(_) | ScopeName::Lane { .. } => {
            format!("`{scope}` is not known: no outbound node sends there, and it is not suspended")
        }
        _ => format!("`{scope}` does not exist"),
    };
    OperatorError::NotFound { action: format!("show {scope}"), cause }
}

impl<R: Row + Serialize> Shown for Detail<R> {
    fn text(&self, screen: Screen) -> String {
        let row = table([&self.row], screen, "");
        if self.lanes.is_empty() { row } else { format!("{row}\n{}", table(&self.lanes, screen, "")) }
    }
}

async fn suspend(kind: ScopeKind, args: &SuspendArgs) -> anyhow::Result<String> {
    let scopes = kind.parse_all(&args.names)?;
    let operator = Operator::connect(&args.target)?;
    let length = args.length.map(|length| length.0);
    let options = SuspendOptions { reason: args.reason.clone(), actor: operator.actor.clone(), length };
    let action = format!("suspend {}", listed(&scopes));
    let suspended = operator.directory().suspend(&scopes, &options, WITHIN).await;
    let suspended = suspended.map_err(|error| operator.failed(&action, error))?;
    let mut text: String = suspended.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    for suspension in &suspended.suspensions {
        let shown = ShownSuspension::of(suspension);
        text.push_str(&format!("{}: {}, in {}\n", line(&shown.scope), shown.summary(), operator.cluster));
    }
    if matches!(kind, ScopeKind::Site | ScopeKind::Lane) {
        text.push_str(&unknown_sites(&operator, &scopes).await);
    }
    Ok(text)
}

/// Returns a line for each site to which no outbound node has sent of late: perhaps a domain was meant.
async fn unknown_sites(operator: &Operator, scopes: &[ScopeName]) -> String {
    let Ok(flow) = Flow::read(operator, "", "read the lanes").await else { return String::new() };
    let known = |site: &str| flow.lanes.iter().any(|lane| lane.site == site);
    let unknown = scopes.iter().filter_map(|scope| match scope {
        ScopeName::Site(site) | ScopeName::Lane { site, .. } if !known(site) => Some(site),
        _ => None,
    });
    let hint = |site: &Arc<str>| {
        format!(
            "note: no outbound node has sent to site `{site}` of late; `postroad site probe {site}` shows the site of a domain\n"
        )
    };
    unknown.map(hint).collect()
}

async fn resume(kind: ScopeKind, args: &ResumeArgs) -> anyhow::Result<String> {
    let scopes = kind.parse_all(&args.names)?;
    let operator = Operator::connect(&args.target)?;
    let action = format!("resume {}", listed(&scopes));
    // A call without an answer is repeated, and may have resumed them: so they are looked for first.
    let view = operator.view(&action).await?;
    if let Some(missing) = scopes.iter().find(|scope| find(&view, scope).is_none()) {
        let cause = format!("`{missing}` is not suspended");
        return Err(OperatorError::NotFound { action, cause }.into());
    }
    let resumed = operator.directory().resume(&scopes, &operator.actor, WITHIN).await;
    resumed.map_err(|error| operator.failed(&action, error))?;
    let resumed =
        |scope: &ScopeName| format!("{}: resumed, in {}\n", line(&scope.to_string()), operator.cluster);
    Ok(scopes.iter().map(resumed).collect())
}

fn find(view: &View, scope: &ScopeName) -> Option<Arc<Suspension>> {
    let ItemName { name, .. } = scope.item();
    match view.item(Kind::Suspension, &name)? {
        Item::Suspension(suspension) => Some(suspension.clone()),
        _ => None,
    }
}

fn listed(scopes: &[ScopeName]) -> String {
    let names: Vec<String> = scopes.iter().take(3).map(|scope| format!("`{scope}`")).collect();
    let more = scopes.len().saturating_sub(3);
    if more > 0 { format!("{} and {more} more", names.join(", ")) } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_people_write_them() {
        let check = |kind: ScopeKind, name: &str, expected: &str| {
            let read = kind.parse(name).map_or_else(|error| error.to_string(), |scope| scope.to_string());
            assert_eq!(read, expected);
        };
        check(ScopeKind::Site, "Google.COM", "site google.com");
        check(ScopeKind::Lane, "out-1/Google.com", "lane out-1/google.com");
        check(ScopeKind::Lane, "out-1/route:h/x:25", "lane out-1/route:h/x:25");
        check(
            ScopeKind::Lane,
            "out-1",
            "`out-1` is not a lane: expected SOURCE/SITE, such as `out-1/example.org`",
        );
        check(ScopeKind::Node, "7", "node 7");
        for wrong in ["0", "x", "-1"] {
            assert!(ScopeKind::Node.parse(wrong).is_err(), "{wrong}");
        }
        check(ScopeKind::Tenant, "Acme", "tenant Acme");
        let names = ["b.example", "a.example", "B.example"].map(str::to_owned);
        assert_eq!(ScopeKind::Site.parse_all(&names).unwrap().len(), 2, "each once");
    }
}
