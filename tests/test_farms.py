"""Slurm and HTCondor for real: everything in `farms/` runs against their daemons, as an ordinary user."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import require
from farms import daemons

ROOT = Path(__file__).parent.parent


def ordinary_user():
    """Give what makes a command that of an ordinary user; daemons and jobs must not be root's.

    Where Python or the checkout lie in a folder that others may not enter, the capability to read is left to
    the user; it does not let him write, nor send signals to what is not his.
    """
    if os.geteuid() != 0:
        return []
    words = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    reachable = [*words, sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import hepdask"]
    if subprocess.run(reachable, cwd="/", capture_output=True).returncode:
        words += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return words


@pytest.mark.timeout(900)
@pytest.mark.parametrize("farm", [daemons.Slurm, daemons.HTCondor], ids=lambda farm: farm.kind)
def test_farm(farm):
    for program in (*farm.programs, "setpriv", "openssl"):
        require(shutil.which(program), f"{program} is not installed")
    user = ordinary_user()
    with tempfile.TemporaryDirectory(prefix="hepdask-farm-") as home:
        if user:
            shutil.chown(home, "nobody", "nogroup")
        os.chmod(home, 0o755)
        environment = {
            **os.environ, "HOME": home, "TMPDIR": home, "HEPDASK_FARM": farm.kind,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        tests = [str(path) for path in sorted((ROOT / "tests/farms").glob("*.py")) if path.stem.startswith("on_")]
        words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "farms.fixtures", "-vx", "--durations=0", "--timeout=300"]
        done = subprocess.run(
            [*user, *words, "--basetemp", f"{home}/tmp", *tests],
            cwd=ROOT, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
