//! Which cluster a command talks to: its flags say, else the environment, else the current context, else `postroad dev`
//! on this machine.

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context as _, bail};
use postroad_cluster::Endpoints;
use postroad_core::NodeId;
use postroad_net::{Expect, Role, Transport};
use postroad_settings::HostPort;

use super::{DEV_ADDRESS, context::Contexts};
use crate::{
    cli::TargetArgs,
    config::{self, OperatorFile},
};

/// How a cluster is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The operator's configuration, with certificate and queue nodes; without it nothing is encrypted.
    config: Option<PathBuf>,
    /// The queue nodes to ask, instead of those in the configuration.
    server: Vec<HostPort>,
    named_by: NamedBy,
}

/// What named the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
enum NamedBy {
    /// An operator's configuration.
    Config(PathBuf),
    Context(String),
    /// Addresses alone.
    Server,
    /// Nothing: it is that of `postroad dev`.
    Default,
}

impl NamedBy {
    /// Returns why it is this cluster, as messages about its addresses say.
    fn reason(&self) -> String {
        match self {
            Self::Config(config) => format!("`{}`", config.display()),
            Self::Context(name) => format!("context `{name}`"),
            Self::Server => "`--server`".to_owned(),
            Self::Default => {
                "`postroad dev`; `--config`, `--server` or a context names another cluster".to_owned()
            }
        }
    }

    /// Returns how questions and results name the cluster.
    fn cluster(&self, server: &[HostPort]) -> String {
        match self {
            Self::Config(_) | Self::Context(_) => self.reason(),
            Self::Server => listed(server),
            Self::Default => "`postroad dev`".to_owned(),
        }
    }
}

impl TargetArgs {
    /// Reads the variables of the same meaning as the flags; an empty one counts as unset.
    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        let servers = variable("POSTROAD_SERVER").unwrap_or_default();
        let servers = servers.split(',').map(str::trim).filter(|server| !server.is_empty());
        let parse = |server: &str| server.parse().with_context(|| format!("`POSTROAD_SERVER` = `{server}`"));
        Ok(Self {
            config: variable("POSTROAD_OPERATOR_CONFIG").map(PathBuf::from),
            context: variable("POSTROAD_CONTEXT"),
            server: servers.map(parse).collect::<anyhow::Result<_>>()?,
        })
    }

    fn is_given(&self) -> bool {
        self.config.is_some() || self.context.is_some() || !self.server.is_empty()
    }
}

impl Target {
    /// Returns the cluster of a command of this process.
    pub(super) fn of(args: &TargetArgs) -> anyhow::Result<Self> {
        let variables = TargetArgs::from_variables(|name| std::env::var(name).ok())?;
        Self::choose(args, &variables, Contexts::load)
    }

    fn choose(
        flags: &TargetArgs,
        variables: &TargetArgs,
        contexts: impl Fn() -> anyhow::Result<Contexts>,
    ) -> anyhow::Result<Self> {
        if let Some(given) = [flags, variables].into_iter().find(|args| args.is_given()) {
            return match (&given.config, &given.context) {
                // A variable may set both; of flags the command line refuses that.
                (Some(config), _) => Ok(Self::of_config(config.clone(), given.server.clone())),
                (None, Some(context)) => Self::of_context(&contexts()?, context, &given.server),
                (None, None) => Ok(Self::of_servers(given.server.clone(), NamedBy::Server)),
            };
        }
        let contexts = contexts()?;
        match &contexts.current {
            Some(current) => Self::of_context(&contexts, current, &[]),
            None => {
                let dev = DEV_ADDRESS.parse().expect("it is an address and a port");
                Ok(Self::of_servers(vec![dev], NamedBy::Default))
            }
        }
    }

    fn of_config(config: PathBuf, server: Vec<HostPort>) -> Self {
        Self { config: Some(config.clone()), server, named_by: NamedBy::Config(config) }
    }

    fn of_servers(server: Vec<HostPort>, named_by: NamedBy) -> Self {
        Self { config: None, server, named_by }
    }

    fn of_context(contexts: &Contexts, name: &str, server: &[HostPort]) -> anyhow::Result<Self> {
        let context = contexts.get(name)?;
        let servers = match server {
            [] => context.servers().with_context(|| format!("context `{name}`"))?,
            given => given.to_vec(),
        };
        let named_by = NamedBy::Context(name.to_owned());
        Ok(Self { config: context.config.clone(), server: servers, named_by })
    }

    /// Returns channels to the queue nodes, and how a person names them. Connections are opened by the first call.
    pub(super) fn endpoints(&self) -> anyhow::Result<(Endpoints, String)> {
        let Some(config) = &self.config else {
            if let Some(server) = self.server.iter().find(|server| !is_this_machine(server)) {
                bail!(
                    "`{server}` ({}) without a configuration would be asked without encryption, which is done on this machine \
                     only: name the cluster by `--config` or a context with one",
                    self.named_by.reason()
                );
            }
            return Ok((self.channels(&Transport::Plain), self.names(&self.server)));
        };
        let OperatorFile { cluster } = config::load_operator(config)?;
        let transport = Transport::Mutual(cluster.node_tls()?);
        if self.server.is_empty() {
            let nodes: Vec<HostPort> = cluster.queue.iter().map(|queue| queue.address.clone()).collect();
            return Ok((cluster.endpoints(&transport), self.names(&nodes)));
        }
        Ok((self.channels(&transport), self.names(&self.server)))
    }

