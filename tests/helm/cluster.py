"""The chart's own objects start a cluster: what it renders is run on the files of the image, as Kubernetes would.

Started by tests/helm/run as the first process of its own namespaces, with the files of the image in IMAGE_TREE. Prints a
line for every step, and the time to ready and the memory of each pod; with TRACE=1 every start of a container too.
"""

import base64
import contextlib
import json
import os
import random
import re
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from email.message import EmailMessage
from pathlib import Path

import yaml
from cryptography import x509

from chart import merged, named, render
from kubelet import Kubelet, Pod, wait_for
from kubernetes import Api, Authority
from network import Network, Proxy, Receiver
from page import Page
from test_deploy import KUBECTL

# As the page helm/postroad/README.md has them.
NAME, NAMESPACE = "postroad", "mail"
CERTIFICATE_MINUTES = 6
PAGE = Page()
VALUES = merged(PAGE.values(), {"ingress": {"preStopSeconds": 1}, "test": {"caSecret": "mail-ca"},
                               # Elections for a machine that is slow.
                               "queue": {"settings": {"queue": {
                                   "election": {"heartbeat_interval": "500ms", "timeout_min": "5s", "timeout_max": "10s"},
                                   "lease": {"lease_duration": "30s"}}}},
                               # Renewed after four minutes; nodes look at their files each minute.
                               "certificates": {"authority": {"lifetime": f"{CERTIFICATE_MINUTES}m"}}})
HOSTNAME = VALUES["ingress"]["hostname"]
# A queue pod has formed or joined every group when it has logged these.
LINES_UNTIL_FORMED = 12
[LOGIN] = yaml.safe_load(PAGE.file("logins.yaml"))["credentials"]


class Cluster:
    """The objects of the API, and the pods and Services that its controllers would make of them."""

    def __init__(self, work, network):
        # Made by deploy/image/tree; hard links to its files are made beside it.
        tree = Path(os.environ["IMAGE_TREE"])
        # What the pods' user reads is under directories that only root writes to.
        work.chmod(0o755)
        self.network = network
        self.api = Api(self.network.service_address(), work, NAMESPACE)
        self.kubelet = Kubelet(tree, work, network, self.api, work / "claims")
        self.pods, self.services = {}, {}

    def run(self, name, spec, labels, claims=()):
        pod = self.pods[name] = Pod(self.kubelet, name, spec, labels, claims)
        return pod

    def selected(self, selector):
        return [pod for pod in self.pods.values() if selector.items() <= pod.labels.items() and not pod.stopping]

    def install(self, objects):
        """What `helm install` does: hooks in the order of their weights, then the objects."""
        def weight(item):
            return int(item["metadata"].get("annotations", {}).get("helm.sh/hook-weight", 0))

        def hook(item):
            return item["metadata"].get("annotations", {}).get("helm.sh/hook", "")

        for item in sorted((o for o in objects if "pre-install" in hook(o)), key=weight):
            self.api.apply(item)
            if item["kind"] == "Job":
                self.job(item)
        for item in objects:
            if hook(item):
                continue
            self.api.apply(item)
        for item in objects:
            if not hook(item):
                self.control(item)

    def job(self, item):
        """Runs a Job to its end; returns its pod."""
        pod = self.start_job(item)
        return self.completed(pod)

    def start_job(self, item):
        template = item["spec"]["template"]
        return self.run(f"{item['metadata']['name']}-x1", template["spec"], template["metadata"]["labels"])

    def completed(self, pod):
        wait_for(f"{pod.name} ends", lambda: pod.ended or pod.failed)
        if pod.failed:
            raise pod.failed
        pod.stopping = True
        return pod

    def control(self, item):
        """What the controller of an object does."""
        kind, name = item["kind"], item["metadata"]["name"]
        if kind == "Service":
            self.serve(item)
        elif kind == "Job":
            self.start_job(item)
        elif kind == "Deployment":
            for number in range(item["spec"]["replicas"]):
                template = item["spec"]["template"]
                self.run(f"{name}-{number}", template["spec"], template["metadata"]["labels"])
        elif kind == "StatefulSet":
            assert item["spec"].get("podManagementPolicy") == "Parallel" or item["spec"]["replicas"] == 1
            for number in range(item["spec"]["replicas"]):
                self.member(item, number)

    def member(self, item, number):
        """The pod with this ordinal of a StatefulSet."""
        name, template = item["metadata"]["name"], item["spec"]["template"]
        labels = dict(template["metadata"]["labels"], **{"apps.kubernetes.io/pod-index": str(number)})
        claims = [claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])]
        pod = self.run(f"{name}-{number}", template["spec"], labels, claims)
        service = item["spec"]["serviceName"]
        host = f"{pod.name}.{service}.{NAMESPACE}.svc.cluster.local"
        self.network.names.addresses[host] = lambda: [self.pods[pod.name].address]
        return pod

    def serve(self, item):
        name, spec = item["metadata"]["name"], item["spec"]
        host = f"{name}.{NAMESPACE}.svc.cluster.local"
        every = spec.get("publishNotReadyAddresses", False)

        def ready():
            return [pod for pod in self.selected(spec["selector"]) if every or pod.ready]

        if spec.get("clusterIP") == "None":
            self.network.names.addresses[host] = lambda: [pod.address for pod in ready()]
            return
        address = self.network.service_address()
        self.network.names.addresses[host] = lambda: [address]
        self.services[name] = address
        for port in spec["ports"]:
            target = port["targetPort"]
            Proxy(address, port["port"], lambda target=target: [(pod.address, pod.port(target)) for pod in ready()])

    def role(self, role):
        return [pod for name, pod in sorted(self.pods.items())
                if pod.labels["app.kubernetes.io/component"] == role and not pod.stopping]

    def until_ready(self, pods):
        for pod in pods:
            wait_for(f"{pod.name} is ready", lambda: pod.ready or pod.failed)
            if pod.failed:
                raise pod.failed

    def dump(self):
        for name, pod in self.pods.items():
            for log in sorted(pod.directory.glob("*.log")):
                lines = log.read_text(errors="replace").splitlines()[-8:]
                print(f"== {name} {log.stem} (ready {pod.ready}, failed {pod.failed})", *lines, sep="\n   ")


