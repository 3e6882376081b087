"""What the chart renders: every object is valid, what cannot work is refused, and an upgrade keeps identities and volumes."""

import json
import os
import re
import tomllib
import unittest

import helm_python as helm
import kubernetes_validate
import yaml

from cases import REFUSED, WORK
from chart import CHART, LEAST, Refused, merged, named, render

# The oldest that Chart.yaml allows, and the newest that the schemas know.
VERSIONS = ("1.30", "1.37")
# Kinds of other projects, which the schemas of Kubernetes do not have.
FOREIGN = ("cert-manager.io/", "monitoring.coreos.com/")


class Chart(unittest.TestCase):
    def test_c_192_lint_finds_nothing(self):
        found = helm.lint(str(CHART), values=LEAST)
        messages = found.get("messages", found) if isinstance(found, dict) else found
        errors = [m for m in messages if "error" in str(m.get("severity", "")).lower()]
        self.assertEqual(errors, [], found)

    def test_c_192_every_object_is_valid_in_the_oldest_and_the_newest_kubernetes(self):
        # Most values change few objects: each is validated once.
        seen = set()
        for name, values in WORK.items():
            objects, _ = render(merged(LEAST, values))
            for item in objects:
                text = json.dumps(item, sort_keys=True)
                if item["apiVersion"].startswith(FOREIGN) or text in seen:
                    continue
                seen.add(text)
                for version in VERSIONS:
                    with self.subTest(name, kind=item["kind"], object=item["metadata"]["name"], version=version):
                        kubernetes_validate.validate(item, version, strict=True)

    def test_names_are_unique_and_no_longer_than_a_label(self):
        for name, values in WORK.items():
            objects, _ = render(merged(LEAST, values))
            names = [(o["kind"], o["metadata"]["name"]) for o in objects]
            with self.subTest(name):
                self.assertEqual(len(names), len(set(names)), names)
                # The name of a pod has up to 11 characters more.
                self.assertLessEqual(max(len(n) for kind, n in names if kind in ("StatefulSet", "Deployment", "Service")), 52)

    def test_what_cannot_work_is_refused_with_a_sentence(self):
        for name, (values, sentence) in REFUSED.items():
            with self.subTest(name):
                with self.assertRaises(Refused) as refused:
                    render(merged(LEAST, values))
                self.assertIn(sentence, str(refused.exception))

    def test_everything_that_is_wrong_is_said_at_once(self):
        with self.assertRaises(Refused) as refused:
            render({"image": {"tag": "latest"}})
        for word in ("image.tag", "ingress.hostname", "ingress.tls"):
            self.assertIn(word, str(refused.exception))

    def test_configurations_are_toml_with_the_settings_of_the_values(self):
        objects, _ = render(merged(LEAST, WORK["settings"]))
        read = {role: tomllib.loads(named(objects, "ConfigMap", f"mail-{role}")["data"][f"{role}.toml"])
                for role in ("queue", "ingress", "outbound", "control", "operator")}
        self.assertEqual(read["queue"]["queue"]["retry"], {"copies_max": 2})
        self.assertEqual(read["ingress"]["ingress"]["recipients_max"], 5000)
        self.assertEqual(read["outbound"]["guard"]["allow"], ["10.0.0.0/8"])
        self.assertEqual(read["control"]["control"]["history_messages_max"], 1_000_000_000)
        clusters = [config["cluster"] for config in read.values()]
        self.assertTrue(all(cluster == clusters[0] for cluster in clusters), clusters)
        self.assertEqual([node["node"] for node in clusters[0]["queue"]], [10, 11, 12])

    def test_the_id_of_a_cluster_is_the_same_in_every_render_and_of_no_other_release(self):
        def cluster_id(**names):
            objects, _ = render(LEAST, **names)
            return tomllib.loads(named(objects, "ConfigMap", f"{names.get('name', 'mail')}-queue")["data"]["queue.toml"])["cluster"]["id"]

        self.assertEqual(cluster_id(), cluster_id(upgrade=True, revision=7))
        ids = {cluster_id(), cluster_id(name="post"), cluster_id(namespace="other")}
        self.assertEqual(len(ids), 3)
        self.assertTrue(all(0 < value < 2**63 for value in ids), ids)

    def test_c_192_an_upgrade_keeps_identities_and_volumes(self):
        changed = merged(LEAST, {
            "image": {"tag": "9.9.9"},
            "queue": {"settings": {"queue": {"message_age_max": "3d"}}, "resources": {"requests": {"cpu": 2}}},
            "outbound": {"replicas": 5},
            "monitoring": {"podMonitor": {"enabled": True}},
        })
        before, _ = render(LEAST)
        after, _ = render(changed, upgrade=True, revision=2)
        # What Kubernetes refuses to change, and what the pods' volumes are found by.
        fixed = ("serviceName", "selector", "podManagementPolicy", "volumeClaimTemplates", "persistentVolumeClaimRetentionPolicy")
        for name in ("mail-queue", "mail-outbound", "mail-control"):
            old, new = named(before, "StatefulSet", name), named(after, "StatefulSet", name)
            for field in fixed:
                with self.subTest(name, field=field):
                    self.assertEqual(old["spec"].get(field), new["spec"].get(field))
        self.assertEqual(named(before, "Deployment", "mail-ingress")["spec"]["selector"],
                         named(after, "Deployment", "mail-ingress")["spec"]["selector"])
        queue = named(after, "StatefulSet", "mail-queue")["spec"]
        self.assertEqual(queue["persistentVolumeClaimRetentionPolicy"], {"whenDeleted": "Retain", "whenScaled": "Retain"})

    def test_pods_restart_when_their_configuration_changes_and_only_then(self):
        def annotations(values, **more):
            objects, _ = render(values, **more)
            sets = [("StatefulSet", "mail-queue"), ("StatefulSet", "mail-outbound"), ("StatefulSet", "mail-control"), ("Deployment", "mail-ingress")]
            return {name: named(objects, kind, name)["spec"]["template"]["metadata"] for kind, name in sets}

        before = annotations(LEAST)
        self.assertEqual(before, annotations(LEAST, upgrade=True, revision=3))
        after = annotations(merged(LEAST, {"queue": {"settings": {"queue": {"message_age_max": "3d"}}}}), upgrade=True)
        self.assertEqual([name for name in before if before[name] != after[name]], ["mail-queue"])

    def test_the_setup_job_runs_again_after_each_upgrade_and_is_another_one_when_it_changes(self):
        def job(values=None, revision=1):
            objects, notes = render(merged(LEAST, values or {}), upgrade=revision > 1, revision=revision)
            [name] = [o["metadata"]["name"] for o in objects if o["kind"] == "Job" and "-setup-" in o["metadata"]["name"]]
            return name, named(objects, "Job", name)["spec"], notes

        policy = WORK["a policy"]
        first, spec, _ = job()
        self.assertRegex(first, "^mail-setup-1-[0-9a-f]{8}$")
        self.assertRegex(job(revision=2)[0], "^mail-setup-2-[0-9a-f]{8}$")
        # A renderer that knows no revisions cannot change a Job: what it does is in its name.
        self.assertEqual((first, spec), job()[:2])
        others = [job(values)[0] for values in (
            policy, merged(policy, {"policy": {"inline": {"tenants": []}}}), merged(policy, {"policy": {"secrets": ["logins"]}}),
            {"image": {"tag": "9.9.9"}}, {"cluster": {"id": "7"}}, {"operator": {"resources": {"limits": {"memory": "1Gi"}}}},
        )]
        self.assertEqual(len({first, *others}), 7, others)
        self.assertIn(others[0], job(policy)[2])
        # A policy that removes is applied after every upgrade.
        applied = [c["args"] for c in job(policy)[1]["template"]["spec"]["initContainers"] if c["args"][0] == "apply"]
        self.assertEqual(applied, [["apply", "--file", "/policy/policy.yaml", "--ignore-missing"]] * 4)

    def test_helm_test_without_a_recipient_waits_for_the_cluster(self):
        for values in ({}, WORK["port 25 alone"], WORK["cert-manager between nodes"]):
            objects, _ = render(merged(LEAST, values))
            test = named(objects, "Pod", "mail-test")
            self.assertEqual(test["metadata"]["annotations"]["helm.sh/hook"], "test")
            [container] = test["spec"]["containers"]
            self.assertEqual(container["args"], ["cluster", "formed", "--kubernetes-configmap", "mail-formed"])
        objects, _ = render(merged(LEAST, WORK["a test"]))
        self.assertEqual(named(objects, "Pod", "mail-test")["spec"]["containers"][0]["args"][0], "send")

    def test_the_authority_of_cert_manager_keeps_its_key(self):
        objects, _ = render(merged(LEAST, WORK["cert-manager between nodes"]))
        keys = {o["metadata"]["name"]: o["spec"]["privateKey"]["rotationPolicy"] for o in objects if o["kind"] == "Certificate"}
        self.assertEqual([name for name, policy in keys.items() if policy == "Never"], ["mail-authority"])
        self.assertEqual(set(keys.values()), {"Never", "Always"})

    def test_notes_name_the_next_three_commands(self):
        for name, values in WORK.items():
            _, notes = render(merged(LEAST, values))
            with self.subTest(name):
                self.assertTrue(all(f"\n{number}. " in notes for number in (1, 2, 3)), notes)
        _, notes = render(merged(LEAST, WORK["addresses of machines"]))
        self.assertIn("nodes: [22]", notes)

    def test_scrapes_set_the_labels_that_dashboards_and_rules_need(self):
        for case, kind, endpoints in (("monitoring by pods", "PodMonitor", "podMetricsEndpoints"),
                                      ("monitoring by a Service", "ServiceMonitor", "endpoints")):
            objects, _ = render(merged(LEAST, WORK[case]))
            monitor = named(objects, kind, "mail")["spec"]
            self.assertEqual(monitor["jobLabel"], "app.kubernetes.io/name")
            [endpoint] = monitor[endpoints]
            self.assertEqual([r["targetLabel"] for r in endpoint["relabelings"]], ["cluster", "namespace", "node"])

    def test_dashboards_and_rules_arrive_as_they_are_in_the_chart(self):
        objects, _ = render(merged(LEAST, WORK["monitoring by pods"]))
        for file in sorted(CHART.glob("dashboards/*.json")):
            data = named(objects, "ConfigMap", f"mail-dashboard-{file.stem}")["data"]
            self.assertEqual(json.loads(data[file.name]), json.loads(file.read_text()), file.name)
        for file in sorted(CHART.glob("rules/*.yaml")):
            self.assertEqual(named(objects, "PrometheusRule", f"mail-{file.stem}")["spec"], yaml.safe_load(file.read_text()))

    def test_every_value_is_in_the_schema_and_the_readme(self):
        page = CHART / "README.md"
        text = page.read_text()
        table = values_table()
        start, end = text.index("| value |"), text.index("\n\n", text.index("| value |"))
        if os.environ.get("POSTROAD_WRITE_DOCS") == "1":
            page.write_text(text[:start] + table + text[end:])
            return
        self.assertEqual(text[start:end], table, "write it with POSTROAD_WRITE_DOCS=1 tests/helm/run chart")


def values_table():
    """The table of values: each with its default and the comment above it, which begins with `-- `."""
    rows, path, comment = [], [], None
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    for line in (CHART / "values.yaml").read_text().splitlines():
        text = line.strip()
        indent = (len(line) - len(line.lstrip())) // 2
        if text.startswith("# -- "):
            comment = [text[5:]]
        elif text.startswith("# ") and comment is not None:
            comment.append(text[2:])
        elif found := re.match(r"([A-Za-z]+):", text):
            path = path[:indent] + [found.group(1)]
            value = defaults
            for key in path:
                value = value[key] if isinstance(value, dict) else None
            if comment is not None:
                shown = yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("\n...").strip()
                rows.append(f"| `{'.'.join(path)}` | `{shown}` | {' '.join(comment)} |")
            elif value is not None and not isinstance(value, dict):
                self_explained = [shown for shown in rows if any(f"`{'.'.join(path[:n])}`" in shown for n in range(1, len(path)))]
                assert self_explained, f"{'.'.join(path)} has no comment"
            comment = None
    return "\n".join(["| value | default | |", "|---|---|---|", *rows])


if __name__ == "__main__":
    unittest.main()
