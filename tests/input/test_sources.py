"""Where input comes from and where stores lie: several addresses, formats and kinds of storage."""

import gc
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
import zlib
from functools import partial
from pathlib import Path

import awkward as ak
import deflate
import numpy as np
import pytest
import uproot
from helpers import events as made
from helpers.servers import free_port
from helpers.stores import assert_equal

from hepdask import inspect, load_config, open_store, prepare
from hepdask.analysis.topology import branches
from hepdask.clusters.task_pool import completed
from hepdask.config import Config, Input, Topology
from hepdask.errors import ConfigError, InputError, StoreError
from hepdask.files.lock import locked
from hepdask.input.contents import inspect_file
from hepdask.input.input_file import InputFile
from hepdask.input.read_chunk import read
from hepdask.input.routes import address_of, read_with_retries
from hepdask.pipeline import open_inputs
from hepdask.pipeline.prepare import summary


@pytest.fixture
def plain(make_config, client, tmp_path):
    return prepare(make_config(output=str(tmp_path / "plain")), client).store


class TestRoutes:
    @pytest.mark.parametrize(
        ("url", "template", "expected"),
        [
            ("root://a:1094//store/x.root", "{url}", "root://a:1094//store/x.root"),
            ("root://a//store/x.root", "root://b:2/{path}", "root://b:2//store/x.root"),
            ("root://a//store/x.root", "root://cache//{url}", "root://cache//root://a//store/x.root"),
            ("/data/x.root", "root://b/{path}", "root://b//data/x.root"),
        ],
    )
    def test_addresses(self, url, template, expected):
        assert address_of(url, template) == expected

    def test_the_first_that_works_is_used_and_remembered(self):
        reading = Input(routes=("one:{url}", "two:{url}"), retry_wait=0)
        asked = []

        def attempt(address):
            asked.append(address)
            if address.startswith("one"):
                raise OSError("down")
            return address

        assert read_with_retries(attempt, "x", reading) == "two:x"
        assert read_with_retries(attempt, "y", reading) == "two:y"
        assert asked == ["one:x", "two:x", "two:y"]

    def test_a_damaged_copy_is_passed_over(self):
        reading = Input(routes=("bad:{url}", "good:{url}"))

        def attempt(address):
            if address.startswith("bad"):
                raise InputError("not a ROOT file")
            return address

        assert read_with_retries(attempt, "x", reading) == "good:x"

    def test_every_route_is_named_when_none_works(self):
        reading = Input(routes=("p:{url}", "q:{url}"), retry_wait=0, read_retries=3)
        asked = []

        def attempt(address):
            asked.append(address)
            raise OSError(f"{address} is down")

        with pytest.raises(InputError, match=r"(?s)p:x: not readable after 4 attempts.*q:x: not readable"):
            read_with_retries(attempt, "x", reading)
        assert len(asked) == 8

    def test_a_dead_replica_costs_no_event(self, make_config, client, sample_files, tmp_path, plain):
        moved = tmp_path / "elsewhere"
        files = {}
        for name, path in sample_files.items():
            target = moved / os.path.abspath(path).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            files[name] = [path]
        gone = tmp_path / "gone"
        routes = [f"{gone}{{path}}", f"{moved}{{path}}"]
        store = prepare(make_config(input={"routes": routes}, output=str(tmp_path / "moved")), client).store
        assert_equal(store, plain)


