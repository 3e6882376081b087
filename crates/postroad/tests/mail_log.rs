//! `docs/reference/mail-log.md` says what the records say, and a cluster writes them.
//!
//! `POSTROAD_WRITE_DOCS=1 cargo test -p postroad --test mail_log` writes the page again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use postroad_core::{AttemptNumber, MessageId, Timestamp};
use postroad_telemetry::{
    LogAddresses, LogFormat,
    mail_log::{
        self, Accepted, Attempt, Delivery, Event, Mailbox, RECORDS, Record, Rejected, Said, Secs, Trace,
    },
};
use postroad_testkit::{
    Script, Sink, SinkConfig,
    client::{Submitted, submit, submit_grpc},
    cluster::{Cluster, ClusterSpec, Role},
    exposition::Exposition,
    process::{Process, http_get},
    sink::{Phase, Receiver, Rule},
};

/// All that a test waits for comes within this, or never.
const PATIENCE: Duration = Duration::from_secs(120);

const INTRODUCTION: &str = "# Mail log

One line for everything that happens to a message: accepted or refused, each attempt, and its end for each recipient.
The lines go to the process log, and to the file `telemetry.mail_log` where that is set.
This page is made from the records in `crates/telemetry/src/mail_log.rs`, by `crates/postroad/tests/mail_log.rs`, which fails when it is old.

A line has the time, the level, `mail:`, the event and then every field of the event as `key=value`, always all of them and in the order below.
A field without a value is `-`; a value with spaces, quotes or characters that are not printable ASCII is written in double quotes with JSON's escapes.
`postroad dev` shows the lines with `POSTROAD_LOG=warn,mail=info`.
With `telemetry.log_format = \"json\"` a line is a JSON object with the same keys, in which a field without a value is `null`.

";

const SETTINGS: &str = "
## Settings

All are in `[telemetry]`, of every role.

- `mail_log`: the file. It is opened again on SIGHUP, and within a second or so after it was renamed or removed, so `logrotate` needs neither `copytruncate` nor a restart. While it cannot be opened again, lines go to the renamed file and an error is logged. A new file can be read by its group (0640), and so can its directory where that is made (0750); a file that exists keeps its mode. The unit `postroad@.service` can write to `/var/log/postroad`, so `mail_log = \"/var/log/postroad/mail.log\"` works; another directory needs `ReadWritePaths=` in a drop-in of the unit.
- `log_filter`: `mail=off` behind a comma keeps the lines out of the process log.
- `log_addresses`: how much of an address is shown, `none` unless it is set. `domain` shows what stands behind the `@`. In replies the local part is replaced by `*`, and with `none` the domain as well. Logins count as addresses.
- `rejected_lines_per_sec_max`: clients can be refused as often as they like, so of `rejected` and of `login_failed` so many lines are written in a second; the others are counted in `omitted` lines, a second or so later, and in `postroad_mail_log_omitted_lines_total`.
- `mail_log_buffer_bytes`: lines gather for 25 milliseconds and are written by one thread. Mail never waits for that: when the disk or the reader of the process log is slower than mail for so long that the buffer is full, lines are lost, counted in `lost` lines and in `postroad_mail_log_lost_lines_total`.

## What to rely on

- Every role writes what it decides, so a message's lines are in the logs of an ingress node, of outbound nodes and of queue nodes; `id` is the same in all of them, and `trace` where traces are on.
- `accepted` is written when the message is safe on a majority of disks, before the client reads its 250.
- The queue's lines are written by the leader of the message's group when the change is committed. When a leader ends at that moment, a line may be missing, or be written by the old and the new leader; the history in the console has every event exactly once.
- A process that is killed loses the lines of the last 25 milliseconds.

## Events
";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    write!(page, "```text\n{}```\n{SETTINGS}", examples()).unwrap();
    for (events, written_by, fields) in RECORDS {
        page.push('\n');
        for event in *events {
            writeln!(page, "### {}\n\n{}\n", event.as_str(), event.help()).unwrap();
        }
        let these = if events.len() > 1 { "All of these are written" } else { "Written" };
        writeln!(page, "{these} by {written_by}.\n\n| field | |\n|---|---|").unwrap();
        for field in *fields {
            writeln!(page, "| `{}` | {} |", field.name, field.help).unwrap();
        }
    }
    page
}

