//! Routes on the command line and in policy files.

use std::str::FromStr;

use postroad_core::Domain;

use crate::policy::RoutePolicy;

/// `DOMAIN=HOST:PORT`, where `*` means every domain without a route of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteArgument {
    /// `None` for every domain without a route of its own.
    pub domain: Option<Domain>,
    /// The host that gets its mail.
    pub host: String,
    /// The port there.
    pub port: u16,
}

impl RouteArgument {
    /// Returns a route for every domain without a route of its own.
    #[must_use]
    pub fn any(host: &str, port: u16) -> Self {
        Self { domain: None, host: host.to_owned(), port }
    }

    /// Returns the route as an item of a policy file.
    #[must_use]
    pub fn to_policy(&self) -> RoutePolicy {
        let domain = self.domain.as_ref().map_or("*", Domain::as_str).to_owned();
        RoutePolicy { domain, host: self.host.clone(), port: self.port }
    }
}

impl FromStr for RouteArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected DOMAIN=HOST:PORT, with `*` for every other domain".to_owned();
        let (domain, target) = text.split_once('=').ok_or_else(expected)?;
        let domain = match domain {
            "*" => None,
            name => Some(Domain::parse(name).map_err(|error| error.to_string())?),
        };
        let (host, port) = target.rsplit_once(':').ok_or_else(expected)?;
        // An IPv6 address is in brackets, to separate it from the port.
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(expected)?;
        if host.is_empty() {
            return Err(expected());
        }
        Ok(Self { domain, host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_parsed() {
        let check = |text: &str, domain: Option<&str>, host: &str, port: u16| {
            let route: RouteArgument = text.parse().unwrap();
            assert_eq!(
                (route.domain.as_ref().map(Domain::as_str), &*route.host, route.port),
                (domain, host, port)
            );
        };
        check("*=127.0.0.1:2600", None, "127.0.0.1", 2600);
        check("Example.org=mx.example.org:25", Some("example.org"), "mx.example.org", 25);
        check("a.example=[::1]:2525", Some("a.example"), "::1", 2525);
        for text in ["", "a", "a=b", "a=:25", "a=b:0", "a b=c:25", "a=b:99999"] {
            assert!(text.parse::<RouteArgument>().is_err(), "{text:?}");
        }
    }
}
