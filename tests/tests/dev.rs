//! `postroad dev` as a newcomer uses it: default ports, two at a time, data that is kept.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Stdio,
    time::Duration,
};

use postroad_testkit::{
    client::{Submitted, submit},
    process::{consecutive_free_ports, free_ports, http_get, postroad_binary},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};

/// The longest that a test waits for a condition.
const PATIENCE: Duration = Duration::from_secs(180);

/// A running `postroad dev`, and what it printed.
struct Dev {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
    banner: String,
}

impl Dev {
    /// Starts it, and waits for the last line of its banner.
    async fn start(flags: &[&str]) -> Self {
        let mut child = spawn(flags).await;
        let output = child.stdout.take().expect("it is piped");
        let mut dev = Self { child, output: BufReader::new(output).lines(), banner: String::new() };
        dev.read_until("Ctrl-C stops").await;
        dev
    }

    /// Reads what it prints, up to a line with `part`.
    async fn read_until(&mut self, part: &str) {
        let read = async {
            while let Some(line) = self.output.next_line().await.expect("its output is text") {
                self.banner.push_str(&line);
                self.banner.push('\n');
                if line.contains(part) {
                    return;
                }
            }
            panic!("it ended after printing\n{}", self.banner);
        };
        timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("`{part}` is not printed"));
    }

    /// The first address behind a word of the banner.
    fn address(&self, word: &str) -> SocketAddr {
        let mut words = self.banner.split_whitespace().skip_while(|found| *found != word).skip(1);
        let found = words.find_map(|found| {
            found.trim_start_matches("http://").split('/').next()?.trim_end_matches(',').parse().ok()
        });
        found.unwrap_or_else(|| panic!("no address of `{word}` in\n{}", self.banner))
    }

    async fn stop(mut self) {
        self.terminate();
        timeout(PATIENCE, self.child.wait()).await.expect("it ends in time").expect("it can be waited for");
    }

    fn terminate(&self) {
        if let Some(id) = self.child.id() {
            // An error means that it has ended already.
            let _ = std::process::Command::new("kill").args(["-TERM", &id.to_string()]).status();
        }
    }
}

/// A cluster that were killed would leave its child processes behind.
impl Drop for Dev {
    fn drop(&mut self) {
        self.terminate();
        let end = postroad_env::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && postroad_env::now() < end {
            postroad_env::pause(Duration::from_millis(50));
        }
    }
}

async fn spawn(flags: &[&str]) -> Child {
    let binary = postroad_env::blocking(postroad_binary).await.expect("no panic").expect("it builds");
    let mut command = Command::new(binary);
    command.arg("dev").args(flags.iter().map(OsString::from)).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().expect("the binary starts")
}

/// Every listener on a port that nothing else uses, for tests that are not about ports.
fn own_ports() -> Vec<String> {
    let names = ["smtp", "smtps", "grpc", "http", "metrics", "operator"];
    let ports: [u16; 6] = free_ports().expect("ports are free");
    names.iter().zip(ports).map(|(name, port)| format!("--listen-{name}=127.0.0.1:{port}")).collect()
}

async fn send(dev: &Dev) {
    let content = "From: me@example.org\r\nSubject: hello\r\n\r\nhello\r\n";
    let submitted = submit(dev.address("SMTP"), "me@example.org", &["you@example.net"], content).await;
    assert!(matches!(submitted, Submitted::Acknowledged(_)), "{submitted:?}");
}

