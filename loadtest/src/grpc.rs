//! Load over gRPC: one stream for each connection, with a bounded number of unanswered messages.

use std::{collections::HashMap, sync::Arc};

use anyhow::Context;
use parking_lot::Mutex;
use postroad_proto::submission::{
    Envelope, SubmitRequest, SubmitStreamRequest, submission_service_client::SubmissionServiceClient,
    submit_stream_response,
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, metadata::MetadataValue, transport::Channel};

use crate::{
    ClientArgs,
    message::MessageMaker,
    plan::{DueMessage, Plan},
    report::Tally,
};

pub(crate) async fn run(
    target: &str,
    clients: &ClientArgs,
    plan: &Arc<Plan>,
    tally: &Arc<Tally>,
    maker: &MessageMaker,
) -> anyhow::Result<()> {
    let mut streams = JoinSet::new();
    for _ in 0..clients.connections.max(1) {
        let endpoint = Channel::from_shared(format!("http://{target}"))?;
        let channel = endpoint.connect().await.with_context(|| format!("cannot reach `{target}`"))?;
        let key = format!("Bearer {}", clients.api_key)
            .parse()
            .context("the API key is not a valid header value")?;
        let stream = Stream {
            channel,
            key,
            in_flight: Arc::new(Semaphore::new(clients.in_flight.max(1))),
            waiting: Arc::default(),
            maker: maker.clone(),
            plan: plan.clone(),
            tally: tally.clone(),
        };
        streams.spawn(stream.run());
    }
    while let Some(ended) = streams.join_next().await {
        ended??;
    }
    Ok(())
}

struct Stream {
    channel: Channel,
    key: MetadataValue<tonic::metadata::Ascii>,
    in_flight: Arc<Semaphore>,
    waiting: Arc<Mutex<HashMap<u64, DueMessage>>>,
    maker: MessageMaker,
    plan: Arc<Plan>,
    tally: Arc<Tally>,
}

impl Stream {
    async fn run(self) -> anyhow::Result<()> {
        let (requests, outgoing) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        request.metadata_mut().insert("authorization", self.key.clone());
        let mut client = SubmissionServiceClient::new(self.channel.clone());
        let (in_flight, waiting, tally) = (self.in_flight.clone(), self.waiting.clone(), self.tally.clone());
        // A set, so that the task is aborted when the stream is dropped.
        let mut feeding = JoinSet::new();
        feeding.spawn(self.feed(requests));
        let answers = async {
            let mut answers = client.submit_stream(request).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                let Some(due_message) = waiting.lock().remove(&answer.sequence) else { continue };
                match answer.result {
                    Some(submit_stream_response::Result::Accepted(accepted)) => {
                        tally.count_accepted(due_message, accepted.message_id.parse().ok());
                    }
                    Some(submit_stream_response::Result::Rejected(rejection)) => {
                        tally.count_refused(&rejection.message)
                    }
                    None => tally.count_unanswered(),
                }
                in_flight.add_permits(1);
            }
            anyhow::Ok(())
        };
        let ended = answers.await;
        feeding.abort_all();
        for _ in waiting.lock().drain() {
            tally.count_unanswered();
        }
        ended.context("the stream ended")
    }

    /// Sends due messages while the number of unanswered ones allows.
    async fn feed(self, requests: mpsc::Sender<SubmitStreamRequest>) {
        loop {
            let Ok(permit) = self.in_flight.acquire().await else { return };
            permit.forget();
            let Some(due_message) = self.plan.next().await else { return };
            self.waiting.lock().insert(due_message.index, due_message);
            let mut content = Vec::new();
            self.maker.write(due_message.index, &mut content);
            let envelope = Envelope {
                sender: self.maker.sender.to_string(),
                recipients: vec![self.maker.recipient.to_string()],
            };
            let request = SubmitRequest { envelope: Some(envelope), content: content.into() };
            let request = SubmitStreamRequest { sequence: due_message.index, request: Some(request) };
            if requests.send(request).await.is_err() {
                return;
            }
        }
    }
}
