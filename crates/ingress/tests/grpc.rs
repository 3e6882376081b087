//! The gRPC service as clients see it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use futures::{StreamExt, stream};
use postroad_core::MessageId;
use postroad_net::{Expect, Role, Transport};
use postroad_proto::{
    queue::SubmitStatus,
    submission::{
        DeliveryState, Envelope, GetMessageRequest, SubmitRequest, SubmitStreamRequest,
        submission_service_client::SubmissionServiceClient, submit_stream_response::Result as Answer,
    },
};
use postroad_telemetry::testing::Counters;
use support::{MESSAGE_SIZE_MAX, Mode, Rig, message_id};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt;

const CONTENT: &str = "From: a@shop.example\nSubject: Hello\n\nhi\n";

fn request(sender: &str, recipients: &[&str], content: impl Into<bytes::Bytes>) -> SubmitRequest {
    let recipients = recipients.iter().map(ToString::to_string).collect();
    let envelope = Envelope { sender: sender.to_owned(), recipients };
    SubmitRequest { envelope: Some(envelope), content: content.into() }
}

fn with_key<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

async fn client(rig: &Rig) -> SubmissionServiceClient<Channel> {
    let expect = Expect { role: Role::Ingress, node: None };
    SubmissionServiceClient::new(Transport::Plain.channel(&rig.grpc.to_string(), expect))
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

fn check(answer: Result<impl std::fmt::Debug, Status>, code: Code, part: &str) {
    let status = answer.unwrap_err();
    assert!(
        status.code() == code && status.message().contains(part),
        "expected {code:?} {part}, got {status:?}"
    );
}

#[tokio::test]
async fn ok_means_that_the_queue_has_stored_the_message() {
    let rig = Rig::start().await;
    let mut client = client(&rig).await;
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut submit =
        with_key("shop-key", request("a@shop.example", &["b@b.example", "c@routed.example"], CONTENT));
    submit.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    let id: MessageId = client.submit(submit).await.unwrap().into_inner().message_id.parse().unwrap();

    let (submission, stored) = rig.last();
    assert_eq!(message_id(&submission), id);
    let date = id.at().civil().to_rfc5322();
    let expected = format!(
        "Received: by mx.test with gRPC id {id};\r\n\t{date}\r\n\
         Message-ID: <{id}@mx.test>\r\nDate: {date}\r\n\
         From: a@shop.example\r\nSubject: Hello\r\n\r\nhi\r\n"
    );
    assert_eq!(stored, expected);
    assert_eq!((submission.subject.as_str(), submission.traceparent.as_str()), ("Hello", traceparent));
    assert_eq!(submission.origin, "key shop-key from 127.0.0.1");

    // The status comes from the queue, and only the message's tenant may see it.
    let ask = || GetMessageRequest { message_id: id.to_string() };
    let message = client.get_message(with_key("shop-key", ask())).await.unwrap().into_inner();
    assert_eq!((message.sender.as_str(), message.size_bytes), ("a@shop.example", submission.size_bytes));
    let delivery = &message.deliveries[0];
    assert_eq!((delivery.state(), delivery.attempts), (DeliveryState::Queued, 1));
    let due = delivery.due_at.unwrap();
    assert_eq!((due.seconds, due.nanos), (2, 500_000_000));
    check(client.get_message(with_key("any-key", ask())).await, Code::NotFound, "no such message");
    let elsewhere = MessageId::new(id.at(), postroad_core::GroupId(9), 1).to_string();
    let elsewhere = GetMessageRequest { message_id: elsewhere };
    check(client.get_message(with_key("any-key", elsewhere)).await, Code::NotFound, "no such message");
    let nonsense = GetMessageRequest { message_id: "x".to_owned() };
    check(client.get_message(with_key("any-key", nonsense)).await, Code::InvalidArgument, "message_id");
    rig.stop().await;
}

#[tokio::test]
async fn s_310_a_key_is_required() {
    let rig = Rig::start().await;
    let mut client = client(&rig).await;
    let message = || request("a@shop.example", &["b@b.example"], CONTENT);
    check(client.submit(message()).await, Code::Unauthenticated, "required");
    for wrong in ["", "wrong", "secret"] {
        check(client.submit(with_key(wrong, message())).await, Code::Unauthenticated, "");
    }
    let mut basic = Request::new(message());
    basic.metadata_mut().insert("authorization", "Basic any-key".parse().unwrap());
    check(client.submit(basic).await, Code::Unauthenticated, "required");
    assert!(rig.queue.accepted().is_empty());
    rig.stop().await;
}

#[tokio::test]
async fn an_mbox_line_and_field_names_with_a_space_are_tolerated_as_over_smtp() {
    let rig = Rig::start().await;
    let mut client = client(&rig).await;
    let submit =
        |content: &str| with_key("shop-key", request("a@shop.example", &["b@b.example"], content.to_owned()));
    let mbox = "From a@shop.example Mon Nov 30 16:51:09 2026\n";
    for content in [
        format!("{mbox}{CONTENT}"),
        format!("X Priority: 1\n{CONTENT}"),
        format!("{mbox}X MS Flag: 1\n{CONTENT}"),
    ] {
        client.submit(submit(&content)).await.unwrap();
        let stored = rig.last().1;
        let expected = content.strip_prefix(mbox).unwrap_or(&content).replace('\n', "\r\n");
        assert!(stored.ends_with(&expected) && !stored.contains("From a@"), "{stored}");
    }
    // What is no field of anybody stays refused.
    check(client.submit(submit(&format!("hello\n{CONTENT}"))).await, Code::InvalidArgument, "");
    check(client.submit(submit(&format!("Subject: x\n{mbox}{CONTENT}"))).await, Code::InvalidArgument, "");
    rig.stop().await;

    let rig = Rig::start_with(|config| config.grpc_strict_syntax = true).await;
    let mut client = self::client(&rig).await;
    for line in [mbox, "X Priority: 1\n"] {
        check(client.submit(submit(&format!("{line}{CONTENT}"))).await, Code::InvalidArgument, "");
    }
    rig.stop().await;
}

#[tokio::test]
async fn what_is_tolerated_counts_when_the_message_is_accepted() {
    const TOLERATED: &str = "postroad_ingress_grpc_tolerated_total";
    let counters = Counters::default();
    let _recording = counters.record();
    let rig = Rig::start().await;
    let mut client = client(&rig).await;
    let submit = |content: String| with_key("shop-key", request("a@shop.example", &["b@b.example"], content));
    let refused = "X Priority: 1\nFrom: a@elsewhere.example\n\nhi\n".to_owned();
    check(client.submit(submit(refused)).await, Code::PermissionDenied, "");
    assert_eq!(counters.read(TOLERATED), 0);
    client.submit(submit(format!("X Priority: 1\n{CONTENT}"))).await.unwrap();
    assert_eq!(counters.read(TOLERATED), 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_recipient_given_twice_is_one_delivery() {
    let rig = Rig::start().await;
    let mut client = client(&rig).await;
    let recipients = ["b@b.example", "b@B.example", "B@b.example", "b@b.example"];
    client.submit(with_key("shop-key", request("a@shop.example", &recipients, CONTENT))).await.unwrap();
    let stored: Vec<String> =
        rig.last().0.recipients.into_iter().map(|recipient| recipient.address).collect();
    assert_eq!(stored, ["b@b.example", "B@b.example"]);
    rig.stop().await;
}

#[tokio::test]
async fn a_refusal_names_the_field() {
    let rig = Rig::start().await;
    let mut client = client(&rig).await;
    let bcc_only = "Subject: x\n\nhi";
    let many: Vec<&str> = vec!["b@b.example"; 1001];
    use Code::{InvalidArgument, PermissionDenied, ResourceExhausted};
    for (message, code, part) in [
        (SubmitRequest { envelope: None, content: CONTENT.into() }, InvalidArgument, "envelope: "),
        (request("nonsense", &["b@b.example"], CONTENT), InvalidArgument, "envelope.sender: "),
        (request("a@shop.example", &[], CONTENT), InvalidArgument, "envelope.recipients: "),
        (
            request("a@shop.example", &many, CONTENT),
            InvalidArgument,
            "envelope.recipients: expected 1 to 1000",
        ),
        (
            request("a@shop.example", &["b@b.example", "c"], CONTENT),
            InvalidArgument,
            "envelope.recipients[1]: ",
        ),
        (request("a@shop.example", &["b@[192.0.2.1]"], CONTENT), InvalidArgument, "envelope.recipients: "),
        (
            request("a@shop.example", &["b@b.example"], bcc_only),
            InvalidArgument,
            "content: the message has 0 From",
        ),
        (
            request("a@shop.example", &["b@b.example"], "From: a@shop.example\nx"),
            InvalidArgument,
            "content: ",
        ),
        (request("a@shop.example", &["b@b.example"], "From: a@shop.example\n\n\0"), InvalidArgument, "NUL"),
        (request("a@evil.example", &["b@b.example"], CONTENT), PermissionDenied, "`evil.example`"),
        (request("", &["b@b.example"], CONTENT), PermissionDenied, "null sender"),
        (
            request("a@shop.example", &["b@b.example"], "From: a@evil.example\n\n"),
            PermissionDenied,
            "`evil.example`",
        ),
        (request("a@shop.example", &["b@b.example"], vec![b'x'; 2001]), ResourceExhausted, "2000 bytes"),
    ] {
        check(client.submit(with_key("shop-key", message)).await, code, part);
    }
    assert!(rig.queue.accepted().is_empty());
    rig.stop().await;
}

#[tokio::test]
async fn s_201_the_size_limit_applies_to_grpc() {
    let rig = Rig::start().await;
    let mut client = client(&rig).await;
    let limit = usize::try_from(MESSAGE_SIZE_MAX).unwrap();
    let mut content = b"From: a@a.example\r\n\r\n".to_vec();
    content.resize(limit, b'x');
    client.submit(with_key("any-key", request("", &["b@b.example"], content.clone()))).await.unwrap();
    assert_eq!(rig.last().0.chunks, 5);
    content.push(b'x');
    // One byte over, and so far over that the request is not even decoded.
    for excess in [0, 1 << 20] {
        content.resize(limit + 1 + excess, b'x');
        let over = client.submit(with_key("any-key", request("", &["b@b.example"], content.clone()))).await;
        let refused = over.unwrap_err();
        assert_eq!(reason(&refused), "MESSAGE_TOO_LARGE");
        check(Err::<(), _>(refused), Code::ResourceExhausted, "3 MiB");
    }
    let items = [CONTENT.as_bytes().to_vec(), content].map(|content| {
        let request = request("a@shop.example", &["b@b.example"], content);
        SubmitStreamRequest { sequence: 1, request: Some(request) }
    });
    let answers = client.submit_stream(with_key("any-key", stream::iter(items))).await.unwrap().into_inner();
    let mut answers: Vec<_> = answers.collect().await;
    check(answers.pop().unwrap(), Code::ResourceExhausted, "3 MiB");
    assert!(matches!(answers[..], [Ok(_)]), "the item before it is answered: {answers:?}");
    rig.stop().await;
}

#[tokio::test]
async fn s_109_sequences_that_smuggle_over_smtp_are_data_over_grpc() {
    let rig = Rig::start().await;
    let mut client = client(&rig).await;
    for hidden in [
        "\n.\n",
        "\n.\r\n",
        "\r\n.\n",
        "\r.\r",
        "\r.\n",
        "\n.\r",
        "\r.\r\n",
        "\r\n.\r",
        "\r\n.\r\r\n",
        "\r\r\n.\r\n",
        "\r\n.\r\n",
        "\r\n\u{85}.\r\n",
        "\r\n.\u{2028}\r\n",
    ] {
        let content = format!("From: a@shop.example\r\n\r\nbody{hidden}MAIL FROM:<x@y.example>\r\nend\r\n");
        client
            .submit(with_key("shop-key", request("a@shop.example", &["b@b.example"], content)))
            .await
            .unwrap();
        let stored = rig.last().1;
        assert!(stored.ends_with("MAIL FROM:<x@y.example>\r\nend\r\n"), "{hidden:?}: {stored:?}");
        assert!(!stored.replace("\r\n", "").contains(['\r', '\n']), "{hidden:?}: {stored:?}");
    }
    assert_eq!(rig.queue.accepted().len(), 13);
    rig.stop().await;
}

#[tokio::test]
async fn s_034_a_message_that_cannot_be_stored_is_unavailable() {
    let rig = Rig::start().await;
    let mut client = client(&rig).await;
    let message = || with_key("shop-key", request("a@shop.example", &["b@b.example"], CONTENT));
    let full = Mode::Answer(SubmitStatus::StorageFull);
    for mode in [full, Mode::Answer(SubmitStatus::Unavailable), Mode::Silence] {
        rig.queue.mode.send_replace(mode);
        check(client.submit(message()).await, Code::Unavailable, "");
    }
    rig.queue.mode.send_replace(Mode::Accept);
    client.submit(message()).await.unwrap();
    rig.stop().await;
}

#[tokio::test]
async fn an_error_has_a_reason_and_the_field_and_says_whether_to_retry() {
    let rig = Rig::start().await;
    let mut client = client(&rig).await;
    let good = || request("a@shop.example", &["b@b.example"], CONTENT);
    let answer = client.submit(good()).await.unwrap_err();
    assert_eq!(reason(&answer), "API_KEY_MISSING");

    let malformed = request("a@shop.example", &["b@b.example", "c"], CONTENT);
    let answer = client.submit(with_key("shop-key", malformed)).await.unwrap_err();
    let details = answer.get_error_details();
    assert_eq!(reason(&answer), "FIELD_INVALID");
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "envelope.recipients[1]");
    assert!(details.retry_info().is_none());

    rig.queue.mode.send_replace(Mode::Answer(SubmitStatus::StorageFull));
    let answer = client.submit(with_key("shop-key", good())).await.unwrap_err();
    let details = answer.get_error_details();
    assert_eq!(reason(&answer), "STORAGE_FULL");
    assert_eq!(details.error_info().unwrap().domain, "postroad");
    assert!(details.retry_info().unwrap().retry_delay.is_some());
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_answers_every_item_separately() {
    let rig = Rig::start().await;
    let mut client = client(&rig).await;
    let items = (1..=600).map(|sequence| {
        let sender = if sequence % 3 == 0 { "a@evil.example" } else { "a@shop.example" };
        SubmitStreamRequest { sequence, request: Some(request(sender, &["b@b.example"], CONTENT)) }
    });
    let last = SubmitStreamRequest { sequence: 601, request: None };
    let items = stream::iter(items.chain([last]).collect::<Vec<_>>());
    let mut answers = client.submit_stream(with_key("shop-key", items)).await.unwrap().into_inner();
    let mut seen = std::collections::BTreeMap::new();
    while let Some(answer) = answers.next().await {
        let answer = answer.unwrap();
        seen.insert(answer.sequence, answer.result.unwrap());
    }
    assert_eq!(seen.len(), 601);
    for (sequence, answer) in seen {
        match answer {
            Answer::Accepted(_) => assert!(sequence % 3 != 0),
            Answer::Rejected(rejection) => {
                let expected = if sequence == 601 { Code::InvalidArgument } else { Code::PermissionDenied };
                assert!(sequence % 3 == 0 || sequence == 601, "{sequence}");
                assert_eq!(rejection.code, i32::from(expected));
            }
        }
    }
    assert_eq!(rig.queue.accepted().len(), 400);
    rig.stop().await;
}

#[tokio::test]
async fn a_node_that_stops_answers_what_it_has_read_of_a_stream_and_ends_it() {
    let rig = Rig::start().await;
    let mut client = client(&rig).await;
    let request = request("a@shop.example", &["b@b.example"], CONTENT);
    let item = SubmitStreamRequest { sequence: 1, request: Some(request) };
    // The client keeps its side open.
    let items = stream::iter([item]).chain(stream::pending());
    let mut answers = client.submit_stream(with_key("shop-key", items)).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap();
    assert!(matches!(answer.result, Some(Answer::Accepted(_))), "{answer:?}");

    let stopped = tokio::spawn(rig.stop());
    let end = answers.next().await.unwrap().unwrap_err();
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    assert!(answers.next().await.is_none());
    stopped.await.unwrap();
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };
    use tonic_reflection::pb::{
        v1::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        },
        v1alpha,
    };
    let rig = Rig::start().await;
    let channel = Transport::Plain.channel(&rig.grpc.to_string(), Expect { role: Role::Ingress, node: None });
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "postroad.submission.v1.SubmissionService"] {
        let question = HealthCheckRequest { service: service.to_owned() };
        let status = health.check(question).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving);
    }
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let mut answers = reflection.server_reflection_info(stream::iter([list])).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"postroad.submission.v1.SubmissionService"), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("queue")), "{names:?}");

    let symbol = "postroad.submission.v1.SubmissionService".to_owned();
    let question = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
            symbol,
        )),
    };
    let mut older = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = older.server_reflection_info(stream::iter([question])).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
    let v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(files) = answer else {
        panic!("{answer:?}")
    };
    assert!(!files.file_descriptor_proto.is_empty());
    rig.stop().await;
}
