//! Delivery to receivers, well-behaved and not.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use postroad_core::{BounceClass, Domain, NodeId, OutcomeKind};
use postroad_directory::{Pattern, Put, Route, change::PutSource};
use postroad_net::Guard;
use postroad_proto::queue::Report;
use postroad_testkit::{
    Script, Sink,
    dns::{Failure, Zones},
    sink::{Action, Phase, Receiver, Rule, Tls},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};

use crate::{
    node::{Setup, acts, misbehaves, replies, sink, sink_at},
    queue::assignment,
};

use BounceClass as C;
use OutcomeKind as K;

fn is(report: &Report, kind: K, class: Option<C>) {
    let class = class.map_or(0, |class| u32::from(class.code()));
    assert_eq!((report.kind, report.bounce_class), (u32::from(kind.code()), class), "{report:?}");
    assert!(report.started_at_millis > 0 && report.ended_at_millis >= report.started_at_millis);
}

/// Sends one message to a receiver that behaves by `script`, and returns its report.
async fn outcome(setup: Setup, script: Script) -> Report {
    let sink = sink(script).await;
    let node = setup.start_routed(&sink).await;
    node.assign(1, "example.test", &["a@example.test"]).await;
    let report = node.queue.report(1, 0).await;
    node.stop().await;
    report
}

#[tokio::test]
async fn a_message_is_delivered_and_reported() {
    let sink = sink(Script::default()).await;
    let node = Setup::default().start_routed(&sink).await;
    node.assign(1, "example.test", &["a@example.test", "b@example.test"]).await;
    for recipient in 0..2 {
        let report = node.queue.report(1, recipient).await;
        is(&report, K::Delivered, None);
        assert_eq!((report.code, report.source), (250, 1));
        assert_eq!(report.remote, format!("127.0.0.1 [127.0.0.1]:{}", sink.address().port()));
        assert_eq!(report.tls, "");
    }
    assert_eq!(sink.ledger().count(), 2);
    assert!(node.health.is_ready());
    let (queue, _) = node.stop().await;
    assert_eq!(queue.seen(|seen| seen.released.len()), 1);
}

#[tokio::test]
async fn starttls_is_used_if_it_is_offered() {
    let report = outcome(Setup::default(), Script { tls: Tls::Starttls, ..Script::default() }).await;
    is(&report, K::Delivered, None);
    assert!(report.tls.starts_with("TLSv1.3 "), "{}", report.tls);
}

#[tokio::test]
async fn d_039_a_host_whose_starttls_fails_is_tried_again_without_tls() {
    for rule in [Rule::reply(Phase::Starttls, "454 4.7.0 not now"), acts(Phase::Starttls, Action::Close)] {
        let script = Script { tls: Tls::Starttls, ..Script::default() };
        let report = outcome(Setup::default(), script.with_rule(rule)).await;
        is(&report, K::Delivered, None);
        assert_eq!(report.tls, "");
    }
}

#[tokio::test]
async fn s_402_a_host_with_plaintext_after_its_starttls_reply_is_not_asked_again_in_the_clear() {
    let injected = Script { tls: Tls::Starttls, ..misbehaves(Phase::Starttls, Action::Inject) };
    let report = outcome(Setup::default(), injected.clone()).await;
    is(&report, K::Soft, Some(C::TlsPolicy));
    assert!(report.text.contains("under attack"), "{}", report.text);
    // Another mail host may have a way without the attacker.
    let (first, second) = two_sinks(injected, Script::default()).await;
    let node = two_hosts(&first, &second).start(None).await;
    node.assign(1, "example.test", &["a@example.test"]).await;
    is(&node.queue.report(1, 0).await, K::Delivered, None);
    assert_eq!((first.ledger().count(), second.ledger().count()), (0, 1));
    node.stop().await;
}

#[tokio::test]
async fn d_033_and_d_038_the_outcome_depends_on_the_reply_and_its_phase() {
    let check = async |phase, reply: &str, kind, class| {
        let report = outcome(Setup::default(), replies(phase, reply)).await;
        is(&report, kind, Some(class));
        assert_eq!(report.code.to_string(), reply[..3]);
    };
    // D-033: MAIL 5xx is for all recipients.
    check(Phase::Mail, "550 5.7.1 you may not send", K::Hard, C::Policy).await;
    check(Phase::Recipient, "550 5.1.1 no such user", K::Hard, C::InvalidRecipient).await;
    check(Phase::Recipient, "451 4.7.1 greylisted", K::Soft, C::Greylisted).await;
    check(Phase::Message, "554 5.7.1 looks like spam", K::Hard, C::SpamContent).await;
    // D-038: a greeting of 554 does not concern the message.
    check(Phase::Connect, "554 no service here", K::SiteSoft, C::Policy).await;
}

