"""Carries out one runbook of docs/operating, which is named as the argument, on hosts under load.

Started by tests/operating/run, as the first process of its own namespaces. Prints for every step how long it took and how
long no message was accepted, and at the end that nothing was lost, and why the receiver got more than one copy.
"""

import os
import sys
import time
from pathlib import Path

import runbook
from hosts import Hosts, wait_for
from load import RATE, Account, Load, Receiver
from stories import STORIES

#: Messages that are accepted before a runbook begins, and after it.
AROUND = 2 * RATE


def carry_out(name):
    story, steps, receiver = STORIES[name], runbook.all_of_them()[name], Receiver()
    work = Path(os.environ["WORK"]) / name
    work.mkdir()
    hosts = Hosts(work, story.disks)
    try:
        hosts.start()
        load = Load()
        more_accepted(load)
        fault = time.monotonic()
        story.before(hosts)
        print(f"    fault: no message accepted for {load.longest_gap(fault, time.monotonic()):.1f} s")
        begin = time.monotonic()
        for step in steps:
            start = time.monotonic()
            took = step.carry_out(hosts)
            gap = load.longest_gap(start, time.monotonic())
            print(f"    {took:5.1f} s, no message accepted for {gap:4.1f} s: {step.page}:{step.line}", flush=True)
        end = time.monotonic()
        hosts.wait_ready()
        story.after(hosts)
        more_accepted(load)
        load.stop()
        wait_for("everything accepted is received", lambda: all(number in receiver.receipts for number in load.accepted), 60)
        # A second copy, of an attempt whose outcome nobody knows, comes later.
        wait_for("nothing waits", lambda: hosts.run("postroad queue list --config cluster/operator.toml") == "nothing waits\n")
        report(name, hosts, load, receiver, end - begin, load.longest_gap(fault, end))
    except BaseException:
        for host in work.iterdir():
            if (host / "log").exists():
                print(f"== {host.name}\n{hosts.log_tail(host.name)}")
        raise


def more_accepted(load):
    """Waits until the load flows: so many more are accepted."""
    enough = len(load.accepted) + AROUND
    wait_for(f"{AROUND} more messages are accepted", lambda: len(load.accepted) >= enough)


def report(name, hosts, load, receiver, took, gap):
    account = Account(load, receiver, hosts)
    explained, rest = account.extra()
    copies = "; ".join(f"{count}: {why}" for why, count in explained.items()) or "none"
    print(f"    {len(load.accepted)} accepted, {len(account.lost())} lost, extra copies: {copies}")
    for why, count in load.refusals.most_common():
        print(f"    {count} attempts of the application failed: {why}")
    print(f"ok {name}: {took:.0f} s, longest time without a message accepted {gap:.1f} s", flush=True)
    assert not account.lost(), f"lost: {account.lost()[:20]}"
    assert not rest, f"copies without an explanation: {rest[:5]}"


carry_out(sys.argv[1])
