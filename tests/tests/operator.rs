//! The operator's commands as processes: what they print, and their exit statuses.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Output,
};

use postroad_testkit::{
    dev::Dev,
    process::{free_ports, postroad_binary},
};
use tokio::process::Command;

const ID: &str = "01M85FM9W0000G000000000007";

async fn postroad(dev: SocketAddr, arguments: &[&str]) -> Output {
    let binary = tokio::task::spawn_blocking(postroad_binary).await.expect("no panic").expect("it builds");
    let mut command = Command::new(binary);
    command.args(arguments).args(["--dev", &dev.to_string()]).kill_on_drop(true);
    command.output().await.expect("the binary starts")
}

async fn check(dev: SocketAddr, arguments: &[&str], status: i32, part: &str) {
    let output = postroad(dev, arguments).await;
    let text = String::from_utf8_lossy(if status == 0 { &output.stdout } else { &output.stderr });
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
    assert!(text.contains(part), "{arguments:?}: {text}");
}

#[tokio::test]
async fn a_cluster_that_cannot_be_asked_is_not_a_message_that_does_not_exist() {
    let [port] = free_ports().expect("a port is free");
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let asked = format!("no answer from the cluster at `{nobody}`");
    let policy = tempfile::NamedTempFile::new().expect("a file can be made");
    let policy = policy.path().to_str().expect("the path is text");
    let apply = ["apply", "-f", policy];
    tokio::join!(
        check(nobody, &["message", "get", ID], 4, &asked),
        check(nobody, &["message", "hold", ID], 4, &asked),
        check(nobody, &["message", "release", ID], 4, &asked),
        check(nobody, &["message", "cancel", ID], 4, &asked),
        check(nobody, &apply, 4, &asked),
    );
    let dev = Dev::start(&[]).await.unwrap_or_else(|error| panic!("{error:#}"));
    for change in ["get", "hold", "release", "cancel"] {
        let expected = "does not exist or has ended; the console shows messages with a final outcome";
        check(dev.operator(), &["message", change, ID], 3, expected).await;
        check(dev.operator(), &["message", change, "X"], 2, "invalid value 'X' for '<ID>'").await;
    }
    std::fs::write(policy, "remove:\n  routes:\n  - x.example\n  - y.example\n")
        .expect("the file is written");
    for part in [":3: `remove.routes[0]` = `x.example`: ", ":4: `remove.routes[1]` = `y.example`: "] {
        check(dev.operator(), &apply, 1, part).await;
    }
    let ignoring = [&apply[..], &["--ignore-missing"]].concat();
    check(dev.operator(), &ignoring, 0, "changed 0 items").await;
}
