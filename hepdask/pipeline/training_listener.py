"""What becomes of the messages and the output of ranks that train a network."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from distributed import Client

from hepdask.monitoring import metrics
from hepdask.pipeline.history_table import read_table, write_table
from hepdask.progress import Tracker, track
from hepdask.training.messages import EpochDone, Message, Progress, RankRate, Started, parse

logger = logging.getLogger(__name__)


class TrainingListener(ExitStack):
    """Shows what ranks tell of a training, writes its epochs into a table, and passes other output on.

    A context manager: its bar of progress ends with it.

    Parameters
    ----------
    name : str
        The model.
    table : Path
        A CSV file, one line per epoch as it ends. Epochs that are in it stay, unless they are done again.
    client : distributed.Client
        Whose scheduler is told of the epochs.
    """

    def __init__(self, name: str, table: Path, client: Client) -> None:
        super().__init__()
        self._name = name
        self._client = client
        metrics.serve(client)
        metrics.tell(client, [("hepdask_training_epoch", 0, {"model": name})])
        self._table = table
        self._rows = read_table(table)
        self._tracker: Tracker | None = None
        self._done = 0

    def __call__(self, rank: int, line: str) -> None:
        """Take one line of a rank's output."""
        message = parse(line)
        if message is None:
            logger.info(f"[{self._name} rank {rank}] {line}")
        else:
            self.take(message)

    def take(self, message: Message) -> None:
        """Take one message of a rank."""
        match message:
            case Started():
                logger.info(f"{self._name}: {message.events:,} events, {message.engine_name}")
                if self._tracker is None:  # else training goes on after a failure
                    shown = track(f"train {self._name}", message.total, "events")
                    self._tracker = self.enter_context(shown)
                self._show(message.done)
            case Progress():
                self._show(message.done)
            case EpochDone():
                self._keep(message)
            case RankRate():
                labels = {"model": self._name, "rank": str(message.rank)}
                rate = message.events_per_second
                metrics.tell(self._client, [("hepdask_training_events_per_second", rate, labels)])

    def _show(self, done: int) -> None:
        if self._tracker is not None:
            self._tracker.advance(done - self._done)
            self._done = done

    def _keep(self, message: EpochDone) -> None:
        self._rows[message.epoch] = message.row()
        write_table(self._table, list(self._rows.values()))
        metrics.tell(self._client, self._changes(message))
        watched = (
            "" if message.val_loss is None
            else f", val_loss {message.val_loss:.4f}, val_accuracy {message.val_accuracy:.4f}"
        )  # fmt: skip
        logger.info(
            f"{self._name} epoch {message.epoch}/{message.epochs}: loss {message.loss:.4f}, "
            f"accuracy {message.accuracy:.4f}{watched}, {message.events_per_second:,.0f} events/s"
        )

    def _changes(self, message: EpochDone) -> Iterator[tuple[str, float, dict[str, str]]]:
        yield "hepdask_training_epoch", message.epoch, {"model": self._name}
        for sample, loss in (("fit", message.loss), ("validation", message.val_loss)):
            if loss is not None:
                yield "hepdask_training_loss", loss, {"model": self._name, "sample": sample}
