"""The command line as a person uses it: what it prints, what it leaves behind, and its exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import yaml
from helpers import events as made
from helpers.commands import hepdask
from helpers.requirements import has_horovod, require

from hepdask.cli import cli
from hepdask.config import Config, load_config
from hepdask.config.reference import reference

ROOT = Path(__file__).parents[2]


@pytest.fixture
def document(make_config, tmp_path):
    """Write a configuration file; give its path."""

    def write(**changes):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(json.loads(make_config(**changes).model_dump_json())))
        return path

    return write


@pytest.mark.slow
def test_run_end_to_end(tmp_path):
    """Simulate, prepare, train both networks on two ranks, and report; then again, with nothing to do."""
    require(has_horovod(), "Horovod is not built (make horovod)")
    files = {name: f"events/{name}.root" for name in ("ttbar", "wjets", "qcd")}
    sizes = {"ttbar": 150, "wjets": 100, "qcd": 60}
    document = {
        "output": "run",
        "simulation": {files[n]: {"process": n, "events": sizes[n], "seed": 5} for n in files},
        "fileset": {n: {"files": {files[n]: "Delphes"}, "metadata": {"label": n}} for n in files},
        "models": {
            "hlf": {"epochs": 2, "batch_size": 16},
            "inclusive": {"epochs": 1, "batch_size": 16, "units": 8},
        },
        "training": {"ranks": 2},
        "cluster": {"kind": "local", "workers": 2, "dashboard_port": 0},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    first = hepdask("run", "config.yaml", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "dashboard: http://127.0.0.1:" in first.stderr
    for expected in (
        r"ttbar \(ttbar\): \d+ of 150 events selected",
        "hlf epoch 2/2: loss",
        "inclusive epoch 1/1: loss",
    ):
        assert re.search(expected, first.stderr), first.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["classes"] == ["qcd", "ttbar", "wjets"]
    assert set(metrics["models"]) == {"hlf", "inclusive"}
    assert "<svg" in (tmp_path / "run/report.html").read_text()

    report = (tmp_path / "run/report.html").stat().st_mtime_ns
    second = hepdask("run", "config.yaml", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("up to date") == 6, second.stderr
    assert (tmp_path / "run/report.html").stat().st_mtime_ns == report

    told = hepdask("inspect", "run", cwd=tmp_path)
    assert told.returncode == 0
    assert re.search(r"model inclusive: [\d,]+ parameters, 1 epochs", told.stdout)
    facts = json.loads(hepdask("inspect", "run/store.zarr", "--deep", "--json", cwd=tmp_path).stdout)
    assert facts["damaged"] == []
    assert facts["events"] == sum(row["events_selected"] for row in facts["selection"])


def commands(command, context):
    """Yield the context of a command and of all below it."""
    yield context
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, click.Context(below, info_name=name, parent=context))


def test_help_shows_examples_line_by_line():
    """Every command but a group of them has an example, which begins with its name and is not folded."""
    for context in commands(cli, click.Context(cli, info_name="hepdask")):
        shown = context.get_help()
        assert "\\b" not in shown, context.command_path
        assert "\b" not in shown, context.command_path
        if not isinstance(context.command, click.Group):
            example = rf"(?m)^ {{6}}{context.command_path}( |$)"
            assert re.search(example, shown), f"{context.command_path} --help shows no example"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    """The script for the shell is given, and what it asks is answered."""
    program = Path(sys.executable).with_name("hepdask")
    script = subprocess.run(
        [program], env={**os.environ, "_HEPDASK_COMPLETE": f"{shell}_source"}, capture_output=True, text=True
    ).stdout
    assert "_HEPDASK_COMPLETE" in script
    asked = {"COMP_WORDS": "hepdask pre", "COMP_CWORD": "pre" if shell == "fish" else "1"}
    answer = subprocess.run(
        [program], env={**os.environ, **asked, "_HEPDASK_COMPLETE": f"{shell}_complete"},
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert {"predict", "prepare"} == {word for word in re.split(r"[\n,\t]", answer) if word.startswith("pre")}


def test_simulated_files_do_not_depend_on_the_cluster(tmp_path):
    import uproot

    words = ("simulate", "--process", "ttbar", "--events", "230", "--seed", "9", "--out")
    (tmp_path / "one.yaml").write_text("kind: local\nworkers: 1\ndashboard_port: 0\n")
    (tmp_path / "two.yaml").write_text("kind: local\nworkers: 2\ndashboard_port: 0\n")
    for name in ("one", "two"):
        done = hepdask(*words, f"{name}.root", "--cluster", f"{name}.yaml", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (uproot.open(tmp_path / f"{name}.root") for name in ("one", "two"))
    assert one.file.uuid == two.file.uuid
    assert one["Delphes"].num_entries == 230
    for branch in ("EFlowTrack.PT", "Jet.BTag", "GenInfo.Parent"):
        assert one["Delphes"][branch].array().tolist() == two["Delphes"][branch].array().tolist()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"analysi": {}}, "analysi: unknown key; did you mean analysis?"),
        (
            {"analysis": {"lepton_minpt": 3}},
            "analysis.lepton_minpt: unknown key; did you mean lepton_min_pt?",
        ),
        ({"split": {"test_fraction": 1.5}}, "split.test_fraction: Input should be less than 1"),
        ({"fileset": {"a": {"files": ["x.root"], "metadata": {}}}}, "fileset.a: metadata.label is missing"),
        (
            {"fileset": {"a": {"files": ["x.root"], "metadata": {"label": "higgs"}}}},
            "fileset.a.metadata.label is 'higgs', not one of analysis.classes (qcd, ttbar, wjets)",
        ),
        ({"training": {"models": ["hlf", "hlf"]}}, "training.models names something twice"),
        ({"training": {"port_range": [5, 1]}}, "training.port_range goes from 5 down to 1"),
        (
            {"analysis": {"isolation_cone": 1e-6}},
            "analysis.isolation_cone: Input should be greater than or equal",
        ),
        ({"input": {"retry_wait": float("inf")}}, "input.retry_wait: Input should be a finite number"),
        ({"cluster": "foo://bar"}, "cluster: foo://bar is not the address of a scheduler"),
        (
            {"training": {"models": ["hfl"]}},
            "training.models.0: Input should be 'hlf', 'sequence', 'inclusive', 'xgboost' or 'forest'",
        ),
        ({"cluster": {"kind": "local", "worker": 2}}, "cluster: worker: unknown key; did you mean workers?"),
        ({"cluster": "nowhere"}, "cluster: 'nowhere' is neither a file, an address, nor one of:"),
    ],
)
def test_wrong_configuration_is_refused_by_its_path(tmp_path, changes, expected):
    files = {"d": {"files": ["x.root"], "metadata": {"label": "qcd"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"fileset": files, **changes}))
    done = hepdask("prepare", "config.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("prepare",),
        ("prepare", "missing.yaml"),
        ("simulate", "--process", "higgs", "--events", "1", "--out", "x.root"),
        ("run", "config.yaml", "--set", "training.ranks"),
        ("nonsense",),
    ],
)
def test_wrong_usage(tmp_path, words):
    (tmp_path / "config.yaml").write_text("{}")
    done = hepdask(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_failure_names_the_file_and_shows_no_traceback_unless_asked(document, tmp_path):
    path = document(files={"ttbar": [str(tmp_path / "gone.root")]})
    done = hepdask("prepare", path)
    assert done.returncode == 1
    assert "gone.root: No such file or directory" in done.stderr
    assert "check the path in fileset.ttbar" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "Traceback" in hepdask("prepare", path, "-vv").stderr


def test_more_ranks_without_horovod_are_refused_before_anything_is_done(document, tmp_path):
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked/sitecustomize.py").write_text(
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'horovod' else find(name, package)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "hepdask", "run", str(document()), "--set", "training.ranks=2"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path / "blocked")},
    )  # fmt: skip
    assert done.returncode == 1
    assert "more than one rank needs Horovod, which is not installed: install a C++ compiler" in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_event_selected(document, tmp_path):
    path = document(
        files={"qcd": [made.write_root(tmp_path / "none.root", made.random_events(5, 1, leptons=0))]}
    )
    done = hepdask("run", path)
    assert done.returncode == 1
    assert "no event passes the selection: 5 entries were read" in done.stderr


def test_a_single_class(document, sample_files):
    done = hepdask("run", document(files={"ttbar": [sample_files["ttbar"]]}))
    assert done.returncode == 1
    assert "there are no training events of class qcd" in done.stderr
    assert "wjets" in done.stderr


def test_a_cluster_that_stays_up_can_be_attached_to(document, tmp_path):
    (tmp_path / "cluster.yaml").write_text("kind: local\nworkers: 1\ndashboard_port: 0\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "hepdask", "cluster", "start", str(tmp_path / "cluster.yaml"), "--json"],
        stdout=subprocess.PIPE, text=True,
        # a shell's background jobs inherit that SIGINT is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        facts = json.loads(process.stdout.readline())
        assert facts["workers"] == 1
        done = hepdask("prepare", document(), "--cluster", facts["address"])
        assert done.returncode == 0, done.stderr
        assert facts["dashboard"].rsplit("/", 1)[0] in done.stderr
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            process.kill()
    assert process.returncode == 130
    start = time.monotonic()
    done = hepdask("prepare", document(output=str(tmp_path / "again")), "--cluster", facts["address"])
    assert done.returncode == 1
    assert "no scheduler answers there" in done.stderr
    assert time.monotonic() - start < 120, "the wait is bounded by the configuration, not by chance"


def test_show_config_prints_a_document_that_loads_as_the_same(document, tmp_path):
    path = document()
    shown = hepdask("run", path, "--show-config", "--set", "split.seed=7").stdout
    (tmp_path / "shown.yaml").write_text(shown)
    assert load_config(tmp_path / "shown.yaml") == load_config(path, {"split.seed": 7})
    assert yaml.safe_load(shown)["split"]["seed"] == 7


def test_a_fileset_may_stand_in_a_file_of_its_own(tmp_path):
    (tmp_path / "fileset.json").write_text('{"a": {"files": {"x.root": "t"}, "metadata": {"label": "qcd"}}}')
    (tmp_path / "config.yaml").write_text(f"fileset: {tmp_path}/fileset.json")
    trees = load_config(tmp_path / "config.yaml").fileset["a"].trees
    assert [(path, tree) for path, tree, _ in trees] == [(f"{Path.cwd()}/x.root", "t")]


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_shipped_configurations_are_valid(name):
    assert isinstance(load_config(ROOT / "configs" / name), Config)


def test_every_key_is_written_down():
    assert reference() in (ROOT / "docs/configuration.md").read_text(), (
        "docs/configuration.md is behind: put in what hepdask.config.reference.reference() returns"
    )


def test_importing_the_package_is_quick_and_loads_no_framework():
    loaded = "import hepdask, sys; sys.exit(any(m in sys.modules for m in ('tensorflow', 'uproot', 'dask')))"
    assert subprocess.run([sys.executable, "-c", loaded], env=os.environ).returncode == 0
