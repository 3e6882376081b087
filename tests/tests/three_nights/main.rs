//! Three nights on call: a site answers 421, then 550, then nothing, each with 5,000 messages for it and 5,000 for others.
//!
//! The operator's part is docs/operating/three-nights.md. Here its commands are carried out on a cluster of processes; between
//! its sections the receiver changes, and what the commands say is compared with what was submitted and what was received.

#![allow(clippy::print_stderr, reason = "a run that reports to people")]

mod mail;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use postroad_core::MessageId;
use postroad_testkit::{
    Ledger, Script, Sink, SinkConfig,
    checker::{Acknowledged, Duplicate, Findings},
    cluster::{Cluster, ClusterSpec, Role},
    dns::{FakeDns, Zones},
    process::postroad_binary,
    sink::{Action, Copies, Phase, Rule},
    transcript::{Ids, Step, steps},
};
use postroad_tests::root;
use serde_json::Value;
use tokio::time::sleep;

use mail::{MESSAGES, OTHERS, SENDERS, Sent, TROUBLED, Times, api_key, expected, submit_all};

const PAGE: &str = "docs/operating/three-nights.md";
/// The sections of the page with commands, in the order in which they are carried out.
const SECTIONS: [&str; 6] = [
    "The first night: 421",
    "The first morning",
    "The second night: 550",
    "The second morning",
    "The third night: nothing",
    "The third morning",
];
/// The longest that a command is repeated, and that mail may take.
const PATIENCE: Duration = Duration::from_secs(120);

type Deliveries = BTreeSet<(MessageId, Box<str>)>;

/// A command of the page that was carried out.
struct CarriedOut {
    command: String,
    printed: String,
    took: Duration,
}

/// The commands of the page, by their section.
struct Page {
    sections: Vec<(String, Vec<Step>)>,
    ids: Ids,
    /// Where the commands run.
    directory: tempfile::TempDir,
    operator: PathBuf,
    carried_out: Vec<CarriedOut>,
    problems: Vec<String>,
}

/// Reads the commands of the page, by the headings of their sections.
fn sections() -> Vec<(String, Vec<Step>)> {
    let page = std::fs::read_to_string(root().join(PAGE)).expect("the page is there");
    let headings: Vec<(usize, &str)> =
        (1..).zip(page.lines()).filter_map(|(line, text)| Some((line, text.strip_prefix("## ")?))).collect();
    let mut sections: Vec<(String, Vec<Step>)> = Vec::new();
    for step in steps(&page) {
        let heading = headings.iter().rfind(|(line, _)| *line < step.line);
        let (_, heading) = heading.expect("commands are below a heading");
        match sections.last_mut() {
            Some((last, steps)) if last == heading => steps.push(step),
            _ => sections.push(((*heading).to_owned(), vec![step])),
        }
    }
    sections
}

