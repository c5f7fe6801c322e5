"""One step at a time in an output: the lock that steps take for the folder of their configuration."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar, cast

from hepdask import logs
from hepdask.config import Config
from hepdask.files.lock import locked

P = ParamSpec("P")
T = TypeVar("T")

#: Outputs that this thread of work owns: steps call each other.
_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())


def owns_output(
    doing: str,
) -> Callable[[Callable[Concatenate[Config, P], T]], Callable[Concatenate[Config, P], T]]:
    """Make a step own the output of its configuration while it works; what it is `doing` is told to others.

    Steps that it calls are part of it.
    """

    def decorate(step: Callable[Concatenate[Config, P], T]) -> Callable[Concatenate[Config, P], T]:
        @wraps(step)
        def owner(config: Config, *args: P.args, **kwargs: P.kwargs) -> T:
            logs.show()
            folder = config.folder.absolute()
            if folder in _held.get():
                return step(config, *args, **kwargs)
            with locked(folder, f"{doing} in this output"):
                before = _held.set(_held.get() | {folder})
                try:
                    return step(config, *args, **kwargs)
                finally:
                    _held.reset(before)

        return cast(Callable[Concatenate[Config, P], T], owner)

    return decorate
