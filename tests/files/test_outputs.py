"""What the operating system refuses is told in words, with the path, before work is done for nothing."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.requirements import require

from hepdask import open_store, prepare
from hepdask.errors import HepdaskError, OutputError
from hepdask.files import atomic
from hepdask.files.outputs import in_words, require_folder, writing
from hepdask.inference.score_files import write_scores

NOBODY = 65534


@contextmanager
def mounted(place, options):
    """A file system in memory."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True)
    require(not done.returncode, f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def full_disk(tmp_path):
    """One of 64 kB, already full but for some bytes."""
    with mounted(tmp_path / "full", "size=64k") as place:
        (place / "ballast").write_bytes(bytes(40 << 10))
        yield place


@pytest.fixture
def read_only(tmp_path):
    with mounted(tmp_path / "read-only", "ro") as place:
        yield place


def remount(place, size):
    subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)


@contextmanager
def largest_file(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refusal(place):
    with pytest.raises(OutputError) as caught:
        require_folder(place)
    return str(caught.value)


def test_a_folder_is_made_and_left_empty(tmp_path):
    assert require_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_link_to_what_is_not_there_yet_is_followed(tmp_path):
    (tmp_path / "store.zarr").symlink_to(tmp_path / "scratch" / "store")
    require_folder(tmp_path / "store.zarr")
    assert (tmp_path / "scratch" / "store").is_dir()


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("")
    for place in (tmp_path / "run", tmp_path / "run" / "models" / "hlf"):
        message = refusal(place)
        assert f"{tmp_path / 'run'} is a file, and a folder is needed there" in message
        assert message.startswith(str(place))


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    assert "links in this path lead in a circle" in refusal(tmp_path / "one")


def test_a_name_that_is_too_long(tmp_path):
    assert "longer than the file system allows" in refusal(tmp_path / ("x" * 300))


def test_a_full_disk(full_disk):
    message = refusal(full_disk / "run")
    assert "no space is left" in message
    assert "of 0 MB are free" in message
    assert str(full_disk / "run") in message


def test_a_read_only_file_system(read_only):
    assert "the file system is read-only" in refusal(read_only / "run")


def test_a_folder_of_somebody_else(tmp_path):
    if os.geteuid():
        pytest.skip("only root can become another user")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    owned = tmp_path / "owned"
    owned.mkdir(mode=0o755)
    os.seteuid(NOBODY)
    try:
        message = refusal(owned / "run")
    finally:
        os.seteuid(0)
    assert f"no permission: {owned} belongs to root (drwxr-xr-x), and you are " in message


def test_files_that_grow_too_large_leave_nothing_behind(tmp_path):
    import numpy as np

    table = {"entry": np.arange(1 << 16), "score": np.random.default_rng(1).random(1 << 16)}
    with largest_file(1 << 14):
        for write in (
            lambda: atomic.write_bytes(tmp_path / "model", bytes(1 << 16)),
            lambda: write_scores(tmp_path / "scores.root", "root", table, {}),
            lambda: write_scores(tmp_path / "scores.parquet", "parquet", table, {}),
        ):
            with pytest.raises(OutputError, match="larger than it may be here"):
                write()
    assert list(tmp_path.iterdir()) == []


def test_every_error_of_the_system_has_a_sentence(tmp_path):
    for number in errno.errorcode:
        error = OSError(number, os.strerror(number), str(tmp_path / "file"))
        assert in_words(error).startswith(f"{tmp_path / 'file'}: ")
        assert "Errno" not in in_words(error)


def test_an_error_that_a_library_only_quotes(tmp_path):
    error = OSError(
        "Can't write data (file write failed: errno = 28, error message = 'No space left on device')"
    )
    assert "no space is left" in in_words(error, tmp_path)


def test_the_path_that_matters_is_named():
    with pytest.raises(OutputError, match=r"^/proc/nothing: "), writing(Path("/proc/nothing")):
        Path("/proc/self/nothing").write_text("")


def test_an_error_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(OutputError("x: no space is left")))
    assert str(error) == "x: no space is left"
    assert isinstance(error, HepdaskError)
    assert isinstance(error, OSError)


def run_command(*words):
    return subprocess.run(
        [sys.executable, "-m", "hepdask", *map(str, words)], capture_output=True, text=True, timeout=300
    )


def test_a_disk_that_fills_up_on_the_way(full_disk, make_config, tmp_path):
    """One sentence that names the part; with more room the same command goes on, and nothing is lost."""
    config = make_config(
        input={"retry_wait": 0.01, "chunk_events": 5}, store={"path": str(full_disk / "store.zarr")}
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (full_disk / "ballast").unlink()
    remount(full_disk, "200k")
    done = run_command("prepare", tmp_path / "config.yaml")
    assert done.returncode == 1
    assert "no space is left on this file system" in done.stderr
    assert str(full_disk / "store.zarr") in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(HepdaskError):
        open_store(full_disk / "store.zarr")
    remount(full_disk, "20m")
    assert run_command("prepare", tmp_path / "config.yaml").returncode == 0
    elsewhere = make_config(
        input={"retry_wait": 0.01, "chunk_events": 5}, store={"path": str(tmp_path / "whole")}
    )
    assert open_store(full_disk / "store.zarr").fingerprint == prepare(elsewhere).store.fingerprint


def test_a_disk_that_fills_up_in_training(full_disk, make_config, tmp_path):
    config = make_config(
        output=str(full_disk / "run"), input={"retry_wait": 0.01}, store={"path": str(tmp_path / "store")},
        models={"hlf": {"hidden": [300, 300], "epochs": 2, "batch_size": 16}},
        training={"models": ["hlf"], "restarts": 0},
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (full_disk / "ballast").unlink()
    remount(full_disk, "300k")
    prepare(config)
    done = run_command("train", tmp_path / "config.yaml")
    assert done.returncode == 1
    assert "no space is left on this file system" in done.stderr
    assert str(full_disk / "run" / "models" / "hlf") in done.stderr
    assert "Traceback" not in done.stderr
    remount(full_disk, "20m")
    assert run_command("train", tmp_path / "config.yaml").returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ("simulate", "--process", "ttbar", "--events", "3", "--out", "{file}/x.root"),
        ("new", "{file}/x"),
    ],
)
def test_commands_say_it_before_they_start(words, tmp_path):
    """A cluster would take seconds to start; a place for the output that is a file is told without one."""
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "hepdask", *(word.format(file=tmp_path / "file") for word in words)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{tmp_path / 'file'} is a file, and a folder is needed there" in done.stderr
    assert "dashboard" not in done.stderr + done.stdout
