"""The same events in other files: parts and what was merged from them, a skim, a file with an event twice."""

import random
from itertools import combinations

import awkward as ak
import numpy as np
import pytest
import uproot
from helpers import events as made
from helpers import naive
from helpers.stores import arrays_of

from hepdask import prepare
from hepdask.analysis import topology
from hepdask.analysis.fingerprint import fingerprints
from hepdask.config import Topology
from hepdask.config.feature_names import STORED
from hepdask.errors import InputError


@pytest.fixture(scope="module")
def plain():
    return made.random_events(250, seed=61, candidates=12)


def passing(plain):
    return [entry for entry, event in enumerate(plain) if naive.event_features(event) is not None]


def write(path, plain, ntuple=False, extra=False, drop=()):
    arrays = {name: array for name, array in arrays_of(plain).items() if name not in drop}
    if extra:
        arrays["Weight"] = ak.Array([[1.0]] * len(plain))
    with uproot.recreate(path, compression=uproot.LZ4(1) if extra else uproot.ZLIB(1)) as file:
        if ntuple:
            file.mkrntuple("Delphes", arrays)
        else:
            types = {name: ak.type(array).content for name, array in arrays.items()}
            file.mktree("Delphes", types, counter_name=lambda name: f"n{name}").extend(arrays)
    return str(path)


class TestFingerprints:
    def test_the_same_event_has_the_same_one_wherever_it_stands(self, plain):
        array = made.to_awkward(plain, np.float32)
        whole = self.of(array)
        assert len(set(whole.tolist())) == len(whole)
        pieces = np.concatenate([self.of(array[start : start + 17]) for start in range(0, len(array), 17)])
        assert np.array_equal(pieces, whole)
        order = random.Random(1).sample(range(len(array)), len(array))
        mixed = self.of(array[order])
        assert sorted(mixed.tolist()) == sorted(whole.tolist())

    @staticmethod
    def of(array):
        found = topology.extract(array, Topology())
        columns = [found.particles[name] for name in STORED]
        return fingerprints(found.particles.offsets, columns, found.high_level)

    def test_any_other_number_gives_another(self):
        """Each value and each place counts: all small events are told apart by a plain comparison of their bytes."""
        rng = np.random.default_rng(2)
        counts = rng.integers(0, 4, 400)
        offsets = np.concatenate(([0], np.cumsum(counts)))
        columns = [
            rng.integers(0, 2, offsets[-1]).astype(dtype) for dtype in (np.float32, np.float32, np.int8)
        ]
        high = rng.integers(0, 2, (400, 2)).astype(float)
        found = fingerprints(offsets, columns, high)
        rows = [
            (high[i].tobytes(), tuple(column[offsets[i] : offsets[i + 1]].tobytes() for column in columns))
            for i in range(400)
        ]
        assert len(set(rows)) < 400
        for i, j in combinations(range(400), 2):
            assert (found[i] == found[j]) == (rows[i] == rows[j])


class TestRefused:
    """Each name stands for files that hold events of one another."""

    @pytest.mark.parametrize("case", ["merged", "skim", "rntuple", "shuffled", "other_class", "itself"])
    def test_files_that_share_events(self, make_config, client, tmp_path, plain, case):
        one = write(tmp_path / "one.root", plain[:120])
        files = {"ttbar": [one]}
        other = str(tmp_path / "other.root")
        if case == "merged":
            files["ttbar"] += [write(tmp_path / "two.root", plain[120:]), write(other, plain)]
        elif case == "skim":
            few = [entry for entry in passing(plain[:120]) if plain[entry]["met"]["pt"] > 30]
            files["ttbar"] += [write(other, [plain[entry] for entry in few], extra=True)]
        elif case == "rntuple":
            files["ttbar"] += [write(other, plain[:120], ntuple=True)]
        elif case == "shuffled":
            files["ttbar"] += [write(other, random.Random(3).sample(plain, 200))]
        elif case == "other_class":
            files["qcd"] = [write(other, plain[100:160])]
        else:
            files["ttbar"] = [write(other, plain[:60] + plain[:60])]
            one = other
        config = make_config(files=files)
        with pytest.raises(InputError, match=r"the same events occur more than once") as refused:
            prepare(config, client)
        assert one in str(refused.value)
        assert other in str(refused.value)
        assert not (config.store_path / "manifest.json").exists()
        if case == "rntuple":
            many = len(passing(plain[:120]))
            first = passing(plain)[0]
            assert f"share {many} selected events (100.0% of the smaller file)" in str(refused.value)
            assert f"for example entry {first} of the first is entry {first} of the second" in str(
                refused.value
            )

    def test_the_counts_are_those_of_a_plain_loop(self, make_config, client, tmp_path, plain):
        ranges = {"a": (0, 100), "b": (60, 160), "c": (150, 250)}
        paths = [write(tmp_path / f"{name}.root", plain[slice(*ends)]) for name, ends in ranges.items()]
        with pytest.raises(InputError) as refused:
            prepare(make_config(files={"ttbar": paths}), client)
        good = set(passing(plain))
        for (one, ends), (other, others) in combinations(ranges.items(), 2):
            mine, theirs = good & set(range(*ends)), good & set(range(*others))
            line = f"{one}.root and {tmp_path}/{other}.root share "
            if mine & theirs:
                share = len(mine & theirs) / min(len(mine), len(theirs))
                assert f"{line}{len(mine & theirs)} selected events ({share:.1%}" in str(refused.value)
                entry = min(mine & theirs)
                example = f"entry {entry - ends[0]} of the first is entry {entry - others[0]} of the second"
                assert example in str(refused.value)
            else:
                assert line not in str(refused.value)


def test_a_few_are_said(make_config, client, tmp_path, plain, caplog):
    """By chance or by mistake, less than 1 %: the run goes on, and says which."""
    crowd = made.random_events(160, seed=62, candidates=5)
    good = passing(plain)
    assert len(good) > 100
    twin = good[5]
    files = {
        "ttbar": [write(tmp_path / "a.root", plain)],
        "wjets": [write(tmp_path / "b.root", [*crowd, plain[twin], *made.random_events(40, seed=63, candidates=5)])],
    }  # fmt: skip
    config = make_config(files=files)
    caplog.set_level("INFO", "hepdask")
    result = prepare(config, client)
    (a,), (b,) = files.values()
    (note,) = result.store.manifest["notes"]
    assert note.startswith(f"{a} and {b} share 1 selected event (")
    assert note.endswith(f"for example entry {twin} of the first is entry 160 of the second")
    assert note in caplog.text
    assert prepare(config, client).tasks == 0
