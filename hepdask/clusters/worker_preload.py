"""A preload of local workers: Ctrl-C reaches every process of a terminal, but it is the driver's to answer."""

from __future__ import annotations

import signal

from distributed import Worker


def dask_setup(worker: Worker) -> None:
    """Ignore Ctrl-C in a worker process, which otherwise dies with a traceback; the driver ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
