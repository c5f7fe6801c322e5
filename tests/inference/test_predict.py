"""Scores of new events: those of `evaluate`, in the order of the input, with a reason where there are none."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot
from distributed import Client, LocalCluster
from helpers import events as made
from helpers.requirements import require
from helpers.samples import SAMPLES
from helpers.servers import xrootd_server
from helpers.waiting import until

from hepdask import load_model, predict, prepare, train
from hepdask.analysis import cutflow, topology
from hepdask.analysis.columns import BadEvent
from hepdask.config import Config, Topology
from hepdask.errors import ConfigError, InputError
from hepdask.input import read_bytes
from hepdask.pipeline.evaluate import score_test_split

MODELS = ("hlf", "inclusive")


@pytest.fixture(scope="module")
def trained(sample_files, client, tmp_path_factory):
    """A configuration whose models are trained."""
    config = Config.model_validate(
        {
            "output": str(tmp_path_factory.mktemp("trained") / "run"),
            "fileset": {n: {"files": [p], "metadata": {"label": n}} for n, p in sample_files.items()},
            "input": {"chunk_events": 25},
            "store": {"mantissa_bits": 10},
            "models": {
                "hlf": {"epochs": 2, "batch_size": 16, "features": ["MET", "HT", "LepPt"]},
                "inclusive": {"epochs": 1, "batch_size": 16, "units": 4},
                "forest": {"trees": 5},
            },
            "training": {"models": MODELS},
        }
    )
    prepare(config, client)
    train(config, client=client)
    return config


def read_events(path, analysis=None):
    """Read a whole file as a person would in a notebook."""
    with uproot.open(path) as file:
        tree = file["Delphes"]
        return ak.zip(
            {
                collection: ak.zip(
                    {field: tree[f"{collection}.{field}"].array() for field in fields}, depth_limit=2
                )
                for collection, fields in topology.branches(analysis or Topology()).items()
            },
            depth_limit=1,
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_evaluate(trained, sample_files, client, name):
    model = load_model(trained.folder / "models" / name)
    assert (model.name, model.classes) == (name, ["qcd", "ttbar", "wjets"])
    store, expected = score_test_split(trained, name, client)
    test = store.events("test", particles=False)
    for sample, path in sample_files.items():
        scores = model.predict(read_events(path))
        assert scores.dtype == np.float32
        assert (np.isnan(scores).all(axis=1) == ~topology.select(read_events(path))).all()
        here = np.array([store.parts[part]["dataset"] == sample for part in test.part])
        assert here.any()
        assert scores[test.entry[here]] == pytest.approx(expected[here], rel=0, abs=1e-6)


def test_threads_may_share_a_model(trained, sample_files):
    model = load_model(trained.folder / "models" / "inclusive" / "model.keras")
    events = read_events(sample_files["ttbar"])
    expected, found = model.predict(events), []
    threads = [threading.Thread(target=lambda: found.append(model.predict(events))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(one, expected, equal_nan=True) for one in found)


def test_nanoevents_are_taken(trained, tmp_path):
    """As coffea gives Delphes' own files: one object an event for the missing ET."""
    events = made.to_awkward(made.random_events(12, 3))
    nano = ak.with_field(events, events.MissingET[:, 0], "MissingET")
    model = load_model(trained.folder / "models" / "hlf")
    assert np.array_equal(model.predict(nano), model.predict(events), equal_nan=True)


def test_the_reason_of_each_event():
    hard, soft = made.lepton(40, 0.5, 1.0), made.lepton(20, 0.5, 1.0)
    near = [made.thing(80, 0.55, 1.0)]
    others = {"tracks": [made.track(5, -2, 2)], "photons": [made.thing(5, 2, 2)]}
    neutral = {"neutrals": [made.thing(5, -2, -2)]}
    events = made.to_awkward(
        [
            made.event(electrons=[hard], **others, **neutral),
            made.event(electrons=[soft], **others, **neutral),
            made.event(muons=[hard], **others),
            made.event(muons=[hard], **{**others, "photons": near}, **neutral),
            made.event(**others, **neutral),
            made.event(muons=[hard], tracks=others["tracks"] * 3, photons=others["photons"], **neutral),
        ]
    )
    analysis = Topology(convention="reference", selections={"few": "test_predict:has_few_tracks"})
    codes = topology.extract(events, analysis).reason
    assert codes.tolist() == [
        cutflow.SELECTED, cutflow.NO_LEPTON, cutflow.NO_CANDIDATES, cutflow.NOT_ISOLATED, cutflow.NO_LEPTON, 5,
    ]  # fmt: skip
    assert cutflow.words(analysis)[5] == "analysis.selections.few"


def has_few_tracks(events):
    return ak.num(events.EFlowTrack.PT) < 3


