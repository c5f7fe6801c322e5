"""How far something long is: a live bar on a terminal, a log line every few seconds elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hepdask import logs

logger = logging.getLogger(__name__)

_LINE_EVERY = 10.0


class _Bar(Progress):
    """A bar with something under it."""

    below: RenderableType = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield self.below


class Tracker:
    """How far one long step is; made by `track`."""

    def __init__(self, title: str, total: float, unit: str, bar: _Bar | None) -> None:
        self._title, self._total, self._unit, self._bar = title, total, unit, bar
        self._task = bar.add_task(title, total=total, rate="") if bar else None
        self._done = 0.0
        self._start = self._last_line = time.monotonic()

    def below(self, lines: Iterable[str]) -> None:
        """Show these lines under the bar, in place of those before; nothing where there is no bar."""
        if self._bar is not None:
            self._bar.below = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")

    def advance(self, amount: float) -> None:
        """Say that `amount` more is done."""
        self._done += amount
        now = time.monotonic()
        rate = self._done / max(now - self._start, 1e-9)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{rate:,.0f} {self._unit}/s")
        elif now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            left = (self._total - self._done) / rate if rate else float("inf")
            facts = {"step": self._title, "done": self._done, "total": self._total, "unit": self._unit}
            logger.info(
                f"{self._title}: {self._done:,.0f} of {self._total:,.0f} {self._unit}, "
                f"{rate:,.0f} {self._unit}/s, about {left:,.0f} s left",
                extra={"progress": {**facts, "per_second": rate}},
            )


@contextmanager
def track(title: str, total: float, unit: str) -> Iterator[Tracker]:
    """Show the progress of one step.

    Parameters
    ----------
    title : str
        Name of the step.
    total : float
        What `advance` will add up to.
    unit : str
        What is counted, in the plural.
    """
    if not logs.can_draw():
        yield Tracker(title, total, unit, None)
        return
    with _Bar(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=logs.console, transient=True,
    ) as bar:  # fmt: skip
        yield Tracker(title, total, unit, bar)
