"""The command line, in a process of its own."""

import subprocess
import sys


def hepdask(*words, cwd=None, timeout=500):
    return subprocess.run(
        [sys.executable, "-m", "hepdask", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
