//! What an operator asks the queue at night: how much waits for whom, which messages, and changes of many at once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use postroad_cluster::CallError;
use postroad_core::{MessageId, OutcomeKind};
use postroad_proto::{
    message_id,
    queue::{
        self as wire, Change, ChangeDeliveriesRequest, ChangeDeliveriesResponse, ChangeResult, DeliveryState,
        GroupBy, ListDeliveriesRequest, ListDeliveriesResponse, MessageRecipients, QueueDepth, Selection,
        SummarizeQueueRequest, SummarizeQueueResponse, WaitKind, event::Kind,
    },
};
use support::{
    Cluster, GROUP, PATIENCE, client,
    outbound::{Outbound, attempts},
};
use tonic::Code;

/// Submits a message from a sender to recipients, each with its site.
async fn accept(cluster: &Cluster, sender: &str, recipients: &[(&str, &str)]) -> MessageId {
    let (id, mut submission) = cluster.message("content");
    let recipient = |(address, site): &(&str, &str)| wire::Recipient {
        address: (*address).to_owned(),
        site: (*site).to_owned(),
        pool: cluster.pool().0,
        not_before_millis: 0,
    };
    submission.sender = Some(sender.to_owned());
    submission.recipients = recipients.iter().map(recipient).collect();
    cluster.submitter.submit(id, submission).await.unwrap();
    id
}

async fn list(
    cluster: &Cluster,
    selection: Selection,
    from: Option<wire::DeliveryId>,
    deliveries_max: u32,
) -> Result<ListDeliveriesResponse, CallError> {
    let group = GROUP.0.into();
    let request =
        ListDeliveriesRequest { group, selection: Some(selection), from, deliveries_max, brief: false };
    let call = async |channel| client(channel).list_deliveries(request.clone()).await;
    cluster.calls.call(GROUP, PATIENCE, call).await.map(tonic::Response::into_inner)
}

/// The recipients that are selected, from pages of one delivery each.
async fn selected(cluster: &Cluster, selection: Selection) -> Vec<String> {
    let (mut found, mut from) = (Vec::new(), None);
    loop {
        let page = list(cluster, selection.clone(), from, 1).await.unwrap();
        assert!(page.deliveries.len() <= 1);
        found.extend(page.deliveries.into_iter().map(|listed| listed.delivery.unwrap().recipient));
        match page.next {
            Some(next) => from = Some(next),
            None => return found,
        }
    }
}

async fn change(
    cluster: &Cluster,
    change: Change,
    messages: &[(MessageId, &[u32])],
) -> Result<ChangeDeliveriesResponse, CallError> {
    let message = |(id, recipients): &(MessageId, &[u32])| MessageRecipients {
        message_id: message_id(*id),
        every_recipient: false,
        recipients: recipients.to_vec(),
    };
    let request = ChangeDeliveriesRequest {
        group: GROUP.0.into(),
        change: change.into(),
        messages: messages.iter().map(message).collect(),
        actor: "ann@ops".to_owned(),
    };
    let call = async |channel| client(channel).change_deliveries(request.clone()).await;
    cluster.calls.call(GROUP, PATIENCE, call).await.map(tonic::Response::into_inner)
}

async fn summarize(cluster: &Cluster, by: GroupBy, rows_max: u32) -> SummarizeQueueResponse {
    let request = SummarizeQueueRequest { group: GROUP.0.into(), by: by.into(), rows_max };
    let call = async |channel| client(channel).summarize_queue(request).await;
    cluster.calls.call(GROUP, PATIENCE, call).await.unwrap().into_inner()
}

