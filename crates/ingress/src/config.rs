//! What an operator can say about an ingress node.

use std::{net::SocketAddr, time::Duration};

use postroad_smtp::server::Service;
use serde::{Deserialize, Serialize};

/// The `[ingress]` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct IngressConfig {
    /// The node's name: in greetings, in `Received` and in the `Message-ID` of messages that come without.
    pub hostname: String,
    /// Where SMTP is spoken.
    pub listeners: Vec<SmtpListener>,
    /// Where gRPC is spoken; nowhere when left out.
    pub grpc_listen: Option<SocketAddr>,
    /// Speaks gRPC, API keys included, without TLS: for where a proxy adds TLS. Without a certificate it is needed unless `grpc_listen` is on loopback.
    pub grpc_plaintext: bool,
    /// Bytes of a message; a tenant may have a smaller bound of its own.
    pub message_size_max: u64,
    /// Recipients of one message.
    pub recipients_max: usize,
    /// Refused senders, recipients and messages in a row after which an authenticated client gets 421; 20 for others.
    pub refusals_max: u32,
    /// Bytes of messages that wait for their commit; with more, clients are told to come back.
    pub in_flight_bytes_max: u64,
    /// SMTP connections at once, per listener.
    pub connections_max: usize,
    /// The same from one network: an address of IPv4, a /64 of IPv6.
    pub connections_per_network_max: usize,
    /// How long an SMTP client may take for one command.
    pub command_timeout_secs: u64,
    /// How long an SMTP client may take for one message.
    pub data_timeout_secs: u64,
    /// How long clients that are sending may go on when the node shuts down.
    pub drain_timeout_secs: u64,
    /// How long a message may wait for the queue's answer before its client is told to come back.
    pub submit_timeout_secs: u64,
    /// How long a message may wait for the name of its recipients' site; the domain stands in for it after that.
    pub site_timeout_millis: u64,
    /// How long delivery is tried.
    pub message_age_max_secs: u64,
    /// Items of one gRPC stream that may wait for their commit.
    pub stream_items_max: usize,
    /// Leaves name and address of authenticated clients out of `Received`.
    pub hide_clients: bool,
}

/// One address where SMTP is spoken.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SmtpListener {
    /// Address and port.
    pub listen: SocketAddr,
    /// Whom it is for.
    #[serde(default)]
    pub service: ListenerService,
    /// TLS begins with the connection, as on port 465.
    #[serde(default)]
    pub implicit_tls: bool,
    /// Refuses every deviation from the syntax, of clients that have logged in too.
    #[serde(default)]
    pub strict_syntax: bool,
}

/// Whom a listener is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerService {
    /// The organisation's own services, once they have said who they are.
    #[default]
    Submission,
    /// Other mail systems; mail of strangers is not relayed.
    Relay,
}

impl From<ListenerService> for Service {
    fn from(service: ListenerService) -> Self {
        match service {
            ListenerService::Submission => Self::Submission,
            ListenerService::Relay => Self::Relay,
        }
    }
}

impl Default for IngressConfig {
    fn default() -> Self {
        Self {
            hostname: "localhost".to_owned(),
            listeners: Vec::new(),
            grpc_listen: None,
            grpc_plaintext: false,
            message_size_max: 26_214_400,
            recipients_max: 1000,
            refusals_max: 1000,
            in_flight_bytes_max: 512 << 20,
            connections_max: 10_000,
            connections_per_network_max: 1_000,
            command_timeout_secs: 300,
            data_timeout_secs: 1800,
            drain_timeout_secs: 30,
            submit_timeout_secs: 5,
            site_timeout_millis: 300,
            message_age_max_secs: 5 * 24 * 60 * 60,
            stream_items_max: 256,
            hide_clients: false,
        }
    }
}