#[tokio::test]
async fn d_001_every_phase_has_a_deadline() {
    let phases = [
        (Phase::Connect, K::Soft),
        (Phase::Hello, K::Soft),
        (Phase::Mail, K::Soft),
        (Phase::Recipient, K::Soft),
        (Phase::Data, K::Soft),
        (Phase::Message, K::Unknown),
    ];
    for (phase, kind) in phases {
        let mut setup = Setup::default();
        let timeouts = &mut setup.config.timeouts;
        timeouts.greeting = Duration::from_secs(1);
        timeouts.hello = Duration::from_secs(1);
        timeouts.envelope = Duration::from_secs(1);
        timeouts.data = Duration::from_secs(1);
        timeouts.message = Duration::from_secs(1);
        let started = postroad_env::now();
        let report = outcome(setup, misbehaves(phase, Action::Stall)).await;
        is(&report, kind, Some(C::Timeout));
        assert!(postroad_env::since(started) < Duration::from_secs(10), "{phase:?}");
    }
}

#[tokio::test]
async fn d_002_and_d_037_an_invalid_or_dripping_reply_ends_the_session() {
    let report = outcome(Setup::default(), misbehaves(Phase::Mail, Action::Garbage)).await;
    is(&report, K::SiteSoft, Some(C::Protocol));
    let mut setup = Setup::default();
    setup.config.timeouts.envelope = Duration::from_secs(1);
    let slow = Rule { byte_delay_ms: 300, ..Rule::reply(Phase::Mail, "250 2.1.0 so slow") };
    let report = outcome(setup, Script::default().with_rule(slow)).await;
    is(&report, K::Soft, Some(C::Timeout));
}

#[tokio::test]
async fn d_044_an_irregular_reply_that_can_be_understood_is_never_unknown() {
    let check = async |phase, raw: &str, kind: K, code: u32, said: &str| {
        let rule = Rule { then: Action::Raw, ..Rule::reply(phase, raw) };
        let report = outcome(Setup::default(), Script::default().with_rule(rule)).await;
        assert_eq!((report.kind, report.code), (u32::from(kind.code()), code), "{report:?}");
        assert!(report.text.contains(said), "{report:?}");
    };
    check(Phase::Message, "\r\n250 taken\r\n", K::Delivered, 250, "taken").await;
    check(Phase::Message, "250-queued\r\n251 ok\r\n", K::Delivered, 251, "queued").await;
    check(Phase::Message, "filter: ok\r\n250 2.0.0 taken\r\n", K::Delivered, 250, "filter: ok").await;
    check(Phase::Connect, "220-x.test\r\n521 5.7.1 blocked\r\n", K::SiteSoft, 521, "220 x.test").await;
}

#[tokio::test]
async fn d_033_the_outcome_of_each_recipient_is_exact() {
    let refuse =
        Receiver { rules: vec![Rule::reply(Phase::Recipient, "550 5.1.1 no")], ..Receiver::default() };
    let sink = sink(Script::default().with_domain("no.test", refuse)).await;
    let node = Setup::default().start_routed(&sink).await;
    node.assign(1, "route:sink:25", &["a@yes.test", "b@no.test", "c@yes.test"]).await;
    is(&node.queue.report(1, 0).await, K::Delivered, None);
    is(&node.queue.report(1, 1).await, K::Hard, Some(C::InvalidRecipient));
    is(&node.queue.report(1, 2).await, K::Delivered, None);
    node.stop().await;
}

#[tokio::test]
async fn d_034_a_close_after_the_dot_is_unknown_and_one_after_250_is_delivered() {
    let report = outcome(Setup::default(), misbehaves(Phase::Message, Action::CloseSilently)).await;
    is(&report, K::Unknown, Some(C::Connection));
    let report = outcome(Setup::default(), misbehaves(Phase::Message, Action::Close)).await;
    is(&report, K::Delivered, None);
    let report = outcome(Setup::default(), misbehaves(Phase::Data, Action::CloseSilently)).await;
    is(&report, K::Soft, Some(C::Connection));
}

