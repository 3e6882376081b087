//! `postroad get`, `describe` and `export`: the policy in force, as tables, item by item, and as a file.

use anyhow::Context;
use postroad_directory::View;
use serde::Serialize;

use super::{Operator, OperatorError};
use crate::{
    cli::policy::{DescribeArgs, ExportArgs, GetArgs, Selection},
    output::{self, Column, Row, Screen, Shown, number, table, text},
    policy::{
        CredentialPolicy, Description, LimitsPolicy, Policy, PolicyKind, PoolPolicy, RoutePolicy,
        SourcePolicy, TenantPolicy, stored_name, to_yaml,
    },
};

/// What the commands are about, in errors.
pub(super) const READ: &str = "read the policy";

/// Runs `postroad get`.
///
/// # Errors
/// The cluster cannot be reached, or has no item of that name.
pub async fn get(args: &GetArgs) -> anyhow::Result<String> {
    let operator = Operator::connect(&args.target)?;
    let stored = operator.view(READ).await?;
    let policy = selected(&args.selection, &stored)?;
    args.output.output.show(&InForce { policy, kind: args.selection.kind })
}

/// Runs `postroad describe`.
///
/// # Errors
/// As for [`get`].
pub async fn describe(args: &DescribeArgs) -> anyhow::Result<String> {
    let operator = Operator::connect(&args.target)?;
    let stored = operator.view(READ).await?;
    let name = named(args.kind, &args.name)?;
    let description = Description::of(&name, &stored);
    let description = description.ok_or_else(|| not_found(format!("`{name}` does not exist")))?;
    args.output.output.show(&description)
}

/// Runs `postroad export`.
///
/// # Errors
/// As for [`get`]; or the file exists or cannot be written.
pub async fn export(args: &ExportArgs) -> anyhow::Result<String> {
    let operator = Operator::connect(&args.target)?;
    let stored = operator.view(READ).await?;
    let text = to_yaml(&selected(&args.selection, &stored)?, stored.revision())?;
    let Some(file) = &args.file else { return Ok(text) };
    let written = postroad_net::authority::write_new_file(file, text.as_bytes());
    written.with_context(|| format!("cannot write `{}` (`--file`)", file.display()))?;
    Ok(format!("wrote the policy at revision {} to {}\n", stored.revision(), file.display()))
}

/// Returns the items that the command line selects.
pub(super) fn selected(selection: &Selection, stored: &View) -> Result<Policy, OperatorError> {
    let Some(kind) = selection.kind else { return Ok(Policy::of(stored, |_| true)) };
    let Some(written) = &selection.name else {
        return Ok(Policy::of(stored, |item| item.kind == kind.kind()));
    };
    let name = named(kind, written)?;
    match Policy::of(stored, |item| *item == name) {
        nothing if nothing == Policy::default() => Err(not_found(format!("`{name}` does not exist"))),
        policy => Ok(policy),
    }
}

/// Returns the name under which the directory keeps an item.
pub(super) fn named(kind: PolicyKind, written: &str) -> Result<postroad_directory::ItemName, OperatorError> {
    let kind = kind.kind();
    stored_name(kind, written).map_err(|expected| not_found(format!("`{kind} {written}`: {expected}")))
}

fn not_found(cause: String) -> OperatorError {
    OperatorError::NotFound { action: READ.to_owned(), cause }
}

/// Items of the policy in force. Programs get them as a policy, people as a table for each kind.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct InForce {
    policy: Policy,
    /// The only kind that was asked for.
    #[serde(skip)]
    kind: Option<PolicyKind>,
}

