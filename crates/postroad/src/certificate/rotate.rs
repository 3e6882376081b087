//! `postroad certificate rotate`: replaces the authority of a cluster while it runs.
//!
//! The nodes first trust both authorities, then get certificates of the new one, and trust the old one no longer only at
//! the end: at every moment each node accepts every other. A step is taken only when every node is ready for it.

use anyhow::{Context, bail, ensure};
use postroad_cluster::AnnouncedNode;
use postroad_core::NodeId;
use postroad_net::{Certificate, KeyId, Role};

use crate::{
    cli::{TargetArgs, certificate::CertificateRotateArgs},
    cluster::{ClusterDirectory, Rotation},
    nodes::{self, RUNNING_WITHIN},
    operator::{Operator, confirm},
};

pub(super) async fn run(args: &CertificateRotateArgs) -> anyhow::Result<String> {
    let rotation = Rotation::of(&args.dir)?;
    let cluster = ClusterDirectory::open(&args.dir)?;
    if args.status {
        status(args, rotation)
    } else if args.abort {
        abort(args, rotation, &cluster)
    } else {
        next_step(args, rotation, &cluster).await
    }
}

/// The step is taken again that was interrupted.
async fn next_step(
    args: &CertificateRotateArgs,
    rotation: Rotation,
    cluster: &ClusterDirectory,
) -> anyhow::Result<String> {
    match rotation {
        Rotation::None => {
            confirm(args.yes, &format!("{}Begin to replace this authority?", authorities(args)?))?;
            let key = cluster.rotate_start()?;
            Ok(started(args, &key))
        }
        Rotation::Started => {
            // What is there already is kept.
            let key = cluster.rotate_start()?;
            check(args, cluster, &key, Step::Switch).await?;
            cluster.rotate_switch()?;
            Ok(switched(args, &key))
        }
        Rotation::Interrupted => {
            let key = cluster.rotate_switch()?;
            Ok(switched(args, &key))
        }
        Rotation::Switched => {
            // The operator's certificate may be of the old authority where the last step was interrupted.
            let key = cluster.rotate_switch()?;
            check(args, cluster, &key, Step::Finish).await?;
            cluster.rotate_finish()?;
            let dir = args.dir.display();
            Ok(format!(
                "step 3 of 3: {dir}/authority.pem has only authority {key}; the key of the old one is gone\n\
                 copy {dir}/authority.pem over that on every node: until then the node still trusts the old one\n"
            ))
        }
    }
}

/// Says which step is next, and changes nothing.
fn status(args: &CertificateRotateArgs, rotation: Rotation) -> anyhow::Result<String> {
    let next = match rotation {
        Rotation::None => "no replacement is under way",
        Rotation::Started => {
            "step 1 of 3 is done: the first one signs, and nodes are to trust both; `--abort` gives the second one up"
        }
        Rotation::Interrupted => "step 2 of 3 was interrupted: the next call ends it",
        Rotation::Switched => {
            "step 2 of 3 is done: the first one signs, and nodes are to get certificates of it; the next call removes the second one"
        }
    };
    Ok(format!("{}{next}\n", authorities(args)?))
}

/// The authorities in `authority.pem`, one a line.
fn authorities(args: &CertificateRotateArgs) -> anyhow::Result<String> {
    let file = args.dir.join("authority.pem");
    let trusted = Certificate::read_all(&file).with_context(|| format!("`{}`", file.display()))?;
    let shown = trusted.iter().map(|authority| {
        let key =
            authority.key.as_ref().map_or_else(|| "without a key identifier".to_owned(), ToString::to_string);
        format!("{}: authority {key}, valid until {}\n", file.display(), authority.not_after)
    });
    Ok(shown.collect())
}