#[tokio::test]
async fn d_030_a_connection_is_reused_within_its_limits() {
    let caps = postroad_directory::Caps {
        connections_max: Some(1),
        messages_per_connection_max: Some(3),
        ..Default::default()
    };
    let receiver = Receiver {
        limits: postroad_testkit::sink::Limits {
            connections_max: Some(1),
            messages_per_connection_max: Some(3),
            ..Default::default()
        },
        ..Receiver::default()
    };
    let sink = sink(Script::default().with_domain("example.test", receiver)).await;
    let node = Setup { caps, ..Setup::default() }.start_routed(&sink).await;
    for message in 1..=10 {
        node.assign(message, "example.test", &["a@example.test"]).await;
    }
    for message in 1..=10 {
        is(&node.queue.report(message, 0).await, K::Delivered, None);
    }
    let meters = sink.meters();
    assert!(!meters.is_empty());
    for meter in &meters {
        assert_eq!(meter.violations, 0, "{meter:?}");
    }
    node.stop().await;
}

#[tokio::test]
async fn d_031_a_stale_connection_costs_no_attempt() {
    let first = sink(Script::default()).await;
    let address = first.address();
    let node = Setup::default().start_routed(&first).await;
    node.assign(1, "example.test", &["a@example.test"]).await;
    is(&node.queue.report(1, 0).await, K::Delivered, None);
    // The receiver closes all connections and restarts at once.
    first.stop().await.unwrap();
    let second = sink_at(address, Script::default()).await;
    node.assign(2, "example.test", &["a@example.test"]).await;
    is(&node.queue.report(2, 0).await, K::Delivered, None);
    assert_eq!(second.ledger().count(), 1);
    node.stop().await;
}

#[tokio::test]
async fn d_010_and_d_038_the_next_mail_host_is_tried_when_one_refuses() {
    let (first, second) = two_sinks(replies(Phase::Connect, "554 no service"), Script::default()).await;
    let node = two_hosts(&first, &second).start(None).await;
    node.assign(1, "example.test", &["a@example.test"]).await;
    let report = node.queue.report(1, 0).await;
    is(&report, K::Delivered, None);
    assert!(report.remote.starts_with("two.test ["), "{}", report.remote);
    assert_eq!((first.ledger().count(), second.ledger().count()), (0, 1));
    node.stop().await;
}

/// A domain whose mail hosts are two receivers, `one.test` preferred.
fn two_hosts(first: &Sink, second: &Sink) -> Setup {
    let zones = Zones::default()
        .mx("example.test", 10, "one.test")
        .mx("example.test", 20, "two.test")
        .address("one.test", first.address().ip())
        .address("two.test", second.address().ip());
    let mut setup = Setup { zones, ..Setup::default() };
    setup.config.smtp_port = first.address().port();
    setup
}

/// Two receivers on different addresses and the same port.
async fn two_sinks(first: Script, second: Script) -> (Sink, Sink) {
    let first = sink(first).await;
    let address = SocketAddr::from(([127, 0, 0, 2], first.address().port()));
    let second = sink_at(address, second).await;
    (first, second)
}

#[tokio::test]
async fn d_011_to_d_013_domains_without_a_mail_host_get_distinct_outcomes() {
    let zones = Zones::default()
        .mx("null.test", 0, ".")
        .mx("dead.test", 10, "nowhere.test")
        .fail("broken.test", Failure::Server);
    let node = Setup { zones, ..Setup::default() }.start(None).await;
    let expected = [
        ("missing.test", K::Hard, C::BadDomain, "5.1.2"),
        ("null.test", K::Hard, C::BadDomain, "5.1.10"),
        ("dead.test", K::Soft, C::Dns, "4.4.3"),
        ("broken.test", K::Soft, C::Dns, "4.4.3"),
    ];
    for (message, (domain, kind, class, status)) in (1..).zip(expected) {
        node.assign(message, domain, &[&format!("a@{domain}")]).await;
        let report = node.queue.report(message, 0).await;
        is(&report, kind, Some(class));
        assert!(report.text.starts_with(status), "{}", report.text);
    }
    node.stop().await;
}

