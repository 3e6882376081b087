//! Control against a fake queue: what it writes, what it acknowledges, and what its pages show.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fake;

use std::path::{Path, PathBuf};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode, header},
};
use fake::{FakeQueue, GROUP, now};
use postroad_cluster::Endpoints;
use postroad_control::{Control, ControlConfig, ControlDeps, Nav};
use postroad_core::{MessageId, OutcomeKind, Party};
use postroad_proto::queue::{
    Accepted, AttemptEnded, Change, ChangeRequested, Ended, FinalState, Gap, Held, Reading, Released,
    attempt_ended::NextState, event::Kind,
};
use postroad_settings::WritableFile;
use postroad_telemetry::Health;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

const NAV: Nav = &[("Overview", "/"), ("Messages", "/messages"), ("Sandbox", "/sandbox")];

fn at(database: &Path) -> ControlConfig {
    ControlConfig { database: Some(WritableFile(database.to_owned())), ..ControlConfig::default() }
}

/// A running control node.
struct Running {
    router: Router,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

impl Running {
    async fn start(database: &Path, endpoints: &Endpoints) -> Self {
        Self::with(at(database), endpoints).await
    }

    async fn with(config: ControlConfig, endpoints: &Endpoints) -> Self {
        let health = Health::new();
        let deps = ControlDeps {
            data_directory: PathBuf::new(),
            endpoints: endpoints.clone(),
            ledger_groups: 2,
            health: health.clone(),
            nav: NAV,
        };
        let control = Control::start(config, deps).await.unwrap();
        assert!(!health.is_ready());
        let (router, shutdown) = (control.router(), CancellationToken::new());
        let running = tokio::spawn(control.run(shutdown.clone()));
        Self { router, shutdown, running }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap();
    }

    async fn send(&self, request: Request<Body>) -> (StatusCode, String, axum::http::HeaderMap) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 10 << 20).await.unwrap();
        (parts.status, String::from_utf8(body.to_vec()).unwrap(), parts.headers)
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let (status, body, _) = self.send(Request::get(path).body(Body::empty()).unwrap()).await;
        (status, body)
    }

    async fn page(&self, path: &str) -> String {
        let (status, body) = self.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    async fn message(&self, id: MessageId) -> Value {
        serde_json::from_str(&self.page(&format!("/api/v1/messages/{id}")).await).unwrap()
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)]) -> (StatusCode, String, Option<String>) {
        let mut request = Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (status, body, headers) = self.send(request.body(Body::empty()).unwrap()).await;
        let location = headers.get(header::LOCATION).map(|to| to.to_str().unwrap().to_owned());
        (status, body, location)
    }
}

fn id(number: u64) -> MessageId {
    MessageId::new(now(), GROUP, number)
}

fn accepted(subject: &str, recipients: &[&str]) -> Kind {
    Kind::Accepted(Accepted {
        tenant: 7,
        sender: "news@sender.example".into(),
        recipients: recipients.iter().map(|to| (*to).to_owned()).collect(),
        size_bytes: 8_192,
        subject: subject.into(),
        origin: "192.0.2.1".into(),
    })
}

fn attempt(number: u32, code: u32, text: &str, then: Option<NextState>) -> Kind {
    let kind = if code < 400 { OutcomeKind::Delivered } else { OutcomeKind::Soft };
    Kind::AttemptEnded(AttemptEnded {
        // The queue's own number is higher where attempts were given back.
        attempt: number + 5,
        number,
        source: 3,
        epoch: 1,
        node: 9,
        kind: u32::from(kind.code()),
        code,
        text: text.into(),
        remote: "mx.receiver.example [192.0.2.9]".into(),
        tls: "TLSv1.3 TLS_AES_256_GCM_SHA384".into(),
        started_at_millis: now().as_millis(),
        ended_at_millis: now().as_millis() + 120,
        next_state: then,
        ..AttemptEnded::default()
    })
}

fn delivered() -> Option<NextState> {
    Some(NextState::Ended(FinalState::Delivered.into()))
}

