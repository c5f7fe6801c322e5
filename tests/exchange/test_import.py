"""Events in the published layout come back as a store, and networks train on it."""

import contextlib
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hepdask import evaluate, export, import_published, load_model, open_store, prepare, train
from hepdask.config import Config
from hepdask.config.feature_names import PARTICLE
from hepdask.errors import ConfigError, HepdaskError, InputError, StoreError
from hepdask.exchange import published_reader


@pytest.fixture(scope="module")
def exported(tmp_path_factory, client, sample_files):
    """A store of the published convention, and the same events in the published layout."""
    folder = tmp_path_factory.mktemp("import")
    document = {
        "output": str(folder / "run"),
        "fileset": {n: {"files": [path], "metadata": {"label": n}} for n, path in sample_files.items()},
        "analysis": {"convention": "reference"},
    }
    store = prepare(Config.model_validate(document), client).store
    export(store.path, "padded-parquet", folder / "parquet")
    return store, sorted((folder / "parquet").glob("*.parquet"))


def importing(folder, **more):
    document = {
        "output": str(folder / "imported"),
        "analysis": {"convention": "reference"},
        "models": {
            "hlf": {"epochs": 2, "batch_size": 16},
            "inclusive": {"epochs": 1, "batch_size": 16, "units": 4},
        },
        "training": {"models": ["hlf", "inclusive"]},
        "cluster": {"kind": "local", "workers": 1, "dashboard_port": 0},
    }
    return Config.model_validate(document | more)


def test_nothing_changes_on_the_way(exported, tmp_path):
    before, files = exported
    done = import_published(importing(tmp_path), files)
    store = done.store
    assert len(store) == len(before)
    table = pa.concat_tables([pq.read_table(file) for file in files])
    rows = {name: table[name].to_pylist() for name in table.column_names}
    place = {(part["dataset"], part["start"]): part for part in store.parts}
    assert len(place) == len(store.parts)
    events = store.events()
    for index in range(len(store)):
        row = int(events.entry[index])
        assert store.sequence(index).tolist() == rows["GRU_input"][row]
        assert events.high_level[index].tolist() == rows["HLF_input"][row]
        assert np.eye(3)[events.label[index]].tolist() == rows["encoded_label"][row]
    assert sorted(events.entry.tolist()) == list(range(len(before)))
    array = store.arrays()
    assert array.particles.fields == list(PARTICLE)
    assert array.particles.Eta[3].tolist() == store.sequence(3)[:, PARTICLE.index("Eta")].tolist()
    assert not store.damaged_parts()
    with pytest.raises(StoreError, match="there is a complete store"):
        import_published(importing(tmp_path), files)


@pytest.mark.slow
def test_networks_train_on_it_as_on_the_store_it_came_from(exported, tmp_path, client):
    before, files = exported
    config = importing(tmp_path)
    import_published(config, files)
    first = train(config, client=client)
    assert "compiled recurrent kernel" in first[1].record.facts["computed by"]
    assert first[1].record.facts["training events"] > 50
    report = evaluate(config, client)
    assert set(json.loads(report.metrics.read_text())["models"]) == {"hlf", "inclusive"}
    with pytest.raises(InputError, match="whose scaling is unknown"):
        load_model(first[0].folder)
    # and out again
    export(config.store_path, "padded-parquet", tmp_path / "again")
    again = pa.concat_tables([pq.read_table(file) for file in sorted((tmp_path / "again").glob("*.parquet"))])
    assert again.num_rows == len(before)
    with pytest.raises(ConfigError, match="the physical values of imported events are unknown"):
        export(config.store_path, "parquet", tmp_path / "jagged")


def spark(values, sparse):
    """Vectors as Spark writes them: type 1 is dense, type 0 sparse."""
    kind = pa.struct(
        [
            ("type", pa.int8()),
            ("size", pa.int32()),
            ("indices", pa.list_(pa.int32())),
            ("values", pa.list_(pa.float64())),
        ]
    )
    rows = []
    for row, is_sparse in zip(values, sparse, strict=True):
        if is_sparse:
            at = np.flatnonzero(row)
            rows.append({"type": 0, "size": len(row), "indices": at.tolist(), "values": row[at].tolist()})
        else:
            rows.append({"type": 1, "size": None, "indices": None, "values": row.tolist()})
    return pa.array(rows, kind)


def test_vectors_of_spark_dense_and_sparse(tmp_path):
    rng = np.random.default_rng(1)
    hlf, label = rng.random((700, 14)) * (rng.random((700, 14)) < 0.7), rng.integers(0, 3, 700)
    gru = rng.normal(size=(700, 801, 19)).astype(np.float32).astype(float)
    table = pa.table(
        {
            "HLF_input": spark(hlf, rng.random(700) < 0.5),
            "GRU_input": pa.array(list(gru.tolist()), pa.list_(pa.list_(pa.float64()))),
            "encoded_label": spark(np.eye(3)[label], np.ones(700, bool)),
        }
    )
    pq.write_table(table, tmp_path / "spark.parquet")
    store = import_published(importing(tmp_path), [tmp_path / "*.parquet"]).store
    events = store.events()
    assert (events.label == label[events.entry]).all()
    assert (events.high_level == hlf[events.entry].astype(np.float32)).all()
    for index in (0, 350, 699):
        assert (store.sequence(index) == gru[events.entry[index]]).all()


