"""Every command of `postroad` that a page below docs/operating names exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

failed = 0
for page in sorted(Path("../../docs/operating").glob("*.md")):
    # In code only, after a backtick, a pipe or the beginning of a line; words up to the first flag, file or placeholder.
    commands = re.findall(r"(?:^|`|[|] )postroad ((?:[a-z]+ ?)+)", page.read_text(), re.MULTILINE)
    for command in sorted(set(commands)):
        words = command.removeprefix("help").split()
        ended = subprocess.run([os.environ["BINARY"], *words, "--help"], capture_output=True, text=True)
        print(f"{'FAILED' if ended.returncode else 'ok'} {page.name}: postroad {' '.join(words)}", ended.stderr)
        failed += ended.returncode != 0
sys.exit(failed > 0)
