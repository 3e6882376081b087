//! `postroad message`: lists, shows and changes what is in the queue.

mod change;
mod list;
mod trace;

use std::fmt::Write;

use postroad_cluster::CallError;
use postroad_core::{MessageId, Timestamp};
use postroad_proto::queue::{
    Change, ContentRequest, DeliveryState, DeliveryView, GetMessageRequest, MessageView, WaitReason,
};
use serde::Serialize;

use super::{
    Operator, OperatorError, WITHIN, client,
    text::{age, time},
};
use crate::{
    cli::message::{MessageArgs, MessageCommand, MessageGetArgs},
    output::{self, Reader, Screen, Shown, line},
};

/// Runs `postroad message`.
///
/// # Errors
/// The message is not in the queue, the cluster cannot be reached, or not everything was changed.
pub async fn message(command: &MessageCommand) -> anyhow::Result<String> {
    match command {
        MessageCommand::List(args) => list::list(args).await,
        MessageCommand::Get(args) => get(args).await,
        MessageCommand::Raw(args) => raw(args).await,
        MessageCommand::Trace(args) => trace::trace(args).await,
        MessageCommand::Hold(args) => change::change(args, Change::Hold).await,
        MessageCommand::Release(args) => change::change(args, Change::Release).await,
        MessageCommand::Retry(args) => change::change(args, Change::Retry).await,
        MessageCommand::Cancel(args) => change::change(args, Change::Cancel).await,
    }
}

struct Target {
    id: MessageId,
    operator: Operator,
}

impl Target {
    fn new(args: &MessageArgs) -> anyhow::Result<Self> {
        Ok(Self { id: args.id, operator: Operator::connect(&args.target)? })
    }

    async fn view(&self) -> Result<MessageView, OperatorError> {
        let request = GetMessageRequest { message_id: postroad_proto::message_id(self.id), tenant: 0 };
        let call = async |channel| client(channel).get_message(request.clone()).await;
        let response = self.operator.calls().call(self.id.group(), WITHIN, call).await;
        Ok(response.map_err(|error| self.failed("read", error))?.into_inner())
    }

    fn failed(&self, verb: &str, error: CallError) -> OperatorError {
        match self.operator.failed(&format!("{verb} message `{}`", self.id), error) {
            OperatorError::NotFound { action, cause } => {
                let cause = format!("{cause}; the console shows messages with a final outcome");
                OperatorError::NotFound { action, cause }
            }
            other => other,
        }
    }
}

async fn get(args: &MessageGetArgs) -> anyhow::Result<String> {
    let target = Target::new(&args.message)?;
    args.output.output.show(&ShownMessage::of(target.id, &target.view().await?))
}

/// Prints the message as it was accepted, header and body.
async fn raw(args: &MessageArgs) -> anyhow::Result<String> {
    let target = Target::new(args)?;
    let request = ContentRequest { message_id: postroad_proto::message_id(target.id) };
    let call = async |channel| client(channel).content(request.clone()).await;
    let stream = target.operator.calls().call(target.id.group(), WITHIN, call).await;
    let mut parts = stream.map_err(|error| target.failed("read", error))?.into_inner();
    while let Some(part) = parts.message().await? {
        if output::print_bytes(&part.data)? == Reader::Gone {
            break;
        }
    }
    Ok(String::new())
}

/// A message of the queue, and the state of each recipient.
#[derive(Debug, Serialize)]
struct ShownMessage {
    id: String,
    tenant: String,
    /// Empty for the null sender.
    sender: String,
    size_bytes: u64,
    accepted_at: String,
    expires_at: String,
    deliveries: Vec<ShownDelivery>,
}

