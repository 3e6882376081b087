//! The command line of `postroad message`.

use std::num::NonZeroUsize;

use clap::{Args, Subcommand, ValueEnum};
use postroad_core::{DurationText, MessageId};
use postroad_proto::queue::DeliveryId;
use postroad_settings::HostPort;

use super::TargetArgs;
use crate::output::OutputArgs;

/// What to do with a message.
#[derive(Debug, Subcommand)]
pub enum MessageCommand {
    /// List deliveries that have no final outcome, oldest first
    List(MessageListArgs),
    /// Show the state of each recipient
    Get(MessageGetArgs),
    /// Print the message as it was accepted, header and body
    Raw(MessageArgs),
    /// Show everything that happened to a message, also after its end: from the history of the control node
    Trace(MessageTraceArgs),
    /// Hold deliveries that have no final outcome: no attempt until released
    Hold(MessageChangeArgs),
    /// Release held deliveries: the next attempt is due at once
    Release(MessageChangeArgs),
    /// Retry queued and deferred deliveries now, also where their lane waits; held ones need `release`
    Retry(MessageChangeArgs),
    /// Cancel deliveries that have no final outcome
    Cancel(MessageChangeArgs),
}

/// Which deliveries; several flags select those that all of them select.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Which deliveries")]
pub struct SelectionArgs {
    /// To this site: the MX hosts of the receiver, or its domain, as `queue list` shows it
    #[arg(long, value_name = "SITE")]
    pub site: Option<String>,
    /// Of this tenant
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// With this envelope sender; `<>` is the null sender
    #[arg(long, value_name = "ADDRESS", value_parser = crate::operator::parse_sender)]
    pub sender: Option<String>,
    /// With an envelope sender in this domain
    #[arg(long, value_name = "DOMAIN", value_parser = crate::operator::parse_sender_domain)]
    pub sender_domain: Option<String>,
    /// To this recipient
    #[arg(long, value_name = "ADDRESS", value_parser = crate::operator::parse_mailbox)]
    pub recipient: Option<String>,
    /// In this state; may be repeated
    #[arg(long = "state", value_name = "STATE", value_delimiter = ',')]
    pub states: Vec<OpenState>,
    /// Of messages that were accepted longer ago, such as `30m` or `2d`
    #[arg(long, value_name = "AGE", value_parser = <DurationText as std::str::FromStr>::from_str)]
    pub older_than: Option<DurationText>,
    /// Sent from this pool
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
    /// Being sent from this source
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
}

/// A state without a final outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OpenState {
    /// Waiting for the first attempt.
    Queued,
    /// Waiting for another attempt.
    Deferred,
    /// With an outbound node.
    Sending,
    /// Kept from being sent until released.
    Held,
}

/// Flags of `message list`.
#[derive(Args, Debug)]
pub struct MessageListArgs {
    /// Show as many deliveries
    #[arg(long, value_name = "N", default_value = "100", value_parser = list_limit)]
    pub limit: NonZeroUsize,
    /// Go on behind this delivery: what the last list ended with
    #[arg(long, value_name = "CURSOR")]
    pub after: Option<Cursor>,
    /// How it is shown
    #[command(flatten)]
    pub output: OutputArgs,
    /// Which deliveries
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Lists are kept in memory and sorted.
fn list_limit(text: &str) -> Result<NonZeroUsize, String> {
    const LIMIT_MAX: usize = 100_000;
    let limit = text.parse().ok().filter(|limit: &NonZeroUsize| limit.get() <= LIMIT_MAX);
    limit.ok_or_else(|| format!("expected a number from 1 to {LIMIT_MAX}"))
}

/// A place in a list of deliveries: the message and the recipient's position in its envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The message.
    pub message: MessageId,
    /// The recipient.
    pub recipient: u32,
}

impl Cursor {
    /// Returns where the list goes on.
    pub(crate) fn next(&self) -> DeliveryId {
        let message_id = postroad_proto::message_id(self.message);
        DeliveryId { message_id, recipient: self.recipient.saturating_add(1) }
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.message, self.recipient)
    }
}

impl std::str::FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let parse = || {
            let (message, recipient) = text.trim().split_once('/')?;
            Some(Self { message: message.parse().ok()?, recipient: recipient.parse().ok()? })
        };
        parse().ok_or("expected what the last list ended with, such as `01M85FM9W0000G000000000007/0`")
    }
}

/// Reads a message id as people copy it: from the line of a reply, with its CR or blanks.
fn message_id(text: &str) -> Result<MessageId, String> {
    text.trim().parse().map_err(|error: <MessageId as std::str::FromStr>::Err| error.to_string())
}

/// Flags of the commands that change deliveries.
#[derive(Args, Debug)]
pub struct MessageChangeArgs {
    /// Message ids, from the 250 reply or the gRPC response: every recipient of each
    #[arg(value_name = "ID", value_parser = message_id, conflicts_with_all = ["site", "tenant", "sender", "sender_domain", "recipient", "states", "older_than", "pool", "source", "all"])]
    pub ids: Vec<MessageId>,
    /// Every delivery in the queue, if no flag selects some
    #[arg(long)]
    pub all: bool,
    /// Do not ask before deliveries that flags select are changed
    #[arg(long)]
    pub yes: bool,
    /// Which deliveries
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Flags of `message get`.
#[derive(Args, Debug)]
pub struct MessageGetArgs {
    /// How it is shown
    #[command(flatten)]
    pub output: OutputArgs,
    /// Which message
    #[command(flatten)]
    pub message: MessageArgs,
}

/// Flags of `message trace`.
#[derive(Args, Debug)]
pub struct MessageTraceArgs {
    /// The message id, from the 250 reply or the gRPC response
    #[arg(value_parser = message_id)]
    pub id: MessageId,
    /// The console of a control node (`http.listen`)
    #[arg(long, value_name = "HOST:PORT", env = "POSTROAD_HISTORY", default_value = "127.0.0.1:8080")]
    pub history: HostPort,
    /// How it is shown
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Which message.
#[derive(Args, Debug)]
pub struct MessageArgs {
    /// The message id, from the 250 reply or the gRPC response
    #[arg(value_parser = message_id)]
    pub id: MessageId,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_may_have_white_space_around_it() {
        let id = "01M85FM9W0000G000000000007";
        for copied in [id.to_owned(), format!("{id}\r\n"), format!("  {id}\t")] {
            assert_eq!(message_id(&copied), Ok(id.parse().unwrap()), "{copied:?}");
            assert!(format!("{}/0\r", copied.trim()).parse::<Cursor>().is_ok());
        }
        assert!(message_id("01M85FM9W0000G 000000000007").is_err());
    }
}