impl Page {
    fn read(binary: &Path, operator: PathBuf) -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        symlink(binary, directory.path().join("postroad")).expect("it is empty");
        Self {
            sections: sections(),
            ids: Ids::default(),
            directory,
            operator,
            carried_out: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Carries out the next section; differences are shown together at the end.
    fn follow(&mut self, section: &str) {
        let (heading, steps) = self.sections.remove(0);
        assert_eq!(heading, section, "{PAGE}");
        let mut ids = std::mem::take(&mut self.ids);
        for step in steps {
            let carried_out = step.carry_out(&mut ids, PATIENCE, |command| self.run(command));
            self.problems.extend(carried_out.err());
        }
        self.ids = ids;
    }

    fn run(&mut self, command: &str) -> String {
        let path = std::env::var("PATH").unwrap_or_default();
        let directory = self.directory.path();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{{ {command}\n}} 2>&1 < /dev/null")]).current_dir(directory);
        shell.env("PATH", format!("{}:{path}", directory.display())).env("HOME", directory);
        shell.env("POSTROAD_OPERATOR_CONFIG", &self.operator).env("USER", "ann").env_remove("SUDO_USER");
        let began = postroad_env::now();
        let output = shell.output().expect("there is a shell");
        let took = postroad_env::since(began);
        let printed = String::from_utf8(output.stdout).expect("commands print text");
        self.carried_out.push(CarriedOut { command: command.to_owned(), printed: printed.clone(), took });
        printed
    }

    /// Shows how long each command took, and fails if one printed something else than the page has.
    fn finish(self) {
        for CarriedOut { command, printed, took } in &self.carried_out {
            eprintln!("{:5.2} s  $ {command}\n{printed}", took.as_secs_f64());
        }
        let left: Vec<String> = self.sections.into_iter().map(|(heading, _)| heading).collect();
        assert!(left.is_empty(), "{PAGE}: not carried out: {left:?}");
        assert!(self.problems.is_empty(), "{PAGE}:\n{}", self.problems.join("\n\n"));
    }
}

struct Nights {
    page: Page,
    cluster: Cluster,
    troubled: Option<Sink>,
    address: SocketAddr,
    others: Sink,
    /// What was received; a sink that is stopped has its records still.
    ledgers: Vec<Ledger>,
    /// All that was submitted.
    sent: Vec<Sent>,
    evenings: u64,
    _dns: FakeDns,
}

impl Nights {
    async fn start() -> Self {
        let binary = postroad_env::blocking(postroad_binary).await.expect("no panic").expect("it builds");
        let troubled = receiver(([127, 0, 31, 1], 0).into()).await;
        let address = troubled.address();
        let others = receiver(([127, 0, 31, 2], address.port()).into()).await;
        let mut zones = Zones::default();
        let hosts = OTHERS.map(|domain| (domain, others.address().ip()));
        for (domain, host) in hosts.into_iter().chain([(TROUBLED, address.ip())]) {
            let name = format!("mx.{domain}");
            zones = zones.mx(domain, 10, &name).address(&name, host);
        }
        let dns = FakeDns::start(zones).await.expect("loopback has a free port");
        let cluster = Cluster::start(spec(binary, &dns, address.port())).await;
        let cluster = cluster.unwrap_or_else(|error| panic!("{error:#}"));
        let page = Page::read(binary, cluster.directory().join("cluster/operator.toml"));
        let ledgers = vec![troubled.ledger(), others.ledger()];
        let (sent, evenings) = (Vec::new(), 0);
        Self { page, cluster, troubled: Some(troubled), address, others, ledgers, sent, evenings, _dns: dns }
    }

    fn troubled_does<const N: usize>(&self, rules: [Rule; N]) {
        let troubled = self.troubled.as_ref().expect("it is there");
        troubled.set_script(rules.into_iter().fold(Script::default(), Script::with_rule));
    }

    /// Submits the mail of an evening; returns how long the others waited for theirs, which are not held up.
    async fn evening(&mut self) -> Times {
        let sent = submit_all(&self.cluster.grpc()).await;
        self.evenings += 1;
        let all = self.others.ledger().wait_for_count(self.evenings * MESSAGES, PATIENCE).await;
        assert!(all, "the others are held up\n{}", self.cluster.logs());
        let of_others = sent.iter().filter(|sent| !sent.is_for_troubled());
        let times = Times::of(of_others, &self.others.ledger().copies());
        self.sent.extend(sent);
        times
    }

