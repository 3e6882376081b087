//! `postroad doctor` and `postroad support bundle` on a running cluster, and on one whose queue is down.

use std::{fs, path::Path};

use postroad_testkit::{
    Sink, SinkConfig,
    cluster::{Cluster, ClusterSpec, Role},
    process::postroad_binary,
};

/// Every secret that there is on the machines of a cluster.
fn secrets(directory: &Path) -> Vec<String> {
    let mut secrets =
        vec![API_KEY.to_owned(), PASSWORD.to_owned(), OTLP_PASSWORD.to_owned(), "$argon2".to_owned()];
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("it is readable") {
            let path = entry.expect("it is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "key") {
                let pem = fs::read_to_string(&path).expect("it is readable");
                let lines = pem.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned);
                secrets.extend(lines.filter(|line| line.len() > 16));
            }
        }
    }
    secrets
}

const API_KEY: &str = "an-api-key-that-nobody-knows";
const PASSWORD: &str = "a password that nobody knows";
const OTLP_PASSWORD: &str = "an-otlp-password-that-nobody-knows";

#[tokio::test]
async fn c_150_doctor_and_the_support_bundle_say_what_is_wrong_and_no_secret() {
    let binary = postroad_env::blocking(postroad_binary).await.expect("no panic").expect("it builds");
    let sink = Sink::start(SinkConfig::default()).await.expect("a port is free");
    let mut spec = ClusterSpec {
        queues: 1,
        ingresses: 1,
        outbounds: 1,
        controls: 0,
        ..ClusterSpec::usual(binary, sink.address())
    };
    spec.policy = spec.policy.replace(
        "credentials:\n",
        &format!(
            "credentials:\n- {{name: app, tenant: test, api_key: {API_KEY}}}\n- {{name: people, tenant: test, login: me, password: {PASSWORD}}}\n"
        ),
    );
    let telemetry = format!("[telemetry]\notlp_endpoint = \"http://me:{OTLP_PASSWORD}@127.0.0.1:9\"\n");
    spec.settings.insert(Role::Queue, telemetry);
    let mut cluster = Cluster::start(spec).await.unwrap_or_else(|error| panic!("{error:#}"));
    let operator = cluster.operator();

    operator
        .check(&["doctor", "--config", "cluster/operator.toml", "--no-probe"], 0, "1 of 1 queue nodes answer")
        .await;
    // How fast this machine's disk is does not matter here.
    let output =
        operator.postroad(&["doctor", "queue", "--config", "queue-1/queue.toml", "--no-probe"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in [
        "queue 1 is ready",
        "a sync takes",
        "(`queue.listen`) accepts connections",
        "this node: 364 days left",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let bundle = ["support", "bundle", "queue", "--config", "queue-1/queue.toml"];
    let files = ["--log", "queue-1/log", "--file", "bundle.tar"];
    operator.check(&[&bundle[..], &files[..]].concat(), 0, "policy.yaml").await;
    let archive = fs::read(operator.path("bundle.tar")).expect("it was written");
    let archive = String::from_utf8_lossy(&archive).into_owned();
    // From a pod without a directory to write to.
    let piped = operator.postroad(&[&bundle[..], &["--file", "-"]].concat()).await;
    assert!(piped.status.success(), "{}", String::from_utf8_lossy(&piped.stderr));
    assert_eq!(&piped.stdout[257..262], b"ustar", "only the archive is on standard output");
    assert!(String::from_utf8_lossy(&piped.stderr).contains("doctor.txt"));
    for part in
        ["name: people", "postroad_queue_messages", "otlp_endpoint = ", "queue node started", "login: me"]
    {
        assert!(archive.contains(part), "{part} is missing");
    }
    let secrets = secrets(cluster.directory());
    assert!(secrets.len() > 8, "{}", secrets.len());
    for secret in secrets {
        assert!(!archive.contains(&secret), "the bundle has {secret}");
    }

    // With the queue down it says so, and the archive is written all the same.
    cluster.nodes(Role::Queue)[0].process.kill().await.expect("it can be killed");
    operator
        .check(&["doctor", "--config", "cluster/operator.toml", "--no-probe"], 1, "0 of 1 queue nodes answer")
        .await;
    let without = ["support", "bundle", "--config", "cluster/operator.toml", "--file", "without.tar"];
    operator.check(&without, 0, "doctor.txt").await;
}