impl IngressConfig {
    /// Returns what is wrong with values that are well-formed, as key and expectation.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if postroad_core::Domain::parse(&self.hostname).is_err() {
            problems.push(("hostname", "expected a host name".to_owned()));
        }
        if self.hostname == "localhost" && self.listen_addresses().any(|address| !address.ip().is_loopback())
        {
            let why = "expected the name that other hosts know this node by: a listener is not on loopback";
            problems.push(("hostname", why.to_owned()));
        }
        if self.listeners.is_empty() && self.grpc_listen.is_none() {
            problems.push(("listeners", "expected a listener here or in `grpc_listen`".to_owned()));
        }
        if self.message_size_max == 0 || self.message_size_max > MESSAGE_SIZE_LIMIT {
            problems.push(("message_size_max", format!("expected 1 to {MESSAGE_SIZE_LIMIT}")));
        }
        if self.in_flight_bytes_max < self.message_size_max {
            problems.push(("in_flight_bytes_max", "expected at least `message_size_max`".to_owned()));
        }
        // RFC 5321 4.5.3.1.8.
        if !(100..=RECIPIENTS_LIMIT).contains(&self.recipients_max) {
            problems.push(("recipients_max", format!("expected 100 to {RECIPIENTS_LIMIT}")));
        }
        for (key, value) in [
            ("refusals_max", u64::from(self.refusals_max)),
            ("connections_max", self.connections_max as u64),
            ("connections_per_network_max", self.connections_per_network_max as u64),
            ("command_timeout_secs", self.command_timeout_secs),
            ("data_timeout_secs", self.data_timeout_secs),
            ("submit_timeout_secs", self.submit_timeout_secs),
            ("message_age_max_secs", self.message_age_max_secs),
            ("stream_items_max", self.stream_items_max as u64),
        ] {
            if value == 0 {
                problems.push((key, "expected at least 1".to_owned()));
            }
        }
        problems
    }

    fn listen_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.iter().map(|listener| listener.listen).chain(self.grpc_listen)
    }

    /// Returns the address where API keys would be sent in the clear over a network without the operator's consent.
    #[must_use]
    pub fn unprotected_grpc(&self, has_certificate: bool) -> Option<SocketAddr> {
        self.grpc_listen
            .filter(|address| !has_certificate && !self.grpc_plaintext && !address.ip().is_loopback())
    }

    /// Writes the host name as A-labels: it goes into replies and header fields.
    pub(crate) fn with_ascii_hostname(self) -> Self {
        match postroad_core::Domain::parse(&self.hostname) {
            Ok(domain) if !self.hostname.is_ascii() => Self { hostname: domain.as_str().to_owned(), ..self },
            _ => self,
        }
    }

    pub(crate) fn submit_timeout(&self) -> Duration {
        Duration::from_secs(self.submit_timeout_secs)
    }

    pub(crate) fn site_timeout(&self) -> Duration {
        Duration::from_millis(self.site_timeout_millis)
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_secs)
    }

    pub(crate) fn message_age_max(&self) -> Duration {
        Duration::from_secs(self.message_age_max_secs)
    }
}

/// What the queue's chunks were made for; nobody sends more by mail.
const MESSAGE_SIZE_LIMIT: u64 = 256 << 20;
/// One log entry holds them all.
const RECIPIENTS_LIMIT: usize = 5000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_without_a_certificate_needs_loopback_or_consent() {
        let at = |ip: [u8; 4], grpc_plaintext| IngressConfig {
            grpc_listen: Some((ip, 50051).into()),
            grpc_plaintext,
            ..IngressConfig::default()
        };
        for (config, has_certificate, unprotected) in [
            (at([192, 0, 2, 1], false), false, true),
            (at([0, 0, 0, 0], false), false, true),
            (at([192, 0, 2, 1], false), true, false),
            (at([192, 0, 2, 1], true), false, false),
            (at([127, 0, 0, 1], false), false, false),
            (IngressConfig::default(), false, false),
        ] {
            assert_eq!(config.unprotected_grpc(has_certificate).is_some(), unprotected, "{config:?}");
        }
    }

    #[test]
    fn every_problem_is_found() {
        let good =
            IngressConfig { grpc_listen: Some(([127, 0, 0, 1], 0).into()), ..IngressConfig::default() };
        assert_eq!(good.problems(), []);
        let exposed =
            IngressConfig { grpc_listen: Some(([192, 0, 2, 1], 0).into()), ..IngressConfig::default() };
        assert_eq!(exposed.problems().iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["hostname"]);
        let named = IngressConfig { hostname: "mail.example.org".to_owned(), ..exposed };
        assert_eq!(named.problems(), []);
        let bad = IngressConfig {
            hostname: "a b".to_owned(),
            grpc_listen: None,
            message_size_max: 0,
            recipients_max: 10,
            connections_max: 0,
            ..good
        };
        let keys: Vec<&str> = bad.problems().iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, ["hostname", "listeners", "message_size_max", "recipients_max", "connections_max"]);
    }
}
