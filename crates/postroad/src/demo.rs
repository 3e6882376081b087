//! The demo tenant, only in `dev`: one login, one API key, and the loopback networks.

use postroad_cluster::{ApplyOptions, Endpoints};
use postroad_ingress::{IngressConfig, SmtpListener};

use crate::{cli::DevArgs, operator, policy::Policy, route::RouteArgument};

/// The demo login.
pub const LOGIN: &str = "demo";
/// Its password, and the API key.
pub const SECRET: &str = "demo-loopback-only";

/// The password's verifier: fixed, so that a kept directory does not change at every start.
/// It is not secret: the password is above.
const VERIFIER: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$Ga8W6QNvkwbgsm89dERDsA$exX9cQjapXBKhpFTLPWKf10bLAMTtvtjB5Bo5mVYdsI";

/// Applies the demo tenant and the routes; other items stay unchanged.
///
/// # Errors
/// The directory cannot be reached or refuses the changes.
pub async fn apply(endpoints: &Endpoints, routes: &[RouteArgument]) -> anyhow::Result<()> {
    let mut policy = Policy::parse(&policy_text())?;
    policy.routes = routes.iter().map(RouteArgument::to_policy).collect();
    operator::apply(endpoints, &policy.changes()?, ApplyOptions::default()).await.map(drop)
}

/// Returns the ingress configuration of `dev`.
#[must_use]
pub fn ingress(args: &DevArgs) -> IngressConfig {
    let smtp = |listen, implicit_tls| SmtpListener { listen, service: Default::default(), implicit_tls };
    IngressConfig {
        listeners: vec![smtp(args.listen_smtp, false), smtp(args.listen_smtps, true)],
        grpc_listen: Some(args.listen_grpc),
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

    use super::*;

    #[test]
    fn the_verifier_matches_the_password() {
        let hash = PasswordHash::new(VERIFIER).unwrap();
        Argon2::default().verify_password(SECRET.as_bytes(), &hash).unwrap();
        assert_eq!(Policy::parse(&policy_text()).unwrap().changes().unwrap().puts.len(), 6);
    }
}
