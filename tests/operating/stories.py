"""What happens before each runbook, and what is true after it; the names are those of the marks in the pages."""

import json

from hosts import HOSTS


class Story:
    """A fault, the runbook, and what is seen then."""

    #: The size of disks at directories of hosts, where they are not those of the machine.
    disks = {}

    def before(self, hosts):
        """The fault that the runbook is for."""

    def after(self, hosts):
        """Checks what is not seen in the mail."""


class LostDisk(Story):
    def before(self, hosts):
        hosts.on("q3", "kill -KILL $(cat $SHIM/queue.pid); rm -r /var/lib/postroad/queue")
        hosts.until_logged("q3", "is not formatted")


class Authority(Story):
    def after(self, hosts):
        listed = json.loads(hosts.run("postroad certificate list --config cluster/operator.toml -o json"))["certificates"]
        nodes = [found for found in listed if found["of"] != "authority"]
        assert len(nodes) == len(HOSTS), nodes
        # Each has a certificate of the one authority that there is, and trusts no other.
        [authority] = {found["signed_by"] for found in nodes}
        assert all(found["trusts"] == [authority] for found in nodes), nodes


class FullDisk(Story):
    """A file that is not Postroad's fills the disk."""

    def fill(self, hosts, host, directory):
        hosts.on(host, f"dd if=/dev/zero of={directory}/backup.tar bs=64k || true")


class FullLog(FullDisk):
    disks = {("q1", "/var/lib/postroad"): "100m", ("q2", "/var/lib/postroad"): "100m"}

    def before(self, hosts):
        for (host, directory) in self.disks:
            self.fill(hosts, host, directory)
        for (host, _) in self.disks:
            hosts.until_metric(host, "postroad_queue_disk_full 1")


class FullOthers(FullDisk):
    disks = {
        ("ctl1", "/var/lib/postroad"): "40m",
        ("out1", "/var/lib/postroad"): "10m",
        ("in1", "/var/log/postroad"): "10m",
    }

    def before(self, hosts):
        for (host, directory) in self.disks:
            self.fill(hosts, host, directory)


class ControlLost(Story):
    def before(self, hosts):
        hosts.on("ctl1", "rm /var/lib/postroad/control/control.sqlite; kill -KILL $(cat $SHIM/control.pid)")


STORIES = {
    "restart": Story(),
    "lost-disk": LostDisk(),
    "authority": Authority(),
    "maintenance": Story(),
    "full-log": FullLog(),
    "full-others": FullOthers(),
    "control-lost": ControlLost(),
}
