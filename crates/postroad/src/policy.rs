//! The policy file: what `postroad apply` reads.
//!
//! Everything is named; ids are given by the directory. What is left out keeps its default, what is not named is left alone.

mod changes;

pub use changes::Changes;

use std::{collections::BTreeSet, net::IpAddr, str::FromStr, time::Duration};

use ipnet::IpNet;
use postroad_core::{ByteSize, Domain, NodeId};
use serde::Deserialize;

/// A policy file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Egress addresses.
    pub sources: Vec<SourcePolicy>,
    /// Weighted sources.
    pub pools: Vec<PoolPolicy>,
    /// Whose mail it is.
    pub tenants: Vec<TenantPolicy>,
    /// How tenants prove who they are.
    pub credentials: Vec<CredentialPolicy>,
    /// How fast mail goes out.
    pub limits: Vec<LimitsPolicy>,
    /// Hosts that get the mail of some domains instead of their MX.
    pub routes: Vec<RoutePolicy>,
    /// What is taken away.
    pub remove: RemovePolicy,
}

/// An egress address and its name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourcePolicy {
    /// Its name.
    pub name: String,
    /// The local address to send from; the system's choice when left out.
    #[serde(default, deserialize_with = "optional_parsed")]
    pub address: Option<IpAddr>,
    /// The name for EHLO: what the address resolves to.
    #[serde(deserialize_with = "domain")]
    pub helo: Domain,
    /// Outbound nodes that may own it; any when left out.
    #[serde(default)]
    pub nodes: Vec<u64>,
}

/// Weighted sources.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolPolicy {
    /// Its name.
    pub name: String,
    /// Its sources.
    pub sources: Vec<MemberPolicy>,
}

/// A source in a pool.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberPolicy {
    /// The source's name.
    pub source: String,
    /// Its share among the pool's sources; 0 for none.
    #[serde(default = "one")]
    pub weight: u32,
}

/// A tenant.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantPolicy {
    /// Its name.
    pub name: String,
    /// Domains it may send as; any when left out.
    #[serde(default)]
    pub domains: Option<Vec<String>>,
    /// The pool its mail goes out from.
    pub pool: String,
    /// The largest message it may send.
    #[serde(default, deserialize_with = "optional_parsed")]
    pub message_size_max: Option<ByteSize>,
}

/// A credential: an API key, a login, or a network.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialPolicy {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// An API key; only its SHA-256 leaves this machine.
    #[serde(default)]
    pub api_key: Option<String>,
    /// The SHA-256 of an API key, in hexadecimal.
    #[serde(default)]
    pub api_key_sha256: Option<String>,
    /// A login, with `password` or `password_hash`.
    #[serde(default)]
    pub login: Option<String>,
    /// The password; only a verifier (argon2id) leaves this machine.
    #[serde(default)]
    pub password: Option<String>,
    /// A verifier in PHC form.
    #[serde(default)]
    pub password_hash: Option<String>,
    /// Where it may be used from; anywhere when left out. Without a key or a login the networks are the credential.
    #[serde(default, deserialize_with = "parsed_list")]
    pub networks: Vec<IpNet>,
}

/// Limits of some lanes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsPolicy {
    /// Its name.
    pub name: String,
    /// Only for this source.
    #[serde(default)]
    pub source: Option<String>,
    /// Only for this site.
    #[serde(default)]
    pub site: Option<String>,
    /// Connections at once.
    #[serde(default)]
    pub connections_max: Option<u32>,
    /// Messages over one connection.
    #[serde(default)]
    pub messages_per_connection_max: Option<u32>,
    /// Deliveries assigned and not reported.
    #[serde(default)]
    pub window: Option<u32>,
    /// Such as `100/s`, `5000/h`, `10/30s`: all of them hold, in every interval of their length.
    #[serde(default, deserialize_with = "optional_rates")]
    pub rates: Option<Vec<RatePolicy>>,
}

/// A host that gets the mail of some domains.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutePolicy {
    /// A domain, or `*` for every domain without a route.
    pub domain: String,
    /// The host, a name or an address.
    pub host: String,
    /// The port there.
    pub port: u16,
}

