"""smtplib, Python's SMTP client."""

import smtplib
import ssl
from email.message import EmailMessage

from common import LOGIN, SECRET, SMTP, SMTPS, arrived, raw, run

CONTEXT = ssl.create_default_context()
CONTEXT.check_hostname = False
CONTEXT.verify_mode = ssl.CERT_NONE


def message(recipient, body="hello\n"):
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "me@example.org", recipient, "smtplib"
    made.set_content(body)
    return made


def starttls():
    """STARTTLS and a login"""
    with smtplib.SMTP(*SMTP, timeout=30) as client:
        client.starttls(context=CONTEXT)
        client.login(LOGIN, SECRET)
        client.send_message(message("python-starttls@example.net"))
    arrived("python-starttls@example.net")


def implicit_tls():
    """TLS from the start and a login"""
    with smtplib.SMTP_SSL(*SMTPS, context=CONTEXT, timeout=30) as client:
        client.login(LOGIN, SECRET)
        client.send_message(message("python-smtps@example.net"))
    arrived("python-smtps@example.net")


def many_on_one_connection():
    """twenty messages on one connection"""
    with smtplib.SMTP(*SMTP, timeout=30) as client:
        for _ in range(20):
            client.send_message(message("python-many@example.net"))
    arrived("python-many@example.net", 20)


def content_is_kept():
    """dots, long lines and 8-bit text arrive as they were sent"""
    body = b".\r\n..\r\n.dot\r\n" + b"x" * 990 + b"\r\n" + "gr\u00fc\u00dfe\r\n".encode() + b"\r\n.\r\n"
    header = b"From: <me@example.org>\r\nSubject: kept\r\nMIME-Version: 1.0\r\n"
    header += b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    with smtplib.SMTP(*SMTP, timeout=30) as client:
        client.sendmail("me@example.org", "python-kept@example.net", header + body, ["BODY=8BITMIME"])
    got = raw(arrived("python-kept@example.net")[0])
    assert got.split(b"\r\n\r\n", 1)[1] == body, "the body has changed"
    assert got.count(b"\r\nDate: ") == 1 and got.lower().count(b"\r\nmessage-id: ") == 1, "Date or Message-ID"


def smtputf8():
    """an address that is not ASCII"""
    with smtplib.SMTP(*SMTP, timeout=30) as client:
        client.ehlo()
        made = message("gr\u00fc\u00dfe@example.net")
        client.send_message(made)
    arrived("gr\u00fc\u00dfe@example.net")


def wrong_password():
    """a wrong password is refused with 535"""
    with smtplib.SMTP(*SMTP, timeout=30) as client:
        client.starttls(context=CONTEXT)
        try:
            client.login(LOGIN, "wrong")
        except smtplib.SMTPAuthenticationError as error:
            assert error.smtp_code == 535, error
            return
    raise AssertionError("the login was accepted")


def login_without_tls():
    """AUTH is not offered in the clear"""
    with smtplib.SMTP(*SMTP, timeout=30) as client:
        client.ehlo()
        assert not client.has_extn("auth")
        assert client.docmd("AUTH", "PLAIN AGRlbW8AZGVtbw==")[0] == 538


def sized(bytes):
    header = b"From: <me@example.org>\r\nDate: Tue, 24 Nov 2026 00:00:00 +0000\r\n"
    header += b"Message-ID: <sized@example.org>\r\nSubject: sized\r\n\r\n"
    line = b"x" * 76 + b"\r\n"
    rest = bytes - len(header)
    body = line * (rest // len(line) - 1)
    return header + body + b"x" * (rest - len(body) - 2) + b"\r\n"


def limit(client):
    client.ehlo()
    return int(client.esmtp_features["size"])


def transaction(client, recipient, content, size=None):
    """Sends the commands one by one; returns the code of the refused one, or of the message."""
    option = f" SIZE={size}" if size is not None else ""
    code, _ = client.docmd(f"MAIL FROM:<me@example.org>{option}")
    if code != 250:
        return code
    assert client.docmd(f"RCPT TO:<{recipient}>")[0] == 250
    assert client.docmd("DATA")[0] == 354
    client.send(content + b".\r\n")
    return client.getreply()[0]


def exactly_the_limit():
    """a message of exactly the announced size arrives, with and without SIZE"""
    with smtplib.SMTP(*SMTP, timeout=120) as client:
        bytes = limit(client)
        content = sized(bytes)
        assert len(content) == bytes
        assert transaction(client, "python-limit@example.net", content, bytes) == 250
        assert transaction(client, "python-limit@example.net", content) == 250
    arrived("python-limit@example.net", 2, limit=120)


def over_the_limit_announced():
    """one byte more, announced with SIZE, is refused at MAIL"""
    with smtplib.SMTP(*SMTP, timeout=30) as client:
        bytes = limit(client) + 1
        code, text = client.docmd(f"MAIL FROM:<me@example.org> SIZE={bytes}")
        assert code == 552 and text.startswith(b"5.3.4"), (code, text)
        assert client.docmd("NOOP")[0] == 250


def over_the_limit_unannounced():
    """one byte more without SIZE is refused after its end, and the session goes on"""
    with smtplib.SMTP(*SMTP, timeout=120) as client:
        bytes = limit(client) + 1
        assert transaction(client, "python-over@example.net", sized(bytes)) == 552
        assert transaction(client, "python-after@example.net", sized(1000)) == 250
    arrived("python-after@example.net")
    arrived("python-over@example.net", 0, limit=0)


run(
    "smtplib",
    [
        starttls,
        implicit_tls,
        many_on_one_connection,
        content_is_kept,
        smtputf8,
        wrong_password,
        login_without_tls,
        exactly_the_limit,
        over_the_limit_announced,
        over_the_limit_unannounced,
    ],
)