def secret(name, **data):
    encoded = {key.replace("_", "."): base64.b64encode(text.encode()).decode() for key, text in data.items()}
    return {"kind": "Secret", "metadata": {"name": name}, "data": encoded}


class Scenario:
    """A cluster of these values, step by step."""

    def __init__(self, work, network, receiver, values):
        self.cluster, self.receiver = Cluster(work, network), receiver
        self.work, self.values = work, values
        self.objects, self.notes = render(values, name=NAME, namespace=NAMESPACE)
        self.ca = Authority("our CA")
        api = self.cluster.api
        api.apply({"kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": api.authority.certificate}})
        api.apply(secret("mail-ca", ca_crt=self.ca.certificate))
        for command in PAGE.install():
            self.kubectl(command, install=False)

    def kubectl(self, command, install=True):
        """Does what a command of the page does; those of `helm install` are done by the steps."""
        words = [word for word in command if word not in ("-n", NAMESPACE, "-i")]
        stdin = None
        if "<" in words:
            [words, file] = [words[: words.index("<")], words[words.index("<") + 1]]
            stdin = PAGE.file(file)
        if words[:4] == ["kubectl", "create", "secret", "tls"]:
            certificate, key = self.ca.issue(HOSTNAME)
            self.cluster.api.apply(secret(words[4], tls_crt=certificate, tls_key=key))
        elif words[:4] == ["kubectl", "create", "secret", "generic"]:
            data = {}
            for flag in words[5:]:
                kind, key, value = flag.split("=", 2)
                data[key.replace(".", "_")] = {"--from-literal": lambda v: v, "--from-file": PAGE.file}[kind](value)
            self.cluster.api.apply(secret(words[4], **data))
        elif words[:2] == ["kubectl", "exec"]:
            target, rest = words[2], words[3:]
            inner = rest[rest.index("--") + 1 :]
            assert inner[0] == "postroad", inner
            pod = self.cluster.role(target.removeprefix(f"deploy/{NAME}-"))[0] if target.startswith("deploy/") else self.cluster.pods[target]
            container = rest[rest.index("-c") + 1] if "-c" in rest else pod.spec["containers"][0]["name"]
            return pod.execute(container, *inner[1:], stdin=stdin)
        else:
            assert words == ["kubectl", "create", "namespace"] or words[:2] == ["helm", "install"] and not install, words

    def stop(self):
        for pod in self.cluster.pods.values():
            if not pod.stopping:
                pod.stop()

    def the_cluster_starts_from_what_the_chart_renders(self):
        self.cluster.install(self.objects)
        cluster = self.cluster
        cluster.until_ready(cluster.role("queue"))
        [setup] = cluster.role("setup")
        cluster.completed(setup)
        assert "every group has a leader: recorded" in setup.log("formed"), setup.log("formed")
        assert "acme    default" in setup.log("get"), setup.log("get")
        # The log of each policy says what it changed, unless the answer came too late and it was applied again.
        log = setup.log("policy")
        assert re.search(r"changed \d+ items", log) and ("tenant acme" in log or "cannot apply" in log), log
        for role in ("ingress", "outbound", "control"):
            cluster.until_ready(cluster.role(role))
        assert cluster.api.refused == []
        assert [pod.name for pod in cluster.pods.values() if pod.restarts] == []
        assert cluster.api.get("ConfigMap", f"{NAME}-formed")["data"]["queue-nodes"] == "3"

    def the_authority_is_created_once(self):
        before = self.cluster.api.get("Secret", f"{NAME}-authority")
        pod = self.cluster.job(named(self.objects, "Job", f"{NAME}-authority"))
        assert "exists: the authority in it stays in use" in pod.log("authority"), pod.log("authority")
        assert self.cluster.api.get("Secret", f"{NAME}-authority") == before

    def helm_test_sends_a_message_and_waits_for_its_end(self):
        test = named(self.objects, "Pod", f"{NAME}-test")
        before = len(self.receiver.messages)
        pod = self.cluster.run(f"{NAME}-test", test["spec"], test["metadata"]["labels"])
        self.cluster.completed(pod)
        assert re.search(r": delivered after 1 attempts?: .*taken", pod.log("send")), pod.log("send")
        assert len(self.receiver.messages) == before + 1

    def helm_test_without_a_recipient_waits_for_the_cluster(self):
        objects, _ = render(merged(self.values, {"test": {"to": ""}}), name=NAME, namespace=NAMESPACE)
        test = named(objects, "Pod", f"{NAME}-test")
        pod = self.cluster.completed(self.cluster.run(f"{NAME}-test", test["spec"], test["metadata"]["labels"]))
        assert "every group has a leader" in pod.log("formed"), pod.log("formed")

    def send(self, subject, port=587):
        """Sends a message as a client does: by name, with TLS that it verifies, and a login."""
        address = self.cluster.services[NAME]
        context = ssl.create_default_context(cadata=self.ca.certificate)
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = VALUES["test"]["from"], VALUES["test"]["to"], subject
        message.set_content("hello")
        client = smtplib.SMTP_SSL(context=context, timeout=60) if port == 465 else smtplib.SMTP(timeout=60)
        with contextlib.closing(client):
            # The name of the certificate, at the address of the Service.
            client._host = HOSTNAME
            if port == 465:
                client._get_socket = lambda _host, _port, _timeout: context.wrap_socket(
                    socket.create_connection((address, port), 60), server_hostname=HOSTNAME)
            client.connect(address, port)
            if port == 587:
                client.starttls(context=context)
            client.login(LOGIN["login"], LOGIN["password"])
            client.send_message(message)

    def copies(self, subject):
        """How many copies of a message the receiver has."""
        return sum(f"Subject: {subject}\r\n" in text for _, text in list(self.receiver.messages))

    def a_client_sends_through_the_port_of_the_service(self, subject="hello"):
        for port in (587, 465):
            self.send(f"{subject} {port}", port)
            wait_for("the receiver has it", lambda: self.copies(f"{subject} {port}"))

    def an_operator_works_in_the_operator_pod(self):
        [pod] = self.cluster.role("operator")
        wait_for("it runs", lambda: pod.running == "operator")
        code, output = self.kubectl(PAGE.command("-- postroad get"))
        assert code == 0 and "acme    default" in output, output

    def every_pod_restarts_under_load_and_no_message_is_lost(self):
        cluster, load = self.cluster, Load(self)
        for role in ("queue", "outbound", "control"):
            item = named(self.objects, "StatefulSet", f"{NAME}-{role}")
            for number in reversed(range(item["spec"]["replicas"])):
                took = cluster.pods[f"{NAME}-{role}-{number}"].stop()
                pod = cluster.member(item, number)
                cluster.until_ready([pod])
                if role == "queue":
                    assert "the data directory is disk" in pod.log("disk"), pod.log("disk")
                print(f"   {pod.name} stopped in {took:.1f} s")
        # maxUnavailable 0, maxSurge 1: the new pod first.
        template = named(self.objects, "Deployment", f"{NAME}-ingress")["spec"]["template"]
        for number, pod in enumerate(cluster.role("ingress")):
            cluster.until_ready([cluster.run(f"{NAME}-ingress-new-{number}", template["spec"], template["metadata"]["labels"])])
            print(f"   {pod.name} stopped in {pod.stop():.1f} s")
        acknowledged, refused = load.stop()
        assert acknowledged, refused
        wait_for("every acknowledged message arrives", lambda: all(self.copies(subject) for subject in acknowledged))
        extra = sum(self.copies(subject) - 1 for subject in acknowledged)
        print(f"   {len(acknowledged)} messages acknowledged, all delivered, {extra} extra copies; {len(refused)} not accepted: {sorted(set(refused))}")
        # A node that is asked to stop finishes what it sends.
        assert extra == 0

    def a_queue_pod_whose_volume_is_lost_waits_and_rejoins_by_one_command(self, meanwhile=lambda _: None):
        """Calls `meanwhile` while the pod waits; returns when the command was given."""
        cluster, name = self.cluster, f"{NAME}-queue-1"
        cluster.pods[name].stop()
        subprocess.run(["rm", "-rf", cluster.kubelet.claims / f"data-{name}"], check=True)
        pod = cluster.member(named(self.objects, "StatefulSet", f"{NAME}-queue"), 1)
        command = PAGE.command("postroad cluster rejoin")
        said = " ".join(word for word in command if word not in ("-n", NAMESPACE))
        wait_for("it says what to do", lambda: said in pod.log("disk"))
        assert "queue node 11 waits: the cluster formed at" in pod.log("disk")
        # Mail flows meanwhile.
        self.a_client_sends_through_the_port_of_the_service("with two queue nodes")
        meanwhile(pod)
        commanded = time.monotonic()
        code, output = self.kubectl(command)
        assert code == 0, output
        cluster.until_ready([pod])
        groups = self.values.get("cluster", {}).get("ledgerGroups") or 3
        # The directory's group too.
        wait_for("it is a voter of every group again", lambda: pod.log("queue").count("joined: this node is a voter") == groups + 1)
        return commanded

    def nodes(self):
        """The pods that run a role."""
        return [pod for role in ("queue", "ingress", "outbound", "control") for pod in self.cluster.role(role)]

    def certificates(self):
        """What the command of the page lists: which authority signed the certificate of each node, and which ones it trusts."""
        code, output = self.kubectl([*PAGE.command("postroad certificate list"), "-o", "json"])
        assert code == 0, output
        listed = [found for found in json.loads(output)["certificates"] if found["of"] != "authority"]
        return [(found["signed_by"], set(found["trusts"])) for found in listed]

    def the_authority_is_replaced_while_pods_run(self):
        machine = self.work / "machine"
        for directory in ("bin", "secret"):
            (machine / directory).mkdir(parents=True)
        (machine / "bin/postroad").symlink_to(os.environ["POSTROAD_BINARY"])
        (machine / "bin/kubectl").write_text(KUBECTL)
        (machine / "bin/kubectl").chmod(0o755)
        api, name, files = self.cluster.api, f"{NAME}-authority", ("authority.pem", "authority.key")
        for file in files:
            (machine / "secret" / file).write_bytes(base64.b64decode(api.get("Secret", name)["data"][file]))
        cluster_id = re.search(r"(?m)^id = (\d+)", api.get("ConfigMap", f"{NAME}-operator")["data"]["operator.toml"]).group(1)
        commands = PAGE.commands
        begin, rotate = (next(n for n, line in enumerate(commands) if words in line) for words in ("mkdir authority", "certificate rotate"))

        def sh(lines):
            for line in lines:
                environment = {"PATH": f"{machine}/bin:{os.environ['PATH']}"}
                subprocess.run(["sh", "-euc", line.replace("= ID", f"= {cluster_id}")], cwd=machine, env=environment, check=True,
                               stdout=subprocess.DEVNULL)

        def trusted():
            certificates = x509.load_pem_x509_certificates((machine / "secret/authority.pem").read_bytes())
            keys = [c.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest for c in certificates]
            return [key[:8].hex() for key in keys]

        sh(commands[begin:rotate])
        [old] = trusted()
        for step in (1, 2, 3):
            sh(commands[rotate : rotate + 2])
            api.apply(secret(name, **{file.replace(".", "_"): (machine / "secret" / file).read_text() for file in files}))
            for pod in self.cluster.pods.values():
                if not pod.stopping:
                    pod.refresh()
            [new] = set(trusted()) - {old}
            expected = [(old if step == 1 else new, set(trusted()))] * len(self.nodes())
            wait_for(f"every node has what step {step} brought", lambda expected=expected: self.certificates() == expected)
            self.a_client_sends_through_the_port_of_the_service(f"rotation step {step}")
        assert all(pod.ready and not pod.restarts for pod in self.nodes())

    def certificates_are_renewed_while_pods_run(self):
        renewed = "less than a third of its lifetime is left: issued the certificate"
        for pod in self.nodes():
            wait_for(f"{pod.name} renews its certificate", lambda: renewed in pod.log("renew"))
        # The first ones end, and a node that still used its first would be refused.
        end = max(pod.started_at for pod in self.nodes()) + CERTIFICATE_MINUTES * 60
        wait_for("every first certificate has ended", lambda: time.monotonic() > end)
        self.a_client_sends_through_the_port_of_the_service("with renewed certificates")
        assert all(pod.ready and not pod.restarts for pod in self.nodes())

    def nothing_forms_again_when_every_volume_is_lost(self):
        cluster = self.cluster
        item = named(self.objects, "StatefulSet", f"{NAME}-queue")
        for pod in cluster.role("queue"):
            pod.stop()
            subprocess.run(["rm", "-rf", cluster.kubelet.claims / f"data-{pod.name}"], check=True)
        pods = [cluster.member(item, number) for number in range(3)]
        for pod in pods:
            wait_for("it waits", lambda: "waits: the cluster formed at" in pod.log("disk"))
            assert pod.running == "disk"
            assert not (cluster.kubelet.claims / f"data-{pod.name}" / "queue").exists()

    def a_new_empty_cluster_begins_when_every_pod_was_stopped(self):
        """By the part of the page: `helm upgrade` starts the pods again, and a Job under another name."""
        cluster, api = self.cluster, self.cluster.api
        stopped = "app.kubernetes.io/component in (queue,ingress,outbound,control)"
        assert any(stopped in line for line in PAGE.commands), "the page stops every pod"
        for role in ("operator", "queue", "ingress", "outbound", "control"):
            for pod in cluster.role(role):
                pod.stop()
        api.delete("ConfigMap", f"{NAME}-formed")
        subprocess.run(["rm", "-rf", *cluster.kubelet.claims.iterdir()], check=True)
        for item in self.objects:
            if item["kind"] in ("StatefulSet", "Deployment"):
                cluster.control(item)
        [setup] = [item for item in self.objects if item["kind"] == "Job" and "-setup-" in item["metadata"]["name"]]
        template = setup["spec"]["template"]
        done = cluster.completed(cluster.run(f"{NAME}-setup-again", template["spec"], template["metadata"]["labels"]))
        assert "recorded" in done.log("formed"), done.log("formed")
        for role in ("queue", "ingress", "outbound", "control"):
            cluster.until_ready(cluster.role(role))
        self.a_client_sends_through_the_port_of_the_service("the new cluster")
        [text] = [text for _, text in self.receiver.messages if "Subject: the new cluster 465\r\n" in text]
        message = re.search(r"\bid (0[0-9A-Z]{25})", text)[1]
        # The history has what the new cluster did, from its beginning.
        trace = [*PAGE.command("-- postroad get")[:-1], "message", "trace", message]
        wait_for("the history has it", lambda: "delivered" in self.kubectl(trace)[1])


