"""Work that runs ahead: an iterator whose next items are computed in a thread."""

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
        Items that wait at most; one more is being computed.

    Yields
    ------
    object
        The items in their order. When the reader stops early, so does the thread, after its current item.
    """
    ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def offer(kind: str, item: T | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put((kind, item), timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                offer("item", item)
                if stopped.is_set():
                    return
            offer("end", None)
        except BaseException as error:
            offer("error", error)

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "end":
                return
            if isinstance(item, BaseException) and kind == "error":
                raise item
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
