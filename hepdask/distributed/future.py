"""A run in the background, as a future like those of Dask and ``concurrent.futures``."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class RunFuture(concurrent.futures.Future[T]):
    """The results of a run that is under way; made by `hepdask.distributed.submit`.

    ``result(timeout)``, ``exception(timeout)``, ``done()`` and ``add_done_callback`` are those of every future;
    ``concurrent.futures.wait`` and ``as_completed`` take it, and ``await`` does in a coroutine.
    """

    def __init__(self, body: Callable[[], T], stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop
        self._body = body
        threading.Thread(target=self._carry_out, name="ranks", daemon=True).start()

    def cancel(self) -> bool:
        """End all ranks, unless the run is over.

        Returns at once; ``result()`` raises ``CancelledError`` when they have ended, ten seconds later at most.
        """
        self._stop.set()
        return not self.done() or self.cancelled()

    def running(self) -> bool:
        """Whether the run is under way, waiting for slots included."""
        return not self.done()

    @property
    def status(self) -> str:
        """``"pending"``, ``"finished"``, ``"error"`` or ``"cancelled"``, as of a Dask future."""
        if not self.done():
            return "pending"
        if self.cancelled():
            return "cancelled"
        return "error" if self.exception() else "finished"

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()

    def _carry_out(self) -> None:
        # For the base class the run is pending until it is over: what runs, it would not let be cancelled.
        try:
            results = self._body()
        except concurrent.futures.CancelledError:
            super().cancel()
            self.set_running_or_notify_cancel()
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(results)
