"""Processes of workers: where they do not import from, what they do not print, and what they do not outgrow."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.waiting import until

from hepdask import clusters
from hepdask.clusters.task_pool import completed
from hepdask.errors import ClusterError

HEPDASK = Path(sys.executable).with_name("hepdask")  # the console script, as a person calls it


def hepdask(*words, cwd, **environment):
    """Run a command as a person does, from a folder of the person."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [HEPDASK, *map(str, words)],
        cwd=cwd, capture_output=True, text=True, timeout=500, env={**inherited, **environment},
    )  # fmt: skip


@pytest.fixture
def write(make_config, tmp_path):
    """Write a configuration; give its path."""

    def write(**changes):
        config = json.loads(make_config(**changes).model_dump_json())
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        return tmp_path / "config.yaml"

    return write


SHADOWS = ("signal", "select", "random", "code", "numpy", "queue", "pickle", "awkward")


def test_no_process_imports_from_the_working_directory(write, tmp_path):
    """Among them the workers, multiprocessing's own helper, and the process of a rank."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'imported')!r}, 'a').write('{name}\\n')\nraise SystemExit('mine')\n"
        )
    config = write(models={"hlf": {"epochs": 1, "batch_size": 16}}, training={"models": ["hlf"], "ranks": 1})
    for words in (("prepare", config), ("train", config, "--model", "hlf")):
        done = hepdask(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "imported").exists(), (tmp_path / "imported").read_text()
    assert (tmp_path / "run/models/hlf/training.json").exists()


# each of them ends a task in a way of its own
FAULTS = {
    "logs": "    import asyncio, logging\n"
    "    logging.getLogger('distributed.worker').error('chatter of Dask')\n"
    "    logging.getLogger('asyncio').error('chatter of asyncio')\n"
    "    raise OSError(28, 'No space left on device')\n",
    "dies": "    import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n",
}
NOISE = re.compile(
    r"Traceback|distributed\.|tornado|asyncio|Compute Failed|chatter|heartbeat|CommClosed|Nanny|\d+ - \w+ - "
)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_terminal_shows_a_sentence_and_nothing_around_it(write, tmp_path, fault):
    (tmp_path / "mine.py").write_text(f"def cut(events):\n{FAULTS[fault]}")
    config = write(analysis={"selections": {"mine": f"{tmp_path}/mine.py:cut"}})
    done = hepdask("prepare", config, cwd=tmp_path)
    assert done.returncode in (1, 2)
    said = done.stderr.splitlines()
    assert said[-1].startswith("error: ")
    assert [line for line in said if NOISE.search(line)] == [], done.stderr


def test_the_whole_story_is_there_where_it_is_asked_for(write, tmp_path):
    (tmp_path / "mine.py").write_text("def cut(events):\n    raise ValueError('bad cut')\n")
    config = write(analysis={"selections": {"mine": f"{tmp_path}/mine.py:cut"}})
    done = hepdask("prepare", config, "-vv", cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert "Traceback" in done.stderr
    assert "bad cut" in done.stderr


def grow(size, folder):
    """Take so many MiB, and a while."""
    with open(f"{folder}/{size}", "a") as file:
        file.write("begun\n")
    kept = []
    for _ in range(size // 25):
        kept.append(np.ones(25 * 2**17))
        time.sleep(0.05)
    time.sleep(0.5)
    return len(kept)


@pytest.fixture(scope="module")
def small():
    """Two workers of 600 MB."""
    settings = {"kind": "local", "workers": 2, "memory_limit": "600MB", "dashboard_port": 0}
    with clusters.connect(settings) as client:
        yield client


def begun(folder, size):
    return len((folder / str(size)).read_text().splitlines())


@pytest.mark.parametrize("others", [[25, 26, 27, 28], []])
def test_a_task_that_does_not_fit_is_given_up_after_two_workers(small, tmp_path, others):
    sizes = [*others[:2], 2000, *others[2:]]
    with pytest.raises(ClusterError) as refused:
        for _ in completed(small, grow, sizes, str(tmp_path), name="grow", worker_timeout=60.0):
            pass
    said = str(refused.value)
    assert re.match(
        r"grow: 2 workers were killed for their memory at the same work, 2000: the last one needed", said
    )
    assert "with a limit of 572" in said
    assert "input.chunk_memory, input.chunk_events" in said
    assert "memory_limit" in said
    assert begun(tmp_path, 2000) <= 3, "a third worker at most had begun when it was noticed"


def test_a_worker_that_is_killed_by_others_is_not_its_task_s_memory(small, tmp_path):
    """As where a job is preempted: so often as Dask allows, the task begins again, and is done."""
    died = []

    def disturb():
        for _ in range(3):
            alive = lambda: [path for path in tmp_path.glob("*") if path.name not in died]  # noqa: E731
            victim = until(alive, 60, "another try")[0].name
            os.kill(int(victim), signal.SIGKILL)
            died.append(victim)

    thread = threading.Thread(target=disturb)
    thread.start()
    tasks = completed(small, _slow, [1, 2], str(tmp_path), name="slow", worker_timeout=60.0)
    assert sorted(item for item, _ in tasks) == [1, 2]
    thread.join(60)
    assert len(died) == 3


def _slow(item, folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(2)
    return item
