"""What the tests on a farm share: its daemons, settings of a small cluster on it, and a run that can be disturbed."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from clusters.farms import daemons
from helpers import events as made
from helpers.samples import SAMPLES

from hepdask import clusters, prepare

ROOT = Path(__file__).parents[3]

# every chunk takes a while, so that there is something to disturb, and leaves a line, so that tasks can be counted
SLOW = """
import time
import numpy as np
def slow(events):
    with open({begun!r}, "a") as begun:
        begun.write("task\\n")
    time.sleep({seconds})
    return np.ones(len(events), bool)
"""


@pytest.fixture(scope="session")
def farm():
    """Start the batch system that HEPDASK_FARM names; stop it, and nothing else, at the end."""
    kind = {one.kind: one for one in (daemons.Slurm, daemons.HTCondor)}[os.environ["HEPDASK_FARM"]]
    started = kind(Path(tempfile.mkdtemp(prefix=f"{kind.kind}-")))
    os.environ.update(started.environment)
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def make_settings(farm, tmp_path_factory):
    """Give settings of a cluster of two workers on the farm."""

    def make(**changes):
        return {
            "kind": farm.kind,
            "cores": 1,
            "memory": "2GB",
            "workers": 2,
            "host": "127.0.0.1",
            "interface": "lo",
            "dashboard_port": 0,
            "log_directory": str(tmp_path_factory.mktemp("jobs")),
            "environment": {"PYTHONPATH": os.environ["PYTHONPATH"], "HOME": os.environ["HOME"]},
            "poll_interval": 1,
            "lost_after": 4,
            "start_timeout": 120,
            "query_timeout": 30,
        } | changes

    return make


@pytest.fixture(scope="session")
def farm_client(make_settings, expected):
    """Connect to a cluster on the farm that heals from whatever a test does to it."""
    with clusters.connect(make_settings(max_failures=20)) as connected:
        yield connected


@pytest.fixture
def monitor(farm_client):
    """Give the monitor of the cluster, when all its workers are there."""
    kept = farm_client.cluster.job_monitor
    there = lambda: len(farm_client.scheduler_info()["workers"]) == 2 and kept.summary() == "2 connected"  # noqa: E731
    daemons.until(there, daemons.PATIENCE, f"two workers; {kept.summary()}")
    return kept


def slow_selection(folder, seconds=0.7):
    """Write a selection that takes its time with each chunk; give what names it in a configuration."""
    (folder / "slow.py").write_text(SLOW.format(begun=str(folder / "begun"), seconds=seconds))
    return {"selections": {"slow": f"{folder}/slow.py:slow"}}


@pytest.fixture
def slow_config(make_config, tmp_path):
    """Give a configuration of 18 chunks of at least 0.7 s each."""
    return make_config(
        input={"chunk_events": 10, "retry_wait": 0.01},
        store={"worker_timeout": 120},
        analysis=slow_selection(tmp_path),
    )


@pytest.fixture(scope="session")
def expected():
    """Give dataset and entry of all events that are selected, found by the selection alone."""
    from hepdask.analysis import topology

    found = []
    for name, (size, seed) in SAMPLES.items():
        events = made.to_awkward(made.random_events(size, seed), np.float32)
        selected = topology.select(events)
        found += [(name, entry) for entry in np.flatnonzero(selected)]
    topology.particles(events[selected])  # compiled once here, instead of once in each worker
    topology.high_level(events[selected])
    return sorted(found)


def hepdask(*words, cwd=None, timeout=900):
    """Run a command as a person does."""
    return subprocess.run(
        [sys.executable, "-m", "hepdask", *map(str, words)],
        cwd=cwd, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def write_document(make_config, make_settings, folder):
    """Give what writes a configuration and the settings of a cluster, and gives their paths."""

    def write(**changes):
        config, cluster = folder / "config.yaml", folder / "farm.yaml"
        config.write_text(yaml.safe_dump(json.loads(make_config(**changes).model_dump_json())))
        cluster.write_text(yaml.safe_dump(make_settings()))
        return config, cluster

    return write


class Disturbance(threading.Thread):
    """Does something to a farm while a preparation is under way."""

    def __init__(self, store, act):
        super().__init__(daemon=True)
        self.store, self.act = store, act
        self.at = None
        self.error = None

    def run(self):
        try:
            daemons.until(
                lambda: len(list((self.store / "parts").glob("[!.]*-*"))) > 2,
                daemons.PATIENCE,
                "the first parts",
            )
            tasks = len(begun(self.store))
            daemons.until(lambda: len(begun(self.store)) > tasks, daemons.PATIENCE, "another task")
            self.at = time.monotonic()
            self.at = self.act() or self.at
        except BaseException as error:
            self.error = error


def prepare_disturbed(config, client, act):
    """Prepare, and do something in the middle of it; give dataset and entry of the events, and when it happened.

    That is the moment before `act` was called, or the one it gives.
    """
    thread = Disturbance(config.store_path, act)
    thread.start()
    prepared = prepare(config, client)
    thread.join(60)
    if thread.error is not None:
        raise thread.error
    arrays = prepared.store.arrays()
    return sorted(zip(arrays.dataset.tolist(), arrays.entry.tolist(), strict=True)), thread.at


def jobs_of(farm):
    """Give the numbers of all jobs that wait or run."""
    return {line.split()[0] for line in farm.living()}


def connected_job(monitor):
    """Give the number of a job whose worker is connected."""
    return next((job.number for job in monitor.jobs.values() if job.state.value == "connected"), None)


def is_back(monitor):
    """Tell whether the cluster is at strength."""
    return monitor.summary() == "2 connected"


def begun(store):
    """Give a line for each task that came to the selection."""
    path = store.parent.with_name("begun")
    return path.read_text().splitlines() if path.exists() else []


def measured(
    farm, what, monitor, at, config=None, found=(), expected=(), states=("lost", "pending", "finished")
):
    """Print what a fault cost, as a line for the documentation."""
    changes = [change for change in monitor.history if change.time > at]
    noticed = next((c.time - at for c in changes if c.state.value in states), None)
    replaced = next((c.time - at for c in changes if c.state.value == "connected"), None)
    row = {"farm": farm.kind, "fault": what, "noticed_s": noticed, "replaced_s": replaced}
    if config is not None:
        done = len(list((config.store_path / "parts").glob("[!.]*-*")))
        row |= {"tasks": done, "redone": len(begun(config.store_path)) - done}
        row |= counted(found, expected)
    print(json.dumps(row))


def counted(found, expected):
    """Count the events that should be in a store and are not, and those that are there too often."""
    found, expected = Counter(found), Counter(expected)
    return {
        "events": found.total(),
        "lost": (expected - found).total(),
        "doubled": (found - expected).total(),
    }
