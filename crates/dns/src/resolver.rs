//! The resolver: mail hosts for outbound, sites for ingress.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
};
use postroad_core::Domain;
use tokio::time::{self, timeout};

use crate::{
    DnsError, MailHost, MailHosts,
    cache::SiteCache,
    hosts::{self, Target},
    lookup,
    metrics::Metrics,
    site,
};

/// Timeout of one query to one server.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of all queries of one call.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long to wait for the addresses of other hosts once one host has an address.
const FURTHER_HOSTS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a site is cached. MX changes are rare, and a stale site only affects rates.
const SITE_TTL: Duration = Duration::from_secs(600);
/// How long a domain is its own site after a failed lookup.
const FALLBACK_SITE_TTL: Duration = Duration::from_secs(30);

/// A client of a recursive resolver; cheap to clone.
#[derive(Clone)]
pub struct Resolver {
    inner: Arc<Inner>,
}

struct Inner {
    resolver: TokioResolver,
    sites: SiteCache,
    metrics: Metrics,
}

/// The resolver cannot be created.
#[derive(Debug, thiserror::Error)]
#[error("the system's resolver configuration is unusable")]
pub struct ResolverError(#[source] NetError);

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    /// Queries the name servers of the system's configuration.
    ///
    /// # Errors
    /// The system's configuration is unreadable or names no server.
    pub fn system() -> Result<Self, ResolverError> {
        let builder = TokioResolver::builder_tokio().map_err(ResolverError)?;
        let resolver = builder.with_options(options()).build().map_err(ResolverError)?;
        Ok(Self::new(resolver))
    }

    /// Queries the name server at `address` over UDP, and over TCP when an answer is truncated.
    ///
    /// # Panics
    /// Never: plain DNS needs nothing from the system.
    #[must_use]
    pub fn at(address: SocketAddr) -> Self {
        let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
        for connection in &mut connections {
            connection.port = address.port();
        }
        let server = NameServerConfig::new(address.ip(), true, connections);
        let config = ResolverConfig::from_name_servers(vec![server]);
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let built = builder.with_options(options()).build();
        Self::new(built.expect("a resolver without TLS needs nothing from the system"))
    }

    fn new(resolver: TokioResolver) -> Self {
        Self { inner: Arc::new(Inner { resolver, sites: SiteCache::default(), metrics: Metrics::new() }) }
    }

    /// Returns the mail hosts of `domain` and their addresses, in the order in which to try them.
    ///
    /// # Errors
    /// The domain has no mail host, or the lookup failed: see [`DnsError::is_permanent`].
    pub async fn mail_hosts(&self, domain: &Domain) -> Result<MailHosts, DnsError> {
        let started = postroad_env::now();
        let result =
            timeout(TOTAL_TIMEOUT, self.inner.mail_hosts(domain)).await.unwrap_or_else(|_| Err(timed_out()));
        self.inner.metrics.note_lookup(&result, postroad_env::since(started));
        result
    }

    /// Returns the addresses of a host that an operator configured as a fully qualified name or an address.
    ///
    /// # Errors
    /// The host has no address, or the lookup failed.
    pub async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        if host == "localhost" {
            return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
        }
        let name = Domain::parse(host).map_err(|_| DnsError::BadTarget)?;
        let asked = timeout(TOTAL_TIMEOUT, lookup::addresses(&self.inner.resolver, &name)).await;
        let addresses = asked.unwrap_or_else(|_| Err(timed_out()))?;
        if addresses.is_empty() { Err(DnsError::NoAddress) } else { Ok(addresses) }
    }

    /// Returns the names of an address (PTR), in lower case; none when it has no such record.
    ///
    /// # Errors
    /// The lookup failed.
    pub async fn names(&self, address: IpAddr) -> Result<Vec<String>, DnsError> {
        let asked = timeout(TOTAL_TIMEOUT, lookup::names(&self.inner.resolver, address)).await;
        let names = asked.unwrap_or_else(|_| Err(timed_out()))?;
        Ok(names.iter().map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Returns the site of `domain`, or the domain itself when the lookup fails or takes longer than `limit`.
    ///
    /// The result is cached, so a slow lookup delays one message and not each.
    pub async fn site(&self, domain: &Domain, limit: Duration) -> Box<str> {
        let Inner { resolver, sites, metrics } = &*self.inner;
        if let Some(site) = sites.find(domain) {
            metrics.site_cached.increment(1);
            return site;
        }
        let (site, keep) = match timeout(limit, lookup::mx(resolver, domain)).await {
            Ok(Ok(records)) => {
                metrics.site_looked_up.increment(1);
                let named = hosts::targets(&records).ok().and_then(|targets| site::name(&targets));
                (named, SITE_TTL)
            }
            Ok(Err(error)) if error.is_permanent() => (None, SITE_TTL),
            Ok(Err(_)) | Err(_) => {
                metrics.site_untold.increment(1);
                (None, FALLBACK_SITE_TTL)
            }
        };
        let site = site.unwrap_or_else(|| domain.as_str().into());
        sites.insert(domain.clone(), site.clone(), keep);
        site
    }
}

impl Inner {
    async fn mail_hosts(&self, domain: &Domain) -> Result<MailHosts, DnsError> {
        let records = lookup::mx(&self.resolver, domain).await?;
        if records.is_empty() {
            return self.implicit(domain).await;
        }
        let targets = hosts::plan(hosts::targets(&records)?);
        let hosts = self.resolve(targets).await?;
        Ok(MailHosts { hosts, implicit: false })
    }

    /// RFC 5321 5.1: a domain without MX is its own mail host.
    async fn implicit(&self, domain: &Domain) -> Result<MailHosts, DnsError> {
        let addresses = lookup::addresses(&self.resolver, domain).await?;
        if addresses.is_empty() {
            return Err(DnsError::NoMailHost);
        }
        let host = MailHost { name: domain.clone(), preference: 0, addresses };
        Ok(MailHosts { hosts: vec![host], implicit: true })
    }

    /// Resolves all targets concurrently; a slow one delays the others only briefly.
    async fn resolve(&self, targets: Vec<Target>) -> Result<Vec<MailHost>, DnsError> {
        let mut lookups: FuturesUnordered<_> = targets
            .into_iter()
            .enumerate()
            .map(|(index, target)| async move {
                (index, lookup::addresses(&self.resolver, &target.name).await, target)
            })
            .collect();
        let mut deadline = time::Instant::now() + TOTAL_TIMEOUT;
        let mut hosts = Vec::new();
        let mut failure = None;
        while let Ok(Some((index, answer, target))) = time::timeout_at(deadline, lookups.next()).await {
            match answer {
                Ok(addresses) if addresses.is_empty() => {}
                Ok(addresses) => {
                    deadline = deadline.min(time::Instant::now() + FURTHER_HOSTS_TIMEOUT);
                    let Target { name, preference } = target;
                    hosts.push((index, MailHost { name, preference, addresses }));
                }
                Err(error) => failure = Some(error),
            }
        }
        if hosts.is_empty() {
            let timeout_error = (!lookups.is_empty()).then(timed_out);
            return Err(failure.or(timeout_error).unwrap_or(DnsError::NoAddress));
        }
        hosts.sort_unstable_by_key(|(index, _)| *index);
        Ok(hosts.into_iter().map(|(_, host)| host).collect())
    }
}

fn timed_out() -> DnsError {
    DnsError::Temporary("timed out".to_owned())
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = QUERY_TIMEOUT;
    // One retry.
    options.attempts = 1;
    options.edns0 = true;
    options.cache_size = 50_000;
    options.max_active_requests = 4_096;
    options.use_hosts_file = ResolveHosts::Never;
    options.try_tcp_on_error = true;
    options.positive_max_ttl = Some(Duration::from_secs(86_400));
    options.negative_max_ttl = Some(Duration::from_secs(900));
    options
}
