"""What can be asked of a run: options of no use are refused, arguments of the function are its own, callbacks stay."""

from __future__ import annotations

import pickle
import sys
import threading
from dataclasses import fields
from pathlib import Path

import cloudpickle
import pytest

from hepdask.distributed import RankOptions, run, submit

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"cores_per_rank": 0}, ValueError),
        ({"cores_per_rank": None}, TypeError),
        ({"cores_per_rank": 1.0}, TypeError),
        ({"gpus_per_rank": -1}, ValueError),
        ({"gpus_per_rank": "1"}, TypeError),
        ({"restarts": -1}, ValueError),
        ({"restarts": True}, TypeError),
        ({"min_ranks": 0}, ValueError),
        ({"min_ranks": 1.5}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": None}, ValueError),
        ({"regroup_timeout": -0.1}, ValueError),
        ({"silence_timeout": 0}, ValueError),
        ({"silence_timeout": None}, ValueError),
        ({"silence_timeout": float("inf")}, ValueError),
        ({"env": {"A": 1}}, TypeError),
        ({"env": {1: "A"}}, TypeError),
        ({"port_range": (20, 10)}, ValueError),
        ({"port_range": (0, 10)}, ValueError),
        ({"port_range": (65_000, 65_536)}, ValueError),
        ({"port_range": 10_000}, ValueError),
        ({"backend": "mpi"}, ValueError),
        ({"checkpoint": "x", "backend": "tf.distribute"}, ValueError),
        ({"give_up_on": "ValueError"}, TypeError),
        ({"give_up_on": (ValueError, 3)}, TypeError),
        ({"on_output": None}, TypeError),
        ({"on_status": "print"}, TypeError),
    ],
)
def test_options_of_no_use_are_refused_by_name(wrong, error):
    with pytest.raises(error, match=next(iter(wrong))):
        RankOptions(**wrong)


@pytest.mark.parametrize(
    "right",
    [
        {"gpus_per_rank": 0},
        {"min_ranks": 1},
        {"timeout": 0},
        {"regroup_timeout": 0},
        {"port_range": (1, 65_535)},
        {"port_range": [10_000, 10_000]},
        {"backend": "tf.distribute"},
        {"give_up_on": KeyError},
        {"give_up_on": (KeyError, OSError)},
        {"checkpoint": Path("x")},
    ],
)
def test_options_at_their_bounds(right):
    ((name, value),) = right.items()
    assert getattr(RankOptions(**right), name) == value


def test_options_do_not_change_with_what_they_were_made_of():
    env = {"A": "1"}
    options = RankOptions(env=env)
    env["A"] = "2"
    assert options.env == {"A": "1"}


def test_every_option_is_documented():
    described = {
        name.strip()
        for line in RankOptions.__doc__.splitlines()
        if line.startswith("    ") and " : " in line and not line.startswith("     ")
        for name in line.partition(" : ")[0].split(",")
    }
    assert described == {field.name for field in fields(RankOptions)}


def test_callbacks_types_and_folders_stay_with_the_driver(client, stub, mark, tmp_path):
    """The lock in each callback cannot be pickled: were one of them sent, the run would fail."""
    lock, lines, said = threading.Lock(), [], []

    def on_output(rank, line):
        with lock:
            lines.append((rank, line))

    def on_status(sentence):
        with lock:
            said.append(sentence)

    class Final(Exception):
        held = lock

    options = RankOptions(
        env=stub | mark, cores_per_rank=1, port_range=(10_000, 20_000), on_output=on_output, on_status=on_status,
        give_up_on=(Final,), log_dir=tmp_path / "logs", checkpoint=tmp_path / "checkpoint",
    )  # fmt: skip

    def talk(checkpoint):
        print(checkpoint.folder.name)

    assert run(talk, client=client, ranks=2, options=options) == [None, None]
    assert sorted(lines) == [(0, "checkpoint"), (1, "checkpoint")]
    sent = pickle.loads(pickle.dumps(options.for_cluster()))
    kept = {"env", "cores_per_rank", "port_range"}
    for field in fields(RankOptions):
        expected = getattr(options if field.name in kept else RankOptions(), field.name)
        assert getattr(sent, field.name) == expected


def test_keywords_of_the_function_are_its_own(client, stub, mark):
    """Those that have the name of an option, and those that the launcher uses itself."""

    def told(fn, /, **keywords):
        return fn, keywords

    keywords = {field.name: field.name for field in fields(RankOptions)}
    keywords |= {"stop": 1, "fn": 2, "args": 3, "kwargs": 4, "timeout": 0.001}
    options = RankOptions(env=stub | mark)
    assert run(told, 5, client=client, ranks=1, options=options, **keywords) == [(5, keywords)]
    assert submit(told, 5, client=client, ranks=1, options=options, **keywords).result(120) == [(5, keywords)]


def test_a_checkpoint_is_given_once(client, tmp_path):
    with pytest.raises(TypeError, match="keyword checkpoint twice"):
        run(print, client=client, ranks=1, options=RankOptions(checkpoint=tmp_path), checkpoint="mine")
    assert list(tmp_path.iterdir()) == []
