"""Errors are also the builtins that fit, their words stay plain, and nothing that catches a builtin swallows them."""

import builtins
import copy
import pickle
import re
from pathlib import Path

import pytest
import uproot

import hepdask
from hepdask import errors
from hepdask.analysis.topology import branches
from hepdask.config import Input, Topology
from hepdask.distributed import errors as distributed
from hepdask.files.outputs import writing
from hepdask.input.contents import inspect_file
from hepdask.input.input_file import InputFile
from hepdask.input.opening import final_errors
from hepdask.input.read_chunk import read
from hepdask.input.routes import read_with_retries

OURS = [one for one in vars(errors).values() if isinstance(one, type)]
BUILTIN = {
    "ConfigError": ValueError, "InputNotFound": FileNotFoundError, "FieldNotFound": KeyError,
    "StoreNotFound": FileNotFoundError, "OutputError": OSError, "ClusterError": RuntimeError,
    "TrainingError": RuntimeError, "MissingDependency": ImportError,
}  # fmt: skip


@pytest.mark.parametrize("kind", OURS)
def test_an_error_survives_a_journey_with_its_words(kind):
    """As from a worker: with its class, and a message that is printed as it was written."""
    message = "a/path.root: 'Jet.PT' is\n not there"
    for error in (kind(message), pickle.loads(pickle.dumps(kind(message))), copy.copy(kind(message))):
        assert type(error) is kind
        assert str(error) == message
        assert error.args == (message,)
        assert error.exit_code == (2 if kind is errors.ConfigError else 1)
    assert issubclass(kind, BUILTIN.get(kind.__name__, errors.HepdaskError))


def test_the_tree_in_the_documentation_is_the_real_one():
    page = (Path(__file__).parents[1] / "docs" / "commands.md").read_text()
    for text in (errors.__doc__, page):
        tree = dict(re.findall(r"[├└]── (\w+) *(?:(\w+Error)\b)?", text))
        described = {name: builtin for name, builtin in tree.items() if hasattr(errors, name)}
        assert described.keys() == {one.__name__ for one in OURS} - {"HepdaskError"}
        for name, builtin in described.items():
            assert not builtin or issubclass(getattr(errors, name), getattr(builtins, builtin))
            assert BUILTIN.get(name) is (getattr(builtins, builtin) if builtin else None)


def test_those_of_distributed_have_a_base_of_their_own():
    for kind in vars(distributed).values():
        if isinstance(kind, type):
            assert issubclass(kind, distributed.DistributedError)
            assert not issubclass(kind, errors.HepdaskError)
    assert issubclass(distributed.HorovodMissing, ImportError)
    assert issubclass(distributed.NotEnoughSlots, TimeoutError)
    failed = distributed.RankFailed(0, 2, "host", "worker", "died", signal=9)
    assert pickle.loads(pickle.dumps(failed)).signal == 9


@pytest.fixture
def chunk(sample_files):
    path = str(sample_files["ttbar"])
    file = InputFile("ttbar", 0, path, "Delphes")
    return inspect_file(file, path, branches(Topology()), {}, Input()).chunks[0]


def test_python_programmers_catch_what_they_expect(tmp_path, chunk):
    with pytest.raises(FileNotFoundError, match="there is no store"):
        hepdask.open_store(tmp_path / "nothing.zarr")
    with pytest.raises(FileNotFoundError, match=r"nothing\.root: no such file"):
        hepdask.inspect(tmp_path / "nothing.root")
    with pytest.raises(FileNotFoundError, match="not the folder of a trained model"):
        hepdask.load_model(tmp_path)
    (tmp_path / "wrong.yaml").write_text("store: {codec: none}\n")
    with pytest.raises(ValueError, match=r"wrong\.yaml, line 1: store.codec"):
        hepdask.load_config(tmp_path / "wrong.yaml")
    with pytest.raises(KeyError) as missing:
        read(chunk, {"Jet": ("Nothing",)})
    assert str(missing.value).startswith(f"{chunk.file.path}: tree Delphes has no branch Jet.Nothing")
    other = InputFile("ttbar", 0, chunk.file.path, "Other")
    with pytest.raises(KeyError) as missing:
        inspect_file(other, chunk.file.path, {}, {}, Input())
    assert "no tree is called Other; there are: Delphes" in str(missing.value)


def test_a_route_tells_which_kind_of_error_it_was(tmp_path):
    gone = InputFile("ttbar", 0, str(tmp_path / "gone.root"), "Delphes")

    def attempt(address):
        return inspect_file(gone, address, {}, {}, Input())

    for routes in (("{url}",), ("{url}", "/elsewhere{path}")):
        with pytest.raises(errors.InputNotFound) as found:
            read_with_retries(attempt, gone.path, Input(routes=routes))
        assert gone.path in str(found.value)
    (tmp_path / "gone.root").write_bytes(b"root" * 100)
    with pytest.raises(errors.InputError) as found:  # one is damaged, the other is not there
        read_with_retries(attempt, gone.path, Input(routes=routes))
    assert type(found.value) is errors.InputError


@pytest.mark.parametrize("kind", OURS)
def test_what_turns_errors_of_the_system_into_words_leaves_ours_alone(kind, tmp_path):
    error = kind("in our words")
    with pytest.raises(kind) as found, writing(tmp_path):
        raise error
    assert found.value is error
    with pytest.raises(kind) as found, final_errors(InputFile("a", 0, "b", "c"), "b"):
        raise error
    assert found.value is error


def test_a_validator_that_raises_ours_is_told_with_its_place(tmp_path):
    """Pydantic takes every ValueError for its own: place and message have to stay, and be there once."""
    (tmp_path / "mine.yaml").write_text("analysis:\n  selections:\n    cut: nothing.py:cut\n")
    with pytest.raises(errors.ConfigError) as found:
        hepdask.load_config(tmp_path / "mine.yaml")
    told = str(found.value)
    assert "mine.yaml, line 3: analysis.selections.cut: " in told
    assert told.count("nothing.py") == 1
    assert "Value error" not in told


def test_uproot_says_by_a_key_error_what_we_say_by_one(chunk):
    """What stands in for the base of `FieldNotFound`: uproot's own error for a name that is not there."""
    with uproot.open(chunk.file.path) as file, pytest.raises(KeyError):
        file["Delphes"]["Jet.Nothing"]