def test_a_killed_import_goes_on(exported, tmp_path, monkeypatch):
    _, files = exported
    whole = import_published(importing(tmp_path / "whole"), files).store
    written = published_reader.blocks
    monkeypatch.setattr(published_reader, "BLOCK", 16)
    config = importing(tmp_path / "killed")

    def dies(*arguments):
        for number, block in enumerate(written(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(published_reader, "blocks", dies)
    with pytest.raises(KeyboardInterrupt):
        import_published(config, files)
    with pytest.raises(StoreError, match="not complete"):
        open_store(config.store_path)
    monkeypatch.setattr(published_reader, "blocks", written)
    there = len(list((config.store_path / "parts").glob("*-*")))
    done = import_published(config, files)
    assert there > 3
    assert done.tasks == len(done.store.parts) - there, "what was there is not written again"
    for name in ("entry", "label", "high_level"):
        mine, theirs = getattr(done.store.events(), name), getattr(whole.events(), name)
        assert sorted(mine.tolist()) == sorted(theirs.tolist())


@pytest.fixture
def small(exported):
    """Give a few rows of the published layout."""
    return pq.read_table(exported[1][0]).slice(0, 6)


def test_no_byte_of_a_file_gives_a_raw_error(small, tmp_path):
    file = tmp_path / "small.parquet"
    pq.write_table(small, file, compression="zstd")
    content = file.read_bytes()
    said = 0
    places = {
        *range(4),
        *range(len(content) - 300, len(content), 11),
        *range(4, len(content), len(content) // 25),
    }
    for place in sorted(places):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with contextlib.suppress(InputError):
            published_reader.identity(file)
            list(published_reader.blocks(file, 14, 801, 3))
            said -= 1
        said += 1
    for place in (0, 4, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:place])
        with pytest.raises(InputError, match="not a readable Parquet file"):
            import_published(importing(tmp_path / "cut"), [file])
    assert said > 20


def test_sparse_vectors_that_lead_elsewhere(small, tmp_path):
    hlf = np.stack(small["HLF_input"].to_numpy())
    rows = spark(hlf, np.ones(len(hlf), bool)).to_pylist()
    places = (
        ([-1, 2], "one outside 0 to 13"),
        ([3, 14], "one outside 0 to 13"),
        ([5, 5], "a repeated index"),
    )
    for at, what in places:
        rows[4] |= {"indices": at, "values": [1.0, 2.0]}
        check(small, rows, what, tmp_path)
    rows[4] |= {"indices": [1], "values": [1.0, 2.0]}
    check(small, rows, "without an index for each number", tmp_path)
    rows[4] |= {"indices": None}
    check(small, rows, "without an index for each number", tmp_path)
    rows[4] |= {"type": 7}
    check(small, rows, "neither dense nor sparse", tmp_path)
    rows[4] = None
    check(small, rows, "gaps", tmp_path)


def check(table, rows, match, folder):
    kind = spark(np.ones((1, 1)), [True]).type
    place = table.column_names.index("HLF_input")
    pq.write_table(table.set_column(place, "HLF_input", pa.array(rows, kind)), folder / "sparse.parquet")
    with pytest.raises(InputError, match=rf"sparse\.parquet: rows 0 to 5: HLF_input .*{match}"):
        import_published(importing(folder), [folder / "sparse.parquet"])


class Brings:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_types_of_others_bring_no_code(small, tmp_path):
    fields = []
    for field in small.schema:
        about = {
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(Brings(tmp_path / "trace")),
        }
        fields.append(field.with_metadata(about))
    pq.write_table(small.cast(pa.schema(fields)), tmp_path / "typed.parquet")
    with contextlib.suppress(HepdaskError):
        import_published(importing(tmp_path), [tmp_path / "typed.parquet"])
    assert not (tmp_path / "trace").exists()


def test_a_file_that_is_changed_in_place_is_another(small, tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(small, file, compression="none", write_statistics=False, use_dictionary=False)
    before, content = published_reader.identity(file), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # far from the footer
    file.write_bytes(content)
    assert published_reader.identity(file) != before


def test_what_cannot_be_imported_is_named(exported, tmp_path):
    _, files = exported
    table = pq.read_table(files[0])
    config = importing(tmp_path)

    def refused(match, table=None, error=InputError, config=config, files=None):
        if table is not None:
            pq.write_table(table, tmp_path / "bad.parquet")
        with pytest.raises(error, match=match):
            import_published(config, files or [tmp_path / "bad.parquet"])

    def changed(name, values):
        return table.set_column(table.column_names.index(name), name, values)

    refused("there is no such file", files=[tmp_path / "none.parquet"])
    refused("are the same file", files=[files[0], files[0].parent / "../parquet" / files[0].name])
    refused(r"bad\.parquet: no column GRU_input", table.drop_columns(["GRU_input"]))
    hlf = np.stack(table["HLF_input"].to_numpy())
    refused(r"rows 0 to \d+: HLF_input does not hold 14", changed("HLF_input", pa.array(hlf[:, 1:].tolist())))
    refused("HLF_input holds int64", changed("HLF_input", pa.array(hlf.astype(int).tolist())))
    hlf[5, 3] = np.nan
    refused(
        "row 5: HLF_input holds a NaN", changed("HLF_input", pa.array(hlf.tolist(), pa.list_(pa.float32())))
    )
    half = pa.array(np.full((len(table), 3), 0.5).tolist())
    refused("encoded_label does not mark one of 3 classes", changed("encoded_label", half))
    refused("there are no events", table.slice(0, 0))
    refused(
        r"HLF_input.* holds \d+ numbers in \d+ rows", changed("HLF_input", pa.array(np.tile(hlf, 9).tolist()))
    )
    (tmp_path / "bad.parquet").write_bytes(b"no Parquet at all")
    refused("not a readable Parquet file")
    refused(
        "fileset: events are either",
        config=importing(tmp_path, fileset={"a": {"files": ["a.root"], "metadata": {"label": "qcd"}}}),
        error=ConfigError,
        files=files,
    )
    refused("set it to reference", config=importing(tmp_path, analysis={}), error=ConfigError, files=files)
