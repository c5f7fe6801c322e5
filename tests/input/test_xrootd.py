"""Input over a real XRootD server that fails in every way: each event is there once, or the loss is said."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import fsspec
import pytest
from distributed import Client, LocalCluster
from helpers.requirements import require
from helpers.servers import free_port, new_key, xrootd_server
from helpers.stores import assert_equal, paths_below

from hepdask import open_store, prepare
from hepdask.config import XRootD
from hepdask.errors import InputError
from hepdask.input import xrootd as client
from hepdask.input.fileset import input_files

pytestmark = pytest.mark.timeout(240)

NAMES = ("qcd", "ttbar", "wjets")
#: Short bounds of the client: a fault is noticed within seconds.
BOUNDS = {
    "connection_window": 2, "connection_retry": 2, "request_timeout": 4, "stream_timeout": 3, "stream_error_window": 4,
}  # fmt: skip


def longest(config):
    """Twice the time that the configuration gives to opening a file and reading it, and a lazy machine's 20 s."""
    reading = config.input
    x = reading.xrootd
    once = (
        x.connection_window * x.connection_retry
        + x.request_timeout
        + x.stream_timeout
        + x.stream_error_window
    )
    waits = sum(1.5 * reading.retry_wait * 2**attempt for attempt in range(reading.read_retries))
    return 2 * 2 * ((reading.read_retries + 1) * once + waits) + 20


