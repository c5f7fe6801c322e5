"""SIGKILL of drivers and workers at random moments, again and again: the store comes out as if nothing had happened."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from distributed import Client, LocalCluster
from helpers.stores import assert_equal, paths_below

from hepdask import inspect, prepare
from hepdask.errors import StoreError

pytestmark = pytest.mark.timeout(400)

ROUNDS = 6
PATIENCE = 120  # seconds without progress


@pytest.fixture(scope="module")
def cluster():
    """Two workers that may be killed; their nannies start them again."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
        ) as started,
        Client(started) as connected,
    ):  # fmt: skip
        yield connected


@pytest.fixture
def undisturbed(make_config, client, tmp_path):
    """What a run that nothing happens to makes, from the same configuration."""
    return prepare(make_config(output=str(tmp_path / "undisturbed"), input={"chunk_events": 4}), client).store


def start_driver(config, document, cluster):
    """Start `hepdask prepare` in a process group of its own, on a running cluster or on one of its own."""
    document.write_text(config.model_copy(update={"cluster": cluster}).model_dump_json(exclude_unset=True))
    return subprocess.Popen(
        [sys.executable, "-m", "hepdask", "prepare", str(document)], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def wait_until_there_are(paths, config, process):
    """Wait until a store has grown to so many files and folders, or its driver has ended."""
    before, deadline = 0, time.monotonic() + PATIENCE
    while (found := len(paths_below(config.store_path))) < paths and process.poll() is None:
        if found > before:
            before, deadline = found, time.monotonic() + PATIENCE
        assert time.monotonic() < deadline, "the driver makes no progress"
        time.sleep(0.02)


def kill_a_worker(cluster, rng):
    pids = list(cluster.run(os.getpid, on_error="ignore").values())
    os.kill(rng.choice([pid for pid in pids if isinstance(pid, int)]), signal.SIGKILL)


def assert_as_if_nothing_had_happened(config, store, undisturbed):
    assert_equal(store, undisturbed)
    assert store.fingerprint == undisturbed.fingerprint
    assert store.manifest["lost"] == []
    assert paths_below(config.store_path) == paths_below(undisturbed.path), "something was left over"
    assert not inspect(config.store_path, deep=True)["damaged"]


def test_drivers_and_workers_killed_again_and_again(make_config, cluster, tmp_path, undisturbed):
    """Drivers on a cluster that outlives them, whose tasks go on without them; some workers die as well."""
    rng = random.Random(4)
    config = make_config(input={"chunk_events": 4})
    total = len(paths_below(undisturbed.path))
    address = cluster.scheduler.address
    killed = 0
    for number in range(ROUNDS):
        process = start_driver(config, tmp_path / "config.json", address)
        try:
            done = len(paths_below(config.store_path))
            wait_until_there_are(done + rng.uniform(0, (total - done) / 3), config, process)
            time.sleep(rng.uniform(0, 0.05))
            if number % 3 == 1:
                kill_a_worker(cluster, rng)
            killed += process.poll() is None
        finally:
            kill(process)
    assert killed >= ROUNDS - 1, "most drivers must have been killed while they worked"
    result = prepare(config, cluster)
    assert_as_if_nothing_had_happened(config, result.store, undisturbed)
    again = prepare(config, cluster)
    assert again.tasks == 0


def test_workers_killed_while_the_driver_lives(make_config, cluster, undisturbed):
    rng = random.Random(5)
    config = make_config(input={"chunk_events": 4})
    total = len(paths_below(undisturbed.path))
    moments = sorted(rng.uniform(0, 0.9 * total) for _ in range(2))
    reached, stop = [], threading.Event()

    def kill_at_the_moments():
        with Client(cluster.scheduler.address, set_as_default=False) as second:
            for moment in moments:
                while len(paths_below(config.store_path)) < moment:
                    if stop.wait(0.02):
                        return
                kill_a_worker(second, rng)
                reached.append(moment)

    thread = threading.Thread(target=kill_at_the_moments)
    thread.start()
    try:
        result = prepare(config, cluster)
    finally:
        stop.set()
        thread.join(timeout=60)
    assert reached, "no worker was killed: the test shows nothing"
    assert_equal(result.store, undisturbed)
    assert prepare(config, cluster).tasks == 0  # but it tidies up what the dead workers left
    assert_as_if_nothing_had_happened(config, result.store, undisturbed)


def test_a_driver_that_dies_with_its_own_cluster(make_config, client, tmp_path, undisturbed):
    """The whole process group at once, as when a machine is switched off; near the end of the run."""
    config = make_config(input={"chunk_events": 4})
    process = start_driver(
        config, tmp_path / "config.json", {"kind": "local", "workers": 2, "dashboard_port": 0}
    )
    try:
        wait_until_there_are(len(paths_below(undisturbed.path)) - 4, config, process)
    finally:
        kill(process)
    result = prepare(config, client)
    assert result.tasks < 5, "what was there is not made again"
    assert_as_if_nothing_had_happened(config, result.store, undisturbed)


def test_the_second_driver_of_a_store_refuses(make_config, cluster, tmp_path, undisturbed):
    config = make_config(input={"chunk_events": 1})
    first = start_driver(config, tmp_path / "config.json", cluster.scheduler.address)
    try:
        wait_until_there_are(1, config, first)
        os.kill(first.pid, signal.SIGSTOP)
        with pytest.raises(StoreError) as refusal:
            prepare(config, cluster)
        assert str(config.store_path) in str(refusal.value)
        assert str(first.pid) in str(refusal.value), "the owner is named"
        os.kill(first.pid, signal.SIGCONT)
        _, said = first.communicate(timeout=PATIENCE)
        assert first.returncode == 0, said
        assert prepare(config, cluster).tasks == 0
    finally:
        kill(first)


def test_the_lock_of_a_dead_driver_does_not_bind(make_config, cluster, tmp_path):
    """Whoever is killed leaves its lock behind; the next driver on the same machine sees that nobody holds it."""
    config = make_config(input={"chunk_events": 1})
    first = start_driver(config, tmp_path / "config.json", cluster.scheduler.address)
    try:
        wait_until_there_are(1, config, first)
        with pytest.raises(StoreError):
            prepare(config, cluster)
    finally:
        kill(first)
    store = prepare(config, cluster).store
    assert not inspect(config.store_path, deep=True)["damaged"]
    assert sorted(set(store.labels().tolist())) == [0, 1, 2]
