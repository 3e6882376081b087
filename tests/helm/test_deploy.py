"""deploy/: the compose file runs what its setup creates, the units are valid, and Prometheus and Grafana find their files. And the
chart's page: how the authority in a Secret is replaced."""

import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from chart import ROOT
from page import Page

DEPLOY = ROOT / "deploy"
# Takes the place of docker: runs the binary, with the paths of the volumes in the arguments.
ENGINE = """#!/bin/sh
set -eu
# Which run fails.
echo run >> "$VOLUMES/runs"
[ "$(wc -l < "$VOLUMES/runs")" != "${FAILS_AT:-0}" ] || exit 125
volumes=
while [ $# -gt 0 ]; do
    case $1 in
    run | --rm) shift ;;
    --user) shift 2 ;;
    --volume) volumes="$volumes $2" && shift 2 ;;
    *) break ;;
    esac
done
for volume in $volumes; do
    case $volume in *:/var/lib/postroad) export POSTROAD__NODE__DATA="$VOLUMES/volumes/${volume%%:*}" ;; esac
done
shift # the image
set -- "$BINARY" "$@"
for argument in "$@"; do
    for volume in $volumes; do
        from=${volume%%:*} to=${volume#*:} to=${to%%:*}
        case $from in /*) ;; *) from=$VOLUMES/$from ;; esac
        case $argument in "$to" | "$to"/*) case $argument in /var/lib/*) ;; *) argument=$from${argument#"$to"} ;; esac ;; esac
    done
    shift
    set -- "$@" "$argument"
done
exec "$@"
"""


# Takes the place of kubectl: a Secret is a directory.
KUBECTL = """#!/bin/sh
set -eu
case "$*" in
*" get secret "*authority.pem*) cat secret/authority.pem ;;
*" get secret "*authority.key*) cat secret/authority.key ;;
*" create secret "*) for flag; do case $flag in --from-file=*) cp "${flag#*=}" secret/ ;; esac; done ;;
"replace -f -") cat ;;
*) echo "unknown: $*" >&2; exit 1 ;;
esac
"""


class Compose(unittest.TestCase):
    def setUp(self):
        self.home = Path(tempfile.mkdtemp(prefix="postroad-compose-"))
        self.addCleanup(shutil.rmtree, self.home)
        shutil.copytree(DEPLOY / "compose", self.home / "compose", ignore=shutil.ignore_patterns("nodes", "created", "unfinished"))
        self.services = yaml.safe_load((self.home / "compose/compose.yaml").read_text())["services"]
        engine = self.home / "engine"
        engine.write_text(ENGINE)
        engine.chmod(0o755)
        self.environment = {"PATH": os.environ["PATH"], "BINARY": os.environ["POSTROAD_BINARY"], "VOLUMES": str(self.home),
                            "POSTROAD_ENGINE": str(engine)}

    def setup(self, fails_at=0):
        """Runs the setup; `fails_at` is which of its containers does not start."""
        (self.home / "runs").unlink(missing_ok=True)
        environment = self.environment | {"FAILS_AT": str(fails_at)}
        return subprocess.run([self.home / "compose/setup"], env=environment, capture_output=True, text=True)

    def test_setup_is_repeated_after_a_failure(self):
        # Seven containers write the files, and three format volumes; what is formatted needs no files again.
        for fails_at in (*range(1, 9), 2, 3):
            with self.subTest(fails_at=fails_at):
                self.assertNotEqual(self.setup(fails_at).returncode, 0)
                self.assertFalse((self.home / "compose/nodes").exists())
        self.assertEqual(len(list((self.home / "volumes").iterdir())), 2)
        done = self.setup()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(list((self.home / "volumes").iterdir())), 3)
        self.assertEqual((self.home / "compose/nodes/authority.key").stat().st_mode & 0o777, 0o600)
        self.assertEqual({path.name for path in (self.home / "compose").iterdir()}, {"compose.yaml", "nodes", "policy", "setup"})

    def test_setup_creates_what_the_services_run_and_only_once(self):
        done = self.setup()
        self.assertEqual(done.returncode, 0, done.stderr)
        for name, service in self.services.items():
            if name in ("prometheus", "grafana", "operator"):
                continue
            role = service["command"][0]
            files = self.home / "compose" / service["volumes"][0].split(":")[0]
            environment = {"PATH": os.environ["PATH"], **service["environment"], "POSTROAD__NODE__DATA": str(self.home / "data")}
            if role == "ingress":
                del environment["POSTROAD__NODE__DATA"]
            checked = subprocess.run([os.environ["POSTROAD_BINARY"], "config", "check", role, "--config", files / f"{role}.toml"],
                                     env=environment, capture_output=True, text=True)
            self.assertEqual(checked.returncode, 0, f"{name}: {checked.stderr}")
        formed = sorted(path.name for path in (self.home / "volumes").iterdir())
        self.assertEqual(formed, ["postroad_queue-1", "postroad_queue-2", "postroad_queue-3"])
        self.assertFalse((self.home / "compose/nodes/operator/authority.key").exists())
        self.assertEqual((self.home / "compose/nodes").stat().st_mode & 0o777, 0o700)
        self.assertIn("exists", self.setup().stderr)

    def test_containers_are_confined(self):
        for name, service in self.services.items():
            if name in ("prometheus", "grafana"):
                continue
            with self.subTest(name):
                self.assertTrue(service["read_only"])
                self.assertEqual(service["user"], "65532:65532")
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertEqual(service["security_opt"], ["no-new-privileges:true"])
        published = [port for service in self.services.values() for port in service.get("ports", [])]
        self.assertTrue(all(port.startswith("127.0.0.1:") for port in published), published)

    def test_images_have_versions_and_volumes_are_declared(self):
        whole = yaml.safe_load((self.home / "compose/compose.yaml").read_text())
        for name, service in self.services.items():
            self.assertRegex(service["image"], r":(v?[0-9]|\$\{)|:-postroad:[0-9]", name)
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                self.assertTrue(source.startswith(".") or source in whole["volumes"], volume)


