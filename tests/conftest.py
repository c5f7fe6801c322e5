"""Fixtures shared by the tests: sample files, a small cluster, and real servers."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import events as made
import pytest
from distributed import Client, LocalCluster

from hepdask.config import Config


def require(available, what):
    """Skip where something cannot be had; in CI that is a failure."""
    if available:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}: required in CI")
    pytest.skip(what)


SAMPLES = {"ttbar": (70, 11), "wjets": (60, 12), "qcd": (50, 13)}  # events and seed of each file


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
            "cluster": {"kind": "local", "workers": 1, "dashboard-port": 0},
            "store": {"chunk_events": 25, "retry_wait": 0.01},
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


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class XRootDServer:
    """A real XRootD server on loopback that serves one folder."""

    def __init__(self, folder, work):
        self.folder = folder
        self.port = free_port()
        self.url = f"root://127.0.0.1:{self.port}/"
        self._config = work / "xrootd.cfg"
        self._log = work / "xrootd.log"
        self._config.write_text(
            f"all.role server\nall.export /\noss.localroot {folder}\nxrd.port {self.port}\n"
            f"xrd.allow host 127.0.0.1\nxrd.allow host localhost\nall.adminpath {work}/admin\nall.pidpath {work}/pid\n"
        )
        self.process = None

    def start(self):
        user = ["-R", "nobody"] if os.geteuid() == 0 else []
        self.process = subprocess.Popen(
            ["xrootd", "-c", str(self._config), "-l", str(self._log), *user],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        log = self._log.read_text() if self._log.exists() else "it wrote no log"
        raise RuntimeError(f"xrootd did not start: {log}")

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def xrootd_server(folder, work):
    require(shutil.which("xrootd"), "the xrootd server is not installed (apt install xrootd-server)")
    server = XRootDServer(folder, work)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def xrootd(sample_files):
    """Serve the sample files, from a folder that an unprivileged server can reach."""
    with tempfile.TemporaryDirectory(prefix="hepdask-xrootd-") as root:
        folder, work = Path(root, "served"), Path(root, "work")
        folder.mkdir()
        work.mkdir()
        for path in sample_files.values():
            shutil.copy(path, folder)
        os.chmod(root, 0o755)
        if os.geteuid() == 0:
            shutil.chown(work, "nobody")
        with xrootd_server(folder, work) as server:
            yield server
