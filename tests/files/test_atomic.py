"""Files and folders that appear whole, or not at all."""

import os
import threading

import pytest

from hepdask.errors import OutputError
from hepdask.files.atomic import TEMPORARY, renamed_to, write_bytes, written_whole


def test_what_was_there_stays_until_the_new_is_whole(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with renamed_to(path) as temporary:
        temporary.write_bytes(b"ne")
        assert path.read_bytes() == b"old"
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(TEMPORARY)
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("folder", [False, True])
def test_nothing_is_left_of_what_fails(tmp_path, kind, folder):
    error = kind("here")

    def fail(temporary):
        if folder:
            temporary.mkdir()
            temporary /= "inside"
        temporary.write_bytes(b"some")
        raise error

    with pytest.raises(kind) as found, renamed_to(tmp_path / "made") as temporary:
        fail(temporary)
    assert found.value is error
    assert os.listdir(tmp_path) == []


def test_a_folder_appears_whole(tmp_path):
    with renamed_to(tmp_path / "made") as temporary:
        temporary.mkdir()
        (temporary / "inside").write_bytes(b"some")
    assert (tmp_path / "made" / "inside").read_bytes() == b"some"
    assert os.listdir(tmp_path) == ["made"]


def test_two_who_write_one_file_do_not_meet(tmp_path):
    path, ready = tmp_path / "file", threading.Barrier(2, timeout=30)

    def write(content):
        with renamed_to(path) as temporary, temporary.open("xb") as file:
            ready.wait()
            file.write(content)
            ready.wait()

    threads = [threading.Thread(target=write, args=(letter * 1000,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert path.read_bytes() in (b"a" * 1000, b"b" * 1000)
    assert os.listdir(tmp_path) == ["file"]


def test_what_cannot_be_put_in_place_is_said(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    for way in (renamed_to, written_whole):
        with (
            pytest.raises(OutputError, match=r"folder: .* a file is to be written there"),
            way(tmp_path / "folder") as temporary,
        ):
            temporary.write_bytes(b"some")
    assert os.listdir(tmp_path) == ["folder"]
