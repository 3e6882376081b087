//! A node that can no longer claim its sources ends.

use std::time::Duration;

use postroad_testkit::Script;

use crate::node::{Setup, sink};

#[tokio::test]
async fn a_node_whose_next_incarnation_cannot_be_written_ends_by_itself() {
    let sink = sink(Script::default()).await;
    let setup = Setup { lease: Duration::from_secs(4), ..Setup::default() };
    let node = setup.start_routed(&sink).await;
    // A directory where the file is written fails for root too.
    std::fs::create_dir(node.data_directory().join("incarnation.new")).unwrap();
    node.queue.forget_claims();
    node.ended().await;
}
