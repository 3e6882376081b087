//! What the command line says of a small queue, and what it does not do by accident; `three_nights` is the same at full size.

use std::{
    net::SocketAddr,
    process::{Output, Stdio},
    time::Duration,
};

use postroad_testkit::{
    Script, Sink, SinkConfig,
    client::{Submitted, submit},
    dev::Dev,
    process::postroad_binary,
    sink::{Action, Phase, Rule},
};
use serde_json::Value;
use tokio::{process::Command, time};

/// The longest that a test waits for a condition.
const PATIENCE: Duration = Duration::from_secs(120);

/// Messages for the site that is in trouble, and as many for others.
const MESSAGES: u64 = 30;

struct Night {
    dev: Dev,
    /// The receiver in trouble; `None` once it is gone.
    troubled: Option<Sink>,
    /// Its site, as the queue names it.
    site: String,
    others: Sink,
}

impl Night {
    async fn start() -> Self {
        let sink = async || Sink::start(SinkConfig::default()).await.expect("a sink starts");
        let (troubled, others) = (sink().await, sink().await);
        let routes = [format!("big.example={}", troubled.address()), format!("*={}", others.address())];
        let flags = ["--route", &routes[0], "--route", &routes[1]];
        let dev = Dev::start(&flags).await.unwrap_or_else(|error| panic!("{error:#}"));
        let site = format!("route:{}", troubled.address());
        Self { dev, troubled: Some(troubled), site, others }
    }

    fn troubled(&self) -> &Sink {
        self.troubled.as_ref().expect("it is there")
    }

    fn answer(&self, phase: Phase, reply: &str) {
        self.troubled().set_script(Script::default().with_rule(Rule::reply(phase, reply)));
    }

    async fn submit(&self, sender: &str, recipient: &str, count: u64) {
        for number in 0..count {
            let content = format!("From: {sender}\r\nSubject: {number}\r\n\r\nhello\r\n");
            let submitted = submit(self.dev.smtp(), sender, &[recipient], &content).await;
            assert!(matches!(submitted, Submitted::Acknowledged(_)), "{submitted:?}");
        }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let operator: SocketAddr = self.dev.operator();
        let mut command = Command::new(postroad_binary().expect("it was built"));
        command.args(arguments).args(["--server", &operator.to_string()]).kill_on_drop(true);
        command.stdin(Stdio::null());
        command.env("USER", "ann").env_remove("SUDO_USER").output().await.expect("the binary starts")
    }

    /// Runs a command that succeeds.
    async fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("it prints text")
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["-o", "json"]].concat()).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// The row of the troubled site in `queue list`, once it is as wanted.
    async fn row(&self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let site = self.site.as_str();
        let mut last = Value::Null;
        let wanted = async {
            loop {
                let list = self.json(&["queue", "list"]).await;
                let rows = list["rows"].as_array().expect("rows are a list");
                last = rows.iter().find(|row| row["key"] == site).cloned().unwrap_or_default();
                if is_wanted(&last) {
                    return last.clone();
                }
                time::sleep(Duration::from_millis(100)).await;
            }
        };
        time::timeout(PATIENCE, wanted).await.unwrap_or_else(|_| panic!("it never was as wanted"))
    }

    async fn until_nothing_waits(&self) {
        let empty = async {
            while self.ok(&["queue", "list"]).await != "nothing waits\n" {
                time::sleep(Duration::from_millis(100)).await;
            }
        };
        time::timeout(PATIENCE, empty).await.expect("the queue becomes empty");
    }
}

/// Deliveries that wait for an attempt.
fn waiting(row: &Value) -> u64 {
    row["queued"].as_u64().unwrap_or(0) + row["deferred"].as_u64().unwrap_or(0)
}

