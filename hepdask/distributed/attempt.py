"""One attempt at a run, from the driver's side: takes slots, submits the ranks, listens, and cleans up."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import pickle
import queue
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cloudpickle
from distributed import Client, Future
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from hepdask.distributed.errors import HorovodMissing, NotEnoughSlots, RankFailed
from hepdask.distributed.lease import Granted, Refused, Request, end_lease, take_lease
from hepdask.distributed.options import RankOptions
from hepdask.distributed.placement import Slot
from hepdask.distributed.rank_events import Ended, Event, Failure, Printed, Started, WorkerLost
from hepdask.distributed.rank_process import HOROVOD_NOT_FOUND
from hepdask.distributed.rank_task import LAST_LINES, Job, run_rank
from hepdask.distributed.rendezvous import Address

logger = logging.getLogger(__name__)

TICK = 0.2  # seconds between two looks at what sends no events
CHECK = 2.0  # the same while events keep coming
PATIENCE = 2.0  # most seconds between two attempts to get slots
ANSWER = 30.0  # seconds in which the scheduler must answer
GRACE = 10.0  # seconds in which all ranks must have ended after a failure
SETTLE = 0.5  # seconds to wait, after a failure, for one that came before it
SETTLE_CONSEQUENCE = 3.0  # the same after a failure that must have a cause elsewhere

SHOWN = 6  # workers named when slots are missing

MISSING = (
    "Horovod cannot be imported on {host}: {reason}. More than one rank needs it, built for the installed "
    "TensorFlow; that takes a C++ compiler, cmake and make. `make horovod` builds and installs it"
)


class Attempt:
    """One start of all ranks: a context manager that leaves nothing behind on the cluster.

    Parameters
    ----------
    client : distributed.Client
        A connected, synchronous client.
    ranks : int
        How many to start.
    options : RankOptions
        How.
    stop : threading.Event
        Ends the attempt when it is set.
    fewest : int, optional
        As few ranks as this will do once ``options.regroup_timeout`` is over; by default all or none.
    avoid : sequence of str
        Identities of workers that do not answer.

    Attributes
    ----------
    unresponsive : list of str
        After the attempt: identities of workers whose rank did not confirm that it has ended.
    """

    def __init__(
        self,
        client: Client,
        ranks: int,
        options: RankOptions,
        stop: threading.Event,
        fewest: int | None = None,
        avoid: Sequence[str] = (),
    ) -> None:
        self.client = client
        self.options = options
        self.wanted = ranks
        self.fewest = fewest or ranks
        self.size = ranks  # until there are slots, perhaps for fewer
        begin = time.monotonic()
        self.regroup_at = begin + options.regroup_timeout
        self.deadline = begin + options.timeout
        self.avoid = avoid
        self.unresponsive: list[str] = []
        self.on_output = options.on_output
        self.stop = stop
        self.name = f"ranks-{uuid.uuid4().hex}"
        self.slots: list[Slot] = []
        self.futures: list[Future] = []
        self.events: queue.Queue[tuple[float, bytes]] = queue.Queue()
        self.started: set[int] = set()
        self.ended: set[int] = set()
        self.failures: list[_Failed] = []
        self.failed_at = 0.0  # when the first failure became known
        self.checked_at = 0.0  # when the futures were last looked at
        self.stopping = False
        self.last_lines: list[deque[str]] = []
        self.heard_at: list[float] = []  # when each rank last gave a sign of life
        self.logs: list[TextIO] = []

    def __enter__(self) -> Attempt:
        self.client.subscribe_topic(self.name, self.events.put)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if kind is not None:
                self._stop()
        finally:
            self._close_logs()
            if self.client.status == "running":  # else the lease ended with the connection
                with contextlib.suppress(OSError, CommClosedError):
                    self._on_scheduler(end_lease, self.name)
                self.client.unsubscribe_topic(self.name)

    def _close_logs(self) -> None:
        for log in self.logs:
            with contextlib.suppress(OSError):  # a full disk was said when a line did not fit
                log.close()
        self.logs = []

    def carry_out(self, call: bytes) -> list[Any]:
        """Run the pickled ``(fn, args, kwargs)`` on all ranks; return the results in rank order."""
        rendezvous = self._take_slots()
        self._start(call, rendezvous)
        self._wait_for_all()
        return self._results()

    def _on_scheduler(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function on the scheduler, within bounded time."""

        async def call() -> Any:
            return await self.client.run_on_scheduler(function, *args)

        return self.client.sync(call, callback_timeout=ANSWER)

    def _on_loop(self, coroutine: Any) -> concurrent.futures.Future[Any]:
        """Have a coroutine carried out by the client's loop."""
        loop: Any = self.client.loop
        return asyncio.run_coroutine_threadsafe(coroutine, loop.asyncio_loop)

    # Starting

    def _take_slots(self) -> Address | None:
        """Wait for slots and lock them; return the rendezvous."""
        said, pause = "", TICK
        while True:
            answer = self._on_scheduler(take_lease, self._request())
            if isinstance(answer, Granted):
                self._use(answer.slots)
                return answer.rendezvous
            missing = self._missing(answer)
            if missing != said:
                self.options.on_status(f"waiting for slots: {missing}")
                said = missing
            left = self.deadline - time.monotonic()
            if left <= 0:
                message = f"not enough slots after {self.options.timeout:g} s: {missing}"
                raise NotEnoughSlots(
                    message, self.wanted, sum(answer.free.values()), sum(answer.taken.values())
                )
            self.stop.wait(min(pause, left))
            self._raise_if_stopped()
            pause = min(1.5 * pause, PATIENCE)

    def _request(self) -> Request:
        fewest = self.fewest if time.monotonic() >= self.regroup_at else self.wanted
        options = self.options.for_cluster()
        return Request(self.name, self.client.id, self.wanted, fewest, options, tuple(self.avoid))

    def _missing(self, answer: Refused) -> str:
        """Say which slots are there and how many are not."""
        free, taken = sum(answer.free.values()), sum(answer.taken.values())
        gpus = f" and {self.options.gpus_per_rank} GPU(s)" if self.options.gpus_per_rank else ""
        text = (
            f"{self.wanted} of {self.options.cores_per_rank} core(s){gpus} each are wanted, {free} are free, "
            f"{self.wanted - free} are missing; {taken} more are on workers of other runs"
        )
        for what, slots in (("free", answer.free), ("of other runs", answer.taken)):
            if slots:
                shown = ", ".join(f"{count} on {worker}" for worker, count in list(slots.items())[:SHOWN])
                more = f" and on {len(slots) - SHOWN} more workers" if len(slots) > SHOWN else ""
                text += f"; {what}: {shown}{more}"
        return text

    def _use(self, slots: list[Slot]) -> None:
        self.slots, self.size = slots, len(slots)
        self.last_lines = [deque[str](maxlen=LAST_LINES) for _ in slots]
        self.heard_at = [0.0] * len(slots)
        if self.options.log_dir is not None:
            self.logs = [_log(Path(self.options.log_dir) / f"rank-{slot.rank}.log") for slot in slots]

    def _start(self, call: bytes, rendezvous: Address | None) -> None:
        """Submit one task per rank, to the worker of its slot and to no other."""
        wait = max(self.deadline - time.monotonic(), 0.0) + GRACE
        job = Job(self.name, rendezvous, wait, self.options.for_cluster())
        shared = self._share(call)
        self.futures = [
            self.client.submit(
                run_rank,
                slot,
                job,
                shared,
                key=f"{self.name}-{slot.rank}",
                workers=[slot.address],
                resources={"GPU": slot.gpus} if slot.gpus else None,
                allow_other_workers=False,
                pure=False,
                retries=0,
                priority=100,
            )
            for slot in self.slots
        ]

    def _share(self, call: bytes) -> Future:
        """Bring the call to the workers; however big it is, a loss, the deadline and ``stop`` end the wait."""
        addresses = sorted({slot.address for slot in self.slots})
        coming = self._on_loop(
            self.client.scatter(call, workers=addresses, broadcast=True, hash=False, asynchronous=True)
        )
        try:
            while not coming.done():
                self._listen(TICK / 10)
                self._raise_failure()
                if time.monotonic() > self.deadline:
                    self._raise_not_started()
            with contextlib.suppress(Exception):
                return coming.result()
            give_up = time.monotonic() + ANSWER  # it failed since a worker is gone: wait to be told which
            while time.monotonic() < give_up:
                self._listen(TICK)
                self._raise_failure()
            return coming.result()
        finally:
            coming.cancel()

    # Listening

    def _wait_for_all(self) -> None:
        """Return when all ranks have succeeded; raise for the first cause if one has failed."""
        while len(self.ended) < self.size:
            self._listen(TICK)
            if self.failures:
                only_consequences = all(failed.failure.is_consequence() for failed in self.failures)
                settle = SETTLE_CONSEQUENCE if only_consequences else SETTLE
                if time.monotonic() > self.failed_at + settle:
                    break
            elif len(self.started) < self.size and time.monotonic() > self.deadline:
                self._raise_not_started()
            elif self._silent():
                self._raise_hanging()
        self._raise_failure()

    def _results(self) -> list[Any]:
        """Fetch the results."""
        coming = self._on_loop(self.client.gather(self.futures, asynchronous=True))
        limit = self.options.silence_timeout
        give_up = time.monotonic() + limit
        try:
            while not coming.done():
                self._listen(TICK / 10)
                self._raise_failure()  # a worker was lost with its result
                if time.monotonic() > give_up:
                    raise concurrent.futures.CancelledError(f"the results did not come within {limit:g} s")
            return [cloudpickle.loads(result) for result in coming.result()]
        finally:
            coming.cancel()

    def _listen(self, wait: float) -> None:
        """Take one event, waiting a moment for it; now and then, look at what sends none."""
        self._raise_if_stopped()
        quiet = not self._take_one(wait)
        if quiet or time.monotonic() > self.checked_at + CHECK:
            self.checked_at = time.monotonic()
            self._check_futures()

    def _take_one(self, wait: float) -> bool:
        """Take one event if it comes in time; return whether one did."""
        try:
            stamp, event = self.events.get(timeout=wait)
        except queue.Empty:
            return False
        self._take(stamp, pickle.loads(event))
        return True

    def _take(self, stamp: float, event: Event) -> None:
        match event:
            case Started(rank):
                self._hear_of(rank)
                self.started.add(rank)
            case Printed(rank, lines):
                self._hear_of(rank)
                self._print(rank, lines)
            case Ended(rank, when, failure):
                self._hear_of(rank)
                self.ended.add(rank)
                if failure is not None:
                    self._fail(rank, when, failure)
            case WorkerLost(worker):
                for slot in self.slots:
                    if slot.address == worker:
                        self.ended.add(slot.rank)
                        reason = "was lost: its Dask worker left the cluster"
                        last_lines = tuple(self.last_lines[slot.rank])
                        self._fail(slot.rank, stamp, Failure(reason, last_lines=last_lines))

    def _hear_of(self, rank: int) -> None:
        self.heard_at[rank] = time.monotonic()

    def _print(self, rank: int, lines: list[str]) -> None:
        self.last_lines[rank].extend(lines)
        if self.logs:
            try:
                self.logs[rank].writelines(f"{line}\n" for line in lines)
                self.logs[rank].flush()
            except OSError as error:  # the ranks need not die of it
                self.options.on_status(
                    f"{self.logs[rank].name} cannot be written, no log is kept any more: {error}"
                )
                self._close_logs()
        for line in lines:
            self.on_output(rank, line)

    def _fail(self, rank: int, when: float, failure: Failure) -> None:
        if not self.stopping:
            self.failed_at = self.failed_at or time.monotonic()
            self.failures.append(_Failed(rank, when, failure))

    def _check_futures(self) -> None:
        if self.client.status != "running":
            raise concurrent.futures.CancelledError("the connection to the scheduler was lost")
        for rank, future in enumerate(self.futures):
            if future.status in ("cancelled", "lost"):
                raise concurrent.futures.CancelledError(f"the task of rank {rank} was cancelled")
            if future.status == "error":
                error = future.exception()
                if not isinstance(error, KilledWorker):  # for that there is a "lost" event
                    raise error

    # Ending

    def _stop(self) -> None:
        """End all ranks, and return when they are gone or GRACE is over."""
        self.stopping = True
        self.on_output = _ignore
        if self.futures and self.client.status == "running":
            self.client.cancel(self.futures, force=True)
        give_up = time.monotonic() + GRACE
        while self.started - self.ended and time.monotonic() < give_up and self.client.status == "running":
            self._take_one(TICK)
        if left := sorted(self.started - self.ended):
            self.unresponsive = [self.slots[rank].identity for rank in left]
            logger.warning("ranks %s did not confirm within %.0f s that they have ended", left, GRACE)

    def _raise_if_stopped(self) -> None:
        if self.stop.is_set():
            raise concurrent.futures.CancelledError("the run was cancelled")

    def _raise_not_started(self) -> None:
        waiting = [slot for slot in self.slots if slot.rank not in self.started]
        where = ", ".join(sorted({slot.address for slot in waiting}))
        raise NotEnoughSlots(
            f"{len(waiting)} of {self.size} ranks did not start within {self.options.timeout:g} s: their workers "
            f"({where}) are busy with other tasks, or do not answer",
            self.size,
            len(self.started),
            len(waiting),
        )

    def _raise_failure(self) -> None:
        if not self.failures:
            return
        first = min(self.failures, key=lambda failed: (failed.failure.is_consequence(), failed.time))
        failure = first.failure
        silent = sorted(set(range(self.size)) - self.ended)
        if failure.is_consequence() and silent:
            self._raise_silent(silent[0], first)
        raised = failure.raised[0] if failure.raised else None
        if raised and raised.name == HOROVOD_NOT_FOUND:
            raise HorovodMissing(MISSING.format(host=self.slots[first.rank].host, reason=raised.message))
        cause = None
        # An error of TensorFlow would load TensorFlow here: it is left as text where that is not loaded anyway.
        if raised and failure.exception and raised.package in sys.modules:
            with contextlib.suppress(Exception):  # its class may be unknown here
                cause = cloudpickle.loads(failure.exception)
        raise self._error(first.rank, failure) from cause

    def _error(self, rank: int, failure: Failure) -> RankFailed:
        slot = self.slots[rank]
        return RankFailed(
            rank, self.size, slot.host, slot.address, failure.reason, failure.exit_status, failure.signal,
            failure.traceback, failure.last_lines,
        )  # fmt: skip

    def _silent(self) -> bool:
        """Whether all ranks have been silent for too long."""
        started = len(self.started) == self.size
        return started and time.monotonic() > max(self.heard_at) + self.options.silence_timeout

    def _raise_hanging(self) -> None:
        """Blame the rank that was heard of least recently among those that still run."""
        rank = min(set(range(self.size)) - self.ended, key=lambda number: self.heard_at[number])
        limit = self.options.silence_timeout
        reason = f"printed nothing for {limit:g} s, nor did any other rank: one of them hangs"
        raise self._error(rank, Failure(reason, last_lines=tuple(self.last_lines[rank])))

    def _raise_silent(self, rank: int, consequence: _Failed) -> None:
        """Blame a rank that neither failed nor ended when others lost touch with it."""
        reason = (
            "stopped answering the other ranks: it hangs, or its host cannot be reached "
            f"(because of it, rank {consequence.rank} {consequence.failure.reason})"
        )
        raise self._error(rank, Failure(reason, last_lines=tuple(self.last_lines[rank])))


@dataclass(frozen=True)
class _Failed:
    """Which rank failed, when, and how."""

    rank: int
    time: float
    failure: Failure


def _log(path: Path) -> TextIO:
    """Open the log of a rank, which only its owner can read."""
    return open(path, "a", opener=lambda name, flags: os.open(name, flags, 0o600))


def _ignore(rank: int, line: str) -> None:
    """Take a line that is only for the log."""
