"""Workers that are killed because they need too much memory, and the tasks that they were at.

The nanny of a worker tells the scheduler when it ends it for its memory, and which process that was. `noted` has each
worker tell which tasks it begins and ends. A task that a process had begun and not ended is one of those that it needed
the memory for; tasks that waited on the same worker are not, nor is anything where a job was preempted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from dask.utils import format_bytes
from distributed import Client, get_worker

from hepdask.monitoring.answers import answer

_KILLED = "worker-restart-memory"  # Dask's topic
_BEGUN, _ENDED = "hepdask-begun", "hepdask-ended"

#: Workers that one task costs until it is given up: the first may have had other tasks beside it.
MOST = 2


def noted(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a task, and note with the scheduler that it has begun and ended."""
    worker = get_worker()
    facts = {"key": worker.get_current_task(), "pid": os.getpid()}
    limit = worker.memory_manager.memory_limit
    # the worker's own topic, which the scheduler forgets some time after the worker
    worker.log_event(worker.address, {"action": _BEGUN, "limit": limit, **facts})
    try:
        return function(*arguments)
    finally:
        worker.log_event(worker.address, {"action": _ENDED, **facts})


class Deaths:
    """Counts the workers that were killed for their memory by the tasks that they were at.

    Parameters
    ----------
    client : distributed.Client
        The cluster, whose tasks run under `noted`.

    Attributes
    ----------
    memory : str
        What the last one needed, and what it had.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: set[tuple[str, int]] = set()
        self._counts: Counter[str] = Counter()
        self.memory = ""

    def too_large(self) -> set[str]:
        """Give the keys of the tasks that cost `MOST` workers."""
        for _, death in self._events(_KILLED):
            process = death["worker"], death["pid"]
            if process not in self._known:
                self._known.add(process)
                self._count(*process, death["rss"])
        return {key for key, count in self._counts.items() if count >= MOST}

    def _count(self, worker: str, pid: int, used: int) -> None:
        told = [
            event for _, event in self._events(worker) if isinstance(event, dict) and event.get("pid") == pid
        ]
        begun = {event["key"]: event["limit"] for event in told if event["action"] == _BEGUN}
        ended = {event["key"] for event in told if event["action"] == _ENDED}
        for key in begun.keys() - ended:
            self._counts[key] += 1
            self.memory = f"{format_bytes(used)} with a limit of {format_bytes(begun[key])}"

    def _events(self, topic: str) -> Any:
        return answer(self._client, lambda: self._client.get_events(topic))
