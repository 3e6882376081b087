"""Runs pods as kubelet does, on the files of the image: volumes, environment, user, capabilities, probes and stopping.

What it does not do: seccomp, limits of memory and CPU (what pods use is measured instead), network policies (test_policies.py
reads them). Changes reach the volumes of a pod that runs by `Pod.refresh`, file by file.
"""

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from network import GATEWAY

PYTHON = sys.executable
HERE = Path(__file__).parent
# Nothing takes this long: a slow machine is waited for.
PATIENCE = 900
# A container that ends more often is taken for broken.
RESTARTS_MAX = 20


def wait_for(what, condition, patience=PATIENCE):
    """Waits until a condition is true, and returns what it returns."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise TimeoutError(f"not within {patience} s: {what}")


class Kubelet:
    def __init__(self, tree, work, network, api, claims):
        self.tree, self.work, self.network, self.api, self.claims = tree, work, network, api, claims
        # By name: the address and the network namespace of each.
        self.machines = {}

    # Volumes.

    def _write(self, directory, files, mode, group):
        directory.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            file = directory / path
            file.write_bytes(content)
            os.chown(file, 0, group)
            file.chmod(mode)
        os.chown(directory, 0, group)
        directory.chmod(0o755)

    def _data(self, kind, name, optional, items=None):
        item = self.api.get(kind, name)
        if item is None:
            if optional:
                return {}
            raise KeyError(f"{kind} {name} does not exist")
        decode = (lambda text: base64.b64decode(text)) if kind == "Secret" else (lambda text: text.encode())
        data = {key: decode(text) for key, text in item.get("data", {}).items()}
        return data if items is None else {i["path"]: data[i["key"]] for i in items}

    def _projected(self, source, pod):
        if "secret" in source:
            secret = source["secret"]
            return self._data("Secret", secret["name"], secret.get("optional", False), secret.get("items"))
        if "configMap" in source:
            config = source["configMap"]
            return self._data("ConfigMap", config["name"], config.get("optional", False), config.get("items"))
        if "serviceAccountToken" in source:
            return {source["serviceAccountToken"]["path"]: self.api.token(pod.spec["serviceAccountName"]).encode()}
        return {i["path"]: pod.field(i["fieldRef"]["fieldPath"]).encode() for i in source["downwardAPI"]["items"]}

    def volume(self, volume, pod):
        """Makes a volume of a pod; returns its directory and whether it can be written to."""
        name, group = volume["name"], pod.spec["securityContext"]["fsGroup"]
        if "claim" in volume:
            directory = self.claims / volume["claim"]
            directory.mkdir(parents=True, exist_ok=True)
            os.chown(directory, 0, group)
            directory.chmod(0o2775)
            return directory, True
        directory = pod.directory / "volumes" / name
        if "emptyDir" in volume:
            directory.mkdir(parents=True, exist_ok=True)
            os.chown(directory, 0, group)
            directory.chmod(0o2777)
            return directory, True
        if "configMap" in volume:
            source = volume["configMap"]
            files, mode = self._data("ConfigMap", source["name"], source.get("optional", False), source.get("items")), 0o644
        elif "secret" in volume:
            source = volume["secret"]
            files, mode = self._data("Secret", source["secretName"], source.get("optional", False), source.get("items")), source["defaultMode"]
        else:
            files, mode = {}, volume["projected"]["defaultMode"]
            for source in volume["projected"]["sources"]:
                files |= self._projected(source, pod)
        self._write(directory, files, mode, group)
        return directory, False


class Pod:
    """A pod; `labels` has those that its controller adds."""

    def __init__(self, kubelet, name, spec, labels, claims=()):
        self.kubelet, self.name, self.spec, self.labels = kubelet, name, spec, labels
        self.directory = kubelet.work / "pods" / name
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        self.address, self.space = self._network()
        volumes = list(spec.get("volumes", [])) + [{"name": c, "claim": f"{c}-{name}"} for c in claims]
        self.volumes = {v["name"]: kubelet.volume(v, self) for v in volumes}
        self._write_names()
        self.running, self.process = None, None
        # Containers that run beside the pod's own, each with its process; and the environments of all, by name.
        self.beside, self.environments = [], {}
        self.ready, self.ended, self.failed = False, False, None
        self.started_at, self.ready_after = time.monotonic(), None
        self.stopping, self.restarts = False, 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def refresh(self):
        """Brings Secrets and ConfigMaps in the pod's volumes up to date, which takes kubelet up to two minutes."""
        for volume in self.spec["volumes"]:
            if "secret" in volume or "configMap" in volume:
                self.kubelet.volume(volume, self)

    def _network(self):
        if not self.spec.get("hostNetwork"):
            return self.kubelet.network.pod()
        terms = self.spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        [[machine]] = [e["values"] for t in terms for e in t["matchExpressions"] if e["key"] == "kubernetes.io/hostname"]
        return self.kubelet.machines[machine]

    def _write_names(self):
        options = [f"{o['name']}:{o['value']}" for o in self.spec.get("dnsConfig", {}).get("options", [])]
        space = self.kubelet.api.namespace
        (self.directory / "resolv.conf").write_text(
            f"search {space}.svc.cluster.local svc.cluster.local cluster.local\nnameserver {GATEWAY}\n"
            f"options {' '.join(['ndots:5'] + options)}\n"
        )
        (self.directory / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (self.directory / "hostname").write_text(self.name + "\n")

    def field(self, path):
        if found := re.fullmatch(r"metadata\.labels\['(.*)'\]", path):
            return self.labels[found.group(1)]
        return {"status.podIP": self.address, "metadata.namespace": self.kubelet.api.namespace, "metadata.name": self.name}[path]

    def _environment(self, container):
        values = {}

        def expand(text):
            return re.sub(r"\$\(([A-Za-z0-9_]+)\)", lambda found: values.get(found.group(1), found.group(0)), text)

        for item in container.get("env", []):
            given = item["value"] if "value" in item else self.field(item["valueFrom"]["fieldRef"]["fieldPath"])
            values[item["name"]] = expand(given) if "value" in item else given
        environment = {
            "PATH": "/usr/local/bin", "HOSTNAME": self.name,
            "KUBERNETES_SERVICE_HOST": self.kubelet.api.address, "KUBERNETES_SERVICE_PORT": "443",
        } | values
        return environment, [expand(argument) for argument in container["args"]]

    def log(self, container):
        path = self.directory / f"{container}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _start(self, container):
        """Starts a container as the pod's own, for whose end the pod waits."""
        self.process = self._spawn(container)
        self.running = container["name"]
        if os.environ.get("TRACE"):
            print(f"   {time.monotonic() - self.started_at:.1f} {self.name} {self.running}", flush=True)

    def _spawn(self, container):
        own, pod = container["securityContext"], self.spec["securityContext"]
        assert own["capabilities"] == {"drop": ["ALL"]} and own["readOnlyRootFilesystem"], "only this is known here"
        root = self.directory / f"root-{container['name']}"
        shutil.rmtree(root, ignore_errors=True)
        # The files of the image, and the places of the mounts, which the runtime makes.
        subprocess.run(["cp", "-al", self.kubelet.tree, root], check=True)
        mounts = []
        for name in ("resolv.conf", "hosts", "hostname"):
            (root / "etc" / name).unlink(missing_ok=True)
            (root / "etc" / name).touch()
            mounts.append([str(self.directory / name), f"/etc/{name}", True])
        for item in sorted(container.get("volumeMounts", []), key=lambda m: m["mountPath"]):
            (root / item["mountPath"].lstrip("/")).mkdir(parents=True, exist_ok=True)
            source, writable = self.volumes[item["name"]]
            mounts.append([str(source), item["mountPath"], item.get("readOnly", False) or not writable])
        environment, arguments = self._environment(container)
        spec = {
            "root": str(root), "hostname": self.name, "mounts": mounts, "env": environment,
            "user": pod["runAsUser"], "group": pod["runAsGroup"], "groups": [pod["fsGroup"]],
            "argv": ["/usr/local/bin/postroad", *arguments],
        }
        file = self.directory / f"{container['name']}.json"
        file.write_text(json.dumps(spec))
        self.environments[container["name"]] = environment
        with open(self.directory / f"{container['name']}.log", "ab") as log:
            return subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.space}", "unshare", "--mount", "--uts", "--pid", "--ipc", "--fork",
                 "--kill-child", PYTHON, str(HERE / "container.py"), str(file)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )

    def _main(self, process=None):
        """The process id of a container's first process, as this namespace sees it; of the pod's own container unless given."""
        process = process or self.process
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        except FileNotFoundError:
            return None
        return int(children[0]) if children else None

    def _run(self):
        try:
            for container in self.spec.get("initContainers", []):
                while True:
                    self._start(container)
                    code = self.process.wait()
                    if code == 0 or self.stopping:
                        break
                    if self.spec.get("restartPolicy") == "Never":
                        raise RuntimeError(f"{container['name']} ended with {code}: {self.log(container['name'])[-2000:]}")
                    time.sleep(1)
                if self.stopping:
                    return
            if self.stopping:
                return
            container, *others = self.spec["containers"]
            self._start_beside(others)
            while True:
                self._start(container)
                if "readinessProbe" in container:
                    self._probe(container)
                code = self.process.wait()
                policy = self.spec.get("restartPolicy", "Always")
                if self.stopping or policy == "Never" or policy == "OnFailure" and code == 0:
                    break
                self.restarts += 1
                if self.restarts > RESTARTS_MAX:
                    break
                time.sleep(1)
            if code and not self.stopping:
                raise RuntimeError(f"{container['name']} ended with {code}: {self.log(container['name'])[-2000:]}")
            self.ended = True
        except Exception as error:
            self.failed = error
        finally:
            self.ready = False

    def _start_beside(self, containers):
        """Starts the containers that are not the first; each must run as long as the pod does."""
        for container in containers:
            self.beside.append((container, self._spawn(container)))

    def port(self, name):
        container = self.spec["containers"][0]
        return next(p["containerPort"] for p in container["ports"] if p["name"] == name)

    def get(self, probe):
        """Whether a probe succeeds."""
        target = probe["httpGet"]
        try:
            connection = http.client.HTTPConnection(self.address, self.port(target["port"]), timeout=probe.get("timeoutSeconds", 1))
            connection.request("GET", target["path"])
            return 200 <= connection.getresponse().status < 400
        except OSError:
            return False

    def _probe(self, container):
        startup, liveness, readiness = (container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness"))
        # A loaded machine is slow: the number of failures is not counted, as PATIENCE ends the test.
        while self.process.poll() is None and not self.get(startup):
            time.sleep(0.1)
        while self.process.poll() is None and not self.stopping:
            ended = [other["name"] for other, process in self.beside if process.poll() is not None]
            assert not ended or self.stopping, f"{ended} ended: {self.log(ended[0])[-2000:]}"
            self.ready = self.get(readiness) and self.get(liveness)
            if self.ready and self.ready_after is None:
                self.ready_after = time.monotonic() - self.started_at
            time.sleep(0.2)

    def memory(self, process=None):
        """The resident memory of a container, in bytes; of the pod's own unless given."""
        text = Path(f"/proc/{self._main(process)}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text).group(1)) * 1024

    def execute(self, container, *arguments, stdin=None):
        """What `kubectl exec` does; returns the exit status and the output."""
        assert self.running == container, f"{container} does not run in {self.name}: {self.running} does"
        pid = self._main()
        user, group = self.spec["securityContext"]["runAsUser"], self.spec["securityContext"]["runAsGroup"]
        done = subprocess.run(
            [shutil.which("nsenter"), f"--target={pid}", "--mount", "--uts", "--net", "--pid", "--ipc", "--root", "--wd", f"--setgid={group}",
             f"--setuid={user}", "/usr/local/bin/postroad", *arguments],
            env=self.environments[container], input=stdin, capture_output=True, text=True,
        )
        return done.returncode, done.stdout + done.stderr

    def stop(self):
        """Stops the pod as kubelet does; returns how many seconds it took.

        Its grace period is compared with the settings by the chart; here it is not counted, as the machine may be slow.
        """
        self.stopping = True
        self.ready = False
        began = time.monotonic()
        container = self.spec["containers"][0]
        if self.running == container["name"]:
            time.sleep(container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))
        for process in [self.process, *(process for _, process in self.beside)]:
            self._signal(signal.SIGTERM, process)
        self.thread.join(PATIENCE)
        if self.thread.is_alive():
            raise RuntimeError(f"{self.name} does not stop: {self.log(self.running)[-2000:]}")
        for _, process in self.beside:
            process.wait(PATIENCE)
        if not self.spec.get("hostNetwork"):
            self.kubelet.network.remove(self.space)
        return time.monotonic() - began

    def _signal(self, number, process):
        """Sends a signal to the first process of a container that runs."""
        if process is None or process.poll() is not None:
            return
        if (pid := self._main(process)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self):
        """What a machine that loses its power does to the pod: nothing in it ends in order."""
        self.stopping, self.ready = True, False
        # It may be about to start its next container.
        while self.thread.is_alive():
            for process in [self.process, *(process for _, process in self.beside)]:
                self._signal(signal.SIGKILL, process)
            self.thread.join(0.1)
        self.kubelet.network.remove(self.space)
