"""Commands as an ordinary user."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def ordinary_user():
    """Give what makes a command that of an ordinary user; daemons and jobs must not be root's.

    Where Python or the checkout lie in a folder that others may not enter, the capability to read is left to
    the user; it does not let him write, nor send signals to what is not his.
    """
    if os.geteuid() != 0:
        return []
    words = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    # by way of a shell, as jobs do: setpriv itself can still start a Python that the user may not read
    trial = [*words, "sh", "-c", 'exec "$0" -c "import hepdask"', sys.executable]
    if subprocess.run(trial, cwd=ROOT, capture_output=True).returncode:
        words += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return words