/// Waits until the sandbox lists as many messages.
async fn captured(dev: &Dev, number: usize) -> String {
    let listed = async {
        loop {
            let list = http_get(dev.address("console"), "/sandbox/v1/messages").await;
            let list = String::from_utf8(list.expect("the sandbox answers").1).expect("JSON is text");
            if list.matches("\"received_at\"").count() == number {
                return list;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, listed).await.unwrap_or_else(|_| panic!("the sandbox does not list {number}"))
}

async fn postroad(arguments: &[&str]) -> String {
    let output = Command::new(postroad_binary().expect("it was built")).args(arguments).output().await;
    let output = output.expect("the binary starts");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("its output is text")
}

#[tokio::test]
async fn two_run_side_by_side_and_a_given_port_that_is_taken_names_its_flag() {
    // Whatever listens on the default ports of this machine, both find ports of their own.
    let (one, other) = tokio::join!(Dev::start(&[]), Dev::start(&[]));
    assert!(
        one.banner.contains("in use") || other.banner.contains("in use"),
        "{}{}",
        one.banner,
        other.banner
    );
    for dev in [&one, &other] {
        send(dev).await;
        captured(dev, 1).await;
        let policy = postroad(&["export", "tenants", "--server", &dev.address("--server").to_string()]).await;
        assert!(policy.contains("name: demo"), "{policy}");
    }
    for flag in [
        "--listen-smtp",
        "--listen-smtps",
        "--listen-grpc",
        "--listen-http",
        "--listen-metrics",
        "--listen-operator",
    ] {
        let ended =
            timeout(PATIENCE, spawn(&[flag, &one.address("SMTP").to_string()]).await.wait_with_output());
        let ended = ended.await.expect("it ends").expect("it can be waited for");
        let text = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{flag}: {text}");
        assert!(text.contains(&format!("(`{flag}`)")), "{flag}: {text}");
    }
    tokio::join!(one.stop(), other.stop());
}

#[tokio::test]
async fn the_examples_of_the_readme_and_of_the_banner_send_a_message() {
    if Command::new("curl").arg("--version").output().await.is_err() {
        eprintln!("skipped: curl is not installed");
        return;
    }
    let ports = own_ports();
    let dev = Dev::start(&ports.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(readme).expect("it is there");
    let readme = readme.replace("127.0.0.1:2525", &dev.address("SMTP").to_string());
    let examples: Vec<&str> = readme
        .lines()
        .chain(dev.banner.lines())
        .map(str::trim)
        .filter(|line| line.starts_with("printf"))
        .collect();
    assert_eq!(examples.len(), 3, "one in the README, two in the banner: {examples:?}");
    for (number, example) in (1..).zip(examples) {
        let sent = Command::new("sh").args(["-c", example]).output().await.expect("there is a shell");
        assert!(sent.status.success(), "{example}: {}", String::from_utf8_lossy(&sent.stderr));
        captured(&dev, number).await;
    }
    dev.stop().await;
}

/// Asks for a path under a name, as a browser does that was led to this address by the name.
async fn ask(dev: &Dev, path: &str, host: &str) -> String {
    let mut stream = TcpStream::connect(dev.address("console")).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("its answer is text");
    answer
}

#[tokio::test]
async fn console_and_sandbox_answer_to_their_own_names_only() {
    let ports = own_ports();
    let mut flags: Vec<&str> = ports.iter().map(String::as_str).collect();
    flags.extend(["--http-host", "console.example"]);
    let dev = Dev::start(&flags).await;
    for path in ["/", "/messages", "/sandbox", "/sandbox/v1/messages", "/api/v1/messages/x", "/nothing"] {
        let answer = ask(&dev, path, "rebound.example").await;
        assert!(answer.starts_with("HTTP/1.0 421 ") && answer.contains("http.hosts"), "{path}: {answer}");
        for own in ["console.example", "localhost:8080"] {
            assert!(!ask(&dev, path, own).await.starts_with("HTTP/1.0 421 "), "{path}");
        }
    }
    let answer = ask(&dev, "/nothing", "localhost").await;
    assert!(answer.starts_with("HTTP/1.0 404 ") && answer.contains("href=\"/\""), "{answer}");
    dev.stop().await;
}

#[tokio::test]
async fn kept_data_has_the_sandbox_and_the_applied_policy_but_not_the_routes_of_flags() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let data = dir.path().join("data");
    let data = data.to_str().expect("the path is text");
    let ports = own_ports();
    let mut flags: Vec<&str> = ports.iter().map(String::as_str).collect();
    flags.extend(["--data", data]);
    let routed = [&flags[..], &["--route", "x.example=127.0.0.1:1", "--route", "*=127.0.0.1:1"]].concat();

    let dev = Dev::start(&flags).await;
    send(&dev).await;
    captured(&dev, 1).await;
    let operator = dev.address("--server").to_string();
    let policy = dir.path().join("policy.yaml");
    std::fs::write(&policy, "routes: [{domain: kept.example, host: 127.0.0.1, port: 2}]\n")
        .expect("it can be written");
    let apply = ["apply", "--server", &operator, "-f", policy.to_str().expect("the path is text")];
    assert!(postroad(&apply).await.starts_with("created: route kept.example"));
    assert!(postroad(&apply).await.starts_with("changed 0 items"));
    dev.stop().await;

    let dev = Dev::start(&routed).await;
    let routes = postroad(&["export", "routes", "--server", &operator]).await;
    assert!(routes.contains("x.example") && routes.contains("kept.example"), "{routes}");
    captured(&dev, 1).await;
    dev.stop().await;

    let dev = Dev::start(&flags).await;
    let routes = postroad(&["export", "routes", "--server", &operator]).await;
    assert!(!routes.contains("x.example") && routes.contains("kept.example"), "{routes}");
    send(&dev).await;
    captured(&dev, 2).await;
    dev.stop().await;

    let dev = Dev::start(&[&flags[..], &["--deliver"]].concat()).await;
    let routes = postroad(&["export", "routes", "--server", &operator]).await;
    assert!(!routes.contains("'*'") && routes.contains("kept.example"), "{routes}");
    dev.stop().await;
}

#[tokio::test]
async fn a_cluster_is_ready_when_every_process_is_and_ends_when_one_cannot_start() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let data = dir.path().to_str().expect("the path is text");
    // The flags name the first of the ports that each listener takes.
    let mut port = consecutive_free_ports(22).expect("ports are free");
    let listeners = [("smtp", 2), ("smtps", 2), ("grpc", 2), ("http", 2), ("metrics", 8), ("operator", 4)];
    let ports = listeners.map(|(name, number)| {
        port += number;
        format!("--listen-{name}=127.0.0.1:{}", port - number)
    });
    let mut flags = vec!["--cluster", "--data", data];
    flags.extend(ports.iter().map(String::as_str));
    let dev = Dev::start(&flags).await;
    assert_eq!(dev.banner.matches(" pid ").count(), 8, "{}", dev.banner);
    for (port, _) in (dev.address("metrics").port()..).zip(0..8) {
        // A node that is ready may be busy with a change of leader or lease a moment later.
        let ready = async {
            while http_get(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "/readyz")
                .await
                .expect("it answers")
                .0
                != 200
            {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, ready).await.unwrap_or_else(|_| panic!("port {port}\n{}", dev.banner));
    }
    dev.stop().await;

    // The database of control becomes a directory: that process cannot start.
    let database = Path::new(data).join("control-1/data/control.sqlite");
    std::fs::remove_file(&database).expect("it exists");
    std::fs::create_dir(&database).expect("it can be made");
    let ended = timeout(PATIENCE, spawn(&flags).await.wait_with_output());
    let ended = ended.await.expect("it ends").expect("it can be waited for");
    let text = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{text}");
    assert!(
        text.contains("control-1 has ended (exit status: 1)") && text.contains("control.sqlite"),
        "{text}"
    );
    assert!(!String::from_utf8_lossy(&ended.stdout).contains("is ready"));
}
