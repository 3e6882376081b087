"""Reads a runbook and carries it out: its `console` blocks, in which a command waits by itself where it must."""

import re
import time

from hosts import PROJECT
from stories import STORIES

PAGES = PROJECT / "docs/operating"
MARK = re.compile(r"<!-- runbook: ([a-z0-9-]+) -->")


class Step:
    def __init__(self, page, line, command):
        self.page, self.line, self.command, self.expected = page, line, command, []

    def carry_out(self, hosts):
        """Runs the command and compares what it prints; returns the seconds that it took."""
        start = time.monotonic()
        done = hosts.shell(self.command)
        took = time.monotonic() - start
        where = f"{self.page}:{self.line}: $ {self.command}"
        # What a loop prints to standard error while it waits depends on the machine.
        assert fits(self.expected, done.stdout.rstrip().splitlines()), (
            f"{where}\n== the page shows\n" + "\n".join(self.expected) + f"\n== it printed\n{done.stdout}{done.stderr}"
        )
        return took


def fits(expected, printed):
    """Whether lines are those of the page, where `…` is any text in a line, or any lines."""
    if not expected:
        return not printed
    if expected[0] == "…":
        return any(fits(expected[1:], printed[skipped:]) for skipped in range(len(printed) + 1))
    parts = map(re.escape, expected[0].rstrip().split("…"))
    return bool(printed) and bool(re.fullmatch(".*".join(parts), printed[0].rstrip())) and fits(expected[1:], printed[1:])


def parts(page):
    """Yields the name of every runbook of a page with its steps; one begins at its mark."""
    steps, block, name = [], False, None
    for line, text in enumerate((PAGES / page).read_text().splitlines(), 1):
        if mark := MARK.fullmatch(text):
            if name:
                yield name, steps
            name, steps = mark[1], []
        elif text.startswith("```"):
            block = text == "```console" and not block
        elif block and text.startswith("$ "):
            steps.append(Step(page, line, text[2:]))
        elif block and text.startswith("> ") and not steps[-1].expected:
            steps[-1].command += "\n" + text[2:]
        elif block and steps[-1].command.endswith("\\"):
            steps[-1].command += "\n" + text
        elif block:
            steps[-1].expected.append(text)
    if name:
        yield name, steps


def all_of_them():
    """The steps of every runbook of docs/operating."""
    pages = [path.name for path in sorted(PAGES.glob("*.md")) if MARK.search(path.read_text())]
    found = {name: steps for page in pages for name, steps in parts(page)}
    assert found.keys() == STORIES.keys(), f"the pages have {sorted(found)}, and stories are of {sorted(STORIES)}"
    return found


if __name__ == "__main__":
    print(*all_of_them())
