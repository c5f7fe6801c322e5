"""Baskets that libdeflate decompresses: the values are those that uproot reads, and uproot stays as it is."""

import subprocess
import sys

import awkward as ak
import deflate
import numpy as np
import pytest
import uproot

from hepdask.input.read_chunk import _INFLATING


def written(path, compression, values, counts=None):
    with uproot.recreate(path, compression=compression) as file:
        array = values if counts is None else ak.unflatten(values, counts)
        file.mktree("tree", {"values": ak.type(array).content})
        file["tree"].extend({"values": array})
    return path


COMPRESSIONS = {
    "zlib": uproot.ZLIB(6), "lz4": uproot.LZ4(4), "zstd": uproot.ZSTD(3), "lzma": uproot.LZMA(1), "none": None,
}  # fmt: skip


@pytest.fixture
def inflated(monkeypatch):
    """Count the bytes that libdeflate makes."""
    sizes = []

    def count(data, size, decompress=deflate.zlib_decompress):
        sizes.append(size)
        return decompress(data, size)

    monkeypatch.setattr(deflate, "zlib_decompress", count)
    return sizes


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("jagged", [False, True])
def test_values_are_those_of_uproot(tmp_path, compression, jagged, inflated):
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 9, 5000)
    values = np.repeat(rng.normal(size=500), 100)[: counts.sum()]
    path = written(tmp_path / "some.root", COMPRESSIONS[compression], values, counts if jagged else None)
    with uproot.open(path) as file:
        expected = file["tree"].arrays()
        assert not inflated, "uproot itself takes Python's zlib"
        found = file["tree"].arrays(decompression_executor=_INFLATING, array_cache=None)
    assert ak.array_equal(found, expected, check_parameters=False)
    assert ak.to_numpy(ak.flatten(found["values"], axis=None)).tolist() == values.tolist()
    assert bool(inflated) == (compression == "zlib")


def test_a_basket_of_several_blocks(tmp_path, inflated):
    """A block holds less than 16 MiB; larger baskets have several."""
    values = np.arange(5_000_000, dtype=np.int64) // 7
    path = written(tmp_path / "large.root", uproot.ZLIB(1), values)
    with uproot.open(path) as file:
        found = file["tree"]["values"].array(library="np", decompression_executor=_INFLATING)
    assert np.array_equal(found, values)
    assert len(inflated) > 1
    assert sum(inflated) == values.nbytes


@pytest.mark.parametrize("at", ["key", "head", "data", "end"])
def test_what_is_damaged_is_refused_as_uproot_does(tmp_path, at):
    path = written(tmp_path / "damaged.root", uproot.ZLIB(6), np.arange(10_000))
    with uproot.open(path) as file:
        branch = file["tree"]["values"]
        begin, size = (int(branch.member(name)[0]) for name in ("fBasketSeek", "fBasketBytes"))
        key = branch.basket(0).member("fKeylen")
    content = bytearray(path.read_bytes())
    place = begin + {"key": 14, "head": key, "data": key + 200, "end": size - 2}[at]
    content[place : place + 2] = bytes(255 - byte for byte in content[place : place + 2])
    path.write_bytes(content)
    with uproot.open(path) as file:
        with pytest.raises(Exception) as own:  # noqa: PT011  each library has errors of its own
            file["tree"].arrays()
        with pytest.raises(Exception) as found:  # noqa: PT011
            file["tree"].arrays(decompression_executor=_INFLATING)
    assert not isinstance(found.value, (OSError, AssertionError)), "it would be tried again"
    assert at == "data" or at == "end" or type(found.value) is type(own.value)


SCRIPT = """
import json, sys, threading
import uproot, uproot.compression

def everything():
    "All functions, classes and methods of uproot, by identity."
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "uproot":
            for key, value in vars(module).items():
                if key.startswith("__") or not str(getattr(value, "__module__", "uproot")).startswith("uproot"):
                    continue
                found[name, key] = id(value)
                if isinstance(value, type):
                    for attribute, what in list(vars(value).items()):
                        found[name, key, attribute] = id(what)
                elif type(value).__module__.startswith("uproot.compression"):
                    for attribute, what in vars(value).items():
                        found[name, key, attribute] = id(what)
    return found

def differences(before, after):
    "What is another, or is new in something that was there."
    changed = [key for key, value in before.items() if after.get(key) != value]
    owners = {key[:2] for key in before}
    return changed + [key for key in after if key not in before and len(key) == 3 and key[:2] in owners]

document, kept = json.loads(sys.argv[1]), []
uproot.open(document["fileset"]["ttbar"]["files"][0])["Delphes"].arrays()  # loads what uproot loads late
kept.append(vars(uproot.compression).copy())  # no identity may be used a second time
before = everything()
import hepdask
from hepdask.config import Config
from hepdask.input import read_chunk
assert not differences(before, everything())

seen, done = [], threading.Event()
def watch():
    while not done.is_set():
        seen.append(differences(watched, watching()))

def watching():
    return {key: id(value) for key, value in vars(uproot.compression).items()} | {
        ("ZLIB", key): id(value) for key, value in vars(uproot.compression._DecompressZLIB).items()
    } | {("own", key): id(value) for key, value in vars(uproot.compression._decompress_ZLIB).items()}

watched = watching()
watcher = threading.Thread(target=watch)
watcher.start()
from distributed import Client
with Client(processes=False, dashboard_address=None) as client:
    store = hepdask.prepare(Config.model_validate(document), client).store
done.set()
watcher.join()
assert len(store) and len(seen) > 10
assert not any(seen), seen
assert not differences(before, everything()), differences(before, everything())
"""


def test_uproot_is_what_it_was_outside_of_our_reads(make_config):
    """After the import, while chunks are read in threads of this very process, and after that."""
    document = make_config().model_dump_json()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, document], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr


def test_the_executor_leaves_alone_what_is_no_basket(tmp_path):
    path = written(tmp_path / "some.root", uproot.ZLIB(6), np.arange(100))
    with uproot.open(path) as file:
        for stop in (1, 17, 40):
            chunk = file.file.source.chunk(0, stop)
            assert _INFLATING.submit(lambda chunk: chunk, chunk).result() is chunk
