//! Turns a policy into changes of the directory. Secrets are hashed here, so that only hashes leave this machine.

use anyhow::{Context, bail, ensure};
use argon2::{Argon2, PasswordHasher, password_hash::phc::PasswordHash};
use postroad_core::Domain;
use postroad_directory::{
    Caps, ItemName, Kind, Pattern, Put, Rate, Route, Secret, SenderDomains,
    change::{PutCredential, PutLimits, PutPool, PutSource, PutTenant},
};

use super::{CredentialPolicy, LimitsPolicy, Policy, PoolPolicy, RoutePolicy, SourcePolicy, TenantPolicy};

/// Changes of the directory, applied as a whole or not at all.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Items to create or replace.
    pub puts: Vec<Put>,
    /// Items to remove.
    pub removals: Vec<ItemName>,
}

impl Policy {
    /// Returns the changes that the policy asks for.
    ///
    /// # Errors
    /// An item is invalid; the error names it.
    pub fn changes(&self) -> anyhow::Result<Changes> {
        let mut puts = Vec::new();
        puts.extend(self.sources.iter().map(source));
        puts.extend(self.pools.iter().map(pool));
        for one in &self.tenants {
            puts.push(tenant(one).with_context(|| format!("tenant `{}`", one.name))?);
        }
        for one in &self.credentials {
            puts.push(credential(one).with_context(|| format!("credential `{}`", one.name))?);
        }
        puts.extend(self.limits.iter().map(limits));
        for one in &self.routes {
            puts.push(Put::Route(route(one).with_context(|| format!("route `{}`", one.domain))?));
        }
        let removals = [
            (Kind::Route, &self.remove.routes),
            (Kind::Limits, &self.remove.limits),
            (Kind::Credential, &self.remove.credentials),
            (Kind::Tenant, &self.remove.tenants),
            (Kind::Pool, &self.remove.pools),
            (Kind::Source, &self.remove.sources),
        ];
        let removals = removals
            .into_iter()
            .flat_map(|(kind, names)| names.iter().map(move |name| ItemName::new(kind, name.as_str())));
        Ok(Changes { removals: removals.collect(), puts })
    }
}

fn source(source: &SourcePolicy) -> Put {
    Put::Source(PutSource {
        name: source.name.as_str().into(),
        address: source.address,
        helo: source.helo.clone(),
        nodes: source.owners(),
    })
}

fn pool(pool: &PoolPolicy) -> Put {
    let members = pool.sources.iter().map(|member| (member.source.as_str().into(), member.weight)).collect();
    Put::Pool(PutPool { name: pool.name.as_str().into(), members })
}

fn tenant(tenant: &TenantPolicy) -> anyhow::Result<Put> {
    let domains = match tenant.sender_domains().map_err(anyhow::Error::msg)? {
        None => SenderDomains::Any,
        Some(domains) => SenderDomains::Only(domains),
    };
    Ok(Put::Tenant(PutTenant {
        name: tenant.name.as_str().into(),
        domains,
        pool: tenant.pool.as_str().into(),
        message_size_max: tenant.message_size_max.map(|size| size.0),
    }))
}

fn credential(credential: &CredentialPolicy) -> anyhow::Result<Put> {
    Ok(Put::Credential(PutCredential {
        name: credential.name.as_str().into(),
        tenant: credential.tenant.as_str().into(),
        secret: secret(credential)?,
        networks: credential.networks.clone(),
    }))
}

fn secret(credential: &CredentialPolicy) -> anyhow::Result<Secret> {
    let password = match (&credential.password, &credential.password_hash) {
        (Some(_), Some(_)) => bail!("expected `password` or `password_hash`, not both"),
        (Some(password), None) => Some(verifier(password)?),
        (None, Some(hash)) => {
            ensure!(PasswordHash::new(hash).is_ok(), "`password_hash` is not a PHC string");
            Some(hash.clone())
        }
        (None, None) => None,
    };
    let is_network =
        credential.api_key.is_none() && credential.api_key_sha256.is_none() && credential.login.is_none();
    ensure!(is_network || !credential.relay, "`relay` is only for a credential by networks alone");
    match (&credential.api_key, &credential.api_key_sha256, &credential.login, password) {
        (Some(key), None, None, None) => {
            ensure!(key.len() >= 16, "`api_key` is too short: expected at least 16 characters");
            Ok(Secret::ApiKey { sha256: sha256(key.as_bytes()) })
        }
        (None, Some(digest), None, None) => Ok(Secret::ApiKey { sha256: hexadecimal(digest)? }),
        (None, None, Some(login), Some(verifier)) => {
            Ok(Secret::Login { login: login.as_str().into(), verifier: verifier.into() })
        }
        (None, None, None, None) => {
            ensure!(!credential.networks.is_empty(), "expected a key, a login with a password, or networks");
            Ok(Secret::Network { relay: credential.relay })
        }
        _ => bail!(
            "expected one of `api_key`, `api_key_sha256`, or `login` with a password, and no other of them"
        ),
    }
}

