"""Events in the published layout come back as a store, and networks train on it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hepdask import evaluate, export, import_published, load_model, open_store, prepare, train
from hepdask.config import Config
from hepdask.errors import ConfigError, InputError, StoreError
from hepdask.exchange import reading
from hepdask.names import PARTICLE


@pytest.fixture(scope="module")
def exported(tmp_path_factory, client, sample_files):
    """A store of the published convention, and the same events in the published layout."""
    folder = tmp_path_factory.mktemp("import")
    document = {
        "output": str(folder / "run"),
        "fileset": {n: {"files": [path], "metadata": {"label": n}} for n, path in sample_files.items()},
        "physics": {"convention": "reference"},
    }
    store = prepare(Config.model_validate(document), client).store
    export(store.path, "padded-parquet", folder / "parquet")
    return store, sorted((folder / "parquet").glob("*.parquet"))


def importing(folder, **more):
    document = {
        "output": str(folder / "imported"),
        "physics": {"convention": "reference"},
        "models": {
            "hlf": {"epochs": 2, "batch_size": 16},
            "inclusive": {"epochs": 1, "batch_size": 16, "units": 4},
        },
        "training": {"models": ["hlf", "inclusive"]},
        "cluster": {"kind": "local", "workers": 1, "dashboard-port": 0},
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


def test_networks_train_on_it_as_on_the_store_it_came_from(exported, tmp_path, client):
    before, files = exported
    config = importing(tmp_path)
    import_published(config, files)
    first = train(config, client=client)
    assert "compiled recurrent kernel" in first[1].record.facts["computed by"]
    assert first[1].record.facts["training events"] > 50
    report = evaluate(config, client)
    assert set(json.loads(report.metrics.read_text())["models"]) == {"hlf", "inclusive"}
    with pytest.raises(InputError, match="nobody knows how those were scaled"):
        load_model(first[0].folder)
    # and out again
    export(config.store_path, "padded-parquet", tmp_path / "again")
    again = pa.concat_tables([pq.read_table(file) for file in sorted((tmp_path / "again").glob("*.parquet"))])
    assert again.num_rows == len(before)
    with pytest.raises(ConfigError, match="nobody knows the physical values"):
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
    written = reading.blocks
    monkeypatch.setattr(reading, "BLOCK", 16)
    config = importing(tmp_path / "killed")

    def dies(*arguments):
        for number, block in enumerate(written(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(reading, "blocks", dies)
    with pytest.raises(KeyboardInterrupt):
        import_published(config, files)
    with pytest.raises(StoreError, match="not complete"):
        open_store(config.store_path)
    monkeypatch.setattr(reading, "blocks", written)
    there = len(list((config.store_path / "parts").glob("*-*")))
    done = import_published(config, files)
    assert there > 3
    assert done.tasks == len(done.store.parts) - there, "what was there is not written again"
    for name in ("entry", "label", "high_level"):
        mine, theirs = getattr(done.store.events(), name), getattr(whole.events(), name)
        assert sorted(mine.tolist()) == sorted(theirs.tolist())


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
    refused("encoded_label does not say one class of 3", changed("encoded_label", half))
    refused("there are no events", table.slice(0, 0))
    (tmp_path / "bad.parquet").write_bytes(b"no Parquet at all")
    refused("not a readable Parquet file")
    refused(
        "fileset: events are either",
        config=importing(tmp_path, fileset={"a": {"files": ["a.root"], "metadata": {"label": "qcd"}}}),
        error=ConfigError,
        files=files,
    )
    refused("set it to reference", config=importing(tmp_path, physics={}), error=ConfigError, files=files)
