"""What a new operator does on the first day, by the commands of helm/postroad/README.md, with the time that each step takes.

Started by tests/helm/run as the first process of its own namespaces. STEPS names a file with the steps that were done before:
a name, a tab and seconds in each line.
"""

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import kubernetes_validate

from chart import merged, named
from cluster import NAME, NAMESPACE, PAGE, VALUES, Load, Scenario, figures
from kubelet import wait_for
from network import GATEWAY, Network, Receiver
from test_chart import FOREIGN, VERSIONS

# The values of the page with its monitoring; scraped more often, so that a panel has data after seconds.
MONITORED = merged(merged(VALUES, PAGE.monitoring_values()), {"monitoring": {"podMonitor": {"interval": "2s"}}})
PROMETHEUS_PORT = 9091
# What Grafana would put in place of a dashboard's variables.
VARIABLES = {"$__rate_interval": "10s", '"$cluster"': f'"{NAME}"', '"$namespace"': f'"{NAMESPACE}"'}
MESSAGE_ID = r"\b[0-9A-HJKMNP-TV-Z]{26}\b"


class Prometheus:
    """A real one, which scrapes what the PodMonitor of the chart selects and has the rules of its PrometheusRule."""

    def __init__(self, work, cluster, objects):
        self.work, self.cluster = work, cluster
        self.monitor = named(objects, "PodMonitor", NAME)["spec"]
        rules = [item["spec"] for item in objects if item["kind"] == "PrometheusRule"]
        # JSON is YAML.
        for number, spec in enumerate(rules):
            (work / f"rules-{number}.yaml").write_text(json.dumps(spec))
        (work / "prometheus.yaml").write_text(json.dumps({
            "global": {"evaluation_interval": "5s"},
            "rule_files": ["rules-*.yaml"],
            "scrape_configs": [self._job(endpoint) for endpoint in self.monitor["podMetricsEndpoints"]],
        }))
        self.discover()
        with open(work / "prometheus.log", "wb") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={work}/prometheus.yaml", f"--storage.tsdb.path={work}/tsdb",
                 f"--web.listen-address={GATEWAY}:{PROMETHEUS_PORT}"], stdout=log, stderr=log)
        wait_for("Prometheus is ready", self._ready)

    def _job(self, endpoint):
        """What the Prometheus operator makes of an endpoint of a PodMonitor."""
        label = "__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", self.monitor["jobLabel"])
        names = {"sourceLabels": "source_labels", "targetLabel": "target_label", "replacement": "replacement"}
        relabelings = [{names[key]: value for key, value in rule.items()} for rule in endpoint["relabelings"]]
        return {
            "job_name": "podMonitor", "scrape_interval": endpoint["interval"], "scrape_timeout": endpoint["interval"],
            "file_sd_configs": [{"files": [str(self.work / "targets.json")], "refresh_interval": "1s"}],
            "relabel_configs": [{"source_labels": [label], "target_label": "job"}, *relabelings],
        }

    def discover(self):
        """Writes down the pods that the PodMonitor selects, as Prometheus sees them in Kubernetes."""
        [port] = [endpoint["port"] for endpoint in self.monitor["podMetricsEndpoints"]]
        targets = []
        for pod in self.cluster.selected(self.monitor["selector"]["matchLabels"]):
            labels = {"__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", key): value for key, value in pod.labels.items()}
            labels |= {"__meta_kubernetes_namespace": NAMESPACE, "__meta_kubernetes_pod_name": pod.name}
            targets += [{"targets": [f"{pod.address}:{found['containerPort']}"], "labels": labels}
                        for container in pod.spec["containers"] for found in container.get("ports", []) if found["name"] == port]
        new = self.work / "targets.new"
        new.write_text(json.dumps(targets))
        new.rename(self.work / "targets.json")
        return len(targets)

    def _ready(self):
        try:
            return self._get("/-/ready")
        except OSError:
            return None

    def _get(self, path):
        with urllib.request.urlopen(f"http://{GATEWAY}:{PROMETHEUS_PORT}{path}", timeout=30) as response:
            return response.read()

    def ask(self, query):
        """The values of a query, now."""
        for variable, value in VARIABLES.items():
            query = query.replace(variable, value)
        answer = json.loads(self._get(f"/api/v1/query?{urllib.parse.urlencode({'query': query})}"))
        return [float(series["value"][1]) for series in answer["data"]["result"]]

    def unhealthy_rules(self):
        groups = json.loads(self._get("/api/v1/rules"))["data"]["groups"]
        assert groups, "Prometheus has no rules"
        return [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"]


class OperatorPath(Scenario):
    def __init__(self, work, network, receiver):
        super().__init__(work, network, receiver, MONITORED)
        self.prometheus, self.message = None, None

    def panel(self, dashboard, title):
        """The queries of a panel, from the ConfigMap that Grafana's sidecar would find."""
        data = named(self.objects, "ConfigMap", f"{NAME}-dashboard-{dashboard}")["data"]
        [panel] = [panel for panel in json.loads(data[f"{dashboard}.json"])["panels"] if panel["title"] == title]
        return [target["expr"] for target in panel["targets"]]

    def every_rendered_object_is_valid(self):
        for item in self.objects:
            if not item["apiVersion"].startswith(FOREIGN):
                for version in VERSIONS:
                    kubernetes_validate.validate(item, version, strict=True)

    def an_operator_applies_a_policy(self):
        [pod] = self.cluster.role("operator")
        wait_for("the operator pod runs", lambda: pod.running == "operator")
        code, output = self.kubectl(PAGE.command("postroad apply -f -"))
        assert code == 0 and "created: tenant shop" in output, output
        code, output = self.kubectl(PAGE.command("-- postroad get"))
        assert code == 0 and re.search(r"(?m)^shop +default", output), output

    def helm_test_sends_a_message(self):
        self.helm_test_sends_a_message_and_waits_for_its_end()
        [self.message] = set(re.findall(MESSAGE_ID, self.cluster.pods[f"{NAME}-test"].log("send")))

    def the_console_shows_the_message(self):
        [_, forward, service, port] = [word for word in PAGE.command("port-forward") if word not in ("-n", NAMESPACE)]
        assert forward == "port-forward", forward
        address = self.cluster.services[service.removeprefix("svc/")]

        def shown(path):
            connection = http.client.HTTPConnection(address, int(port), timeout=30)
            # The name that a browser uses with `kubectl port-forward`.
            connection.request("GET", path, headers={"Host": f"localhost:{port}"})
            answer = connection.getresponse()
            return answer.status == 200 and answer.read().decode()

        wait_for("the list has it", lambda: self.message in (shown("/messages") or ""))
        page = shown(f"/messages/{self.message}")
        assert VALUES["test"]["to"] in page and "delivered" in page, page

    def a_dashboard_shows_the_mail(self):
        """Under load, as its panels show rates."""
        self.load = Load(self)
        directory = self.work / "prometheus"
        directory.mkdir()
        self.prometheus = Prometheus(directory, self.cluster, self.objects)
        pods = self.prometheus.discover()
        job = named(self.objects, "PodMonitor", NAME)["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]
        wait_for("every pod is scraped", lambda: self.prometheus.ask(f'sum(up{{job="{job}", cluster="{NAME}"}})') == [pods])
        for query in self.panel("postroad-overview", "Accepted and ended"):
            wait_for(f"{query} shows mail", lambda query=query: any(value > 0 for value in self.prometheus.ask(query)))
        assert self.prometheus.unhealthy_rules() == []

    def a_queue_node_whose_disk_is_lost_comes_back_by_the_page(self):
        """Under the load of the step before."""
        lost = time.monotonic()
        [nodes_down] = self.panel("postroad-overview", "Nodes down")

        def waits(pod):
            self.prometheus.discover()
            wait_for("the dashboard shows a node that is down", lambda: self.prometheus.ask(nodes_down) == [1])
            print(f"   it waits, and the dashboard shows it, {time.monotonic() - lost:.1f} s after its disk was lost")

        began = self.a_queue_pod_whose_volume_is_lost_waits_and_rejoins_by_one_command(meanwhile=waits)
        print(f"   every group has it as a voter {time.monotonic() - began:.1f} s after the command")
        wait_for("the dashboard shows that no node is down", lambda: self.prometheus.ask(nodes_down) == [0])
        acknowledged, refused = self.load.stop()
        assert acknowledged, refused
        wait_for("every acknowledged message arrives", lambda: all(self.copies(subject) for subject in acknowledged))
        print(f"   {len(acknowledged)} messages acknowledged meanwhile, all delivered; {len(refused)} not accepted: {sorted(set(refused))}")


def main():
    steps = [line.split("\t") for line in Path(os.environ["STEPS"]).read_text().splitlines()]
    steps = [(name, float(seconds)) for name, seconds in steps]
    network = Network()
    receiver = Receiver()
    with tempfile.TemporaryDirectory(dir=os.environ["WORK"]) as work:
        began = time.monotonic()
        path = OperatorPath(Path(work), network, receiver)
        steps.append(("the chart is rendered", time.monotonic() - began))
        for step in (
            path.every_rendered_object_is_valid,
            path.the_cluster_starts_from_what_the_chart_renders,
            path.an_operator_applies_a_policy,
            path.helm_test_sends_a_message,
            path.the_console_shows_the_message,
            path.a_dashboard_shows_the_mail,
            path.a_queue_node_whose_disk_is_lost_comes_back_by_the_page,
        ):
            name, began = step.__name__.replace("_", " "), time.monotonic()
            print(f"-- {name}", flush=True)
            try:
                step()
            except BaseException:
                path.cluster.dump()
                raise
            steps.append((name, time.monotonic() - began))
            print(f"   {steps[-1][1]:.1f} s", flush=True)
        figures(path.cluster)
        path.stop()
        path.prometheus.process.terminate()
        path.prometheus.process.wait()
    print("| step | seconds |\n|---|---|")
    for name, seconds in (*steps, ("all", sum(seconds for _, seconds in steps))):
        print(f"| {name} | {seconds:.1f} |")
    # Whatever still runs ends with this process, the first of its namespace.
    sys.stdout.flush()
    os._exit(0)


main()