impl Shown for InForce {
    fn text(&self, screen: Screen) -> String {
        let Policy { sources, pools, tenants, credentials, limits, routes, .. } = &self.policy;
        let sections = [
            (PolicyKind::Sources, table(sources, screen, "no sources")),
            (PolicyKind::Pools, table(pools, screen, "no pools")),
            (PolicyKind::Tenants, table(tenants, screen, "no tenants")),
            (PolicyKind::Credentials, table(credentials, screen, "no credentials")),
            (PolicyKind::Limits, table(limits, screen, "no limits: every lane has the defaults")),
            (PolicyKind::Routes, table(routes, screen, "no routes: mail goes to the MX of its domain")),
        ];
        let wanted = sections.iter().filter(|(kind, _)| self.kind.is_none_or(|wanted| wanted == *kind));
        wanted.map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n")
    }
}

fn joined(values: &[impl ToString]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn optional(value: Option<&impl ToString>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

impl Row for SourcePolicy {
    const COLUMNS: &'static [Column] = &[text("SOURCE"), text("ADDRESS"), text("HELO"), text("NODES")];

    fn cells(&self) -> Vec<String> {
        let nodes = if self.nodes.is_empty() { "any".to_owned() } else { joined(&self.nodes) };
        vec![self.name.clone(), optional(self.address.as_ref()), self.helo.to_string(), nodes]
    }
}

impl Row for PoolPolicy {
    const COLUMNS: &'static [Column] = &[text("POOL"), text("SOURCES, WITH THEIR WEIGHTS")];

    fn cells(&self) -> Vec<String> {
        let sources = self.sources.iter().map(|member| format!("{}:{}", member.source, member.weight));
        vec![self.name.clone(), joined(&sources.collect::<Vec<_>>())]
    }
}

impl Row for TenantPolicy {
    const COLUMNS: &'static [Column] = &[text("TENANT"), text("POOL"), text("SIZE MAX"), text("DOMAINS")];

    fn cells(&self) -> Vec<String> {
        let domains = self.domains.as_ref().map_or_else(|| "any".to_owned(), |domains| joined(domains));
        vec![self.name.clone(), self.pool.clone(), optional(self.message_size_max.as_ref()), domains]
    }
}

impl Row for CredentialPolicy {
    const COLUMNS: &'static [Column] =
        &[text("CREDENTIAL"), text("TENANT"), text("KIND"), text("RELAY"), text("NETWORKS")];

    fn cells(&self) -> Vec<String> {
        let kind = match &self.login {
            Some(login) => format!("login {}", output::line(login)),
            None if self.stored_secret => "API key".to_owned(),
            None => "networks".to_owned(),
        };
        let relay = if self.relay { "yes" } else { "no" };
        vec![self.name.clone(), self.tenant.clone(), kind, relay.to_owned(), joined(&self.networks)]
    }
}

impl Row for LimitsPolicy {
    const COLUMNS: &'static [Column] = &[
        text("LIMITS"),
        text("SOURCE"),
        text("SITE"),
        number("CONNECTIONS"),
        number("MESSAGES EACH"),
        number("WINDOW"),
        text("RATES"),
    ];

    fn cells(&self) -> Vec<String> {
        let any = |scope: &Option<String>| scope.clone().unwrap_or_else(|| "any".to_owned());
        vec![
            self.name.clone(),
            any(&self.source),
            any(&self.site),
            optional(self.connections_max.as_ref()),
            optional(self.messages_per_connection_max.as_ref()),
            optional(self.window.as_ref()),
            joined(self.rates.as_deref().unwrap_or_default()),
        ]
    }
}

impl Row for RoutePolicy {
    const COLUMNS: &'static [Column] = &[text("ROUTE"), number("PORT"), text("HOST")];

    fn cells(&self) -> Vec<String> {
        vec![self.domain.clone(), self.port.to_string(), self.host.clone()]
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use postroad_cluster::ApplyOptions;
    use postroad_directory::{Change, Command, Directory};

    use super::*;
    use crate::{
        cli::{self, Cli},
        policy::PolicyFile,
    };

    const POLICY: &str = "
sources: [{name: one, helo: mail.example.org, address: 192.0.2.7}, {name: two, helo: two.example.org, nodes: [21, 22]}]
pools: [{name: main, sources: [{source: one}, {source: two, weight: 3}]}]
tenants: [{name: acme, pool: main, domains: [acme.example]}]
credentials: [{name: app, tenant: acme, login: app, password: secret password}]
limits: [{name: slow, site: mx.example, rates: [10/s, 100/h]}]
routes: [{domain: Partner.Example, host: a.example, port: 25}, {domain: bücher.example, host: b.example, port: 25}]
";

    pub(crate) fn stored(text: &str) -> View {
        let mut directory = Directory::new();
        let view = |directory: &Directory| View::empty().apply(directory.everything());
        let file = PolicyFile::read("policy.yaml", text).unwrap();
        let changes = file.policy.changes(&view(&directory), ApplyOptions::default()).unwrap();
        directory.apply(&Command::Change(changes.puts.into_iter().map(Change::Put).collect())).unwrap();
        view(&directory)
    }

    fn args(arguments: &[&str]) -> GetArgs {
        let arguments = [&["postroad", "get"], arguments].concat();
        let cli::Command::Get(args) = Cli::parse_from(arguments).command else { panic!("it is `get`") };
        args
    }

    fn policy(arguments: &[&str], stored: &View) -> Result<Policy, String> {
        selected(&args(arguments).selection, stored).map_err(|error| error.to_string())
    }

    #[test]
    fn an_item_is_selected_by_its_name_and_a_route_by_its_domain_in_any_spelling() {
        let stored = stored(POLICY);
        let host =
            |domain: &str| policy(&["routes", domain], &stored).map(|policy| policy.routes[0].host.clone());
        assert_eq!(host("PARTNER.example").as_deref(), Ok("a.example"));
        assert_eq!(host("Bücher.example").as_deref(), Ok("b.example"));
        assert_eq!(host("xn--bcher-kva.example").as_deref(), Ok("b.example"));
        let missing = host("*").unwrap_err();
        assert_eq!(missing, "cannot read the policy: `route *` does not exist");
        assert_eq!(policy(&["routes"], &stored).unwrap().routes.len(), 2);
        assert_eq!(policy(&["source", "one"], &stored).unwrap().sources.len(), 1);
        assert_eq!(
            policy(&["sources", "ONE"], &stored).unwrap_err(),
            "cannot read the policy: `source ONE` does not exist"
        );
    }

    #[test]
    fn people_see_a_table_for_each_kind_and_programs_a_policy() {
        let stored = stored(POLICY);
        let shown = |arguments: &[&str]| {
            let args = args(arguments);
            let policy = selected(&args.selection, &stored).unwrap();
            args.output.output.show(&InForce { policy, kind: args.selection.kind }).unwrap()
        };
        assert_eq!(
            shown(&["sources"]),
            "SOURCE  ADDRESS    HELO              NODES\n\
             one     192.0.2.7  mail.example.org  any\n\
             two     -          two.example.org   21,22\n"
        );
        assert_eq!(shown(&["pools"]), "POOL  SOURCES, WITH THEIR WEIGHTS\nmain  one:1,two:3\n");
        assert_eq!(
            shown(&["limits"]),
            "LIMITS   SOURCE  SITE        CONNECTIONS  MESSAGES EACH  WINDOW  RATES\n\
             default  any     any                  20            100     500  -\n\
             slow     any     mx.example            -              -       -  10/s,100/h\n"
        );
        let everything = shown(&[]);
        for part in ["TENANT", "acme    main  -         acme.example", "login app", "ROUTE", "b.example"] {
            assert!(everything.contains(part), "{everything}");
        }
        let yaml = shown(&["tenants", "acme", "-o", "yaml"]);
        assert_eq!(yaml, "tenants:\n- name: acme\n  domains:\n  - acme.example\n  pool: main\n");
        for format in ["table", "json", "yaml"] {
            let all = shown(&["-o", format]);
            assert!(!all.contains("secret password") && !all.contains("$argon2"), "{all}");
        }
    }
}
