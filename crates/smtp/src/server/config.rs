//! What a listener offers.

use std::time::Duration;

use crate::tolerance::Tolerant;

/// What a listener offers and accepts.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Our name in the greeting and in replies to EHLO.
    pub hostname: Box<str>,
    /// Who may send to whom: submission or relay.
    pub service: Service,
    /// Largest message in bytes, without dot-stuffing; 0 for no limit.
    pub message_size_max: u64,
    /// Most recipients of one transaction; RFC 5321 4.5.3.1.8 requires at least 100.
    pub recipients_max: usize,
    /// Senders, recipients and messages in a row that may be refused to a client with an identity before 421.
    ///
    /// Refusals to other clients count as errors.
    pub refusals_max: u32,
    /// The listener has a certificate: STARTTLS is offered.
    pub tls_available: bool,
    /// Who may deviate from the syntax.
    pub tolerant: Tolerant,
    /// How long the client may take for one command, counted from the end of the previous one.
    pub command_timeout: Duration,
    /// How long the client may take to send a message.
    pub data_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            hostname: "localhost".into(),
            service: Service::Submission,
            message_size_max: 26_214_400,
            recipients_max: 1000,
            refusals_max: 1000,
            tls_available: false,
            tolerant: Tolerant::Known,
            // RFC 5321 4.5.3.2.7.
            command_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(1800),
        }
    }
}

/// Who may use a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// `submission`: clients log in, or are in a trusted network, and may send to any domain (RFC 6409).
    Submission,
    /// `relay`: clients need no login; policy decides on each recipient.
    Relay,
}
