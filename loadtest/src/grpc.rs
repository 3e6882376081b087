//! Load over gRPC: one stream for each connection, with a bounded number of unanswered messages.

use std::{collections::HashMap, error::Error, sync::Arc, time::Duration};

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
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};

use crate::{
    ClientArgs,
    message::MessageMaker,
    plan::{DueMessage, Plan},
    report::Tally,
};

/// How long a server may take to start again.
const RECONNECT_WITHIN: Duration = Duration::from_secs(30);
const RECONNECT_AFTER: Duration = Duration::from_millis(100);

/// What a stream does when its server ends it before all messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenEnded {
    /// The run fails.
    Fail,
    /// It connects again, as a client does whose server is restarted, unless the server says that this is of no use.
    ConnectAgain,
}

/// Messages that were taken from the plan and have no answer, by their sequence numbers.
type Waiting = Arc<Mutex<HashMap<u64, DueMessage>>>;

pub(crate) async fn run(
    target: &str,
    clients: &ClientArgs,
    plan: &Arc<Plan>,
    tally: &Arc<Tally>,
    maker: &MessageMaker,
    when_ended: WhenEnded,
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
        let target = target.to_owned();
        streams.spawn(async move {
            let ended = match when_ended {
                WhenEnded::Fail => stream.run().await,
                WhenEnded::ConnectAgain => stream.run_again(&target).await,
            };
            ended.context("the stream ended")
        });
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

/// Returns true when the server asks for it, or when the connection failed: what a server sends has no source.
fn may_connect_again(status: &Status) -> bool {
    status.code() == Code::Unavailable || status.source().is_some()
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
    /// Connects again when the connection or the server fails.
    async fn run_again(mut self, target: &str) -> Result<(), Status> {
        while let Err(status) = self.clone().run().await {
            if !may_connect_again(&status) {
                return Err(status);
            }
            if self.plan.is_over() {
                return Ok(());
            }
            let until = postroad_env::now() + RECONNECT_WITHIN;
            self.channel = loop {
                tokio::time::sleep(RECONNECT_AFTER).await;
                match connect(target).await {
                    Ok(channel) => break channel,
                    Err(_) if postroad_env::now() > until => return Err(status),
                    Err(_) => {}
                }
            };
        }
        Ok(())
    }

    async fn run(self) -> Result<(), Status> {
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
            Ok(())
        };
        let ended = answers.await;
        // Nothing is taken after this.
        feeding.shutdown().await;
        for _ in waiting.lock().drain() {
            tally.count_unanswered();
        }
        ended
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
            // Counted from here on, also where the stream ends before it is due.
            let Some(due_message) = self.plan.take() else { return };
            waiting.lock().insert(due_message.index, due_message);
            due_message.wait().await;
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

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use postroad_proto::submission::{
        GetMessageRequest, Message, SubmitResponse, SubmitStreamResponse,
        submission_service_server::{SubmissionService, SubmissionServiceServer},
    };
    use tokio::net::TcpListener;
    use tokio_stream::{Stream, StreamExt};
    use tonic::{
        Response, Streaming,
        transport::{Server, server::TcpIncoming},
    };

    use super::*;
    use crate::report::Answers;

    const MESSAGES: u64 = 10;

    /// Reads two messages of each of the first streams and ends it with `code`; accepts all messages of later ones.
    struct Failing {
        code: Code,
        streams: usize,
        opened: Arc<AtomicUsize>,
    }

    #[tonic::async_trait]
    impl SubmissionService for Failing {
        async fn submit(&self, _: Request<SubmitRequest>) -> Result<Response<SubmitResponse>, Status> {
            Err(Status::unimplemented("streams only"))
        }

        async fn get_message(&self, _: Request<GetMessageRequest>) -> Result<Response<Message>, Status> {
            Err(Status::unimplemented("streams only"))
        }

        type SubmitStreamStream = Pin<Box<dyn Stream<Item = Result<SubmitStreamResponse, Status>> + Send>>;

        async fn submit_stream(
            &self,
            request: Request<Streaming<SubmitStreamRequest>>,
        ) -> Result<Response<Self::SubmitStreamStream>, Status> {
            let mut requests = request.into_inner();
            if self.opened.fetch_add(1, Ordering::Relaxed) < self.streams {
                for _ in 0..2 {
                    requests.message().await?;
                }
                return Err(Status::new(self.code, "no"));
            }
            let accepted = |request: Result<SubmitStreamRequest, Status>| {
                let result = Some(submit_stream_response::Result::Accepted(SubmitResponse::default()));
                Ok(SubmitStreamResponse { sequence: request?.sequence, result })
            };
            Ok(Response::new(Box::pin(requests.map(accepted))))
        }
    }

    /// Runs one stream; returns its result, how many streams it opened, and what became of the messages.
    async fn run_against(
        code: Code,
        streams: usize,
        when_ended: WhenEnded,
    ) -> (anyhow::Result<()>, usize, Answers) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap().to_string();
        let opened = Arc::<AtomicUsize>::default();
        let service = SubmissionServiceServer::new(Failing { code, streams, opened: opened.clone() });
        // A set, so that the server is aborted at the end.
        let mut servers = JoinSet::new();
        servers
            .spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
        let clients = ClientArgs {
            connections: 1,
            messages_per_connection: 0,
            in_flight: 64,
            api_key: "key".to_owned(),
        };
        let (plan, tally) = (Plan::new(MESSAGES, Some(50.0)), Arc::new(Tally::new(MESSAGES)));
        let plan = Arc::new(plan);
        let maker = MessageMaker::new("a@x.test", "b@x.test", 256);
        let ended = run(&target, &clients, &plan, &tally, &maker, when_ended).await;
        (ended, opened.load(Ordering::Relaxed), tally.answers(plan.started))
    }

    #[tokio::test]
    async fn a_server_that_refuses_the_stream_is_not_asked_again() {
        for when_ended in [WhenEnded::Fail, WhenEnded::ConnectAgain] {
            let (ended, opened, answers) = run_against(Code::Unauthenticated, usize::MAX, when_ended).await;
            let error = format!("{:#}", ended.expect_err("the stream is refused"));
            assert!(error.contains("the stream ended") && error.contains("no"), "{error}");
            assert_eq!(opened, 1);
            assert!(answers.unanswered < MESSAGES, "the plan is not used up: {answers:?}");
        }
    }

    #[tokio::test]
    async fn every_message_of_the_plan_is_counted_when_the_server_is_restarted() {
        let (ended, opened, answers) = run_against(Code::Unavailable, 2, WhenEnded::ConnectAgain).await;
        ended.unwrap();
        assert_eq!(opened, 3);
        assert_eq!(answers.accepted + answers.unanswered, MESSAGES, "{answers:?}");
        assert!(answers.accepted > 0 && answers.unanswered >= 4, "{answers:?}");
    }

    #[tokio::test]
    async fn a_stream_that_must_not_end_fails_the_run_when_it_does() {
        let (ended, opened, _) = run_against(Code::Unavailable, 1, WhenEnded::Fail).await;
        assert!(ended.is_err());
        assert_eq!(opened, 1);
    }
}