/// Names of what is taken away.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemovePolicy {
    /// Sources.
    pub sources: Vec<String>,
    /// Pools.
    pub pools: Vec<String>,
    /// Tenants.
    pub tenants: Vec<String>,
    /// Credentials.
    pub credentials: Vec<String>,
    /// Limits.
    pub limits: Vec<String>,
    /// Domains of routes.
    pub routes: Vec<String>,
}

/// So many messages in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RatePolicy {
    /// Messages.
    pub messages: u64,
    /// In any interval of this length.
    pub per: Duration,
}

impl FromStr for RatePolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}` is no rate: expected such as `100/s`, `5000/h` or `10/30s`");
        let (messages, per) = text.split_once('/').ok_or_else(expected)?;
        let messages = messages.trim().parse().map_err(|_| expected())?;
        let per = per.trim();
        let digits = per.len() - per.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let count: u64 = if digits == 0 { 1 } else { per[..digits].parse().map_err(|_| expected())? };
        let unit = match per[digits..].trim() {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(expected()),
        };
        let seconds = count.checked_mul(unit).filter(|seconds| (1..=31 * 86_400).contains(seconds));
        Ok(Self { messages, per: Duration::from_secs(seconds.ok_or_else(expected)?) })
    }
}

impl Policy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// It is not YAML, or says something a policy does not have.
    pub fn parse(text: &str) -> Result<Self, serde_yaml_ng::Error> {
        serde_yaml_ng::from_str(text)
    }
}

impl SourcePolicy {
    /// Returns the nodes that may own it.
    #[must_use]
    pub fn owners(&self) -> Vec<NodeId> {
        self.nodes.iter().copied().map(NodeId).collect()
    }
}

impl TenantPolicy {
    /// Returns the domains it may send as; `None` for any.
    ///
    /// # Errors
    /// One of them is no domain.
    pub fn sender_domains(&self) -> Result<Option<BTreeSet<Domain>>, String> {
        let parse = |name: &String| Domain::parse(name).map_err(|error| format!("`{name}`: {error}"));
        self.domains.as_ref().map(|domains| domains.iter().map(parse).collect()).transpose()
    }
}

fn one() -> u32 {
    1
}

fn domain<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Domain, D::Error> {
    let text = String::deserialize(from)?;
    Domain::parse(&text).map_err(|error| serde::de::Error::custom(format!("`{text}`: {error}")))
}

fn optional_parsed<'de, D: serde::Deserializer<'de>, T: FromStr<Err: std::fmt::Display>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    let parse =
        |text: String| text.parse().map_err(|error| serde::de::Error::custom(format!("`{text}`: {error}")));
    text.map(parse).transpose()
}

fn parsed_list<'de, D: serde::Deserializer<'de>, T: FromStr<Err: std::fmt::Display>>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    let parse =
        |text: String| text.parse().map_err(|error| serde::de::Error::custom(format!("`{text}`: {error}")));
    Vec::<String>::deserialize(from)?.into_iter().map(parse).collect()
}

fn optional_rates<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Vec<RatePolicy>>, D::Error> {
    parsed_list(from).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        let check = |text: &str, messages, seconds| {
            let expected = RatePolicy { messages, per: Duration::from_secs(seconds) };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        };
        check("100/s", 100, 1);
        check("10/30s", 10, 30);
        check("5000/h", 5000, 3600);
        check("1/2 d", 1, 172_800);
        for text in ["", "1", "1/", "/s", "x/s", "1/0s", "1/s/s", "1/99999999999999999999s", "1/400d", "1/ms"]
        {
            assert!(text.parse::<RatePolicy>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_policy_says_where_it_is_wrong() {
        let policy = Policy::parse("routes:\n  - {domain: '*', host: mx.example, port: 25}\n").unwrap();
        assert_eq!(policy.routes[0].host, "mx.example");
        let error = Policy::parse("tenants:\n  - {name: a, pol: b}\n").unwrap_err().to_string();
        assert!(error.contains("unknown field `pol`") && error.contains("line 2"), "{error}");
        let error = Policy::parse("limits:\n  - {name: a, rates: [fast]}\n").unwrap_err().to_string();
        assert!(error.contains("`fast` is no rate"), "{error}");
    }
}
