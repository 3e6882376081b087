"""Shared by the Python checks."""

import json
import os
import time
import traceback
import urllib.parse
import urllib.request
import sys

SMTP = ("127.0.0.1", int(os.environ["SMTP_PORT"]))
SMTPS = ("127.0.0.1", int(os.environ["SMTPS_PORT"]))
GRPC = f"127.0.0.1:{os.environ['GRPC_PORT']}"
HTTP = f"http://127.0.0.1:{os.environ['HTTP_PORT']}"
LOGIN = os.environ["LOGIN"]
SECRET = os.environ["SECRET"]


def fetch(path):
    with urllib.request.urlopen(HTTP + path, timeout=10) as response:
        return response.read()


def arrived(recipient, number=1, limit=30):
    """Waits until the sandbox has exactly `number` messages to `recipient`, and returns them."""
    query = urllib.parse.urlencode({"to": recipient, "limit": 1000})
    end = time.monotonic() + limit
    while True:
        messages = json.loads(fetch(f"/sandbox/v1/messages?{query}"))["messages"]
        if len(messages) >= number or time.monotonic() > end:
            assert len(messages) == number, f"to {recipient}: expected {number}, found {len(messages)}"
            return messages
        time.sleep(0.1)


def raw(message):
    """Returns the raw bytes of a message in the sandbox."""
    return fetch(f"/sandbox/v1/messages/{message['id']}/raw")


def run(prefix, checks):
    """Runs each check; its name is the first line of its docstring."""
    failed = False
    for check in checks:
        name = f"{prefix}: {check.__doc__.strip().splitlines()[0].rstrip('.')}"
        try:
            check()
            print(f"ok {name}", flush=True)
        except Exception:
            traceback.print_exc()
            print(f"FAILED {name}", flush=True)
            failed = True
    sys.exit(failed)
