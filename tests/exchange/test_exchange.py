"""Events leave a store as Parquet and TFRecord, and are read by what others read them with."""

import importlib.util
import json
import subprocess
import sys

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.requirements import require
from helpers.stores import members, pack

from hepdask import export, prepare
from hepdask.config import Config, feature_names
from hepdask.errors import ConfigError, StoreError
from hepdask.exchange import event_files as exchange
from hepdask.exchange import tfrecord
from hepdask.store.layout import part_file


@pytest.fixture(scope="module")
def store(tmp_path_factory, client, sample_files):
    document = {
        "output": str(tmp_path_factory.mktemp("exchange")),
        "fileset": {n: {"files": [path], "metadata": {"label": n}} for n, path in sample_files.items()},
        "input": {"chunk_events": 25},
    }
    return prepare(Config.model_validate(document), client).store


def expected_columns(store, split):
    """The published layout of a split, event by event from the store's own functions."""
    everything, some = store.arrays(), store.arrays(split)
    place = {(str(e.file), e.entry): index for index, e in enumerate(everything)}
    chosen = [place[str(e.file), e.entry] for e in some]
    hlf = np.stack([ak.to_numpy(some.hlf[name]) for name in feature_names.HIGH_LEVEL], axis=1)
    return {
        "HLF_input": store.high_level_scaler(hlf),
        "GRU_input": np.stack([store.sequence(index) for index in chosen]),
        "encoded_label": np.eye(3, dtype=np.float32)[ak.to_numpy(some.label)],
    }


def test_jagged_parquet_is_what_the_store_holds(store, tmp_path):
    done = export(store.path, "parquet", tmp_path / "out")
    assert done.events == len(store)
    back, array = ak.from_parquet(tmp_path / "out"), store.arrays()
    for name in feature_names.PARTICLE:
        assert ak.array_equal(back[f"particle_{name}"], array.particles[name], dtype_exact=True), name
    assert ak.from_parquet(tmp_path / "out", columns=["particle_Pt", "label"]).fields == [
        "particle_Pt",
        "label",
    ]
    for name in feature_names.HIGH_LEVEL:
        assert back[f"hlf_{name}"].tolist() == array.hlf[name].tolist()
    for name in ("label", "dataset", "file", "entry"):
        assert back[name].tolist() == array[name].tolist(), name


@pytest.mark.parametrize("split", ["train", "test"])
def test_padded_parquet_has_the_published_layout(store, tmp_path, split):
    done = export(store.path, "padded-parquet", tmp_path / "out", split)
    table, expected = pq.read_table(tmp_path / "out"), expected_columns(store, split)
    assert table.column_names == list(expected)
    assert done.events == table.num_rows == len(store.labels(split))
    for name, values in expected.items():
        back = np.array(table[name].to_pylist(), np.float32)
        assert back.shape == values.shape
        assert np.array_equal(back, values)
    assert values.sum(axis=1).tolist() == [1] * len(values)


READ_WITH_TENSORFLOW = """
import sys
import numpy as np, tensorflow as tf
shapes = {"HLF_input": (14,), "GRU_input": (801, 19), "encoded_label": (3,)}
features = {name: tf.io.FixedLenFeature(shape, tf.float32) for name, shape in shapes.items()}
records = tf.data.TFRecordDataset(sys.argv[2:])
rows = list(records.map(lambda record: tf.io.parse_single_example(record, features)).as_numpy_iterator())
np.savez(sys.argv[1], **{name: np.stack([row[name] for row in rows]) for name in shapes})
"""


def test_tensorflow_reads_the_records(store, tmp_path):
    require(importlib.util.find_spec("tensorflow"), "TensorFlow is not installed")
    done = export(store.path, "tfrecord", tmp_path / "out", "test")
    command = [sys.executable, "-c", READ_WITH_TENSORFLOW, tmp_path / "back.npz", *done.files]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    back, expected = np.load(tmp_path / "back.npz"), expected_columns(store, "test")
    for name, values in expected.items():
        assert back[name].dtype == np.float32
        assert np.array_equal(back[name], values), name


