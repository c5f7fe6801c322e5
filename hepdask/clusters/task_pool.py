"""Many independent tasks on a Dask cluster: in a bounded window, with a bound on every wait."""

from __future__ import annotations

import contextlib
import math
import queue
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

from distributed import Client, Future
from distributed.scheduler import KilledWorker

from hepdask.clusters.memory_deaths import MOST, Deaths, noted
from hepdask.errors import ClusterError
from hepdask.monitoring.answers import answer

Item = TypeVar("Item")

_POLL = 2.0
_FETCH = 600.0  # seconds in which the result of a task that is done must be here


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
        One task each; ``str(item)`` is what errors say that it works on.
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
        No worker was there for `worker_timeout`, the scheduler does not answer, a task needed more memory than
        workers have, or killed one worker after another.
    Exception
        What the task raised.
    """
    waiting = iter(items)
    running: dict[Future, Item] = {}
    done: queue.SimpleQueue[Future] = queue.SimpleQueue()
    deaths = Deaths(client)
    threads, looked, last_seen = 0, -math.inf, time.monotonic()
    try:
        while True:
            now = time.monotonic()
            if now - looked > _POLL:
                threads, looked = sum(answer(client, client.nthreads).values()), now
                if running:
                    _raise_if_too_large(deaths, running, name)
                if threads:
                    last_seen = now
                elif now - last_seen > worker_timeout:
                    raise ClusterError(
                        f"{name}: no worker for {worker_timeout:.0f} s; check the cluster's jobs, "
                        "or raise store.worker_timeout"
                    )
            while len(running) < max(8, 4 * threads) and (item := next(waiting, running)) is not running:
                future = client.submit(
                    noted,
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
            item = running.pop(future)
            yield item, _result(future, name, item)
    finally:
        if client.status == "running":
            with contextlib.suppress(ClusterError):
                answer(client, lambda: client.cancel(list(running)))


def _raise_if_too_large(deaths: Deaths, running: Mapping[Future, Item], name: str) -> None:
    keys = deaths.too_large()
    if found := [_words(item) for future, item in running.items() if future.key in keys]:
        raise ClusterError(
            f"{name}: {MOST} workers were killed for their memory at the same work, {' beside '.join(found)}: the last "
            f"one needed {deaths.memory}. Make chunks smaller (input.chunk_memory, input.chunk_events), or give each "
            "worker more (memory_limit of a local cluster; memory of a farm's jobs, or fewer processes in each)"
        )


def _words(item: Any) -> str:
    """Say what a task works on."""
    if isinstance(item, list):
        return ", ".join(map(_words, item))
    return str(item)


def _result(future: Future, name: str, item: Any) -> Any:
    if future.status == "cancelled":
        raise ClusterError(f"{name}: a task was cancelled; was the cluster shut down?")
    try:
        error = future.exception(_FETCH)
        if error is None:
            return future.result(_FETCH)
    except TimeoutError as late:
        raise ClusterError(
            f"{name}: the result of {_words(item)} did not come within {_FETCH:g} s; can the workers be reached?"
        ) from late
    if isinstance(error, KilledWorker):
        raise ClusterError(
            f"{name}: workers died one after another on the same task, {_words(item)}: something in it ends their "
            "process, like sys.exit or a crash of compiled code, or somebody kills them; their logs, or -vv, say more"
        ) from error
    return future.result(_FETCH)  # raises it, with where it came from
