//! Gathers the facts: asks, looks and measures, all within half a minute.

mod cluster;
mod machine;
mod sending;

use std::path::PathBuf;

use anyhow::Context;
use postroad_core::Domain;
use postroad_dns::Resolver;

use super::{NodeSetup, facts::Facts};
use crate::{
    cli::{RoleName, TargetArgs},
    operator::Operator,
};

pub(crate) use machine::http_get;

/// Gathers everything that the command line asks for; `probe` is a domain outside of the cluster.
///
/// # Errors
/// A configuration cannot be read. What cannot be reached is a fact.
pub(crate) async fn gather(
    role: Option<RoleName>,
    target: &TargetArgs,
    probe: Option<&Domain>,
) -> anyhow::Result<Facts> {
    let (operator, setup) = match role {
        None => (Operator::connect(target)?, None),
        Some(role) => {
            let setup = NodeSetup::read(role, &config_of(target)?)?;
            (Operator::of_node(&setup.cluster)?, Some(setup))
        }
    };
    let resolver = match &setup {
        Some(setup) => setup.resolver()?,
        None => Resolver::system().ok(),
    };
    let machine = async {
        match &setup {
            Some(setup) => Some(machine::gather(setup).await),
            None => None,
        }
    };
    let (mut cluster, mut node) = tokio::join!(cluster::gather(&operator), machine);
    if let Some(setup) = &setup {
        sending::use_of_sources(setup, &mut cluster.sources);
    }
    // Without a domain to try, nothing outside is asked.
    if let (Some(resolver), Some(probe)) = (&resolver, probe) {
        if let Some(node) = &mut node {
            // By itself: its time is a finding.
            node.dns = Some(sending::dns(resolver, probe).await);
        }
        let connections = async {
            match &setup {
                Some(setup) => sending::port_25(setup, resolver, probe, &cluster.sources).await,
                None => Vec::new(),
            }
        };
        let names = sending::look_up_names(resolver, &cluster.sources);
        let (port_25, names) = tokio::join!(connections, names);
        for (source, names) in cluster.sources.iter_mut().zip(names) {
            source.names = names;
        }
        if let Some(node) = &mut node {
            node.port_25 = port_25;
        }
    }
    Ok(Facts { now: postroad_env::wall(), version: env!("CARGO_PKG_VERSION"), cluster, node })
}

/// The configuration of the role: the flag, or the variable that the role itself reads.
pub(crate) fn config_of(target: &TargetArgs) -> anyhow::Result<PathBuf> {
    let given = target.config.clone().or_else(|| std::env::var_os("POSTROAD_CONFIG").map(PathBuf::from));
    given.context("expected the role's configuration in `--config`")
}
