//! Nodes announce themselves to every queue node, and anyone in the cluster can list them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::time::Duration;

use postroad_cluster::{AboutNode, NodeList, announce, list_nodes};
use postroad_core::{NodeId, Timestamp};
use postroad_net::Role;
use support::{Cluster, PATIENCE};
use tokio::sync::watch;

const INGRESS: NodeId = NodeId(11);

fn about() -> AboutNode {
    AboutNode {
        role: Role::Ingress,
        node: INGRESS,
        version: "1.2.3".to_owned(),
        started_at: Timestamp::from_millis(5),
        certificates: None,
    }
}

/// Waits until every queue node knows this version of the node.
async fn until(cluster: &Cluster, version: &str) -> Vec<NodeList> {
    let known = async {
        loop {
            let lists = list_nodes(&cluster.endpoints, PATIENCE).await;
            let lists: Vec<NodeList> = lists.into_values().filter_map(Result::ok).collect();
            let is_known = |list: &NodeList| {
                list.nodes.iter().any(|node| node.about.version == version && node.clock.is_some())
            };
            if lists.len() == 3 && lists.iter().all(is_known) {
                return lists;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, known).await.expect("every queue node knows it")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_announces_itself_is_listed_by_every_queue_node_that_is_up() {
    let cluster = Cluster::start(3).await;
    let (changes, described) = watch::channel(about());
    let announcing = tokio::spawn(announce(cluster.endpoints.clone(), described));
    for list in until(&cluster, "1.2.3").await {
        let [node] = &list.nodes[..] else { panic!("{list:?}") };
        assert_eq!(node.about, about());
        assert!(node.age < PATIENCE, "{node:?}");
        let of_node = node.clock.expect("the second announcement has it");
        for clock in [of_node, list.clock] {
            // It is the same clock.
            let uncertain = i64::try_from(clock.round_trip.as_millis()).unwrap() + 1;
            assert!(clock.offset_millis.abs() <= uncertain, "{clock:?}");
        }
    }
    changes.send_replace(AboutNode { version: "2".to_owned(), ..about() });
    let changed = until(&cluster, "2").await;
    assert!(changed.iter().all(|list| list.nodes.len() == 1), "a node is listed once: {changed:?}");
    cluster.kill(1);
    let after = list_nodes(&cluster.endpoints, PATIENCE).await;
    let down: Vec<NodeId> = after.iter().filter(|(_, list)| list.is_err()).map(|(node, _)| *node).collect();
    assert_eq!(down.len(), 1, "{after:?}");
    announcing.abort();
}
