"""What becomes of the output of ranks that train: the table of epochs, what is shown, what the scheduler is told."""

from __future__ import annotations

import pytest
from helpers.waiting import until

from hepdask.pipeline.history_table import read_table
from hepdask.pipeline.training_listener import TrainingListener
from hepdask.training.messages import EpochDone, Progress, RankRate, Started, line_of

STARTED = Started(events=1000, total=3000, done=0, engine_name="by hand")


def epoch(number, **more):
    return EpochDone(
        epochs=3, epoch=number, loss=1 / number, accuracy=0.5, learning_rate=0.1, events_per_second=2000.0, seconds=0.5,
        **more,
    )  # fmt: skip


@pytest.fixture
def listener(client, tmp_path):
    with TrainingListener("hlf", tmp_path / "history.csv", client) as listener:
        yield listener


def test_messages_are_shown_and_output_is_passed_on(listener, caplog):
    caplog.set_level("INFO", "hepdask")
    for rank, line in [
        (0, line_of(STARTED)),
        (1, "something else"),
        (0, line_of(Progress(500))),
        (0, line_of(epoch(2, val_loss=0.25, val_accuracy=0.75))),
        (1, line_of(RankRate(1, 1000.0))),
        (1, '{"hepdask": "EpochDone", "epoch": 3}'),
    ]:
        listener(rank, line)
    assert [line.partition("hlf")[2] for line in caplog.messages if "hlf" in line] == [
        ": 1,000 events, by hand",
        " rank 1] something else",
        " epoch 2/3: loss 0.5000, accuracy 0.5000, val_loss 0.2500, val_accuracy 0.7500, 2,000 events/s",
        ' rank 1] {"hepdask": "EpochDone", "epoch": 3}',
    ]


def test_the_table_holds_each_epoch_once(client, tmp_path, caplog):
    """Also where a driver was killed, and the next one's ranks do an epoch again."""
    caplog.set_level("INFO", "hepdask")
    table = tmp_path / "history.csv"
    for epochs in ([epoch(1), epoch(2)], [epoch(2), epoch(3)]):
        with TrainingListener("hlf", table, client) as listener:
            listener.take(STARTED)
            for one in epochs:
                listener.take(one)
    assert "hlf epoch 3/3: loss 0.3333, accuracy 0.5000, 2,000 events/s" in caplog.messages
    rows = read_table(table)
    assert list(rows) == [1, 2, 3]
    assert [float(row["loss"]) for row in rows.values()] == [1, 1 / 2, 1 / 3]
    assert list(rows[1]) == ["epoch", "loss", "accuracy", "learning_rate", "events_per_second", "seconds"]


def test_the_scheduler_is_told(client, listener):
    before = len(client.get_events("hepdask"))
    listener.take(epoch(2, val_loss=0.25, val_accuracy=0.75))
    listener.take(RankRate(1, 1000.0))
    until(lambda: len(client.get_events("hepdask")) >= before + 2, 10, "both are in the log")
    told = str(client.get_events("hepdask")[before:])
    for name, value in (
        ("training_epoch", 2),
        ("training_loss", 0.25),
        ("training_events_per_second", 1000.0),
    ):
        assert f"hepdask_{name}" in told
        assert str(value) in told
