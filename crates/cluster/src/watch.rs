//! Follows the directory: one stream from any queue node, resumed where it broke.

use std::{sync::Arc, time::Duration};

use postroad_directory::View;
use postroad_proto::directory::{UpdateReader, wire::WatchRequest};
use tokio::{sync::watch, task::JoinSet, time};
use tonic::transport::Channel;

use crate::{Endpoints, directory::client};

/// Pause before the next node is asked.
const RECONNECT_AFTER: Duration = Duration::from_millis(100);
/// Timeout of a node's first answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Follows the directory until it is dropped; receivers keep the last view.
#[derive(Debug)]
pub struct DirectoryWatch {
    view: watch::Receiver<Arc<View>>,
    _follower: JoinSet<()>,
}

impl DirectoryWatch {
    /// Starts following the directory, trying one of `endpoints` after the other.
    #[must_use]
    pub fn start(endpoints: &Endpoints) -> Self {
        let (publish, view) = watch::channel(Arc::new(View::empty()));
        let mut follower = JoinSet::new();
        follower.spawn(follow(endpoints.clone(), publish));
        Self { view, _follower: follower }
    }

    /// Returns a receiver of the view, which sees every later change; revision 0 means that nothing is known yet.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }
}

async fn follow(endpoints: Endpoints, publish: watch::Sender<Arc<View>>) {
    // Processes start with different nodes, to spread the load.
    let skip = postroad_env::random::<u32>() as usize % endpoints.len().max(1);
    for (node, channel) in endpoints.iter().cycle().skip(skip) {
        let why = stream_from(channel.clone(), &publish).await;
        tracing::debug!(%node, %why, "the directory's stream ended");
        time::sleep(RECONNECT_AFTER).await;
    }
}

/// Publishes updates until the stream ends; returns why it ended.
async fn stream_from(channel: Channel, publish: &watch::Sender<Arc<View>>) -> tonic::Status {
    let request = WatchRequest { revision: publish.borrow().revision() };
    let mut client = client(channel);
    let mut stream = match time::timeout(ANSWER_MAX, client.watch(request)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return status,
        Err(_) => return tonic::Status::deadline_exceeded("no answer"),
    };
    let mut reader = UpdateReader::default();
    loop {
        let frame = match stream.message().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return tonic::Status::ok("ended by the node"),
            Err(status) => return status,
        };
        match reader.read(frame) {
            Ok(Some(delta)) => publish.send_modify(|view| *view = Arc::new(view.apply(delta))),
            Ok(None) => {}
            // An item of a newer version: the view stays as it is until this process is upgraded.
            Err(error) => return tonic::Status::data_loss(error.to_string()),
        }
    }
}