/// Hashes a password with argon2id and the parameters that the `argon2` crate recommends.
fn verifier(password: &str) -> anyhow::Result<String> {
    let hash = Argon2::default().hash_password(password.as_bytes());
    Ok(hash.map_err(|error| anyhow::anyhow!("cannot hash the password: {error}"))?.to_string())
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

fn hexadecimal(text: &str) -> anyhow::Result<[u8; 32]> {
    ensure!(text.len() == 64 && text.is_ascii(), "`api_key_sha256` must have 64 hexadecimal digits");
    let mut bytes = [0; 32];
    for (position, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * position..2 * position + 2], 16)
            .context("`api_key_sha256` must have 64 hexadecimal digits")?;
    }
    Ok(bytes)
}

fn limits(limits: &LimitsPolicy) -> Put {
    let rate = |rate: &super::RatePolicy| Rate { messages: rate.messages, per: rate.per };
    Put::Limits(PutLimits {
        name: limits.name.as_str().into(),
        source: limits.source.as_deref().map(Into::into),
        site: limits.site.as_deref().map(Into::into),
        caps: Caps {
            connections_max: limits.connections_max,
            messages_per_connection_max: limits.messages_per_connection_max,
            window: limits.window,
            rates: limits.rates.as_ref().map(|rates| rates.iter().map(rate).collect()),
        },
    })
}

fn route(route: &RoutePolicy) -> anyhow::Result<Route> {
    let pattern = match route.domain.as_str() {
        "*" => Pattern::Any,
        name => Pattern::Exact(Domain::parse(name)?),
    };
    Ok(Route { pattern, host: route.host.as_str().into(), port: route.port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(usize, usize), &str>) {
        let changes = Policy::parse(text).unwrap().changes();
        match (changes, expected) {
            (Ok(Changes { puts, removals }), Ok(count)) => assert_eq!((puts.len(), removals.len()), count),
            (Err(error), Err(part)) => assert!(format!("{error:#}").contains(part), "{error:#}"),
            (seen, expected) => panic!("{seen:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn a_policy_becomes_changes() {
        check(
            "
            sources: [{name: one, helo: mail.example.org, nodes: [21]}]
            pools: [{name: default, sources: [{source: one}]}]
            tenants: [{name: acme, pool: default, domains: [acme.example], message_size_max: 10MiB}]
            credentials:
              - {name: app, tenant: acme, api_key: 0123456789abcdef}
              - {name: people, tenant: acme, login: acme, password: correct horse}
              - {name: hall, tenant: acme, networks: [192.0.2.0/24]}
              - {name: gateway, tenant: acme, networks: [192.0.3.1/32], relay: true}
            limits: [{name: slow, site: receiver.example, rates: [10/s, 1000/h]}]
            routes: [{domain: '*', host: relay.example, port: 25}]
            remove: {sources: [old]}
            ",
            Ok((9, 1)),
        );
    }

    #[test]
    fn a_credential_is_one_of_key_login_or_networks() {
        let wrong = "expected one of";
        check("credentials: [{name: a, tenant: t, api_key: 0123456789abcdef, login: b}]", Err(wrong));
        check("credentials: [{name: a, tenant: t, login: b}]", Err(wrong));
        check("credentials: [{name: a, tenant: t}]", Err("credential `a`: expected a key"));
        let keyed = "credentials: [{name: a, tenant: t, api_key: 0123456789abcdef, relay: true}]";
        check(keyed, Err("credential `a`: `relay` is only for a credential by networks alone"));
        check("credentials: [{name: a, tenant: t, api_key: short}]", Err("at least 16"));
        check("credentials: [{name: a, tenant: t, api_key_sha256: zz}]", Err("64 hexadecimal"));
    }
}
