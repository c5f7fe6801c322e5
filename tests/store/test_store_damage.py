"""Whatever becomes of the bytes of a store, and whoever made it: the right events, or a sentence that says why not."""

import json
import os
import pickle
import shutil
import stat
import struct
import tracemalloc
import uuid
import zipfile
from pathlib import Path

import numcodecs
import numpy as np
import pytest
from helpers import events as made
from helpers.stores import assert_equal, change_manifest, members, pack, rewrite

from hepdask import inspect, open_store, prepare
from hepdask.config import Config
from hepdask.errors import HepdaskError, StoreError
from hepdask.store.layout import INPUTS, MANIFEST, ROOT, part_file

CLASSES = ("qcd", "ttbar", "wjets")


def configuration(folder, events=8):
    """Give one small file a class."""
    fileset = {}
    for seed, name in enumerate(CLASSES):
        file = folder / f"{name}.root"
        if not file.exists():
            made.write_root(
                file, made.random_events(events, seed, candidates=4), identity=uuid.UUID(int=seed)
            )
        fileset[name] = {"files": [str(file)], "metadata": {"label": name}}
    return Config.model_validate(
        {"output": str(folder / "run"), "fileset": fileset, "split": {"test_fraction": 0.4, "balance": False}}
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory, client):
    return prepare(configuration(tmp_path_factory.mktemp("original")), client).store


@pytest.fixture
def store(original, tmp_path):
    """Give a copy that a test may damage."""
    shutil.copytree(original.path, tmp_path / "store.zarr")
    return tmp_path / "store.zarr"


def answers(path):
    """Everything that a store is asked for, as bytes."""
    store = open_store(path)
    found = []
    for sample in ("fit", "test"):
        events = store.events(sample)
        found += [events.offsets.tobytes(), events.high_level.tobytes(), events.label.tobytes()]
        found += [events.entry.tobytes(), *(column.tobytes() for column in events.particles.values())]
    return [store.fingerprint, *found]


def ways_to_flip(content, places):
    """Give copies of some bytes with one of them changed, in its lowest bit or in all, by turns."""
    for turn, place in enumerate(places):
        changed = content[place] ^ (0xFF if turn % 2 else 0x01)
        yield f"byte {place} is {changed}", content[:place] + bytes([changed]) + content[place + 1 :]


def ways_to_cut(content):
    for share in (0.0, 0.3, 0.6, 0.9):
        place = int(len(content) * share)
        yield f"cut at {place}", content[:place]
    yield "without its last byte", content[:-1]
    yield "with a byte more", content + b"\0"


