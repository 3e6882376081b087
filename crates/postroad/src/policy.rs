//! The policy file: what `postroad apply` reads.
//!
//! Items are referred to by name; the directory assigns their ids. A field that is left out has its default, and an item
//! that the file does not name stays unchanged.

mod read;

mod changes;
mod describe;
mod export;

pub use changes::Changes;
pub(crate) use changes::stored_name;
pub use describe::Description;
pub use export::{describe, to_yaml};
pub use read::{Place, PolicyError, PolicyFile, Problem};

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr, time::Duration};

use ipnet::IpNet;
use postroad_core::{ByteSize, Domain, NodeId};
use serde::{Deserialize, Serialize, Serializer};

/// A policy file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Egress addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourcePolicy>,
    /// Weighted sources.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolPolicy>,
    /// The owners of mail.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<TenantPolicy>,
    /// How clients authenticate as a tenant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<CredentialPolicy>,
    /// Concurrency and rates of lanes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitsPolicy>,
    /// Hosts that get a domain's mail instead of its MX.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RoutePolicy>,
    /// Items to remove.
    #[serde(skip_serializing)]
    pub remove: RemovePolicy,
}

/// An egress address and its name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SourcePolicy {
    /// Its name.
    pub name: String,
    /// The local address to send from; chosen by the system when left out.
    #[serde(default, deserialize_with = "optional_parsed", skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The EHLO name: the one that the address resolves to.
    #[serde(deserialize_with = "domain", serialize_with = "text")]
    pub helo: Domain,
    /// Outbound nodes that may own it; any when left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<u64>,
}

/// Weighted sources.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PoolPolicy {
    /// Its name.
    pub name: String,
    /// Its sources.
    pub sources: Vec<MemberPolicy>,
}

/// A source in a pool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MemberPolicy {
    /// The source's name.
    pub source: String,
    /// Its share of the pool's mail, relative to the other sources; 0 for none.
    #[serde(default = "one")]
    pub weight: u32,
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TenantPolicy {
    /// Its name.
    pub name: String,
    /// Sender domains it may use; any when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domains: Option<Vec<String>>,
    /// The pool that its mail is sent from.
    pub pool: String,
    /// The largest message it may send.
    #[serde(
        default,
        deserialize_with = "optional_parsed",
        serialize_with = "optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub message_size_max: Option<ByteSize>,
}

/// A credential: an API key, a login, or a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialPolicy {
    /// Its name.
    pub name: String,
    /// The tenant's name.
    pub tenant: String,
    /// An API key; only its SHA-256 leaves this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
    /// The SHA-256 of an API key, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_sha256: Option<String>,
    /// A login, with `password` or `password_hash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    /// The password; only a verifier (argon2id) leaves this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// The password's verifier, as a PHC string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<String>,
    /// Keep the key or password that the cluster has for this name, as an exported policy says.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stored_secret: bool,
    /// Client networks it is valid from; any when left out. Without a key or a login, the networks are the credential.
    #[serde(
        default,
        deserialize_with = "parsed_list",
        serialize_with = "texts",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub networks: Vec<IpNet>,
    /// Clients in the networks need no login on listeners of the service `relay` either, such as port 25.
    #[serde(default, skip_serializing_if = "is_false")]
    pub relay: bool,
}

impl CredentialPolicy {
    /// Returns true when nothing but the client's network proves who it is.
    fn is_by_networks_alone(&self) -> bool {
        let Self { api_key, api_key_sha256, login, stored_secret, .. } = self;
        api_key.is_none() && api_key_sha256.is_none() && login.is_none() && !stored_secret
    }
}

/// Limits of the lanes that match source and site.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsPolicy {
    /// Its name.
    pub name: String,
    /// Only for this source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Only for this site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Concurrent connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<u32>,
    /// Messages over one connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages_per_connection_max: Option<u32>,
    /// Deliveries assigned to the outbound node and not reported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    /// Such as `100/s`, `5000/h`, `10/30s`: each is kept in every interval of its length.
    #[serde(
        default,
        deserialize_with = "optional_rates",
        serialize_with = "optional_rate_texts",
        skip_serializing_if = "Option::is_none"
    )]
    pub rates: Option<Vec<RatePolicy>>,
}

/// A host that gets a domain's mail.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RoutePolicy {
    /// A domain, or `*` for every other domain.
    pub domain: String,
    /// The host's name or address.
    pub host: String,
    /// The port there.
    pub port: u16,
}

/// The names of items to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
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

/// A number of messages per interval.
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
        let expected = || "expected a rate such as `100/s`, `5000/h` or `10/30s`".to_owned();
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

impl fmt::Display for RatePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.per.as_secs();
        let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
        let (length, unit) =
            units.into_iter().find(|(length, _)| seconds.is_multiple_of(*length)).unwrap_or((1, "s"));
        match seconds / length {
            1 => write!(f, "{}/{unit}", self.messages),
            count => write!(f, "{}/{count}{unit}", self.messages),
        }
    }
}

/// The kinds of items, as the sections of a policy file are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PolicyKind {
    /// Egress addresses.
    #[value(alias = "source")]
    Sources,
    /// Weighted sources.
    #[value(alias = "pool")]
    Pools,
    /// The owners of mail.
    #[value(alias = "tenant")]
    Tenants,
    /// How clients authenticate as a tenant.
    #[value(alias = "credential")]
    Credentials,
    /// Concurrency and rates of lanes.
    Limits,
    /// Hosts that get a domain's mail instead of its MX.
    #[value(alias = "route")]
    Routes,
}

impl SourcePolicy {
    /// Returns the outbound nodes that may own the source.
    #[must_use]
    pub fn owners(&self) -> Vec<NodeId> {
        self.nodes.iter().copied().map(NodeId).collect()
    }
}

impl TenantPolicy {
    /// Returns the sender domains that the tenant may use; `None` for any.
    ///
    /// # Errors
    /// One of them is not a valid domain.
    pub fn sender_domains(&self) -> Result<Option<BTreeSet<Domain>>, String> {
        let parse = |name: &String| Domain::parse(name).map_err(|error| format!("`{name}`: {error}"));
        self.domains.as_ref().map(|domains| domains.iter().map(parse).collect()).transpose()
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn text<S: Serializer>(value: &impl fmt::Display, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

fn optional_text<S: Serializer>(value: &Option<impl fmt::Display>, to: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(ToString::to_string).serialize(to)
}

fn texts<S: Serializer>(values: &[impl fmt::Display], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(values.iter().map(ToString::to_string))
}

fn optional_rate_texts<S: Serializer>(rates: &Option<Vec<RatePolicy>>, to: S) -> Result<S::Ok, S::Error> {
    texts(rates.as_deref().unwrap_or_default(), to)
}

fn one() -> u32 {
    1
}

fn domain<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Domain, D::Error> {
    let text = String::deserialize(from)?;
    Domain::parse(&text).map_err(serde::de::Error::custom)
}

fn optional_parsed<'de, D: serde::Deserializer<'de>, T: FromStr<Err: std::fmt::Display>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
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
    fn rates_are_parsed() {
        let check = |text: &str, messages, seconds| {
            let expected = RatePolicy { messages, per: Duration::from_secs(seconds) };
            assert_eq!(text.parse(), Ok(expected), "{text}");
            assert_eq!(expected.to_string().parse(), Ok(expected), "{text}");
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
}
