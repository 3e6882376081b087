//! Mail through one queue node: accepted, assigned to an outbound node, reported, and recorded as events.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use bytes::Bytes;
use futures::StreamExt;
use postroad_cluster::SubmitError;
use postroad_core::{NodeId, OutcomeKind};
use postroad_proto::{
    CONTENT_BYTES_MAX,
    queue::{
        self as wire, AttemptId, Change, ChangeResult, ContentRequest, DeliveryState, event::Kind,
        queue_frame::Frame,
    },
};
use support::{
    Cluster, fresh, kind,
    outbound::{Outbound, attempts},
};
use tonic::Code;

async fn one_node() -> (Cluster, Outbound) {
    let cluster = Cluster::start(1).await;
    let outbound = Outbound::start(&cluster, 11, 1, None).await;
    (cluster, outbound)
}

fn named(assignment: &wire::Assignment) -> (Bytes, Bytes) {
    (assignment.message_id.clone(), assignment.content.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_is_accepted_assigned_reported_and_recorded() {
    let (cluster, outbound) = one_node().await;
    let mut session = outbound.connect(&cluster, Vec::new(), 10).await;
    let id = cluster.accept("hello").await;
    let assignment = session.assignment().await;
    assert_eq!(assignment.content, "hello");
    assert_eq!(assignment.recipients[0].address, "b@receiver.example");
    assert_eq!(assignment.sender.as_deref(), Some("a@sender.example"));
    assert_eq!(cluster.delivery(id).await.state(), DeliveryState::Sending);
    let sequence = session.report(attempts(&assignment), OutcomeKind::Delivered).await;
    session.acknowledged(sequence).await.unwrap();
    cluster.until_ended(id).await;
    let events = cluster.events(1, 2).await;
    assert_eq!(events.iter().map(kind).collect::<Vec<_>>(), ["accepted", "attempt"]);
    let Some(Kind::AttemptEnded(ended)) = &events[1].kind else { panic!("no attempt") };
    assert_eq!((ended.attempt, ended.node, ended.code), (1, 11, 250));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_035_an_id_is_one_message_however_often_it_is_submitted() {
    let (cluster, outbound) = one_node().await;
    let mut session = outbound.connect(&cluster, Vec::new(), 10).await;
    let (id, submission) = cluster.message("once");
    for _ in 0..3 {
        cluster.submitter.submit(id, submission.clone()).await.unwrap();
    }
    let assignment = session.assignment().await;
    let sequence = session.report(attempts(&assignment), OutcomeKind::Delivered).await;
    session.acknowledged(sequence).await.unwrap();
    // Also after the message has ended.
    cluster.submitter.submit(id, submission).await.unwrap();
    assert!(session.is_quiet().await);
    assert_eq!(cluster.events(1, 2).await.iter().map(kind).collect::<Vec<_>>(), ["accepted", "attempt"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_submission_is_refused_and_the_others_of_its_batch_are_accepted() {
    let (cluster, _) = one_node().await;
    let (id, mut submission) = cluster.message("no site");
    submission.recipients[0].site.clear();
    let (good, good_submission) = cluster.message("good");
    let (refused, accepted) = tokio::join!(
        cluster.submitter.submit(id, submission),
        cluster.submitter.submit(good, good_submission)
    );
    assert!(refused.unwrap_err().to_string().contains("site"));
    accepted.unwrap();
    assert!(cluster.view(id).await.is_none() && cluster.view(good).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconnecting_node_is_sent_only_assignments_that_it_does_not_list_as_pending() {
    let (cluster, outbound) = one_node().await;
    let mut session = outbound.connect(&cluster, Vec::new(), 10).await;
    cluster.accept("first").await;
    let first = session.assignment().await;
    cluster.accept("second").await;
    let second = session.assignment().await;
    drop(session);
    let mut session = outbound.connect(&cluster, attempts(&first), 10).await;
    assert_eq!(named(&session.assignment().await), named(&second));
    assert!(session.is_quiet().await);
    let sequence =
        session.report([attempts(&first), attempts(&second)].concat(), OutcomeKind::Delivered).await;
    session.acknowledged(sequence).await.unwrap();
    drop(session);
    let mut session = outbound.connect(&cluster, Vec::new(), 10).await;
    assert!(session.is_quiet().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_may_list_more_pending_attempts_than_fit_a_frame() {
    let (cluster, outbound) = one_node().await;
    let mut session = outbound.connect(&cluster, Vec::new(), 10).await;
    let mut assignments = Vec::new();
    for message in ["first", "second", "third"] {
        cluster.accept(message).await;
        assignments.push(session.assignment().await);
    }
    drop(session);
    // Attempts that ended long ago are listed too, and use no memory.
    let long_ago = |number: u32| AttemptId { attempt: 1000 + number, ..attempts(&assignments[0])[0].clone() };
    let mut held: Vec<AttemptId> = (0..110_000).map(long_ago).collect();
    held.splice(0..0, attempts(&assignments[0]));
    held.extend(attempts(&assignments[2]));
    let mut session = outbound.connect(&cluster, held, 10).await;
    assert_eq!(named(&session.assignment().await), named(&assignments[1]));
    assert!(session.is_quiet().await);
    let all = assignments.iter().flat_map(attempts).collect();
    let sequence = session.report(all, OutcomeKind::Delivered).await;
    session.acknowledged(sequence).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_announces_a_page_and_does_not_send_it_gets_no_work() {
    let (cluster, outbound) = one_node().await;
    let hello = wire::Hello {
        group: support::GROUP.0.into(),
        node: 11,
        incarnation: 1,
        more_pending: true,
        ..Default::default()
    };
    let windows = outbound.windows(&cluster, 10);
    let frames = [wire::outbound_frame::Frame::Hello(hello), wire::outbound_frame::Frame::Windows(windows)]
        .map(|frame| wire::OutboundFrame { frame: Some(frame) });
    let leader = cluster.leader(support::GROUP).await;
    let refused = cluster.client(leader).work(futures::stream::iter(frames)).await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn assignments_wait_for_credit_and_other_frames_do_not() {
    let (cluster, mut outbound) = one_node().await;
    outbound.credit_frames = 1;
    let mut session = outbound.connect(&cluster, Vec::new(), 10).await;
    let first = cluster.accept("first").await;
    let assignment = session.assignment().await;
    let second = cluster.accept("second").await;
    assert_eq!(cluster.delivery(second).await.state(), DeliveryState::Sending);
    assert!(session.is_quiet().await, "the credit of the first frame has not been returned");
    // Recalls and acknowledgements do not wait for credit.
    assert_eq!(cluster.change(first, Change::Hold).await, ChangeResult::InFlight);
    let Frame::Recalls(recalls) = session.next().await.unwrap() else { panic!("no recall") };
    assert_eq!(recalls.attempts, attempts(&assignment));
    let sequence = session.report(attempts(&assignment), OutcomeKind::Delivered).await;
    session.acknowledged(sequence).await.unwrap();
    // A recall sent before its assignment is sent again after it.
    assert_eq!(cluster.change(second, Change::Hold).await, ChangeResult::InFlight);
    assert!(matches!(session.next().await.unwrap(), Frame::Recalls(_)));
    session.take(1).await;
    let assignment = session.assignment().await;
    let Frame::Recalls(recalls) = session.next().await.unwrap() else { panic!("no recall") };
    assert_eq!(recalls.attempts, attempts(&assignment));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_session_of_a_node_ends_the_earlier_one() {
    let (cluster, outbound) = one_node().await;
    let mut early = outbound.connect(&cluster, Vec::new(), 10).await;
    let mut late = outbound.connect(&cluster, Vec::new(), 10).await;
    assert_eq!(early.next().await.unwrap_err().code(), Code::Aborted);
    cluster.accept("for the later one").await;
    late.assignment().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_bounds_what_is_assigned_and_not_reported() {
    let (cluster, outbound) = one_node().await;
    let mut session = outbound.connect(&cluster, Vec::new(), 2).await;
    for _ in 0..5 {
        cluster.accept("one of five").await;
    }
    let mut taken = Vec::new();
    while taken.len() < 2 {
        taken.extend(session.assignments().await.unwrap());
    }
    assert!(taken.len() == 2 && session.is_quiet().await);
    session.report(attempts(&taken[0]), OutcomeKind::Delivered).await;
    assert_eq!(session.assignments().await.unwrap().len(), 1);
    assert!(session.is_quiet().await);
    session.send_windows(outbound.windows(&cluster, 10)).await;
    assert_eq!(session.assignments().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_that_can_no_longer_be_reported_end_as_unknown_and_are_retried() {
    let (cluster, outbound) = one_node().await;
    let mut session = outbound.connect(&cluster, Vec::new(), 10).await;
    let id = cluster.accept("twice perhaps").await;
    let lost = session.assignment().await;
    let mut windows = outbound.windows(&cluster, 10);
    // The process dies and restarts on its data directory.
    let restarted = Outbound::start(&cluster, 11, 2, Some(1)).await;
    let refused = outbound.try_connect(&cluster, Vec::new(), 10).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    let mut session = restarted.connect(&cluster, Vec::new(), 10).await;
    let again = session.assignment().await;
    assert_eq!(named(&again), named(&lost));
    assert!(again.epoch > lost.epoch && again.recipients[0].attempt == 2);
    // Windows of the earlier epoch have no effect.
    windows.sources[0].default_window = 0;
    session.send_windows(windows).await;
    let events = cluster.events(1, 2).await;
    let Some(Kind::AttemptEnded(unknown)) = &events[1].kind else { panic!("no attempt") };
    assert_eq!((unknown.kind, unknown.attempt), (OutcomeKind::Unknown.code().into(), 1));
    let sequence = session.report(attempts(&again), OutcomeKind::Delivered).await;
    session.acknowledged(sequence).await.unwrap();
    cluster.until_ended(id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_with_a_soft_outcome_is_deferred() {
    let (cluster, outbound) = one_node().await;
    let mut session = outbound.connect(&cluster, Vec::new(), 10).await;
    let id = cluster.accept("later").await;
    let assignment = session.assignment().await;
    let sequence = session.report(attempts(&assignment), OutcomeKind::Soft).await;
    session.acknowledged(sequence).await.unwrap();
    let delivery = cluster.delivery(id).await;
    assert_eq!((delivery.state(), delivery.attempts), (DeliveryState::Deferred, 1));
    let wait = delivery.due_at_millis.saturating_sub(support::now().as_millis());
    assert!((230_000..=370_000).contains(&wait), "{wait}");
    assert_eq!(delivery.last_response, "2.0.0 noted");

    // A person does not want to wait, although the lane is closed.
    session.send_windows(outbound.windows(&cluster, 0)).await;
    assert_eq!(cluster.change(id, Change::Release).await, ChangeResult::Unchanged, "it is not held");
    assert_eq!(cluster.change(id, Change::Retry).await, ChangeResult::Done);
    let assignment = session.assignment().await;
    assert!(assignment.retry_now);
    assert_eq!(cluster.change(id, Change::Retry).await, ChangeResult::InFlight);
    let kinds = cluster.events(1, 3).await;
    assert_eq!(kinds.iter().map(kind).collect::<Vec<_>>(), ["accepted", "attempt", "retried"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_mail_can_be_held_released_and_cancelled() {
    let (cluster, outbound) = one_node().await;
    let id = cluster.accept("wait").await;
    assert_eq!(cluster.change(id, Change::Hold).await, ChangeResult::Done);
    assert_eq!(cluster.change(id, Change::Hold).await, ChangeResult::Unchanged);
    let mut session = outbound.connect(&cluster, Vec::new(), 1).await;
    assert!(session.is_quiet().await);
    assert_eq!(cluster.change(id, Change::Release).await, ChangeResult::Done);
    session.assignment().await;
    // The window is full, so this one waits.
    let other = cluster.accept("cancel me").await;
    assert_eq!(cluster.change(other, Change::Cancel).await, ChangeResult::Done);
    assert!(cluster.view(other).await.is_none());
    let kinds = cluster.events(1, 5).await;
    let kinds: Vec<&str> = kinds.iter().map(kind).collect();
    assert_eq!(kinds, ["accepted", "held", "released", "accepted", "ended"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holding_or_cancelling_recalls_assigned_mail() {
    let (cluster, outbound) = one_node().await;
    let mut session = outbound.connect(&cluster, Vec::new(), 10).await;
    let recalled = |frame| match frame {
        Frame::Recalls(recalls) => recalls.attempts,
        other => panic!("no recall but {other:?}"),
    };
    let id = cluster.accept("cancelled before it started").await;
    let attempt = attempts(&session.assignment().await);
    assert_eq!(cluster.change(id, Change::Cancel).await, ChangeResult::InFlight);
    assert_eq!(recalled(session.next().await.unwrap()), attempt);
    session.answer_recall(attempt[0].clone(), false).await;
    cluster.until_ended(id).await;

    let id = cluster.accept("held too late").await;
    let attempt = attempts(&session.assignment().await);
    assert_eq!(cluster.change(id, Change::Hold).await, ChangeResult::InFlight);
    assert_eq!(recalled(session.next().await.unwrap()), attempt);
    // The recall is repeated after a reconnect.
    drop(session);
    let mut session = outbound.connect(&cluster, attempt.clone(), 10).await;
    assert_eq!(recalled(session.next().await.unwrap()), attempt);
    session.answer_recall(attempt[0].clone(), true).await;
    let sequence = session.report(attempt, OutcomeKind::Soft).await;
    session.acknowledged(sequence).await.unwrap();
    assert_eq!(cluster.delivery(id).await.state(), DeliveryState::Held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_40_a_large_message_is_staged_and_streamed_in_parts() {
    let (cluster, outbound) = one_node().await;
    let mut session = outbound.connect(&cluster, Vec::new(), 10).await;
    let content: Bytes = (0..5 << 20).map(|place: u32| (place % 251) as u8).collect::<Vec<u8>>().into();
    let (id, mut submission) = cluster.message(content.clone());
    let mut rest = content.clone();
    submission.content.clear();
    while !rest.is_empty() {
        let chunk = wire::Submission {
            message_id: submission.message_id.clone(),
            content: vec![rest.split_to(rest.len().min(CONTENT_BYTES_MAX))],
            chunk: Some(submission.chunks),
            ..Default::default()
        };
        cluster.submitter.submit(id, chunk).await.unwrap();
        submission.chunks += 1;
    }
    cluster.submitter.submit(id, submission).await.unwrap();
    let assignment = session.assignment().await;
    assert!(assignment.content.is_empty() && assignment.size_bytes == content.len() as u64);
    let request = ContentRequest { message_id: assignment.message_id.clone() };
    let mut parts = cluster.client(0).content(request).await.unwrap().into_inner();
    let mut fetched = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        fetched.extend_from_slice(&part.data);
    }
    assert!(fetched == content);
    let sequence = session.report(attempts(&assignment), OutcomeKind::Delivered).await;
    session.acknowledged(sequence).await.unwrap();
    cluster.until_ended(id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_mail_is_there_after_a_power_cut() {
    let (cluster, outbound) = one_node().await;
    let waiting = cluster.accept("waits").await;
    let mut session = outbound.connect(&cluster, Vec::new(), 10).await;
    let assigned = session.assignment().await;
    cluster.kill(0);
    cluster.restart(0).await;
    assert_eq!(cluster.delivery(waiting).await.state(), DeliveryState::Sending);
    let mut session = outbound.connect(&cluster, Vec::new(), 10).await;
    assert_eq!(named(&session.assignment().await), named(&assigned));
    let sequence = session.report(attempts(&assigned), OutcomeKind::Delivered).await;
    session.acknowledged(sequence).await.unwrap();
    cluster.until_ended(waiting).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_13_a_full_disk_refuses_mail_until_there_is_space() {
    let (cluster, outbound) = one_node().await;
    let mut session = outbound.connect(&cluster, Vec::new(), 1).await;
    let held = cluster.accept("before").await;
    let assignment = session.assignment().await;
    cluster.set_disk_capacity(0, Some(0));
    let submit = async |number: usize| {
        let (id, submission) = cluster.message(vec![b'x'; 100_000 + number]);
        cluster.submitter.submit(id, submission).await
    };
    let until_full = async {
        // Submissions that wait for the disk are answered when it has space.
        let mut waiting = futures::stream::iter(0..).map(submit).buffer_unordered(64);
        while waiting.next().await != Some(Err(SubmitError::StorageFull)) {}
    };
    until_full.await;
    let sequence = session.report(attempts(&assignment), OutcomeKind::Delivered).await;
    cluster.set_disk_capacity(0, None);
    session.acknowledged(sequence).await.unwrap();
    cluster.until_ended(held).await;
    while submit(1).await.is_err() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumed_events_are_dropped_and_new_ones_are_streamed() {
    let (cluster, _) = one_node().await;
    let request = wire::EventsRequest { group: 1, from: 1, batch_max: 0 };
    let mut stream = cluster.client(0).events(request).await.unwrap().into_inner();
    for _ in 0..300 {
        cluster.accept("an event").await;
    }
    let mut seen = 0;
    while seen < 300 {
        seen += stream.message().await.unwrap().unwrap().events.len();
    }
    let consume = wire::ConsumeRequest { group: 1, consumer: "control".to_owned(), through: 300 };
    cluster.client(0).consume(consume).await.unwrap();
    let summary = cluster.client(0).summary(wire::SummaryRequest { group: 1 }).await.unwrap().into_inner();
    assert_eq!((summary.messages, summary.events_next), (300, 301));
    assert!(summary.events_first > 1);
    let unnamed = wire::ConsumeRequest { group: 1, consumer: String::new(), through: 1 };
    assert_eq!(cluster.client(0).consume(unnamed).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_a_newer_version_works_with_a_leader_that_does_not_know_all_its_frames() {
    let (cluster, outbound) = one_node().await;
    let mut session = outbound.connect(&cluster, Vec::new(), 10).await;
    session.send_unknown().await;
    let id = cluster.accept("hello").await;
    let assignment = session.assignment().await;
    let sequence = session.report(attempts(&assignment), OutcomeKind::Delivered).await;
    session.acknowledged(sequence).await.unwrap();
    cluster.until_ended(id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_are_shown_as_the_owner_of_their_source_reports_them() {
    let (cluster, outbound) = one_node().await;
    let mut session = outbound.connect(&cluster, Vec::new(), 10).await;
    let lane = |source, site: &str| wire::LaneReport { source, site: site.to_owned(), ..Default::default() };
    let owned = outbound.windows(&cluster, 1).sources[0].source;
    let long = "x".repeat(300);
    let lanes = vec![lane(owned + 1, "a.example"), lane(owned, &long), lane(owned, "receiver.example")];
    session.send_lanes(lanes).await;
    // A frame that comes later has been handled later.
    cluster.accept("one").await;
    let assignment = session.assignment().await;
    let sequence = session.report(attempts(&assignment), OutcomeKind::Delivered).await;
    session.acknowledged(sequence).await.unwrap();
    let request = wire::LanesRequest { group: support::GROUP.0.into(), ..Default::default() };
    let listed = cluster.client(0).lanes(request).await.unwrap().into_inner();
    let sites: Vec<&str> = listed.lanes.iter().map(|lane| lane.site.as_str()).collect();
    assert_eq!((sites, listed.left_out), (vec!["receiver.example"], 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_breaks_the_rules_ends() {
    let (cluster, outbound) = one_node().await;
    let stranger = Outbound { node: NodeId(99), incarnation: fresh(), credit_frames: 0 };
    let refused = stranger.try_connect(&cluster, Vec::new(), 1).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    let mut session = outbound.connect(&cluster, Vec::new(), 1).await;
    let nonsense = AttemptId { message_id: Bytes::from_static(b"short"), ..Default::default() };
    session.report(vec![nonsense], OutcomeKind::Delivered).await;
    assert_eq!(session.next().await.unwrap_err().code(), Code::InvalidArgument);
    outbound.connect(&cluster, Vec::new(), 1).await;
}
