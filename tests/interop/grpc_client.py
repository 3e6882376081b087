"""gRPC with stubs generated from /proto, as an application uses it."""

import grpc

from common import GRPC, SECRET, arrived, raw, run
from common_stubs import pb, stubs

CHANNEL = grpc.insecure_channel(GRPC)
CLIENT = stubs.SubmissionServiceStub(CHANNEL)
KEY = [("authorization", f"Bearer {SECRET}")]


def request(*recipients, content=b"From: <me@example.org>\r\nSubject: grpc\r\n\r\nhello\r\n"):
    envelope = pb.Envelope(sender="me@example.org", recipients=recipients)
    return pb.SubmitRequest(envelope=envelope, content=content)


def submit(made, metadata=KEY):
    return CLIENT.Submit(made, metadata=metadata, timeout=30)


def refused(made, code, metadata=KEY):
    try:
        submit(made, metadata)
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()}: {error.details()}"
        return
    raise AssertionError("it was accepted")


def one():
    """one message, found under its id"""
    answer = submit(request("grpc-one@example.net"))
    assert len(answer.message_id) == 26
    (message,) = arrived("grpc-one@example.net")
    assert message["message_id"] == answer.message_id, message


def two_recipients():
    """two recipients of one message"""
    submit(request("grpc-a@example.net", "grpc-b@example.net"))
    arrived("grpc-a@example.net")
    arrived("grpc-b@example.net")


def stream():
    """a stream of a hundred, each acknowledged by its number"""
    requests = (
        pb.SubmitStreamRequest(sequence=number, request=request("grpc-stream@example.net")) for number in range(100)
    )
    answers = list(CLIENT.SubmitStream(requests, metadata=KEY, timeout=60))
    assert sorted(answer.sequence for answer in answers) == list(range(100))
    assert all(answer.HasField("accepted") for answer in answers), answers
    arrived("grpc-stream@example.net", 100)


def stream_goes_on():
    """a rejected item leaves the stream going"""
    items = [request("grpc-good@example.net"), request("not an address"), request("grpc-good@example.net")]
    requests = (pb.SubmitStreamRequest(sequence=number, request=item) for number, item in enumerate(items))
    answers = {answer.sequence: answer for answer in CLIENT.SubmitStream(requests, metadata=KEY, timeout=60)}
    assert answers[1].rejected.code == 3, answers[1]
    assert answers[0].HasField("accepted") and answers[2].HasField("accepted")
    arrived("grpc-good@example.net", 2)


def line_ends():
    """bare CR and LF become CRLF"""
    submit(request("grpc-lines@example.net", content=b"From: <me@example.org>\nSubject: x\n\na\n.\nb\rc\r\n"))
    (message,) = arrived("grpc-lines@example.net")
    assert raw(message).endswith(b"\r\n\r\na\r\n.\r\nb\r\nc\r\n"), raw(message)


def state():
    """the state of a message"""
    answer = submit(request("grpc-state@example.net"))
    try:
        message = CLIENT.GetMessage(pb.GetMessageRequest(message_id=answer.message_id), metadata=KEY, timeout=30)
        assert message.deliveries[0].recipient == "grpc-state@example.net", message
    except grpc.RpcError as error:
        # It may be delivered already.
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
    arrived("grpc-state@example.net")


def keys():
    """no key, a wrong key and half a key are UNAUTHENTICATED"""
    for metadata in [[("authorization", "Bearer wrong")], [("authorization", SECRET)]]:
        refused(request("grpc-key@example.net"), grpc.StatusCode.UNAUTHENTICATED, metadata)


def arguments_are_checked():
    """an invalid request is INVALID_ARGUMENT"""
    code = grpc.StatusCode.INVALID_ARGUMENT
    refused(request(), code)
    refused(request("not an address"), code)
    refused(request("grpc-wrong@example.net", content=b"Subject: no from\r\n\r\n"), code)
    refused(pb.SubmitRequest(content=b"From: <me@example.org>\r\n\r\n"), code)


run("grpc", [one, two_recipients, stream, stream_goes_on, line_ends, state, keys, arguments_are_checked])