def test_a_bad_value_costs_its_own_event_alone(trained):
    events = made.random_events(9, 4)
    model = load_model(trained.folder / "models" / "hlf")
    scores, reason = model.judge(made.to_awkward(events))
    events[3]["tracks"][0]["pt"] = np.nan
    events[8]["met"]["pt"] = np.inf
    other, why = model.judge(made.to_awkward(events))
    assert np.flatnonzero(why == cutflow.NOT_USABLE).tolist() == [3, 8]
    rest = [place for place in range(9) if place not in (3, 8)]
    assert np.array_equal(other[rest], scores[rest], equal_nan=True)
    assert (why[rest] == reason[rest]).all()
    with pytest.raises(BadEvent, match=r"EFlowTrack\.PT is not a finite number"):
        model.predict(made.to_awkward(events))


@pytest.mark.parametrize("format", ["root", "parquet"])
def test_files_of_scores_go_beside_their_input(trained, sample_files, client, tmp_path, format):
    """A friend tree: as many rows as the input, in its order, with scores or a reason."""
    empty = made.write_root(tmp_path / "empty.root", [])
    folder = trained.folder / "models" / "inclusive"
    done = predict(folder, [*sample_files.values(), empty], tmp_path / "out", format, client=client,
                   overrides={"input.chunk_events": 7})  # fmt: skip
    assert [file.name for file in done.files] == [f"{name}.{format}" for name in (*SAMPLES, "empty")]
    assert done.events == sum(size for size, _ in SAMPLES.values()) == sum(done.outcome.values())
    model = load_model(folder)
    for path, file in zip([*sample_files.values(), empty], done.files, strict=True):
        if format == "root":
            with uproot.open(file) as opened, uproot.open(path) as source:
                table = opened["scores"].arrays(library="np")
                description = json.loads(str(opened["description"]))
                assert opened["scores"].num_entries == source["Delphes"].num_entries
                assert description["uuid"] == str(source.file.uuid)
        else:
            read = pq.read_table(file)
            table = {name: read[name].to_numpy() for name in read.column_names}
            description = json.loads(read.schema.metadata[b"description"])
        assert (description["file"], description["classes"]) == (path, model.classes)
        if path == empty:
            assert len(table["entry"]) == 0
            continue
        scores = np.column_stack([table[f"score_{label}"] for label in model.classes])
        expected, reason = model.judge(read_events(path))
        assert scores.dtype == np.float32
        assert scores == pytest.approx(expected, rel=0, abs=1e-6, nan_ok=True)
        assert (table["reason"] == reason).all()
        assert (table["entry"] == np.arange(len(scores))).all()
        rejected = reason > 0
        assert 0 < rejected.sum() < len(rejected)
        assert (table["predicted"] == np.where(rejected, -1, np.nan_to_num(scores).argmax(axis=1))).all()
        assert all(description["reasons"][code] for code in reason)
    assert not list((tmp_path / "out").glob(".*"))


def test_what_cannot_be_read_is_named_and_the_rest_is_written(trained, sample_files, client, tmp_path):
    bad = made.write_root(tmp_path / "bad.root", made.random_events(5, 9), drop=["Jet.BTag"])
    gone = str(tmp_path / "gone.root")
    with pytest.raises(InputError) as raised:
        predict(trained.folder / "models" / "hlf", [bad, gone, sample_files["qcd"]], tmp_path / "out", client=client,
                overrides={"input.read_retries": 0})  # fmt: skip
    assert "2 of 3 files" in str(raised.value)
    assert f"{bad}: tree Delphes has no branch Jet.BTag" in str(raised.value)
    assert f"{gone}: No such file or directory; check the path" in str(raised.value)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["qcd.root"]


def test_an_rntuple_is_scored_like_a_tree(trained, client, tmp_path):
    events = made.random_events(40, 21)
    array = made.to_awkward(events, np.float32)
    with uproot.recreate(tmp_path / "new.root") as file:
        file.mkrntuple("Delphes", {name: array[name] for name in array.fields})
    old = made.write_root(tmp_path / "old.root", events)
    done = predict(
        trained.folder / "models" / "hlf",
        [tmp_path / "new.root", old],
        tmp_path / "out",
        "parquet",
        client=client,
    )
    new, old = (pq.read_table(file) for file in done.files)
    assert new.num_rows == 40
    assert 0 < sum(reason == 0 for reason in new["reason"].to_pylist()) < 40
    assert all(
        np.array_equal(new[name], old[name], equal_nan=name.startswith("score_")) for name in old.column_names
    )


#: Dies while it writes its second file of scores.
KILLED = """
import os, signal, sys
import uproot
from hepdask import predict

extend, files = uproot.WritableTree.extend, []

def fatal(tree, data):
    extend(tree, data)
    files.append(data)
    if len(files) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

uproot.WritableTree.extend = fatal
model, out, address, *inputs = sys.argv[1:]
predict(model, inputs, out, overrides={"input.chunk_events": 4, "cluster": address})
"""


