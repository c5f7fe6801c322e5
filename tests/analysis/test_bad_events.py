"""Events that hold what no physics can be done with: each is dropped alone, counted and named, and no other."""

import json
import math

import awkward as ak
import numpy as np
import pytest
import uproot
from helpers import events as made
from helpers import naive

from hepdask import prepare
from hepdask.analysis import topology
from hepdask.analysis.bad_events import on_usable
from hepdask.config import Topology
from hepdask.errors import InputError

SIZE = 80
BAD = {
    "EFlowTrack.PT is not a finite number": [6, 7],
    "EFlowPhoton.ET is negative": [20],
    "EFlowTrack.Eta is not a finite number": [33],
    "Jet.PT is not a finite number": [40, 41, 55],
    "MissingET is empty": [60],
    "GenInfo.Parent does not hold one number": [2, 79],
}


def root_of_met_less_ten(events):
    with np.errstate(invalid="ignore"):
        return np.sqrt(ak.to_numpy(ak.flatten(events.MissingET.MET)) - 10)


def number_of_jets(events):
    return ak.num(events.Jet.PT)


@pytest.fixture(scope="module")
def bad_file(tmp_path_factory):
    """Write a file with bad events of several kinds; give it, and the events as they were before."""
    plain = made.random_events(SIZE, seed=51)
    whole = made.to_awkward(plain, np.float32)
    arrays = {f"{name}.{field}": whole[name][field] for name in whole.fields for field in whole[name].fields}
    arrays["GenInfo.Parent"] = ak.Array([[entry] for entry in range(SIZE)])
    lists = {name: array.tolist() for name, array in arrays.items()}
    for what, entries in BAD.items():
        branch, _, words = what.partition(" ")
        for entry in entries:
            if "not a finite" in words:
                lists[branch][entry][0] = float("nan") if entry % 2 else float("inf")
            elif "negative" in words:
                lists[branch][entry][-1] = -999.0
            elif branch == "MissingET":
                lists["MissingET.MET"][entry] = lists["MissingET.Phi"][entry] = []
            else:
                lists[branch][entry] = [] if entry % 2 else [1, 2]
    path = tmp_path_factory.mktemp("bad") / "bad.root"
    with uproot.recreate(path) as file:
        changed = {
            name: ak.values_astype(ak.Array(lists[name]), ak.to_numpy(ak.flatten(array)).dtype)
            for name, array in arrays.items()
        }
        types = {name: ak.type(array).content for name, array in changed.items()}
        file.mktree("Delphes", types, counter_name=lambda name: f"n{name}").extend(changed)
    return str(path), plain


@pytest.fixture
def of_bad_file(make_config, bad_file, tmp_path):
    def make(name="run", functions=None, reading=None, **store):
        analysis = {
            "features": {key: f"{__file__}:{function}" for key, function in (functions or {}).items()}
        }
        return make_config(
            files={"ttbar": [bad_file[0]]},
            input=reading or {},
            store=store,
            output=str(tmp_path / name),
            analysis=analysis,
        )

    return make


def expected_entries(plain, bad):
    gone = {entry for entries in bad.values() for entry in entries}
    return [
        entry
        for entry, event in enumerate(plain)
        if entry not in gone and naive.event_features(event) is not None
    ]


def test_only_the_bad_ones_are_lost(of_bad_file, client, bad_file):
    path, plain = bad_file
    store = prepare(of_bad_file(max_lost_fraction=0.2), client).store
    assert store.arrays().entry.tolist() == expected_entries(plain, BAD)
    found = {
        item["reason"]: (item["path"], item["start"], item["stop"], item["events"])
        for item in store.manifest["lost"]
    }
    assert found == {
        f"{path}: {'entries' if len(entries) > 1 else 'entry'} {', '.join(map(str, entries))}: {what}": (
            path, entries[0], entries[-1] + 1, len(entries),
        )
        for what, entries in BAD.items()
    }  # fmt: skip
    (row,) = store.manifest["selection"]
    assert row["events_lost"] == sum(map(len, BAD.values()))
    for event in store.arrays():
        high_level, _ = naive.event_features(plain[event.entry])
        assert math.isclose(event.hlf.HT, high_level["HT"], rel_tol=1e-5, abs_tol=1e-5)


