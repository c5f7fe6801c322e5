"""Compiled loops are kept on disk by all they depend on: other types and older sources never run in their place."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

TWICE = """
from hepdask.analysis import compiled as module
from hepdask.analysis.compiled import compiled

@compiled()
def total(values):
    found = values[0] * 0
    for value in values:
        found += FACTOR * value
    return found
"""


@pytest.fixture
def source(tmp_path):
    def write(factor):
        path = tmp_path / "loops.py"
        path.write_text(TWICE.replace("FACTOR", str(factor)))
        return path

    return write


def load(path):
    spec = importlib.util.spec_from_file_location("loops", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kept(path):
    return sorted((path.parent / "__pycache__").glob("*.nbc"))


@pytest.mark.parametrize("first", [np.float64, np.int8])
def test_each_type_has_a_file_of_its_own_whatever_was_compiled_first(source, first):
    """Two processes that see an empty folder: each has listed its own code, and the list of the first is lost."""
    path = source(2)
    one, other = load(path), load(path)
    second = np.int8 if first is np.float64 else np.float64
    assert one.total(np.arange(4, dtype=first)) == 12
    for index in (path.parent / "__pycache__").glob("*.nbi"):
        index.unlink()
    assert other.total(np.arange(4, dtype=second)) == 12
    names = [file.name for file in kept(path)]
    assert len(names) == 2
    fresh = load(path)
    assert fresh.total(np.arange(4, dtype=first)) == 12
    assert fresh.total(np.arange(4, dtype=second)) == 12


def test_code_that_an_older_source_left_is_not_run(source):
    """A process was killed after it had listed its code and before it had written it."""
    path = source(2)
    assert load(path).total(np.arange(4.0)) == 12
    before = {file.name for file in kept(path)}
    path = source(30)
    assert load(path).total(np.arange(4.0)) == 180
    assert before < {file.name for file in kept(path)}  # beside it, not in its place


def test_a_change_in_another_file_of_the_room_is_a_change(source, monkeypatch, tmp_path):
    """Functions are compiled into those that call them, from whatever file."""
    path = source(2)
    module = load(path)
    assert module.total(np.arange(4.0)) == 12
    first = kept(path)
    room = tmp_path / "room"
    room.mkdir()
    (room / "callee.py").write_text("changed = 1\n")
    monkeypatch.setattr(module.module, "_ROOM", room)
    assert load(path).total(np.arange(4.0)) == 12
    assert len(kept(path)) == 2
    assert set(first) < set(kept(path))


def test_processes_that_compile_at_once(source):
    path = source(2)
    code = (
        "import sys, numpy as np\nfrom importlib.util import module_from_spec, spec_from_file_location\n"
        "spec = spec_from_file_location('loops', sys.argv[1])\nloops = module_from_spec(spec)\n"
        "spec.loader.exec_module(loops)\nprint(int(loops.total(np.arange(4, dtype=sys.argv[2]))))\n"
    )
    kinds = ["f4", "f8", "i1", "i8"]
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(path), kind], stdout=subprocess.PIPE, text=True)
        for kind in kinds
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in running] == ["12"] * 4
    assert len(kept(path)) == 4


def test_the_kernels_of_the_features_are_kept_so():
    import hepdask.analysis.topology.particle_lists as lists

    assert type(lists.sort_falling._cache._cache_file).__name__ == "_Kept"
