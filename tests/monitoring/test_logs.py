"""What hepdask logs: who sees it, in which form, and that nothing is configured behind a user's back."""

import datetime
import json
import logging
import os
import pty
import re
import subprocess
import sys

import pytest
import yaml
from helpers.commands import hepdask

from hepdask import logs, progress
from hepdask.config import Config
from hepdask.pipeline.prepare import prepare


@pytest.fixture(scope="module")
def store(client, sample_files, tmp_path_factory):
    """Give the path of a small store."""
    document = {
        "output": str(tmp_path_factory.mktemp("logs")),
        "fileset": {
            name: {"files": [path], "metadata": {"label": name}} for name, path in sample_files.items()
        },
        "analysis": {"lepton_max_isolation": 1e9, "lepton_min_pt": 0.0},
    }
    return prepare(Config.model_validate(document), client).store


def script(store, tmp_path, before="", after="", between=""):
    """Run a user's script with a public step in it; give its standard error."""
    code = f"""
import logging
{before}
import hepdask, hepdask.progress
hepdask.progress._LINE_EVERY = 1e9  # however slow this machine is
{after}
hepdask.export({str(store.path)!r}, "parquet", {str(tmp_path / "first")!r})
{between}
hepdask.export({str(store.path)!r}, "parquet", {str(tmp_path / "second")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def sentences(store, tmp_path):
    events = f"{len(store):,} events in 1 files"
    return [f"{tmp_path / name}: {events}" for name in ("first", "second")]


def test_a_script_sees_what_its_steps_say(store, tmp_path):
    assert script(store, tmp_path) == sentences(store, tmp_path)


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_script_that_configures_logging_gets_records_and_nothing_else(store, tmp_path, place):
    set_up = "logging.basicConfig(level='INFO', format='%(levelname)s|%(name)s|%(message)s')"
    said = script(store, tmp_path, **{place: set_up})
    expected = [f"INFO|hepdask.pipeline.export|{sentence}" for sentence in sentences(store, tmp_path)]
    assert [line for line in said if "hepdask" in line] == expected


@pytest.mark.parametrize(
    "set_up", ["logging.basicConfig()", "logging.getLogger('hepdask').setLevel('WARNING')"]
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_script_can_be_quiet(store, tmp_path, set_up, place):
    assert script(store, tmp_path, **{place: set_up}) == []


def test_logging_that_is_configured_late_takes_over(store, tmp_path):
    first, second = sentences(store, tmp_path)
    late = "logging.basicConfig(level='INFO', format='mine: %(message)s')"
    assert script(store, tmp_path, between=late) == [first, f"mine: {second}"]
    for one in tmp_path.iterdir():
        one.rename(one.with_name(f"{one.name}-before"))
    default = script(store, tmp_path, between="logging.basicConfig()")  # of level WARNING
    assert default == [first]


def test_importing_all_of_hepdask_configures_nothing():
    code = """
import importlib, logging, pkgutil
root = logging.root
before = root.level, list(root.handlers), logging.raiseExceptions, logging.getLoggerClass()
import hepdask
for module in pkgutil.walk_packages(hepdask.__path__, "hepdask."):
    if "project_template" not in module.name and not module.name.endswith(("__main__", "dashboard_page")):
        importlib.import_module(module.name)
assert before == (root.level, list(root.handlers), logging.raiseExceptions, logging.getLoggerClass())
package = logging.getLogger("hepdask")
assert [type(handler) for handler in package.handlers] == [logging.NullHandler], package.handlers
assert package.level == logging.NOTSET and package.propagate
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


# a command, its workers and its ranks


@pytest.fixture
def document(make_config, tmp_path):
    config = make_config(
        models={"hlf": {"epochs": 1, "batch_size": 16}}, training={"models": ["hlf"], "ranks": 1}
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(config.model_dump_json())))
    return path


def test_levels_of_a_command(document, sample_files):
    default = hepdask("prepare", document).stderr.splitlines()
    assert any(re.fullmatch(r"ttbar \(ttbar\): \d+ of 70 events .*", line) for line in default)
    assert not any(line.startswith(("[", "warning", "hepdask", "info", "INFO")) for line in default)
    for word, expected in (("-q", []), (None, ["up to date"])):
        again = hepdask("prepare", document, *([word] if word else [])).stderr.splitlines()
        assert [
            line for line in again if "dashboard" not in line and expected and expected[0] not in line
        ] == []
        assert bool(again) == bool(expected)