#[derive(Debug, Serialize)]
struct ShownDelivery {
    recipient: String,
    state: &'static str,
    /// When the next attempt is due, while it is queued or deferred.
    next_try_at: Option<String>,
    /// The word for why it waits, such as `suspended`; empty where it does not wait.
    waits: &'static str,
    /// The same as a sentence.
    waits_for: String,
    site: String,
    pool: String,
    /// What it is being sent from.
    source: Option<String>,
    attempts: u32,
    last_attempt_at: Option<String>,
    /// 0 before a receiver has replied.
    last_code: u32,
    /// What the last attempt ended with; empty before one has ended.
    last_reply: String,
    /// Who holds it, or asked for a change while it is being sent.
    changed_by: Option<String>,
    #[serde(skip)]
    due_at_millis: u64,
}

impl ShownMessage {
    fn of(id: MessageId, view: &MessageView) -> Self {
        let time = |millis| Timestamp::from_millis(millis).to_string();
        Self {
            id: id.to_string(),
            tenant: view.tenant_name.clone(),
            sender: view.sender.clone().unwrap_or_default(),
            size_bytes: view.size_bytes,
            accepted_at: time(view.accepted_at_millis),
            expires_at: time(view.expires_at_millis),
            deliveries: view.deliveries.iter().map(ShownDelivery::of).collect(),
        }
    }
}

impl ShownDelivery {
    fn of(delivery: &DeliveryView) -> Self {
        let waits = matches!(delivery.state(), DeliveryState::Queued | DeliveryState::Deferred);
        let due_at_millis = if waits { delivery.due_at_millis } else { 0 };
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            recipient: delivery.recipient.clone(),
            state: state_name(delivery),
            next_try_at: time(due_at_millis),
            waits: delivery.waits.as_ref().map_or("", |reason| reason.kind().word()),
            waits_for: delivery.waits.as_ref().map(WaitReason::sentence).unwrap_or_default(),
            site: delivery.site.clone(),
            pool: delivery.pool_name.clone(),
            source: some(&delivery.source_name),
            attempts: delivery.attempts,
            last_attempt_at: time(delivery.last_at_millis),
            last_code: delivery.last_code,
            last_reply: delivery.last_response.clone(),
            changed_by: some(&delivery.actor),
            due_at_millis,
        }
    }

    /// The state, and who holds it.
    fn state_words(&self) -> String {
        match &self.changed_by {
            Some(actor) if self.state == "held" => format!("held by {actor}"),
            _ => self.state.to_owned(),
        }
    }

    /// In how long the next attempt is due.
    fn next_try(&self, now: u64) -> String {
        match self.due_at_millis {
            0 => String::new(),
            due if due <= now => "now".to_owned(),
            due => format!("in {}", age(due - now)),
        }
    }

    fn last_reply_text(&self) -> String {
        if self.last_code == 0 {
            self.last_reply.clone()
        } else {
            format!("{} {}", self.last_code, self.last_reply)
        }
    }
}

impl Shown for ShownMessage {
    fn text(&self, _: Screen) -> String {
        let Self { id, tenant, sender, size_bytes, accepted_at, expires_at, deliveries } = self;
        let (tenant, sender) = (line(tenant), line(sender));
        let mut text = format!(
            "{id}  <{sender}>  tenant {tenant}  {size_bytes} bytes  accepted {accepted_at}  expires {expires_at}\n"
        );
        for delivery in deliveries {
            let due = delivery.next_try_at.as_ref().map_or_else(String::new, |due| format!("  due {due}"));
            let (recipient, site) = (line(&delivery.recipient), line(&delivery.site));
            let (state, attempts) = (line(&delivery.state_words()), delivery.attempts);
            let _ = writeln!(text, "  {recipient}  {state}{due}  site {site}  attempts {attempts}");
            // The state says these.
            if !matches!(delivery.waits, "" | "next" | "not_due" | "held") {
                let _ = writeln!(text, "    waits: {}", line(&delivery.waits_for));
            }
            if !delivery.last_reply.is_empty() {
                let _ = writeln!(text, "    {}", line(&delivery.last_reply_text()));
            }
        }
        text
    }
}

fn state_name(delivery: &DeliveryView) -> &'static str {
    delivery.state().known().map_or("unknown", |state| state.as_str())
}
