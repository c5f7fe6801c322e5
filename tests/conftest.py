"""Fixtures shared by the tests: sample files, a small cluster, and real servers."""

from __future__ import annotations

import importlib.util
import shutil
import uuid
from pathlib import Path

import dask
import hypothesis
import pytest
from distributed import Client, LocalCluster
from helpers import events as made
from helpers import ranks
from helpers.requirements import require
from helpers.samples import SAMPLES
from helpers.servers import xrootd_server
from helpers.waiting import until

from hepdask.config import Config

# Dask's local cluster looks, so long after a worker was lost, whether one of its name is there, and drops it for
# good if it is just then being restarted once more. Tests kill one after another: they want all of them back.
dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"})

# how long one example takes says nothing: some compile, and the machine has other things to do
hypothesis.settings.register_profile("hepdask", deadline=None)
hypothesis.settings.load_profile("hepdask")


def pytest_addoption(parser):
    """Faults come at random moments: `make test-faults` has them come often."""
    parser.addoption("--repeat", type=int, default=1, help="run the tests marked `faults` so many times")


def pytest_generate_tests(metafunc):
    times = metafunc.config.getoption("repeat")
    if times > 1 and metafunc.definition.get_closest_marker("faults"):
        metafunc.fixturenames.append("repetition")
        metafunc.parametrize("repetition", range(times))


#: What a test with the marker `unit` may not have: other markers, and fixtures that start something.
NOT_IN_UNIT = {"slow", "faults", "farms", "gpu"}, {"client", "mark", "horovod", "xrootd"}


def pytest_collection_modifyitems(items):
    """Refuse tests whose markers contradict each other: `make unit` starts nothing, and takes a minute."""
    markers, fixtures = NOT_IN_UNIT
    wrong = []
    for item in items:
        if item.get_closest_marker("unit"):
            contradict = {mark.name for mark in item.iter_markers()} & markers
            contradict |= set(getattr(item, "fixturenames", ())) & fixtures
            if contradict:
                wrong.append(f"{item.nodeid}: marked unit, and has {', '.join(sorted(contradict))}")
    if wrong:
        raise pytest.UsageError("\n".join(wrong))


@pytest.fixture(scope="session")
def sample_files(tmp_path_factory):
    """Three small files of random events, one a class, two of them with leptons in most events."""
    folder = tmp_path_factory.mktemp("samples")
    return {
        name: made.write_root(
            folder / f"{name}.root", made.random_events(size, seed), identity=uuid.UUID(int=seed)
        )
        for name, (size, seed) in SAMPLES.items()
    }


@pytest.fixture
def make_config(sample_files, tmp_path):
    """Make a configuration on the sample files."""

    def make(files=None, **changes):
        files = files or {name: [path] for name, path in sample_files.items()}
        fileset = {
            name: {"files": paths, "metadata": {"label": name.split("_")[0]}} for name, paths in files.items()
        }
        document = {
            "output": str(tmp_path / "run"),
            "fileset": fileset,
            "cluster": {"kind": "local", "workers": 1, "dashboard_port": 0},
            "input": {"chunk_events": 25, "retry_wait": 0.01},
        }
        for key, value in changes.items():
            document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
        return Config.model_validate(document)

    return make


@pytest.fixture(scope="session")
def client():
    """A cluster of two worker processes, used by all tests that do not harm it."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=40,
        ) as cluster,
        Client(cluster) as connected,
    ):
        yield connected


@pytest.fixture
def mark(client):
    """Environment by which a test's ranks can be found; afterwards nothing may be left of them."""
    name = uuid.uuid4().hex
    yield {"TEST_MARK": name}
    assert ranks.marked(name) == []
    until(lambda: ranks.held(client) == (0, 0, 0), 5)


@pytest.fixture(scope="session")
def stub(tmp_path_factory):
    """Environment with a Horovod that is always ready."""
    folder = tmp_path_factory.mktemp("stub") / "horovod"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "tensorflow.py").write_text("def init(): pass\ndef shutdown(): pass\n")
    return {"PYTHONPATH": str(folder.parent)}


@pytest.fixture(scope="session")
def no_horovod(tmp_path_factory):
    """Environment in which Horovod was built for something else."""
    folder = tmp_path_factory.mktemp("none") / "horovod"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('not built for TensorFlow')\n")
    return {"PYTHONPATH": str(folder.parent)}


@pytest.fixture(scope="session")
def horovod():
    """Skip where there is no Horovod, fail where there has to be one."""
    package = importlib.util.find_spec("horovod")
    built = package and list(Path(package.submodule_search_locations[0]).glob("tensorflow/mpi_lib*.so"))
    require(built, f"Horovod for TensorFlow is not built here ({package})")


@pytest.fixture
def xrootd(sample_files):
    """Serve the sample files over XRootD."""
    require(shutil.which("xrootd"), "the xrootd server is not installed (apt install xrootd-server)")
    with xrootd_server(sample_files.values()) as server:
        yield server
