"""Dask's own account of where the time went, kept with a run."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from distributed import Client

from hepdask.files.atomic import write_bytes

logger = logging.getLogger(__name__)


class Recording:
    """What a cluster does from now on.

    Dask keeps it on the scheduler for its dashboard anyway; nothing is recorded twice.

    Parameters
    ----------
    client : distributed.Client
        The cluster.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._start = time.time()
        self._count = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.monitor.count)
        client.get_task_stream(start=0, stop=0)  # the scheduler begins to keep it when it is first asked

    def save(self, path: Path, title: str) -> bool:
        """Write the performance report, one page that needs no other file; give False where it cannot be made."""
        try:
            page: str = self._client.sync(
                self._client.scheduler.performance_report,  # type: ignore[union-attr]
                start=self._start, last_count=self._count, code=title, mode="inline",
            )  # fmt: skip
        except Exception as error:  # whatever Bokeh says; a run is not lost over it
            logger.warning(f"no performance report: {type(error).__name__}: {error}")
            return False
        write_bytes(path, page.encode())
        return True
