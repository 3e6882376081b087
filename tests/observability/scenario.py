"""Breaks a cluster in every way that a dashboard or an alert is there to show, and writes what they showed.

Every query and every variable of every dashboard must return data, every panel must move under its fault, and every alert
of a fault must reach Alertmanager and end. Rules run faster than in use, as docs/operating/monitoring.md describes.
"""

import contextlib
import json
import os
import resource
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from clients import Crowd, Load, misbehave, raw, send, send_body
from cluster import API_KEY, HOST, LOGIN, PASSWORD, Cluster, postroad, wait_for
from prometheus import BEFORE, Prometheus, movement
from receivers import Resolver, Site

#: How long a fault may take to move its panels and to fire its alerts, and an alert to end.
SHOWN_WITHIN, ENDED_WITHIN = 300, 300
#: Domains that the steady load is for; others have no route, so that DNS is asked.
DOMAINS = ["good.test", "busy.test", "defers.test", "refuses.test", "blocks.test", "slow.test", "down.test"]

POLICY = """
sources: [{{name: one, helo: one.test}}, {{name: two, helo: two.test}}]
pools: [{{name: default, sources: [{{source: one}}, {{source: two}}]}}]
tenants: [{{name: shop, pool: default, domains: [shop.test]}}]
credentials:
- {{name: here, tenant: shop, networks: [127.0.0.0/8]}}
- {{name: key, tenant: shop, api_key: {key}}}
- {{name: login, tenant: shop, login: {login}, password: {password}}}
limits: [{{name: default, connections_max: 5, window: 200}}]
routes: [{routes}]
"""