class TestReading:
    @pytest.fixture
    def chunk(self, tmp_path):
        path = tmp_path / "some.root"
        made.write_root(path, made.random_events(300, seed=3))  # zlib
        file = InputFile("ttbar", 1, str(path), "Delphes")
        return inspect_file(file, str(path), branches(Topology()), {}, Input()).chunks[0]

    def test_nothing_of_a_file_is_kept(self, chunk):
        """Uproot's files are garbage in cycles, which may live for long: no array may hang on them."""
        read(chunk, branches(Topology()))  # what is loaded once
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            events = read(chunk, branches(Topology()))
            before, _ = tracemalloc.get_traced_memory()
            assert before > events.nbytes, "arrays are not traced"
            for _ in range(8):
                read(chunk, branches(Topology()))
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
        described = before - events.nbytes  # what is known of one file, without what is in it
        assert after - before < 8 * (described + events.nbytes / 2)

    def test_zlib_is_read_by_libdeflate(self, chunk, monkeypatch):
        sizes = []

        def inflate(data, size, inflate=deflate.zlib_decompress):
            sizes.append(size)
            return inflate(data, size)

        monkeypatch.setattr(deflate, "zlib_decompress", inflate)
        events = read(chunk, branches(Topology()))
        assert sum(sizes) >= events.nbytes / 2


