"""What an upgrade of a cluster that exists is refused for: Helm asks an API that has the objects of the first install."""

import http.server
import json
import tempfile
import threading
import unittest
from pathlib import Path

import helm_python as helm

from chart import CHART, LEAST, merged, named, render

NAMESPACE = "post"
DISCOVERY = {
    "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [{
        "name": "apps", "versions": [{"groupVersion": "apps/v1", "version": "v1"}], "preferredVersion": {"groupVersion": "apps/v1", "version": "v1"},
    }]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [
        {"name": "secrets", "singularName": "secret", "namespaced": True, "kind": "Secret", "verbs": ["get", "list"]},
    ]},
    "/apis/apps/v1": {"kind": "APIResourceList", "groupVersion": "apps/v1", "resources": [
        {"name": "statefulsets", "singularName": "statefulset", "namespaced": True, "kind": "StatefulSet", "verbs": ["get", "list"]},
    ]},
}


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = self.server.answers.get(self.path.split("?")[0])
        text = json.dumps(found or {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class Upgrade(unittest.TestCase):
    def setUp(self):
        objects, _ = render(LEAST, namespace=NAMESPACE)
        queue = named(objects, "StatefulSet", "mail-queue")
        authority = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mail-authority", "namespace": NAMESPACE}}
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.server.answers = DISCOVERY | {
            f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/mail-queue": queue,
            f"/api/v1/namespaces/{NAMESPACE}/secrets/mail-authority": authority,
        }
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

    def check(self, values, sentence):
        self.assertIn(sentence, self.refusal(values))

    def test_what_a_cluster_was_formed_with_cannot_change(self):
        self.assertNotIn("These values cannot work", self.refusal({}))
        self.check({"queue": {"replicas": 5}}, "queue.replicas: the cluster was formed with 3 queue nodes")
        self.check({"queue": {"replicas": 1}}, "set queue.replicas to 3 again")
        self.check({"cluster": {"id": "7"}}, "its volumes are opened by no other; set cluster.id to")
        self.check({"cluster": {"ledgerGroups": 8}}, "cluster.ledgerGroups: the cluster was formed with 3")

    def test_an_authority_that_was_lost_is_not_replaced(self):
        del self.server.answers[f"/api/v1/namespaces/{NAMESPACE}/secrets/mail-authority"]
        self.check({}, "the cluster exists and the Secret mail-authority does not; restore it")


if __name__ == "__main__":
    unittest.main()