#[tokio::test]
async fn api_and_page_show_the_timeline_of_a_message() {
    let directory = tempfile::tempdir().unwrap();
    let (queue, endpoints) = FakeQueue::start().await;
    let control = Running::start(&directory.path().join("new/control.sqlite"), &endpoints).await;
    let message = id(1);
    let subject = "=?utf-8?q?Gr=C3=BC=C3=9Fe?= and\r\n hello";
    queue.push(Some(message), None, accepted(subject, &["a@receiver.example", "b@receiver.example"]));
    let later = now().as_millis() + 300_000;
    queue.push(
        Some(message),
        Some(0),
        attempt(1, 451, "4.7.1 come back", Some(NextState::RetryAtMillis(later))),
    );
    queue.push(Some(message), Some(0), attempt(2, 250, "2.0.0 ok", delivered()));
    let ann = || "ann@ops (operator)".to_owned();
    let requested = ChangeRequested { change: Change::Hold.into(), actor: ann() };
    queue.push(Some(message), Some(1), Kind::ChangeRequested(requested));
    queue.push(Some(message), Some(1), Kind::Held(Held { actor: ann() }));
    let released = Released { due_at_millis: later, ..Released::default() };
    queue.push(Some(message), Some(1), Kind::Released(released));
    let cancelled = Ended { state: FinalState::Cancelled.into(), actor: "bob@ops (operator)".to_owned() };
    let last = queue.push(Some(message), Some(1), Kind::Ended(cancelled));
    queue.wait_consumed(last).await;

    let shown = control.message(message).await;
    assert_eq!(
        (&shown["subject"], &shown["tenant"], &shown["size"]),
        (&"Grüße and hello".into(), &7.into(), &8_192.into())
    );
    let [first, second] = [&shown["deliveries"][0], &shown["deliveries"][1]];
    assert_eq!((&first["address"], &first["state"]), (&"a@receiver.example".into(), &"delivered".into()));
    assert_eq!((&first["attempts"], &first["last_response"]), (&2.into(), &"250 2.0.0 ok".into()));
    assert_eq!(first["timeline"].as_array().unwrap().len(), 2);
    assert_eq!(first["timeline"][0]["new_state"], "deferred");
    assert_eq!(first["timeline"][0]["remote"], "mx.receiver.example [192.0.2.9]");
    assert_eq!(second["state"], "cancelled");
    let kinds: Vec<_> = second["timeline"].as_array().unwrap().iter().map(|step| &step["kind"]).collect();
    assert_eq!(kinds, ["hold_requested", "held", "released", "ended"]);
    assert_eq!(second["timeline"][0]["new_state"], serde_json::Value::Null);
    assert_eq!(second["timeline"][1]["actor"], "ann@ops (operator)");
    assert_eq!(second["timeline"][2]["actor"], serde_json::Value::Null);

    let page = control.page(&format!("/messages/{message}")).await;
    let by = ["hold requested", "by ann@ops (operator)", "by bob@ops (operator)"];
    let shown = ["hello", "a@receiver.example", "4.7.1 come back", "TLSv1.3", "120 ms", "cancelled"];
    for shown in shown.into_iter().chain(by) {
        assert!(page.contains(shown), "{shown} is missing in {page}");
    }
    assert!(!page.contains("<button>"), "every recipient has a final outcome: there is nothing to change");
    control.stop().await;
}

#[tokio::test]
async fn the_record_shows_whose_matter_a_refusal_is_and_the_rule_that_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let (queue, endpoints) = FakeQueue::start().await;
    let control = Running::start(&directory.path().join("control.sqlite"), &endpoints).await;
    let message = id(1);
    queue.push(Some(message), None, accepted("blocked", &["a@receiver.example"]));
    let reading = Reading {
        party: u32::from(Party::Ip.code()),
        rule: "listed_address".to_owned(),
        ..Reading::default()
    };
    let refused = AttemptEnded {
        attempt: 1,
        kind: u32::from(OutcomeKind::PolicyBlock.code()),
        code: 550,
        text: "5.7.1 blocked".to_owned(),
        next_state: Some(NextState::Ended(FinalState::Bounced.into())),
        reading: Some(reading),
        ..AttemptEnded::default()
    };
    let last = queue.push(Some(message), Some(0), Kind::AttemptEnded(refused));
    queue.wait_consumed(last).await;
    let page = control.page(&format!("/messages/{message}")).await;
    assert!(page.contains("about our IP address") && page.contains("<code>listed_address</code>"), "{page}");
    let step = &control.message(message).await["deliveries"][0]["timeline"][0];
    assert_eq!((&step["party"], &step["rule"]), (&"ip".into(), &"listed_address".into()), "{step}");
    control.stop().await;
}

