//! The operator's commands as processes: what they print, and their exit statuses.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
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
    command.args(arguments).args(["--server", &dev.to_string()]).kill_on_drop(true);
    command.output().await.expect("the binary starts")
}

/// Runs a command with contexts in `contexts` and without a cluster in the environment.
async fn with_contexts(contexts: &Path, arguments: &[&str]) -> Output {
    let binary = tokio::task::spawn_blocking(postroad_binary).await.expect("no panic").expect("it builds");
    let mut command = Command::new(binary);
    command.env_clear().env("POSTROAD_CONTEXTS", contexts).args(arguments).kill_on_drop(true);
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

#[tokio::test]
async fn a_context_names_the_cluster_of_commands_that_name_none() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let file = directory.path().join("postroad/contexts.toml");
    let run = async |arguments: &[&str], status: i32| {
        let output = with_contexts(&file, arguments).await;
        let text = if status == 0 { output.stdout } else { output.stderr };
        let text = String::from_utf8(text).expect("it prints text");
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
        text
    };
    let dev = Dev::start(&[]).await.unwrap_or_else(|error| panic!("{error:#}"));
    let [free] = free_ports().expect("a port is free");
    let (server, nobody) = (dev.operator().to_string(), format!("127.0.0.1:{free}"));
    run(&["context", "add", "here"], 1).await;
    run(&["context", "add", "here", "--server", "localhost"], 2).await;
    run(&["context", "add", "here", "--server", &server], 0).await;
    run(&["context", "add", "there", "--server", &nobody], 0).await;
    assert!(run(&["context", "add", "there", "--server", &server], 1).await.contains("--replace"));
    assert!(run(&["get", "tenants"], 0).await.contains("name: demo"));
    let unreachable = run(&["get", "tenants", "--context", "there"], 4).await;
    assert!(unreachable.contains(&format!("`{nobody}` (context `there`)")), "{unreachable}");
    assert!(run(&["get", "--context", "nowhere"], 1).await.contains("there are: here, there"));
    run(&["context", "use", "there"], 0).await;
    assert!(run(&["get", "--server", &server], 0).await.contains("name: demo"));
    let list = run(&["context", "list", "-o", "json"], 0).await;
    assert!(list.contains("\"name\": \"there\",\n      \"current\": true"), "{list}");
    run(&["context", "remove", "there"], 0).await;
    let list = run(&["context", "list"], 0).await;
    assert_eq!(list, format!("CURRENT  NAME  SERVER           CONFIG\n         here  {server}  -\n"));
}

#[tokio::test]
async fn every_shell_gets_a_completion_script_that_it_can_read() {
    for (shell, reader) in [("bash", Some("bash")), ("zsh", None), ("fish", None)] {
        let output = with_contexts(Path::new("/nonexistent"), &["completion", shell]).await;
        assert!(output.status.success(), "{output:?}");
        let script = String::from_utf8(output.stdout).expect("a script is text");
        for word in ["postroad", "message", "context", "--server"] {
            let word = if shell == "fish" { word.trim_start_matches("--") } else { word };
            assert!(script.contains(word), "{shell}: no `{word}`");
        }
        let Some(reader) = reader else { continue };
        let checked =
            Command::new(reader).args(["-n", "-c", &script]).output().await.expect("there is a shell");
        assert!(checked.status.success(), "{checked:?}");
    }
}
