"""What is not installed is told at once, in environments that really lack it: nothing was started, nothing written."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from helpers.requirements import require

from hepdask import extras
from hepdask.errors import MissingDependency
from hepdask.extras import EXTRAS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

CONFIG = """
output: run
fileset:
  a: {files: [a.root], metadata: {label: qcd}}
  b: {files: [b.root], metadata: {label: ttbar}}
analysis: {classes: [qcd, ttbar]}
cluster: {kind: local, workers: 1, dashboard-port: 0}
training: {models: [hlf], ranks: 1}
tuning: {model: hlf, parameters: {batch_size: [32, 64]}}
"""


@pytest.fixture
def without(tmp_path):
    """Run hepdask in an environment with everything that is installed here but some modules."""

    def run(modules: tuple[str, ...], *words: str) -> subprocess.CompletedProcess[str]:
        packages = tmp_path / "packages"
        packages.mkdir(exist_ok=True)
        for folder in {*site.getsitepackages(), sysconfig.get_path("purelib")}:
            for entry in Path(folder).iterdir():
                there = packages / entry.name
                if (
                    entry.name.partition(".")[0] not in modules
                    and entry.suffix != ".pth"
                    and not there.exists()
                ):
                    there.symlink_to(entry)
        (tmp_path / "config.yaml").write_text(CONFIG)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])}
        command = [sys.executable, "-S", "-m", "hepdask", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    return run


#: What is left out, what is asked for, and the extra that has to be named.
REFUSED = {
    "simulate": (("pythia8mc",), "simulate --process ttbar --events 10 --seed 1 --out x.root", "simulate"),
    "jets": (("fastjet",), "simulate --process ttbar --events 10 --seed 1 --out x.root", "simulate"),
    "train": (("tensorflow",), "train config.yaml", "train"),
    "evaluate": (("tensorflow",), "evaluate config.yaml", "train"),
    "run": (("keras",), "run config.yaml", "train"),
    "run after simulation": (("pythia8mc",), "run config.yaml --set simulation.a.root.process=qcd", "simulate"),
    "boosted trees": (("xgboost",), "train config.yaml --model xgboost", "trees"),
    "forest of XGBoost": (
        ("xgboost",), "train config.yaml --model forest --set models.forest.library=xgboost", "trees",
    ),
    "tune": (("optuna",), "tune config.yaml", "tune"),
    "tune a network": (("tensorflow",), "tune config.yaml --set tuning.model=sequence", "train"),
    "route": (("XRootD",), "prepare config.yaml --set input.routes=[root://x.example/{path}]", "xrootd"),
    "inspect": (("fsspec_xrootd",), "inspect root://x.example//a.root", "xrootd"),
    "store on S3": (("s3fs",), "prepare config.yaml --set store.path=s3://bucket/x", "s3"),
    "run to S3": (("s3fs",), "run config.yaml --set store.path=s3://bucket/x", "s3"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_missing_is_told_before_work(case, without):
    modules, words, extra = REFUSED[case]
    told = without(modules, *words.split())
    assert told.returncode == 1, told.stderr
    assert f"pip install 'hepdask[{extra}]'" in told.stderr
    assert "Traceback" not in told.stderr
    assert "dashboard" not in told.stderr, "a cluster was started first"


@pytest.mark.unit
def test_a_message_names_the_work_the_modules_and_the_line():
    before = dict(EXTRAS)
    try:
        EXTRAS["tune"] = ("optuna", "no_such_module", "nor_this_one")
        with pytest.raises(MissingDependency) as told:
            extras.require("tune", "hepdask tune")
    finally:
        EXTRAS.clear()
        EXTRAS.update(before)
    assert str(told.value).startswith("hepdask tune needs ")
    assert "no_such_module and nor_this_one, not installed here: pip install 'hepdask[tune]'" in str(
        told.value
    )


@pytest.mark.unit
def test_addresses_that_the_core_reads_need_nothing():
    extras.require_for_addresses(
        ["/data/x.root", "{url}", "http://x.example/a.root", "https://x.example/a.root"]
    )


@pytest.mark.unit
@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_brings_its_modules(extra):
    """The lists here and in pyproject.toml are about the same packages."""
    from importlib.metadata import packages_distributions

    owners = packages_distributions()
    named = " ".join(PROJECT["optional-dependencies"][extra])
    for module in EXTRAS[extra]:
        require(module in owners, f"{module} is not installed (pip install 'hepdask[{extra}]')")
        assert any(owner.replace("_", "-") in named.replace("_", "-") for owner in owners[module]), (
            module,
            named,
        )


@pytest.mark.unit
def test_users_of_the_core_are_not_bound_by_tensorflow():
    core = [line for line in PROJECT["dependencies"] if line.startswith("numpy")]
    assert core == ["numpy>=2"]
    assert "<" not in PROJECT["requires-python"]