@pytest.fixture(scope="module")
def workers():
    """A cluster of its own: the XRootD client takes its bounds once in the life of a process."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=40
        ) as cluster,
        Client(cluster) as connected,
    ):  # fmt: skip
        yield connected


@pytest.fixture
def remote(make_config):
    """Make a configuration that reads the sample files from a server."""

    def make(server, output=None, files=None, max_lost_fraction=0.0, **reading):
        files = files or {name: [f"{server.url}/{name}.root"] for name in NAMES}
        settings = {"read_retries": 1, "retry_wait": 0.1, "xrootd": BOUNDS, "chunk_events": 25, **reading}
        return make_config(
            files=files,
            input=settings,
            store={"max_lost_fraction": max_lost_fraction},
            **({"output": str(output)} if output else {}),
        )

    return make


@pytest.fixture
def local_store(make_config, client, tmp_path):
    """The store of the same files, read from disk."""
    return prepare(make_config(output=str(tmp_path / "disk")), client).store


@contextmanager
def while_writing(config, sabotage):
    """Run something as soon as the store begins to fill, and make sure that it came before the end."""
    before = len(paths_below(config.store_path))

    def watch():
        deadline = time.monotonic() + 120
        while len(paths_below(config.store_path)) < before + 20:
            assert time.monotonic() < deadline, "nothing was written"
            time.sleep(0.005)
        sabotage()
        return len(paths_below(config.store_path))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        yield
        written = watching.result(timeout=130)
    assert written < len(paths_below(config.store_path)), "the run was over before anything happened to it"


def assert_fails_in_time(config, client, match):
    begin = time.monotonic()
    with pytest.raises(InputError, match=match):
        prepare(config, client)
    assert time.monotonic() - begin < longest(config)


class TestFaults:
    def test_permission_denied_is_said_at_once(self, remote, workers, xrootd):
        (xrootd.folder / "ttbar.root").chmod(0)
        with pytest.raises(InputError, match=r"ttbar\.root.*[Pp]ermission denied.*fileset\.ttbar") as caught:
            prepare(remote(xrootd), workers)
        assert "attempts" not in str(caught.value), "what is forbidden is not asked for again"

    def test_a_directory_that_may_not_be_listed(self, remote, xrootd):
        closed = xrootd.folder / "closed"
        closed.mkdir(mode=0)
        with pytest.raises(InputError, match=r"closed/.*cannot be listed.*[Pp]ermission denied"):
            input_files(remote(xrootd, files={"ttbar": [f"{xrootd.url}/closed/"]}))

    def test_a_missing_directory(self, remote, xrootd):
        with pytest.raises(InputError, match=r"nowhere/.*cannot be listed.*[Nn]o such"):
            input_files(remote(xrootd, files={"ttbar": [f"{xrootd.url}/nowhere/"]}))

    @pytest.mark.parametrize("kept", [0.0, 0.5])
    def test_a_truncated_file_is_named(self, remote, workers, xrootd, kept):
        path = xrootd.folder / "wjets.root"
        os.truncate(path, int(path.stat().st_size * kept))
        assert_fails_in_time(remote(xrootd), workers, r"wjets\.root")

    def test_a_file_truncated_while_it_is_read(self, remote, workers, xrootd):
        path = xrootd.folder / "wjets.root"
        config = remote(xrootd, chunk_events=1)
        with (
            while_writing(config, lambda: os.truncate(path, 2000)),
            pytest.raises(InputError, match=r"wjets\.root"),
        ):
            prepare(config, workers)

    def test_a_lost_file_within_the_limit_costs_just_its_entries(self, remote, workers, xrootd, local_store):
        (xrootd.folder / "qcd.root").write_bytes(b"root")
        store = prepare(remote(xrootd, max_lost_fraction=0.5), workers).store
        assert [lost["path"] for lost in store.manifest["lost"]] == [f"{xrootd.url}/qcd.root"]
        assert any("qcd.root" in note for note in store.manifest["notes"])
        whole, left = local_store.arrays(), store.arrays()
        kept = whole[whole.label != 0]
        assert left.entry.tolist() == kept.entry.tolist()
        assert left.particles.Pt.tolist() == kept.particles.Pt.tolist()


def test_what_the_client_tells_in_its_text_only(xrootd):
    """fsspec-xrootd and the client have no other sign of these: here are their real errors."""
    client.set_bounds(XRootD(**BOUNDS))
    files, path = fsspec.core.url_to_fs(f"{xrootd.url}/nowhere.root")
    with pytest.raises(OSError) as gone:  # noqa: PT011
        files.open(path)
    assert client.is_not_found(gone.value)
    assert client.is_final(gone.value)
    files, path = fsspec.core.url_to_fs(f"{xrootd.url}/ttbar.root")
    opened = files.open(path)
    opened._myFile.close()  # as a lost connection does
    with pytest.raises(ValueError) as closed:  # noqa: PT011
        opened._fetch_range(0, 100)
    assert client.is_of_closed_file(closed.value)
    assert not client.is_of_closed_file(gone.value)


class TestServer:
    def test_killed_and_started_again_while_it_is_read(self, remote, workers, xrootd, local_store):
        def sabotage():
            xrootd.stop()
            time.sleep(1.5)
            xrootd.start()

        config = remote(xrootd, chunk_events=2, read_retries=6, retry_wait=0.3)
        begin = time.monotonic()
        with while_writing(config, sabotage):
            store = prepare(config, workers).store
        assert time.monotonic() - begin < longest(config)
        assert store.manifest["lost"] == []
        assert_equal(store, local_store)

    def test_killed_for_good_while_it_is_read(self, remote, workers, xrootd, local_store):
        config = remote(xrootd, chunk_events=1)
        begin = time.monotonic()
        with while_writing(config, xrootd.stop), pytest.raises(InputError, match=r"root://.*attempts"):
            prepare(config, workers)
        assert time.monotonic() - begin < longest(config)
        done = len(paths_below(config.store_path))
        xrootd.start()
        # the client in the workers does not ask a server again at once
        again = prepare(remote(xrootd, chunk_events=1, read_retries=6, retry_wait=0.3), workers)
        assert done < len(paths_below(config.store_path))
        assert again.tasks < sum((70, 60, 50)), "what was there is not read again"
        assert_equal(again.store, local_store)

    def test_hung_for_a_while(self, remote, workers, xrootd, local_store):
        def sabotage():
            xrootd.freeze()
            time.sleep(2)
            xrootd.thaw()

        config = remote(xrootd, chunk_events=2, read_retries=6, retry_wait=0.3)
        begin = time.monotonic()
        with while_writing(config, sabotage):
            store = prepare(config, workers).store
        assert time.monotonic() - begin < longest(config)
        assert_equal(store, local_store)

    def test_hung_for_good(self, remote, workers, xrootd):
        xrootd.freeze()
        assert_fails_in_time(remote(xrootd), workers, r"ttbar\.root: not readable after 2 attempts")

    def test_a_hung_server_is_not_waited_for_in_a_listing(self, remote, xrootd, tmp_path):
        """In a process of its own, where no earlier reading has set the bounds of the client."""
        xrootd.freeze()
        config = remote(xrootd, files={"ttbar": [f"{xrootd.url}/"]})
        begin = time.monotonic()
        answer = command(config, tmp_path)
        assert time.monotonic() - begin < longest(config)
        assert answer.returncode == 1
        assert "cannot be listed" in answer.stderr
        assert "Traceback" not in answer.stderr


class TestBounds:
    """What a process has once set does not outlive the next configuration, nor reach the workers it starts."""

    SCRIPT = """
import os
from XRootD.client import EnvGetInt
from hepdask.config import XRootD
from hepdask.input.xrootd import set_bounds
for seconds in (30, 4):
    set_bounds(XRootD(stream_error_window=seconds))
    print(EnvGetInt("StreamErrorWindow"), os.environ.get("XRD_STREAMERRORWINDOW"))