class Load:
    """Sends one message after the other until it is stopped; what is not acknowledged is not expected to arrive."""

    def __init__(self, scenario):
        self.scenario, self.acknowledged, self.refused = scenario, [], []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        number = 0
        while not self.stopping.is_set():
            number += 1
            subject = f"load {number}."
            try:
                self.scenario.send(subject)
                self.acknowledged.append(subject)
            except (smtplib.SMTPException, OSError) as error:
                self.refused.append(f"{type(error).__name__} {getattr(error, 'smtp_code', '')}".strip())
                self.stopping.wait(0.5)

    def stop(self):
        self.stopping.set()
        self.thread.join()
        return self.acknowledged, self.refused


def figures(cluster):
    print("\n| pod | ready after | memory | of containers beside |\n|---|---|---|---|")
    for name, pod in sorted(cluster.pods.items()):
        if pod.ready_after is not None and not pod.stopping:
            used = [pod.memory(), *(pod.memory(process) for _, process in pod.beside)]
            print(f"| {name} | {pod.ready_after:.1f} s | {' | '.join(f'{memory / 2**20:.0f} MiB' for memory in used)} |")
            for memory, container in zip(used, pod.spec["containers"], strict=True):
                limit = container["resources"]["limits"]["memory"]
                assert memory < int(limit.removesuffix("Mi").removesuffix("Gi")) * (2**30 if limit.endswith("Gi") else 2**20)
    print()


