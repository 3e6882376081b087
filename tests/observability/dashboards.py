"""Reads every dashboard with the types of Grafana's own SDK: a field of a wrong type or an unknown panel fails."""

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

register_default_plugins()
failed = 0
for file in sorted(Path("../../helm/postroad/dashboards").glob("*.json")):
    written = json.loads(file.read_text())
    read = json.loads(json.dumps(Dashboard.from_json(written), cls=JSONEncoder))
    problems = [key for key in ("uid", "title", "schemaVersion", "tags") if read.get(key) != written[key]]
    for panel, of_grafana in zip(written["panels"], read["panels"], strict=True):
        for key in ("title", "type", "gridPos", "description"):
            if panel.get(key) != of_grafana.get(key):
                problems.append(f"{panel['title']}: {key} is {of_grafana.get(key)}")
        queries = [target["expr"] for target in panel.get("targets", [])]
        if queries != [target.get("expr") for target in of_grafana.get("targets") or []]:
            problems.append(f"{panel['title']}: its queries are lost")
    print(f"{'FAILED' if problems else 'ok'} {file.name} is a dashboard as Grafana's SDK reads it", *problems)
    failed += bool(problems)
sys.exit(failed > 0)
