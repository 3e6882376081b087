//! The demo tenant, only in `dev`: one login, one API key, and the loopback networks.

use std::{net::SocketAddr, path::Path};

use postroad_cluster::{ApplyOptions, DirectoryClient, Endpoints, LeaderWatch};
use postroad_core::Domain;
use postroad_ingress::{IngressConfig, SmtpListener};

use crate::{
    dev::RunRoutes,
    operator,
    policy::{Changes, PolicyFile},
    route::RouteArgument,
};

/// The demo login.
pub const LOGIN: &str = "demo";
/// Its password, and the API key.
pub const SECRET: &str = "demo-loopback-only";

/// The password's verifier: fixed, so that a kept directory does not change at every start.
/// It is not secret: the password is above.
const VERIFIER: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$Ga8W6QNvkwbgsm89dERDsA$exX9cQjapXBKhpFTLPWKf10bLAMTtvtjB5Bo5mVYdsI";

/// Takes back the routes of the last run's flags, and applies the demo tenant and those of this run's.
///
/// Other items stay unchanged. `record` is the file that says what the flags of a run did.
///
/// # Errors
/// The directory cannot be reached or refuses the changes, or the record cannot be read or written.
pub async fn apply(endpoints: &Endpoints, routes: &[RouteArgument], record: &Path) -> anyhow::Result<()> {
    let leaders = LeaderWatch::start(endpoints);
    let directory = DirectoryClient::new(endpoints, &leaders.subscribe());
    let mut last = PolicyFile::read("the routes of the last run", "")?;
    let stored = operator::view(endpoints, &directory).await?;
    (last.policy.routes, last.policy.remove.routes) = RunRoutes::read(record)?.take_back(&stored);
    apply_file(endpoints, &directory, &last).await?;

    let mut file = PolicyFile::read("the demo policy", &policy_text())?;
    file.policy.routes = routes.iter().map(RouteArgument::to_policy).collect();
    // Written before the routes are set: a crash in between leaves a record of what may not have happened, which is harmless.
    let stored = operator::view(endpoints, &directory).await?;
    RunRoutes::of(&file.policy.routes, &stored).write(record)?;
    apply_file(endpoints, &directory, &file).await
}

async fn apply_file(
    endpoints: &Endpoints,
    directory: &DirectoryClient,
    file: &PolicyFile,
) -> anyhow::Result<()> {
    let stored = operator::view(endpoints, directory).await?;
    // A route of the last run may be gone by another hand.
    let options = ApplyOptions { ignore_missing: true, ..ApplyOptions::default() };
    let Changes { puts, removals, .. } =
        file.policy.changes(&stored, options).map_err(|problems| file.error(problems))?;
    directory.apply(&puts, &removals, options, operator::WITHIN).await?;
    Ok(())
}

/// Returns the ingress configuration of `dev`.
#[must_use]
pub(crate) fn ingress(smtp: SocketAddr, smtps: SocketAddr, grpc: SocketAddr) -> IngressConfig {
    let listener = |listen, implicit_tls| SmtpListener { listen, implicit_tls, ..SmtpListener::default() };
    IngressConfig {
        hostname: Domain::parse("localhost").expect("a label is a name"),
        listeners: vec![listener(smtp, false), listener(smtps, true)],
        grpc_listen: Some(grpc),
        grpc_plaintext: true,
        connections_per_network_max: 10_000,
        ..IngressConfig::default()
    }
}

fn policy_text() -> String {
    format!(
        "
        sources: [{{name: default, helo: localhost}}]
        pools: [{{name: default, sources: [{{source: default}}]}}]
        tenants: [{{name: demo, pool: default}}]
        credentials:
          - {{name: demo-login, tenant: demo, login: {LOGIN}, password_hash: '{VERIFIER}', networks: [127.0.0.0/8, '::1/128']}}
          - {{name: demo-key, tenant: demo, api_key: {SECRET}, networks: [127.0.0.0/8, '::1/128']}}
          - {{name: demo-loopback, tenant: demo, networks: [127.0.0.0/8, '::1/128']}}
        "
    )
}

#[cfg(test)]
mod tests {
    use argon2::{Argon2, PasswordVerifier, password_hash::phc::PasswordHash};

    use postroad_directory::View;

    use super::*;

    #[test]
    fn the_verifier_matches_the_password() {
        let hash = PasswordHash::new(VERIFIER).unwrap();
        Argon2::default().verify_password(SECRET.as_bytes(), &hash).unwrap();
        let file = PolicyFile::read("demo", &policy_text()).unwrap();
        let changes = file.policy.changes(&View::empty(), ApplyOptions::default()).unwrap();
        assert_eq!(changes.puts.len(), 6);
    }
}
