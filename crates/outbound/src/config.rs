//! The settings of an outbound node.

use std::{net::IpAddr, time::Duration};

use postroad_core::ByteSize;
use postroad_settings::{Rules, require, settings};
use postroad_smtp::client::Timeouts;

settings! {
    /// How an outbound node delivers mail.
    pub struct OutboundConfig {
        /// The port that MX hosts are contacted on; 25 unless in a test.
        smtp_port: u16 = 25, within 1..=u16::MAX;
        /// Message content in memory; at the limit assignments wait.
        /// For each ledger group up to 32 MiB of waiting assignments come on top.
        content_bytes_max: ByteSize = ByteSize::mib(256), within ByteSize::mib(16)..=ByteSize::mib(4095);
        /// Content in memory of messages that are too large to travel inside an assignment, on top of the above.
        large_content_bytes_max: ByteSize = ByteSize::mib(256), within ByteSize::mib(16)..=ByteSize::mib(4095);
        /// Memory for the conversion of messages of more than 256 KiB to 7-bit, for receivers without 8BITMIME, on top of
        /// the above.
        /// A message that waits for it for a minute is returned to the queue.
        conversion_bytes_max: ByteSize = ByteSize::mib(256), within ByteSize::mib(16)..=ByteSize::mib(4095);
        /// Connections of a lane that is new or recovers from a pause.
        connections_initial: u32 = 5, within 1..=1000;
        /// How long connecting to one address may take.
        connect_timeout: Duration = Duration::from_secs(20), within Duration::from_millis(100)..=Duration::from_mins(5);
        /// Addresses tried in one attempt.
        addresses_max: usize = 5, within 1..=100;
        /// Addresses with which SMTP sessions are opened in one attempt; a second session without TLS does not count.
        sessions_max: usize = 2, within 1..=100;
        /// How long an idle connection is kept for the next message.
        idle_timeout: Duration = Duration::from_secs(5), within Duration::ZERO..=Duration::from_mins(5);
        /// The first pause of a lane whose receiver asks to slow down or cannot be reached; every further pause is
        /// twice as long.
        pause_first: Duration = Duration::from_secs(30), within Duration::from_millis(100)..=Duration::from_hours(24);
        /// The longest pause of a lane.
        pause_max: Duration = Duration::from_mins(10), within Duration::from_millis(100)..=Duration::from_hours(24);
        /// A delivery that could not start for this long is returned to the queue.
        lane_wait_timeout: Duration = Duration::from_mins(5), within Duration::from_secs(1)..=Duration::from_hours(1);
        /// How long transactions may continue when the node stops or releases a source.
        drain_timeout: Duration = Duration::from_secs(20), within Duration::ZERO..=Duration::from_mins(10);
        /// Addresses that lead back to this cluster, besides those of its sources: listeners, proxies, NAT.
        own_addresses: Vec<IpAddr> = Vec::new();
        /// How long each step of an SMTP session may take.
        timeouts: TimeoutConfig;
    }
    rules Self::rules;
}

settings! {
    /// How long each step of an SMTP session may take; RFC 5321 4.5.3.2 gives values that are safe.
    pub struct TimeoutConfig {
        /// For the greeting.
        greeting: Duration = Timeouts::default().greeting, within SHORTEST..=LONGEST;
        /// For the reply to EHLO or HELO.
        hello: Duration = Timeouts::default().hello, within SHORTEST..=LONGEST;
        /// For the reply to STARTTLS, and for the TLS handshake.
        start_tls: Duration = Timeouts::default().start_tls, within SHORTEST..=LONGEST;
        /// For each reply to MAIL and RCPT.
        envelope: Duration = Timeouts::default().envelope, within SHORTEST..=LONGEST;
        /// For the reply to DATA.
        data: Duration = Timeouts::default().data, within SHORTEST..=LONGEST;
        /// For any progress while the message is written.
        write: Duration = Timeouts::default().write, within SHORTEST..=LONGEST;
        /// For the reply to the final dot.
        /// Giving up early makes duplicates.
        message: Duration = Timeouts::default().message, within SHORTEST..=LONGEST;
        /// For the reply to RSET.
        reset: Duration = Timeouts::default().reset, within SHORTEST..=LONGEST;
        /// For the reply to QUIT.
        quit: Duration = Timeouts::default().quit, within SHORTEST..=LONGEST;
    }
}

const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_hours(1);

impl OutboundConfig {
    fn rules(&self, rules: &mut Rules<'_, '_>) {
        require!(rules, self.pause_max, self.pause_first;
            self.pause_max >= self.pause_first, "expected at least `pause_first`");
    }
}

impl From<&TimeoutConfig> for Timeouts {
    fn from(config: &TimeoutConfig) -> Self {
        let TimeoutConfig { greeting, hello, start_tls, envelope, data, write, message, reset, quit } =
            *config;
        Self { greeting, hello, start_tls, envelope, data, write, message, reset, quit }
    }
}
