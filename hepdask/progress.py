"""What a person sees while something long runs: a live bar on a terminal, plain lines elsewhere; or JSON lines."""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_LINE_EVERY = 10.0

_console = Console(stderr=True, highlight=False)
_quiet = False
_json = False


def set_quiet(quiet: bool) -> None:
    """Show nothing but errors, or everything again."""
    global _quiet
    _quiet = quiet


def set_json(as_json: bool) -> None:
    """Write one JSON document a line, for programs that gather logs, or text again."""
    global _json
    _json = as_json


def say(message: str) -> None:
    """Tell the person one thing."""
    if _quiet:
        return
    if _json:
        is_warning = message.startswith("warning: ")
        _log("warning" if is_warning else "info", message=message.removeprefix("warning: "))
    elif _console.is_jupyter:  # as output of the cell: lines that follow each other make one block
        print(message)
    else:
        _console.print(message, markup=False, soft_wrap=True)


def fail(message: str) -> None:
    """Tell the person why a command ends, also where it is quiet."""
    if _json:
        _log("error", message=message)
    else:
        print(f"error: {message}", file=sys.stderr)


def _log(level: str, **facts: Any) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    print(json.dumps({"time": now, "level": level, **facts}), file=sys.stderr, flush=True)


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
            if _json and not _quiet:
                step = {"step": self._title, "done": self._done, "total": self._total, "unit": self._unit}
                _log("info", **step, per_second=rate)
                return
            left = (self._total - self._done) / rate if rate else float("inf")
            say(
                f"{self._title}: {self._done:,.0f} of {self._total:,.0f} {self._unit}, "
                f"{rate:,.0f} {self._unit}/s, about {left:,.0f} s left"
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
    if _quiet or _json or not _console.is_terminal:
        yield Tracker(title, total, unit, None)
        return
    with _Bar(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=_console, transient=True,
    ) as bar:  # fmt: skip
        yield Tracker(title, total, unit, bar)
