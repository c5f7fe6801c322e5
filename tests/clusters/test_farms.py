"""Slurm and HTCondor for real: everything in `farms/` runs against their daemons, as an ordinary user."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from clusters.farms import daemons
from helpers.ordinary_user import ROOT, ordinary_user
from helpers.requirements import require

from hepdask.clusters import HTCondor, Slurm, load_cluster
from hepdask.errors import ConfigError

LIMIT = 3600  # seconds for the long tests on one farm, on a machine that has other things to do


@pytest.fixture(scope="module")
def home():
    """Give that user a folder, the same for both farms: compiled kernels are kept in it."""
    with tempfile.TemporaryDirectory(prefix="hepdask-farms-") as folder:
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody", "nogroup")
        os.chmod(folder, 0o755)
        yield Path(folder)


def run_on(farm, home, tests, limit):
    """Run tests of the folder `farms` on one farm, as that user, for at most so many seconds."""
    for program in (*farm.programs, "setpriv"):
        require(shutil.which(program), f"{program} is not installed")
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ, "HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": path, "HEPDASK_FARM": farm.kind
    }  # fmt: skip
    words = [
        *ordinary_user(), sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "clusters.farms.fixtures",
        "-rA", "--durations=0", "--timeout=1200", f"--basetemp={home}/{farm.kind}",
    ]  # fmt: skip
    with (home / f"{farm.kind}.log").open("w+") as log:
        inner = subprocess.Popen(
            [*words, *(f"{ROOT}/tests/clusters/farms/{test}.py" for test in tests)],
            cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = inner.wait(limit)
        finally:
            with suppress(ProcessLookupError):  # its daemons, where it did not come to stopping them
                os.killpg(inner.pid, signal.SIGTERM)
        log.seek(0)
        told = log.read()
    print(told)
    assert code == 0, told


FARMS = pytest.mark.parametrize("farm", [daemons.Slurm, daemons.HTCondor], ids=lambda farm: farm.kind)


@pytest.mark.timeout(960)
@FARMS
def test_pipeline(farm, home):
    run_on(farm, home, ["on_pipeline"], 900)


@pytest.mark.farms
@pytest.mark.timeout(LIMIT + 60)
@FARMS
def test_faults_and_commands(farm, home):
    run_on(farm, home, ["on_faults", "on_commands"], LIMIT)


@pytest.mark.farms
def test_notebooks(home):
    run_on(daemons.Slurm, home, ["on_notebooks"], 550)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/clusters").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_sites_are_valid(path):
    load_cluster(str(path))


@pytest.mark.parametrize(("kind", "model"), [("slurm", Slurm), ("htcondor", HTCondor)])
def test_shipped_values_are_the_defaults_and_every_key_is_there(kind, model):
    path = ROOT / f"configs/clusters/{kind}.yaml"
    assert load_cluster(str(path)) == model()
    words = path.read_text()
    assert [key for key in model.model_fields if f"{key}:" not in words] == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "abacus"}, "kind: 'abacus' is not one of: local, gpu, attached, "),
        ({"kind": "slurm", "wall-time": "1:00:00"}, "wall-time: unknown key; did you mean walltime?"),
        ({"kind": "slurm", "walltime": "2 hours"}, "walltime: '2 hours' is not a wall time; write HH:MM:SS"),
        ({"kind": "slurm", "lifetime": 7200}, "lifetime: 7200 s is not below the wall time, 02:00:00"),
        ({"kind": "htcondor", "processes": 2}, "processes: 2 workers cannot share 1 cores"),
        (
            {"kind": "htcondor", "workers": 3, "maximum_workers": 2},
            "maximum_workers: 2 is less than workers, 3",
        ),
        ({"kind": "slurm", "port_range": [10000, 10001]}, "port_range: 10000 to 10001 is too narrow"),
        ({"kind": "slurm", "environment": {"MY_TOKEN": "x"}}, "environment.MY_TOKEN looks like a secret"),
        (
            {"kind": "slurm", "environment": {"AWS_SECRET_ACCESS_KEY": "wJal/bPx+c"}},
            "environment.AWS_SECRET_ACCESS_KEY looks like a secret",
        ),
        (
            {"kind": "htcondor", "job_script_prologue": ["cd /tmp; export MY_PASSWORD='x y'"]},
            "job_script_prologue: MY_PASSWORD looks like a secret",
        ),
    ],
)
def test_wrong_settings_are_refused_with_what_to_do(settings, expected):
    with pytest.raises(ConfigError) as refused:
        load_cluster(settings)
    assert expected in str(refused.value)
