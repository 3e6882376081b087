//! What the pods of a cluster run besides its roles.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use postroad_core::NodeId;
use postroad_net::{NodeTls, Role};

const BINARY: &str = env!("CARGO_BIN_EXE_postroad");

/// A process; it is killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn postroad(directory: &Path, arguments: &str) -> Command {
    let mut command = Command::new(BINARY);
    command.current_dir(directory).args(arguments.split_whitespace());
    command
}

fn run(directory: &Path, arguments: &str) -> Output {
    postroad(directory, arguments).output().unwrap()
}

/// Runs a command that must succeed; returns what it prints.
fn done(directory: &Path, arguments: &str) -> String {
    let output = run(directory, arguments);
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn cluster(directory: &Path) {
    done(directory, "cluster init --dir ca --queue 10=q0:7400 --queue 11=q1:7400 --queue 12=q2:7400");
}

#[test]
fn a_pod_issues_its_certificate_at_every_start() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    cluster(home);
    let mut keys = Vec::new();
    let check = |arguments: &str, role, node| {
        done(home, &format!("cluster certificate {arguments} --authority ca --out tls"));
        let [authority, certificate, key] =
            ["authority.pem", "node.pem", "node.key"].map(|name| home.join("tls").join(name));
        let tls = NodeTls::from_files(&authority, &certificate, &key).unwrap();
        tls.verify().unwrap();
        assert_eq!((tls.identity().role, tls.identity().node), (role, node));
        fs::read(key).unwrap()
    };
    keys.push(check("queue --node 11", Role::Queue, NodeId(11)));
    keys.push(check("queue --node 11", Role::Queue, NodeId(11)));
    keys.push(check("operator", Role::Operator, NodeId(0)));
    keys.dedup();
    assert_eq!(keys.len(), 3, "each certificate has a key of its own");
    for refused in ["operator --node 11", "ingress", "smtp --node 11"] {
        let output = run(home, &format!("cluster certificate {refused} --authority ca --out other"));
        assert!(!output.status.success() && !home.join("other").exists(), "{refused}");
    }
    // A key that does not belong to the authority would sign what no node accepts.
    done(home, "cluster init --dir another --queue 10=q0:7400");
    fs::copy(home.join("another/authority.key"), home.join("ca/authority.key")).unwrap();
    let output = run(home, "cluster certificate operator --authority ca --out other");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("is not that of a certificate in `authority.pem`"), "{error}");
}

#[test]
fn a_pod_renews_its_certificate_while_it_runs() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    cluster(home);
    let issue = "cluster certificate queue --node 11 --authority ca --out tls";
    done(home, &format!("{issue} --lifetime 1m"));
    let files = ["authority.pem", "node.pem", "node.key"].map(|name| home.join("tls").join(name));
    let mut renewing = postroad(home, &format!("{issue} --renew"));
    let mut renewing = Running(renewing.stderr(Stdio::piped()).spawn().unwrap());
    let mut said = BufReader::new(renewing.0.stderr.take().unwrap()).lines();
    let mut check = |expected: &str| {
        let line = said.next().unwrap().unwrap();
        assert!(line.contains(expected), "{line}");
        let [authority, certificate, key] = &files;
        NodeTls::from_files(authority, certificate, key).unwrap().verify().unwrap();
        fs::read(key).unwrap()
    };
    let mut keys =
        vec![check("less than a third of its lifetime is left: issued the certificate of queue node 11")];
    done(home, "certificate rotate --dir ca --offline --yes");
    keys.push(check("the authority has changed: issued"));
    // As when the Secret is being replaced.
    let whole = fs::read(home.join("ca/authority.pem")).unwrap();
    fs::write(home.join("ca/authority.pem"), "").unwrap();
    let kept = check("cannot issue the certificate, will try again");
    assert_eq!(kept, keys[1], "the files that it has stay");
    fs::write(home.join("ca/authority.pem"), whole).unwrap();
    done(home, "certificate rotate --dir ca --offline --yes");
    keys.push(check("the authority has changed: issued"));
    keys.dedup();
    assert_eq!(keys.len(), 3, "each certificate has a key of its own");
    let refused = run(home, &format!("{issue} --lifetime 10s"));
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("expected a duration from 1m to 3650d"), "{error}");
}

/// Starts `cluster prepare`, which waits; returns it with the first line that it prints.
fn waits(home: &Path, prepare: &str) -> (Running, String) {
    let mut waiting = postroad(home, prepare);
    let mut waiting = Running(waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut said = String::new();
    BufReader::new(waiting.0.stderr.take().unwrap()).read_line(&mut said).unwrap();
    (waiting, said)
}

#[test]
fn a_volume_is_formed_once_and_a_lost_one_waits_for_rejoin() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    cluster(home);
    done(home, "cluster join queue --dir ca --node 11 --data data --out node");
    let prepare = "cluster prepare --config node/queue.toml --formed formed";
    let data = home.join("node/data");
    assert!(done(home, prepare).contains("for a new cluster"));
    assert!(done(home, prepare).contains("the data directory is disk"));

    fs::write(home.join("formed"), "2026-11-30T22:00:00Z").unwrap();
    assert!(done(home, prepare).contains("the data directory is disk"), "its own disk");

    fs::remove_dir_all(&data).unwrap();
    let (mut waiting, said) = waits(home, prepare);
    for words in
        ["queue node 11 waits", "formed at 2026-11-30T22:00:00Z", "-c disk -- postroad cluster rejoin"]
    {
        assert!(said.contains(words), "{said}");
    }
    assert!(!data.exists(), "it is not formed a second time");
    done(home, "cluster rejoin --config node/queue.toml");
    assert!(waiting.0.wait().unwrap().success());
    let mut printed = String::new();
    waiting.0.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert!(printed.contains("this node rejoins"), "{printed}");
}

#[test]
fn a_node_waits_also_where_its_log_is_full() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    cluster(home);
    done(home, "cluster join queue --dir ca --node 11 --data data --out node");
    fs::write(home.join("formed"), "2026-11-30T22:00:00Z").unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut waiting = postroad(home, "cluster prepare --config node/queue.toml --formed formed");
    let mut waiting = Running(waiting.stdout(Stdio::piped()).stderr(full).spawn().unwrap());
    done(home, "cluster rejoin --config node/queue.toml");
    assert!(waiting.0.wait().unwrap().success());
}

#[test]
fn the_only_queue_node_is_not_sent_to_others_that_do_not_exist() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    done(home, "cluster init --dir ca --queue 10=q0:7400");
    done(home, "cluster join queue --dir ca --node 10 --data data --out node");
    fs::write(home.join("formed"), "2026-11-30T22:00:00Z").unwrap();
    let (_waiting, said) = waits(home, "cluster prepare --config node/queue.toml --formed formed");
    assert!(
        said.contains("no other node has a copy. The chart's page says how to begin a new, empty cluster"),
        "{said}"
    );
    assert!(!said.contains("rejoin"), "the only node cannot rejoin: {said}");
}

#[test]
fn outside_of_a_pod_nothing_is_created_in_kubernetes() {
    let home = tempfile::tempdir().unwrap();
    let mut command = postroad(home.path(), "cluster authority --id 7 --kubernetes-secret ca");
    let output = command.env_remove("KUBERNETES_SERVICE_HOST").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("`KUBERNETES_SERVICE_HOST` is not set: this is no pod"), "{error}");
}
