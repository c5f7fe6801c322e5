"""Which file is which: told by what is in it, on the driver and on the workers, and again when it changed since."""

import errno
import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from helpers import events as made
from helpers import naive
from helpers.stores import arrays_of

from hepdask import prepare
from hepdask.analysis.topology import branches
from hepdask.config import Config, Input, Topology
from hepdask.errors import ConfigError, InputError
from hepdask.input import routes
from hepdask.input.contents import inspect_file
from hepdask.input.identity import look
from hepdask.input.input_file import InputFile
from hepdask.input.lost import Lost
from hepdask.input.read_chunk import read
from hepdask.pipeline.prepare_task import describe

ONE = uuid.UUID(int=1)
NONE = uuid.UUID(int=0)


@pytest.fixture(scope="module")
def plain():
    return made.random_events(30, seed=41)


def write(path, plain, identity=ONE, compression=None, ntuple=False):
    """Write events, by default with nothing compressed: as many numbers take the same room then."""
    with uproot.recreate(path, compression=compression, uuid_function=lambda: identity) as file:
        put(file, plain, ntuple)
    return str(path)


def put(file, plain, ntuple=False):
    arrays = arrays_of(plain)
    if ntuple:
        file.mkrntuple("Delphes", arrays)
        return
    types = {name: ak.type(array).content for name, array in arrays.items()}
    file.mktree("Delphes", types, counter_name=lambda name: f"n{name}").extend(arrays)


def shifted(plain):
    """Give the same events with other momenta: the same shape in other numbers."""
    return [
        {
            **event,
            "muons": [dict(muon, pt=muon["pt"] + 64.0) for muon in event["muons"]],
            "met": {"pt": 7.0, "phi": 0.5},
        }
        for event in plain
    ]


def content(path, **about):
    file = InputFile("ttbar", 1, str(path), "Delphes", seen=look(str(path)), **about)
    return inspect_file(file, str(path), branches(Topology()), {}, Input())


def selected(plain):
    return [entry for entry, event in enumerate(plain) if naive.event_features(event) is not None]


class TestIdentity:
    @pytest.mark.parametrize("ntuple", [False, True])
    def test_copies_share_it(self, tmp_path, plain, ntuple):
        path = write(tmp_path / "a.root", plain, ntuple=ntuple)
        (tmp_path / "far").mkdir()
        shutil.copyfile(path, tmp_path / "far" / "b.root")
        assert content(path).identity == content(tmp_path / "far" / "b.root").identity

    @pytest.mark.parametrize("identity", [ONE, NONE])
    @pytest.mark.parametrize("ntuple", [False, True])
    @pytest.mark.parametrize("other", [shifted, lambda plain: plain[:-1], lambda plain: plain[::-1]])
    def test_other_events_under_one_uuid_do_not(self, tmp_path, plain, other, ntuple, identity):
        one = content(write(tmp_path / "a.root", plain, identity, ntuple=ntuple)).identity
        two = content(write(tmp_path / "b.root", other(plain), identity, ntuple=ntuple)).identity
        assert one.uuid == two.uuid
        assert one.version != two.version

    def test_the_split_does_not_hang_on_when_a_file_was_written(self, tmp_path, plain):
        one = content(write(tmp_path / "a.root", plain, compression=uproot.ZLIB(1))).identity
        two = content(write(tmp_path / "b.root", plain, compression=uproot.LZMA(1))).identity
        assert one.origin == two.origin
        assert one.version != two.version

    def test_what_else_is_put_into_a_file_changes_nothing(self, tmp_path, plain):
        path = write(tmp_path / "a.root", plain)
        before = content(path)
        with uproot.update(path) as file:
            file["h"] = np.histogram([1.0, 2.0])
        assert content(path).identity == before.identity


def overwritten(path, plain):
    """Write other events of the same shape over a file, and set its size and time back."""
    before = os.stat(path)
    write(path, shifted(plain))
    assert os.stat(path).st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return shifted(plain)


