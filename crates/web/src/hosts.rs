//! Which names a page may be asked for by: a site that points its own name at this machine (DNS rebinding) is refused.

use std::{net::IpAddr, sync::Arc};

use axum::http::{HeaderMap, Uri, header::HOST};

/// The names that a listener answers to, besides IP addresses and `localhost`.
///
/// An IP address needs no list: a browser that was led here by another site's name sends that name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostList {
    names: Arc<[Box<str>]>,
}

impl HostList {
    /// Allows these names, in any case and with or without a dot at the end. The caller adds the name of this machine.
    #[must_use]
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        let names = names.into_iter().map(|name| name.trim_end_matches('.').to_ascii_lowercase().into());
        Self { names: names.collect() }
    }

    /// Returns the name that a request was refused for; `None` when all its names are allowed.
    ///
    /// A request without any does not come from a browser.
    pub(crate) fn refused(&self, uri: &Uri, headers: &HeaderMap) -> Option<String> {
        let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
        let hosts = headers.get_all(HOST).iter().map(|value| value.as_bytes());
        let refused = authority.into_iter().chain(hosts).find(|host| !self.allows(host))?;
        Some(String::from_utf8_lossy(refused).into_owned())
    }

    fn allows(&self, host: &[u8]) -> bool {
        let Some(name) = std::str::from_utf8(host).ok().and_then(without_port) else { return false };
        let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        if address.parse::<IpAddr>().is_ok() {
            return true;
        }
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        name == "localhost"
            || name.ends_with(".localhost")
            || self.names.iter().any(|allowed| **allowed == *name)
    }
}

/// Takes the port off `name:port`, `[::1]:port` or a name alone.
fn without_port(host: &str) -> Option<&str> {
    match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => Some(name),
        Some(_) if host.ends_with(']') => Some(host),
        Some(_) => None,
        None => Some(host),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_addresses_and_own_names_are_allowed() {
        let hosts = HostList::new(["mail1.example.org", "Console.Example.org."]);
        let check = |host: &str, allowed: bool| {
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_str(host).unwrap())]);
            assert_eq!(hosts.refused(&Uri::from_static("/"), &headers).is_none(), allowed, "{host}");
        };
        for host in
            ["127.0.0.1:8080", "[::1]:8080", "[::1]", "192.0.2.1", "localhost", "LOCALHOST:1", "a.localhost"]
        {
            check(host, true);
        }
        for host in ["mail1.example.org", "console.example.org:8080", "CONSOLE.example.org."] {
            check(host, true);
        }
        // A name that its owner points at this machine, and tricks around the names that are allowed.
        for host in [
            "rebound.example",
            "rebound.example:8080",
            "127.0.0.1.rebound.example",
            "localhost.rebound.example",
        ] {
            check(host, false);
        }
        for host in [
            "",
            "a:b:c",
            "localhost:99999",
            "localhost@rebound.example",
            "notlocalhost",
            "localhost,rebound.example",
        ] {
            check(host, false);
        }
        assert_eq!(
            hosts.refused(&Uri::from_static("http://rebound.example/"), &HeaderMap::new()).as_deref(),
            Some("rebound.example")
        );
        assert_eq!(hosts.refused(&Uri::from_static("/"), &HeaderMap::new()), None);
    }

    #[test]
    fn every_host_field_is_looked_at() {
        let mut headers = HeaderMap::new();
        headers.append(HOST, HeaderValue::from_static("localhost"));
        headers.append(HOST, HeaderValue::from_static("rebound.example"));
        assert!(HostList::default().refused(&Uri::from_static("/"), &headers).is_some());
    }
}