def test_after_kills_of_the_driver_and_of_workers_every_event_has_one_row(trained, client, tmp_path):
    """Both at real `predict`s: the driver in the middle of a file, then workers in the middle of chunks."""
    (forest,) = train(trained, "forest", client)
    model, out = load_model(forest.folder), tmp_path / "out"
    inputs = [made.write_root(tmp_path / f"{seed}.root", made.random_events(160, seed)) for seed in (31, 32)]

    def whole():
        """Compare the files that have their final names with what a notebook gets; give these names."""
        for file in out.glob("*.root"):
            scores, reason = model.judge(read_events(tmp_path / file.name))
            with uproot.open(file) as opened:
                table = opened["scores"].arrays(library="np")
            assert (table["entry"] == np.arange(160)).all()
            assert (table["reason"] == reason).all()
            found = np.column_stack([table[f"score_{label}"] for label in model.classes])
            assert np.array_equal(found, scores, equal_nan=True)
        return sorted(file.name for file in out.glob("*.root"))

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        Client(cluster) as mortal,
    ):  # fmt: skip
        address = cluster.scheduler_address
        command = [sys.executable, "-c", KILLED, str(forest.folder), str(out), address, *inputs]
        assert subprocess.run(command, check=False, timeout=300).returncode == -signal.SIGKILL
        assert len(whole()) == 1, "one file is whole, the other is not there"

        driver = subprocess.Popen(
            [sys.executable, "-m", "hepdask", "predict", str(forest.folder), *inputs, "--out", str(out), "--json",
             "--cluster", address, "--set", "input.chunk_events=4"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        killed = set()

        def kill_one_at_work():
            for worker, tasks in mortal.processing().items():
                if worker not in killed and any(task.startswith("predict") for task in tasks):
                    os.kill(mortal.run(os.getpid, workers=[worker])[worker], signal.SIGKILL)
                    killed.add(worker)
            return len(killed) >= 2 or driver.poll() is not None

        until(kill_one_at_work, 300)
        said, complained = driver.communicate(timeout=300)
    assert len(killed) >= 2, "it was over too soon"
    assert driver.returncode == 0, complained
    assert json.loads(said)["events"] == 320
    assert whole() == ["31.root", "32.root"]


def test_wrong_use_is_refused(trained, sample_files, client, tmp_path):
    model, path = trained.folder / "models" / "hlf", sample_files["qcd"]
    twin = tmp_path / "qcd.root"
    twin.symlink_to(path)
    for words, error, message in (
        ((trained.folder, path, "out"), InputError, "there are: .*models/hlf, .*models/inclusive"),
        ((model, str(tmp_path / "*.nothing"), "out"), InputError, "matches no ROOT file"),
        ((model, [path, twin], "out"), ConfigError, "have the same name"),
        ((model, [path, sample_files["ttbar"]], "out.root"), ConfigError, "2 input files need a folder"),
        ((model, path, path), ConfigError, "would replace an input file"),
        ((model, path, "out.root", "parquet"), ConfigError, "the format is parquet, the name says root"),
        ((model, path, "out", None, "Delphes", {"analysis.lepton_min_pt": 5}), ConfigError, "trained with"),
    ):
        with pytest.raises(error, match=message):
            predict(*words, client=client)


def test_what_is_read_is_told(trained, sample_files, tmp_path, client):
    def told():
        events = client.get_events("hepdask")  # of which the scheduler forgets the oldest
        return sum(
            amount
            for when, changes in events
            for name, amount, _ in changes
            if when >= begin and name == "hepdask_read_bytes"
        )

    client.run(read_bytes.take)
    begin = time.time()
    predict(trained.folder / "models" / "hlf", sample_files["wjets"], tmp_path, client=client)
    until(lambda: told() > 0, 30)
    assert told() < 10 * os.path.getsize(sample_files["wjets"])
    assert not any(client.run(read_bytes.take).values()), "nothing is left for the next command to tell"


def test_files_over_xrootd(trained, sample_files, tmp_path):
    """A worker reads over XRootD and runs TensorFlow; the two must bear each other in one process."""
    from shutil import which

    require(which("xrootd"), "the xrootd server is not installed (apt install xrootd-server)")
    out = tmp_path / "scores.parquet"
    with xrootd_server(sample_files.values()) as server:
        done = subprocess.run(
            [sys.executable, "-m", "hepdask", "predict", trained.folder / "models" / "inclusive",
             server.url + "/wjets.root", "--out", out, "--json", "--set", "cluster.workers=1",
             "--set", "cluster.kind=local", "--set", "cluster.dashboard_port=0"],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["events"] == SAMPLES["wjets"][0]
    expected = load_model(trained.folder / "models" / "inclusive").predict(read_events(sample_files["wjets"]))
    assert pq.read_table(out)["score_ttbar"].to_numpy() == pytest.approx(
        expected[:, 1], abs=1e-6, nan_ok=True
    )
