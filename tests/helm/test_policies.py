"""What every rendered pod must be (C-190), and who may reach whom (C-191)."""

import json
import unittest

from cases import WORK
from chart import LEAST, containers, merged, named, pod_templates, render

API_USERS = ("authority", "setup")


def every_pod():
    for name, values in WORK.items():
        objects, _ = render(merged(LEAST, values))
        for kind, pod_name, spec, labels in pod_templates(objects):
            yield f"{name}: {kind} {pod_name}", spec, labels


class Pods(unittest.TestCase):
    def test_c_190_no_pod_is_root_or_can_become_it(self):
        for name, pod, _ in every_pod():
            with self.subTest(name):
                security = pod["securityContext"]
                self.assertTrue(security["runAsNonRoot"])
                self.assertEqual((security["runAsUser"], security["runAsGroup"], security["fsGroup"]), (65532,) * 3)
                self.assertEqual(security["seccompProfile"], {"type": "RuntimeDefault"})
                for container in containers(pod):
                    own = container["securityContext"]
                    self.assertEqual(own["capabilities"], {"drop": ["ALL"]})
                    self.assertFalse(own["allowPrivilegeEscalation"])
                    self.assertTrue(own["readOnlyRootFilesystem"])
                    self.assertNotIn("privileged", own)
                self.assertFalse(pod.get("hostPID") or pod.get("hostIPC"))

    def test_c_190_only_the_jobs_that_create_objects_have_a_token(self):
        for name, pod, labels in every_pod():
            with self.subTest(name):
                self.assertFalse(pod["automountServiceAccountToken"])
                self.assertFalse(pod["enableServiceLinks"])
                has_token = "serviceAccountToken" in json.dumps(pod["volumes"])
                self.assertEqual(has_token, labels["app.kubernetes.io/component"] in API_USERS)

    def test_c_190_every_container_has_limits_and_every_empty_directory_a_size(self):
        for name, pod, _ in every_pod():
            with self.subTest(name):
                for container in containers(pod):
                    self.assertIn("memory", container["resources"]["limits"])
                    self.assertIn("cpu", container["resources"]["requests"])
                for volume in pod["volumes"]:
                    if "emptyDir" in volume:
                        self.assertIn("sizeLimit", volume["emptyDir"])
                    self.assertNotIn("hostPath", volume)

    def test_c_190_only_the_containers_that_issue_certificates_see_the_key_of_the_authority(self):
        for name, pod, _ in every_pod():
            with self.subTest(name):
                kind = name.split(": ")[1].split()[0]
                issuing = [c["name"] for c in containers(pod) if c["name"] in ("certificate", "renew")]
                if not issuing:
                    continue
                seeing = [c["name"] for c in containers(pod) if "authority" in [m["name"] for m in c.get("volumeMounts", [])]]
                self.assertEqual(seeing, issuing)
                # A pod that ends by itself needs no other certificate.
                ends = kind in ("Job", "Pod")
                self.assertEqual(issuing, ["certificate"] if ends else ["certificate", "renew"])

    def test_c_190_the_host_network_is_for_its_egress_mode_alone(self):
        for name, pod, labels in every_pod():
            with self.subTest(name):
                if pod.get("hostNetwork"):
                    self.assertIn("addresses of machines", name)
                    self.assertEqual(labels["app.kubernetes.io/component"], "outbound")

    def test_c_190_queue_nodes_are_on_different_machines_and_go_one_at_a_time(self):
        objects, _ = render(LEAST)
        pod = named(objects, "StatefulSet", "mail-queue")["spec"]["template"]["spec"]
        [term] = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        labels = {"app.kubernetes.io/name": "postroad", "app.kubernetes.io/instance": "mail", "app.kubernetes.io/component": "queue"}
        self.assertEqual((term["topologyKey"], term["labelSelector"]["matchLabels"]), ("kubernetes.io/hostname", labels))
        [spread] = pod["topologySpreadConstraints"]
        self.assertEqual((spread["topologyKey"], spread["labelSelector"]["matchLabels"]), ("topology.kubernetes.io/zone", labels))
        budget = named(objects, "PodDisruptionBudget", "mail-queue")["spec"]
        self.assertEqual((budget["maxUnavailable"], budget["selector"]["matchLabels"]), (1, labels))

    def test_no_image_moves(self):
        for name, pod, _ in every_pod():
            for container in containers(pod):
                with self.subTest(name):
                    image = container["image"]
                    self.assertTrue("@sha256:" in image or ":" in image.rsplit("/", 1)[-1], image)
                    self.assertFalse(image.endswith(":latest"), image)

    def test_roles_are_probed_and_have_time_to_stop(self):
        for name, pod, labels in every_pod():
            role = labels["app.kubernetes.io/component"]
            if role not in ("queue", "ingress", "outbound", "control"):
                continue
            with self.subTest(name):
                container = pod["containers"][0]
                paths = [container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
                self.assertEqual(paths, ["/healthz", "/healthz", "/readyz"])
                self.assertGreaterEqual(pod["terminationGracePeriodSeconds"], 30)

    def test_c_192_no_secret_is_rendered(self):
        for name, values in WORK.items():
            objects, _ = render(merged(LEAST, values))
            with self.subTest(name):
                self.assertFalse([o for o in objects if o["kind"] == "Secret"])
                self.assertNotIn("PRIVATE KEY", json.dumps(objects))

    def test_jobs_may_create_one_kind_of_object_and_nothing_else(self):
        for name, values in WORK.items():
            objects, _ = render(merged(LEAST, values))
            for role in (o for o in objects if o["kind"] == "Role"):
                with self.subTest(name, role=role["metadata"]["name"]):
                    [rule] = role["rules"]
                    self.assertEqual(rule["verbs"], ["create"])
                    self.assertIn(rule["resources"], (["secrets"], ["configmaps"]))
            self.assertFalse([o for o in objects if o["kind"].startswith("ClusterRole")])


ROLES = ("queue", "ingress", "outbound", "control", "operator", "setup", "authority", "test")
# Who may open a connection to whom, at which port.
MATRIX = {
    ("queue", "queue", 7400), ("ingress", "queue", 7400), ("outbound", "queue", 7400), ("control", "queue", 7400),
    ("operator", "queue", 7400), ("setup", "queue", 7400),
    ("control", "queue", 9090), ("control", "ingress", 9090), ("control", "outbound", 9090), ("control", "control", 9090),
    ("test", "ingress", 2587), ("test", "ingress", 2465), ("test", "ingress", 5051), ("test", "control", 8080),
    ("operator", "control", 8080),
}


class Policies(unittest.TestCase):
    def setUp(self):
        objects, _ = render(LEAST)
        self.pods = {labels["app.kubernetes.io/component"]: labels for _, _, _, labels in pod_templates(objects)}
        self.pods["test"] = dict(self.pods["queue"], **{"app.kubernetes.io/component": "test"})
        self.policies = [o for o in objects if o["kind"] == "NetworkPolicy"]

    def of(self, role, direction):
        """The rules that apply to the pods of a role; None where nothing selects them."""
        rules, selected = [], False
        for policy in self.policies:
            wanted = policy["spec"]["podSelector"]["matchLabels"]
            if wanted.items() <= self.pods[role].items() and direction in policy["spec"]["policyTypes"]:
                selected = True
                rules += policy["spec"].get(direction.lower(), [])
        return rules if selected else None

    @staticmethod
    def admits(rules, peers, labels, port):
        """Whether rules admit pods with these labels, in the same namespace, at a port."""
        for rule in rules:
            ports = [p["port"] for p in rule.get("ports", []) if p["protocol"] == "TCP"]
            if port not in ports:
                continue
            if peers not in rule:
                return True
            for peer in rule[peers]:
                if "podSelector" in peer and peer["podSelector"].get("matchLabels", {}).items() <= labels.items():
                    return True
        return False

    def test_c_191_nothing_is_open_that_no_policy_opens(self):
        for role in ROLES:
            self.assertIsNotNone(self.of(role, "Ingress"), role)
            self.assertIsNotNone(self.of(role, "Egress"), role)

    def test_c_191_roles_reach_each_other_exactly_as_the_matrix_says(self):
        ports = (25, 443, 2465, 2525, 2587, 5051, 7400, 8080, 9090)
        found = {
            (source, target, port)
            for source in ROLES for target in ROLES for port in ports
            if self.admits(self.of(source, "Egress"), "to", self.pods[target], port)
            and self.admits(self.of(target, "Ingress"), "from", self.pods[source], port)
        }
        self.assertEqual(found, MATRIX)

    def test_c_191_only_outbound_reaches_port_25_and_only_at_public_addresses(self):
        for role in ROLES:
            rules = [r for r in self.of(role, "Egress") if 25 in [p["port"] for p in r.get("ports", [])]]
            self.assertEqual(len(rules), 1 if role == "outbound" else 0, role)
        [rule] = [r for r in self.of("outbound", "Egress") if 25 in [p["port"] for p in r["ports"]]]
        self.assertTrue(all("ipBlock" in peer for peer in rule["to"]))
        excepted = {network for peer in rule["to"] for network in peer["ipBlock"]["except"]}
        self.assertLessEqual({"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "127.0.0.0/8", "fc00::/7"}, excepted)

    def test_c_191_only_the_jobs_that_create_objects_reach_the_kubernetes_api(self):
        for role in ROLES:
            ports = {p["port"] for r in self.of(role, "Egress") if "to" not in r for p in r["ports"]}
            self.assertEqual(ports - {53}, {443, 6443} if role in API_USERS else set(), role)

    def test_c_191_metrics_are_for_prometheus_and_control(self):
        for role in ("queue", "ingress", "outbound", "control"):
            [rule] = [r for r in self.of(role, "Ingress") if 9090 in [p["port"] for p in r["ports"]]]
            names = [json.dumps(peer) for peer in rule["from"]]
            self.assertEqual(len(names), 2)
            self.assertIn("control", names[0])
            self.assertIn("prometheus", names[1])

    def test_clients_can_be_limited_and_the_test_still_reaches_ingress(self):
        objects, _ = render(merged(LEAST, WORK["clients of one namespace"]))
        self.policies = [o for o in objects if o["kind"] == "NetworkPolicy"]
        rules = self.of("ingress", "Ingress")
        self.assertTrue(self.admits(rules, "from", self.pods["test"], 2587))
        self.assertFalse(self.admits(rules, "from", {"app": "stranger"}, 2587))


if __name__ == "__main__":
    unittest.main()
