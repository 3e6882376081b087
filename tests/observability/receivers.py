"""Receivers of mail whose behaviour can be changed while they run, and a DNS resolver that can fail."""

import socket
import socketserver
import struct
import threading
import time

from cluster import HOST, free_port


class Site(socketserver.ThreadingTCPServer):
    """A receiver: replies with `refusal` to RCPT, or with `busy` instead of the greeting, and waits `delay` before a reply."""

    daemon_threads, request_queue_size, allow_reuse_address = True, 100, True

    def __init__(self, domain):
        self.domain, self.port = domain, free_port()
        self.refusal = self.busy = None
        self.delay = 0
        super().__init__((HOST, self.port), Session)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that leaves is no error."""

    def close(self):
        self.shutdown()
        self.server_close()


class Session(socketserver.StreamRequestHandler):
    def say(self, line):
        if self.server.delay:
            time.sleep(self.server.delay)
        self.wfile.write(line.encode() + b"\r\n")

    def handle(self):
        if self.server.busy:
            return self.say(self.server.busy)
        self.say(f"220 {self.server.domain} ESMTP")
        while line := self.rfile.readline():
            verb = line[:4].upper()
            if verb == b"EHLO":
                self.wfile.write(b"250-receiver\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
            elif verb == b"RCPT":
                self.say(self.server.refusal or "250 2.1.5 ok")
            elif verb == b"DATA":
                self.receive()
            elif verb == b"QUIT":
                return self.say("221 2.0.0 bye")
            elif self.server.busy and verb == b"MAIL":
                return self.say(self.server.busy)
            else:
                self.say("250 2.0.0 ok")

    def receive(self):
        if self.server.refusal:
            return self.say("554 5.5.1 no valid recipients")
        self.say("354 go on")
        while self.rfile.readline() not in (b".\r\n", b""):
            pass
        self.say("250 2.0.0 taken")


class Resolver:
    """Answers every question with NXDOMAIN, or with SERVFAIL after a moment while it fails."""

    NXDOMAIN, SERVFAIL = 3, 2

    def __init__(self):
        self.port, self.fails = free_port(), False
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((HOST, self.port))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            query, client = self.socket.recvfrom(4096)
            if self.fails:
                time.sleep(0.1)
            code = self.SERVFAIL if self.fails else self.NXDOMAIN
            head = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, 0, 0, 0)
            end = query.index(0, 12) + 5
            self.socket.sendto(head + query[12:end], client)
