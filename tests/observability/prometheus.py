"""A real Prometheus that scrapes the cluster, and a real Alertmanager that sends to a webhook of ours."""

import http.server
import json
import math
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

from cluster import HOST, free_port, get, wait_for

#: What Grafana would put in place of its variables.
INTERVAL = "10s"
#: How far back the values before a fault are looked for, and the step of a query.
BEFORE, STEP = 15, 1


class Webhook:
    """Keeps when each alert began to fire and when it ended, as Alertmanager reports it."""

    def __init__(self):
        self.port, self.fired, self.ended = free_port(), {}, {}
        webhook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                webhook.note(message["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer((HOST, self.port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def note(self, alerts):
        for alert in alerts:
            to = self.fired if alert["status"] == "firing" else self.ended
            to[alert["labels"]["alertname"]] = time.time()


class Prometheus:
    def __init__(self, work, nodes, rules):
        self.work, self.port, self.alerts_port = Path(work), free_port(), free_port()
        self.webhook = Webhook()
        targets = [
            {
                "targets": [f"{HOST}:{node.metrics}"],
                "labels": {"cluster": "example", "namespace": "test", "node": node.name},
            }
            for node in nodes
        ]
        # JSON is YAML.
        (self.work / "rules.yaml").write_text(rules)
        self.write("prometheus.yaml", {
            "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "postroad", "static_configs": targets}],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"{HOST}:{self.alerts_port}"]}]}]},
        })
        self.write("alertmanager.yaml", {
            "route": {
                "receiver": "test", "group_by": ["alertname"], "group_wait": "0s", "group_interval": "1s",
                "repeat_interval": "1h",
            },
            "receivers": [{
                "name": "test",
                "webhook_configs": [{"url": f"http://{HOST}:{self.webhook.port}/", "send_resolved": True}],
            }],
        })
        self.processes = [
            self.start("prometheus", f"--config.file={self.work}/prometheus.yaml",
                       f"--storage.tsdb.path={self.work}/tsdb", f"--web.listen-address={HOST}:{self.port}",
                       "--rules.alert.resend-delay=2s"),
            self.start("prometheus-alertmanager", f"--config.file={self.work}/alertmanager.yaml",
                       f"--storage.path={self.work}/alertmanager", "--cluster.listen-address=",
                       f"--web.listen-address={HOST}:{self.alerts_port}"),
        ]
        wait_for("Prometheus is ready", lambda: self.is_up(self.port, "/-/ready"))
        wait_for("Alertmanager is ready", lambda: self.is_up(self.alerts_port, "/-/ready"))

    def write(self, name, content):
        (self.work / name).write_text(json.dumps(content, indent=1))

    def start(self, program, *arguments):
        with open(self.work / f"{program}.log", "wb") as log:
            return subprocess.Popen([program, *arguments], stdout=log, stderr=log, cwd=self.work)

    def is_up(self, port, path):
        try:
            return get(port, path)
        except OSError:
            return None

    def ask(self, path, **parameters):
        query = urllib.parse.urlencode(parameters, doseq=True)
        with urllib.request.urlopen(f"http://{HOST}:{self.port}/api/v1/{path}?{query}", timeout=30) as response:
            return json.load(response)["data"]

    def series(self, query, start, end):
        """Returns the values of each series of a panel's query, by time, keyed by their labels."""
        answer = self.ask("query_range", query=as_grafana_asks(query), start=start, end=end, step=STEP)["result"]
        return {
            json.dumps(series["metric"], sort_keys=True): [
                (at, float(value)) for at, value in series["values"] if not math.isnan(float(value))
            ]
            for series in answer
        }

    def values_of(self, label, metric):
        return self.ask(f"label/{label}/values", **{"match[]": metric})

    def has_scraped(self, node):
        """Whether it has seen the process that a node is now."""
        started = node.shown("process_start_time_seconds")
        query = f'process_start_time_seconds{{node="{node.name}"}}'
        seen = self.ask("query", query=query)["result"]
        return started is not None and [float(series["value"][1]) for series in seen] == [started]

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()


def as_grafana_asks(query):
    """Puts values in place of Grafana's variables: all of them, as `All` does."""
    query = query.replace("$__rate_interval", INTERVAL)
    for variable in ("cluster", "namespace", "node", "site", "tenant"):
        query = query.replace(f'"${variable}"', '".*"')
    assert "$" not in query, query
    return query


def movement(series, began, moves):
    """Returns the series that moved most in a direction since a time, with its values before and during; or `None`."""
    best = None
    now = max((at for values in series.values() for at, _ in values), default=began)
    for labels, values in series.items():
        before = [value for at, value in values if at < began]
        during = [value for at, value in values if at >= began]
        base = sum(before) / len(before) if before else 0.0
        if moves == "up":
            extreme = max(during, default=0.0)
            moved = extreme > base * 1.2 and extreme - base > 1e-9
        else:
            # A series that has vanished counts as zero.
            vanished = not values or values[-1][0] < now - 5 * STEP
            extreme = 0.0 if vanished or not during else min(during)
            moved = bool(before) and extreme < base * 0.8
        size = abs(extreme - base) / max(abs(base), abs(extreme), 1e-12)
        if moved and (best is None or size > best[0]):
            best = (size, labels, base, extreme)
    return best and best[1:]