#[tokio::test]
async fn a_restart_resumes_at_its_cursor() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("control.sqlite");
    let (queue, endpoints) = FakeQueue::start().await;
    let control = Running::start(&database, &endpoints).await;
    let (first, second) = (id(1), id(2));
    queue.push(Some(first), None, accepted("first", &["a@receiver.example"]));
    let last = queue.push(Some(first), Some(0), attempt(1, 250, "ok", delivered()));
    queue.wait_consumed(last).await;
    control.stop().await;

    let last = queue.push(Some(second), None, accepted("second", &["a@receiver.example"]));
    let control = Running::start(&database, &endpoints).await;
    queue.wait_consumed(last).await;
    assert_eq!(queue.requested_from(), [1, 3]);
    assert_eq!(control.message(first).await["subject"], "first");
    assert_eq!(control.message(second).await["subject"], "second");
    control.stop().await;
}

#[tokio::test]
async fn a_repeated_event_has_no_effect() {
    let directory = tempfile::tempdir().unwrap();
    let (queue, endpoints) = FakeQueue::start().await;
    queue.repeat(100);
    let control = Running::start(&directory.path().join("control.sqlite"), &endpoints).await;
    let message = id(1);
    queue.push(Some(message), None, accepted("once", &["a@receiver.example"]));
    let last = queue.push(Some(message), Some(0), attempt(1, 250, "ok", delivered()));
    queue.wait_consumed(last).await;
    let before = (control.message(message).await, control.page("/").await);
    for round in 0..3 {
        queue.elect();
        fake::wait_until(|| queue.requested_from().len() > round + 1).await;
    }
    let other = id(2);
    let last = queue.push(Some(other), None, accepted("other", &[]));
    queue.wait_consumed(last).await;
    assert_eq!(control.message(message).await, before.0);
    let delivered =
        |page: &str| page.split("<td class=\"good\">delivered</td>").nth(1).unwrap()[..200].to_owned();
    assert_eq!(delivered(&control.page("/").await), delivered(&before.1));
    control.stop().await;
}

#[tokio::test]
async fn an_outcome_that_comes_late_counts_as_an_attempt_and_changes_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let (queue, endpoints) = FakeQueue::start().await;
    let control = Running::start(&directory.path().join("control.sqlite"), &endpoints).await;
    let message = id(1);
    queue.push(Some(message), None, accepted("late", &["a@receiver.example"]));
    let last = queue.push(Some(message), Some(0), attempt(1, 250, "ok", delivered()));
    queue.wait_consumed(last).await;
    // In a batch of its own: no other event of it says more of the delivery.
    let last = queue.push(Some(message), Some(0), attempt(2, 451, "too late", None));
    queue.wait_consumed(last).await;
    let shown = control.message(message).await;
    let delivery = &shown["deliveries"][0];
    assert_eq!((&delivery["attempts"], &delivery["state"]), (&2.into(), &"delivered".into()));
    assert_eq!(delivery["last_response"], "250 ok");
    assert_eq!(delivery["timeline"].as_array().unwrap().len(), 2);
    control.stop().await;
}

#[tokio::test]
async fn a_gap_is_shown_and_later_events_are_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let (queue, endpoints) = FakeQueue::start().await;
    queue.push(None, None, Kind::Gap(Gap { through: 41 }));
    let message = id(1);
    let last = queue.push(Some(message), Some(2), attempt(3, 250, "ok", delivered()));
    assert_eq!(last, 42);
    let control = Running::start(&directory.path().join("control.sqlite"), &endpoints).await;
    queue.wait_consumed(last).await;
    let overview = control.page("/").await;
    assert!(overview.contains("41 events, 1 to 41"), "{overview}");
    let shown = control.message(message).await;
    assert_eq!(shown.get("subject"), None);
    assert_eq!(
        (&shown["deliveries"][0]["recipient"], &shown["deliveries"][0]["state"]),
        (&2.into(), &"delivered".into())
    );
    assert!(control.page(&format!("/messages/{message}")).await.contains("missing from this database"));
    control.stop().await;
}