@pytest.mark.parametrize("format", exchange.FORMATS)
def test_files_are_of_bounded_size_and_described(store, tmp_path, format):
    whole = exchange.write_folder(store, format, tmp_path / "whole")
    pieces = exchange.write_folder(store, format, tmp_path / "pieces", file_bytes=1)
    assert len(whole.files) == 1
    assert len(pieces.files) == len(store.parts)
    described = json.loads((tmp_path / "pieces" / exchange.DESCRIPTION).read_text())
    assert {path.name for path in (tmp_path / "pieces").iterdir()} == {
        *described["files"],
        exchange.DESCRIPTION,
    }
    assert described["files"] == {p.name: exchange.FORMATS[format].count(p) for p in pieces.files}
    assert list(described["files"].values()) == [part["events"] for part in store.parts]
    assert described["events"] == len(store)
    assert described["classes"] == store.classes
    if format == "tfrecord":
        assert b"".join(p.read_bytes() for p in pieces.files) == whole.files[0].read_bytes()
    else:
        assert pq.read_table(tmp_path / "pieces").equals(pq.read_table(tmp_path / "whole"))


def test_blocks_do_not_change_the_events(store, tmp_path, monkeypatch):
    whole = exchange.write_folder(store, "tfrecord", tmp_path / "whole")
    monkeypatch.setattr(exchange, "_BLOCK_EVENTS", 7)
    blocks = exchange.write_folder(store, "tfrecord", tmp_path / "blocks")
    assert blocks.files[0].read_bytes() == whole.files[0].read_bytes()


def test_the_published_convention_and_own_features(make_config, client, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def tracks(events):\n    import awkward as ak\n    return ak.num(events.EFlowTrack)\n"
    )
    analysis = {"convention": "reference", "features": {"tracks": f"{tmp_path}/mine.py:tracks"}}
    store = prepare(make_config(analysis=analysis), client).store
    export(store.path, "padded-parquet", tmp_path / "padded")
    table = pq.read_table(tmp_path / "padded").to_pydict()
    assert np.array_equal(np.float32(table["GRU_input"][0]), store.sequence(0))
    assert {len(row) for row in table["HLF_input"]} == {15}
    described = json.loads((tmp_path / "padded" / exchange.DESCRIPTION).read_text())
    assert described["scalers"]["particles"] is None
    assert described["features"]["hlf"][-1] == "tracks"
    export(store.path, "parquet", tmp_path / "jagged")
    assert pq.read_table(tmp_path / "jagged")["hlf_tracks"].to_pylist() == store.arrays().hlf.tracks.tolist()


def test_nothing_is_overwritten(store, tmp_path):
    (tmp_path / "out").mkdir()
    export(store.path, "parquet", tmp_path / "out", "test")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir())
    with pytest.raises(ConfigError, match="is not empty"):
        export(store.path, "tfrecord", tmp_path / "out")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir()) == before


def test_a_damaged_store_leaves_nothing_behind(make_config, client, tmp_path):
    store = prepare(make_config(), client).store
    last = part_file(store.path, store.parts[-1]["name"])
    inside = members(last)
    pack(last, inside | {"Pt/c/0": inside["Pt/c/0"][:-1] + bytes([inside["Pt/c/0"][-1] ^ 0xFF])})
    with pytest.raises(StoreError, match="Pt"):
        export(store.path, "parquet", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_lost_rows_are_noticed(store, tmp_path, monkeypatch):
    class Forgetful(tfrecord.TFRecordFile):
        def write(self, columns):
            return super().write({name: values[1:] for name, values in columns.items()})

    kind = exchange.FORMATS["tfrecord"]
    monkeypatch.setitem(
        exchange.FORMATS, "tfrecord", exchange.Format(kind.suffix, kind.rows, Forgetful, kind.count)
    )
    with pytest.raises(StoreError, match=f"{len(store) - len(store.parts)} events written of {len(store)}"):
        export(store.path, "tfrecord", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_record_file_is_noticed(store, tmp_path):
    path = export(store.path, "tfrecord", tmp_path / "out", "test").files[0]
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(StoreError, match="within a record"):
        tfrecord.count_rows(path)
    path.write_bytes(b"\1" + content[1:])
    with pytest.raises(StoreError, match="damaged at byte 0"):
        tfrecord.count_rows(path)


def test_the_checksum_is_that_of_the_standard():
    # RFC 3720 B.4: 32 zero bytes have the CRC-32C 0x8A9136AA
    crc = 0x8A9136AA
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    assert tfrecord.masked_checksum(bytes(32)) == (rotated + 0xA282EAD8) % 2**32


def test_the_command(store, tmp_path):
    command = [
        sys.executable,
        "-m",
        "hepdask",
        "export",
        store.path,
        "--format",
        "parquet",
        "--split",
        "test",
    ]
    done = subprocess.run([*command, "--out", tmp_path / "out"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{len(store.labels('test'))} events in 1 files" in done.stderr
