"""A preload of local workers, which share the driver's terminal: its Ctrl-C, and what is shown there."""

from __future__ import annotations

import signal

from distributed import Worker

from hepdask import logs


def dask_setup(worker: Worker) -> None:
    """Ignore Ctrl-C in a worker process, which otherwise dies with a traceback; show what the driver would show."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.show_in_worker()
