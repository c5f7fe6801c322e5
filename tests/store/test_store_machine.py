"""The writer of a store, crashed at any operation on its files and started again: a state machine of hypothesis."""

import os
import shutil
import sys
import tempfile
import threading
import uuid
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster
from helpers import events as made
from helpers.stores import columns, paths_below
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hepdask import inspect, open_store, prepare
from hepdask.config import Config
from hepdask.errors import StoreError

CLASSES = ("ttbar", "wjets", "qcd")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Crash(Exception):
    """The process ends here. Who catches it nevertheless cannot do anything with its files any more."""


class FileOperations:
    """Sees every change that Python makes to the files below a folder, just before it is made.

    An audit hook of the interpreter: it knows nothing of how a store is written, and so needs no
    change where the writer changes.
    """

    def __init__(self):
        self._folder = None
        self._before = None
        self._lock = threading.RLock()
        sys.addaudithook(self._hook)

    @contextmanager
    def watched(self, folder, before):
        """Call ``before(path, is_opened)`` ahead of each change below a folder; it may raise."""
        self._folder, self._before = os.path.join(folder, ""), before
        try:
            yield
        finally:
            self._folder = self._before = None

    def _hook(self, event, args):
        if self._folder is None or not self._changes(event, args):
            return
        path = os.path.abspath(os.fsdecode(args[0]))
        if path.startswith(self._folder) and self._before is not None:
            with self._lock:
                folder, self._folder = self._folder, None  # what is done here is not watched itself
                try:
                    if folder is not None:
                        self._before(path, event == "open")
                finally:
                    self._folder = folder

    def _changes(self, event, args):
        if not args or not isinstance(args[0], str | bytes | os.PathLike):  # a file that was opened before
            return False
        if event == "open":
            _, mode, flags = args
            return flags & WRITING if mode is None else set(mode) & set("wax+")
        return event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate")


@pytest.fixture(scope="module")
def operations():
    return FileOperations()


class Crashing:
    """Raises at one operation and at each that follows: what is dead does nothing any more."""

    def __init__(self, at, torn=False):
        self.count, self.at, self.torn = 0, at, torn

    def __call__(self, path, is_opened):
        self.count += 1
        if self.count == self.at and self.torn and is_opened and not os.path.exists(path):
            Path(path).write_bytes(b"{")  # killed while it wrote
        if self.count >= self.at:
            raise Crash


@pytest.fixture(scope="module")
def threads():
    """A cluster of one thread in this process, where the audit hook sees what they do."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        Client(cluster) as connected,
    ):  # fmt: skip
        yield connected


class Inputs:
    """One small file a class, and configurations that take the first few of them."""

    def __init__(self, folder):
        self.paths = {
            name: made.write_root(
                folder / f"{name}.root", made.random_events(8, seed, candidates=10), identity=uuid.UUID(int=seed)
            )
            for seed, name in enumerate(CLASSES)
        }  # fmt: skip

    def config(self, n, output):
        fileset = {name: {"files": [self.paths[name]], "metadata": {"label": name}} for name in CLASSES[:n]}
        document = {
            "output": str(output),
            "fileset": fileset,
            "input": {"chunk_events": 4, "retry_wait": 0.0},
        }
        return Config.model_validate(document)


def test_no_crash_loses_or_doubles_an_event(operations, threads, tmp_path):
    inputs = Inputs(tmp_path)
    truth, length, paths = {}, {}, {}
    for n in (1, 2, 3):
        config, counter = inputs.config(n, tmp_path / f"truth{n}"), Crashing(at=sys.maxsize)
        with operations.watched(config.store_path, counter):
            truth[n] = columns(prepare(config, threads).store)
        length[n] = counter.count
        paths[n] = paths_below(config.store_path)

    class Machine(RuleBasedStateMachine):
        @initialize()
        def begin(self):
            self.output = Path(tempfile.mkdtemp(dir=tmp_path))
            self.files, self.visible = 1, None

        @property
        def config(self):
            return inputs.config(self.files, self.output)

        @precondition(lambda self: self.files < len(CLASSES))
        @rule()
        def add_a_file(self):
            self.files += 1

        @rule(moment=st.integers(0, 999), torn=st.booleans())
        def crash(self, moment, torn):
            crashing = Crashing(1 + moment * length[self.files] // 1000, torn)
            with operations.watched(self.config.store_path, crashing):
                try:
                    prepare(self.config, threads)
                except Exception:
                    if crashing.count < crashing.at:
                        raise
                    threads.submit(os.getpid, pure=False).result(
                        timeout=60
                    )  # what still ran has ended as well
                else:
                    self.visible = self.files

        @rule()
        def finish(self):
            store = prepare(self.config, threads).store
            self.visible = self.files
            assert holds(store) == self.files
            assert store.manifest["lost"] == []
            assert paths_below(store.path) == paths[self.files], "something was left over"
            assert not inspect(store.path, deep=True)["damaged"]
            assert prepare(self.config, threads).tasks == 0

        @invariant()
        def what_is_visible_is_complete(self):
            try:
                store = open_store(self.config.store_path)
            except StoreError:
                assert self.visible is None, "a finished store is no longer there"
                return
            found = holds(store)
            assert found in ({self.files} if self.visible is None else {self.visible, self.files})
            self.visible = found

        def teardown(self):
            if hasattr(self, "output"):
                self.finish()
                shutil.rmtree(self.output)

    def holds(store):
        """Say whose events these are, all of them and each once."""
        found = columns(store)
        for n, expected in truth.items():
            if all(np.array_equal(found[name], expected[name]) for name in expected):
                return n
        raise AssertionError(
            f"{len(store)} events that are none of {[len(t['entry']) for t in truth.values()]}"
        )

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=10, stateful_step_count=6, deadline=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