class OnMachines(Scenario):
    """Certificates from cert-manager, mail from the addresses of two machines, and queue pods that die while the cluster forms."""

    def __init__(self, work, network, receiver):
        self.page = PAGE.egress_values()
        self.sources = self.page["policy"]["inline"]["sources"]
        pools = [{"name": "default", "sources": [{"source": source["name"]} for source in self.sources]}]
        values = merged(merged(VALUES, self.page), {
            "certificates": {"mode": "certManager"},
            "networkPolicy": {"hostNetworks": ["10.88.0.0/16"]},
            "policy": {"inline": {"pools": pools}},
        })
        super().__init__(work, network, receiver, values)
        for machine in self.page["outbound"]["egress"]["hosts"]:
            [source] = [source for source in self.sources if source["nodes"] == [machine["node"]]]
            self.cluster.kubelet.machines[machine["host"]] = network.machine(source["address"])
        self.issue()

    def issue(self):
        """What cert-manager does with the Issuers and Certificates of the chart."""
        authority = named(self.objects, "Certificate", f"{NAME}-authority")["spec"]
        assert named(self.objects, "Issuer", f"{NAME}-nodes")["spec"]["ca"]["secretName"] == authority["secretName"]
        ca = Authority(authority["commonName"], *authority["uris"])
        for item in self.objects:
            spec = item["spec"] if item["kind"] == "Certificate" else {}
            if spec and not spec.get("isCA"):
                assert spec["issuerRef"]["name"] == f"{NAME}-nodes"
                certificate, key = ca.issue(*spec.get("dnsNames", []), uris=spec["uris"])
                self.cluster.api.apply(secret(spec["secretName"], tls_crt=certificate, tls_key=key, ca_crt=ca.certificate))

    def queue_pods_die_while_the_cluster_forms_and_it_forms_once(self):
        seed = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
        print(f"   SEED={seed} repeats which pods die, and when")
        chance = random.Random(seed)
        cluster, disks = self.cluster, {}
        item = named(self.objects, "StatefulSet", f"{NAME}-queue")

        def dies(number, lines):
            """Kills a pod that has logged so many lines, and starts it again; returns the new one."""
            pod = cluster.pods[f"{NAME}-queue-{number}"]
            wait_for(f"{pod.name} has logged {lines} lines", lambda: pod.ready or pod.failed or len(pod.log("queue").splitlines()) >= lines)
            pod.kill()
            print(f"   {pod.name} died in {pod.running} after {len(pod.log('queue').splitlines())} lines", flush=True)
            note(pod)
            return cluster.member(item, number)

        def note(pod):
            disks.setdefault(pod.name, set()).update(re.findall(r"disk ([0-9a-f]\S*)", pod.log("disk")))
            for refusal in ("the cluster exists already", "different disk"):
                assert refusal not in pod.log("queue"), pod.log("queue")

        cluster.install([o for o in self.objects if o is not item])
        for number in range(3):
            cluster.member(item, number)
        for _ in range(4):
            dies(chance.randrange(3), chance.randrange(LINES_UNTIL_FORMED))
        cluster.until_ready(cluster.role("queue"))
        [setup] = cluster.role("setup")
        cluster.completed(setup)
        for role in ("outbound", "ingress", "control"):
            cluster.until_ready(cluster.role(role))
        # The node that forms the groups finds them formed, and each volume was formatted once.
        first = dies(0, 0)
        cluster.until_ready([first])
        assert "forming the group" not in first.log("queue"), first.log("queue")
        for pod in cluster.role("queue"):
            note(pod)
        assert [len(found) for found in disks.values()] == [1, 1, 1], disks

    def mail_leaves_from_the_addresses_of_the_machines(self):
        self.receiver.peers.clear()
        wanted = {source["address"] for source in self.sources}
        # Which source a message gets is for the queue to choose.
        wait_for("both addresses are used", lambda: self.a_client_sends_through_the_port_of_the_service("x") or self.receiver.peers >= wanted)
        assert self.receiver.peers == wanted, self.receiver.peers


