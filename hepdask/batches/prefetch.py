"""An iterator whose next items are computed in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.1


def ahead(items: Iterable[T], depth: int = 1) -> Iterator[T]:
    """Compute items in a thread while earlier ones are used.

    Parameters
    ----------
    items : iterable
        Errors it raises are raised here, in their place.
    depth : int
        Items that wait at most; one more is being computed. With 0, the next item is computed while one is used, and
        the one after it when that is taken: there are never more than two.

    Yields
    ------
    object
        The items in their order; none is kept here when the next is asked for. When the reader stops early, so does
        the thread, after its current item.
    """
    ready: queue.SimpleQueue[tuple[str, T | BaseException | None]] = queue.SimpleQueue()
    free = threading.Semaphore(depth + 1)
    stopped = threading.Event()

    def work() -> None:
        try:
            coming = iter(items)
            while not stopped.is_set():
                if not free.acquire(timeout=_POLL_S):
                    continue
                try:
                    ready.put(("item", next(coming)))
                except StopIteration:
                    ready.put(("end", None))
                    return
        except BaseException as error:
            ready.put(("error", error))

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = ready.get()
            free.release()
            if kind == "end":
                return
            if isinstance(item, BaseException) and kind == "error":
                raise item
            yield item  # type: ignore[misc]
            item = None
    finally:
        stopped.set()
