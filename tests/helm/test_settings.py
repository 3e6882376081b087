"""The settings in the values: the schema of the chart has those of the binary, and every rendered file is one that a role reads."""

import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

from cases import WORK
from chart import CHART, LEAST, merged, named, render

BINARY = os.environ["POSTROAD_BINARY"]
ROLES = ("queue", "ingress", "outbound", "control")
SCHEMA = CHART / "values.schema.json"
# What the chart decides: templates/validate.yaml refuses these with a sentence of its own.
OWN = {
    "queue": ("node", "cluster", "metrics", ("queue", "listen")),
    "ingress": ("node", "cluster", "metrics", "tls", ("ingress", "hostname"), ("ingress", "listeners"), ("ingress", "grpc_listen")),
    "outbound": ("node", "cluster", "metrics"),
    "control": ("node", "cluster", "metrics", "http"),
}


def without_required(schema):
    """A schema in which nothing must be given, since the chart gives it."""
    if isinstance(schema, dict):
        dropped = ("required", "examples", "default") if "type" in schema else ()
        return {key: without_required(value) for key, value in schema.items() if key not in dropped}
    return schema


def sections(role):
    """The schema of the sections that values may set for a role."""
    printed = subprocess.run([BINARY, "config", "schema", role], check=True, capture_output=True, text=True).stdout
    found = without_required(json.loads(printed)["properties"])
    for key in OWN[role]:
        if isinstance(key, str):
            found[key] = {}
        else:
            found[key[0]]["properties"][key[1]] = {}
    return found


class Settings(unittest.TestCase):
    maxDiff = 2000

    def test_the_schema_of_the_values_has_the_settings_of_the_binary(self):
        schema = json.loads(SCHEMA.read_text())
        for role in ROLES:
            schema["properties"][role]["properties"]["settings"] = {"type": "object", "properties": sections(role)}
        schema["properties"]["telemetry"] = sections("queue")["telemetry"]
        text = json.dumps(schema, indent=1) + "\n"
        if os.environ.get("POSTROAD_WRITE_DOCS") == "1":
            SCHEMA.write_text(text)
        self.assertEqual(SCHEMA.read_text(), text, "write it with POSTROAD_WRITE_DOCS=1 tests/helm/run cluster")

    def test_every_rendered_configuration_is_one_that_its_role_reads(self):
        seen = set()
        for name, values in WORK.items():
            objects, _ = render(merged(LEAST, values))
            release = values.get("fullnameOverride", "mail")[:40].rstrip("-")
            for role in ROLES:
                text = named(objects, "ConfigMap", f"{release}-{role}")["data"][f"{role}.toml"]
                if text in seen:
                    continue
                seen.add(text)
                with self.subTest(name, role=role), tempfile.TemporaryDirectory() as directory:
                    file = Path(directory) / f"{role}.toml"
                    file.write_text(text)
                    number = {"queue": "10", "ingress": "40", "outbound": "20", "control": "30"}[role]
                    done = subprocess.run([BINARY, "config", "print", role, "--config", file],
                                          env={"POSTROAD__NODE__ID": number}, capture_output=True, text=True)
                    self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    unittest.main()