#[tokio::test]
async fn d_014_self_is_every_source_of_the_cluster_and_every_address_of_the_setting() {
    let addresses: [IpAddr; 3] = [1_u8, 2, 3].map(|last| [203, 0, 113, last].into());
    let [ours, another_nodes, named] = addresses;
    let zones = Zones::default()
        .mx("ours.test", 10, "mx.ours.test")
        .address("mx.ours.test", ours)
        .mx("another.test", 10, "mx.another.test")
        .address("mx.another.test", another_nodes)
        .mx("named.test", 10, "mx.named.test")
        .address("mx.named.test", named);
    let mut setup = Setup { zones, source_address: Some(ours), ..Setup::default() };
    setup.config.own_addresses = vec![named];
    let node = setup.start(None).await;
    for (message, domain) in [(1, "ours.test"), (2, "named.test")] {
        node.assign(message, domain, &[&format!("a@{domain}")]).await;
        let report = node.queue.report(message, 0).await;
        is(&report, K::Hard, Some(C::Loop));
        assert!(report.text.starts_with("5.4.6"), "{}", report.text);
    }
    // Another node gets a source: soon its address is one of ours.
    let helo = Domain::parse("two.postroad.example").unwrap();
    let nodes = vec![NodeId(8)];
    let put = PutSource { name: "two".into(), address: Some(another_nodes), helo, nodes };
    node.queue.put(Put::Source(put));
    for message in 3.. {
        node.assign(message, "another.test", &["a@another.test"]).await;
        let report = node.queue.report(message, 0).await;
        if report.text.starts_with("5.4.6") {
            break;
        }
        assert!(report.text.starts_with("5.4.4") && message < 10_000, "{}", report.text);
    }
    node.stop().await;
}

#[tokio::test]
async fn d_015_a_private_address_is_never_connected() {
    let sink = sink(Script::default()).await;
    let mut setup = Setup {
        zones: Zones::default().mx("example.test", 10, "in.test").address("in.test", sink.address().ip()),
        guard: Guard::default(),
        ..Setup::default()
    };
    setup.config.smtp_port = sink.address().port();
    let node = setup.start(None).await;
    node.assign(1, "example.test", &["a@example.test"]).await;
    let report = node.queue.report(1, 0).await;
    is(&report, K::Hard, Some(C::BadDomain));
    assert!(report.text.starts_with("5.4.4"), "{}", report.text);
    node.stop().await;
}

#[tokio::test]
async fn d_016_where_ipv6_fails_the_same_attempt_goes_on_with_ipv4() {
    let sink = sink(Script::default()).await;
    let zones = Zones::default()
        .address("both.test", std::net::Ipv6Addr::LOCALHOST)
        .address("both.test", sink.address().ip());
    let guard = Guard { allow: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()] };
    let mut setup = Setup { zones, guard, ..Setup::default() };
    setup.config.smtp_port = sink.address().port();
    let node = setup.start(None).await;
    for message in 1..=2 {
        node.assign(message, "both.test", &["a@both.test"]).await;
        let report = node.queue.report(message, 0).await;
        is(&report, K::Delivered, None);
        assert!(report.remote.starts_with("both.test [127.0.0.1]"), "{}", report.remote);
    }
    let (queue, _) = node.stop().await;
    assert_eq!(queue.seen(|seen| seen.reports.len()), 2);
}

/// Takes one recipient in each transaction of one connection; returns the commands.
async fn take_one_recipient_at_a_time(listener: TcpListener) -> Vec<String> {
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 r.example\r\n").await.unwrap();
    let (mut commands, mut recipients, mut in_message) = (Vec::new(), 0, false);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return commands;
        }
        let line = line.trim_end();
        if in_message && line != "." {
            continue;
        }
        let reply = match line.get(..4).unwrap_or(line) {
            "RCPT" if recipients > 0 => "452 4.5.3 too many recipients",
            "DATA" => "354 go",
            _ => "250 ok",
        };
        recipients = if line == "." { 0 } else { recipients + usize::from(line.starts_with("RCPT")) };
        in_message = line == "DATA";
        commands.push(line.to_owned());
        stream.write_all(format!("{reply}\r\n").as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn d_035_recipients_over_the_limit_go_in_other_transactions_of_the_same_session() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let receiver = tokio::spawn(take_one_recipient_at_a_time(listener));
    let route = Route { pattern: Pattern::Any, host: "127.0.0.1".into(), port };
    let node = Setup::default().start(Some(route)).await;
    node.assign(1, "example.test", &["a@example.test", "b@example.test", "c@example.test"]).await;
    for recipient in 0..3 {
        is(&node.queue.report(1, recipient).await, K::Delivered, None);
    }
    let (queue, _) = node.stop().await;
    assert_eq!(queue.seen(|seen| seen.reports.len()), 3, "nobody failed");
    let commands = receiver.await.unwrap();
    let count = |start: &str| commands.iter().filter(|command| command.starts_with(start)).count();
    assert_eq!((count("EHLO"), count("MAIL"), count("RCPT")), (1, 3, 6), "{commands:?}");
}

