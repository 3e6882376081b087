"""Starts one container, as the first process of its own mount, process and host name namespaces: see kubelet.py.

argv[1] is a JSON file: root, hostname, mounts [[source, target, read_only]], user, group, groups, env, argv.
"""

import ctypes
import json
import os
import sys

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE = 24, 38, 4
CAPABILITIES = 41


def main():
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function, *arguments):
        if function(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"{function.__name__}{arguments}")

    def mount(source, target, kind, flags):
        call(libc.mount, source.encode(), target.encode(), kind.encode(), flags, None)

    root = spec["root"]
    os.sethostname(spec["hostname"]) if hasattr(os, "sethostname") else call(
        libc.sethostname, spec["hostname"].encode(), len(spec["hostname"])
    )
    mount("none", "/", "none", MS_REC | MS_PRIVATE)
    mount(root, root, "none", MS_BIND)
    for source, target, read_only in spec["mounts"]:
        target = root + target
        mount(source, target, "none", MS_BIND)
        if read_only:
            mount("none", target, "none", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    mount("proc", root + "/proc", "proc", MS_NOSUID | MS_NODEV)
    # readOnlyRootFilesystem.
    mount("none", root, "none", MS_BIND | MS_REMOUNT | MS_RDONLY)
    os.chroot(root)
    os.chdir("/")
    # capabilities: {drop: [ALL]}, allowPrivilegeEscalation: false.
    for capability in range(CAPABILITIES):
        call(libc.prctl, PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups(spec["groups"])
    os.setresgid(*[spec["group"]] * 3)
    os.setresuid(*[spec["user"]] * 3)
    call(libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.execve(spec["argv"][0], spec["argv"], spec["env"])


main()