class Scene:
    """The cluster, its receivers, what watches it, and the faults."""

    def __init__(self, work):
        self.work = Path(work)
        self.resolver = Resolver()
        self.sites = {domain: Site(domain) for domain in DOMAINS}
        self.cluster = Cluster(work, self.resolver.port)
        self.small_disk = self.cluster.of("control")[0]
        for node in (self.small_disk, self.cluster.of("queue")[2]):
            node.data.mkdir()
            run("mount", "-t", "tmpfs", "-o", "size=160m", "postroad-observed", node.data)
        # Its crowd stays; clients of the other node time out soon.
        self.cluster.of("ingress")[1].settings["INGRESS__COMMAND_TIMEOUT"] = "5m"
        # A disk of its own for the mail log of one node, which fills up with that of control.
        self.cluster.of("ingress")[1].settings["TELEMETRY__MAIL_LOG"] = str(self.small_disk.data / "ingress.log")
        routes = ", ".join(
            f"{{domain: {domain}, host: {HOST}, port: {site.port}}}" for domain, site in self.sites.items()
        )
        self.policy = POLICY.format(key=API_KEY, login=LOGIN, password=PASSWORD, routes=routes)
        self.cluster.start(self.policy)
        self.ingress = self.cluster.of("ingress")
        self.ports = [node.smtp for node in self.ingress]
        rules = (self.work / "rules.in").read_text()
        self.prometheus = Prometheus(work, self.cluster.nodes, rules)
        self.load = None

    # Faults: each is a context; what it causes is ended behind `yield`. `again` is called while it lasts.

    @contextlib.contextmanager
    def fault_load(self):
        self.load = Load(self.ports, DOMAINS)
        yield

    @contextlib.contextmanager
    def fault_site_busy(self):
        site = self.sites["busy.test"]
        # Jobs wait in the lane when it pauses.
        site.delay = 1
        for number in range(30):
            send(self.ports[0], [f"b{number}@busy.test"])
        site.delay, site.busy = 0, "421 4.7.0 too many connections"
        yield
        site.busy = None

    @contextlib.contextmanager
    def fault_site_defers(self):
        # Against the rules, the codes of the two lines differ.
        self.sites["defers.test"].refusal = "450-4.3.0 please\r\n451 4.3.0 try again later"
        yield lambda: [send(self.ports[0], [f"d{n}@defers.test" for n in range(10)]) for _ in range(2)]
        self.sites["defers.test"].refusal = None

    @contextlib.contextmanager
    def fault_site_refuses(self):
        self.sites["refuses.test"].refusal = "550 5.1.1 no such user"
        self.sites["blocks.test"].refusal = "550 5.7.1 rejected: your address is on a blocklist"
        self.load.domains = ["refuses.test", "blocks.test", "good.test"]
        yield
        self.load.domains = DOMAINS
        self.sites["refuses.test"].refusal = self.sites["blocks.test"].refusal = None

    @contextlib.contextmanager
    def fault_site_slow(self):
        self.sites["slow.test"].delay = 3
        for burst in range(12):
            send(self.ports[0], [f"s{burst}-{n}@slow.test" for n in range(500)])
        yield
        self.sites["slow.test"].delay = 0

    @contextlib.contextmanager
    def fault_site_down(self):
        self.sites["down.test"].close()
        yield
        self.sites["down.test"] = None

    @contextlib.contextmanager
    def fault_dns_fails(self):
        self.resolver.fails = True
        yield lambda: send(self.ports[0], [f"x@unknown{time.monotonic_ns()}.test"])
        self.resolver.fails = False

    @contextlib.contextmanager
    def fault_bad_clients(self):
        node = self.ingress[1]
        crowds = [Crowd(node.smtp, 90)]

        def again():
            for port in self.ports:
                misbehave(port)
            crowds.append(Crowd(node.smtp, 60))
            if len(crowds) > 3:
                crowds.pop(1).leave()
            if "PostroadConnectionsNotAccepted" not in self.prometheus.webhook.fired:
                cannot_open(node)
            use_most_descriptors(node)

        limits = resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE)
        yield again
        resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, limits)
        for crowd in crowds:
            crowd.leave()

    @contextlib.contextmanager
    def fault_follower_killed(self):
        _, (follower, _) = self.cluster.leader_and_followers()
        follower.kill()
        yield
        follower.start()
        follower.wait_ready()

    @contextlib.contextmanager
    def fault_node_restarts(self):
        node, site = self.cluster.of("outbound")[0], self.sites["slow.test"]
        # Attempts are under way when it is killed: their sources are reclaimed.
        site.delay = 2

        def again():
            for number in range(10):
                send(self.ports[0], [f"u{number}@slow.test"])
            node.restart()
            wait_for("it is scraped", lambda: self.prometheus.has_scraped(node))

        yield again
        site.delay = 0
        node.wait_ready()

    @contextlib.contextmanager
    def fault_follower_hangs(self):
        _, (follower, _) = self.cluster.leader_and_followers()
        follower.signal(signal.SIGSTOP)
        yield lambda: send(self.ports[0], ["big@good.test"], 6 << 20)
        follower.signal(signal.SIGCONT)

    @contextlib.contextmanager
    def fault_leader_killed(self):
        leader, _ = self.cluster.leader_and_followers()
        leader.kill()
        wait_for("another leader", lambda: self.cluster.leader(1))
        leader.start()
        leader.wait_ready()

        def again():
            # Each pause is longer than followers wait.
            leader, _ = self.cluster.leader_and_followers()
            leader.signal(signal.SIGSTOP)
            try:
                wait_for("another leader", lambda: self.leader_besides(leader), 30)
            finally:
                leader.signal(signal.SIGCONT)

        yield again

    def leader_besides(self, stopped):
        for node in self.cluster.of("queue"):
            if node is not stopped and node.shown('postroad_queue_leading{group="1"}') == 1:
                return node
        return None

    @contextlib.contextmanager
    def fault_majority_killed(self):
        queues = self.cluster.of("queue")
        for node in queues[:2]:
            node.kill()
        yield
        queues[2].kill()
        self.wait_until_fired("PostroadQueueDown")
        for node in queues:
            node.start()
        self.cluster.wait_ready()

    @contextlib.contextmanager
    def fault_outbound_killed(self):
        for node in self.cluster.of("outbound"):
            node.kill()
        yield
        for node in self.cluster.of("outbound"):
            node.start()
        self.cluster.wait_ready()

    @contextlib.contextmanager
    def fault_address_missing(self):
        self.cluster.apply("sources: [{name: away, helo: away.test, address: 192.0.2.55}]")
        yield
        self.cluster.apply("remove: {sources: [away]}")

    @contextlib.contextmanager
    def fault_control_hangs(self):
        control = self.small_disk
        control.signal(signal.SIGSTOP)
        yield lambda: send(self.ports[0], [f"e{n}@good.test" for n in range(400)])
        # Until the oldest are dropped.
        wait_for("the room for events is full", self.events_are_full)
        control.signal(signal.SIGCONT)
        self.wait_until_fired("PostroadEventsLost")

    def events_are_full(self):
        send(self.ports[0], [f"e{n}@good.test" for n in range(400)])
        return bool(self.prometheus.ask("query", query="postroad_queue_event_fill_ratio > 0.98")["result"])

    @contextlib.contextmanager
    def fault_history_locked(self):
        """Somebody works on control's database with a tool that keeps it locked."""
        with contextlib.closing(sqlite3.connect(self.small_disk.data / "control.sqlite", isolation_level=None)) as tool:
            tool.execute("BEGIN IMMEDIATE")
            yield
            tool.execute("ROLLBACK")

    @contextlib.contextmanager
    def fault_content_damaged(self):
        """The disks change a byte of a body that waits, and that memory has no longer."""
        body = secrets.token_hex(32 << 10)
        postroad("site", "suspend", f"route:{HOST}:{self.sites['slow.test'].port}", "--reason", "test",
                 "--config", self.cluster.files / "operator.toml")
        assert send_body(self.ports[0], "w@slow.test", body)
        # More than the tail of the log that is kept in memory.
        for _ in range(4):
            send(self.ports[0], ["big@good.test"], 4 << 20)
        line = body[700:770].encode()
        places = [place for node in self.cluster.of("queue") for place in places_of(line, node.data)]
        assert len(places) >= 3, places
        for file, at in places:
            overwrite(file, at, b"-")
        postroad("site", "resume", f"route:{HOST}:{self.sites['slow.test'].port}",
                 "--config", self.cluster.files / "operator.toml")
        yield
        # A node that reads its log when it starts would stop at it.
        for file, at in places:
            overwrite(file, at, line[:1])

    @contextlib.contextmanager
    def fault_disk_slow(self):
        queues = self.cluster.of("queue")
        for node in queues:
            (node.directory / "slow").write_text("300")
        yield
        for node in queues:
            (node.directory / "slow").unlink()

    @contextlib.contextmanager
    def fault_disk_fills(self):
        filled = [self.cluster.of("queue")[2].data / "filler", self.small_disk.data / "filler"]

        def again():
            for file in filled:
                fill(file)
            # A queue node notices when it needs its next segment.
            send(self.ports[0], ["big@good.test"], 1 << 20)

        yield again
        for file in filled:
            file.unlink()

    @contextlib.contextmanager
    def fault_disk_lost(self):
        """A queue node whose disk is another one is refused, and rejoins by the command of the runbook."""
        node = self.cluster.of("queue")[1]
        node.kill()
        shutil.rmtree(node.data)
        postroad("cluster", "form", "--config", node.config)
        node.start()
        yield
        node.kill()
        shutil.rmtree(node.data)
        postroad("cluster", "rejoin", "--config", node.config)
        node.start()
        self.cluster.wait_ready()

    @contextlib.contextmanager
    def fault_certificate_ends(self):
        node = self.ingress[0]
        kept = {name: (node.directory / name).read_bytes() for name in ("ingress.pem", "ingress.key")}
        issue_for_a_day(self.cluster, node)

        def again():
            with contextlib.suppress(OSError):
                connection = raw_without_greeting(self.cluster.of("queue")[0].port)
                connection.close()

        yield again
        for name, content in kept.items():
            (node.directory / name).write_bytes(content)

    def wait_until_fired(self, alert):
        """Waits for an alert that comes while a fault ends; whether it came is checked at the end of all."""
        with contextlib.suppress(AssertionError):
            wait_for(f"{alert} fires", lambda: alert in self.prometheus.webhook.fired, SHOWN_WITHIN)

    def stop(self):
        if self.load:
            self.load.stop()
        self.prometheus.stop()
        self.cluster.stop()
        for node in (self.small_disk, self.cluster.of("queue")[2]):
            subprocess.run(["umount", "-l", node.data], check=False)


