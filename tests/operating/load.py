"""Steady load, a receiver, and what can be said of both afterwards."""

import collections
import re
import smtplib
import socket
import socketserver
import threading
import time

from hosts import HOSTS, RECEIVER

RATE, WORKERS = 120, 12
#: 4 KiB, so that a full log is noticed after a few seconds: it is when the next segment begins.
LINES = ("x" * 62 + "\r\n") * 64
#: What an application waits for a reply before it tries again elsewhere.
PATIENCE = 15


class Load:
    """An application that sends messages over kept connections, each again until it is accepted, as one with a queue does."""

    def __init__(self):
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.number = 0
        #: When each message was accepted.
        self.accepted = {}
        #: How often a message was sent without an answer: it may have been accepted.
        self.unanswered = collections.Counter()
        self.refusals = collections.Counter()
        self.ingress = [f"{name}.example" for name, role, _ in HOSTS if role == "ingress"]
        self.threads = [threading.Thread(target=self.work, args=(n,), daemon=True) for n in range(WORKERS)]
        for thread in self.threads:
            thread.start()

    def work(self, at):
        client, due = None, time.monotonic()
        while not self.stopping.is_set():
            with self.lock:
                self.number += 1
                number = self.number
            accepted = False
            while not accepted:
                host = self.ingress[at % len(self.ingress)]
                accepted, client = self.submit(client, host, number)
                if not accepted:
                    at += 1
                    time.sleep(0.1)
                    if self.stopping.is_set() and number not in self.unanswered:
                        return
            due = max(due + WORKERS / RATE, time.monotonic() - 1)
            self.stopping.wait(max(0, due - time.monotonic()))

    def submit(self, client, host, number):
        text = f"From: <app@acme.example>\r\nSubject: {number}\r\n\r\nLoad: {number}\r\n" + LINES
        in_data = False
        try:
            client = client or smtplib.SMTP(host, 587, local_hostname="app.example", timeout=PATIENCE)
            client.ehlo_or_helo_if_needed()
            for command in ("MAIL FROM:<app@acme.example>", f"RCPT TO:<r{number}@example.net>", "DATA"):
                code, reply = client.docmd(command)
                if code >= 400:
                    return self.refused(client, code, reply)
            in_data = True
            client.send(text + ".\r\n")
            code, reply = client.getreply()
            if code >= 400:
                return self.refused(client, code, reply)
            with self.lock:
                self.accepted[number] = time.monotonic()
            return True, client
        except (OSError, smtplib.SMTPException) as error:
            with self.lock:
                self.refusals[type(error).__name__] += 1
                if in_data:
                    self.unanswered[number] += 1
            return False, None

    def refused(self, client, code, reply):
        with self.lock:
            self.refusals[f"{code} {reply.decode(errors='replace').splitlines()[0]}"] += 1
        client.close()
        return False, None

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(120)
            assert not thread.is_alive(), "a message was not accepted within two minutes"

    def longest_gap(self, start, end):
        """The longest time without a message accepted, in seconds, that began or ended between these."""
        # The last gap may still be open.
        times = sorted(time for time in [*self.accepted.values(), end] if time <= end)
        gaps = [(b - a) for a, b in zip(times, times[1:]) if b >= start and a <= end]
        return max(gaps, default=end - start)


class Receipt:
    """One copy that the receiver has taken."""

    def __init__(self, id, peer):
        self.id, self.peer, self.at, self.answered = id, peer, time.time(), False


class Receiver(socketserver.ThreadingTCPServer):
    """Takes every message, and keeps which and how often."""

    daemon_threads, request_queue_size, allow_reuse_address = True, 200, True

    def __init__(self):
        self.lock = threading.Lock()
        self.receipts = collections.defaultdict(list)
        super().__init__((RECEIVER, 25), Session)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that leaves is no error."""


class Session(socketserver.StreamRequestHandler):
    def say(self, line):
        self.wfile.write(line + b"\r\n")

    def handle(self):
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.say(b"220 mx.example.net ESMTP")
        last = None
        while line := self.rfile.readline():
            if last:
                # A client that goes on has read the reply.
                last.answered = True
            verb = line[:4].upper()
            if verb == b"EHLO":
                self.say(b"250-mx.example.net\r\n250-PIPELINING\r\n250 8BITMIME")
            elif verb == b"DATA":
                self.say(b"354 go on")
                last = self.receive()
                self.say(b"250 2.0.0 taken")
            elif verb == b"QUIT":
                return self.say(b"221 2.0.0 bye")
            else:
                self.say(b"250 2.0.0 ok")

    def receive(self):
        content = []
        while (line := self.rfile.readline()) not in (b".\r\n", b""):
            content.append(line)
        text = b"".join(content)
        assert line, "the client left within a message"
        number = int(re.search(rb"^Load: (\d+)", text, re.M)[1])
        receipt = Receipt(re.search(rb"\bid (0[0-9A-Z]{25})", text)[1].decode(), self.client_address[0])
        with self.server.lock:
            self.server.receipts[number].append(receipt)
        return receipt


class Account:
    """Compares what was acknowledged with what was received."""

    def __init__(self, load, receiver, hosts):
        self.load, self.receiver = load, receiver
        self.outcomes = collections.defaultdict(list)
        pattern = re.compile(r"^(\S+) .*mail: attempt id=(\S+) .*outcome=(\w+)")
        for name, line in hosts.mail_log("outbound"):
            if found := pattern.match(line):
                self.outcomes[found[2]].append((found[1], name, found[3]))

    def lost(self):
        return sorted(number for number in self.load.accepted if number not in self.receiver.receipts)

    def extra(self):
        """Returns how many extra copies there are for each explanation, and those without one."""
        explained, rest = collections.Counter(), []
        for number, receipts in self.receiver.receipts.items():
            by_id = collections.defaultdict(list)
            for receipt in receipts:
                by_id[receipt.id].append(receipt)
            ids = len(by_id) - 1
            if ids > self.load.unanswered[number]:
                rest.append((number, receipts))
            elif ids:
                explained["the application had no answer, and sent the message again"] += ids
            for id, copies in by_id.items():
                for copy in copies[:-1]:
                    if copy.answered:
                        rest.append((number, id, [(copy.peer, copy.at) for copy in copies], self.outcomes[id]))
                    else:
                        explained["the connection to the receiver ended at its 250"] += 1
        return explained, rest
