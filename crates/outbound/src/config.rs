//! What can be set for an outbound node.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use postroad_smtp::client::Timeouts;
use serde::{Deserialize, Serialize};

/// The `[outbound]` section. Every key has a default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutboundConfig {
    /// Where the lock and the incarnation of the process are kept; one directory for one node.
    pub data_directory: PathBuf,
    /// The port that MX hosts are spoken to on: 25, unless in a test.
    pub smtp_port: u16,
    /// Bytes of message content kept in memory; when they are used up, assignments wait and nothing else does.
    /// What waits comes on top: for each ledger group up to 16 frames of less than 2 MiB.
    pub content_bytes_max: usize,
    /// Bytes of content fetched for messages that are too large to travel inside an assignment, on top of the above.
    pub large_content_bytes_max: usize,
    /// Connections a lane that is new, or recovers, begins with.
    pub connections_initial: u32,
    /// How long a connection to one address may take, in seconds.
    pub connect_secs: u64,
    /// Addresses tried in one attempt.
    pub addresses_max: usize,
    /// Sessions begun in one attempt.
    pub sessions_max: usize,
    /// How long a connection is kept for the next message, in seconds.
    pub idle_secs: u64,
    /// The first pause of a lane whose site asks to slow down or cannot be reached, in seconds; it doubles.
    pub suspension_first_secs: u64,
    /// The longest pause of a lane, in seconds.
    pub suspension_max_secs: u64,
    /// A job that could not be started for this long is given back to the queue, in seconds.
    pub wait_max_secs: u64,
    /// How long transactions may go on when the process stops or a source is let go of, in seconds.
    pub drain_secs: u64,
    /// Addresses that lead back to this cluster besides those of its sources: of listeners, proxies and NAT.
    pub own_addresses: Vec<IpAddr>,
    /// Bounds of waiting in each phase of a session.
    pub timeouts: TimeoutConfig,
}

/// The `[outbound.timeouts]` section, in seconds. RFC 5321 4.5.3.2 says what is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutConfig {
    /// For the greeting.
    pub greeting_secs: u64,
    /// For the reply to EHLO or HELO.
    pub hello_secs: u64,
    /// For the reply to STARTTLS, and for the handshake.
    pub start_tls_secs: u64,
    /// For each reply to MAIL and RCPT.
    pub envelope_secs: u64,
    /// For the reply to DATA.
    pub data_secs: u64,
    /// For any progress while the message is written.
    pub write_secs: u64,
    /// For the reply to the final dot: giving up early makes duplicates.
    pub message_secs: u64,
    /// For the reply to RSET.
    pub reset_secs: u64,
    /// For the reply to QUIT.
    pub quit_secs: u64,
}

impl Default for OutboundConfig {
    fn default() -> Self {
        Self {
            data_directory: PathBuf::from("/var/lib/postroad/outbound"),
            smtp_port: 25,
            content_bytes_max: 256 << 20,
            large_content_bytes_max: 256 << 20,
            connections_initial: 5,
            connect_secs: 20,
            addresses_max: 5,
            sessions_max: 2,
            idle_secs: 5,
            suspension_first_secs: 30,
            suspension_max_secs: 600,
            wait_max_secs: 300,
            drain_secs: 20,
            own_addresses: Vec::new(),
            timeouts: TimeoutConfig::default(),
        }
    }
}

impl Default for TimeoutConfig {
    fn default() -> Self {
        let Timeouts { greeting, hello, start_tls, envelope, data, write, message, reset, quit } =
            Timeouts::default();
        Self {
            greeting_secs: greeting.as_secs(),
            hello_secs: hello.as_secs(),
            start_tls_secs: start_tls.as_secs(),
            envelope_secs: envelope.as_secs(),
            data_secs: data.as_secs(),
            write_secs: write.as_secs(),
            message_secs: message.as_secs(),
            reset_secs: reset.as_secs(),
            quit_secs: quit.as_secs(),
        }
    }
}

impl TimeoutConfig {
    /// Returns the bounds as the session takes them.
    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        let seconds = Duration::from_secs;
        Timeouts {
            greeting: seconds(self.greeting_secs),
            hello: seconds(self.hello_secs),
            start_tls: seconds(self.start_tls_secs),
            envelope: seconds(self.envelope_secs),
            data: seconds(self.data_secs),
            write: seconds(self.write_secs),
            message: seconds(self.message_secs),
            reset: seconds(self.reset_secs),
            quit: seconds(self.quit_secs),
        }
    }

    fn all(&self) -> [u64; 9] {
        [
            self.greeting_secs,
            self.hello_secs,
            self.start_tls_secs,
            self.envelope_secs,
            self.data_secs,
            self.write_secs,
            self.message_secs,
            self.reset_secs,
            self.quit_secs,
        ]
    }
}

/// The smallest budget that any frame of assignments fits into.
const CONTENT_BYTES_MIN: usize = 16 << 20;

impl OutboundConfig {
    /// Returns what is wrong with values that are well-formed, as key and expectation.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut check = |key, good: bool, expected: &str| {
            if !good {
                problems.push((key, expected.to_owned()));
            }
        };
        let a_semaphore = CONTENT_BYTES_MIN..=u32::MAX as usize;
        check("data_directory", !self.data_directory.as_os_str().is_empty(), "expected a path");
        check("smtp_port", self.smtp_port != 0, "expected a port");
        let bytes = "expected 16 MiB to 4 GiB";
        check("content_bytes_max", a_semaphore.contains(&self.content_bytes_max), bytes);
        check("large_content_bytes_max", a_semaphore.contains(&self.large_content_bytes_max), bytes);
        let at_least_one = "expected at least 1";
        check("connections_initial", self.connections_initial > 0, at_least_one);
        check("connect_secs", self.connect_secs > 0, at_least_one);
        check("addresses_max", self.addresses_max > 0, at_least_one);
        check("sessions_max", self.sessions_max > 0, at_least_one);
        check("suspension_first_secs", self.suspension_first_secs > 0, at_least_one);
        let longer = self.suspension_max_secs >= self.suspension_first_secs;
        check("suspension_max_secs", longer, "expected at least `suspension_first_secs`");
        check("wait_max_secs", self.wait_max_secs > 0, at_least_one);
        check(
            "timeouts",
            self.timeouts.all().iter().all(|secs| *secs > 0),
            "expected at least 1 second each",
        );
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_sound_and_nothing_may_be_zero() {
        assert!(OutboundConfig::default().problems().is_empty());
        let mut config = OutboundConfig { suspension_max_secs: 1, smtp_port: 0, ..OutboundConfig::default() };
        config.timeouts.message_secs = 0;
        let keys: Vec<&str> = config.problems().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["smtp_port", "suspension_max_secs", "timeouts"]);
    }
}