def run(scenario, steps):
    for step in steps:
        began = time.monotonic()
        try:
            step()
        except BaseException:
            scenario.cluster.dump()
            raise
        if step.__name__ != "<lambda>":
            print(f"ok {step.__name__.replace('_', ' ')} ({time.monotonic() - began:.1f} s)", flush=True)


def main():
    network = Network()
    receiver = Receiver()
    with tempfile.TemporaryDirectory(dir=os.environ["WORK"]) as work:
        first = Scenario(Path(work), network, receiver, VALUES)
        run(first, (
            first.the_cluster_starts_from_what_the_chart_renders,
            first.the_authority_is_created_once,
            first.helm_test_sends_a_message_and_waits_for_its_end,
            first.helm_test_without_a_recipient_waits_for_the_cluster,
            first.a_client_sends_through_the_port_of_the_service,
            first.an_operator_works_in_the_operator_pod,
            lambda: figures(first.cluster),
            first.the_authority_is_replaced_while_pods_run,
            first.every_pod_restarts_under_load_and_no_message_is_lost,
            first.a_queue_pod_whose_volume_is_lost_waits_and_rejoins_by_one_command,
            first.certificates_are_renewed_while_pods_run,
            first.nothing_forms_again_when_every_volume_is_lost,
            first.a_new_empty_cluster_begins_when_every_pod_was_stopped,
        ))
        first.stop()
    with tempfile.TemporaryDirectory(dir=os.environ["WORK"]) as work:
        second = OnMachines(Path(work), network, receiver)
        run(second, (
            second.queue_pods_die_while_the_cluster_forms_and_it_forms_once,
            second.helm_test_sends_a_message_and_waits_for_its_end,
            second.mail_leaves_from_the_addresses_of_the_machines,
        ))
        second.stop()
    # Whatever still runs ends with this process, the first of its namespace.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