/// Key, and queued, sending, deferred and held.
fn counts(row: &QueueDepth) -> (&str, [u64; 4]) {
    (&row.key, [row.queued, row.sending, row.deferred, row.held])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_counted_by_whatever_it_is_asked_for() {
    let cluster = Cluster::start(1).await;
    let outbound = Outbound::start(&cluster, 11, 1, None).await;
    let mut session = outbound.connect(&cluster, Vec::new(), 1).await;
    accept(&cluster, "a@one.example", &[("x@big.example", "big.example")]).await;
    let tried = session.assignment().await;
    let sequence = session.report(attempts(&tried), OutcomeKind::Soft).await;
    session.acknowledged(sequence).await.unwrap();
    let mixed = [("y@big.example", "big.example"), ("y@small.example", "small.example")];
    accept(&cluster, "a@ONE.example", &mixed).await;
    let held = accept(&cluster, "b@two.example", &[("z@big.example", "big.example")]).await;
    assert_eq!(cluster.change(held, Change::Hold).await, ChangeResult::Done);
    let sites = summarize(&cluster, GroupBy::Site, 10).await;
    let rows: Vec<_> = sites.rows.iter().map(counts).collect();
    // The lane's window is 1: of each site one delivery is with the outbound node.
    assert_eq!(rows, [("big.example", [0, 1, 1, 1]), ("small.example", [0, 1, 0, 0])]);
    assert_eq!((sites.rows[0].last_code, &*sites.rows[0].last_response), (250, "2.0.0 noted"));
    assert!(sites.rows[0].last_at_millis >= sites.rows[0].oldest_accepted_at_millis);
    assert!(sites.rows[0].next_due_at_millis > sites.counted_at_millis);
    let waits = sites.rows[0].waits.iter();
    let mut kinds: Vec<_> =
        waits.map(|wait| (wait.reason.as_ref().unwrap().kind(), wait.deliveries)).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [(WaitKind::NotDue, 1), (WaitKind::Held, 1)]);
    let senders = summarize(&cluster, GroupBy::SenderDomain, 1).await;
    assert_eq!(senders.rows.iter().map(counts).collect::<Vec<_>>(), [("one.example", [0, 2, 1, 0])]);
    assert_eq!(counts(&senders.other.unwrap()), ("", [0, 0, 0, 1]));
    for (by, key) in [(GroupBy::Tenant, "1"), (GroupBy::Pool, "pool")] {
        let all = summarize(&cluster, by, 5).await;
        assert_eq!(all.rows.iter().map(counts).collect::<Vec<_>>(), [(key, [0, 2, 1, 1])]);
    }
    let sources = summarize(&cluster, GroupBy::Source, 5).await;
    let rows: Vec<_> = sources.rows.iter().map(counts).collect();
    assert_eq!(rows, [("", [0, 0, 1, 1]), ("source", [0, 2, 0, 0])]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_are_listed_by_what_is_known_of_them() {
    let cluster = Cluster::start(1).await;
    accept(
        &cluster,
        "a@one.example",
        &[("x@big.example", "big.example"), ("y@small.example", "small.example")],
    )
    .await;
    let held = accept(&cluster, "b@two.example", &[("z@big.example", "big.example")]).await;
    cluster.change(held, Change::Hold).await;
    let check = async |selection: Selection, expected: &[&str]| {
        assert_eq!(selected(&cluster, selection.clone()).await, expected, "{selection:?}");
    };
    let some = |text: &str| Some(text.to_owned());
    let all = ["x@big.example", "y@small.example", "z@big.example"];
    check(Selection::default(), &all).await;
    check(Selection { site: some("big.example"), ..Selection::default() }, &[all[0], all[2]]).await;
    check(Selection { site: some("none.example"), ..Selection::default() }, &[]).await;
    check(Selection { sender: some("a@ONE.example"), ..Selection::default() }, &all[..2]).await;
    check(Selection { sender: some(""), ..Selection::default() }, &[]).await;
    check(Selection { sender_domain: some("two.example"), ..Selection::default() }, &all[2..]).await;
    check(Selection { recipient: some("y@Small.example"), ..Selection::default() }, &all[1..2]).await;
    check(Selection { pool: some("pool"), tenant: some("1"), ..Selection::default() }, &all).await;
    check(Selection { source: some("source"), ..Selection::default() }, &[]).await;
    check(Selection { states: vec![DeliveryState::Held.into()], ..Selection::default() }, &all[2..]).await;
    check(Selection { older_than_millis: Some(3_600_000), ..Selection::default() }, &[]).await;
    let unknown = Selection { tenant: some("nobody"), ..Selection::default() };
    let refused = list(&cluster, unknown, None, 1).await.unwrap_err();
    let expected = "`tenant nobody` does not exist".to_owned();
    assert_eq!(refused, CallError::Refused { code: Code::NotFound, message: expected });
    let page = list(&cluster, Selection { sender: some("b@two.example"), ..Selection::default() }, None, 0)
        .await
        .unwrap();
    let listed = &page.deliveries[0];
    assert_eq!((&*listed.tenant, &*listed.delivery.as_ref().unwrap().actor), ("1", "ann"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_many_leaves_the_recipients_alone_that_it_does_not_name() {
    let cluster = Cluster::start(1).await;
    let two = [("x@big.example", "big.example"), ("y@small.example", "small.example")];
    let first = accept(&cluster, "a@one.example", &two).await;
    let other = accept(&cluster, "a@one.example", &two).await;
    let ended = MessageId::from_u128(first.as_u128() + 77);
    let results = async |action, messages: &[(MessageId, &[u32])]| {
        let answer = change(&cluster, action, messages).await.unwrap();
        answer.messages.iter().map(|change| change.results().collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let done = results(Change::Cancel, &[(first, &[0]), (ended, &[0]), (other, &[1])]).await;
    assert_eq!(done, [vec![ChangeResult::Done], vec![], vec![ChangeResult::Done]]);
    assert_eq!(selected(&cluster, Selection::default()).await, ["y@small.example", "x@big.example"]);
    // A command that is repeated changes nothing more.
    let again = results(Change::Cancel, &[(first, &[0])]).await;
    assert_eq!(again, [vec![ChangeResult::AlreadyEnded]]);
    let events = cluster.events(1, 4).await;
    let actors: Vec<&str> = events[2..]
        .iter()
        .map(|event| match &event.kind {
            Some(Kind::Ended(ended)) => &*ended.actor,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(actors, ["ann@ops"; 2]);
    for wrong in [&[] as &[u32], &[0, 2]] {
        let refused = change(&cluster, Change::Hold, &[(other, wrong)]).await.unwrap_err();
        assert!(matches!(refused, CallError::Refused { code: Code::InvalidArgument, .. }), "{refused}");
    }
}