class TestFormats:
    def test_rntuple(self, make_config, client, tmp_path):
        events = made.random_events(60, seed=21)
        array = made.to_awkward(events, np.float32)
        with uproot.recreate(tmp_path / "new.root") as file:
            file.mkrntuple("Delphes", {name: array[name] for name in array.fields})
        made.write_root(tmp_path / "old.root", events)
        new, old = (
            prepare(
                make_config(files={"ttbar": [str(tmp_path / f"{age}.root")]}, output=str(tmp_path / age)),
                client,
            ).store
            for age in ("new", "old")
        )
        assert_equal(new, old)
        with pytest.raises(InputError, match=r"no branch Photon\.ET"):
            prepare(
                make_config(
                    files={"ttbar": [str(tmp_path / "new.root")]},
                    analysis={"collections": {"photon": "Photon"}},
                    output=str(tmp_path / "wrong"),
                ),
                client,
            )

    def test_rntuple_with_dots_in_its_names(self, make_config, client, tmp_path):
        """Flat fields, records, and records with dots in their names: one answer for all that read them."""
        events = made.random_events(40, seed=22)
        whole = made.to_awkward(events, np.float32)
        flat = {f"{c}.{f}": whole[c][f] for c in whole.fields for f in whole[c].fields}
        nested = {name: whole[name] for name in whole.fields}
        some = {name: array for name, array in flat.items() if name.startswith("Jet.")}
        one = {"Extra.Weight": np.arange(40.0), "Extra.Deep.Er": whole.Jet.PT}
        layouts = {
            "flat": flat, "nested": nested, "mixed": {**{n: nested[n] for n in nested if n != "Jet"}, **some, **one},
        }  # fmt: skip
        stores = []
        for name, layout in layouts.items():
            path = str(tmp_path / f"{name}.root")
            with uproot.recreate(path) as file:
                file["Delphes"] = layout
            (tree,) = inspect(path)["trees"]
            assert tree["entries"] == 40
            assert tree["missing"] == []
            stores.append(
                prepare(make_config(files={"ttbar": [path]}, output=str(tmp_path / name)), client).store
            )
        made.write_root(tmp_path / "tree.root", events)
        config = make_config(files={"ttbar": [str(tmp_path / "tree.root")]}, output=str(tmp_path / "tree"))
        expected = prepare(config, client).store
        for store in stores:
            assert_equal(store, expected)
        file = InputFile("ttbar", 1, str(tmp_path / "mixed.root"), "Delphes")
        chunk = inspect_file(file, file.path, branches(Topology()), {}, Input()).chunks[0]
        found = read(chunk, {"Extra": ("Deep.Er",)})
        assert found.Extra["Deep.Er"].tolist() == whole.Jet.PT.tolist()
        with pytest.raises(InputError, match=r"mixed\.root: Extra\.Weight is not a list of numbers"):
            read(chunk, {"Extra": ("Weight",)})

    def test_what_is_no_tree(self, make_config, client, tmp_path):
        path = str(tmp_path / "many.root")
        made.write_root(path, made.random_events(20, seed=23), tree="deep/down/Events")
        with uproot.update(path) as file:
            file["h"] = np.histogram([1.0, 2.0])
            file["words"] = "some words"
        for name, kind in (
            ("h", "TH1D"),
            ("deep", "folder"),
            ("words", "TObjString"),
            ("deep/down", "folder"),
        ):
            with pytest.raises(
                InputError, match=rf"{name} is a {kind}, no tree; there are: deep/down/Events"
            ):
                prepare(make_config(files={"ttbar": {path: name}}, output=str(tmp_path / kind)), client)
        assert [tree["name"] for tree in inspect(path)["trees"]] == ["deep/down/Events"]
        store = prepare(make_config(files={"ttbar": {path: "deep/down/Events"}}), client).store
        assert store.manifest["selection"][0]["events_read"] == 20

    def test_http(self, make_config, client, sample_files, tmp_path, plain):
        folder = os.path.dirname(sample_files["ttbar"])
        handler = partial(_Ranges, directory=folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            base = f"http://127.0.0.1:{server.server_port}"
            files = {name: [f"{base}/{name}.root"] for name in sample_files}
            store = prepare(make_config(files=files, output=str(tmp_path / "http")), client).store
            server.shutdown()
        assert_equal(store, plain)


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """A web server that knows ranges, as those of data do."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.translate_path(self.path)
        if not os.path.isfile(path):
            self.send_error(404)
            return
        content = Path(path).read_bytes()
        start, stop, status = 0, len(content), 200
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), min(int(last or stop - 1) + 1, stop), 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(content[start:stop])


class TestFileset:
    def preprocessed(self, path, **more):
        with uproot.open(path) as file:
            uuid, entries = str(file["Delphes"].file.uuid), file["Delphes"].num_entries
        return {"object_path": "Delphes", "uuid": uuid, "num_entries": entries, **more}

    def test_coffeas_preprocessed_form(self, make_config, client, sample_files, tmp_path, plain):
        from coffea.dataset_tools.filespec import CoffeaROOTFileSpec

        files = {}
        for name, path in sample_files.items():
            known = self.preprocessed(path)
            steps = [
                [start, min(start + 20, known["num_entries"])] for start in range(0, known["num_entries"], 20)
            ]
            spec = CoffeaROOTFileSpec(**known, steps=steps)
            files[name] = {path: json.loads(spec.model_dump_json())}
        store = prepare(make_config(files=files, output=str(tmp_path / "ready")), client).store
        assert_equal(store, plain)
        assert {part["stop"] - part["start"] for part in store.parts} == {20, 10}

    def test_only_the_steps_are_read(self, make_config, client, sample_files, tmp_path):
        path = sample_files["ttbar"]
        files = {"ttbar": {path: self.preprocessed(path, steps=[[10, 30], [50, 60]])}}
        store = prepare(make_config(files=files), client).store
        assert store.manifest["selection"][0]["events_read"] == 30
        entry = store.arrays().entry
        assert ak.all(((entry >= 10) & (entry < 30)) | ((entry >= 50) & (entry < 60)))

    @pytest.mark.parametrize("steps", [[[10, 5]], [[0, 10], [5, 20]], [[0, 1000]]])
    def test_wrong_steps_are_refused(self, make_config, sample_files, steps):
        path = sample_files["ttbar"]
        with pytest.raises(ValueError, match="steps"):
            make_config(files={"ttbar": {path: self.preprocessed(path, steps=steps)}})

    def test_another_file_under_the_same_name(self, make_config, client, sample_files):
        known = self.preprocessed(sample_files["wjets"], steps=[[0, 10]])
        files = {"ttbar": {sample_files["ttbar"]: known}}
        with pytest.raises(InputError, match="UUID"):
            prepare(make_config(files=files), client)

    @pytest.mark.parametrize("algorithm", ["adler32", "md5", "sha256"])
    def test_checksums(self, make_config, client, sample_files, tmp_path, algorithm):
        path = str(tmp_path / "one.root")
        shutil.copy(sample_files["ttbar"], path)
        content = Path(path).read_bytes()
        digest = (
            f"{zlib.adler32(content):x}"
            if algorithm == "adler32"
            else hashlib.new(algorithm, content).hexdigest()
        )
        files = {"ttbar": {path: {"object_path": "Delphes", "checksum": f"{algorithm}:{digest}"}}}
        assert len(prepare(make_config(files=files), client).store)
        with open(path, "r+b") as file:
            file.seek(len(content) // 2)
            byte = file.read(1)
            file.seek(len(content) // 2)
            file.write(bytes([byte[0] ^ 1]))
        with pytest.raises(InputError, match=f"damaged or another file: its checksum is {algorithm}"):
            prepare(make_config(files=files, output=str(tmp_path / "again")), client)

    def test_a_checksum_belongs_to_one_file(self, make_config, client, sample_files):
        pattern = os.path.dirname(sample_files["ttbar"]) + "/*.root"
        with pytest.raises(ConfigError, match="one file each"):
            prepare(make_config(files={"ttbar": {pattern: {"checksum": "adler32:1"}}}), client)


class TestAgain:
    def test_nothing_changed_needs_no_cluster(self, make_config, client):
        config = make_config()
        prepare(config, client)
        # an address at which nothing listens: asking for a cluster would fail
        config = config.model_copy(update={"cluster": f"tcp://127.0.0.1:{free_port()}"})
        assert prepare(config).tasks == 0

    def test_only_new_files_are_opened(self, make_config, client, sample_files, tmp_path, monkeypatch):
        old = str(tmp_path / "old.root")
        shutil.copy(sample_files["ttbar"], old)
        prepare(make_config(files={"ttbar": [old]}), client)
        opened = []

        def noted(client, function, items, *arguments, **settings):
            opened.append([file.path for file in items])
            return completed(client, function, items, *arguments, **settings)

        monkeypatch.setattr(open_inputs, "completed", noted)
        both = make_config(files={"ttbar": [old], "wjets": [sample_files["wjets"]]})
        store = prepare(both, client).store
        assert [row["events_read"] for row in store.manifest["selection"]] == [70, 60]
        assert opened == [[sample_files["wjets"]]]
        with open(old, "r+b") as file:  # no longer a ROOT file, but of the same age and size
            file.write(b"xxxx")
        stamp = os.stat(sample_files["ttbar"])
        os.utime(old, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        with pytest.raises(InputError, match="not a readable ROOT file"):
            prepare(both, client)
        assert opened[1:] == [[old]]

    def test_what_was_lost_comes_back_when_asked_for(self, make_config, client, sample_files, tmp_path):
        late = str(tmp_path / "late.root")
        config = make_config(
            files={"ttbar": [sample_files["ttbar"], late], "wjets": [sample_files["wjets"]]},
            input={"read_retries": 0},
            store={"max_lost_fraction": 0.9},
        )
        store = prepare(config, client).store
        assert [item["path"] for item in store.manifest["lost"]] == [late]
        assert store.manifest["selection"][0]["files_lost"] == 1
        assert any("1 files lost" in line for line in summary(store))
        made.write_root(late, made.random_events(30, seed=77))
        assert prepare(config, client).tasks == 0
        assert len(open_store(config.store_path)) == len(store)
        again = prepare(config, client, retry_lost=True)
        assert again.tasks == 2
        assert again.store.manifest["lost"] == []
        assert again.store.manifest["selection"][0]["events_read"] == 100

    def test_a_failed_run_leaves_its_ledger(self, make_config, client, tmp_path):
        files = [str(tmp_path / f"{i}.root") for i in range(8)]
        config = make_config(files={"ttbar": files}, input={"read_retries": 0})
        with pytest.raises(InputError, match=r"and 3 more, all of them in .*lost\.json"):
            prepare(config, client)
        ledger = json.loads((config.store_path / "lost.json").read_text())
        assert [item["path"] for item in ledger["lost"]] == files


class TestLock:
    def test_the_second_driver_is_refused(self, make_config, client):
        config = make_config()
        prepare(config, client)
        code = (
            "import sys; from pathlib import Path; from hepdask.files.lock import locked\n"
            "with locked(Path(sys.argv[1]), 'writing this store'):\n  print('have it', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(config.store_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as other:  # fmt: skip
            assert other.stdout.readline() == "have it\n"
            with pytest.raises(StoreError, match=f"process {other.pid} .* is writing this store"):
                prepare(config, client)
            other.kill()  # whatever kills the owner frees the lock
            other.wait()
            assert prepare(config, client).tasks == 0


class TestRounding:
    def test_smaller_and_as_exact_as_said(self, make_config, client, tmp_path, plain):
        rounded = prepare(
            make_config(store={"mantissa_bits": 10}, output=str(tmp_path / "rounded")), client
        ).store
        exact, rough = plain.events().particles, rounded.events().particles
        for name, column in exact.items():
            if column.dtype != np.float32:
                assert (rough[name] == column).all()
                continue
            assert (
                np.abs(rough[name] - column) == pytest.approx(0, abs=0)
                or (np.abs(rough[name] - column) <= 2.0**-11 * np.abs(column) * (1 + 1e-6)).all()
            )
            assert (rough[name].view(np.uint32) & ((1 << 13) - 1) == 0).all()
        assert np.array_equal(rounded.events().high_level, plain.events().high_level)
        assert inspect(str(rounded.path), deep=True)["damaged"] == []


@pytest.fixture(scope="module")
def bucket():
    """A local server that speaks S3, and where it is told to the library by the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
    server.stop()


class TestObjectStore:
    @pytest.fixture
    def remote(self, make_config, bucket, request):
        def make(**changes):
            store = {"path": f"{bucket}/{request.node.name}.zarr", **changes.pop("store", {})}
            return make_config(
                store=store, cluster={"kind": "local", "workers": 1, "dashboard_port": 0}, **changes
            )

        return make

    def test_the_same_store_as_on_disk(self, remote, plain, sample_files):
        config = remote()
        store = prepare(config).store
        assert_equal(store, plain)
        assert inspect(str(config.store.path), deep=True)["damaged"] == []
        assert prepare(config).tasks == 0

    def test_input_from_there(self, make_config, remote, bucket, sample_files, tmp_path, plain):
        import s3fs

        files = {}
        for name, path in sample_files.items():
            s3fs.S3FileSystem().put_file(path, f"bucket/input/{name}.root")
            files[name] = [f"{bucket}/input/{name}.root"]
        assert_equal(prepare(make_config(files=files, output=str(tmp_path / "from-s3"))).store, plain)

    def test_a_part_without_its_end_is_made_again(self, remote, plain):
        config = remote()
        store = prepare(config).store
        name = store.parts[0]["name"]
        (config.store_path / "parts" / f"{name}.zip").write_bytes(b"PK")
        (config.store_path / "manifest.json").unlink()
        again = prepare(config)
        assert again.tasks == 1
        assert_equal(again.store, plain)

    def test_the_second_driver_is_refused(self, remote, bucket):
        config = remote()
        with (
            locked(config.store_path, "writing this store"),
            pytest.raises(StoreError, match="is writing this store"),
        ):
            prepare(config)
        prepare(config)

    def test_the_lock_of_a_dead_driver_is_taken_over(self, remote):
        config = remote()
        code = (
            "import sys, os; from hepdask.files.folders import folder; from hepdask.files.lock import locked\n"
            "with locked(folder(sys.argv[1]), 'writing this store'):\n  os.kill(os.getpid(), 9)"
        )
        died = subprocess.run([sys.executable, "-c", code, str(config.store.path)], check=False)
        assert died.returncode == -9
        assert (config.store_path / "lock.json").exists()
        assert len(prepare(config).store)
        assert not (config.store_path / "lock.json").exists()


def test_a_configuration_file_may_hold_a_remote_store(tmp_path):
    (tmp_path / "c.yaml").write_text("store: {path: 's3://bucket/x.zarr'}\n")
    config = load_config(tmp_path / "c.yaml")
    assert isinstance(config, Config)
    assert str(config.store_path) == "s3://bucket/x.zarr"
