"""Traces as a collector receives them: one trace from submission to delivery, and its id in the mail log."""

import concurrent.futures
import os
import random
import smtplib
import socket
import subprocess
import tempfile
import threading
import time

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from common import SECRET, run
from common_stubs import pb, stubs


def free_ports(number):
    """Returns ports below the range that the system uses for outgoing connections."""
    held = []
    while len(held) < number:
        try:
            held.append(socket.create_server(("127.0.0.1", random.randrange(20001, 32000))))
        except OSError:
            pass
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span that it is sent."""

    def __init__(self, port):
        self.lock = threading.Lock()
        self.spans = []
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.server.start()

    def Export(self, request, _):
        with self.lock:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(self, of, limit=60):
        """Waits until a trace with a span that `of` accepts has a delivery; returns the trace's spans by name."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            with self.lock:
                spans = list(self.spans)
            for chosen in filter(of, spans):
                trace = {span.name: span for span in spans if span.trace_id == chosen.trace_id}
                if "deliver" in trace:
                    return trace
            time.sleep(0.1)
        raise AssertionError(f"no such trace with a delivery among {[span.name for span in spans]}")


OTLP, SMTP, SMTPS, GRPC, HTTP, METRICS, OPERATOR = free_ports(7)
COLLECTOR = Collector(OTLP)
LOG = tempfile.NamedTemporaryFile(prefix="postroad-traces-", suffix=".log")


def start_server():
    flags = {"smtp": SMTP, "smtps": SMTPS, "grpc": GRPC, "http": HTTP, "metrics": METRICS, "operator": OPERATOR}
    arguments = [os.environ["BINARY"], "dev"]
    for name, port in flags.items():
        arguments += [f"--listen-{name}", f"127.0.0.1:{port}"]
    environment = {
        **os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{OTLP}", "POSTROAD_LOG": "warn,mail=info",
    }
    server = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=LOG)
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", SMTP)).close()
            return server
        except OSError:
            assert server.poll() is None, "the server has ended"
            time.sleep(0.05)
    raise AssertionError("the server does not listen")


def logged(trace_id, limit=30):
    """Waits until the mail log has the acceptance, the attempt and the delivery of one message under a trace."""
    end = time.monotonic() + limit
    while True:
        with open(LOG.name, encoding="utf-8") as log:
            lines = [line.split() for line in log if f"trace={trace_id.hex()}" in line]
        events = {line[line.index("mail:") + 1] for line in lines}
        ids = {word for line in lines for word in line if word.startswith("id=")}
        if events == {"accepted", "attempt", "delivered"} and len(ids) == 1:
            return
        assert time.monotonic() < end, f"the mail log has of trace {trace_id.hex()}: {lines}"
        time.sleep(0.1)


def continued():
    """a client's trace continues to the delivery"""
    trace_id, span_id = os.urandom(16), os.urandom(8)
    envelope = pb.Envelope(sender="me@example.org", recipients=["traced@example.net"])
    request = pb.SubmitRequest(envelope=envelope, content=b"From: <me@example.org>\r\n\r\nhello\r\n")
    metadata = [
        ("authorization", f"Bearer {SECRET}"),
        ("traceparent", f"00-{trace_id.hex()}-{span_id.hex()}-01"),
    ]
    with grpc.insecure_channel(f"127.0.0.1:{GRPC}") as channel:
        stubs.SubmissionServiceStub(channel).Submit(request, metadata=metadata, timeout=30)
    trace = COLLECTOR.trace(lambda span: span.trace_id == trace_id)
    submit, deliver = trace["ingress.submit"], trace["deliver"]
    assert submit.parent_span_id == span_id, submit
    assert deliver.parent_span_id == submit.span_id, trace
    logged(trace_id)


def begun():
    """mail over SMTP starts a new trace"""
    with smtplib.SMTP("127.0.0.1", SMTP, timeout=30) as client:
        client.sendmail("me@example.org", ["began@example.net"], b"From: <me@example.org>\r\n\r\nhello\r\n")
    trace = COLLECTOR.trace(lambda span: span.name == "ingress.submit" and not span.parent_span_id)
    assert trace["deliver"].parent_span_id == trace["ingress.submit"].span_id, trace
    logged(trace["deliver"].trace_id)


SERVER = start_server()
try:
    run("traces", [continued, begun])
finally:
    SERVER.terminate()
    SERVER.wait()
