"""Eight hosts with systemd, which are namespaces of this machine, and the machine of the operator.

Everything is in the namespaces of the test, and ends with its first process.
"""

import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

BINARY = os.environ["BINARY"]
PROJECT = Path(__file__).resolve().parents[2]
GATEWAY = "10.77.0.254"
#: A public address, since outbound refuses to send to others. It exists in these namespaces only.
RECEIVER = "11.22.33.44"
#: Name, role, node id; the id is also the end of the address.
HOSTS = [
    ("q1", "queue", 1), ("q2", "queue", 2), ("q3", "queue", 3),
    ("in1", "ingress", 11), ("in2", "ingress", 12),
    ("out1", "outbound", 21), ("out2", "outbound", 22),
    ("ctl1", "control", 31),
]  # fmt: skip
#: Besides what `cluster join` writes; a line goes below the first line that it follows here, or at the end.
#: Small segments are for small disks, and these elections for a slow machine.
SETTINGS = {
    "queue": [("[queue]", 'segment_bytes = "4MiB"\nspare_segments_max = 0'), (None, """
[queue.election]
heartbeat_interval = "500ms"
timeout_min = "3s"
timeout_max = "6s"
[queue.lease]
lease_duration = "20s"
""")],
}  # fmt: skip
TELEMETRY = '\n[telemetry]\nmail_log = "/var/log/postroad/mail.log"\nlog_filter = "info,openraft=warn,mail=off"\n'
POLICY = """
sources: [{name: one, helo: out1.example}, {name: two, helo: out2.example}]
pools: [{name: default, sources: [{source: one}, {source: two}]}]
tenants: [{name: acme, pool: default}]
credentials: [{name: app, tenant: acme, networks: [10.77.0.0/24]}]
routes: [{domain: "*", host: 11.22.33.44, port: 25}]
"""


def sh(command, **more):
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def wait_for(what, condition, limit=300):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.3)
    raise AssertionError(f"not within {limit} s: {what}")