#[tokio::test]
async fn lists_are_paged_and_filtered() {
    let directory = tempfile::tempdir().unwrap();
    let (queue, endpoints) = FakeQueue::start().await;
    let control = Running::start(&directory.path().join("control.sqlite"), &endpoints).await;
    let messages: Vec<_> = (0..120_u64).map(|number| MessageId::new(now(), GROUP, number)).collect();
    for (number, message) in messages.iter().enumerate() {
        let recipient = format!("User{number}@receiver.example");
        queue.push(Some(*message), None, accepted(&format!("subject {number}."), &[&recipient]));
    }
    let last = queue.push(Some(messages[5]), Some(0), Kind::Held(Held::default()));
    queue.wait_consumed(last).await;

    let listed = |page: &str| page.matches("<a href=\"/messages/").count();
    let first = control.page("/messages").await;
    assert!(first.contains("subject 119.") && !first.contains("subject 69."), "{first}");
    assert_eq!(listed(&first), 50);
    let second = control.page(&format!("/messages?before={}", messages[70])).await;
    assert!(
        second.contains("subject 69.") && second.contains("subject 20.") && !second.contains("subject 70.")
    );
    let third = control.page(&format!("/messages?before={}", messages[20])).await;
    assert_eq!(listed(&third), 20);
    assert!(!third.contains("Older"));

    for (query, expected) in [
        ("recipient=user7@RECEIVER.example", vec!["subject 7."]),
        ("recipient=ser11@", vec!["subject 11."]),
        ("recipient=%25", vec![]),
        ("state=held", vec!["subject 5."]),
        ("state=held&sender=NEWS%40", vec!["subject 5."]),
        ("state=held&sender=other", vec![]),
        ("state=nonsense&recipient=user119", vec!["subject 119."]),
    ] {
        let page = control.page(&format!("/messages?{query}")).await;
        assert_eq!(listed(&page), expected.len(), "{query}");
        assert!(expected.iter().all(|subject| page.contains(subject)), "{query}");
    }
    let (status, _) = control.get(&format!("/messages?id={}", messages[3])).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    for path in ["/messages/nonsense", &format!("/messages/{}", id(9)), "/api/v1/messages/nonsense"] {
        assert_eq!(control.get(path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    control.stop().await;
}

#[tokio::test]
async fn c_112_hostile_text_is_escaped() {
    const HOSTILE: &str = "\"><script>alert(1)</script>\r\n\u{1b}[31m<img src=x onerror=alert(2)>";
    let directory = tempfile::tempdir().unwrap();
    let (queue, endpoints) = FakeQueue::start().await;
    let control = Running::start(&directory.path().join("control.sqlite"), &endpoints).await;
    let message = id(1);
    let mut hostile = AttemptEnded {
        attempt: 1,
        number: 1,
        kind: u32::from(OutcomeKind::Soft.code()),
        code: 451,
        text: HOSTILE.repeat(100),
        remote: HOSTILE.into(),
        tls: HOSTILE.into(),
        next_state: Some(NextState::RetryAtMillis(u64::MAX)),
        ..AttemptEnded::default()
    };
    queue.push(Some(message), None, accepted(HOSTILE, &[HOSTILE]));
    queue.push(Some(message), Some(0), Kind::AttemptEnded(hostile.clone()));
    // An outcome that no version knows is ignored.
    hostile.kind = 99;
    let last = queue.push(Some(message), Some(0), Kind::AttemptEnded(hostile));
    queue.wait_consumed(last).await;
    let hostile_query =
        "/messages?recipient=%22%3E%3Cscript%3Ealert(1)%3C/script%3E&sender=%3Cscript%3E&id=%3Cscript%3E";
    for path in ["/", "/messages", hostile_query, &format!("/messages/{message}")] {
        let page = control.page(path).await;
        assert!(!page.contains("<script") && !page.contains("<img"), "{path}: {page}");
        assert!(!page.contains('\u{1b}'), "{path}");
    }
    let page = control.page(&format!("/messages/{message}")).await;
    assert!(page.contains("&lt;script&gt;") && page.len() < 20_000, "{}", page.len());
    // The API says the same, as JSON.
    let path = format!("/api/v1/messages/{message}");
    let (_, text, headers) = control.send(Request::get(path).body(Body::empty()).unwrap()).await;
    assert_eq!(headers[header::CONTENT_TYPE], "application/json");
    assert!(!text.contains(['\r', '\u{1b}']) && text.len() < 20_000, "{text}");
    let reply = control.message(message).await.to_string();
    assert!(reply.contains("<script>") && !reply.contains("\\u001b"), "{reply}");
    let (_, _, headers) = control.send(Request::get("/messages").body(Body::empty()).unwrap()).await;
    let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("script-src"), "{policy}");
    control.stop().await;
}

#[tokio::test]
async fn forms_of_other_sites_cannot_change_messages() {
    let directory = tempfile::tempdir().unwrap();
    let (queue, endpoints) = FakeQueue::start().await;
    let control = Running::start(&directory.path().join("control.sqlite"), &endpoints).await;
    let message = id(1);
    let last = queue.push(Some(message), None, accepted("waits", &["a@receiver.example"]));
    queue.wait_consumed(last).await;
    let page = control.page(&format!("/messages/{message}")).await;
    assert!(page.contains("<button>Hold</button>") && !page.contains("<button>Release</button>"));

    let hold = format!("/messages/{message}/hold");
    for headers in [
        [("host", "mail.example"), ("origin", "http://evil.example")],
        [("host", "mail.example"), ("origin", "null")],
        [("host", "mail.example"), ("sec-fetch-site", "cross-site")],
    ] {
        assert_eq!(control.post(&hold, &headers).await.0, StatusCode::FORBIDDEN, "{headers:?}");
    }
    assert_eq!(control.get(&hold).await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(control.post(&format!("/messages/{message}/delete"), &[]).await.0, StatusCode::NOT_FOUND);
    assert!(queue.changes().is_empty());

    let ours = [("host", "mail.example"), ("origin", "http://mail.example")];
    let (status, _, location) = control.post(&hold, &ours).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    assert!(control.page(&location.unwrap()).await.contains("1 changed"));
    assert_eq!(queue.changes(), [(message, Change::Hold)]);

    queue.refuse_changes(tonic::Status::not_found("no such message"));
    let (status, page, _) = control.post(&hold, &ours).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(page.contains("This message is not in the queue"), "{page}");
    control.stop().await;
}

#[tokio::test]
async fn the_history_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("control.sqlite");
    let (queue, endpoints) = FakeQueue::start().await;
    let control = Running::start(&database, &endpoints).await;
    let messages: Vec<_> = (0..30_u64).map(|number| MessageId::new(now(), GROUP, number)).collect();
    let mut last = 0;
    for message in &messages {
        last = queue.push(Some(*message), None, accepted("s", &["a@receiver.example"]));
    }
    queue.wait_consumed(last).await;
    control.stop().await;

    // Pruning begins when control starts.
    let config = ControlConfig { history_messages_max: 10, ..at(&database) };
    let control = Running::with(config, &endpoints).await;
    for _ in 0..1_000 {
        if control.get(&format!("/api/v1/messages/{}", messages[19])).await.0 == StatusCode::NOT_FOUND {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    for (number, message) in messages.iter().enumerate() {
        let (status, _) = control.get(&format!("/api/v1/messages/{message}")).await;
        assert_eq!(status == StatusCode::OK, number >= 20, "{number}");
    }
    control.stop().await;
}

#[tokio::test]
async fn the_overview_says_what_it_lacks_and_lists_groups_without_a_leader() {
    let directory = tempfile::tempdir().unwrap();
    let (queue, endpoints) = FakeQueue::start().await;
    let control = Running::start(&directory.path().join("control.sqlite"), &endpoints).await;
    let last = queue.push(Some(id(1)), None, accepted("s", &["a@receiver.example"]));
    queue.wait_consumed(last).await;
    // The second ledger group has no leader.
    let overview = control.page("/").await;
    assert!(overview.contains("No counts of 1 of 2 ledger groups"), "{overview}");
    assert!(overview.contains("<b>≥ 1\u{2009}200</b>"), "{overview}");
    assert!(overview.contains("ledger 2</td><td class=\"bad\">no leader</td>"), "{overview}");

    // What a node that does not lead has applied may be old: it is no answer.
    queue.lead_nothing();
    let overview = control.page("/").await;
    assert!(overview.contains("No counts of 2 of 2 ledger groups"), "{overview}");
    assert!(overview.contains("no answer") && !overview.contains("1\u{2009}200"), "{overview}");
    control.stop().await;
}

#[tokio::test]
async fn pages_work_while_no_queue_node_can_be_reached() {
    let directory = tempfile::tempdir().unwrap();
    let control = Running::start(&directory.path().join("control.sqlite"), &Endpoints::new()).await;
    let overview = control.page("/").await;
    assert!(overview.contains("Cannot reach any queue node"), "{overview}");
    assert_eq!(overview.matches("<b>–</b>").count(), 4, "nothing is known of the queue: {overview}");
    assert!(control.page("/messages").await.contains("No message has been accepted yet"));
    control.stop().await;
}
