//! Suspensions: what waits is returned, what is under way finishes, and nothing starts until it is resumed.

use postroad_core::{NodeId, OutcomeKind, Timestamp};
use postroad_directory::{Change, Command, Put, PutPool, PutSuspension, PutTenant, ScopeName, SenderDomains};
use postroad_testkit::{
    Script,
    sink::{Phase, Rule},
};

use crate::{
    node::{Node, SOURCE, Setup, sink},
    queue::{Seen, assignment, attempt_id},
};

/// The site of everything that `start_routed` routes.
const SITE: &str = "example.test";

/// Puts the tenant and the pool that assignments name.
fn put_tenant(node: &Node) {
    node.queue.put(Put::Pool(PutPool { name: "p".into(), members: vec![("one".into(), 1)] }));
    node.queue.put(Put::Tenant(PutTenant {
        name: "t".into(),
        domains: SenderDomains::Any,
        pool: "p".into(),
        message_size_max: None,
    }));
}

fn suspend(node: &Node, scope: &ScopeName) {
    node.queue.put(Put::Suspension(PutSuspension {
        scope: scope.clone(),
        reason: "blocked".into(),
        actor: "eve@laptop".into(),
        since: Timestamp::from_millis(1),
        until: None,
    }));
}

fn resume(node: &Node, scope: &ScopeName) {
    node.queue.apply(&Command::Change(vec![Change::Remove(scope.item())]));
}

/// Assigns a message, of pool 1 as of tenant 1.
async fn assign(node: &Node, message: u128) {
    let one = assignment(message, SOURCE, node.epoch, SITE, &["a@example.test"]);
    node.queue.assign(vec![postroad_proto::queue::Assignment { pool: 1, ..one }]).await;
}

async fn given_back(node: &Node, count: usize) {
    let all = |seen: &Seen| (seen.answers.len() == count).then(|| seen.answers.clone());
    let answers = node.queue.until("attempts given back", all).await;
    assert!(answers.iter().all(|answer| !answer.started));
}

/// Assigns messages until the node, which learns of the end of the suspension by and by, sends one.
async fn send_again(node: &Node) {
    for message in 5.. {
        assign(node, message).await;
        let id = Some(attempt_id(message, 0, node.epoch));
        let ended = |seen: &Seen| {
            let returned = seen.answers.iter().any(|answer| answer.attempt == id).then_some(None);
            let report = seen.reports.iter().find(|report| report.attempt == id);
            report.map(|report| Some(report.kind)).or(returned)
        };
        if let Some(kind) = node.queue.until("an end", ended).await {
            return assert_eq!(kind, u32::from(OutcomeKind::Delivered.code()));
        }
    }
}

/// Suspends while one message is being sent and two wait, and resumes.
async fn check(scope: ScopeName, closes_window: bool) {
    let slow = Rule { delay_ms: 2_000, ..Rule::reply(Phase::Mail, "250 2.1.0 ok") };
    let sink = sink(Script::default().with_rule(slow)).await;
    let mut setup = Setup::default();
    setup.config.connections_initial = 1;
    let node = setup.start_routed(&sink).await;
    put_tenant(&node);
    for message in 1..=3 {
        assign(&node, message).await;
    }
    let is_under_way = |seen: &Seen| {
        let lane = seen.lanes.get(&(SOURCE.0, SITE.to_owned()))?;
        ((lane.connections, lane.waiting) == (1, 2)).then_some(())
    };
    node.queue.until("the first under way and two waiting", is_under_way).await;
    suspend(&node, &scope);
    given_back(&node, 2).await;
    assert_eq!(
        node.queue.report(1, 0).await.kind,
        u32::from(OutcomeKind::Delivered.code()),
        "{scope}: it was under way"
    );
    if closes_window {
        node.queue.window(SOURCE.0, SITE, |window| window == 0).await;
    }
    // A leader that does not know of the suspension yet.
    assign(&node, 4).await;
    given_back(&node, 3).await;
    sink.set_script(Script::default());
    if !closes_window {
        let other = assignment(100, SOURCE, node.epoch, SITE, &["a@example.test"]);
        node.queue.assign(vec![postroad_proto::queue::Assignment { tenant: 2, pool: 2, ..other }]).await;
        let kind = node.queue.report(100, 0).await.kind;
        assert_eq!(kind, u32::from(OutcomeKind::Delivered.code()), "{scope}: other mail goes on");
    }
    resume(&node, &scope);
    node.queue.window(SOURCE.0, SITE, |window| window > 0).await;
    send_again(&node).await;
    node.stop().await;
    assert_eq!(sink.ledger().count(), if closes_window { 2 } else { 3 });
}

#[tokio::test]
async fn a_suspended_site_gets_nothing_and_attempts_under_way_finish() {
    check(ScopeName::Site(SITE.into()), true).await;
}

#[tokio::test]
async fn a_suspended_lane_sends_nothing() {
    check(ScopeName::Lane { source: "one".into(), site: SITE.into() }, true).await;
}

#[tokio::test]
async fn a_suspended_source_sends_nothing() {
    check(ScopeName::Source("one".into()), true).await;
}

#[tokio::test]
async fn a_suspended_node_sends_nothing() {
    check(ScopeName::Node(NodeId(7)), true).await;
}

#[tokio::test]
async fn mail_of_a_suspended_tenant_or_pool_is_returned_and_other_mail_goes_on() {
    check(ScopeName::Tenant("t".into()), false).await;
    check(ScopeName::Pool("p".into()), false).await;
}

#[tokio::test]
async fn what_is_suspended_while_its_connection_opens_is_not_sent() {
    for scope in [ScopeName::Tenant("t".into()), ScopeName::Site(SITE.into())] {
        let slow = Rule { delay_ms: 2_000, ..Rule::reply(Phase::Connect, "220 sink.test ESMTP") };
        let sink = sink(Script::default().with_rule(slow)).await;
        let node = Setup::default().start_routed(&sink).await;
        put_tenant(&node);
        assign(&node, 1).await;
        let connects = |seen: &Seen| {
            let lane = seen.lanes.get(&(SOURCE.0, SITE.to_owned()))?;
            (lane.connections == 1 && lane.waiting == 0).then_some(())
        };
        node.queue.until("a connection that opens", connects).await;
        suspend(&node, &scope);
        given_back(&node, 1).await;
        node.stop().await;
        assert_eq!(sink.ledger().count(), 0, "{scope}");
    }
}