def places_of_each_kind(path):
    """List bytes of an archive: of headers, names, data and JSON of two arrays, and of its directory."""
    content = path.read_bytes()
    places = set(range(len(content) - 22, len(content)))
    with zipfile.ZipFile(path) as archive:
        places |= set(range(archive.start_dir, archive.start_dir + 60))
        for name in (
            "zarr.json", "group/zarr.json", "group/c/0", "entry/c/0", "offsets/c/0", "Pt/c/0",
            "high_level/c/0/0", "kind/c/0",
        ):  # fmt: skip
            info = archive.getinfo(name)
            data = info.header_offset + 30 + len(name)
            step = max(1, info.file_size // 4)
            places |= {info.header_offset, info.header_offset + 14, info.header_offset + 26, data - 1}
            places |= set(range(data, data + min(info.file_size, 16), 3))
            places |= set(range(data + step // 2, data + info.file_size, step))
    return content, sorted(places)


def right_or_said(path, truth, what, named):
    """Ask a store that was changed; say whether it still gave what it should."""
    try:
        assert answers(path) == truth, f"{what}: another result"
    except HepdaskError as error:
        said = str(error)
        assert named in said, (what, said)
        assert "\n" not in said
        assert not any(word in said for word in ("Traceback", "Error(", "KeyError", "NoneType")), (what, said)
        return False
    return True


def test_no_byte_of_a_part_changes_a_result(original, store):
    truth, name = answers(original.path), original.parts[0]["name"]
    file = part_file(store, name)
    content, places = places_of_each_kind(file)
    harmless = []
    for what, bad in (*ways_to_flip(content, places), *ways_to_cut(content)):
        file.write_bytes(bad)
        if right_or_said(store, truth, what, name):
            harmless.append(what)
    assert len(harmless) < 0.6 * len(places), "hardly anything was damaged: the test shows nothing"
    file.unlink()
    assert not right_or_said(store, truth, "deleted", name)
    inside = members(part_file(original.path, name))
    unread = ("zarr.json", "fingerprint/")  # what only `prepare` reads
    for gone in [key for key in inside if not key.startswith(unread)]:
        pack(file, {key: value for key, value in inside.items() if key != gone})
        named = f"{gone} is missing" if "/c/" in gone else f"{name}/{gone}: is missing"
        assert not right_or_said(store, truth, f"without {gone}", named)


@pytest.mark.parametrize("name", [MANIFEST, ROOT, INPUTS])
def test_no_byte_of_its_json_changes_a_result(original, store, name):
    truth, file = answers(original.path), store / name
    content = file.read_bytes()
    places = range(0, len(content), max(1, len(content) // (40 if name == MANIFEST else 8)))
    others = [("empty", b"{}"), ("a list", b"[]"), ("nothing", b"null"), ("deep", b"[" * 100_000)]
    wrong = 0
    for what, bad in (*ways_to_flip(content, places), *ways_to_cut(content), *others):
        file.write_bytes(bad)
        wrong += not right_or_said(store, truth, what, str(store))
    file.unlink()
    wrong += not right_or_said(store, truth, "deleted", str(store))
    assert wrong > 40 or name != MANIFEST


@pytest.mark.parametrize("column", ["group", "entry", "offsets", "high_level", "Phi"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.labels("train"), lambda store: store.folds(3), lambda store: store.events("validation"),
        lambda store: store.sequence(0), lambda store: store.arrays("test"), lambda store: list(store.pieces("fit")),
        lambda store: inspect(store.path)["samples"], lambda store: store.counts("test"),
    ],
    ids=["labels", "folds", "events", "sequence", "arrays", "pieces", "inspect", "counts"],
)  # fmt: skip
def test_other_numbers_are_noticed_whoever_asks_first(original, store, column, ask):
    """Damage that every decoder takes for data: ones in place of a column. Who does not read it gives what is right."""
    for part in original.parts:
        file = part_file(store, part["name"])
        inside = members(file)
        [chunk] = [key for key in inside if key.startswith(f"{column}/c/")]
        shape = json.loads(inside[f"{column}/zarr.json"])
        values = np.ones(shape["shape"], shape["data_type"])
        pack(file, inside | {chunk: numcodecs.Blosc("lz4").encode(values)})
    try:
        found = ask(open_store(store))
    except StoreError as error:
        found = error
    if isinstance(found, StoreError):
        assert f"/{column}: not what was written; remove {store}" in str(found)
    else:
        assert repr(found) == repr(ask(original))


def test_what_prepare_finds_damaged_is_made_again(original, tmp_path, client, caplog):
    config = configuration(tmp_path)
    before = prepare(config, client).store
    path = config.store_path
    (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes().replace(b"1", b"2", 1))
    (path / INPUTS).write_bytes(b"[")
    first, second = (part_file(path, part["name"]) for part in before.parts[:2])
    content = first.read_bytes()
    first.write_bytes(content[: len(content) // 2])
    place = second.read_bytes().rindex(b'"uuid"') + 10  # what it says of itself
    second.write_bytes(second.read_bytes()[:place] + b"?" + second.read_bytes()[place + 1 :])
    caplog.set_level("INFO", "hepdask")
    again = prepare(config, client)
    said = caplog.text
    assert again.tasks == 2
    assert_equal(again.store, original)
    assert again.store.fingerprint == before.fingerprint
    for file in (path / MANIFEST, path / INPUTS, first, second):
        assert str(file) in said
    (path / ROOT).write_bytes((path / ROOT).read_bytes().replace(b"seed", b"weed", 1))
    with pytest.raises(StoreError, match=rf"{ROOT}: damaged.*remove {path}"):
        prepare(config, client)


def test_many_small_files_take_few_inodes(tmp_path, client):
    """One file an input file, whatever is in it; the events of all of them, each once."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(12):
        made.write_root(
            folder / f"{number}.root", made.random_events(3, 900 + number, candidates=3),
            identity=uuid.UUID(int=100 + number),
        )  # fmt: skip
    document = configuration(tmp_path, 3).model_dump()
    document["fileset"]["qcd"]["files"] = [str(folder / "*.root")]
    store = prepare(Config.model_validate(document), client).store
    found = sum(len(folders) + len(files) for _, folders, files in os.walk(store.path))
    assert len(store.parts) == 14
    assert found <= len(store.parts) + 6


class Brings:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def altered(store, array, **changes):
    """Change what an array says of itself, with right checksums of the archive."""
    name = open_store(store).parts[0]["name"]
    file = part_file(store, name)
    inside = members(file)
    about = json.loads(inside[f"{array}/zarr.json"]) | changes
    pack(file, inside | {f"{array}/zarr.json": json.dumps(about).encode()})
    return file


class TestStrangers:
    """Stores with right seals and checksums, made by somebody who means harm."""

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"data_type": "string"}, "Pt: holds string, not numbers"),
            ({"data_type": {"name": "fixed_length_utf32", "configuration": {"length_bytes": 4}}}, "not numbers"),
            ({"data_type": "r64"}, "Pt: holds r64, not numbers"),
            ({"data_type": "complex128"}, "Pt: holds complex128, not numbers"),
            ({"data_type": "float64"}, "Pt: holds float64, not numbers of the type float32"),
            ({"zarr_format": 2}, "not a description of Zarr 3"),
            ({"node_type": "group"}, "Pt: has the shape"),
            ({"shape": [10**15]}, r"Pt: has the shape \[1000000000000000\]"),
            ({"shape": [-1]}, "Pt: has the shape"),
            ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0]}}}, r"chunks of \[0\]"),
            ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**12]}}}, "a chunk has"),
            ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}}}, "is missing"),
            ({"chunk_grid": "regular"}, "not laid out as hepdask writes it"),
            ({"storage_transformers": [{"name": "x"}]}, "only bytes and blosc are read"),
            ({"codecs": 7}, "only bytes and blosc are read"),
        ],
    )  # fmt: skip
    def test_arrays_that_are_no_numbers_or_do_not_fit(self, store, changes, said):
        file = altered(store, "Pt", **changes)
        with pytest.raises(StoreError, match=f"{said}.*remove {file}"):
            open_store(store).events()

    @pytest.mark.parametrize("codec", ["pickle", "numcodecs.pickle", "numcodecs.json2", "vlen-utf8"])
    def test_codecs_that_run_something(self, store, tmp_path, codec):
        file = altered(store, "Pt", codecs=[{"name": codec, "configuration": {}}])
        inside = members(file)
        pack(file, inside | {"Pt/c/0": pickle.dumps(Brings(tmp_path / "trace"))})
        pickle.loads(pickle.dumps(Brings(tmp_path / "works")))
        assert (tmp_path / "works").exists()
        with pytest.raises(StoreError, match=rf"Pt: is coded with \['{codec}'\], and only bytes and blosc"):
            open_store(store).events()
        assert not (tmp_path / "trace").exists()

    @pytest.mark.parametrize(
        ("name", "about", "said"),
        [
            ("/etc/passwd", {}, "leads out of it"),
            ("../../manifest.json", {}, "leads out of it"),
            ("Pt/../../x", {}, "leads out of it"),
            ("C:\\x", {}, "leads out of it"),
            ("link", {"external_attr": (stat.S_IFLNK | 0o777) << 16}, "a link"),
            ("small", {"compress_type": zipfile.ZIP_DEFLATED}, "compressed"),
            ("packed", {"compress_type": zipfile.ZIP_BZIP2}, "compressed"),
        ],
    )
    def test_archives_that_are_more_than_that(self, original, store, name, about, said):
        file = part_file(store, original.parts[0]["name"])
        inside = members(file)
        pack(file, inside)
        with zipfile.ZipFile(file, "a") as archive:
            info = zipfile.ZipInfo(name)
            for key, value in about.items():
                setattr(info, key, value)
            archive.writestr(info, bytes(1 << 20))
        with pytest.raises(StoreError, match=f"{file.stem}: holds .*{said}"):
            open_store(store).events()

    def test_nothing_is_made_larger_than_it_is_said_to_be(self, original, store):
        part = original.parts[0]
        file = part_file(store, part["name"])
        inside = members(file)
        chunk = bytearray(inside["Pt/c/0"])
        for size in (2**31 - 1, 2**32 - 1, part["particles"] * 4 + 4):
            struct.pack_into("<I", chunk, 4, size)
            pack(file, inside | {"Pt/c/0": bytes(chunk)})
            tracemalloc.start()
            with pytest.raises(StoreError, match="Pt: a chunk of"):
                open_store(store).events()
            assert tracemalloc.get_traced_memory()[1] < 50e6
            tracemalloc.stop()

    def test_offsets_that_lead_elsewhere(self, original, store):
        part = original.parts[0]
        right = original.events(parts=[0]).offsets
        assert len(right) > 3
        far, falling, long, first, wraps = (right.copy() for _ in range(5))
        far[-1] += 10**9
        falling[1], falling[2] = right[2], right[1]
        first[0] = -5
        wraps[1:-1] = np.iinfo(np.int64).max
        for offsets in (far, falling, first, wraps):
            rewrite(store, part["name"], {"offsets": offsets})
            for ask in (lambda s: s.events(), lambda s: s.sequence(0), lambda s: s.arrays()):
                with pytest.raises(StoreError, match="/offsets: does not divide"):
                    ask(open_store(store))
        rewrite(store, part["name"], {"offsets": long})
        change_manifest(store, lambda manifest: manifest.update(max_particles=1))
        with pytest.raises(StoreError, match="/offsets: an event has more than 1 particles"):
            open_store(store).events()

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda m: m["parts"][0].update(name="../../../elsewhere"), "leads out of the store"),
            (lambda m: m["parts"][0].update(name="/etc/x"), "leads out of the store"),
            (lambda m: m["parts"][1].update(name=m["parts"][0]["name"]), "is there twice"),
            (lambda m: m["parts"][0].update(label=7), "is of class 7"),
            (lambda m: m["parts"][0].update(label=-1), "label"),
            (lambda m: m["parts"][0].update(events=10**30), "events"),
            (lambda m: m["parts"][0].update(events="8"), "events"),
            (lambda m: m["parts"][0].pop("checksums"), "checksums"),
            (lambda m: m.update(parts={}), "parts"),
            (lambda m: m.update(max_particles=None), "max_particles"),
            (lambda m: m["split"].update(test_fraction="many"), "split"),
            (lambda m: m["analysis"].update(convention="none"), "convention"),
            (lambda m: m["moments"]["particles"].update(mean=[1.0]), "moments.particles"),
            (lambda m: m.pop("moments"), "moments"),
            (lambda m: m.update(selection=[{}]), "selection"),
        ],
    )
    def test_manifests_of_another_form(self, store, change, said):
        change_manifest(store, change)
        with pytest.raises(StoreError, match=f"{MANIFEST}: damaged: .*{said}.*; remove it"):
            open_store(store)

    def test_counts_that_nothing_backs(self, original, store):
        def many(manifest):
            manifest["parts"][0].update(events=10**11, particles=10**12)

        change_manifest(store, many)
        tracemalloc.start()
        with pytest.raises(StoreError, match="has the shape"):
            open_store(store).events("fit")
        assert tracemalloc.get_traced_memory()[1] < 50e6
        tracemalloc.stop()


def test_a_store_of_an_older_schema_is_refused(store):
    change_manifest(store, lambda manifest: manifest.update(schema=4))
    with pytest.raises(StoreError, match="schema 4, this version reads 5; prepare it again"):
        open_store(store)
