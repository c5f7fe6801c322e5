"""Input that is not what it should be: each a clear message that names the place, none silently wrong."""

import random
import uuid
import zlib
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from helpers import events as made
from helpers.stores import assert_equal, columns

from hepdask import prepare
from hepdask.config import Config
from hepdask.errors import HepdaskError, InputError

#: Codecs whose checksums uproot verifies when it decompresses.
CHECKED = {"zlib": uproot.ZLIB(1), "lzma": uproot.LZMA(1), "lz4": uproot.LZ4(1)}
#: What holds no checksum at all: nothing but that of the whole file tells.
UNCHECKED = {"zstd": uproot.ZSTD(1), "raw": None}

BRANCHES = ("EFlowTrack.PT", "EFlowPhoton.Eta", "MissingET.MET", "Electron.Charge")


@pytest.fixture(scope="module")
def plain():
    return made.random_events(60, seed=31)


def write(path, plain, compression, change=lambda arrays: arrays):
    """Write events with a codec of one's choice, after something was done to the branches."""
    whole = made.to_awkward(plain, np.float32)
    arrays = {
        f"{collection}.{field}": whole[collection][field]
        for collection in whole.fields
        for field in whole[collection].fields
    }
    arrays = change(arrays)
    identity = uuid.UUID(int=31)
    with uproot.recreate(path, compression=compression, uuid_function=lambda: identity) as file:
        types = {name: ak.type(array).content for name, array in arrays.items()}
        file.mktree("Delphes", types, counter_name=lambda name: f"n{name}").extend(arrays)
    return str(path)


@pytest.fixture
def one_file(make_config):
    """Make a configuration on one file, perhaps with its checksum."""

    def make(path, checksum=None, **changes):
        document = make_config(files={"ttbar": [str(path)]}, **changes).model_dump()
        if checksum:
            document["fileset"]["ttbar"]["files"] = {
                str(path): {"object_path": "Delphes", "checksum": checksum}
            }
        return Config.model_validate(document)

    return make


def basket(path, branch):
    """Find the bytes of a branch's first basket, behind its key: where it starts and how long it is."""
    with uproot.open(path) as file:
        found = next(b for b in file["Delphes"].itervalues(recursive=True) if b.name == branch)
        key = found.basket_key(0)
        seek, behind = int(found.member("fBasketSeek")[0]), int(key.fKeylen)
        return seek + behind, int(key.fNbytes) - behind, int(key.fObjlen)


def flip(path, position, mask=0x10):
    content = bytearray(Path(path).read_bytes())
    content[position] ^= mask
    Path(path).write_bytes(content)


def adler32(path):
    return f"adler32:{zlib.adler32(Path(path).read_bytes()):08x}"