fn abort(
    args: &CertificateRotateArgs,
    rotation: Rotation,
    cluster: &ClusterDirectory,
) -> anyhow::Result<String> {
    ensure!(
        matches!(rotation, Rotation::None | Rotation::Started),
        "nothing was changed: the new authority signs already, and the key of the old one is gone; \
         go on to step 3, and then replace the new authority if it is not to stay"
    );
    let was_there = cluster.rotate_abort()?;
    let dir = args.dir.display();
    if rotation == Rotation::None {
        return Ok(if was_there {
            format!(
                "removed the new authority from {dir}, where step 1 was interrupted before any node could trust it: \
                 there is nothing to copy\n"
            )
        } else {
            "no replacement is under way\n".to_owned()
        });
    }
    Ok(format!(
        "{dir}/authority.pem has only the old authority, which still signs; the new one is gone\n\
         copy {dir}/authority.pem over that on every node that has the file of step 1\n"
    ))
}

fn started(args: &CertificateRotateArgs, key: &KeyId) -> String {
    let dir = args.dir.display();
    format!(
        "step 1 of 3: created authority {key}; {dir}/authority.pem has it beside the old one, which still signs\n\
         copy {dir}/authority.pem over that on every node; the nodes load it within a minute\n\
         then run `postroad certificate rotate --dir {dir}` again: it checks that every node trusts {key}\n"
    )
}

fn switched(args: &CertificateRotateArgs, key: &KeyId) -> String {
    let dir = args.dir.display();
    format!(
        "step 2 of 3: authority {key} signs from now on, and has signed the operator's certificate in {dir}\n\
         renew the certificate of every node with `postroad certificate renew --dir {dir} NODE_DIR...`, and copy it there\n\
         then run `postroad certificate rotate --dir {dir}` again: it checks that every node uses its new certificate\n"
    )
}

/// A step that nodes must be ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Certificates of the new authority appear: every node must trust it.
    Switch,
    /// The old authority is no longer trusted: every node must have a certificate of the new one.
    Finish,
}

/// Asks the cluster whether its nodes are ready, and a person whether those are all.
async fn check(
    args: &CertificateRotateArgs,
    cluster: &ClusterDirectory,
    key: &KeyId,
    step: Step,
) -> anyhow::Result<()> {
    if args.offline {
        return Ok(());
    }
    let target = TargetArgs { config: Some(args.dir.join("operator.toml")), ..TargetArgs::default() };
    let operator = Operator::connect(&target)?;
    let nodes = nodes::all(&operator, "check the nodes").await?;
    let queue: Vec<NodeId> = cluster.file.queue.iter().map(|queue| queue.node).collect();
    let not_ready = not_ready(step, key, &nodes, &queue);
    if !not_ready.is_empty() {
        bail!("nothing was changed: not every node is ready\n  {}", not_ready.join("\n  "));
    }
    let names: Vec<String> = nodes.iter().map(nodes::name_and_address).collect();
    let ready = names.join(", ");
    confirm(
        args.yes,
        &format!("Ready: {ready}.\nA node that does not run now would be shut out. Are these all nodes?"),
    )
}

/// Says of each node why it is not ready.
fn not_ready(step: Step, key: &KeyId, nodes: &[AnnouncedNode], queue: &[NodeId]) -> Vec<String> {
    let mut problems: Vec<String> = nodes.iter().filter_map(|node| problem(step, key, node)).collect();
    let is_known = |wanted: &NodeId| {
        nodes.iter().any(|node| node.about.role == Role::Queue && node.about.node == *wanted)
    };
    let missing = queue.iter().filter(|queue| !is_known(queue));
    problems.extend(missing.map(|queue| format!("queue {queue} has not been seen: start it")));
    problems
}