#[tokio::test]
async fn d_040_the_name_in_ehlo_is_that_of_the_source() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let receiver = tokio::spawn(take_one_recipient_at_a_time(listener));
    let route = Route { pattern: Pattern::Any, host: "127.0.0.1".into(), port };
    let node = Setup::default().start(Some(route)).await;
    node.assign(1, "example.test", &["a@example.test"]).await;
    is(&node.queue.report(1, 0).await, K::Delivered, None);
    node.stop().await;
    assert_eq!(receiver.await.unwrap()[0], "EHLO out.postroad.example");
}

#[tokio::test]
async fn d_036_the_lane_of_a_site_that_blocks_us_pauses_and_others_go_on() {
    const BLOCKED: &str = "421 4.7.1 Client host [198.51.100.7] blocked using zen.spamhaus.org";
    let busy = Receiver { rules: vec![Rule::reply(Phase::Mail, BLOCKED)], ..Receiver::default() };
    let script = Script::default().with_domain("busy.test", busy);
    let (first, second) = two_sinks(replies(Phase::Mail, BLOCKED), script).await;
    let zones = Zones::default()
        .address("busy.test", first.address().ip())
        .address("good.test", second.address().ip());
    let mut setup = Setup { zones, ..Setup::default() };
    setup.config.smtp_port = first.address().port();
    setup.config.pause_first = Duration::from_secs(1);
    let node = setup.start(None).await;
    node.assign(1, "busy.test", &["a@busy.test"]).await;
    is(&node.queue.report(1, 0).await, K::PolicyBlock, Some(C::SpamBlock));
    node.queue.window(1, "busy.test", |window| window == 0).await;
    // An assignment during the pause is given back.
    node.assign(2, "busy.test", &["a@busy.test"]).await;
    let given_back = node.queue.until("answer", |seen| seen.answers.first().cloned()).await;
    assert!(!given_back.started);
    node.assign(3, "good.test", &["a@good.test"]).await;
    is(&node.queue.report(3, 0).await, K::Delivered, None);
    // After the pause the window is small.
    let (_, window) = node.queue.window(1, "busy.test", |window| window > 0).await;
    assert!(window <= 10);
    first.set_script(Script::default());
    node.assign(4, "busy.test", &["a@busy.test"]).await;
    is(&node.queue.report(4, 0).await, K::Delivered, None);
    node.stop().await;
}

#[tokio::test]
async fn d_036_a_receiver_that_ends_connections_after_some_messages_gets_the_rest_at_once() {
    for per_connection in [5, 2] {
        let script = Script { messages_per_connection_max: per_connection, ..Script::default() };
        let sink = sink(script).await;
        let node = Setup::default().start_routed(&sink).await;
        for message in 1..=60 {
            node.assign(message, "example.test", &["a@example.test"]).await;
        }
        for message in 1..=60 {
            is(&node.queue.report(message, 0).await, K::Delivered, None);
        }
        assert_eq!(sink.ledger().count(), 60);
        let paused = node.queue.seen(|seen| {
            let windows = seen.windows.iter().flat_map(|windows| &windows.sources);
            windows.flat_map(|source| &source.sites).any(|site| site.window == 0)
        });
        assert!(!paused, "nothing was said about the lane");
        node.stop().await;
    }
}

#[tokio::test]
async fn d_036_a_host_that_is_busy_is_left_for_the_next_in_the_same_attempt() {
    for phase in [Phase::Connect, Phase::Hello, Phase::Mail] {
        for reply in ["421 4.3.2 too busy", "451 4.7.1 slow down, you are sending too fast"] {
            let (first, second) = two_sinks(replies(phase, reply), Script::default()).await;
            let node = two_hosts(&first, &second).start(None).await;
            for message in 1..=3 {
                node.assign(message, "example.test", &["a@example.test"]).await;
                let report = node.queue.report(message, 0).await;
                is(&report, K::Delivered, None);
                assert!(report.remote.starts_with("two.test ["), "{phase:?} {reply}: {}", report.remote);
            }
            node.stop().await;
        }
    }
}

