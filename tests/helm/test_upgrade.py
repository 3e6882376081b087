"""What an upgrade of a cluster that exists is refused for: Helm asks an API that has the objects of the first install."""

import http.server
import json
import tempfile
import threading
import unittest
from pathlib import Path

import helm_python as helm

from chart import CHART, LEAST, merged, named, render
from kubernetes import Answering, status

NAMESPACE = "post"
# Kind: (the path of its group, plural)
KINDS = {
    "StatefulSet": ("/apis/apps/v1", "statefulsets"),
    "Secret": ("/api/v1", "secrets"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
}
GROUPS = {
    "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [{
        "name": "apps", "versions": [{"groupVersion": "apps/v1", "version": "v1"}], "preferredVersion": {"groupVersion": "apps/v1", "version": "v1"},
    }]},
}


class Answers(Answering):
    def do_GET(self):
        found = self.server.answers().get(self.path.split("?")[0])
        self.answer(200 if found else 404, found or status("NotFound", "no such path") | {"code": 404})


class Existing:
    """The objects that exist, and what the API answers of them."""

    def __init__(self, values=None, **names):
        objects, _ = render(merged(LEAST, values or {}), namespace=NAMESPACE, **names)
        self.objects = [item for item in objects if item["kind"] == "StatefulSet"]
        for item in list(self.objects):
            for claim in item["spec"].get("volumeClaimTemplates", []):
                for number in range(item["spec"]["replicas"]):
                    name = f"{claim['metadata']['name']}-{item['metadata']['name']}-{number}"
                    self.add("v1", "PersistentVolumeClaim", name, labels=claim["metadata"]["labels"])
        self.add("v1", "Secret", "mail-authority")

    def add(self, version, kind, name, labels=None, **more):
        self.objects.append({"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels or {}}, **more})

    def remove(self, *kinds):
        self.objects = [item for item in self.objects if item["kind"] not in kinds]

    def answers(self):
        found = dict(GROUPS)
        for kind, (group, plural) in KINDS.items():
            of_kind = [item for item in self.objects if item["kind"] == kind]
            version = group.removeprefix("/apis/").removeprefix("/api/")
            resources = found.setdefault(group, {"kind": "APIResourceList", "groupVersion": version, "resources": []})["resources"]
            resources.append({"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": ["get", "list"]})
            path = f"{group}/namespaces/{NAMESPACE}/{plural}"
            found[path] = {"apiVersion": version, "kind": f"{kind}List", "items": of_kind}
            found |= {f"{path}/{item['metadata']['name']}": item for item in of_kind}
        return found


class Upgrade(unittest.TestCase):
    def setUp(self):
        self.existing = Existing()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.server.answers = lambda: self.existing.answers()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def refusal(self, values):
        """What Helm says to these values; it does not get further than the API of this test goes."""
        with tempfile.TemporaryDirectory() as directory:
            kubeconfig = Path(directory) / "kubeconfig"
            kubeconfig.write_text(json.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.server.server_address[1]}"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {}}],
            }))
            config = helm.Config(kubeconfig_path=str(kubeconfig), namespace=NAMESPACE, storage_driver="memory")
            with self.assertRaises(helm.HelmError) as refused:
                config.install(str(CHART), "mail", merged(LEAST, values), namespace=NAMESPACE, dry_run="server")
            return str(refused.exception)

    def check(self, values, *sentences):
        refusal = self.refusal(values)
        for sentence in sentences:
            self.assertIn(sentence, refusal)
        if not sentences:
            self.assertNotIn("These values cannot work", refusal)

    def test_what_a_cluster_was_formed_with_cannot_change(self):
        self.check({})
        self.check({"queue": {"replicas": 5}}, "queue.replicas: the cluster was formed with 3 queue nodes")
        self.check({"queue": {"replicas": 1}}, "set queue.replicas to 3 again")
        self.check({"cluster": {"id": "7"}}, "its volumes are opened by no other; set cluster.id to")
        self.check({"cluster": {"ledgerGroups": 8}}, "cluster.ledgerGroups: the cluster was formed with 3")

    def test_nor_after_an_uninstall_or_while_every_pod_is_stopped(self):
        self.existing.add("v1", "ConfigMap", "mail-formed", data={"cluster": "7", "queue-nodes": "5", "ledger-groups": "8"})
        named(self.existing.objects, "StatefulSet", "mail-queue")["spec"]["replicas"] = 0
        right = {"queue": {"replicas": 5}, "cluster": {"id": "7", "ledgerGroups": 8}}
        del named(self.existing.objects, "StatefulSet", "mail-queue")["metadata"]["annotations"]
        self.check(right)
        self.existing.remove("StatefulSet")
        self.check(right)
        self.check({}, "queue.replicas: the cluster was formed with 5", "cluster.id: the cluster is 7", "cluster.ledgerGroups: the cluster was formed with 8")

    def test_another_name_does_not_put_empty_volumes_in_the_place_of_the_mail(self):
        sentence = "fullnameOverride: the mail of this release is in the volumes data-mail-queue-…, and pods named post would start with empty ones"
        self.check({"fullnameOverride": "post"}, sentence)
        # After an uninstall the volumes are what is left.
        self.existing.remove("StatefulSet")
        self.check({"fullnameOverride": "post"}, sentence)
        self.existing.remove("PersistentVolumeClaim")
        self.check({"fullnameOverride": "post"})
        # Another release in the namespace is none of this one's.
        self.existing = Existing(name="other")
        self.check({})

    def test_another_signer_of_certificates_is_refused_while_pods_have_those_of_the_first(self):
        self.check({"certificates": {"mode": "certManager"}},
                   "certificates: those of the running pods are signed by Secret mail-authority, and pods with certificates of Issuer.cert-manager.io mail-nodes would not reach them")
        self.check({"certificates": {"authority": {"secret": "ours"}}}, "and pods with certificates of Secret ours would not reach them")
        self.existing = Existing({"certificates": {"mode": "certManager"}})
        self.check({"certificates": {"mode": "certManager"}})
        self.check({"certificates": {"mode": "certManager", "certManager": {"issuerRef": {"name": "vault", "kind": "ClusterIssuer"}}}},
                   "signed by Issuer.cert-manager.io mail-nodes", "ClusterIssuer.cert-manager.io vault would not reach them")

    def test_volumes_that_kubernetes_does_not_change_are_refused_with_what_to_do(self):
        for role in ("queue", "outbound", "control"):
            self.check({role: {"persistence": {"size": "100Gi"}}},
                       f"{role}.persistence.size: Kubernetes does not change this of the StatefulSet mail-{role}", "see \"Other volumes\"")
            self.check({role: {"persistence": {"storageClass": "fast"}}}, f"{role}.persistence.storageClass: Kubernetes does not change")
        self.check({"queue": {"persistence": {"annotations": {"backup": "yes"}}}}, "queue.persistence.annotations: Kubernetes does not change")
        self.check({"outbound": {"persistence": {"enabled": False}}}, "outbound.persistence.enabled: Kubernetes does not change")
        # The same size in other words, and what is not a volume.
        self.check({"queue": {"persistence": {"size": f"{50 * 1024}Mi"}}})
        self.existing = Existing({"outbound": {"persistence": {"enabled": False}}})
        self.check({"outbound": {"persistence": {"enabled": False, "size": "2Gi"}}})
        self.check({}, "outbound.persistence.enabled: Kubernetes does not change")

    def test_an_authority_that_was_lost_is_not_replaced(self):
        self.existing.remove("Secret")
        self.check({}, "the cluster exists and the Secret mail-authority does not; restore it")


if __name__ == "__main__":
    unittest.main()
