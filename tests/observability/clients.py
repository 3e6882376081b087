"""Clients: a steady load, bursts, and clients that do everything wrong."""

import smtplib
import socket
import threading
import time

from cluster import HOST, LOGIN, PASSWORD

HEADER = "From: <me@shop.test>\r\nSubject: observed\r\n\r\n"


def send(port, recipients, bytes_of_body=1000):
    """Sends one message; returns false when it was not accepted."""
    return send_body(port, recipients, "x" * bytes_of_body)


def send_body(port, recipients, body):
    """As `send`, with this body in lines."""
    lines = [body[start : start + 70] for start in range(0, len(body), 70)]
    try:
        with smtplib.SMTP(HOST, port, timeout=20) as client:
            client.sendmail("me@shop.test", recipients, HEADER + "\r\n".join(lines) + "\r\n")
        return True
    except (OSError, smtplib.SMTPException):
        return False


class Load:
    """Sends to all domains in turn over kept connections, a few messages each second, until it is stopped."""

    EVERY = 0.1

    def __init__(self, ports, domains):
        self.domains, self.stopping, self.number = domains, threading.Event(), 0
        self.threads = [threading.Thread(target=self.run, args=(port,), daemon=True) for port in ports]
        for thread in self.threads:
            thread.start()

    def run(self, port):
        client = None
        while not self.stopping.wait(self.EVERY):
            self.number += 1
            domain = self.domains[self.number % len(self.domains)]
            try:
                client = client or smtplib.SMTP(HOST, port, timeout=20)
                client.sendmail("me@shop.test", [f"r{self.number}@{domain}"], HEADER + "hello\r\n")
            except smtplib.SMTPResponseException:
                continue
            except (OSError, smtplib.SMTPException):
                client = None

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()


def raw(port, *lines):
    """Sends lines as they are, each after the reply to the one before, and returns the open connection."""
    connection = socket.create_connection((HOST, port), timeout=20)
    connection.recv(4096)
    for line in lines:
        connection.sendall(line)
        connection.recv(4096)
    return connection


def misbehave(port):
    """A wrong password, a sender and a recipient that are refused, odd syntax, and a handshake that is none."""
    try:
        with smtplib.SMTP(HOST, port, timeout=20) as client:
            client.ehlo("client.test")
            client.docmd("MAIL", "FROM:<me@other.test>")
            client.rset()
            client.docmd("MAIL", "FROM: <me@shop.test>")
            client.docmd("RCPT", "TO:<a@[192.0.2.1]>")
            client.starttls()
            client.ehlo("client.test")
            for password in (PASSWORD, "wrong"):
                try:
                    client.login(LOGIN, password)
                except smtplib.SMTPException:
                    break
    except (OSError, smtplib.SMTPException):
        pass
    try:
        raw(port, b"EHLO client.test\r\n", b"STARTTLS\r\n", b"this is no handshake\r\n").close()
    except OSError:
        pass


class Crowd:
    """Opens connections and keeps them, until it leaves."""

    def __init__(self, port, number):
        self.connections = []
        for _ in range(number):
            try:
                self.connections.append(socket.create_connection((HOST, port), timeout=5))
            except OSError:
                time.sleep(0.01)

    def leave(self):
        for connection in self.connections:
            connection.close()
