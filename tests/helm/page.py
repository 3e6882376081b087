"""The page helm/postroad/README.md: its files, and its commands."""

import re
import shlex

import yaml

from chart import CHART


class Page:
    def __init__(self):
        self.text = (CHART / "README.md").read_text()
        # Blocks inside of lists are indented.
        blocks = re.findall(r"^( *)```(\w+)\n(.*?)^ *```", self.text, re.M | re.S)
        plain = [(kind, re.sub(rf"(?m)^{indent}", "", block)) for indent, kind, block in blocks]
        self.commands = [line for kind, block in plain if kind == "sh" for line in block.splitlines()]
        self.files = [block for kind, block in plain if kind == "yaml"]

    def file(self, name):
        """The text of the block that begins with this file's name."""
        [text] = [block for block in self.files if block.startswith(f"# {name}\n")]
        return text

    def values(self):
        return yaml.safe_load(self.file("values.yaml"))

    def egress_values(self):
        """The values that the page gives for addresses of machines."""
        [text] = [block for block in self.files if "mode: hostNetwork" in block]
        return yaml.safe_load(text)

    def monitoring_values(self):
        """The values that the page gives for the Prometheus operator and Grafana."""
        [text] = [block for block in self.files if "podMonitor:" in block]
        return yaml.safe_load(text)

    def command(self, words):
        """The one command of the page with these words, as arguments."""
        [found] = [line for line in self.commands if words in line]
        return shlex.split(found)

    def install(self):
        """The commands of the part "Install", up to `helm install`."""
        end = next(number for number, line in enumerate(self.commands) if " install " in line)
        return [shlex.split(line) for line in self.commands[: end + 1]]