    /// The deliveries of the last evening to the receiver in trouble whose sender is as wanted.
    fn of_tonight(&self, wanted: impl Fn(&Sent) -> bool) -> Deliveries {
        let tonight = self.sent.iter().rev().take(2 * MESSAGES as usize);
        tonight.filter(|sent| sent.is_for_troubled() && wanted(sent)).map(Sent::key).collect()
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let text = self.cluster.operate(&[arguments, &["-o", "json"]].concat()).await;
        let text = text.unwrap_or_else(|error| panic!("{error:#}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// Waits until the queue is as expected, counted in a way: a count may be two seconds old.
    async fn until_waiting(&self, by: &str, expected: &BTreeMap<String, u64>) -> Value {
        let until = postroad_env::now() + PATIENCE;
        loop {
            let list = self.json(&["queue", "list", "--by", by]).await;
            let rows = list["rows"].as_array().expect("rows are a list");
            let counts: BTreeMap<String, u64> = rows
                .iter()
                .map(|row| (row["key"].as_str().unwrap_or_default().to_owned(), all_of(row)))
                .collect();
            if counts == *expected {
                return list;
            }
            assert!(postroad_env::now() < until, "{counts:?}, and not {expected:?}\n{}", self.cluster.logs());
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn until_nothing_waits(&self) {
        self.until_waiting("site", &BTreeMap::new()).await;
    }

    /// Compares every count of the queue with what was submitted this evening.
    async fn all_of_tonight_waits(&self) {
        let list = self.until_waiting("site", &BTreeMap::from([(TROUBLED.to_owned(), MESSAGES)])).await;
        let waits = list["rows"][0]["waits"].as_array().expect("they are a list");
        let explained: u64 = waits.iter().filter_map(|wait| wait["deliveries"].as_u64()).sum();
        let sending = list["rows"][0]["sending"].as_u64().expect("it is a number");
        assert_eq!(explained + sending, MESSAGES, "each has a reason: {list}");
        self.until_waiting("tenant", &expected(|tenant, _| tenant.to_owned())).await;
        let domain = |sender: &str| sender.split_once('@').expect("it is an address").1.to_owned();
        self.until_waiting("sender-domain", &expected(|_, sender| domain(sender))).await;
        for (_, sender, count) in SENDERS {
            let listed = self.listed(&["--sender", sender]).await;
            assert_eq!(listed.len() as u64, count, "{sender}");
            assert_eq!(listed, self.of_tonight(|sent| sent.sender == sender), "{sender}");
        }
    }

    /// All deliveries that `message list` shows for a selection, page by page.
    async fn listed(&self, selection: &[&str]) -> Deliveries {
        let (mut deliveries, mut after) = (Deliveries::new(), None::<String>);
        loop {
            let mut arguments = vec!["message", "list", "--limit", "1000"];
            arguments.extend(selection);
            arguments.extend(after.iter().flat_map(|after| ["--after", after]));
            let page = self.json(&arguments).await;
            for delivery in page["deliveries"].as_array().expect("they are a list") {
                let field = |name: &str| delivery[name].as_str().expect("it is text");
                deliveries.insert((field("id").parse().expect("it is an id"), field("recipient").into()));
            }
            match page["next"].as_str() {
                Some(next) => after = Some(next.to_owned()),
                None => return deliveries,
            }
        }
    }

    fn copies(&self) -> Copies {
        let mut all = Copies::new();
        for (delivery, copies) in self.ledgers.iter().flat_map(Ledger::copies) {
            all.entry(delivery).or_default().extend(copies);
        }
        all
    }

    /// What was submitted arrived but for what was cancelled, and every further copy is explained by the record.
    async fn all_arrived_but(&self, cancelled: &Deliveries) {
        let control = self.cluster.control().expect("the cluster has one");
        let sent: Vec<Acknowledged> = self.sent.iter().map(|sent| sent.message.clone()).collect();
        let until = postroad_env::now() + PATIENCE;
        loop {
            let mut findings = Findings::new(&sent, &self.copies());
            let explained = findings.explain(control).await;
            let all = findings.duplicates.iter().all(Duplicate::is_explained) && explained.is_ok();
            if all {
                let lost: Deliveries = findings.lost.into_iter().collect();
                assert_eq!(lost.len(), cancelled.len());
                assert_eq!(lost, *cancelled);
                assert_eq!((findings.unacknowledged, findings.accepted_twice.len()), (0, 0));
                eprintln!("{} deliveries with more than one copy", findings.duplicates.len());
                return;
            }
            assert!(postroad_env::now() < until, "not explained: {:?} {explained:?}", findings.duplicates);
            sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn receiver(address: SocketAddr) -> Sink {
    let config = SinkConfig { address, ..SinkConfig::default() };
    Sink::start(config).await.unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// All deliveries of a row.
fn all_of(row: &Value) -> u64 {
    ["queued", "deferred", "sending", "held"].iter().filter_map(|state| row[*state].as_u64()).sum()
}

fn spec(binary: &Path, dns: &FakeDns, port: u16) -> ClusterSpec {
    let tenants: BTreeSet<&str> = SENDERS.iter().map(|(tenant, ..)| *tenant).collect();
    let lines = |line: &dyn Fn(&str) -> String| tenants.iter().map(|tenant| line(tenant)).collect::<String>();
    let policy = format!(
        "sources: [{{name: out-1, helo: out-1.example.net}}, {{name: out-2, helo: out-2.example.net}}]\n\
         pools: [{{name: default, sources: [{{source: out-1}}, {{source: out-2}}]}}]\n\
         tenants:\n{}credentials:\n{}",
        lines(&|tenant| format!("- {{name: {tenant}, pool: default}}\n")),
        lines(&|tenant| format!("- {{name: {tenant}, tenant: {tenant}, api_key: {}}}\n", api_key(tenant))),
    );
    let outbound = format!("[dns]\nresolver = \"{}\"\n[outbound]\nsmtp_port = {port}\n", dns.address());
    let settings = BTreeMap::from([(Role::Outbound, outbound)]);
    ClusterSpec { policy, settings, ..ClusterSpec::usual(binary, dns.address()) }
}

#[test]
fn the_page_has_the_sections_that_are_carried_out() {
    let sections = sections();
    let headings: Vec<&str> = sections.iter().map(|(heading, _)| &**heading).collect();
    assert_eq!(headings, SECTIONS, "{PAGE}");
}

/// Ten thousand messages for each of four evenings: `tests/nights/run` sets this.
const ASKED: &str = "POSTROAD_THREE_NIGHTS";

#[tokio::test(flavor = "multi_thread")]
async fn three_nights_with_the_command_line_alone() {
    if std::env::var_os(ASKED).is_none() {
        eprintln!("skipped: 40,000 messages are many for an unoptimised binary: use tests/nights/run");
        return;
    }
    let [first_night, first_morning, second_night, second_morning, third_night, third_morning] = SECTIONS;
    let mut nights = Nights::start().await;
    let mut times = BTreeMap::new();

    // An evening without trouble, to compare with.
    times.insert("no trouble", nights.evening().await);
    nights.until_nothing_waits().await;
    nights.all_arrived_but(&Deliveries::new()).await;

    nights.troubled_does([Rule::reply(Phase::Mail, "421 4.7.0 too busy, come back later")]);
    times.insert("421", nights.evening().await);
    nights.all_of_tonight_waits().await;
    nights.page.follow(first_night);
    nights.troubled_does([]);
    nights.page.follow(first_morning);
    nights.until_nothing_waits().await;
    nights.all_arrived_but(&Deliveries::new()).await;

    nights.troubled_does([Rule::reply(Phase::Recipient, "550 5.7.1 your address is on our block list")]);
    times.insert("550", nights.evening().await);
    nights.all_of_tonight_waits().await;
    nights.page.follow(second_night);
    let top = nights.of_tonight(|sent| sent.sender == "news@shop.example");
    assert_eq!(nights.listed(&["--state", "held"]).await, top);
    nights.troubled_does([]);
    nights.page.follow(second_morning);
    nights.until_nothing_waits().await;
    nights.all_arrived_but(&Deliveries::new()).await;

    // Also on the connections that are open.
    let silent = |phase| Rule { then: Action::Stall, ..Rule::reply(phase, "") };
    nights.troubled_does([Phase::Connect, Phase::Mail].map(silent));
    times.insert("nothing", nights.evening().await);
    nights.all_of_tonight_waits().await;
    nights.page.follow(third_night);
    // Its connections end with it, and it is another one that comes up.
    nights.troubled.take().expect("it is there").stop().await.expect("it has no file");
    let restarted = receiver(nights.address).await;
    nights.ledgers.push(restarted.ledger());
    nights.page.follow(third_morning);
    nights.until_nothing_waits().await;
    nights.all_arrived_but(&nights.of_tonight(|sent| sent.tenant == "shop")).await;

    for (night, times) in times {
        eprintln!("the others, {night}: {times}");
    }
    nights.page.finish();
}