/// Lines as they are written, with `log_addresses = "domain"`.
fn examples() -> String {
    let id = MessageId::new(
        Timestamp::from_millis(1_795_480_496_000),
        postroad_core::GroupId(1),
        0x5eed_cafe_0042,
    );
    let client = Some([192, 0, 2, 7].into());
    let trace = Trace("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let (tenant, site, tls) = ("shop", "mx.example.net", Some("TLS1.3 AES_256_GCM_SHA384"));
    let accepted = Accepted {
        id,
        tenant,
        client,
        size: 8_412,
        recipients: 1,
        from: Mailbox::Of("orders@shop.example"),
        credential: "web",
        protocol: "smtp",
        helo: Some("web1.shop.example"),
        tls,
        seconds: Secs(Duration::from_millis(6)),
        trace,
    };
    let rejected = Rejected {
        stage: "mail",
        reason: "sender",
        reply: Said("550 5.7.1 this client may not send as `bank.example`"),
        client,
        tenant: Some(tenant),
        from: Mailbox::Of("info@bank.example"),
        to: Mailbox::None,
        protocol: "smtp",
        helo: Some("web1.shop.example"),
        trace: Trace(""),
    };
    let attempt = Attempt {
        id,
        recipient: 0,
        attempt: AttemptNumber(1),
        outcome: "delivered",
        class: None,
        party: None,
        code: Some(250),
        reply: Said("2.0.0 queued as 4XyZ for <anna@example.net>"),
        rule: None,
        to: Mailbox::Of("anna@example.net"),
        source: "out-1",
        site,
        mx: Some("mx1.example.net"),
        address: Some(([203, 0, 113, 25], 25).into()),
        tls,
        seconds: Secs(Duration::from_millis(412)),
        delay: Secs(Duration::from_millis(431)),
        trace,
    };
    let delivered = Delivery {
        event: Event::Delivered,
        id,
        recipient: 0,
        attempts: 1,
        to: Mailbox::Of("anna@example.net"),
        tenant,
        site,
        outcome: Some("delivered"),
        reply: attempt.reply,
        delay: Secs(Duration::from_millis(437)),
        trace,
    };
    let mut lines = String::new();
    let mut show = |millis: u64, record: &dyn Show| lines.push_str(&record.show(1_795_480_496_000 + millis));
    show(6, &accepted);
    show(431, &attempt);
    show(437, &delivered);
    show(9_120, &rejected);
    lines
}

trait Show {
    fn show(&self, millis: u64) -> String;
}

impl<R: Record> Show for R {
    fn show(&self, millis: u64) -> String {
        mail_log::line(Timestamp::from_millis(millis), self, LogFormat::Text, LogAddresses::Domain)
    }
}

#[test]
fn the_mail_log_page_is_what_the_records_say() {
    let path = root().join("docs/reference/mail-log.md");
    let page = page();
    if std::env::var_os("POSTROAD_WRITE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/reference/mail-log.md is old: run with POSTROAD_WRITE_DOCS=1");
    let listed: usize = RECORDS.iter().map(|(events, ..)| events.len()).sum();
    assert_eq!(listed, Event::ALL.len(), "an event has no record");
}

/// The cluster of a test, and where its mail logs are.
struct Logged {
    cluster: Cluster,
    dir: tempfile::TempDir,
}

impl Logged {
    async fn start(receiver: std::net::SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = |role: Role| {
            let path = path_of(&dir, role);
            let text = format!(
                "[telemetry]\nmail_log = {path:?}\nlog_addresses = \"domain\"\nlog_filter = \"info,mail=off\"\n"
            );
            (role, text)
        };
        let spec = ClusterSpec {
            queues: 1,
            ingresses: 1,
            outbounds: 1,
            settings: [Role::Queue, Role::Ingress, Role::Outbound, Role::Control].map(settings).into(),
            ..ClusterSpec::usual(Path::new(env!("CARGO_BIN_EXE_postroad")), receiver)
        };
        let cluster = Cluster::start(spec).await.unwrap_or_else(|error| panic!("{error:#}"));
        Self { cluster, dir }
    }

    fn path(&self, role: Role) -> PathBuf {
        path_of(&self.dir, role)
    }

    fn process(&mut self, role: Role) -> &mut Process {
        &mut self.cluster.nodes(role).remove(0).process
    }

    async fn submit(&self, recipient: &str) -> Submitted {
        const CONTENT: &str = "From: <a@example.test>\r\nSubject: logged\r\n\r\nhello\r\n";
        submit(self.cluster.smtp()[0], "anna@example.test", &[recipient], CONTENT).await
    }

    async fn accepted(&self, recipient: &str) -> MessageId {
        match self.submit(recipient).await {
            Submitted::Acknowledged(message) => message.id,
            other => panic!("{other:?}\n{}", self.cluster.logs()),
        }
    }

    /// Waits for the line of an event that has these fields, and returns all of its fields.
    async fn line(&self, role: Role, event: &str, wanted: &[(&str, &str)]) -> BTreeMap<String, String> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(self.path(role)).unwrap_or_default();
            for line in text.lines().filter_map(|line| line.split_once(" INFO mail: ")?.1.strip_prefix(event))
            {
                let fields = fields_of(event, line);
                let has = |(key, value): &(&str, &str)| fields.get(*key).is_some_and(|found| found == value);
                if wanted.iter().all(has) {
                    return fields;
                }
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "no line `{event}` with {wanted:?} in\n{text}\n{}",
                self.cluster.logs()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The mail log of a role, in a directory that the role makes.
fn path_of(dir: &tempfile::TempDir, role: Role) -> PathBuf {
    let name = match role {
        Role::Queue => "queue",
        Role::Outbound => "outbound",
        Role::Control => "control",
        Role::Ingress => "ingress",
    };
    dir.path().join(name).join("mail.log")
}

/// Reads the fields of a line, which are those of the declaration, in its order.
fn fields_of(event: &str, line: &str) -> BTreeMap<String, String> {
    let (_, _, declared) =
        RECORDS.iter().find(|(events, ..)| events.iter().any(|known| known.as_str() == event)).unwrap();
    let mut rest = line;
    let mut fields = BTreeMap::new();
    for field in *declared {
        rest = rest
            .strip_prefix(' ')
            .and_then(|rest| rest.strip_prefix(field.name))
            .unwrap_or_else(|| panic!("`{}` is not next in `{rest}` of `{event}{line}`", field.name));
        rest = rest.strip_prefix('=').unwrap();
        let end = match rest.strip_prefix('"') {
            Some(quoted) => quoted.find('"').unwrap() + 2,
            None => rest.find(' ').unwrap_or(rest.len()),
        };
        fields.insert(field.name.to_owned(), rest[..end].trim_matches('"').to_owned());
        rest = &rest[end..];
    }
    assert_eq!(rest, "", "more than was declared in `{event}{line}`");
    fields
}

fn refusing(phase: Phase, reply: &str) -> Receiver {
    Receiver { rules: vec![Rule::reply(phase, reply)], ..Receiver::default() }
}

#[tokio::test]
async fn a_cluster_writes_a_line_for_everything_that_happens_to_a_message() {
    let script = Script::default()
        .with_domain("bad.test", refusing(Phase::Recipient, "550 5.1.1 <bob@bad.test> unknown"))
        .with_domain("later.test", refusing(Phase::Recipient, "450 4.2.0 greylisted"));
    let sink = Sink::start(SinkConfig { script, ..SinkConfig::default() }).await.unwrap();
    let mut logged = Logged::start(sink.address()).await;

    let good = logged.accepted("bob@good.test").await.to_string();
    let id = [("id", &*good)];
    let accepted = logged.line(Role::Ingress, "accepted", &id).await;
    assert_eq!((&*accepted["tenant"], &*accepted["client"]), ("test", "127.0.0.1"));
    assert_eq!((&*accepted["from"], &*accepted["credential"]), ("example.test", "here"));
    let attempt = logged.line(Role::Outbound, "attempt", &id).await;
    assert_eq!((&*attempt["outcome"], &*attempt["to"], &*attempt["code"]), ("delivered", "good.test", "250"));
    assert_eq!(attempt["address"], sink.address().to_string());
    assert!(["one", "two"].contains(&&*attempt["source"]), "{attempt:?}");
    let delivered = logged.line(Role::Queue, "delivered", &id).await;
    assert_eq!(
        (&*delivered["to"], &*delivered["tenant"], &*delivered["attempts"]),
        ("good.test", "test", "1")
    );

    let bad = logged.accepted("bob@bad.test").await.to_string();
    let bounced = logged.line(Role::Queue, "bounced", &[("id", &bad)]).await;
    assert!(bounced["reply"].contains("<*@bad.test>") && bounced["outcome"] == "hard", "{bounced:?}");

    let later = logged.accepted("bob@later.test").await;
    let id = later.to_string();
    logged.line(Role::Outbound, "attempt", &[("id", &id), ("outcome", "soft")]).await;
    for (command, event) in [("hold", "held"), ("release", "released"), ("cancel", "cancelled")] {
        logged.cluster.message(command, later).await.unwrap_or_else(|error| panic!("{error:#}"));
        logged.line(Role::Queue, event, &[("id", &id), ("to", "later.test")]).await;
    }

    assert!(matches!(logged.submit("bob@[192.0.2.1]").await, Submitted::Refused(550)));
    let rejected = logged.line(Role::Ingress, "rejected", &[("stage", "rcpt")]).await;
    assert_eq!((&*rejected["reason"], &*rejected["tenant"]), ("recipient", "test"));
    assert!(rejected["reply"].starts_with("550 5.7.1 "), "{rejected:?}");
    let key = submit_grpc(logged.cluster.grpc()[0], "wrong", "a@example.test", &["b@good.test"], "").await;
    assert!(matches!(key, Submitted::Rejected(_)), "{key:?}");
    logged.line(Role::Ingress, "login_failed", &[("reason", "wrong"), ("protocol", "grpc")]).await;

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for path in [Role::Queue, Role::Ingress].map(|role| logged.path(role)) {
        // Its group, such as a log shipper, reads it; all else that a process makes is for its user.
        assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o750, 0o640), "{}", path.display());
    }
    reopens_at_sighup(&mut logged).await;
    assert_eq!(mode(&logged.path(Role::Ingress)), 0o640);
    shows_its_metrics(&mut logged).await;
    says_why_it_cannot_take_mail(&mut logged).await;
    let no_addresses = |role| !fs::read_to_string(logged.path(role)).unwrap().contains("bob");
    assert!([Role::Queue, Role::Outbound, Role::Ingress].into_iter().all(no_addresses));
}

/// A client that gets a 4xx is not alone with it: the log has a line with the reason.
async fn says_why_it_cannot_take_mail(logged: &mut Logged) {
    logged.process(Role::Queue).kill().await.unwrap();
    let refused = logged.submit("bob@good.test").await;
    assert!(!matches!(refused, Submitted::Acknowledged(_)), "{refused:?}");
    // Where this machine is so slow that ingress has noticed before, the connection itself is refused.
    let reasons = [("message", "unavailable"), ("message", "unknown"), ("connect", "policy")];
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(logged.path(Role::Ingress)).unwrap();
        let lines = text.lines().filter_map(|line| line.split_once(" INFO mail: rejected"));
        let mut found = lines.map(|(_, fields)| fields_of("rejected", fields));
        if found.any(|fields| {
            let is =
                |(stage, reason): &(&str, &str)| fields["stage"] == *stage && fields["reason"] == *reason;
            fields["reply"].starts_with('4') && reasons.iter().any(is)
        }) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "no line with a reply of 4xx in\n{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// As logrotate does it: rename, then SIGHUP. The writer finds a renamed file by itself as well, so the log says why it
/// opened it.
async fn reopens_at_sighup(logged: &mut Logged) {
    let path = logged.path(Role::Ingress);
    fs::rename(&path, path.with_extension("1")).unwrap();
    logged.process(Role::Ingress).hang_up().unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let is_answer =
        |line: &str| line.contains("opened the mail log again") && line.contains("reason=\"requested\"");
    while !logged.process(Role::Ingress).log().lines().any(is_answer) {
        assert!(tokio::time::Instant::now() < deadline, "{}", logged.cluster.logs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let id = logged.accepted("bob@good.test").await.to_string();
    logged.line(Role::Ingress, "accepted", &[("id", &id)]).await;
    assert!(logged.process(Role::Ingress).is_running());
}

/// Which metrics a process of each role shows as soon as it runs: those of its own crates.
async fn shows_its_metrics(logged: &mut Logged) {
    // Made when it happens first, which in a good hour or in this cluster it does not.
    const LATER: &[&str] = &[
        "postroad_net_accept_failures_total",
        "postroad_net_node_handshake_failures_total",
        "postroad_net_connects_denied_total",
        // One queue node has no followers.
        "postroad_queue_follower_behind_bytes",
    ];
    let crates: [(Role, &[&str]); 4] = [
        (Role::Ingress, &["Ingress", "Connections", "DNS", "Mail log", "Process"]),
        (Role::Queue, &["Queue", "Directory", "Mail log", "Process"]),
        (Role::Outbound, &["Outbound", "DNS", "Mail log", "Process"]),
        (Role::Control, &["Control", "Mail log", "Process"]),
    ];
    for (role, titles) in crates {
        let (_, page) = http_get(logged.process(role).spec().metrics, "/metrics").await.unwrap();
        let page = Exposition::read(&String::from_utf8(page).unwrap());
        assert!(page.problems().is_empty(), "{role:?}: {:#?}", page.problems());
        assert!(role == Role::Control || page.sum("postroad_mail_log_lines_total") > 0.0, "{role:?}");
        let catalogues = postroad::metrics::catalogues();
        let own = catalogues.iter().filter(|catalogue| titles.contains(&catalogue.title));
        let own = own.flat_map(|catalogue| catalogue.metrics).map(|metric| metric.name);
        let missing: Vec<&str> = own.filter(|name| !LATER.contains(name) && !page.has(name)).collect();
        assert!(missing.is_empty(), "{role:?} does not show {missing:?}");
    }
}
