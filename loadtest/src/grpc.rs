//! Load over gRPC: one stream for each connection, with a bounded number of messages under way.

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
    plan::{Plan, Turn},
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
        let key = format!("Bearer {}", clients.api_key).parse().context("the API key is no header value")?;
        let stream = Stream {
            channel,
            key,
            room: Arc::new(Semaphore::new(clients.in_flight.max(1))),
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
    room: Arc<Semaphore>,
    waiting: Arc<Mutex<HashMap<u64, Turn>>>,
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
        let (room, waiting, tally) = (self.room.clone(), self.waiting.clone(), self.tally.clone());
        // Ends with the stream, also when the stream is dropped.
        let mut feeding = JoinSet::new();
        feeding.spawn(self.feed(requests));
        let answers = async {
            let mut answers = client.submit_stream(request).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                let Some(turn) = waiting.lock().remove(&answer.sequence) else { continue };
                match answer.result {
                    Some(submit_stream_response::Result::Accepted(accepted)) => {
                        tally.accept(turn, accepted.message_id.parse().ok());
                    }
                    Some(submit_stream_response::Result::Rejected(rejection)) => {
                        tally.refuse(&rejection.message)
                    }
                    None => tally.leave_unanswered(),
                }
                room.add_permits(1);
            }
            anyhow::Ok(())
        };
        let ended = answers.await;
        feeding.abort_all();
        for _ in waiting.lock().drain() {
            tally.leave_unanswered();
        }
        ended.context("the stream ended")
    }

    /// Sends what is due as long as there is room.
    async fn feed(self, requests: mpsc::Sender<SubmitStreamRequest>) {
        loop {
            let Ok(permit) = self.room.acquire().await else { return };
            permit.forget();
            let Some(turn) = self.plan.next().await else { return };
            self.waiting.lock().insert(turn.index, turn);
            let mut content = Vec::new();
            self.maker.write(turn.index, &mut content);
            let envelope = Envelope {
                sender: self.maker.sender.to_string(),
                recipients: vec![self.maker.recipient.to_string()],
            };
            let request = SubmitRequest { envelope: Some(envelope), content: content.into() };
            let request = SubmitStreamRequest { sequence: turn.index, request: Some(request) };
            if requests.send(request).await.is_err() {
                return;
            }
        }
    }
}
