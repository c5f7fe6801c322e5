"""Where processes that hepdask starts do not import from: the working directory, where a user may have a signal.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import dask

#: Environment of every process that hepdask starts; Python reads it from 3.11 on.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}


@contextmanager
def safe_path() -> Iterator[None]:
    """Start processes that do not import from the working directory: workers, now and later, and what helps them.

    The environment of this process is what it was before, after the block.
    """
    before = {name: os.environ.get(name) for name in SAFE_PATH}
    os.environ.update(SAFE_PATH)  # multiprocessing's resource tracker is started before Dask changes anything
    try:
        with dask.config.set({f"distributed.nanny.pre-spawn-environ.{name}": "1" for name in SAFE_PATH}):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