def run(*command):
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def fill(file):
    """Fills what is free of a small disk by a tenth, or up when little is free."""
    free = shutil.disk_usage(file.parent).free
    with contextlib.suppress(OSError), open(file, "ab") as filler:
        filler.write(b"x" * (free if free < 12 << 20 else max(free // 10, 1)))
        filler.flush()


def places_of(part, directory):
    """The files below the directory that have these bytes, and where."""
    places = []
    for file in directory.rglob("*"):
        at = file.read_bytes().find(part) if file.is_file() else -1
        if at >= 0:
            places.append((file, at))
    return places


def overwrite(file, at, byte):
    with open(file, "r+b") as opened:
        opened.seek(at)
        opened.write(byte)


def cannot_open(node):
    """Takes the descriptors of a process away for a moment: a new connection cannot be accepted."""
    pid = node.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, hard))
    with contextlib.suppress(OSError):
        raw(node.smtp).close()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def use_most_descriptors(node):
    """Leaves room for the scrape, with more than four fifths of the descriptors in use."""
    pid = node.process.pid
    used = len(os.listdir(f"/proc/{pid}/fd"))
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + used // 8 + 2, hard))


def raw_without_greeting(port):
    connection = socket.create_connection((HOST, port), timeout=5)
    connection.sendall(b"this is no handshake\r\n\r\n")
    return connection


def issue_for_a_day(cluster, node):
    """Issues a certificate that is valid for a day, with the cluster's own authority, and gives it to the node."""
    identity = f"postroad://cluster/{cluster_id(cluster)}/role/{node.role}/node/{node.id}"
    directory = node.directory
    extensions = directory / "extensions"
    extensions.write_text(
        f"subjectAltName=URI:{identity}\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    key, request, certificate = directory / "short.key", directory / "short.csr", directory / "short.pem"
    run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
    run("openssl", "req", "-new", "-key", key, "-subj", "/CN=short", "-out", request)
    run("openssl", "x509", "-req", "-in", request, "-CA", cluster.files / "authority.pem",
        "-CAkey", cluster.files / "authority.key", "-set_serial", "4711", "-days", "1", "-extfile", extensions,
        "-out", certificate)
    # The process may look between the two: a pair that does not match is not used.
    shutil.copyfile(key, directory / "ingress.key")
    shutil.copyfile(certificate, directory / "ingress.pem")


def cluster_id(cluster):
    return tomllib.loads((cluster.files / "cluster.toml").read_text())["id"]


#: The faults in their order, and the alerts that each must fire.
FAULTS = {
    "load": [],
    "site_busy": ["PostroadLanePaused"],
    "site_defers": ["PostroadDeferralRate", "PostroadSiteDefers"],
    "site_refuses": ["PostroadBounceRate", "PostroadSiteBounces", "PostroadBlocked"],
    "site_slow": ["PostroadQueueGrows", "PostroadQueueWaits"],
    "dns_fails": [],
    "bad_clients": ["PostroadConnectionsRefused", "PostroadConnectionsNotAccepted", "PostroadFileDescriptors"],
    "follower_killed": ["PostroadNodeDown", "PostroadQuorumAtRisk"],
    "node_restarts": ["PostroadNodeRestarts"],
    "follower_hangs": ["PostroadReplicationBehind"],
    "leader_killed": ["PostroadLeaderChanges"],
    "outbound_killed": ["PostroadNoOutbound", "PostroadSourcesUnowned"],
    "address_missing": ["PostroadSourceWithoutAddress"],
    "control_hangs": ["PostroadControlBehind", "PostroadEventsUnread"],
    "history_locked": ["PostroadHistoryNotWritten"],
    "disk_slow": ["PostroadSyncSlow"],
    "disk_lost": ["PostroadDiskRefused", "PostroadNodeUnready"],
    "certificate_ends": [
        "PostroadCertificateEndsSoon", "PostroadCertificateEnds", "PostroadNodeHandshakesFail",
    ],
    "content_damaged": ["PostroadContentUnreadable"],
    "disk_fills": [
        "PostroadDiskFillsUp", "PostroadDiskLow", "PostroadDiskFull", "PostroadMailLogLoses",
    ],
    "majority_killed": ["PostroadNoLeader", "PostroadMailRefused", "PostroadLeaseLost"],
    "site_down": [],
}
#: Alerts that a fault fires while it ends.
AT_THE_END = ["PostroadEventsLost", "PostroadQueueDown"]


class Report:
    def __init__(self):
        self.failed, self.rows = 0, []

    def check(self, what, good, why=""):
        print(f"{'ok' if good else 'FAILED'} {what}{'' if good else ': ' + why}", flush=True)
        self.failed += not good

    def write(self, path):
        lines = [
            "| dashboard | panel | fault | series | before | during |", "|---|---|---|---|---|---|", *self.rows,
        ]
        Path(path).write_text("\n".join(lines) + "\n")


def label_of(series):
    """The labels that tell a series from the others of its panel."""
    labels = {key: value for key, value in json.loads(series).items() if key not in ("cluster", "namespace", "job")}
    return ", ".join(f"{key}={value}" for key, value in labels.items() if key not in ("__name__", "instance")) or "–"


def watch(scene, report, name, dashboards):
    """Causes a fault until its alerts have fired and its panels have moved."""
    prometheus = scene.prometheus
    waiting = {
        (dashboard["dashboard"], panel["title"]): panel
        for dashboard in dashboards for panel in dashboard["panels"] if panel["fault"] == name
    }
    moved = {}
    began = time.time()
    fired = prometheus.webhook.fired
    alerts = set(FAULTS[name])

    def look(now):
        for place, panel in list(waiting.items()):
            found = [
                movement(prometheus.series(query, began - BEFORE, now), began, panel["moves"])
                for query in panel["queries"]
            ]
            found = [one for one in found if one]
            if found:
                moved[place] = found[0]
                del waiting[place]

    def late():
        return [alert for alert in alerts if fired.get(alert, 0) < began]

    with contextlib.ExitStack() as fault:
        again = fault.enter_context(getattr(scene, f"fault_{name}")())
        end = began + SHOWN_WITHIN
        while time.time() < end and (waiting or late()):
            if again:
                # A node may not answer in time on a busy machine.
                with contextlib.suppress(OSError, AssertionError):
                    again()
            time.sleep(1)
            look(time.time())
        try:
            fault.close()
        except (AssertionError, OSError) as error:
            report.check(f"{name} ends", False, str(error))
    look(time.time())
    for alert in sorted(alerts):
        report.check(f"{name}: {alert} reaches Alertmanager", alert not in late(), "it did not fire")
    for place, (series, before, during) in moved.items():
        report.rows.append(
            f"| {place[0].split(' / ')[1]} | {place[1]} | {name} | {label_of(series)} | {before:.4g} | {during:.4g} |"
        )
    for place in [*moved, *waiting]:
        report.check(f"{name}: {' / '.join(place)} moves", place in moved, "it did not")
    print(f"# {name} took {time.time() - began:.0f} s", flush=True)


def main():
    work, results = os.environ["WORK"], Path(os.environ["RESULTS"])
    dashboards = json.loads(Path("panels.json").read_text())
    report = Report()
    scene = Scene(work)
    began = time.time()
    chosen = sys.argv[1:] or list(FAULTS)
    try:
        wait_for("a first scrape", lambda: scene.prometheus.values_of("node", "postroad_build_info"))
        time.sleep(BEFORE)
        for name in FAULTS:
            # The load is there during every fault.
            if name in chosen or name == "load":
                watch(scene, report, name, dashboards)
        if chosen == list(FAULTS):
            everything(scene, report, dashboards, began)
        all_end(scene, report)
    except BaseException:
        for node in scene.cluster.nodes:
            print(f"== {node.name}\n{node.log_tail()}", file=sys.stderr)
        raise
    finally:
        scene.stop()
        report.write(results / "panels.md")
    print(f"{report.failed} failed", flush=True)
    sys.exit(report.failed > 0)


def everything(scene, report, dashboards, began):
    """Every query and variable returned data within the run, and every alert has a fault."""
    prometheus, now = scene.prometheus, time.time()
    for dashboard in dashboards:
        title = dashboard["dashboard"]
        for panel in dashboard["panels"]:
            empty = [query for query in panel["queries"] if not prometheus.series(query, began, now)]
            report.check(f"{title} / {panel['title']} has data", not empty, "; ".join(empty))
        for variable in dashboard["variables"]:
            values = prometheus.values_of(variable["label"], variable["metric"])
            report.check(f"{title} / variable {variable['label']} has values", bool(values))
    caused = {alert for alerts in FAULTS.values() for alert in alerts} | set(AT_THE_END)
    known = {
        rule["name"] for group in prometheus.ask("rules")["groups"] for rule in group["rules"]
        if rule["type"] == "alerting"
    }
    missing = known - caused
    report.check("every alert has a fault here", not missing, ", ".join(sorted(missing)))
    for alert in AT_THE_END:
        report.check(f"{alert} reaches Alertmanager", alert in prometheus.webhook.fired)


def all_end(scene, report):
    """Every alert that fired has ended."""
    scene.load.domains = ["good.test"]
    webhook, end = scene.prometheus.webhook, time.time() + ENDED_WITHIN

    def lasting():
        return [alert for alert in webhook.fired if webhook.ended.get(alert, 0) < webhook.fired[alert]]

    while time.time() < end and lasting():
        time.sleep(1)
    for alert in sorted(webhook.fired):
        report.check(f"{alert} ends", alert not in lasting(), "it still fires")


if __name__ == "__main__":
    main()
