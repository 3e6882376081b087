//! The settings of an ingress node.

use std::{net::SocketAddr, time::Duration};

use postroad_core::{ByteSize, Domain};
use postroad_settings::{Rules, choices, require, settings};
use postroad_smtp::server::Service;

settings! {
    /// How an ingress node accepts mail.
    pub struct IngressConfig {
        /// The public name of the node: in greetings, in `Received` and in the `Message-ID` of messages without one.
        hostname: Domain;
        /// Where SMTP is served.
        listeners: Vec<SmtpListener> = Vec::new();
        /// Where gRPC is served.
        /// Left out, it is not.
        grpc_listen: Option<SocketAddr>;
        /// Serves gRPC without TLS, API keys included: for where a proxy terminates TLS.
        /// Without a certificate it is needed unless `grpc_listen` is on loopback.
        grpc_plaintext: bool = false;
        /// Refuses over gRPC what a strict reading of the standards forbids: the line of an mbox file before the header,
        /// and field names with a space.
        grpc_strict_syntax: bool = false;
        /// The largest message.
        /// A tenant may have a lower limit.
        message_size_max: ByteSize = ByteSize::mib(25), within ByteSize::kib(1)..=ByteSize::mib(256);
        /// Recipients of one message.
        recipients_max: usize = 1000, within 100..=5000;
        /// Refused senders, recipients and messages in a row after which an authenticated client gets 421.
        /// For other clients it is 20.
        refusals_max: u32 = 1000, within 1..=1_000_000;
        /// Messages in memory that wait for their commit, in bytes.
        /// At the limit clients get a temporary error.
        in_flight_bytes_max: ByteSize = ByteSize::mib(512), within ByteSize::mib(1)..=ByteSize::gib(64);
        /// SMTP connections at the same time, per listener.
        connections_max: usize = 10_000, within 1..=1_000_000;
        /// SMTP connections at the same time from one network: an IPv4 address, or an IPv6 /64.
        connections_per_network_max: usize = 1000, within 1..=1_000_000;
        /// How long the greeting is held back: a client that sends before it is disconnected.
        /// With `0s`, only a client that has already sent is.
        greeting_delay: Duration = Duration::ZERO, within Duration::ZERO..=Duration::from_mins(1);
        /// How long the TLS handshake of an SMTP client may take.
        handshake_timeout: Duration = Duration::from_secs(30), within Duration::from_secs(1)..=Duration::from_mins(10);
        /// How long an SMTP client may take for one command.
        /// RFC 5321 4.5.3.2.7 asks for five minutes.
        command_timeout: Duration = Duration::from_mins(5), within Duration::from_secs(1)..=Duration::from_hours(1);
        /// How long an SMTP client may take for one message.
        data_timeout: Duration = Duration::from_mins(30), within Duration::from_secs(1)..=Duration::from_hours(24);
        /// How long clients that are sending may continue when the node stops.
        drain_timeout: Duration = Duration::from_secs(30), within Duration::ZERO..=Duration::from_mins(10);
        /// How long a message may wait for the queue before its client gets a temporary error.
        submit_timeout: Duration = Duration::from_secs(5), within Duration::from_millis(100)..=Duration::from_mins(10);
        /// Messages that may wait for the queue, per ledger group.
        submit_waiting_max: usize = 10_000, within 1..=1_000_000;
        /// Messages sent to the queue in one batch.
        submit_batch_max: usize = 256, within 1..=10_000;
        /// Content sent to the queue in one batch; a larger message goes alone.
        submit_batch_bytes_max: ByteSize = ByteSize::mib(1), within ByteSize::kib(64)..=ByteSize::mib(4);
        /// How long a message may wait for the MX lookup of its recipients' domains.
        /// After that a domain is its own site.
        site_timeout: Duration = Duration::from_millis(300), within Duration::ZERO..=Duration::from_secs(30);
        /// Messages of one gRPC stream that may wait for their commit.
        stream_items_max: usize = 256, within 1..=100_000;
        /// Leaves name and address of authenticated clients out of `Received`.
        hide_clients: bool = false;
    }
    rules Self::rules;
}

impl IngressConfig {
    fn rules(&self, rules: &mut Rules<'_, '_>) {
        let (room, largest) = (self.in_flight_bytes_max, self.message_size_max);
        require!(rules, self.in_flight_bytes_max, self.message_size_max;
            room >= largest, "expected at least `message_size_max` ({largest})");
        let mut addresses: Vec<SocketAddr> = self.listeners.iter().map(|listener| listener.listen).collect();
        addresses.extend(self.grpc_listen);
        addresses.sort_unstable();
        // Port 0 is any free one.
        for pair in addresses.windows(2).filter(|pair| pair[0].port() != 0) {
            require!(rules, self.listeners, self.grpc_listen; pair[0] != pair[1], "{} is listed twice", pair[0]);
        }
        require!(rules, self.listeners, self.grpc_listen;
            !self.listeners.is_empty() || self.grpc_listen.is_some(), "expected a listener here or in `grpc_listen`");
        let exposed = self.listen_addresses().any(|address| !address.ip().is_loopback());
        require!(rules, self.hostname, self.listeners, self.grpc_listen;
            !exposed || self.hostname.as_str() != "localhost",
            "expected the name that other hosts know this node by: a listener is not on loopback");
    }

    fn listen_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.iter().map(|listener| listener.listen).chain(self.grpc_listen)
    }

    /// Returns the address where API keys would cross a network in the clear without the operator's consent.
    #[must_use]
    pub fn unprotected_grpc(&self, has_certificate: bool) -> Option<SocketAddr> {
        self.grpc_listen
            .filter(|address| !has_certificate && !self.grpc_plaintext && !address.ip().is_loopback())
    }
}

settings! {
    /// One address where SMTP is served.
    pub struct SmtpListener {
        /// Address and port.
        listen: SocketAddr;
        /// Which clients it is for.
        service: ListenerService = ListenerService::Submission;
        /// TLS starts with the connection, as on port 465, instead of with STARTTLS.
        implicit_tls: bool = false;
        /// Refuses every deviation from the syntax, of clients that logged in too.
        strict_syntax: bool = false;
    }
}

choices! {
    /// Which clients a listener is for.
    pub enum ListenerService {
        /// clients of this organisation, which log in or come from a network that a credential names
        Submission = "submission",
        /// other mail servers; mail is not relayed for strangers
        Relay = "relay",
    }
}

impl From<ListenerService> for Service {
    fn from(service: ListenerService) -> Self {
        match service {
            ListenerService::Submission => Self::Submission,
            ListenerService::Relay => Self::Relay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_without_a_certificate_needs_loopback_or_consent() {
        let check = |ip: [u8; 4], grpc_plaintext, has_certificate, unprotected| {
            let hostname = Domain::parse("mail.example.org").unwrap();
            let config = IngressConfig {
                grpc_listen: Some((ip, 50051).into()),
                grpc_plaintext,
                hostname,
                ..IngressConfig::default()
            };
            assert_eq!(config.unprotected_grpc(has_certificate).is_some(), unprotected, "{config:?}");
        };
        check([192, 0, 2, 1], false, false, true);
        check([0, 0, 0, 0], false, false, true);
        check([192, 0, 2, 1], false, true, false);
        check([192, 0, 2, 1], true, false, false);
        check([127, 0, 0, 1], false, false, false);
    }
}
