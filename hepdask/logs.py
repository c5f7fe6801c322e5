"""Who sees what hepdask logs: the person at a command, in a notebook or in a script, and programs that gather logs.

Every module logs to a logger of its own name below ``hepdask``. In a process of its own (a command, a worker, a rank)
hepdask shows these lines itself. In a process that is somebody else's, such as a notebook, it does so from the first
step on, and only as long as nobody has configured logging there: see `show`. Nothing is configured on import.

What the libraries underneath log around a sentence of ours is silenced, unless ``-vv`` asks for the whole story. For
that, this module is also a preload of local workers.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import sys
import threading
from typing import Any, Literal

from rich.console import Console

#: What the bar of `hepdask.progress` is drawn on, so that lines appear above it.
console = Console(stderr=True, highlight=False)

#: Environment of a command: how the workers and ranks that it starts on this machine show what they log.
VARIABLE = "HEPDASK_LOG"

_PACKAGE = logging.getLogger("hepdask")
_PREFIX = {logging.WARNING: "warning: ", logging.ERROR: "error: ", logging.CRITICAL: "error: "}

_NOISY = ("asyncio", "bokeh", "distributed", "tornado")
_NEVER = logging.CRITICAL + 1
_lock = threading.Lock()
_owns_process = False
_whole_story = False
_set_level = False


class Handler(logging.Handler):
    """Writes lines for people, or JSON lines for programs, to standard error; in a notebook, into the cell's output.

    Parameters
    ----------
    style : {"text", "json"}
        Text has the level in front of warnings and errors, and the module in front of what ``-v`` adds. JSON has one
        document a line: time (UTC), level, logger, and message; of progress step, done, total, unit, and per_second.
    yields : bool
        Whether this handler is silent as soon as somebody else has configured logging.
    """

    def __init__(self, style: Literal["text", "json"] = "text", yields: bool = False) -> None:
        super().__init__()
        self.style, self._yields = style, yields

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        if self._yields and _is_configured():
            return
        try:
            if self.style == "json":
                print(_json(record, self.format(record)), file=sys.stderr, flush=True)
            elif console.is_jupyter:  # as output of the cell: lines that follow each other make one block
                print(_text(record, self.format(record)))
            else:
                line = _text(record, self.format(record))
                console.print(line, markup=False, emoji=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


def _text(record: logging.LogRecord, message: str) -> str:
    if record.levelno < logging.INFO:
        return f"[{record.name.removeprefix('hepdask.')}] {message}"
    return _PREFIX.get(record.levelno, "") + message


def _json(record: logging.LogRecord, message: str) -> str:
    now = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
    facts: dict[str, Any] = getattr(record, "progress", None) or {"message": message}
    return json.dumps(
        {"time": now, "level": record.levelname.lower(), "logger": record.name, **facts}, default=str
    )


def show() -> None:
    """Show what a step logs, where nobody has configured logging; the steps call this when they begin.

    Logging is configured where the root logger or the logger ``hepdask`` has a handler of somebody else; then nothing
    is changed. Otherwise ``hepdask`` gets a handler, and the level INFO if it had none:
    ``logging.getLogger("hepdask").setLevel("WARNING")``, said before or after, leaves only warnings.
    """
    global _set_level
    with _lock:
        mine = [handler for handler in _PACKAGE.handlers if isinstance(handler, Handler)]
        if _is_configured():
            if _set_level and _PACKAGE.level == logging.INFO:
                _PACKAGE.setLevel(logging.NOTSET)
            _set_level = False
        elif not mine:
            _PACKAGE.addHandler(Handler(yields=True))
            if _PACKAGE.level == logging.NOTSET:
                _PACKAGE.setLevel(logging.INFO)
                _set_level = True


def _is_configured() -> bool:
    """Whether somebody else handles what hepdask logs."""
    if any(isinstance(handler, Handler) and not handler._yields for handler in _PACKAGE.handlers):
        return False  # this process is hepdask's own
    strangers = (h for h in _PACKAGE.handlers if not isinstance(h, (Handler, logging.NullHandler)))
    return any(strangers) or (_PACKAGE.propagate and bool(logging.root.handlers))


def show_in_command(level: int, style: Literal["text", "json"]) -> None:
    """Show everything from a level on, in the process of a command, and in those that it starts on this machine."""
    _own(level, style)
    os.environ[VARIABLE] = f"{logging.getLevelName(level)} {style}"


def show_in_worker() -> None:
    """Show what the command that started this worker was asked to show."""
    _own(*_asked())


def show_in_rank() -> None:
    """Show what a rank logs to those who gather its output: the driver, which shows it or not, and its log file.

    Nothing happens outside of the process of a rank.
    """
    if "HOROVOD_RANK" in os.environ:
        _own(min(_asked()[0], logging.INFO), "text")


def _asked() -> tuple[int, Literal["text", "json"]]:
    level, _, style = os.environ.get(VARIABLE, "").partition(" ")
    return logging.getLevelNamesMapping().get(level, logging.INFO), "json" if style == "json" else "text"


def _own(level: int, style: Literal["text", "json"]) -> None:
    """Be the only one who handles what hepdask logs: some libraries configure the root logger in passing."""
    with _lock:
        for handler in list(_PACKAGE.handlers):
            _PACKAGE.removeHandler(handler)
        _PACKAGE.addHandler(Handler(style))
        _PACKAGE.setLevel(level)
        _PACKAGE.propagate = False


def can_draw() -> bool:
    """Whether a bar can be drawn: people look, on a terminal, at what hepdask itself shows there."""
    shown = any(
        isinstance(h, Handler) and h.style == "text" and not (h._yields and _is_configured())
        for h in _PACKAGE.handlers
    )
    return shown and console.is_terminal and _PACKAGE.isEnabledFor(logging.INFO)


def set_program(whole_story: bool) -> None:
    """Say that this process is hepdask's own command, and whether it was asked for the whole story."""
    global _owns_process, _whole_story
    _owns_process, _whole_story = True, whole_story


def wants_whole_story() -> bool:
    """Whether ``-vv`` was said."""
    return _whole_story


def settle() -> None:
    """Silence the libraries in a command's own process; a notebook's loggers are left as they are."""
    if _owns_process and not _whole_story:
        hush()


def hush() -> None:
    """Let the loggers of Dask and of what it stands on say nothing, those that have a level of their own, too."""
    for name in [*_NOISY, *logging.root.manager.loggerDict]:
        if name.partition(".")[0] in _NOISY:
            logging.getLogger(name).setLevel(_NEVER)


def dask_setup(worker: Any) -> None:
    """Silence a worker process."""
    hush()