#[tokio::test]
async fn d_036_a_site_whose_hosts_are_all_busy_costs_one_attempt() {
    for phase in [Phase::Connect, Phase::Hello, Phase::Mail] {
        let busy = replies(phase, "421 4.7.0 slow down, you are sending too fast");
        let (first, second) = two_sinks(busy.clone(), busy).await;
        let node = two_hosts(&first, &second).start(None).await;
        node.assign(1, "example.test", &["a@example.test"]).await;
        is(&node.queue.report(1, 0).await, K::SiteSoft, Some(C::RateLimited));
        let (queue, _) = node.stop().await;
        assert_eq!(queue.seen(|seen| seen.reports.len()), 1, "{phase:?}");
    }
}

#[tokio::test]
async fn d_010_an_attempt_has_two_sessions_and_five_addresses_at_most() {
    let defaults = postroad_outbound::OutboundConfig::default();
    assert_eq!((defaults.addresses_max, defaults.sessions_max), (5, 2));
    let refusing = replies(Phase::Connect, "554 no service");
    let (first, second) = two_sinks(refusing.clone(), refusing).await;
    let third = sink_at(SocketAddr::from(([127, 0, 0, 3], first.address().port())), Script::default()).await;
    let mut setup = two_hosts(&first, &second);
    setup.zones =
        setup.zones.mx("example.test", 30, "three.test").address("three.test", third.address().ip());
    let node = setup.start(None).await;
    node.assign(1, "example.test", &["a@example.test"]).await;
    is(&node.queue.report(1, 0).await, K::SiteSoft, Some(C::Policy));
    assert_eq!(third.ledger().count(), 0);
    node.stop().await;
}

#[tokio::test]
async fn d_039_a_second_session_without_tls_leaves_the_next_host_its_turn() {
    let script = replies(Phase::Mail, "421 4.3.2 too busy").with_rule(acts(Phase::Starttls, Action::Close));
    let script = Script { tls: Tls::Starttls, ..script };
    let (first, second) = two_sinks(script, Script::default()).await;
    let node = two_hosts(&first, &second).start(None).await;
    node.assign(1, "example.test", &["a@example.test"]).await;
    let report = node.queue.report(1, 0).await;
    is(&report, K::Delivered, None);
    assert!(report.remote.starts_with("two.test ["), "{}", report.remote);
    node.stop().await;
}

#[tokio::test]
async fn s_112_a_message_with_a_bare_cr_or_lf_never_leaves() {
    for content in [
        "Subject: hi\r\n\r\na\nb\r\n",
        "Subject: hi\r\n\r\na\rb\r\n",
        "Subject: hi\r\n\r\na\n.\r\nMAIL FROM:<x@y.test>\r\n",
    ] {
        let sink = sink(Script::default()).await;
        let node = Setup::default().start_routed(&sink).await;
        assign_content(&node, "a@example.test", content).await;
        let report = node.queue.report(1, 0).await;
        is(&report, K::Hard, Some(C::Other));
        assert!(report.text.starts_with("5.6.0"), "{}", report.text);
        node.stop().await;
        assert_eq!((sink.ledger().count(), sink.ledger().bare_newlines()), (0, 0), "{content:?}");
    }
}

const SIGNED: &str =
    "Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\nGr\u{fc}\u{df}e\r\n--b--\r\n";

/// Assigns a message with this content.
async fn assign_content(node: &crate::node::Node, address: &str, content: &'static str) {
    let mut message = assignment(1, crate::node::SOURCE, node.epoch, "example.test", &[address]);
    message.content = Bytes::from_static(content.as_bytes());
    message.size_bytes = content.len() as u64;
    node.queue.assign(vec![message]).await;
}

#[tokio::test]
async fn s_210_a_host_that_lacks_what_a_message_needs_is_left_for_the_next_before_a_bounce() {
    for (lacking, address, content) in [
        (
            Script { smtputf8: false, ..Script::default() },
            "m\u{fc}ller@example.test",
            "Subject: hi\r\n\r\nhi\r\n",
        ),
        (Script { eight_bit_mime: false, ..Script::default() }, "a@example.test", SIGNED),
    ] {
        let (first, second) = two_sinks(lacking.clone(), Script::default()).await;
        let node = two_hosts(&first, &second).start(None).await;
        assign_content(&node, address, content).await;
        let report = node.queue.report(1, 0).await;
        is(&report, K::Delivered, None);
        assert!(report.remote.starts_with("two.test ["), "{}", report.remote);
        second.set_script(lacking);
        node.stop().await;
    }
}

