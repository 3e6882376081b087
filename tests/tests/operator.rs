//! The operator's commands as processes: what they print, and their exit statuses.

use std::{
    io::Write,
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
    let binary = postroad_env::blocking(postroad_binary).await.expect("no panic").expect("it builds");
    let mut command = Command::new(binary);
    command.args(arguments).args(["--server", &dev.to_string()]).kill_on_drop(true);
    command.env("USER", "root").env("SUDO_USER", "ann");
    command.output().await.expect("the binary starts")
}

/// Runs a command with contexts in `contexts` and without a cluster in the environment.
async fn with_contexts(contexts: &Path, arguments: &[&str]) -> Output {
    let binary = postroad_env::blocking(postroad_binary).await.expect("no panic").expect("it builds");
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
        check(dev.operator(), &["message", change, "X"], 2, "invalid value 'X' for ").await;
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
    assert!(run(&["get", "tenants"], 0).await.contains("demo"));
    let unreachable = run(&["get", "tenants", "--context", "there"], 4).await;
    assert!(unreachable.contains(&format!("`{nobody}` (context `there`)")), "{unreachable}");
    assert!(run(&["get", "--context", "nowhere"], 1).await.contains("there are: here, there"));
    run(&["context", "use", "there"], 0).await;
    assert!(run(&["get", "--server", &server], 0).await.contains("demo"));
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
        // As a file: it is too long for an argument.
        let mut file = tempfile::NamedTempFile::new().expect("a file can be made");
        file.write_all(script.as_bytes()).expect("the file is written");
        let checked =
            Command::new(reader).arg("-n").arg(file.path()).output().await.expect("there is a shell");
        assert!(checked.status.success(), "{checked:?}");
    }
}

#[tokio::test]
async fn what_is_suspended_is_shown_with_reason_actor_and_end_until_it_is_resumed() {
    let dev = Dev::start(&[]).await.unwrap_or_else(|error| panic!("{error:#}"));
    let operator = dev.operator();
    let because = ["--reason", "ticket 1", "--for", "2h"];
    for (kind, name, scope) in [
        ("site", "Slow.example", "site slow.example"),
        ("lane", "default/slow.example", "lane default/slow.example"),
        ("source", "default", "source default"),
        ("pool", "default", "pool default"),
        ("tenant", "demo", "tenant demo"),
        ("node", "99", "node 99"),
    ] {
        check(operator, &[kind, "resume", name], 3, &format!("`{scope}` is not suspended")).await;
        let suspend = [&[kind, "suspend", name], &because[..]].concat();
        check(operator, &suspend, 0, &format!("{scope}: suspended until 20")).await;
        check(operator, &[kind, "list", "--suspended"], 0, ": ticket 1 (").await;
        check(operator, &[kind, "get", name], 0, ": ticket 1 (").await;
        let list = postroad(operator, &[kind, "list", "-o", "json"]).await;
        let list: serde_json::Value = serde_json::from_slice(&list.stdout).expect("it is JSON");
        let items = list["items"].as_array().expect("it is a list");
        let suspended = |item: &&serde_json::Value| item["suspended"]["scope"] == scope;
        let shown = items.iter().find(suspended).unwrap_or_else(|| panic!("{scope}: {list}"));
        let (by, end) = (&shown["suspended"]["actor"], &shown["suspended"]["until"]);
        assert!(by.as_str().is_some_and(|by| by.starts_with("ann@")) && end.is_string(), "{shown}");
        check(operator, &[kind, "resume", name], 0, &format!("{scope}: resumed")).await;
        check(operator, &[kind, "list", "--suspended"], 0, "none").await;
    }
}

#[tokio::test]
async fn a_suspension_of_what_does_not_exist_or_without_a_reason_is_refused() {
    let dev = Dev::start(&[]).await.unwrap_or_else(|error| panic!("{error:#}"));
    let operator = dev.operator();
    let reason = ["--reason", "ticket 1"];
    let with_reason = |arguments: &[&'static str]| [arguments, &reason].concat();
    check(operator, &["tenant", "suspend", "demo"], 2, "--reason").await;
    check(operator, &with_reason(&["tenant", "suspend"]), 2, "<NAME>").await;
    let for_nothing = with_reason(&["tenant", "suspend", "demo", "--for", "0s"]);
    check(operator, &for_nothing, 2, "expected a duration above 0").await;
    let nobody = "`suspension tenant nobody` refers to `tenant nobody`, which does not exist";
    check(operator, &with_reason(&["tenant", "suspend", "demo", "nobody"]), 1, nobody).await;
    check(operator, &["tenant", "list", "--suspended"], 0, "none").await;
    check(operator, &with_reason(&["lane", "suspend", "default"]), 1, "expected SOURCE/SITE").await;
    check(operator, &with_reason(&["node", "suspend", "x"]), 1, "expected its number").await;
    check(operator, &with_reason(&["node", "suspend", "99"]), 0, "warning: no outbound node `99`").await;
    check(operator, &["source", "get", "nowhere"], 3, "`source nowhere` does not exist").await;
    check(operator, &["site", "get", "nowhere.example"], 3, "`site nowhere.example` is not known").await;
    let [free] = free_ports().expect("a port is free");
    let unreachable = SocketAddr::from((Ipv4Addr::LOCALHOST, free));
    check(unreachable, &["site", "list"], 4, "no answer from the cluster").await;
    check(unreachable, &with_reason(&["tenant", "suspend", "demo"]), 4, "no answer from the cluster").await;
}

#[tokio::test]
async fn a_probe_shows_where_mail_for_a_domain_goes_and_what_the_receiver_says() {
    let dev = Dev::start(&["--route", "dead.example=127.0.0.1:9"]).await;
    let dev = dev.unwrap_or_else(|error| panic!("{error:#}"));
    let operator = dev.operator();
    // The leader knows the outbound node once its session is open.
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    let probe = ["site", "probe", "any.example", "--connect", "-o", "json"];
    let shown = loop {
        let output = postroad(operator, &probe).await;
        match serde_json::from_slice::<serde_json::Value>(&output.stdout) {
            Ok(shown) => break shown,
            Err(_) if tokio::time::Instant::now() < until => {}
            Err(_) => panic!("{output:?}"),
        }
    };
    assert_eq!(shown["source"]["name"], "default", "{shown}");
    assert!(shown["route"].as_str().is_some_and(|route| route.starts_with("127.0.0.1:")), "{shown}");
    let replies = &shown["connections"][0]["replies"];
    assert!(replies[0]["text"].as_str().is_some_and(|reply| reply.starts_with("220 ")), "{shown}");
    assert!(replies[1]["text"].as_str().is_some_and(|reply| reply.starts_with("250 ")), "{shown}");
    check(operator, &["site", "probe", "any.example"], 0, "limits      20 connections").await;
    check(operator, &["site", "probe", "dead.example", "--connect"], 0, "Connection refused").await;
    check(operator, &["site", "probe", "any.example", "--pool", "x"], 3, "`pool x` does not exist").await;
}