class TestFlippedBytes:
    @pytest.mark.parametrize(
        ("codec", "branch"),
        # LZ4 makes floats no smaller: ROOT stores them bare then
        [(codec, branch) for codec in ("zlib", "lzma") for branch in BRANCHES] + [("lz4", "Electron.Charge")],
    )
    def test_in_a_compressed_basket(self, one_file, client, tmp_path, plain, codec, branch):
        path = write(tmp_path / "flipped.root", plain, CHECKED[codec])
        start, length, unpacked = basket(path, branch)
        assert length < unpacked, "not compressed: the test shows nothing"
        flip(path, start + 9 + (length - 9) // 2)  # behind ROOT's 9-byte header of a compressed block
        with pytest.raises(InputError, match=r"flipped\.root: entries \d+ to \d+ cannot be decoded"):
            prepare(one_file(path), client)

    @pytest.mark.parametrize("codec", UNCHECKED)
    def test_where_only_the_checksum_of_the_file_can_tell(self, one_file, client, tmp_path, plain, codec):
        path = write(tmp_path / "flipped.root", plain, UNCHECKED[codec])
        checksum = adler32(path)
        start, length, _ = basket(path, "EFlowTrack.PT")
        flip(path, start + 9 + (length - 9) // 2, 0x01)
        with pytest.raises(InputError, match=rf"flipped\.root.*checksum.*{checksum.split(':')[1]}"):
            prepare(one_file(path, checksum), client)

    def test_a_right_checksum_lets_a_file_in(self, one_file, client, tmp_path, plain):
        path = write(tmp_path / "good.root", plain, uproot.ZSTD(1))
        store = prepare(one_file(path, adler32(path)), client).store
        expected = prepare(one_file(path, output=str(tmp_path / "plain")), client).store
        assert_equal(store, expected)

    @pytest.mark.parametrize("checksum", ["adler32:xyz", "1234abcd", "md17:00"])
    def test_a_checksum_that_is_none(self, one_file, tmp_path, plain, client, checksum):
        path = write(tmp_path / "good.root", plain, uproot.ZSTD(1))
        one_file(path, adler32(path))
        with pytest.raises((HepdaskError, ValueError), match="checksum"):
            prepare(one_file(path, checksum), client)

    def test_in_the_description_of_the_tree(self, one_file, client, tmp_path, plain):
        path = write(tmp_path / "flipped.root", plain, uproot.ZLIB(1))
        with uproot.open(path) as file:
            key = file.key("Delphes")
            middle = int(key.fSeekKey + key.fKeylen + key.fObjlen // 2)
        content = bytearray(Path(path).read_bytes())
        content[middle : middle + 400] = bytes(400)
        Path(path).write_bytes(content)
        with pytest.raises(InputError, match=r"flipped\.root"):
            prepare(one_file(path), client)

    def test_anywhere_in_a_file(self, one_file, client, tmp_path, plain):
        """Header, keys, streamers, tree or baskets: the same events or a clear error, and always an end."""
        good = write(tmp_path / "good.root", plain, uproot.ZLIB(1))
        content = Path(good).read_bytes()
        expected = columns(prepare(one_file(good, output=str(tmp_path / "good")), client).store)
        rng = random.Random(6)
        silent = _uncompressed(good)
        refusals = {}
        for number in range(10):
            path = tmp_path / f"bad{number}.root"
            path.write_bytes(content)
            position = rng.randrange(len(content))
            while any(start <= position < stop for start, stop in silent):
                position = rng.randrange(len(content))
            flip(path, position, 1 << rng.randrange(8))
            config = one_file(path, output=str(tmp_path / f"run{number}"))
            try:
                found = columns(prepare(config, client).store)
            except HepdaskError as error:
                refusals[position] = path.name in str(error), str(error)
                continue
            for name, values in expected.items():
                assert np.array_equal(found[name], values), f"byte {position} changed {name} silently"
        assert len(refusals) > 3
        assert all(named for named, _ in refusals.values()), refusals


def _uncompressed(path):
    """Ranges of baskets that the codec could not make smaller: ROOT stores them bare."""
    with uproot.open(path) as file:
        names = [b.name for b in file["Delphes"].itervalues(recursive=True)]
    found = [basket(path, name) for name in names]
    return [(start, start + length) for start, length, unpacked in found if length == unpacked]


class TestNoRootFile:
    @pytest.mark.parametrize(
        "content", [b"", b"root", b"\0" * 5000, b"<html>404 Not Found</html>", b"root\0\0\xf2\xe0" * 100]
    )
    def test_is_said(self, one_file, client, tmp_path, content):
        path = tmp_path / "odd.root"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"odd\.root: not (a )?readable"):
            prepare(one_file(path), client)

    def test_a_directory(self, one_file, client, tmp_path):
        (tmp_path / "folder").mkdir()
        with pytest.raises(InputError, match=r"folder.*no ROOT file"):
            prepare(one_file(tmp_path / "folder"), client)

    def test_a_file_without_trees(self, one_file, client, tmp_path):
        with uproot.recreate(tmp_path / "histograms.root") as file:
            file["h"] = np.histogram([1.0, 2.0])
        with pytest.raises(InputError, match=r"histograms\.root: no tree is called Delphes; there are: none"):
            prepare(one_file(tmp_path / "histograms.root"), client)

    @pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
    def test_a_truncated_file(self, one_file, client, tmp_path, plain, kept):
        path = Path(write(tmp_path / "short.root", plain, uproot.ZLIB(1)))
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        with pytest.raises(InputError, match=r"short\.root"):
            prepare(one_file(path), client)


def without(*names):
    return lambda arrays: {name: array for name, array in arrays.items() if name not in names}


def replaced(**changes):
    named = {name.replace("__", "."): change for name, change in changes.items()}
    return lambda arrays: {
        name: named[name](array) if name in named else array for name, array in arrays.items()
    }


class TestOtherLayout:
    @pytest.mark.parametrize("branch", ["EFlowTrack.PT", "Jet.BTag", "MissingET.Phi", "MuonTight.Charge"])
    def test_a_missing_branch(self, one_file, client, tmp_path, plain, branch):
        path = write(tmp_path / "few.root", plain, None, without(branch))
        with pytest.raises(InputError, match=rf"few\.root: tree Delphes has no branch {branch}"):
            prepare(one_file(path), client)

    def test_a_renamed_collection(self, one_file, client, tmp_path, plain):
        def renamed(arrays):
            return {name.replace("MuonTight", "Muon"): array for name, array in arrays.items()}

        path = write(tmp_path / "other.root", plain, None, renamed)
        with pytest.raises(InputError, match=r"other\.root.*no branch MuonTight\.\w+; did you mean Muon\."):
            prepare(one_file(path), client)
        settings = {"analysis": {"collections": {"muon": "Muon"}}, "output": str(tmp_path / "named")}
        whole = write(tmp_path / "whole.root", plain, None)
        found = prepare(one_file(path, **settings), client).store
        assert_equal(found, prepare(one_file(whole, output=str(tmp_path / "whole")), client).store)

    def test_a_collection_that_is_not_there_at_all(self, one_file, client, tmp_path, plain):
        def gone(arrays):
            return {name: array for name, array in arrays.items() if not name.startswith("EFlowPhoton.")}

        path = write(tmp_path / "gone.root", plain, None, gone)
        with pytest.raises(InputError, match=r"gone\.root.*no branch EFlowPhoton\."):
            prepare(one_file(path), client)

    def test_one_number_where_a_list_should_be(self, one_file, client, tmp_path, plain):
        path = write(tmp_path / "flat.root", plain, None, replaced(Jet__PT=lambda a: ak.sum(a, axis=1)))
        with pytest.raises(InputError, match=r"flat\.root: Jet\.PT is not a list of numbers"):
            prepare(one_file(path), client)

    def test_words_where_numbers_should_be(self, one_file, client, tmp_path, plain):
        path = write(
            tmp_path / "words.root", plain, None,
            replaced(Jet__PT=lambda a: ak.Array(["much"] * len(a))),
        )  # fmt: skip
        with pytest.raises(InputError, match=r"words\.root.*Jet\.PT"):
            prepare(one_file(path), client)

    @pytest.mark.parametrize("branch", ["EFlowTrack.Phi", "MissingET.Phi", "Electron.Charge"])
    def test_unequal_lengths_of_two_branches(self, one_file, client, tmp_path, plain, branch):
        entry = next(i for i, e in enumerate(plain) if e["electrons"])

        def shorter(array):
            lists = array.tolist()
            lists[entry] = lists[entry][:-1]
            return ak.values_astype(ak.Array(lists), ak.to_numpy(ak.flatten(array)).dtype)

        path = write(tmp_path / "unequal.root", plain, None, replaced(**{branch.replace(".", "__"): shorter}))
        with pytest.raises(InputError, match=rf"unequal\.root.*{branch}.*same number of entries"):
            prepare(one_file(path), client)


class TestOddEvents:
    def test_a_tree_with_zero_entries_alone(self, one_file, client, tmp_path):
        path = made.write_root(tmp_path / "empty.root", [])
        with pytest.raises(InputError, match=r"no event passes the selection: 0 entries"):
            prepare(one_file(path), client)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize(
        ("home", "key", "branch"),
        [
            ("tracks", "z", "EFlowTrack.Z"), ("photons", "eta", "EFlowPhoton.Eta"),
            ("neutrals", "pt", "EFlowNeutralHadron.ET"), ("jets", "pt", "Jet.PT"),
            ("electrons", "phi", "Electron.Phi"), ("muons", "pt", "MuonTight.PT"), ("met", "pt", "MissingET.MET"),
        ],
    )  # fmt: skip
    def test_what_is_no_number(self, one_file, client, tmp_path, home, key, branch, value):
        plain = made.random_events(60, seed=32)
        entry = next(i for i, e in enumerate(plain) if i > 30 and e[home])
        target = plain[entry][home]
        (target if isinstance(target, dict) else target[0])[key] = value
        path = made.write_root(tmp_path / "odd.root", plain)
        with pytest.raises(InputError, match=rf"odd\.root: entry {entry}: {branch} is not a finite number"):
            prepare(one_file(path), client)

    def test_100_000_particles_in_an_event(self, one_file, client, tmp_path):
        """The caps keep the hardest; the neighbours are not touched."""
        plain = made.random_events(40, seed=33)
        chosen = next(
            i for i, e in enumerate(plain)
            if any(m["pt"] > 40 for m in e["muons"]) and i > 5
        )  # fmt: skip
        crowd = np.random.default_rng(1)
        # far from the leptons in eta, so that nothing but the number of tracks changes
        plain[chosen]["tracks"] += [
            made.track(np.float32(pt), 8.0, np.float32(phi))
            for pt, phi in zip(crowd.uniform(1, 2, 100_000), crowd.uniform(-3, 3, 100_000), strict=True)
        ]
        quiet = made.random_events(40, seed=33)
        path = made.write_root(tmp_path / "crowd.root", plain, identity=uuid.UUID(int=33))
        other = made.write_root(tmp_path / "quiet.root", quiet, identity=uuid.UUID(int=33))
        crowded = prepare(one_file(path), client).store.arrays()
        expected = prepare(one_file(other, output=str(tmp_path / "quiet")), client).store.arrays()
        assert crowded.entry.tolist() == expected.entry.tolist()
        for mine, theirs in zip(crowded, expected, strict=True):
            if mine.entry != chosen:
                assert mine.particles.tolist() == theirs.particles.tolist()
                continue
            tracks = mine.particles[mine.particles.isChHad == 1]
            assert len(tracks) == 450
            available = sorted((t["pt"] for t in plain[chosen]["tracks"]), reverse=True)
            assert sorted(tracks.Pt.tolist(), reverse=True)[-1] >= available[460]
        assert chosen in crowded.entry
