"""Renders the chart with Helm's engine."""

import copy
import functools
import json
from pathlib import Path

import helm_python as helm
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "postroad"

# The least that must be given.
LEAST = {"ingress": {"hostname": "mail.example.org", "tls": {"selfSigned": True}}}


class Refused(Exception):
    """The schema or the templates refuse the values."""


def merged(base, over):
    """Values over others, as Helm merges files of values."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def render(values, name="mail", namespace="post", upgrade=False, revision=1):
    """Returns the rendered objects and the notes."""
    return copy.deepcopy(_render(json.dumps(values), name, namespace, upgrade, revision))


@functools.cache
def _render(values, name, namespace, upgrade, revision):
    values = json.loads(values)
    with helm.Chart.load(str(CHART)) as chart:
        try:
            chart.validate_schema(values)
            files = chart.render(
                values,
                name=name,
                namespace=namespace,
                is_install=not upgrade,
                is_upgrade=upgrade,
                revision=revision,
            )
        except helm.HelmError as error:
            raise Refused(str(error)) from error
    notes = "".join(text for path, text in files.items() if path.endswith("NOTES.txt"))
    objects = []
    for path, text in sorted(files.items()):
        if not path.endswith("NOTES.txt"):
            objects += [document for document in yaml.safe_load_all(text) if document]
    return objects, notes


def named(objects, kind, name):
    """The object of this kind and name."""
    found = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    if len(found) != 1:
        raise KeyError(f"{len(found)} objects are {kind} {name}")
    return found[0]


def pod_templates(objects):
    """Every pod that the objects make: (kind, name, specification, labels)."""
    for item in objects:
        kind, metadata = item["kind"], item["metadata"]
        if kind == "Pod":
            yield kind, metadata["name"], item["spec"], metadata["labels"]
        elif kind in ("Deployment", "StatefulSet", "Job"):
            template = item["spec"]["template"]
            yield kind, metadata["name"], template["spec"], template["metadata"]["labels"]


def containers(pod):
    """All containers of a pod, those that run first among them."""
    return pod.get("initContainers", []) + pod["containers"]