def updated(path, plain):
    """Put another cycle of the tree into a file, as ROOT's UPDATE does."""
    new = made.random_events(25, seed=42)
    with uproot.update(path) as file:
        put(file, new)
    return new


def moved_over(path, plain):
    """Move another file with the same UUID to the place."""
    new = made.random_events(30, seed=43)
    write(path + ".new", new)
    os.replace(path + ".new", path)
    return new


class TestChanged:
    @pytest.mark.parametrize("change", [overwritten, updated, moved_over])
    def test_old_events_do_not_stay(self, make_config, client, tmp_path, plain, change, caplog):
        path = write(tmp_path / "a.root", plain)
        config = make_config(files={"ttbar": [path]})
        assert prepare(config, client).store.arrays().entry.tolist() == selected(plain)
        assert prepare(config, client).tasks == 0
        caplog.set_level("INFO", "hepdask")
        new = change(path, plain)
        store = prepare(config, client).store
        assert f"{path}: changed since" in caplog.text
        assert store.arrays().entry.tolist() == selected(new)
        expected = [naive.event_features(new[entry])[0]["MET"] for entry in selected(new)]
        assert store.arrays().hlf.MET.tolist() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("change", [updated, moved_over])
    def test_while_it_is_read(self, tmp_path, plain, change):
        path = write(tmp_path / "a.root", plain)
        before = content(path).chunks[0]
        change(path, plain)
        with pytest.raises(InputError, match=r"a\.root: .* sees another file there .* than the driver"):
            read(before, branches(Topology()))
        elsewhere = replace(before, file=replace(before.file, seen=None))  # the driver cannot see it
        with pytest.raises(InputError, match=r"a\.root: not the file that was opened before"):
            read(elsewhere, branches(Topology()))

    def test_a_worker_that_sees_another_file(self, tmp_path, plain):
        mine = write(tmp_path / "a.root", plain)
        theirs = write(tmp_path / "b.root", made.random_events(30, seed=44), uuid.UUID(int=2))
        file = InputFile("ttbar", 1, theirs, "Delphes", seen=look(mine))
        with pytest.raises(InputError, match=r"b\.root: .* another file .*fileset\.ttbar"):
            inspect_file(file, theirs, branches(Topology()), {}, Input())
        os.remove(theirs)
        with pytest.raises(
            InputError, match=r"b\.root: No such file .* though the driver saw it; .*fileset\.ttbar"
        ):
            inspect_file(file, theirs, branches(Topology()), {}, Input())


class TestCopies:
    @pytest.mark.parametrize("identity", [ONE, NONE])
    def test_files_that_share_a_uuid_are_all_read(self, make_config, client, tmp_path, plain, identity):
        files = {"ttbar": plain, "wjets": shifted(plain), "qcd": made.random_events(20, seed=45)}
        paths = {name: [write(tmp_path / f"{name}.root", events, identity)] for name, events in files.items()}
        array = prepare(make_config(files=paths), client).store.arrays()
        for name, events in files.items():
            assert array[array.dataset == name].entry.tolist() == selected(events)

    def test_copies_are_found_wherever_they_lie(self, make_config, client, tmp_path, plain):
        path = write(tmp_path / "a.root", plain)
        (tmp_path / "far").mkdir()
        copy = str(tmp_path / "far" / "a.root")
        shutil.copyfile(path, copy)
        with uproot.update(copy) as file:  # no longer equal byte by byte
            file["h"] = np.histogram([1.0, 2.0])
        with pytest.raises(
            InputError, match=r"a\.root \(fileset.wjets\) .*far.*copies of one file|copies of one file"
        ):
            prepare(make_config(files={"ttbar": [path], "wjets": [copy]}), client)

    @pytest.mark.parametrize("wrong", [{"num_entries": 29}, {"uuid": str(NONE)}, {"steps": [[0, 31]]}])
    def test_what_preprocess_claimed_is_compared(self, make_config, client, tmp_path, plain, wrong):
        path = write(tmp_path / "a.root", plain)
        known = {"object_path": "Delphes", "uuid": str(ONE), "steps": [[0, 10]], **wrong}
        with pytest.raises(InputError, match=r"a\.root: (its UUID is|its number of entries is|has) "):
            prepare(make_config(files={"ttbar": {path: known}}), client)