class Authority(unittest.TestCase):
    def setUp(self):
        self.home = Path(tempfile.mkdtemp(prefix="postroad-authority-"))
        self.addCleanup(shutil.rmtree, self.home)
        (self.home / "bin").mkdir()
        (self.home / "bin/postroad").symlink_to(os.environ["POSTROAD_BINARY"])
        (self.home / "bin/kubectl").write_text(KUBECTL)
        (self.home / "bin/kubectl").chmod(0o755)
        self.run_command("postroad cluster init --dir ours --queue 10=q0:7400")
        (self.home / "secret").mkdir()
        for name in ("authority.pem", "authority.key"):
            shutil.copy(self.home / "ours" / name, self.home / "secret")

    def run_command(self, command):
        environment = {"PATH": f"{self.home}/bin:{os.environ['PATH']}"}
        done = subprocess.run(["sh", "-euc", command], cwd=self.home, env=environment, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, f"{command}: {done.stderr}")

    def pod(self, name):
        """What a pod has that starts now: its certificate, and the authorities that it trusts."""
        self.run_command(f"postroad cluster certificate queue --node 10 --authority secret --out {name}")
        [certificate], trusted = ([*x509.load_pem_x509_certificates((self.home / name / file).read_bytes())]
                                  for file in ("node.pem", "authority.pem"))
        return certificate, trusted

    def admits(self, pod, other):
        def signed(authority):
            try:
                other[0].verify_directly_issued_by(authority)
            except (InvalidSignature, ValueError):
                return False
            return True

        return any(map(signed, pod[1]))

    def test_pods_of_every_step_of_the_page_admit_those_of_the_step_before(self):
        commands = Page().commands
        begin, rotate = (next(n for n, line in enumerate(commands) if words in line) for words in ("mkdir authority", "certificate rotate"))
        identity = re.search(r"(?m)^id = (\d+)", (self.home / "ours/cluster.toml").read_text()).group(1)
        for command in commands[begin:rotate]:
            self.run_command(command.replace("= ID", f"= {identity}"))
        pods = [self.pod("before")]
        for step in (1, 2, 3):
            for command in commands[rotate : rotate + 2]:
                self.run_command(command)
            pods.append(self.pod(f"step-{step}"))
            for old, new in ((pods[-2], pods[-1]), (pods[-1], pods[-2]), (pods[-1], pods[-1])):
                self.assertTrue(self.admits(old, new), step)
        self.assertFalse(self.admits(pods[-1], pods[0]), "the old authority is trusted no longer")


class Monitoring(unittest.TestCase):
    def test_prometheus_reads_every_node_of_the_compose_file(self):
        prometheus = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
        [job] = prometheus["scrape_configs"]
        targets = {target.split(":")[0] for group in job["static_configs"] for target in group["targets"]}
        services = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())["services"]
        nodes = {name for name, service in services.items() if "POSTROAD__METRICS__LISTEN" in service.get("environment", {})}
        self.assertEqual(targets, nodes)
        self.assertEqual(set(job["static_configs"][0]["labels"]), {"cluster", "namespace"})

    def test_promtool_accepts_the_configuration(self):
        if shutil.which("promtool") is None:
            self.skipTest("promtool is not installed")
        done = subprocess.run(["promtool", "check", "config", "--syntax-only", DEPLOY / "prometheus/prometheus.yml"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


class Units(unittest.TestCase):
    def setUp(self):
        if shutil.which("systemd-analyze") is None:
            self.skipTest("systemd-analyze is not installed")

    def test_the_unit_is_valid(self):
        with tempfile.TemporaryDirectory() as directory:
            # The binary is where it is installed, and not here.
            text = (DEPLOY / "systemd/postroad@.service").read_text().replace("/usr/local/bin/postroad", "/bin/true")
            for role in ("queue", "ingress", "outbound", "control"):
                unit = Path(directory) / f"postroad@{role}.service"
                unit.write_text(text)
                done = subprocess.run(["systemd-analyze", "verify", "--recursive-errors=no", unit], capture_output=True, text=True)
                self.assertEqual((done.returncode, done.stderr), (0, ""), role)

    def test_the_unit_is_confined(self):
        done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", DEPLOY / "systemd/postroad@.service"],
                              capture_output=True, text=True)
        exposure = float(re.search(r"Overall exposure level .*: ([0-9.]+)", done.stdout).group(1))
        self.assertLessEqual(exposure, 2.0, done.stdout)

    def test_the_user_and_the_directories_are_those_of_the_unit(self):
        unit = (DEPLOY / "systemd/postroad@.service").read_text()
        self.assertRegex((DEPLOY / "systemd/postroad.sysusers.conf").read_text(), rf"(?m)^u {re.search('User=(.*)', unit).group(1)} ")
        lines = (DEPLOY / "systemd/postroad.tmpfiles.conf").read_text()
        for setting, parent in (("StateDirectory", "/var/lib"), ("LogsDirectory", "/var/log")):
            name = re.search(rf"(?m)^{setting}=(.*)", unit).group(1)
            mode = re.search(rf"(?m)^{setting}Mode=(.*)", unit).group(1)
            self.assertIn(f"d {parent}/{name} {mode} postroad postroad -", lines)


if __name__ == "__main__":
    unittest.main()