class Hosts:
    """The cluster of deploy/README.md: how it is installed is tested by tests/deploy."""

    def __init__(self, work, disks):
        """`disks` has the size of the disk at a directory of a host: `{("q2", "/var/lib/postroad"): "100m"}`."""
        self.work, self.disks = Path(work), disks
        self.operator = self.work / "operator"
        self.operator.mkdir()
        names = "".join(f"10.77.0.{number} {name} {name}.example\n" for name, _, number in HOSTS)
        (self.work / "names").write_text("127.0.0.1 localhost\n" + names)
        self.make_network()
        self.make_etc()
        path = self.work / "path"
        path.mkdir()
        for tool in ("ssh", "scp"):
            shutil.copy(PROJECT / "tests/operating" / tool, path)
        (path / "postroad").symlink_to(BINARY)
        self.environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}", "HOSTS": str(self.work)}
        queues = " ".join(f"--queue {number}={name}.example:7000" for name, role, number in HOSTS if role == "queue")
        self.run(f"postroad cluster init --dir cluster {queues}")
        for host in HOSTS:
            self.make_host(*host)

    def make_network(self):
        sh("mount --make-rprivate /")
        sh(f"mount --bind {self.work}/names /etc/hosts")
        sh("ip link set lo up")
        sh("ip link add br0 type bridge")
        sh(f"ip addr add {GATEWAY}/24 dev br0")
        sh("ip link set br0 up")
        sh(f"ip addr add {RECEIVER}/32 dev lo")

    def make_etc(self):
        etc = self.work / "etc"
        etc.mkdir()
        for name in ("passwd", "group", "shadow", "nsswitch.conf", "ld.so.cache", "login.defs", "pam.d", "security"):
            if Path("/etc", name).exists():
                sh(f"cp -a /etc/{name} {etc}")
        shutil.copy(self.work / "names", etc / "hosts")
        (etc / "resolv.conf").write_text(f"nameserver {GATEWAY}\n")
        for file, line in (("passwd", "postroad:x:990:990::/var/lib/postroad:/usr/sbin/nologin"), ("group", "postroad:x:990:"), ("shadow", "postroad:!:20000::::::")):
            kept = [other for other in (etc / file).read_text().splitlines() if not other.startswith("postroad:")]
            (etc / file).write_text("\n".join([*kept, line, ""]))
        (etc / "postroad").mkdir()
        (etc / "systemd/system").mkdir(parents=True)
        shutil.copy(PROJECT / "deploy/systemd/postroad@.service", etc / "systemd/system")

    def make_host(self, name, role, number):
        root = self.work / name
        for directory in ("postroad", "lib/postroad", "log.d/postroad", "bin", "shim"):
            (root / directory).mkdir(parents=True)
        shutil.copy(PROJECT / "tests/deploy/systemctl", root / "shim")
        shutil.copy(PROJECT / "tests/operating/journalctl", root / "shim")
        (root / "bin/postroad").hardlink_to(BINARY)
        mounts = [("etc", "/etc"), (f"{name}/postroad", "/etc/postroad"), (f"{name}/lib", "/var/lib"),
                  (f"{name}/log.d", "/var/log"), (f"{name}/bin", "/usr/local/bin")]  # fmt: skip
        binds = "".join(f"mount --bind {self.work}/{source} {target}\n" for source, target in mounts)
        small = "".join(
            f"mount -t tmpfs -o size={size},mode=0700,uid=990,gid=990 disk {directory}\n" for (host, directory), size in self.disks.items() if host == name
        )
        script = f"set -e\nhostname {name}\n{binds}{small}touch {root}/made\nexec sleep infinity"
        process = subprocess.Popen(["unshare", "--mount", "--net", "--uts", "sh", "-c", script])
        (root / "pid").write_text(str(process.pid))
        wait_for(f"{name} is made", (root / "made").exists)
        sh(f"ip link add veth{number} type veth peer name eth0 netns {process.pid}")
        sh(f"ip link set veth{number} master br0 up")
        for command in ("link set lo up", f"addr add 10.77.0.{number}/24 dev eth0", "link set eth0 up", f"route add default via {GATEWAY}"):
            sh(f"nsenter -t {process.pid} -n ip {command}")
        data = {"ingress": f"--hostname {name}.example"}.get(role, f"--data /var/lib/postroad/{role}")
        self.run(f"postroad cluster join --dir cluster {role} --node {number} --out {name} {data}")
        config = self.operator / name / f"{role}.toml"
        text = config.read_text()
        for below, line in [*SETTINGS.get(role, []), (None, TELEMETRY)]:
            text = text.replace(f"{below}\n", f"{below}\n{line}\n") if below else text + line
        config.write_text(text)
        for file in (self.operator / name).iterdir():
            shutil.copy(file, root / "postroad")
            os.chown(root / "postroad" / file.name, 990, 990)
            os.chmod(root / "postroad" / file.name, 0o400)
        os.chown(root / "lib/postroad", 990, 990)
        self.on(name, "chown postroad:postroad /var/lib/postroad")

    def start(self):
        for name, role, _ in HOSTS:
            if role == "queue":
                self.on(name, "runuser -u postroad -- postroad cluster form --config /etc/postroad/queue.toml")
                self.on(name, "systemctl enable --now postroad@queue")
        self.wait_ready("queue")
        (self.operator / "policy.yaml").write_text(POLICY)
        self.run("postroad apply --config cluster/operator.toml -f policy.yaml")
        for name, role, _ in HOSTS:
            if role != "queue":
                self.on(name, f"systemctl enable --now postroad@{role}")
        self.wait_ready()

    def until_metric(self, name, line):
        command = f"curl --silent http://127.0.0.1:9090/metrics | grep '^{line}$'"
        wait_for(f"{name} has {line}", lambda: self.shell(f"ssh root@{name} {shlex.quote(command)}").returncode == 0)

    def until_logged(self, name, words):
        wait_for(f"{name} logs `{words}`", lambda: words in (self.work / name / "log").read_text(errors="replace"))

    def is_ready(self, name):
        return self.shell(f"ssh root@{name} curl --silent --fail http://127.0.0.1:9090/readyz").returncode == 0

    def wait_ready(self, only=None):
        for name, role, _ in HOSTS:
            if only in (None, role):
                try:
                    wait_for(f"{name} is ready", lambda: self.is_ready(name))
                except AssertionError as error:
                    raise AssertionError(f"{error}\n{self.log_tail(name)}") from None

    def log_tail(self, name):
        return "".join((self.work / name / "log").read_text(errors="replace").splitlines(True)[-20:])

    def shell(self, command):
        """Runs a command on the machine of the operator."""
        return subprocess.run(
            ["bash", "-c", command], cwd=self.operator, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip

    def run(self, command):
        done = self.shell(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def on(self, name, command):
        return self.run(f"ssh root@{name} {shlex.quote(command)}")

    def mail_log(self, role):
        """The lines of the mail logs of all hosts of a role."""
        for name, its, _ in HOSTS:
            if its == role:
                for file in sorted((self.work / name / "log.d/postroad").glob("mail.log*")):
                    for line in file.read_text(errors="replace").splitlines():
                        yield name, line