fn problem(step: Step, key: &KeyId, node: &AnnouncedNode) -> Option<String> {
    let name = nodes::name_and_address(node);
    if node.age > RUNNING_WITHIN {
        let seen = nodes::seen(node.age);
        return Some(format!(
            "{name} was seen {seen}: start it; one that is gone for good is forgotten after a day"
        ));
    }
    let Some(facts) = &node.about.certificates else {
        return Some(format!("{name} has no certificate"));
    };
    let trusts = facts.authorities.iter().any(|authority| authority.key.as_ref() == Some(key));
    match step {
        _ if !trusts => Some(format!("{name} does not trust authority {key}: copy authority.pem there")),
        Step::Finish if facts.own.signed_by.as_ref() != Some(key) => {
            Some(format!("{name} uses a certificate of the old authority: copy its renewed one there"))
        }
        Step::Switch | Step::Finish => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use postroad_cluster::AboutNode;
    use postroad_core::Timestamp;
    use postroad_net::CertificateFacts;

    use super::*;

    #[tokio::test]
    async fn an_abort_says_what_it_removed() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("cluster");
        ClusterDirectory::init(&dir, &["1=q1.example:7000".parse().unwrap()], 1).unwrap();
        let check = async |expected: &str| {
            let (dir, abort) = (dir.clone(), true);
            let args = CertificateRotateArgs { dir, offline: false, status: false, abort, yes: false };
            let said = run(&args).await.unwrap();
            assert!(said.contains(expected), "{said}");
        };
        check("no replacement is under way").await;
        let before = fs::read_to_string(dir.join("authority.pem")).unwrap();
        ClusterDirectory::open(&dir).unwrap().rotate_start().unwrap();
        check("has only the old authority").await;
        // Interrupted before nodes could trust the new one, and before it had a certificate.
        ClusterDirectory::open(&dir).unwrap().rotate_start().unwrap();
        fs::write(dir.join("authority.pem"), before).unwrap();
        check("step 1 was interrupted").await;
        fs::write(dir.join("next-authority.key"), "half").unwrap();
        check("step 1 was interrupted").await;
        check("no replacement is under way").await;
    }

    fn key(byte: u8) -> KeyId {
        KeyId::from_bytes(&[byte; 20]).unwrap()
    }

    /// A node with a certificate of one authority that trusts others.
    fn node(node: u64, signed_by: u8, trusts: &[u8], age_secs: u64) -> AnnouncedNode {
        let certificate = |own: Option<u8>, signed_by: Option<u8>| Certificate {
            identity: None,
            not_before: Timestamp::ZERO,
            not_after: Timestamp::MAX,
            key: own.map(key),
            signed_by: signed_by.map(key),
        };
        let authorities = trusts.iter().map(|byte| certificate(Some(*byte), None)).collect();
        AnnouncedNode {
            about: AboutNode {
                role: Role::Queue,
                node: NodeId(node),
                version: "1".to_owned(),
                started_at: Timestamp::ZERO,
                certificates: Some(CertificateFacts { own: certificate(None, Some(signed_by)), authorities }),
            },
            address: String::new(),
            age: Duration::from_secs(age_secs),
            clock: None,
        }
    }

    fn check(step: Step, nodes: &[AnnouncedNode], expected: &[&str]) {
        let found = not_ready(step, &key(2), nodes, &[NodeId(1), NodeId(2)]);
        let starts = found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected));
        assert!(starts && found.len() == expected.len(), "{step:?}: {found:?}, expected {expected:?}");
    }

    #[test]
    fn c_171_no_step_is_taken_before_every_node_is_ready_for_it() {
        let (old, both) = ([1], [1, 2]);
        check(Step::Switch, &[node(1, 1, &both, 3), node(2, 1, &both, 3)], &[]);
        check(
            Step::Switch,
            &[node(1, 1, &old, 3), node(2, 1, &both, 3)],
            &["queue 1 does not trust authority 0202020202020202"],
        );
        check(Step::Switch, &[node(1, 1, &both, 3)], &["queue 2 has not been seen"]);
        check(
            Step::Switch,
            &[node(1, 1, &both, 3), node(2, 1, &both, 600)],
            &["queue 2 was seen 10 min ago"],
        );
        check(Step::Finish, &[node(1, 2, &both, 3), node(2, 2, &both, 3)], &[]);
        check(
            Step::Finish,
            &[node(1, 1, &both, 3), node(2, 2, &old, 3)],
            &["queue 1 uses a certificate of the old authority", "queue 2 does not trust"],
        );
    }
}
