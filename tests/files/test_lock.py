"""One owner at a time, whatever the file system and the user, and wherever the second comes from."""

import errno
import fcntl
import getpass
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hepdask import evaluate, run, train, tune
from hepdask.errors import HepdaskError, OutputError
from hepdask.files import lock
from hepdask.files.lock import LOCK, RENEWED_LOCK, locked
from hepdask.pipeline.owned_output import owns_output

HOLDS = (
    "import sys; from pathlib import Path; from hepdask.files.lock import locked\n"
    "with locked(Path(sys.argv[1]), sys.argv[2]):\n  print('have it', flush=True); sys.stdin.read()"
)


@pytest.fixture
def owner():
    """Start processes that own a folder."""
    started = []

    def start(folder, doing):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(folder), doing], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "have it\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("step", [train, tune, evaluate, run], ids=lambda step: step.__name__)
def test_every_step_is_refused_while_another_works_in_its_output(make_config, owner, step):
    config = make_config(tuning={"parameters": {"epochs": [1, 2]}}, training={"ranks": 1})
    other = owner(config.folder, "training in this output")
    before = sorted(config.folder.rglob("*"))
    with pytest.raises(
        HepdaskError,
        match=rf"{config.folder}: process {other.pid} of .* on .* is training in this output; wait until it ends, or",
    ):
        step(config)
    assert sorted(config.folder.rglob("*")) == before


def test_a_step_owns_its_output_and_goes_on_into_others(make_config):
    config, seen = make_config(), []

    @owns_output("training")
    def inner(config):
        with pytest.raises(HepdaskError, match=f"process {os.getpid()} .* is running in this output"):
            in_thread(lambda: inner(config))
        seen.append(json.loads((config.folder / LOCK).read_text())["doing"])
        return 7

    @owns_output("running")
    def outer(config, more):
        return inner(config) + more

    assert outer(config, more=1) == 8
    assert outer(config=config, more=1) == 8
    assert seen == ["running in this output"] * 2
    assert inner.__name__ == "inner"
    with locked(config.folder, "tuning"), pytest.raises(HepdaskError, match="is tuning"):
        inner(config)


def in_thread(call):
    """Run something in another thread; raise what it raises."""
    errors = []

    def target():
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join(60)
    if errors:
        raise errors[0]


@pytest.fixture(
    params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO], ids=errno.errorcode.get
)
def no_flock(request, monkeypatch):
    """Stand for a file system without locks, as the kernel tells of it."""

    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_flock_a_renewed_file_stands_for_it(no_flock, tmp_path, caplog):
    caplog.set_level("INFO", "hepdask")
    folder = tmp_path / "new" / "output"
    with locked(folder, "training in this output"):
        assert f"{folder / LOCK}: " in caplog.text
        with (
            pytest.raises(HepdaskError, match=f"process {os.getpid()} .* is training in this output"),
            locked(folder, ""),
        ):
            pass
        assert (folder / RENEWED_LOCK).exists()
    assert not (folder / RENEWED_LOCK).exists()
    with pytest.raises(ZeroDivisionError), locked(folder, "x"):
        raise ZeroDivisionError
    assert not (folder / RENEWED_LOCK).exists()


def test_a_renewed_lock_of_the_dead_is_taken_over_and_one_of_the_living_is_not(
    no_flock, tmp_path, monkeypatch
):
    monkeypatch.setattr(lock, "_SETTLED_AFTER", 0.01)
    file, child = tmp_path / RENEWED_LOCK, subprocess.Popen(["true"])
    child.wait()
    mine = lock._owner("x") | {"id": "other"}
    for stale in (
        mine | {"pid": child.pid},
        mine | {"host": "elsewhere", "renewed": time.time() - 100},
    ):
        file.write_text(json.dumps(stale))
        with locked(tmp_path, "x"):
            assert json.loads(file.read_text())["pid"] == os.getpid()
        assert not file.exists()
    for fresh in (json.dumps(mine | {"host": "elsewhere"}), json.dumps(mine | {"pid": 1}), "", "{", "[1]"):
        file.write_text(fresh)
        with pytest.raises(HepdaskError, match="wait until it ends, or stop it"), locked(tmp_path, "x"):
            pass
        assert file.read_text() == fresh
    os.utime(file, (0, 0))  # begun long ago by somebody who died before it was whole
    with locked(tmp_path, "x"):
        pass


def test_it_is_renewed_while_it_is_held(no_flock, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEWED_EVERY", 0.01)
    file = tmp_path / RENEWED_LOCK
    with locked(tmp_path, "x"):
        first = json.loads(file.read_text())["renewed"]
        deadline = time.monotonic() + 30
        while json.loads(file.read_text())["renewed"] == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads(file.read_text())["renewed"] > first
        taken_over = False
        while not taken_over and time.monotonic() < deadline:  # a renewal that had begun may still end
            file.write_text(json.dumps({"id": "of another who took over"}))
            time.sleep(0.1)
            taken_over = "another" in file.read_text()
        assert taken_over
    assert "another" in file.read_text(), "the lock of another is left alone"


@pytest.mark.parametrize("missing", [KeyError("getpwuid(): uid not found: 4711"), OSError("No username set")])
def test_a_user_without_a_name_is_told_by_number(tmp_path, monkeypatch, missing):
    def nobody():
        raise missing

    monkeypatch.setattr(getpass, "getuser", nobody)
    refused = pytest.raises(HepdaskError, match=f"of user {os.getuid()} on")
    with locked(tmp_path, "training in this output"), refused, locked(tmp_path, "x"):
        pass


@pytest.mark.parametrize("what", ["a file", "below a file", "link to nothing"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, what):
    place = tmp_path / "output"
    if what == "link to nothing":
        place.symlink_to("/proc/nothing/here")
    else:
        place.write_text("")
    folder = place / "more" if what == "below a file" else place
    with pytest.raises(OutputError, match=str(place)), locked(folder, "x"):
        pass


def test_the_lock_goes_with_its_owner(owner, tmp_path):
    other = owner(Path(tmp_path), "writing this store")
    with pytest.raises(HepdaskError, match="is writing this store"), locked(tmp_path, "x"):
        pass
    other.kill()
    other.wait()
    with locked(tmp_path, "x"):
        pass