"""

    @pytest.mark.parametrize(
        ("shell", "seen"), [({}, "30 None 4 None"), ({"XRD_STREAMERRORWINDOW": "7"}, "7 7 7 7")]
    )
    def test_the_last_configuration_holds_unless_the_shell_has_its_own(self, shell, seen):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("XRD_")}
        out = subprocess.run(
            [sys.executable, "-c", self.SCRIPT], env=clean | shell, capture_output=True, text=True, check=True
        )
        assert " ".join(out.stdout.split()) == seen


class TestRoutes:
    """Replicas: addresses that are tried in turn."""

    def test_one_of_two_replicas_is_dead(self, remote, workers, xrootd, local_store):
        dead = f"root://127.0.0.1:{free_port()}/"
        files = {name: [f"{dead}/{name}.root"] for name in NAMES}
        config = remote(xrootd, files=files, routes=["{url}", f"{xrootd.url}{{path}}"])
        begin = time.monotonic()
        store = prepare(config, workers).store
        assert time.monotonic() - begin < longest(config)
        assert store.manifest["lost"] == []
        assert_equal(store, local_store)

    def test_a_replica_that_dies_while_it_is_read(self, remote, workers, xrootd, sample_files, local_store):
        with xrootd_server(sample_files.values()) as other:
            config = remote(xrootd, chunk_events=2, routes=["{url}", f"{other.url}{{path}}"])
            begin = time.monotonic()
            with while_writing(config, xrootd.stop):
                store = prepare(config, workers).store
        assert time.monotonic() - begin < longest(config)
        assert_equal(store, local_store)

    def test_a_replica_that_lacks_a_file_or_holds_it_damaged(
        self, remote, workers, xrootd, sample_files, local_store
    ):
        with xrootd_server(sample_files.values()) as other:
            (xrootd.folder / "ttbar.root").unlink()
            os.truncate(xrootd.folder / "qcd.root", 1000)
            config = remote(xrootd, routes=["{url}", f"{other.url}{{path}}"])
            assert_equal(prepare(config, workers).store, local_store)

    def test_both_dead_is_said(self, remote, workers, xrootd):
        dead = f"root://127.0.0.1:{free_port()}/"
        xrootd.stop()
        config = remote(xrootd, routes=["{url}", f"{dead}{{path}}"])
        assert_fails_in_time(config, workers, r"ttbar\.root: not readable")

    def test_another_route_to_the_same_events_makes_the_same_store(
        self, remote, workers, xrootd, sample_files, tmp_path
    ):
        """Which replica answered is no property of the events: nothing is prepared twice."""
        dead = f"root://127.0.0.1:{free_port()}/"
        first = prepare(remote(xrootd, routes=[f"{xrootd.url}{{path}}"]), workers)
        second = prepare(remote(xrootd, routes=[f"{dead}{{path}}", "{url}"]), workers)
        assert first.tasks > 0
        assert second.tasks == 0
        assert second.store.fingerprint == first.store.fingerprint


def test_what_was_lost_is_tried_again_alone(remote, workers, xrootd, local_store, tmp_path):
    good = (xrootd.folder / "qcd.root").read_bytes()
    (xrootd.folder / "qcd.root").write_bytes(b"root")
    config = remote(xrootd, max_lost_fraction=0.5)
    first = prepare(config, workers).store
    [lost] = first.manifest["lost"]
    assert lost.keys() >= {"path", "start", "stop", "reason"}
    assert lost["path"].endswith("qcd.root")
    (xrootd.folder / "qcd.root").write_bytes(good)
    answer = command(config, tmp_path, "--retry-lost")
    assert answer.returncode == 0, answer.stderr
    again = prepare(config, workers)
    assert again.tasks == 0, "--retry-lost left nothing to do"
    assert again.store.manifest["lost"] == []
    assert_equal(again.store, local_store)


def command(config, folder, *options, **environment):
    """Run `hepdask prepare` as a person does."""
    document = folder / "config.json"
    document.write_text(config.model_dump_json(exclude_unset=True))
    return subprocess.run(
        [sys.executable, "-m", "hepdask", "prepare", str(document), *options],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


class TestSharedSecret:
    """A server that serves only who holds its key (XRootD's sss protocol)."""

    @pytest.fixture
    def key(self, tmp_path):
        require(shutil.which("xrdsssadmin"), "xrdsssadmin is not installed (apt install xrootd-server)")
        return new_key(tmp_path / "key.keytab")

    @pytest.fixture
    def guarded(self, sample_files, key):
        require(shutil.which("xrootd"), "the xrootd server is not installed (apt install xrootd-server)")
        with xrootd_server(sample_files.values(), key) as server:
            yield server

    def test_who_holds_the_key_can_list_and_read(
        self, make_config, remote, client, guarded, key, sample_files, tmp_path
    ):
        config = remote(guarded, files={"ttbar": [f"{guarded.url}/"]})
        answer = command(config, tmp_path, XrdSecSSSKT=str(key))
        assert answer.returncode == 0, answer.stderr
        files = {"ttbar": list(sample_files.values())}
        expected = prepare(make_config(files=files, output=str(tmp_path / "disk")), client).store
        assert_equal(open_store(config.store_path), expected)

    def test_another_key_is_refused(self, remote, guarded, tmp_path):
        other = new_key(tmp_path / "other.keytab")
        config = remote(guarded, files={"ttbar": [f"{guarded.url}/"]})
        answer = command(config, tmp_path, XrdSecSSSKT=str(other))
        assert answer.returncode == 1
        assert "cannot be listed" in answer.stderr
        assert "Auth failed" in answer.stderr
        assert "Traceback" not in answer.stderr

    def test_without_a_key_nothing_is_read(self, remote, workers, guarded):
        assert_fails_in_time(remote(guarded), workers, r"ttbar\.root.*Auth failed")
