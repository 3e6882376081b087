//! `postroad doctor`: gathers facts about a cluster and this machine, checks them, and says what to do.
//!
//! The checks are pure: what they are given is what was found, and nothing is asked or measured in them.

mod checks;
mod facts;
mod finding;
mod gather;
mod setup;

use crate::{cli::doctor::DoctorArgs, output};

pub(crate) use finding::Findings;
pub(crate) use gather::{config_of, gather, http_get};
pub(crate) use setup::NodeSetup;

/// Runs `postroad doctor`.
///
/// # Errors
/// A configuration cannot be read, or a check failed: its findings are printed all the same.
pub async fn run(args: &DoctorArgs) -> anyhow::Result<String> {
    let probe = (!args.no_probe).then_some(&args.probe);
    let facts = gather(args.role, &args.target, probe).await?;
    let findings = checks::all(&facts);
    let shown = args.output.output.show(&findings)?;
    let Some(failed) = findings.failed() else { return Ok(shown) };
    output::print(&shown)?;
    Err(failed.into())
}

/// Returns the findings for a support bundle.
///
/// # Errors
/// A configuration cannot be read.
pub(crate) async fn findings(
    role: Option<crate::cli::RoleName>,
    target: &crate::cli::TargetArgs,
) -> anyhow::Result<Findings> {
    Ok(checks::all(&gather(role, target, None).await?))
}
