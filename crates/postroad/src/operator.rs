//! The operator's commands: `postroad apply` and `postroad message`.

use std::{fmt::Write, io::Read, path::Path, time::Duration};

use anyhow::Context;
use postroad_cluster::{Applied, ApplyOptions, DirectoryClient, Endpoints, LeaderCalls, LeaderWatch};
use postroad_core::{MessageId, NodeId, Timestamp};
use postroad_net::{Expect, NodeTls, Role, Transport};
use postroad_proto::queue::{
    Change, ChangeMessageRequest, ChangeResult, DeliveryState, DeliveryView, GetMessageRequest, MessageView,
    queue_service_client::QueueServiceClient,
};

use crate::{
    cli::{ApplyArgs, MessageArgs, MessageCommand, TargetArgs},
    config::Loader,
    policy::{Changes, Policy},
    sections::{ClusterSection, QueueNode},
};

/// Where `postroad dev` listens for operators.
pub const DEV_ADDRESS: &str = "127.0.0.1:7070";

/// How long the cluster may take to respond.
const WITHIN: Duration = Duration::from_secs(10);

/// Applies changes.
///
/// # Errors
/// The cluster cannot be reached, or refuses the changes.
pub async fn apply(
    endpoints: &Endpoints,
    changes: &Changes,
    options: ApplyOptions,
) -> anyhow::Result<Applied> {
    let leaders = LeaderWatch::start(endpoints);
    let directory = DirectoryClient::new(endpoints, &leaders.subscribe());
    Ok(directory.apply(&changes.puts, &changes.removals, options, WITHIN).await?)
}

/// Runs `postroad apply`.
///
/// # Errors
/// The policy file is invalid, or the cluster cannot be reached or refuses the changes.
pub async fn apply_file(args: &ApplyArgs) -> anyhow::Result<String> {
    let text =
        read(&args.file).with_context(|| format!("cannot read the policy file `{}`", args.file.display()))?;
    let policy = Policy::parse(&text).with_context(|| format!("`{}`", args.file.display()))?;
    let changes = policy.changes().with_context(|| format!("`{}`", args.file.display()))?;
    let options = ApplyOptions { dry_run: args.dry_run, ignore_missing: args.ignore_missing };
    let applied = apply(&endpoints(&args.target)?, &changes, options).await?;
    let Applied { revision, changed, warnings } = applied;
    let verb = if args.dry_run { "would change" } else { "changed" };
    let items = if changed == 1 { "item" } else { "items" };
    let warnings: String = warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    Ok(format!("{warnings}{verb} {changed} {items}; the directory is at revision {revision}\n"))
}

fn read(file: &Path) -> std::io::Result<String> {
    if file != Path::new("-") {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

fn endpoints(target: &TargetArgs) -> anyhow::Result<Endpoints> {
    let Some(config) = &target.config else {
        let channel = Transport::Plain.channel(&target.dev.to_string(), Expect::any(Role::Queue));
        return Ok(Endpoints::from([(NodeId(1), channel)]));
    };
    let mut loader = Loader::read(config)?;
    let cluster: ClusterSection = loader.section("cluster");
    loader.finish()?;
    Ok(cluster.endpoints(&Transport::Mutual(cluster.node_tls()?)))
}

impl ClusterSection {
    /// Loads this node's certificate and key.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub fn node_tls(&self) -> anyhow::Result<NodeTls> {
        let files = (&self.authority, &self.certificate, &self.key);
        Ok(NodeTls::from_files(files.0, files.1, files.2)?)
    }

    /// Returns channels to every queue node; they connect on first use.
    #[must_use]
    pub fn endpoints(&self, transport: &Transport) -> Endpoints {
        endpoints_of(&self.queue, transport)
    }
}

/// Returns channels to queue nodes; they connect on first use.
#[must_use]
pub fn endpoints_of(queue: &[QueueNode], transport: &Transport) -> Endpoints {
    let channel = |queue: &QueueNode| {
        let node = NodeId(queue.node);
        (node, transport.channel(&queue.address, Expect::node(Role::Queue, node)))
    };
    queue.iter().map(channel).collect()
}

/// Runs `postroad message`.
///
/// # Errors
/// The message is not in the queue, or the cluster cannot be reached.
pub async fn message(command: &MessageCommand) -> anyhow::Result<String> {
    match command {
        MessageCommand::Get(args) => get(args).await,
        MessageCommand::Hold(args) => change(args, Change::Hold).await,
        MessageCommand::Release(args) => change(args, Change::Release).await,
        MessageCommand::Retry(args) => change(args, Change::Retry).await,
        MessageCommand::Cancel(args) => change(args, Change::Cancel).await,
    }
}

struct Target {
    id: MessageId,
    calls: LeaderCalls,
    _leaders: LeaderWatch,
}

impl Target {
    fn new(args: &MessageArgs) -> anyhow::Result<Self> {
        let id = args.id.parse().with_context(|| format!("`{}`", args.id))?;
        let endpoints = endpoints(&args.target)?;
        let leaders = LeaderWatch::start(&endpoints);
        Ok(Self { id, calls: LeaderCalls::new(&endpoints, &leaders.subscribe()), _leaders: leaders })
    }

    async fn view(&self) -> anyhow::Result<MessageView> {
        let request = GetMessageRequest { message_id: postroad_proto::message_id(self.id), tenant: 0 };
        let call = async |channel| QueueServiceClient::new(channel).get_message(request.clone()).await;
        let response = self.calls.call(self.id.group(), WITHIN, call).await;
        Ok(response
            .context("this message is not in the queue; the console shows messages with a final outcome")?
            .into_inner())
    }
}

async fn get(args: &MessageArgs) -> anyhow::Result<String> {
    let target = Target::new(args)?;
    Ok(describe(target.id, &target.view().await?))
}

fn describe(id: MessageId, view: &MessageView) -> String {
    let mut text = String::new();
    let sender = view.sender.as_deref().unwrap_or_default();
    let accepted = Timestamp::from_millis(view.accepted_at_millis);
    let expires = Timestamp::from_millis(view.expires_at_millis);
    let size = view.size_bytes;
    let _ = writeln!(text, "{id}  <{sender}>  {size} bytes  accepted {accepted}  expires {expires}");
    for delivery in &view.deliveries {
        let state = state_name(delivery);
        let due = match delivery.state() {
            DeliveryState::Queued | DeliveryState::Deferred => {
                format!("  due {}", Timestamp::from_millis(delivery.due_at_millis))
            }
            _ => String::new(),
        };
        let (recipient, site, attempts) = (&delivery.recipient, &delivery.site, delivery.attempts);
        let _ = writeln!(text, "  {recipient}  {state}{due}  site {site}  attempts {attempts}");
        if !delivery.last_response.is_empty() {
            let _ = writeln!(text, "    {}", delivery.last_response);
        }
    }
    text
}

fn state_name(delivery: &DeliveryView) -> &'static str {
    match delivery.state() {
        DeliveryState::Unspecified => "unknown",
        DeliveryState::Queued => "queued",
        DeliveryState::Deferred => "deferred",
        DeliveryState::Sending => "sending",
        DeliveryState::Held => "held",
        DeliveryState::Delivered => "delivered",
        DeliveryState::Bounced => "bounced",
        DeliveryState::Expired => "expired",
        DeliveryState::Cancelled => "cancelled",
        DeliveryState::Suppressed => "suppressed",
    }
}

