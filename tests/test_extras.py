"""What is not installed is told at once, in environments that really lack it: nothing was started, nothing written."""

from __future__ import annotations

import json
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


#: Runs commands one after another in one process, and tells of each its exit code and what it said on standard error.
RUNNER = """
import json, os, sys, tempfile
from hepdask.cli import main

for words in json.loads(sys.argv[1]):
    sys.argv, code = ["hepdask", *words.split()], 0
    with tempfile.TemporaryFile("w+") as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
        said.seek(0)
        print(json.dumps([code, said.read()]), flush=True)
"""

#: Modules that are left out together, then what is asked for, and the extra that has to be named.
REFUSED = {
    ("pythia8mc", "tensorflow", "xgboost", "optuna", "XRootD", "s3fs"): {
        "simulate --process ttbar --events 10 --seed 1 --out x.root": "simulate",
        "train config.yaml": "train",
        "train config.yaml --model xgboost": "trees",
        "train config.yaml --model forest --set models.forest.library=xgboost": "trees",
        "evaluate config.yaml": "train",
        "run config.yaml": "train",
        "tune config.yaml": "tune",
        'prepare config.yaml --set input.routes=["root://x.example/{path}"]': "xrootd",
        "prepare config.yaml --set store.path=s3://bucket/x": "s3",
        "run config.yaml --set store.path=s3://bucket/x": "s3",
        "inspect s3://bucket/a.root": "s3",
    },
    ("fastjet", "keras", "fsspec_xrootd"): {
        "simulate --process ttbar --events 10 --seed 1 --out x.root": "simulate",
        "run config.yaml": "train",
        "tune config.yaml --set tuning.model=sequence": "train",
        "inspect root://x.example//a.root": "xrootd",
    },
}


def packages_without(modules: tuple[str, ...], packages: Path) -> Path:
    """Fill a folder with links to everything that is installed here but some modules."""
    packages.mkdir()
    for folder in filter(os.path.isdir, {*site.getsitepackages(), sysconfig.get_path("purelib")}):
        for entry in Path(folder).iterdir():
            there = packages / entry.name
            if entry.name.partition(".")[0] not in modules and entry.suffix != ".pth" and not there.exists():
                there.symlink_to(entry)
    return packages


@pytest.mark.parametrize("modules", REFUSED, ids=" ".join)
def test_what_is_missing_is_told_before_work(modules, tmp_path):
    packages = packages_without(modules, tmp_path / "packages")
    (tmp_path / "config.yaml").write_text(CONFIG)
    commands = REFUSED[modules]
    done = subprocess.run(
        [sys.executable, "-S", "-c", RUNNER, json.dumps(list(commands))],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(commands), done.stderr
    for (words, extra), (code, said) in zip(commands.items(), answers, strict=True):
        assert code == 1, (words, said)
        assert f"pip install 'hepdask[{extra}]'" in said, (words, said)
        assert "Traceback" not in said, words
        assert "dashboard" not in said, f"{words}: a cluster was started first"


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
