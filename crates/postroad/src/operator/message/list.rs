//! `postroad message list`: deliveries that have not ended, oldest message first.

use futures::future::try_join_all;
use postroad_cluster::CallError;
use postroad_core::{GroupId, MessageId};
use postroad_proto::queue::{self as wire, ListedDelivery};
use serde::Serialize;

use super::ShownDelivery;
use crate::{
    cli::message::{Cursor, MessageListArgs},
    operator::{
        Operator,
        selection::Pages,
        text::{age, time},
    },
    output::{Column, Row, Screen, Shown, number, table, text},
};

pub(super) async fn list(args: &MessageListArgs) -> anyhow::Result<String> {
    let operator = Operator::connect(&args.target)?;
    let action = "list messages";
    let groups = operator.ledger_groups(action).await?;
    let from = args.after.as_ref().map(Cursor::next);
    let limit = args.limit.get();
    let of_group = |group: &GroupId| first(&operator, *group, args, from.clone(), limit);
    let found = try_join_all(groups.iter().map(of_group)).await;
    let found = found.map_err(|error| operator.failed(action, error))?;
    let mut deliveries: Vec<Listed> = found.into_iter().flatten().filter_map(Listed::of).collect();
    // Ids begin with the time, so the order is that of acceptance over all groups.
    deliveries.sort_by_key(|listed| (listed.message, listed.recipient_number));
    let is_cut = deliveries.len() > limit;
    deliveries.truncate(limit);
    let next = deliveries
        .last()
        .filter(|_| is_cut)
        .map(|last| Cursor { message: last.message, recipient: last.recipient_number }.to_string());
    args.output.output.show(&List { deliveries, next })
}

/// One more than the limit, where there are, so that the caller sees whether that was all.
async fn first(
    operator: &Operator,
    group: GroupId,
    args: &MessageListArgs,
    from: Option<wire::DeliveryId>,
    limit: usize,
) -> Result<Vec<ListedDelivery>, CallError> {
    let mut pages = Pages::new(operator, group, args.selection.wire(&[]), from);
    let mut found = Vec::new();
    while found.len() <= limit
        && let Some(page) = pages.next().await?
    {
        found.extend(page);
    }
    found.truncate(limit + 1);
    Ok(found)
}

/// Deliveries that were selected.
#[derive(Debug, Serialize)]
struct List {
    deliveries: Vec<Listed>,
    /// What `--after` takes for the next ones; none when these are the last.
    next: Option<String>,
}

/// One delivery and its message.
#[derive(Debug, Serialize)]
struct Listed {
    id: String,
    /// The recipient's position in the envelope.
    recipient_number: u32,
    tenant: String,
    /// Empty for the null sender.
    sender: String,
    size_bytes: u64,
    accepted_at: Option<String>,
    expires_at: Option<String>,
    #[serde(flatten)]
    delivery: ShownDelivery,
    #[serde(skip)]
    message: MessageId,
    #[serde(skip)]
    accepted_at_millis: u64,
}

impl Listed {
    /// `None` for what no version of ours sends.
    fn of(listed: ListedDelivery) -> Option<Self> {
        let id = listed.id?;
        let message = postroad_proto::parse_message_id(&id.message_id).ok()?;
        Some(Self {
            id: message.to_string(),
            recipient_number: id.recipient,
            tenant: listed.tenant,
            sender: listed.sender,
            size_bytes: listed.size_bytes,
            accepted_at: time(listed.accepted_at_millis),
            expires_at: time(listed.expires_at_millis),
            delivery: ShownDelivery::of(&listed.delivery?),
            message,
            accepted_at_millis: listed.accepted_at_millis,
        })
    }
}

impl Shown for List {
    fn text(&self, screen: Screen) -> String {
        let mut text = table(&self.deliveries, screen, "no delivery is selected");
        if let Some(next) = &self.next {
            text += &format!("\nthere are more: --after {next}\n");
        }
        text
    }
}

impl Row for Listed {
    const COLUMNS: &'static [Column] = &[
        text("ID"),
        text("STATE"),
        number("AGE"),
        number("NEXT TRY"),
        number("ATTEMPTS"),
        text("TENANT"),
        text("SENDER"),
        text("RECIPIENT"),
        text("SITE"),
        text("LAST REPLY"),
    ];

    fn cells(&self) -> Vec<String> {
        let now = postroad_env::wall().as_millis();
        let delivery = &self.delivery;
        let sender = if self.sender.is_empty() { "<>".to_owned() } else { self.sender.clone() };
        vec![
            self.id.clone(),
            delivery.state_words(),
            age(now.saturating_sub(self.accepted_at_millis)),
            delivery.next_try(now),
            delivery.attempts.to_string(),
            self.tenant.clone(),
            sender,
            delivery.recipient.clone(),
            delivery.site.clone(),
            delivery.last_reply_text(),
        ]
    }
}
