"""Many independent tasks on a Dask cluster: in a bounded window, with a bound on every wait."""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from distributed import Client, Future

from hepdask.errors import ClusterError

Item = TypeVar("Item")

_POLL = 2.0


def completed(
    client: Client,
    function: Callable[..., Any],
    items: Sequence[Item],
    *arguments: Any,
    name: str,
    worker_timeout: float,
    workers: Sequence[str] | None = None,
) -> Generator[tuple[Item, Any], None, None]:
    """Run ``function(item, *arguments)`` for every item and yield results as they come.

    Only a few tasks a thread are with the scheduler at a time, so that the number of items is not
    limited by its memory. Leaving the loop early cancels what is under way.

    Parameters
    ----------
    client : distributed.Client
        Where the tasks run.
    function : callable
        What each task does.
    items : sequence
        One task each.
    *arguments
        Sent along with every task.
    name : str
        Name of the tasks on the dashboard.
    worker_timeout : float
        Longest time without any worker [s].
    workers : sequence of str, optional
        Addresses of those that may do it; by default any.

    Yields
    ------
    (item, result)
        In the order of completion.

    Raises
    ------
    ClusterError
        No worker was there for `worker_timeout`, or tasks killed one worker after another.
    Exception
        What the task raised.
    """
    waiting = iter(items)
    running: dict[Future, Item] = {}
    done: queue.SimpleQueue[Future] = queue.SimpleQueue()
    threads, looked, last_seen = 0, -math.inf, time.monotonic()
    try:
        while True:
            now = time.monotonic()
            if now - looked > _POLL:
                threads, looked = sum(client.nthreads().values()), now
                if threads:
                    last_seen = now
                elif now - last_seen > worker_timeout:
                    raise ClusterError(
                        f"{name}: no worker for {worker_timeout:.0f} s; look at the cluster's jobs, "
                        "or raise store.worker_timeout"
                    )
            while len(running) < max(8, 4 * threads) and (item := next(waiting, running)) is not running:
                future = client.submit(
                    function,
                    item,
                    *arguments,
                    pure=False,
                    workers=workers,
                    key=f"{name}-{id(item):x}-{time.monotonic_ns()}",
                )
                running[future] = item  # type: ignore[assignment]
                future.add_done_callback(done.put)
            if not running:
                return
            try:
                future = done.get(timeout=_POLL)
            except queue.Empty:
                continue
            yield running.pop(future), _result(future, name)
    finally:
        client.cancel(list(running))


def _result(future: Future, name: str) -> Any:
    if future.status == "cancelled":
        raise ClusterError(f"{name}: a task was cancelled; was the cluster shut down?")
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        raise ClusterError(f"{name}: workers died one after another on the same task: {error}") from error
    return future.result()