    /// Returns how questions and results name the cluster.
    pub(super) fn cluster(&self) -> String {
        self.named_by.cluster(&self.server)
    }

    /// Channels to addresses of which it is not known which nodes answer there.
    fn channels(&self, transport: &Transport) -> Endpoints {
        let channel = |server: &HostPort| transport.channel(server.as_str(), Expect::any(Role::Queue));
        (1..).map(NodeId).zip(self.server.iter().map(channel)).collect()
    }

    fn names(&self, servers: &[HostPort]) -> String {
        format!("{} ({})", listed(servers), self.named_by.reason())
    }
}

fn listed(servers: &[HostPort]) -> String {
    let servers: Vec<String> = servers.iter().map(|server| format!("`{server}`")).collect();
    servers.join(", ")
}

/// Whether what is sent to a server stays on this machine.
fn is_this_machine(server: &HostPort) -> bool {
    let host = server.host().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_leaves_this_machine_without_encryption() {
        let refused = |server: &str| {
            let target = Target::of_servers(vec![server.parse().unwrap()], NamedBy::Server);
            target.endpoints().err().map(|error| error.to_string())
        };
        for server in ["127.0.0.1:1", "localhost:1", "[::1]:1", "[::ffff:127.0.0.2]:1"] {
            assert_eq!(refused(server), None, "{server}");
        }
        for server in ["q1.example:1", "192.0.2.1:1", "localhost.example:1", "[::]:1"] {
            assert!(refused(server).is_some_and(|error| error.contains(server)), "{server}");
        }
    }

    const CONTEXTS: &str = "
current = 'prod'
[context.prod]
config = '/etc/prod.toml'
[context.forwarded]
config = '/etc/prod.toml'
server = ['127.0.0.1:1', '127.0.0.1:2']
";

    /// What is chosen for flags, as `--config`, `--context` and `--server`, and variables in the same order.
    fn check(flags: [&str; 3], variables: [&str; 3], contexts: &str, expected: Result<&str, &str>) {
        let args = |[config, context, server]: [&str; 3]| {
            let names = ["POSTROAD_OPERATOR_CONFIG", "POSTROAD_CONTEXT", "POSTROAD_SERVER"];
            let value = |name: &str| names.iter().position(|known| *known == name);
            TargetArgs::from_variables(|name| Some([config, context, server][value(name)?].to_owned()))
                .unwrap()
        };
        let chosen = Target::choose(&args(flags), &args(variables), || Ok(toml::from_str(contexts)?));
        let shown = chosen.map(|target| {
            let config = target.config.as_ref().map_or("-".to_owned(), |config| config.display().to_string());
            format!("{config} {}", target.names(&target.server))
        });
        assert_eq!(shown.as_deref().map_err(ToString::to_string), expected.map_err(str::to_owned));
    }

    #[test]
    fn questions_and_results_name_the_cluster_as_a_person_does() {
        let check = |flags: TargetArgs, contexts: &str, expected: &str| {
            let none = TargetArgs::default();
            let target = Target::choose(&flags, &none, || Ok(toml::from_str(contexts)?)).unwrap();
            assert_eq!(target.cluster(), expected);
        };
        let none = TargetArgs::default;
        check(none(), "", "`postroad dev`");
        check(none(), CONTEXTS, "context `prod`");
        check(TargetArgs { config: Some("/flag.toml".into()), ..none() }, CONTEXTS, "`/flag.toml`");
        check(TargetArgs { config: Some("--server".into()), ..none() }, "", "`--server`");
        let server = ["h:3", "i:4"].map(|server| server.parse().unwrap()).into();
        check(TargetArgs { server, ..none() }, CONTEXTS, "`h:3`, `i:4`");
    }

    #[test]
    fn flags_go_before_variables_and_these_before_the_current_context() {
        let (no, dev) = (
            ["", "", ""],
            "`127.0.0.1:7070` (`postroad dev`; `--config`, `--server` or a context names another cluster)",
        );
        check(no, no, "", Ok(&format!("- {dev}")));
        check(no, no, CONTEXTS, Ok("/etc/prod.toml  (context `prod`)"));
        check(no, ["/env.toml", "", ""], CONTEXTS, Ok("/env.toml  (`/env.toml`)"));
        check(
            no,
            ["", "forwarded", ""],
            CONTEXTS,
            Ok("/etc/prod.toml `127.0.0.1:1`, `127.0.0.1:2` (context `forwarded`)"),
        );
        check(
            ["", "forwarded", ""],
            ["/env.toml", "", ""],
            CONTEXTS,
            Ok("/etc/prod.toml `127.0.0.1:1`, `127.0.0.1:2` (context `forwarded`)"),
        );
        check(["", "prod", "h:3"], no, CONTEXTS, Ok("/etc/prod.toml `h:3` (context `prod`)"));
        check(["", "", "h:3, i:4"], ["/env.toml", "", ""], CONTEXTS, Ok("- `h:3`, `i:4` (`--server`)"));
        check(["/flag.toml", "", "h:3"], no, CONTEXTS, Ok("/flag.toml `h:3` (`/flag.toml`)"));
        check(
            ["", "other", ""],
            no,
            CONTEXTS,
            Err("context `other` does not exist; there are: forwarded, prod"),
        );
    }
}