def test_the_run_fails_and_goes_on_where_it_may(of_bad_file, client):
    """The same store, and the same ledger, as if it had been allowed from the start, in whatever chunks."""
    with pytest.raises(InputError, match=r"(?s)max_lost_fraction.*bad\.root: entr"):
        prepare(of_bad_file(), client)
    with pytest.raises(InputError, match=r"max_lost_fraction is 10\.00%"):
        prepare(of_bad_file(max_lost_fraction=0.1), client)
    resumed = prepare(of_bad_file(max_lost_fraction=0.2), client).store.manifest
    for name, reading in (("whole", {"chunk_events": 1000}), ("small", {"chunk_events": 7})):
        fresh = prepare(of_bad_file(name, reading=reading, max_lost_fraction=0.2), client).store.manifest
        for key in ("lost", "selection", "notes"):
            assert resumed[key] == fresh[key]
    again = prepare(of_bad_file(max_lost_fraction=0.2), client)
    assert again.tasks == 0
    with pytest.raises(InputError, match="max_lost_fraction"):
        prepare(of_bad_file(), client)


def test_a_users_feature_that_is_no_number(of_bad_file, client, bad_file):
    path, plain = bad_file
    config = of_bad_file(
        functions={"jets": "number_of_jets", "odd": "root_of_met_less_ten"}, max_lost_fraction=0.9
    )
    store = prepare(config, client).store
    low = [entry for entry in expected_entries(plain, BAD) if np.float32(plain[entry]["met"]["pt"]) < 10]
    assert len(low) > 5
    bad = {**BAD, "analysis.features.odd is not a finite number": low}
    assert store.arrays().entry.tolist() == expected_entries(plain, bad)
    reason = next(
        item["reason"] for item in store.manifest["lost"] if "analysis.features.odd" in item["reason"]
    )
    first = ", ".join(map(str, low[:5]))
    assert (
        reason
        == f"{path}: entries {first} and {len(low) - 5} more: analysis.features.odd is not a finite number"
    )


def test_many_bad_events_are_counted(make_config, client, sample_files, tmp_path):
    many = 20_000
    nothing = made.to_awkward([made.event()], np.float32)
    whole = nothing[np.zeros(many, int)]
    arrays = {f"{name}.{field}": whole[name][field] for name in whole.fields for field in whole[name].fields}
    met = np.full(many, np.nan, np.float32)
    arrays["MissingET.MET"] = ak.unflatten(met, np.ones(many, int))
    path = str(tmp_path / "many.root")
    with uproot.recreate(path) as file:
        types = {name: ak.type(array).content for name, array in arrays.items()}
        file.mktree("Delphes", types, counter_name=lambda name: f"n{name}").extend(arrays)
    files = {"ttbar": [sample_files["ttbar"]], "wjets": [path]}
    config = make_config(files=files, input={"chunk_events": 3000}, store={"max_lost_fraction": 1})
    store = prepare(config, client).store
    assert store.manifest["selection"][1]["events_lost"] == many
    assert len(json.dumps(store.manifest["lost"])) < 1000
    assert "entries 0, 1, 2, 3, 4 and 19,995 more: MissingET.MET" in store.manifest["lost"][0]["reason"]


def test_all_checks_find_all_their_events():
    """What `predict` and `prepare` share: every event that fails a check at once, by the first check it fails."""
    plain = made.random_events(30, seed=52)
    expected = {}
    for entry in (3, 9, 28):
        plain[entry]["tracks"][0]["pt"] = float("nan")
        expected.setdefault("EFlowTrack.PT is not a finite number", []).append(entry)
    for entry in (4, 9):
        plain[entry]["met"]["pt"] = -1.0
    expected["MissingET.MET is negative"] = [4]
    calls = []

    def work(events):
        calls.append(len(events))
        return topology.extract(events, Topology())

    extracted, left, dropped = on_usable(work, made.to_awkward(plain))
    assert {one.what: one.events.tolist() for one in dropped} == expected
    assert calls == [30, 27, 26]
    good = [entry for entry in range(30) if entry not in (3, 4, 9, 28)]
    assert left.tolist() == good
    truth = [naive.event_features(plain[entry]) is not None for entry in good]
    assert extracted.selected.tolist() == truth
