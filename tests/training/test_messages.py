"""What ranks tell the driver: every message comes back from its line, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepdask.training.messages import EpochDone, Message, Progress, RankRate, Started, line_of, parse

number = st.floats(allow_nan=False)
messages = st.one_of(
    st.builds(Started, st.integers(), st.integers(), st.integers(), st.text()),
    st.builds(Progress, st.integers()),
    st.builds(
        EpochDone, epochs=st.integers(), epoch=st.integers(), loss=number, accuracy=number,
        val_loss=st.none() | number, val_accuracy=st.none() | number, learning_rate=number,
        events_per_second=number, seconds=number,
    ),
    st.builds(RankRate, st.integers(), number),
)  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(messages)
def test_round_trip(message):
    line = line_of(message)
    assert parse(line) == message
    assert type(parse(line)) is type(message)
    assert line.isascii()
    assert line.isprintable(), "one line on every terminal, whatever is in it"


def test_a_loss_that_is_no_number_comes_through():
    line = line_of(RankRate(3, float("nan")))
    assert repr(parse(line)) == "RankRate(rank=3, events_per_second=nan)"


@given(messages, st.data())
def test_a_damaged_message_is_ordinary_output(message, data):
    """Cut short, with something in between, a field less or more, or a value of another type."""
    line = line_of(message)
    cut = data.draw(st.integers(0, len(line) - 1))
    assert parse(line[:cut]) is None
    assert parse(line[cut:]) is None or cut == 0
    parse(line[:cut] + data.draw(st.characters()) + line[cut:])  # may be another message, and raises nothing
    fields = json.loads(line)
    required = [field.name for field in dataclasses.fields(message) if field.default is dataclasses.MISSING]
    name = data.draw(st.sampled_from(required))
    assert parse(json.dumps({key: value for key, value in fields.items() if key != name})) is None
    assert parse(json.dumps({**fields, "more": 1})) is None
    for wrong in ([1], {"a": 1}, True, None):
        assert parse(json.dumps({**fields, name: wrong})) is None
    assert parse(json.dumps({**fields, "hepdask": "Other"})) is None


@given(json_values, st.sampled_from([kind.__name__ for kind in typing.get_args(Message)]) | st.text())
def test_whatever_looks_like_one_is_ordinary_output(value, kind):
    for line in (
        json.dumps({"hepdask": value}),
        json.dumps({"hepdask": kind, "x": value}),
        json.dumps({"hepdask": kind}),
        json.dumps(value),
    ):
        assert parse(line) is None


@given(st.text())
def test_ordinary_output(text):
    assert parse(text) is None
    assert parse('{"hepdask": "' + text) is None


@pytest.mark.parametrize(
    "line",
    [
        '{"hepdask": "Progress", "done": 1} and more',
        ' {"hepdask": "Progress", "done": 1}',
        '{"hepdask": "Progress", "done": ' + "[" * 100_000,
        '{"hepdask": "Progress", "done": ' + "9" * 5000 + "}",  # more digits than Python reads
        '{"hepdask": "Message", "done": 1}',
        '{"hepdask": {"model": "hlf", "done": 1, "total": 2}}',
    ],
)
def test_lines_that_are_nearly_one(line):
    assert parse(line) is None


def test_a_whole_number_will_do_for_a_figure():
    assert parse('{"hepdask": "RankRate", "rank": 1, "events_per_second": 5}') == RankRate(1, 5)


def test_the_row_of_an_epoch_is_in_the_order_of_the_table():
    figures = {"epoch": 2, "loss": 0.5, "accuracy": 0.75}
    rest = {"learning_rate": 0.01, "events_per_second": 100.0, "seconds": 3.0}
    watched = {"val_loss": 0.6, "val_accuracy": 0.7}
    assert list(EpochDone(epochs=4, **figures, **rest).row().items()) == [*figures.items(), *rest.items()]
    assert list(EpochDone(epochs=4, **figures, **rest, **watched).row().items()) == [
        *figures.items(), *watched.items(), *rest.items(),
    ]  # fmt: skip