class TestSteps:
    def test_that_do_not_overlap_may_share_a_file(self, make_config, client, tmp_path, plain):
        path = write(tmp_path / "a.root", plain)
        files = {
            "ttbar": {path: {"steps": [[0, 8], [20, 30]]}}, "wjets": {path: {"steps": [[8, 12]]}},
            "qcd": {path: {"steps": [[12, 15], [16, 20]]}},
        }  # fmt: skip
        store = prepare(make_config(files=files), client).store
        array = store.arrays()
        for name, ranges in (("ttbar", (*range(8), *range(20, 30))), ("wjets", range(8, 12)),
                             ("qcd", (*range(12, 15), *range(16, 20)))):  # fmt: skip
            assert array[array.dataset == name].entry.tolist() == [e for e in selected(plain) if e in ranges]
        assert prepare(make_config(files=files), client).tasks == 0

    @pytest.mark.parametrize(
        ("one", "other"), [([[0, 8]], [[7, 9]]), ([[0, 8]], None), ([[0, 2], [20, 30]], [[10, 21]])]
    )
    def test_that_overlap_may_not(self, make_config, client, tmp_path, plain, one, other):
        path = write(tmp_path / "a.root", plain)
        files = {"ttbar": {path: {"steps": one}}, "wjets": {path: {"steps": other} if other else "Delphes"}}
        with pytest.raises(
            ConfigError, match=r"fileset\.(ttbar and fileset\.wjets|wjets and fileset\.ttbar)"
        ):
            prepare(make_config(files=files), client)
        shutil.copyfile(path, tmp_path / "b.root")
        files["wjets"] = {str(tmp_path / "b.root"): files["wjets"][path]}
        with pytest.raises(InputError, match="copies of one file"):
            prepare(make_config(files=files), client)


def _gone(folder):
    return folder / "gone.root", errno.ENOENT


def _below_a_file(folder):
    (folder / "file").touch()
    return folder / "file" / "x.root", errno.ENOTDIR


def _a_circle(folder):
    (folder / "circle.root").symlink_to(folder / "circle.root")
    return folder / "circle.root", errno.ELOOP


def _too_long(folder):
    return folder / ("n" * 300 + ".root"), errno.ENAMETOOLONG


def _link_to_nothing(folder):
    (folder / "link.root").symlink_to(folder / "nothing.root")
    return folder / "link.root", errno.ENOENT


class TestNotThere:
    @pytest.mark.parametrize("case", [_gone, _below_a_file, _a_circle, _too_long, _link_to_nothing])
    @pytest.mark.parametrize("again", [False, True])
    def test_is_said_at_once(self, make_config, tmp_path, plain, case, again, monkeypatch):
        """One attempt, whether the file was never there or was deleted since."""
        monkeypatch.setattr(routes.time, "sleep", lambda _: pytest.fail("tried again"))
        path, code = case(tmp_path)
        config = Config.model_validate({"input": {"read_retries": 3}})
        file = InputFile("ttbar", 1, str(path), "Delphes")
        known = {}
        if again:
            before = content(write(tmp_path / "a.root", plain))
            known = {file: replace(before, file=file)}
        lost = describe(file, config, known)
        assert isinstance(lost, Lost)
        assert lost.reason.startswith(f"{path}: {os.strerror(code)}")
        assert "fileset.ttbar" in lost.reason

    def test_another_route_is_still_tried(self, tmp_path, plain):
        path = write(tmp_path / "a.root", plain)
        reading = Input(routes=("{url}", f"{tmp_path}/a.root"), read_retries=3)
        config = Config.model_validate({"input": reading.model_dump()})
        found = describe(InputFile("ttbar", 1, str(tmp_path / "gone.root"), "Delphes"), config, {})
        assert found.entries == 30
        assert Path(path).exists()