#[tokio::test]
async fn s_204_a_message_is_converted_for_a_host_without_8bitmime_whatever_door_it_came_by() {
    for eight_bit_mime in [true, false] {
        let sink = sink(Script { smtputf8: false, eight_bit_mime, ..Script::default() }).await;
        let node = Setup::default().start_routed(&sink).await;
        assign_content(&node, "a@example.test", "Subject: Gr\u{fc}\u{df}e\r\n\r\nGr\u{fc}\u{df}e\r\n").await;
        is(&node.queue.report(1, 0).await, K::Delivered, None);
        assert_eq!(sink.ledger().count(), 1);
        node.stop().await;
    }
    // A signed part must not be changed.
    let sink = sink(Script { eight_bit_mime: false, ..Script::default() }).await;
    let node = Setup::default().start_routed(&sink).await;
    assign_content(&node, "a@example.test", SIGNED).await;
    let report = node.queue.report(1, 0).await;
    is(&report, K::Hard, Some(C::Other));
    assert!(report.text.starts_with("5.6.3"), "{}", report.text);
    node.stop().await;
}

#[tokio::test]
async fn d_050_a_report_names_party_and_rule() {
    let report = outcome(Setup::default(), replies(Phase::Recipient, "550 5.1.1 no such user")).await;
    let reading = report.reading.unwrap();
    assert_eq!(reading.party, u32::from(postroad_core::Party::Recipient.code()));
    assert!(reading.suppress && !reading.rule.is_empty());
}

#[tokio::test]
async fn d_062_the_lane_of_an_unreachable_site_pauses() {
    let gone = sink(Script::default()).await;
    let address = gone.address();
    gone.stop().await.unwrap();
    let mut setup = Setup { zones: Zones::default().address("gone.test", address.ip()), ..Setup::default() };
    setup.config.smtp_port = address.port();
    setup.config.connections_initial = 2;
    let node = setup.start(None).await;
    for message in 1..=2 {
        node.assign(message, "gone.test", &["a@gone.test"]).await;
        let report = node.queue.report(message, 0).await;
        is(&report, K::Soft, Some(C::Connection));
    }
    node.queue.window(1, "gone.test", |window| window == 0).await;
    node.stop().await;
}

#[tokio::test]
async fn d_053_a_source_address_that_this_node_lacks_is_an_internal_fault() {
    let setup = Setup { source_address: Some([203, 0, 113, 1].into()), ..Setup::default() };
    let report = outcome(setup, Script::default()).await;
    is(&report, K::Internal, Some(C::Connection));
    assert!(report.text.starts_with("4.3.0 cannot use the source address"), "{}", report.text);
}

#[tokio::test]
async fn large_content_is_fetched_before_delivery() {
    let sink = sink(Script::default()).await;
    let node = Setup::default().start_routed(&sink).await;
    let part = Bytes::from("0123456789abcdef0123456789abcdef0123456789abcdef0123456789ab\r\n".repeat(8000));
    let parts = vec![Bytes::from_static(b"Subject: large\r\n\r\n"), part.clone(), part.clone(), part];
    let size: usize = parts.iter().map(Bytes::len).sum();
    node.queue.set_content(1, parts);
    let mut large = assignment(1, crate::node::SOURCE, node.epoch, "example.test", &["a@example.test"]);
    large.content = Bytes::new();
    large.size_bytes = size as u64;
    node.queue.assign(vec![large]).await;
    is(&node.queue.report(1, 0).await, K::Delivered, None);
    assert_eq!(sink.ledger().records()[0].size, size as u64);
    node.stop().await;
}

#[tokio::test]
async fn s_210_an_internationalized_address_needs_smtputf8_at_the_receiver() {
    let sink = sink(Script { smtputf8: false, ..Script::default() }).await;
    let node = Setup::default().start_routed(&sink).await;
    let mut message =
        assignment(1, crate::node::SOURCE, node.epoch, "example.test", &["müller@example.test"]);
    message.smtputf8 = true;
    node.queue.assign(vec![message]).await;
    let report = node.queue.report(1, 0).await;
    is(&report, K::Hard, Some(C::Other));
    assert!(report.text.starts_with("5.6.7"), "{}", report.text);
    node.stop().await;
}