def test_a_curious_person_learns_of_files_parts_clusters_and_trainings(document, sample_files):
    """From the driver, the workers and the ranks: each once."""
    first = hepdask("prepare", document, "-v").stderr.splitlines()
    for path in sample_files.values():
        assert sum(line.endswith(f"{path}: not opened before") for line in first) == 1
        # opened once, and then read chunk by chunk, by the workers
        read = [
            line for line in first if line.startswith(f"[input.routes] {path}: read along the route {{url}}")
        ]
        assert len(read) == 1 + sum(f" of {path}: to be made" in line for line in first)
    assert any("starting a cluster" in line and "'workers': 1" in line for line in first)
    assert not any("distributed" in line for line in first)
    second = hepdask("prepare", document, "-v").stderr
    assert "are up to date" in second
    assert "unchanged since it was last opened" in second

    trained = hepdask("train", document, "-v").stderr.splitlines()
    assert "[pipeline.train] hlf: not trained yet" in trained
    chosen = re.compile(r"hlf: \d+ events, the compiled dense kernel")
    assert sum(bool(chosen.fullmatch(line)) for line in trained) == 1, trained
    assert any(line.startswith("[hlf rank 0] [engines.choice] engine of ") for line in trained)
    other = hepdask("train", document, "-v", "--set", "models.hlf.dropout=0.25").stderr
    assert "hlf: trained again: models.hlf.dropout changed" in other


def test_a_quiet_training_still_keeps_the_output_of_its_ranks(document, tmp_path):
    assert hepdask("prepare", document, "-q").stderr == ""
    assert hepdask("train", document, "-q").stderr == ""
    kept = (tmp_path / "run/models/hlf/logs/rank-0.log").read_text()
    assert "the compiled dense kernel" in kept


def test_all_processes_of_a_command_log_json(document, sample_files):
    done = hepdask("prepare", document, "-v", "--log-json")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    for line in lines:
        assert datetime.datetime.fromisoformat(line["time"]).tzinfo is not None
        assert line["level"] in ("debug", "info")
    said = {(line["logger"], line["level"]) for line in lines}
    assert ("hepdask.input.routes", "debug") in said  # by workers
    assert ("hepdask.pipeline.prepare", "info") in said


def test_logs_as_json_lines(tmp_path):
    """Whatever a command says on its standard error, failures too, is one JSON document a line."""
    out = tmp_path / "ttbar.root"
    words = ("simulate", "--process", "ttbar", "--events", "5", "--out", out)
    made = hepdask(*words, "--log-json", "--cluster", "tcp://127.0.0.1:1")
    lines = [json.loads(line) for line in made.stderr.splitlines()]
    assert made.returncode == 1
    assert lines[-1]["level"] == "error"
    assert "tcp://127.0.0.1:1" in lines[-1]["message"]
    assert datetime.datetime.fromisoformat(lines[-1]["time"]).tzinfo is not None


# the handler, and the bar


@pytest.fixture
def handled():
    """Let a handler of a style handle what hepdask logs; afterwards all is as before."""
    package = logging.getLogger("hepdask")
    before = list(package.handlers), package.level, package.propagate, os.environ.get(logs.VARIABLE)
    yield logs.show_in_command
    package.handlers[:], package.level, package.propagate = before[:3]
    os.environ.pop(logs.VARIABLE, None)
    if before[3] is not None:
        os.environ[logs.VARIABLE] = before[3]


def test_progress_as_json_lines(handled, capfd, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    handled(logging.INFO, "json")
    logging.getLogger("hepdask.somewhere").warning("a [bold] word")
    with progress.track("prepare", 100, "events") as tracker:
        tracker.advance(40)
    warning, step = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert list(warning) == ["time", "level", "logger", "message"]
    assert (warning["level"], warning["logger"]) == ("warning", "hepdask.somewhere")
    assert warning["message"] == "a [bold] word"
    assert list(step) == ["time", "level", "logger", "step", "done", "total", "unit", "per_second"]
    assert (step["step"], step["done"], step["total"], step["unit"]) == ("prepare", 40, 100, "events")


def test_lines_for_people_are_what_was_logged(handled, capfd):
    handled(logging.DEBUG, "text")
    logger = logging.getLogger("hepdask.some.module")
    long = "word " * 100
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logger.log(level, "root://host//a:smile:b [red]%s", "x")
    logger.info(long)
    text = "root://host//a:smile:b [red]x"
    expected = [f"[some.module] {text}", text, f"warning: {text}", f"error: {text}", long]
    assert capfd.readouterr().err.splitlines() == expected


def test_a_bar_on_a_terminal_leaves_lines_whole():
    """Both are there, and no line is written into the bar: each begins where a line begins."""
    code = """
import logging, time
from hepdask import logs, progress
from hepdask.config import Config
logs.show_in_command(logging.INFO, "text")
with progress.track("prepare", 100, "events") as tracker:
    for number in range(20):
        tracker.advance(5)
        logging.getLogger("hepdask.test").warning(f"line {number} of 20")
        time.sleep(0.02)
"""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=slave, env=environment)
    os.close(slave)
    said = b""
    while True:
        try:
            block = os.read(master, 1 << 12)
        except OSError:  # what Linux answers when the other end is closed
            break
        if not block:
            break
        said += block
    assert process.wait(60) == 0
    text = said.decode()
    assert "%" in text
    assert "events/s" in text
    # what clears a line or goes to its beginning, and colours, is taken out
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").split("\n")
    assert [line for line in shown if line.startswith("warning: ")] == [
        f"warning: line {number} of 20" for number in range(20)
    ]
