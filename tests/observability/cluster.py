"""A cluster of real processes on loopback whose nodes can be killed, stopped and given bad disks."""

import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

BINARY = os.environ["BINARY"]
#: An address of loopback that no other run uses: a node finds its ports free when it starts again.
HOST = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.1"
#: Role, first id, number of nodes.
ROLES = [("queue", 0, 3), ("outbound", 20, 2), ("control", 30, 1), ("ingress", 10, 2)]
#: Settings of each role, besides ports; small bounds, so that they are reached soon, and elections for a slow machine.
SETTINGS = {
    "queue": {
        "QUEUE__SEGMENT_BYTES": "4MiB",
        "QUEUE__TAIL_BYTES_MAX": "4MiB",
        "QUEUE__EVENT_BYTES_MAX": "2MiB",
        "QUEUE__LEASE__LEASE_DURATION": "15s",
        "QUEUE__ELECTION__HEARTBEAT_INTERVAL": "300ms",
        "QUEUE__ELECTION__TIMEOUT_MIN": "2s",
        "QUEUE__ELECTION__TIMEOUT_MAX": "4s",
    },
    "outbound": {"GUARD__ALLOW": '["127.0.0.0/8"]'},
    "control": {},
    "ingress": {
        "INGRESS__GRPC_PLAINTEXT": "true",
        "INGRESS__CONNECTIONS_PER_NETWORK_MAX": "100",
        "INGRESS__COMMAND_TIMEOUT": "5s",
        "INGRESS__DRAIN_TIMEOUT": "1s",
    },
}
LOGIN, PASSWORD, API_KEY = "shop", "observed-on-loopback", "observed-on-loopback"

_reserved = set()


def free_port():
    """Returns a port below the range that the system uses for outgoing connections."""
    while True:
        port = random.randrange(20001, 32000)
        try:
            socket.create_server((HOST, port)).close()
        except OSError:
            continue
        if port not in _reserved:
            _reserved.add(port)
            return port


def wait_for(what, condition, limit=300):
    """Waits until the condition returns something, and returns that."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {limit} s: {what}")


def postroad(*arguments, text=None):
    ended = subprocess.run([BINARY, *map(str, arguments)], input=text, capture_output=True, text=True)
    assert ended.returncode == 0, f"postroad {arguments}: {ended.stderr}"
    return ended.stdout


def get(port, path):
    with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=5) as response:
        return response.read().decode()


class Node:
    """One process; its directory holds its configuration, its log and its data."""

    def __init__(self, cluster, role, number):
        self.name, self.role, self.id = f"{role}-{number}", role, cluster.first_ids[role] + number
        self.directory = cluster.work / self.name
        self.metrics = free_port()
        self.process = None
        own = ["--hostname", "localhost"] if role == "ingress" else ["--data", "data"]
        postroad("cluster", "join", "--dir", cluster.files, role, "--node", self.id, "--out", self.directory, *own)
        self.config = self.directory / f"{role}.toml"
        self.data = self.directory / "data"
        self.settings = {
            **SETTINGS[role],
            "METRICS__LISTEN": f"{HOST}:{self.metrics}",
            "DNS__RESOLVER": f"{HOST}:{cluster.resolver_port}",
            "TELEMETRY__MAIL_LOG": str(self.directory / "mail.log"),
            "TELEMETRY__LOG_FILTER": "info,openraft=warn,mail=off",
        }
        if role == "queue":
            self.port = cluster.queue_ports[number - 1]
            self.settings["QUEUE__LISTEN"] = f"{HOST}:{self.port}"
        if role == "ingress":
            self.smtp, self.grpc = free_port(), free_port()
            self.settings["INGRESS__LISTENERS"] = f'[{{ listen = "{HOST}:{self.smtp}" }}]'
            self.settings["INGRESS__GRPC_LISTEN"] = f"{HOST}:{self.grpc}"
        if role == "control":
            self.settings["HTTP__LISTEN"] = f"{HOST}:{free_port()}"

    def environment(self):
        slow = {"LD_PRELOAD": os.environ["SLOW_SYNC"], "SLOW_SYNC_FILE": str(self.directory / "slow")}
        settings = {f"POSTROAD__{key}": value for key, value in self.settings.items()}
        return {**os.environ, **settings, **(slow if self.role == "queue" else {})}

    def start(self):
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [BINARY, self.role, "--config", self.config], env=self.environment(), stdout=log, stderr=log
            )

    def is_ready(self):
        assert self.process.poll() is None, f"{self.name} has ended:\n{self.log_tail()}"
        try:
            return get(self.metrics, "/readyz") == "ready\n"
        except OSError:
            return False

    def wait_ready(self):
        try:
            wait_for(f"{self.name} is ready", self.is_ready)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_tail()}") from None

    def signal(self, which):
        self.process.send_signal(which)

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def restart(self):
        self.kill()
        self.start()

    def log_tail(self):
        return "".join((self.directory / "log").read_text(errors="replace").splitlines(True)[-15:])

    def gauge(self, series):
        """Returns the value of one series; `None` where the node does not show it."""
        for line in get(self.metrics, "/metrics").splitlines():
            if line.startswith(series + " "):
                return float(line.rsplit(" ", 1)[1])
        return None

    def shown(self, series):
        """As `gauge`; `None` also while the node does not answer."""
        try:
            return self.gauge(series)
        except OSError:
            return None


class Cluster:
    """Three queue, two outbound, two ingress nodes and one control node."""

    def __init__(self, work, resolver_port):
        self.work, self.files, self.resolver_port = Path(work), Path(work) / "cluster", resolver_port
        self.first_ids = {role: first for role, first, _ in ROLES}
        self.queue_ports = [free_port() for _ in range(3)]
        queues = [f"{index + 1}={HOST}:{port}" for index, port in enumerate(self.queue_ports)]
        arguments = [argument for queue in queues for argument in ("--queue", queue)]
        postroad("cluster", "init", "--dir", self.files, *arguments)
        self.nodes = [Node(self, role, number + 1) for role, _, count in ROLES for number in range(count)]

    def of(self, role):
        return [node for node in self.nodes if node.role == role]

    def start(self, policy):
        for node in self.of("queue"):
            postroad("cluster", "form", "--config", node.config)
            node.start()
        for node in self.of("queue"):
            node.wait_ready()
        self.apply(policy)
        for node in self.nodes:
            if node.role != "queue":
                node.start()
        self.wait_ready()

    def wait_ready(self):
        for node in self.nodes:
            node.wait_ready()

    def apply(self, policy):
        postroad("apply", "--config", self.files / "operator.toml", "-f", "-", text=policy)

    def leader(self, group):
        """Returns the queue node that leads a group; `None` while none does."""
        for node in self.of("queue"):
            if node.shown(f'postroad_queue_leading{{group="{group}"}}') == 1:
                return node
        return None

    def leader_and_followers(self, group=1):
        leader = wait_for(f"a leader of group {group}", lambda: self.leader(group))
        return leader, [node for node in self.of("queue") if node is not leader]

    def stop(self):
        for node in reversed(self.nodes):
            if node.process and node.process.poll() is None:
                node.signal(signal.SIGCONT)
                node.signal(signal.SIGTERM)
        for node in reversed(self.nodes):
            if node.process:
                try:
                    node.process.wait(30)
                except subprocess.TimeoutExpired:
                    node.kill()
