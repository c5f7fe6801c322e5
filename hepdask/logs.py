"""What the libraries underneath say around a sentence of ours: nothing, unless ``-vv`` asks for the whole story.

Also a preload of local workers, so that what goes wrong in a task is told once, by the driver.
"""

from __future__ import annotations

import logging
from typing import Any

_NOISY = ("asyncio", "bokeh", "distributed", "tornado")
_NEVER = logging.CRITICAL + 1
_owns_process = False
_whole_story = False


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
