//! The behaviour of the sink: rules for phases of a session, for all mail or for the mail to one domain.

use std::{collections::BTreeMap, path::Path, time::Duration};

use serde::Deserialize;

/// The behaviour of a sink; the default accepts all mail at once and offers the usual extensions.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// The seed for rules with a probability.
    pub seed: u64,
    /// The name in the greeting and in replies to EHLO.
    pub hostname: Box<str>,
    /// Offers PIPELINING.
    pub pipelining: bool,
    /// Offers SMTPUTF8.
    pub smtputf8: bool,
    /// Offers 8BITMIME.
    #[serde(rename = "8bitmime")]
    pub eight_bit_mime: bool,
    /// Offers and enforces SIZE; 0 does neither.
    pub size_max: u64,
    /// Whether and how TLS is offered.
    pub tls: Tls,
    /// Accepts this many messages on a connection, and answers further MAIL with 421; 0 for any number.
    pub messages_per_connection_max: u32,
    /// Rules for phases in which no recipient is known, and for domains without rules.
    pub rules: Vec<Rule>,
    /// Rules and limits for mail to one domain.
    pub domains: BTreeMap<Box<str>, Receiver>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            seed: 1,
            hostname: "sink.test".into(),
            pipelining: true,
            smtputf8: true,
            eight_bit_mime: true,
            size_max: 100 << 20,
            tls: Tls::None,
            messages_per_connection_max: 0,
            rules: Vec::new(),
            domains: BTreeMap::new(),
        }
    }
}

/// Whether and how TLS is offered; the certificate is self-signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// No TLS.
    #[default]
    None,
    /// STARTTLS is offered.
    Starttls,
    /// TLS from the first byte.
    Implicit,
}

/// How mail to one domain is received.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Receiver {
    /// The first rule that applies is used.
    pub rules: Vec<Rule>,
    /// Answers each (client, sender, recipient) with 451 for this long after its first try.
    pub greylist_secs: Option<f64>,
    /// The limits of one client.
    pub limits: Limits,
}

/// The limits of one client address for mail to one domain. Violations are counted.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Concurrent connections with mail to the domain.
    pub connections_max: Option<u32>,
    /// Messages on one connection.
    pub messages_per_connection_max: Option<u32>,
    /// Messages in any window of a given length.
    pub rates: Vec<Rate>,
    /// Refuses violations with 421 or 451, instead of only counting them.
    pub enforce: bool,
}

impl Limits {
    pub(super) fn is_empty(&self) -> bool {
        self.connections_max.is_none() && self.messages_per_connection_max.is_none() && self.rates.is_empty()
    }
}

/// At most this many messages in any window of this length.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Messages.
    pub messages: u64,
    /// The length of the window.
    pub per_secs: f64,
}

/// A point of the session at which a rule can apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Before the greeting.
    Connect,
    /// EHLO or HELO.
    Hello,
    /// STARTTLS.
    Starttls,
    /// MAIL.
    Mail,
    /// RCPT.
    Recipient,
    /// DATA.
    Data,
    /// The end of the content.
    Message,
    /// RSET and NOOP.
    Reset,
    /// QUIT.
    Quit,
}

/// What to do in a phase instead of accepting at once.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The phase in which the rule applies.
    pub phase: Phase,
    /// The probability that it applies: 1 for always.
    #[serde(default = "always")]
    pub probability: f64,
    /// The delay before the reply.
    #[serde(default)]
    pub delay_ms: u64,
    /// The reply, lines separated by `\n`; without it, the normal reply.
    /// A message is accepted unless this is 4xx or 5xx, white space in front of it aside.
    #[serde(default)]
    pub reply: Option<Box<str>>,
    /// Sends the reply byte by byte, with this delay after each.
    #[serde(default)]
    pub byte_delay_ms: u64,
    /// What happens to the connection.
    #[serde(default)]
    pub then: Action,
}

fn always() -> f64 {
    1.0
}

impl Rule {
    /// Makes a rule that always applies in `phase` and replies `reply`.
    #[must_use]
    pub fn reply(phase: Phase, reply: &str) -> Self {
        Self {
            phase,
            probability: 1.0,
            delay_ms: 0,
            reply: Some(reply.into()),
            byte_delay_ms: 0,
            then: Action::GoOn,
        }
    }

    pub(super) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms)
    }
}

/// What happens to the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The session goes on.
    #[default]
    GoOn,
    /// It is closed after the reply.
    Close,
    /// It is closed instead of the reply.
    CloseSilently,
    /// It is reset instead of the reply.
    Reset,
    /// After the reply the sending side is closed, and input is still read.
    HalfClose,
    /// Nothing is sent; the connection stays open until the client closes it.
    Stall,
    /// Bytes that are not a reply are sent instead of it.
    Garbage,
    /// The reply is sent byte for byte, with the line ends and codes that it has.
    Raw,
    /// More replies follow in the same packet, as an attacker on the way injects them.
    Inject,
}

/// Why a script cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The file cannot be read.
    #[error("cannot read the script")]
    Read(#[source] std::io::Error),
    /// The text is not a script.
    #[error("cannot parse the script")]
    Parse(#[source] toml::de::Error),
}

impl Script {
    /// Parses a script in TOML.
    ///
    /// # Errors
    /// The text is not a script.
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        toml::from_str(text).map_err(ScriptError::Parse)
    }

    /// Reads a script from a file.
    ///
    /// # Errors
    /// The file cannot be read, or is not a script.
    pub fn read(path: &Path) -> Result<Self, ScriptError> {
        Self::parse(&std::fs::read_to_string(path).map_err(ScriptError::Read)?)
    }

    /// Adds rules for mail to a domain.
    #[must_use]
    pub fn with_domain(mut self, domain: &str, receiver: Receiver) -> Self {
        self.domains.insert(domain.into(), receiver);
        self
    }

    /// Adds a rule for every session.
    #[must_use]
    pub fn with_rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    pub(super) fn receiver(&self, domain: &str) -> Option<&Receiver> {
        if self.domains.is_empty() {
            return None;
        }
        self.domains.get(domain).or_else(|| self.domains.get(domain.to_ascii_lowercase().as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_from_toml() {
        let script = Script::parse(
            r#"
            seed = 7
            pipelining = false
            8bitmime = false
            tls = "starttls"
            [[rules]]
            phase = "connect"
            delay_ms = 5
            [domains."slow.test"]
            greylist_secs = 0.5
            limits = { connections_max = 2, rates = [{ messages = 10, per_secs = 1.0 }], enforce = true }
            [[domains."slow.test".rules]]
            phase = "message"
            probability = 0.5
            reply = "451 4.7.1 later"
            then = "half-close"
            "#,
        )
        .unwrap();
        assert!(!script.pipelining && !script.eight_bit_mime && script.tls == Tls::Starttls);
        assert_eq!(script.rules[0].delay(), Duration::from_millis(5));
        let slow = script.receiver("SLOW.test").unwrap();
        assert_eq!(slow.rules[0].then, Action::HalfClose);
        assert_eq!(slow.limits.connections_max, Some(2));
        assert!(script.receiver("other.test").is_none());
        assert!(Script::parse("unknown = 1").is_err());
    }
}
