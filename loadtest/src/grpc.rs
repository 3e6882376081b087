//! Load over gRPC: one stream for each connection, with a bounded number of unanswered messages.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

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

/// How long a server may take to start again.
const RECONNECT_WITHIN: Duration = Duration::from_secs(30);
const RECONNECT_AFTER: Duration = Duration::from_millis(100);

/// Messages without an answer, by their sequence numbers.
type Waiting = Arc<Mutex<HashMap<u64, DueMessage>>>;

pub(crate) async fn run(
    target: &str,
    clients: &ClientArgs,
    plan: &Arc<Plan>,
    tally: &Arc<Tally>,
    maker: &MessageMaker,
) -> anyhow::Result<()> {
    let mut streams = JoinSet::new();
    for _ in 0..clients.connections.max(1) {
        let stream = Stream {
            channel: connect(target).await?,
            key: format!("Bearer {}", clients.api_key)
                .parse()
                .context("the API key is not a valid header value")?,
            in_flight_max: clients.in_flight.max(1),
            maker: maker.clone(),
            plan: plan.clone(),
            tally: tally.clone(),
        };
        streams.spawn(stream.run_again(target.to_owned()));
    }
    while let Some(ended) = streams.join_next().await {
        ended??;
    }
    Ok(())
}

async fn connect(target: &str) -> anyhow::Result<Channel> {
    let endpoint = Channel::from_shared(format!("http://{target}"))?;
    endpoint.connect().await.with_context(|| format!("cannot reach `{target}`"))
}

#[derive(Clone)]
struct Stream {
    channel: Channel,
    key: MetadataValue<tonic::metadata::Ascii>,
    in_flight_max: usize,
    maker: MessageMaker,
    plan: Arc<Plan>,
    tally: Arc<Tally>,
}

impl Stream {
    /// Connects again when the server ends the stream, as a client does whose server is restarted.
    async fn run_again(mut self, target: String) -> anyhow::Result<()> {
        while let Err(error) = self.clone().run().await {
            if self.plan.is_over() {
                return Ok(());
            }
            let until = Instant::now() + RECONNECT_WITHIN;
            self.channel = loop {
                match connect(&target).await {
                    Ok(channel) => break channel,
                    Err(_) if Instant::now() > until => return Err(error),
                    Err(_) => tokio::time::sleep(RECONNECT_AFTER).await,
                }
            };
        }
        Ok(())
    }

    async fn run(self) -> anyhow::Result<()> {
        let (requests, outgoing) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        request.metadata_mut().insert("authorization", self.key.clone());
        let mut client = SubmissionServiceClient::new(self.channel.clone());
        let in_flight = Arc::new(Semaphore::new(self.in_flight_max));
        let waiting: Waiting = Arc::default();
        let tally = self.tally.clone();
        // A set, so that the task is aborted when the stream is dropped.
        let mut feeding = JoinSet::new();
        feeding.spawn(self.feed(requests, in_flight.clone(), waiting.clone()));
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
    async fn feed(
        self,
        requests: mpsc::Sender<SubmitStreamRequest>,
        in_flight: Arc<Semaphore>,
        waiting: Waiting,
    ) {
        loop {
            let Ok(permit) = in_flight.acquire().await else { return };
            permit.forget();
            let Some(due_message) = self.plan.next().await else { return };
            waiting.lock().insert(due_message.index, due_message);
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
