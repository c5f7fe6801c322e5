"""From ROOT files to a store: every selected event is there once, whatever happens on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from itertools import pairwise
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import zarr
from helpers import events as made
from helpers import naive
from helpers.stores import assert_equal, columns, members, pack, rewrite
from hypothesis import given
from hypothesis import strategies as st

from hepdask import open_store, prepare
from hepdask.analysis.columns import BadEvent
from hepdask.analysis.scaling import Moments
from hepdask.config import Config, feature_names
from hepdask.errors import ConfigError, HepdaskError, InputError, StoreError
from hepdask.input.contents import cut
from hepdask.input.fileset import input_files
from hepdask.pipeline import prepare_task
from hepdask.store.layout import DTYPES, MANIFEST, PARTS, part_file

SIZES = {"ttbar": (70, 11), "wjets": (60, 12), "qcd": (50, 13)}


@pytest.fixture(scope="module")
def truth():
    """What a plain loop over the events selects, by class."""
    return {
        name: [naive.event_features(e) for e in made.random_events(n, seed)]
        for name, (n, seed) in SIZES.items()
    }


def test_the_store_holds_what_a_plain_loop_finds(make_config, client, truth):
    store = prepare(make_config(), client).store
    array = store.arrays()
    assert len(store) == len(array)
    for label, name in enumerate(store.classes):
        mine = array[array.label == label]
        expected = {entry: found for entry, found in enumerate(truth[name]) if found is not None}
        assert mine.entry.tolist() == sorted(expected)
        assert set(mine.dataset.tolist()) == {name}
        for event in mine:
            high_level, particles = expected[event.entry]
            for feature in feature_names.HIGH_LEVEL:
                assert event.hlf[feature] == pytest.approx(high_level[feature], rel=1e-5, abs=1e-5)
            for feature in feature_names.PARTICLE:
                expected_values = [p[feature] for p, _ in particles]
                assert event.particles[feature].tolist() == pytest.approx(expected_values, rel=1e-5, abs=1e-5)


def test_plain_zarr_and_awkward_can_read_it(make_config, client):
    store = prepare(make_config(), client).store
    archive = zarr.storage.ZipStore(part_file(store.path, store.parts[0]["name"]), mode="r")
    with archive:
        group = zarr.open_group(archive, mode="r", zarr_format=3)
        lists = ak.unflatten(group["Pt"][:], np.diff(group["offsets"][:]))
        assert set(group) == set(DTYPES)
        assert group.attrs["uuid"] == store.parts[0]["uuid"]
    assert lists.tolist() == store.arrays()[: store.parts[0]["events"]].particles.Pt.tolist()
    root = zarr.open_group(store.path, mode="r", zarr_format=3)
    assert root.attrs["hepdask"]["identity"]["split.seed"] == store.split.seed


def test_scaling_is_fitted_on_the_training_split(make_config, client):
    store = prepare(make_config(split={"balance": False}), client).store
    train = store.arrays("train")
    flat = np.stack(
        [ak.to_numpy(ak.flatten(train.particles[name])) for name in feature_names.PARTICLE], axis=1
    )
    assert store.particle_scaler.shift == pytest.approx(flat.mean(axis=0, dtype=float), rel=1e-5, abs=1e-6)
    deviation = flat.std(axis=0, dtype=float)
    constant = deviation == 0
    assert (store.particle_scaler.factor[constant] == 0).all()
    assert 1 / store.particle_scaler.factor[~constant] == pytest.approx(deviation[~constant], rel=1e-4)
    high_level = np.stack([ak.to_numpy(train.hlf[name]) for name in feature_names.HIGH_LEVEL], axis=1)
    scaled = store.high_level_scaler(high_level)
    assert scaled.min() >= -1e-6
    assert scaled.max() <= 1 + 1e-6


def test_a_sequence_is_scaled_and_padded_behind(make_config, client):
    store = prepare(make_config(), client).store
    array = store.arrays()
    for index in (0, len(store) - 1):
        rows = store.sequence(index)
        n = len(array[index].particles)
        assert rows.shape == (801, 19)
        assert rows.dtype == np.float32
        assert not rows[n:].any()
        pt = store.particle_scaler(
            np.stack([ak.to_numpy(array[index].particles[f]) for f in feature_names.PARTICLE], axis=1)
        )
        assert rows[:n] == pytest.approx(pt, rel=1e-5, abs=1e-5)
    with pytest.raises(IndexError):
        store.sequence(len(store))


def test_the_published_form_of_a_sequence(make_config, client):
    store = prepare(make_config(analysis={"convention": "reference"}), client).store
    rows = store.sequence(0).astype(float)
    assert rows.shape == (801, 19)
    assert rows.mean(axis=0) == pytest.approx(np.zeros(19), abs=1e-5)
    deviation = rows.std(axis=0)
    assert deviation[deviation > 0] == pytest.approx(np.ones(np.count_nonzero(deviation)), abs=1e-4)
    assert store.particle_scaler is None
    high_level = np.stack(
        [ak.to_numpy(store.arrays().hlf[name]) for name in feature_names.HIGH_LEVEL], axis=1
    )
    scaled = store.high_level_scaler(high_level)
    assert scaled.min(axis=0) == pytest.approx(np.zeros(14), abs=1e-6)


@pytest.mark.parametrize("chunk_events", [1000, 7])
def test_the_size_of_chunks_changes_nothing(make_config, client, tmp_path, chunk_events):
    one = prepare(make_config(), client).store
    other = prepare(
        make_config(output=str(tmp_path / "other"), input={"chunk_events": chunk_events}), client
    ).store
    assert_equal(one, other)
    for sample in ("train", "test", "validation"):
        mine, theirs = one.events(sample), other.events(sample)
        assert mine.entry.tolist() == theirs.entry.tolist()
        assert mine.label.tolist() == theirs.label.tolist()
    assert one.particle_scaler.shift == pytest.approx(other.particle_scaler.shift, rel=1e-5, abs=1e-6)


def test_splits_share_out_the_events(make_config, client):
    store = prepare(make_config(split={"balance": False, "test_fraction": 0.3}), client).store
    identity = {s: {(e.label, e.entry) for e in store.arrays(s)} for s in ("train", "test")}
    assert identity["train"].isdisjoint(identity["test"])
    assert len(identity["train"] | identity["test"]) == len(store)
    assert 0.15 < len(identity["test"]) / len(store) < 0.45
    fit, validation = store.events("fit"), store.events("validation")
    assert len(fit) + len(validation) == len(identity["train"])


def test_balanced_training_has_equally_many_of_each_class(make_config, client):
    store = prepare(make_config(), client).store
    counts = np.bincount(store.labels("train"))
    assert len(set(counts)) == 1
    assert counts[0] == min(np.bincount(store.labels()[:])) or counts[0] > 0
    assert len(set(np.bincount(store.labels("test")))) > 1, "the test split is left as it is"


def test_events_of_one_parent_stay_in_one_split(make_config, client, tmp_path):
    plain = made.random_events(120, seed=21)
    parents = np.arange(120) // 2
    path = made.write_root(tmp_path / "parents.root", plain, parents=parents, identity=uuid.UUID(int=21))
    config = make_config(files={"qcd": [path]}, split={"test_fraction": 0.5, "balance": False})
    store = prepare(config, client).store
    split = {s: set(parents[store.events(s).entry]) for s in ("fit", "validation", "test")}
    assert all(split.values())
    assert split["fit"].isdisjoint(split["test"])
    assert split["fit"].isdisjoint(split["validation"])
    assert split["validation"].isdisjoint(split["test"])


def test_nothing_changed_means_nothing_to_do(make_config, client):
    config = make_config()
    assert prepare(config, client).tasks > 0
    before = (config.store_path / MANIFEST).stat().st_mtime_ns
    assert prepare(config, client).tasks == 0
    assert (config.store_path / MANIFEST).stat().st_mtime_ns == before


def test_a_new_file_is_added_without_touching_the_others(make_config, client, sample_files, tmp_path):
    few = {name: [path] for name, path in sample_files.items() if name != "qcd"}
    first = prepare(make_config(files=few), client)
    second = prepare(make_config(), client)
    assert second.tasks == 2
    assert len(second.store) > len(first.store)
    whole = prepare(make_config(output=str(tmp_path / "whole")), client).store
    assert_equal(second.store, whole)


def test_another_configuration_is_not_mixed_in(make_config, client):
    prepare(make_config(), client)
    with pytest.raises(StoreError, match=r"analysis\.lepton_min_pt: 23\.0 in the store, 30\.0 now"):
        prepare(make_config(analysis={"lepton_min_pt": 30}), client)


def test_a_half_written_part_is_not_believed(make_config, client):
    config = make_config()
    whole = prepare(config, client).store
    expected = columns(whole)
    part = part_file(config.store_path, whole.parts[0]["name"])
    part.rename(part.with_name(".writing-0123"))
    (config.store_path / MANIFEST).unlink()
    with pytest.raises(StoreError, match="not complete"):
        open_store(config.store_path)
    again = prepare(config, client)
    assert again.tasks == 1
    for name, values in columns(again.store).items():
        assert np.array_equal(values, expected[name])
    assert not list((config.store_path / PARTS).glob(".writing-*"))


def test_a_changed_label_is_taken_up(make_config, client, sample_files):
    first = prepare(make_config(files={"wjets": [sample_files["wjets"]]}), client).store
    config = make_config(files={"wjets": [sample_files["wjets"]]})
    document = config.model_dump()
    document["fileset"]["wjets"]["metadata"]["label"] = "qcd"
    second = prepare(Config.model_validate(document), client)
    assert second.tasks == 0
    assert set(first.labels()) == {2}
    assert set(second.store.labels()) == {0}
    assert second.store.fingerprint != first.fingerprint


def test_another_tree_of_the_same_file_is_other_data(make_config, client, tmp_path, sample_files):
    import uproot

    path = str(tmp_path / "two.root")
    with uproot.open(sample_files["ttbar"]) as old, uproot.recreate(path) as new:
        arrays = old["Delphes"].arrays(library="ak", how=dict)
        kept = {name: array for name, array in arrays.items() if not name.endswith("_size")}
        types = {name: ak.type(array).content for name, array in kept.items()}
        for tree, part in (("A", slice(0, 40)), ("B", slice(40, 70))):
            made_tree = new.mktree(tree, types, counter_name=lambda name: f"n{name}")
            made_tree.extend({name: array[part] for name, array in kept.items()})

    def of(tree):
        document = make_config(files={"ttbar": [path]}).model_dump()
        document["fileset"]["ttbar"]["files"] = {path: tree}
        return prepare(Config.model_validate(document), client)

    one, other = of("A"), of("B")
    assert other.tasks == 2
    assert one.store.manifest["selection"][0]["events_read"] == 40
    assert other.store.manifest["selection"][0]["events_read"] == 30


def test_balance_and_validation_can_be_changed_without_new_parts(make_config, client):
    balanced = prepare(make_config(), client).store
    other = prepare(make_config(split={"balance": False, "validation_fraction": 0.3}), client)
    assert other.tasks == 0
    assert len(other.store.labels("train")) > len(balanced.labels("train"))


def test_a_part_that_is_gone_is_made_again(make_config, client, caplog):
    config = make_config()
    before = prepare(config, client).store
    gone = part_file(config.store_path, before.parts[1]["name"])
    gone.write_bytes(gone.read_bytes()[:-1])  # a file without its end, as a lost machine may leave it
    caplog.set_level("INFO", "hepdask")  # also of the handler: a cluster of Dask's has silenced it
    again = prepare(config, client)
    assert again.tasks == 1
    assert again.store.fingerprint == before.fingerprint
    assert f"{gone}: is not a complete archive" in caplog.text


def test_damaged_data_are_not_used(make_config, client):
    store = prepare(make_config(), client).store
    file = part_file(store.path, store.parts[0]["name"])
    pack(file, {name: content for name, content in members(file).items() if name != "Pt/c/0"})
    with pytest.raises(
        StoreError, match=rf"{store.parts[0]['name']}/Pt: Pt/c/0 is missing; remove .* hepdask prepare"
    ):
        store.events()
    (store.path / MANIFEST).write_text("{")
    with pytest.raises(HepdaskError, match=r"manifest\.json: damaged"):
        open_store(store.path)


def test_damage_is_found(make_config, client):
    store = prepare(make_config(), client).store
    assert store.damaged_parts() == []
    values = store.events(parts=[0]).particles["Pt"].copy()
    values[0] = 12345.0
    manifest = (store.path / MANIFEST).read_bytes()
    rewrite(store.path, store.parts[0]["name"], {"Pt": values})
    (store.path / MANIFEST).write_bytes(manifest)
    assert store.damaged_parts() == [f"{store.parts[0]['name']}/Pt"]


def parts_of(config):
    return list(config.store_path.glob(f"{PARTS}/*.zip"))


@pytest.mark.parametrize("delay", [0.0, 0.5, 1.5])
def test_killed_and_started_again_nothing_is_lost(make_config, tmp_path, client, delay):
    """SIGKILL the whole run, cluster included, at some moment while it writes; then prepare again."""
    config = make_config(input={"chunk_events": 2})
    document = tmp_path / "config.json"
    document.write_text(config.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-m", "hepdask", "prepare", str(document)], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not parts_of(config) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = len(parts_of(config))
    assert done, "killed before anything was written: the test shows nothing"
    result = prepare(config, client)
    assert result.tasks <= 90 - done
    undisturbed = prepare(make_config(output=str(tmp_path / "undisturbed")), client).store
    assert_equal(result.store, undisturbed)


def test_branches_of_other_names(make_config, client, sample_files, tmp_path):
    import uproot

    path = str(tmp_path / "renamed.root")
    with uproot.open(sample_files["ttbar"]) as old, uproot.recreate(path) as new:
        arrays = old["Delphes"].arrays(library="ak", how=dict)
        kept = {name: array for name, array in arrays.items() if not name.endswith("_size")}
        kept["tracks.pt"] = kept.pop("EFlowTrack.PT")
        types = {name: ak.type(array).content for name, array in kept.items()}
        new.mktree("Delphes", types, counter_name=lambda name: f"n{name}").extend(kept)
    with pytest.raises(InputError, match=r"no branch EFlowTrack\.PT.*analysis\.branches"):
        prepare(make_config(files={"ttbar": [path]}), client)
    analysis = {"branches": {"EFlowTrack.PT": "tracks.pt"}}
    config = make_config(files={"ttbar": [path]}, analysis=analysis, output=str(tmp_path / "renamed"))
    renamed = prepare(config, client).store
    assert_equal(renamed, prepare(make_config(files={"ttbar": [sample_files["ttbar"]]}), client).store)


def test_own_features_are_stored_behind_the_published_ones(make_config, client):
    functions = str(Path(__file__).parents[1] / "analysis" / "test_features.py")
    analysis = {
        "selections": {"two_jets": f"{functions}:two_jets"}, "features": {"leading": f"{functions}:leading_jet"},
    }  # fmt: skip
    store = prepare(make_config(analysis=analysis), client).store
    assert store.features["hlf"] == (*feature_names.HIGH_LEVEL, "leading")
    array = store.arrays()
    assert ak.all(array.hlf.leading > 0)
    assert len(array) > 0


class TestBadInput:
    def test_missing_file(self, make_config, client):
        with pytest.raises(InputError, match=r"nowhere\.root: No such file"):
            prepare(make_config(files={"ttbar": ["/nowhere.root"]}), client)

    def test_not_a_root_file(self, make_config, client, tmp_path):
        (tmp_path / "text.root").write_text("not a ROOT file at all" * 100)
        with pytest.raises(InputError, match=r"text\.root: not a readable ROOT file"):
            prepare(make_config(files={"ttbar": [str(tmp_path / "text.root")]}), client)

    def test_missing_branch(self, make_config, client, tmp_path):
        path = made.write_root(tmp_path / "few.root", made.random_events(3, 1), drop=("EFlowTrack.Eta",))
        with pytest.raises(InputError, match=r"few\.root: tree Delphes has no branch EFlowTrack\.Eta"):
            prepare(make_config(files={"ttbar": [path]}), client)

    def test_missing_tree(self, make_config, client, tmp_path):
        path = made.write_root(tmp_path / "other.root", made.random_events(3, 1), tree="Events")
        with pytest.raises(InputError, match=r"no tree is called Delphes; there are: Events"):
            prepare(make_config(files={"ttbar": [path]}), client)

    def test_nan_names_file_and_entry(self, make_config, client, tmp_path):
        plain = made.random_events(40, 1)
        plain[33]["tracks"].append(made.track(float("nan"), 0, 0))
        path = made.write_root(tmp_path / "nan.root", plain)
        with pytest.raises(InputError, match=r"nan\.root: entry 33: EFlowTrack\.PT is not a finite number"):
            prepare(make_config(files={"ttbar": [path]}), client)

    def test_what_does_not_fit_into_float32(self, make_config, client, tmp_path):
        plain = made.random_events(40, 1)
        chosen = next(i for i, e in enumerate(plain) if naive.event_features(e))
        plain[chosen]["tracks"].append(made.track(5, 200, 0))
        path = made.write_root(tmp_path / "far.root", plain)
        with pytest.raises(InputError, match=rf"far\.root: entry {chosen}: the energy .* is too large"):
            prepare(make_config(files={"ttbar": [path]}), client)

    def test_no_parent(self, make_config, client, tmp_path):
        path = made.write_root(tmp_path / "orphans.root", made.random_events(5, 1), parents=range(5))
        config = make_config(files={"ttbar": [path]})
        assert len(prepare(config, client).store)
        events = ak.Array({"GenInfo": ak.zip({"Parent": ak.Array([[1], [], [3]])}, depth_limit=2)})
        with pytest.raises(BadEvent, match=r"event 1: GenInfo\.Parent does not hold one number"):
            prepare_task._parents(events, "GenInfo")

    def test_no_event_selected(self, make_config, client, tmp_path):
        path = made.write_root(tmp_path / "none.root", made.random_events(5, 1, leptons=0))
        with pytest.raises(
            InputError, match=r"no event passes the selection: 5 entries were read from 1 files"
        ):
            prepare(make_config(files={"qcd": [path]}), client)

    def test_a_class_without_selected_events_is_said(self, make_config, client, tmp_path, sample_files):
        path = made.write_root(tmp_path / "none.root", made.random_events(5, 1, leptons=0))
        files = {"ttbar": [sample_files["ttbar"]], "wjets": [sample_files["wjets"]], "qcd": [path]}
        store = prepare(make_config(files=files), client).store
        assert store.manifest["notes"] == ["no event of qcd (qcd) passes the selection"]
        assert (store.labels() != 0).all()

    def test_an_empty_tree_is_no_error_beside_others(self, make_config, client, tmp_path, sample_files):
        path = made.write_root(tmp_path / "empty.root", [])
        store = prepare(make_config(files={"ttbar": [sample_files["ttbar"], path]}), client).store
        assert store.manifest["selection"][0]["files"] == 2

    def test_the_same_file_twice(self, make_config, client, tmp_path, sample_files):
        path = sample_files["ttbar"]
        with pytest.raises(ConfigError, match="listed twice"):
            prepare(make_config(files={"ttbar": [path], "ttbar_more": [path]}), client)
        shutil.copy(path, tmp_path / "copy.root")
        with pytest.raises(InputError, match="copies of one file"):
            prepare(make_config(files={"ttbar": [path, str(tmp_path / "copy.root")]}), client)

    def test_a_pattern_that_matches_nothing(self, make_config):
        with pytest.raises(InputError, match="matches no ROOT file"):
            input_files(make_config(files={"ttbar": ["/nowhere/*.root"]}))

    def test_losses_within_the_limit_are_recorded(self, make_config, client, tmp_path, sample_files):
        plain = made.random_events(20, 1)
        plain[3]["tracks"].append(made.track(float("nan"), 0, 0))
        path = made.write_root(tmp_path / "nan.root", plain)
        files = {name: [found] for name, found in sample_files.items()}
        files["qcd"].append(path)
        store = prepare(
            make_config(files=files, input={"chunk_events": 10}, store={"max_lost_fraction": 0.2}), client
        ).store
        assert [(lost["path"], lost["start"], lost["stop"]) for lost in store.manifest["lost"]] == [
            (path, 3, 4)
        ]
        assert store.manifest["selection"][2]["events_lost"] == 1
        assert "entry 3" in store.manifest["notes"][0]


class TestXRootD:
    def test_the_same_store_as_from_disk(self, make_config, client, xrootd, tmp_path):
        files = {name: [f"{xrootd.url}/{name}.root"] for name in SIZES}
        remote = prepare(make_config(files=files), client).store
        assert_equal(remote, prepare(make_config(output=str(tmp_path / "disk")), client).store)

    def test_a_directory_is_listed(self, make_config, xrootd):
        found = input_files(make_config(files={"ttbar": [f"{xrootd.url}/"]}))
        assert [file.path.rsplit("/", 1)[-1] for file in found] == ["qcd.root", "ttbar.root", "wjets.root"]

    def test_a_missing_file_is_named(self, make_config, client, xrootd):
        with pytest.raises(InputError, match=r"nothing\.root.*no such file"):
            prepare(make_config(files={"ttbar": [f"{xrootd.url}/nothing.root"]}), client)

    def test_a_dead_server_is_noticed(self, make_config, client, xrootd):
        xrootd.stop()
        fast = {"connection_window": 1, "connection_retry": 1, "request_timeout": 3, "stream_error_window": 1}
        with pytest.raises(InputError, match="after 3 attempts"):
            prepare(
                make_config(files={"ttbar": [f"{xrootd.url}/ttbar.root"]}, input={"xrootd": fast}), client
            )


@given(
    clusters=st.lists(st.integers(1, 100), max_size=20),
    most=st.integers(1, 60),
)
def test_ranges_cover_a_file_once_and_respect_clusters(clusters, most):
    edges = [0, *np.cumsum(clusters).tolist()]
    ranges = list(cut(edges, most))
    assert [entry for start, stop in ranges for entry in range(start, stop)] == list(range(edges[-1]))
    assert all(0 < stop - start <= most for start, stop in ranges)
    for _, stop in ranges:  # only a cluster that is too large is cut
        assert all(b - a > most for a, b in pairwise(edges) if a < stop < b)


def test_merged_moments_are_those_of_the_whole():
    rows = np.random.default_rng(0).normal(1e4, 1, (1000, 3))
    merged = Moments.of(rows[:0])
    for piece in np.split(rows, [1, 10, 500, 500]):
        merged = merged.merge(Moments.from_json(json.loads(json.dumps(Moments.of(piece).to_json()))))
    assert merged.count == 1000
    assert merged.mean == pytest.approx(rows.mean(axis=0), rel=1e-12)
    assert merged.squares == pytest.approx(rows.var(axis=0) * 1000, rel=1e-9)
    assert merged.low.tolist() == rows.min(axis=0).tolist()