async fn change(args: &MessageArgs, change: Change) -> anyhow::Result<String> {
    let target = Target::new(args)?;
    // The response to a change names no recipient: their addresses and states are read first.
    let before = target.view().await?;
    let message_id = postroad_proto::message_id(target.id);
    let request = ChangeMessageRequest { message_id, change: change.into(), tenant: 0 };
    let call = async |channel| QueueServiceClient::new(channel).change_message(request.clone()).await;
    let response = target.calls.call(target.id.group(), WITHIN, call).await;
    let response = response.context("this message is not in the queue")?.into_inner();
    let line = |(delivery, result): (&DeliveryView, ChangeResult)| {
        format!("{}: {}\n", delivery.recipient, result_text(change, delivery, result))
    };
    Ok(before.deliveries.iter().zip(response.results()).map(line).collect())
}

fn result_text(change: Change, before: &DeliveryView, result: ChangeResult) -> String {
    let changed = match change {
        Change::Hold => "held",
        Change::Release => "released",
        Change::Retry => "due now",
        Change::Cancel => "cancelled",
        Change::Unspecified => "changed",
    };
    match (result, before.state()) {
        (ChangeResult::Unspecified, _) => "unknown result: use the same version as the cluster".to_owned(),
        (ChangeResult::Done, _) => changed.to_owned(),
        (ChangeResult::InFlight, _) if change == Change::Retry => {
            "sending: an attempt is under way".to_owned()
        }
        (ChangeResult::InFlight, _) => format!("sending; {changed} unless this attempt is final"),
        (ChangeResult::Unchanged, _) if change == Change::Release => {
            "not held; `postroad message retry` tries it now".to_owned()
        }
        (ChangeResult::Unchanged, DeliveryState::Held) if change == Change::Retry => {
            "held; `postroad message release` makes it due now".to_owned()
        }
        (ChangeResult::Unchanged, _) => format!("already {changed}"),
        (
            ChangeResult::AlreadyEnded,
            DeliveryState::Unspecified
            | DeliveryState::Queued
            | DeliveryState::Sending
            | DeliveryState::Deferred
            | DeliveryState::Held,
        ) => "final outcome since this command began; see the console".to_owned(),
        (ChangeResult::AlreadyEnded, _) => format!("already {}", state_name(before)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_of_a_change_names_the_state() {
        let check = |change, state: DeliveryState, result, expected: &str| {
            let before = DeliveryView { state: state.into(), ..DeliveryView::default() };
            assert_eq!(result_text(change, &before, result), expected);
        };
        check(Change::Hold, DeliveryState::Queued, ChangeResult::Done, "held");
        check(Change::Hold, DeliveryState::Held, ChangeResult::Unchanged, "already held");
        check(
            Change::Release,
            DeliveryState::Deferred,
            ChangeResult::Unchanged,
            "not held; `postroad message retry` tries it now",
        );
        check(Change::Retry, DeliveryState::Deferred, ChangeResult::Done, "due now");
        check(Change::Retry, DeliveryState::Deferred, ChangeResult::Unchanged, "already due now");
        check(
            Change::Retry,
            DeliveryState::Held,
            ChangeResult::Unchanged,
            "held; `postroad message release` makes it due now",
        );
        check(
            Change::Retry,
            DeliveryState::Sending,
            ChangeResult::InFlight,
            "sending: an attempt is under way",
        );
        check(Change::Cancel, DeliveryState::Delivered, ChangeResult::AlreadyEnded, "already delivered");
        check(
            Change::Cancel,
            DeliveryState::Sending,
            ChangeResult::InFlight,
            "sending; cancelled unless this attempt is final",
        );
    }
}