#[tokio::test]
async fn what_waits_is_seen_held_retried_and_cancelled_and_nothing_by_accident() {
    let mut night = Night::start().await;
    let (site, own) = (night.site.clone(), "news@shop.example");

    // It answers 421: the others get their mail, and this waits.
    night.answer(Phase::Mail, "421 4.7.0 too busy, come back later");
    night.submit(own, "someone@big.example", MESSAGES).await;
    night.submit("bills@bank.example", "someone@small.example", MESSAGES).await;
    assert!(night.others.ledger().wait_for_count(MESSAGES, PATIENCE).await, "the others are not held up");
    let row = night.row(|row| waiting(row) == MESSAGES && row["last_reply"]["code"] == 421).await;
    assert!(row["last_reply"]["text"].as_str().unwrap_or_default().contains("too busy"), "{row}");
    assert!(row["next_try_at"].is_string() && row["oldest_accepted_at"].is_string(), "{row}");
    let why: u64 =
        row["waits"].as_array().into_iter().flatten().filter_map(|wait| wait["deliveries"].as_u64()).sum();
    assert_eq!(why, MESSAGES, "each has a reason: {row}");
    let table = night.ok(&["queue", "list"]).await;
    assert!(table.contains("421 4.7.0 too busy"), "{table}");
    // Who sends it.
    let senders = night.json(&["queue", "list", "--by", "sender-domain", "--top", "1"]).await;
    assert_eq!(
        (&senders["rows"][0]["key"], waiting(&senders["rows"][0])),
        (&"shop.example".into(), MESSAGES)
    );
    let listed = night.json(&["message", "list", "--site", &site, "--limit", "10"]).await;
    assert_eq!(listed["deliveries"].as_array().map(Vec::len), Some(10));
    let next = listed["next"].as_str().expect("there are more");
    let rest = night.json(&["message", "list", "--site", &site, "--after", next]).await;
    assert_eq!(rest["deliveries"].as_array().map(Vec::len), Some(MESSAGES as usize - 10));

    // Nothing is done by accident.
    let check = async |arguments: &[&str], status: i32, part: &str| {
        let output = night.run(arguments).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
        assert!(text.contains(part), "{arguments:?}: {text}");
    };
    check(&["message", "cancel"], 2, "expected message ids, a selection such as `--site`, or `--all`").await;
    let how_many = format!("{MESSAGES} deliveries of {MESSAGES} messages");
    check(&["message", "cancel", "--site", &site], 1, &how_many).await;
    check(&["message", "cancel", "--tenant", "nobody", "--yes"], 3, "`tenant nobody` does not exist").await;
    assert_eq!(waiting(&night.row(|_| true).await), MESSAGES, "nothing was cancelled");

    // Held, and released by somebody who is named.
    let held = night.ok(&["message", "hold", "--site", &site, "--yes"]).await;
    assert_eq!(held, format!("{MESSAGES} held\n"));
    assert_eq!(
        night.ok(&["message", "hold", "--site", &site, "--yes"]).await,
        "no delivery is selected: nothing to do\n"
    );
    let row = night.row(|row| row["held"] == MESSAGES).await;
    assert_eq!(row["waits"][0]["reason"], "held", "{row}");
    let listed = night.json(&["message", "list", "--state", "held", "--limit", "1"]).await;
    let delivery = &listed["deliveries"][0];
    assert!(delivery["changed_by"].as_str().is_some_and(|actor| actor.starts_with("ann@")), "{delivery}");
    let id = delivery["id"].as_str().expect("it has an id");
    assert!(night.ok(&["message", "get", id]).await.contains("held by ann@"));
    assert!(night.ok(&["message", "raw", id]).await.contains("\r\n\r\nhello\r\n"));
    night.ok(&["message", "release", "--state", "held", "--yes"]).await;

    // It answers 550: everything ends at the next attempt.
    night.answer(Phase::Recipient, "550 5.1.1 no such user");
    night.ok(&["message", "retry", "--site", &site, "--yes"]).await;
    night.until_nothing_waits().await;

    // It says nothing: what is being sent is seen, and the tenant's mail is dropped.
    // Also on the connections that are open.
    let stalled = |phase| Rule { then: Action::Stall, ..Rule::reply(phase, "") };
    let silent = [Phase::Connect, Phase::Mail].into_iter().map(stalled);
    night.troubled().set_script(silent.fold(Script::default(), Script::with_rule));
    night.submit(own, "someone@big.example", MESSAGES).await;
    let row = night.row(|row| waiting(row) + row["sending"].as_u64().unwrap_or(0) == MESSAGES).await;
    assert!(row["sending"].as_u64().is_some_and(|sending| sending > 0), "{row}");
    night.ok(&["message", "cancel", "--sender-domain", "shop.example", "--yes"]).await;
    // The connections that it keeps open end with it, and with them the attempts under way.
    let troubled = night.troubled.take().expect("it is there");
    let received = troubled.ledger();
    troubled.stop().await.expect("it has no file");
    night.until_nothing_waits().await;
    assert_eq!((received.count(), night.others.ledger().count()), (0, MESSAGES));
}
