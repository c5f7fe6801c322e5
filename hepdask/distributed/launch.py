"""The driver's side of a run: takes slots, submits the ranks, listens, and cleans up."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cloudpickle
from distributed import Client, Future
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from hepdask.distributed.errors import HorovodMissing, NotEnoughSlots, RankFailed
from hepdask.distributed.lease import Granted, end_lease, take_lease
from hepdask.distributed.placement import Slot
from hepdask.distributed.rendezvous import Address
from hepdask.distributed.task import LAST_LINES, Job, run_rank

logger = logging.getLogger(__name__)

TICK = 0.2  # seconds between two looks at what sends no events
CHECK = 2.0  # the same while events keep coming
PATIENCE = 2.0  # most seconds between two attempts to get slots
ANSWER = 30.0  # seconds in which the scheduler must answer
GRACE = 10.0  # seconds in which all ranks must have ended after a failure
SETTLE = 0.5  # seconds to wait, after a failure, for one that came before it
SETTLE_CONSEQUENCE = 3.0  # the same after a failure that must have a cause elsewhere

# What a rank says when a peer has gone.
CONSEQUENCES = (
    "HorovodInternalError",
    "Horovod has been shut down",
    "gloo/transport",
    "Connection closed by peer",
    "did not start within",
)

MISSING = (
    "Horovod cannot be imported on {host}: {reason}. More than one rank needs it, built for the installed "
    "TensorFlow; that takes a C++ compiler, cmake and make. `make horovod` builds and installs it"
)


def run(
    fn: Callable[..., Any],
    *args: Any,
    client: Client,
    ranks: int,
    timeout: float = 300.0,
    env: Mapping[str, str] | None = None,
    cores_per_rank: int = 1,
    on_output: Callable[[int, str], None] | None = None,
    port_range: tuple[int, int] | None = None,
    log_dir: str | Path | None = None,
    **kwargs: Any,
) -> list[Any]:
    """Run a function as the ranks of one Horovod job on the workers of a Dask cluster.

    Every rank is a fresh process, started on a worker of its own or beside others on one worker, in which
    ``horovod.tensorflow`` has been initialised when ``fn(*args, **kwargs)`` is called. All ranks start
    together or none does.

    Parameters
    ----------
    fn : callable
        What each rank runs; anything that cloudpickle can carry. It learns which rank it is from Horovod.
    *args, **kwargs
        Its arguments, the same on every rank; a keyword that this function has itself cannot be passed on,
        use :func:`functools.partial`.
    client : distributed.Client
        A connected, synchronous client.
    ranks : int
        Number of ranks.
    timeout : float
        Seconds in which the slots must become free and all ranks must have started. How long ``fn`` takes is
        not limited.
    env : mapping of str to str, optional
        Environment variables of the ranks.
    cores_per_rank : int
        Threads of a worker that each rank uses up; a worker with *t* threads offers ``t // cores_per_rank``
        slots.
    on_output : callable, optional
        Called with ``(rank, line)`` for each line a rank prints, in the thread that called this function. By
        default lines are printed with the rank in front.
    port_range : (int, int), optional
        First and last port on which the rendezvous may listen, on the scheduler's host.
    log_dir : path, optional
        Folder for ``rank-0.log`` and so on, written by the caller's process.

    Returns
    -------
    list
        What ``fn`` returned, in rank order.

    Raises
    ------
    RankFailed
        If a rank raises, exits, is killed, or loses its worker. All others have been ended.
    NotEnoughSlots
        If not all ranks could be started within ``timeout``.
    HorovodMissing
        If Horovod cannot be imported on a worker and there is more than one rank.
    OSError
        If no port of ``port_range`` is free on the scheduler's host.
    concurrent.futures.CancelledError
        If the tasks were cancelled, or the connection to the scheduler was lost.
    """
    if client.asynchronous:
        raise TypeError("run needs a synchronous client: Client(address), not Client(asynchronous=True)")
    if ranks < 1 or cores_per_rank < 1:
        raise ValueError(f"ranks and cores_per_rank must be at least 1, not {ranks} and {cores_per_rank}")
    call = cloudpickle.dumps((fn, args, kwargs))
    with _Run(client, ranks, timeout, on_output or _print, log_dir) as running:
        rendezvous = running.take_slots(cores_per_rank, port_range)
        running.start(call, rendezvous, cores_per_rank, dict(env or {}))
        running.wait_for_all()
        return running.results()


def _print(rank: int, line: str) -> None:
    print(f"[{rank}] {line}", flush=True)


@dataclass(frozen=True)
class _Failure:
    """What is known about a rank that failed; ``facts`` are those of the ``ended`` event."""

    rank: int
    time: float
    facts: dict[str, Any]

    def is_consequence(self) -> bool:
        """Whether something else must have failed first."""
        if self.facts.get("ended_here"):
            return True
        text = self.facts.get("traceback") or ""
        if self.facts.get("signal") == signal.SIGABRT:
            text += "\n".join(self.facts.get("last_lines", ()))
        return any(sign in text for sign in CONSEQUENCES)


class _Run:
    """One run: a context manager that leaves nothing behind on the cluster."""

    def __init__(
        self,
        client: Client,
        ranks: int,
        timeout: float,
        on_output: Callable[[int, str], None],
        log_dir: str | Path | None,
    ) -> None:
        self.client = client
        self.ranks = ranks
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self.on_output = on_output
        self.name = f"ranks-{uuid.uuid4().hex}"
        self.slots: list[Slot] = []
        self.futures: list[Future] = []
        self.events: queue.Queue[tuple[float, dict[str, Any]]] = queue.Queue()
        self.started: set[int] = set()
        self.ended: set[int] = set()
        self.failures: list[_Failure] = []
        self.failed_at = 0.0  # when the first failure became known
        self.checked_at = 0.0  # when the futures were last looked at
        self.stopping = False
        self.last_lines = [deque[str](maxlen=LAST_LINES) for _ in range(ranks)]
        self.logs: list[TextIO] = []
        if log_dir is not None:
            folder = Path(log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.logs = [(folder / f"rank-{rank}.log").open("w") for rank in range(ranks)]

    def __enter__(self) -> _Run:
        self.client.subscribe_topic(self.name, self.events.put)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if kind is not None:
                self._stop()
        finally:
            for log in self.logs:
                log.close()
            if self.client.status == "running":  # else the lease ended with the connection
                with contextlib.suppress(OSError, CommClosedError):
                    self._on_scheduler(end_lease, self.name)
                self.client.unsubscribe_topic(self.name)

    def _on_scheduler(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function on the scheduler, within bounded time."""

        async def call() -> Any:
            return await self.client.run_on_scheduler(function, *args)

        return self.client.sync(call, callback_timeout=ANSWER)

    # Starting

    def take_slots(self, cores_per_rank: int, port_range: tuple[int, int] | None) -> Address | None:
        """Wait for slots and lock them; return the rendezvous."""
        said, pause = "", TICK
        while True:
            answer = self._on_scheduler(
                take_lease, self.name, self.client.id, self.ranks, cores_per_rank, port_range
            )
            if isinstance(answer, Granted):
                self.slots = answer.slots
                return answer.rendezvous
            state = (
                f"{self.ranks} of {cores_per_rank} core(s) each are wanted, {answer.free} are free, "
                f"{self.ranks - answer.free} are missing; {answer.taken} more are on workers of other runs"
            )
            if state != said:
                logger.info("waiting for slots: %s", state)
                said = state
            left = self.deadline - time.monotonic()
            if left <= 0:
                message = f"not enough slots after {self.timeout:g} s: {state}"
                raise NotEnoughSlots(message, self.ranks, answer.free, answer.taken)
            time.sleep(min(pause, left))
            pause = min(1.5 * pause, PATIENCE)

    def start(
        self, call: bytes, rendezvous: Address | None, cores_per_rank: int, env: dict[str, str]
    ) -> None:
        """Submit one task a rank, to the worker of its slot and to no other."""
        wait = max(self.deadline - time.monotonic(), 0.0) + GRACE
        job = Job(self.name, rendezvous, cores_per_rank, wait, env)
        addresses = sorted({slot.address for slot in self.slots})
        shared = self.client.scatter(call, workers=addresses, broadcast=True, hash=False)
        self.futures = [
            self.client.submit(
                run_rank,
                slot,
                job,
                shared,
                key=f"{self.name}-{slot.rank}",
                workers=[slot.address],
                allow_other_workers=False,
                pure=False,
                retries=0,
                priority=100,
            )
            for slot in self.slots
        ]

    # Listening

    def wait_for_all(self) -> None:
        """Return when all ranks have succeeded; raise for the first cause if one has failed."""
        while len(self.ended) < self.ranks:
            self._listen(TICK)
            if self.failures:
                settle = SETTLE_CONSEQUENCE if all(f.is_consequence() for f in self.failures) else SETTLE
                if time.monotonic() > self.failed_at + settle:
                    break
            elif len(self.started) < self.ranks and time.monotonic() > self.deadline:
                self._raise_not_started()
        self._raise_failure()

    def results(self) -> list[Any]:
        """Fetch the results."""
        loop: Any = self.client.loop
        coming = asyncio.run_coroutine_threadsafe(
            self.client.gather(self.futures, asynchronous=True), loop.asyncio_loop
        )
        try:
            while not coming.done():
                self._listen(TICK / 10)
                self._raise_failure()  # a worker was lost with its result
            return [cloudpickle.loads(result) for result in coming.result()]
        finally:
            coming.cancel()

    def _listen(self, wait: float) -> None:
        """Take one event, waiting a moment for it; now and then, look at what sends none."""
        try:
            self._take(*self.events.get(timeout=wait))
            quiet = False
        except queue.Empty:
            quiet = True
        if quiet or time.monotonic() > self.checked_at + CHECK:
            self.checked_at = time.monotonic()
            self._check_futures()

    def _take(self, stamp: float, event: dict[str, Any]) -> None:
        kind, rank = event["kind"], event.get("rank", -1)
        if kind == "started":
            self.started.add(rank)
        elif kind == "lines":
            self._print(rank, event["lines"])
        elif kind == "ended":
            self.ended.add(rank)
            if event["failure"] is not None:
                self._fail(rank, event["time"], event["failure"])
        elif kind == "lost":
            for slot in self.slots:
                if slot.address == event["worker"]:
                    self.ended.add(slot.rank)
                    reason = "was lost: its Dask worker left the cluster"
                    last_lines = list(self.last_lines[slot.rank])
                    self._fail(slot.rank, stamp, {"reason": reason, "last_lines": last_lines})

    def _print(self, rank: int, lines: list[str]) -> None:
        self.last_lines[rank].extend(lines)
        if self.logs:
            self.logs[rank].writelines(f"{line}\n" for line in lines)
            self.logs[rank].flush()
        for line in lines:
            self.on_output(rank, line)

    def _fail(self, rank: int, when: float, facts: dict[str, Any]) -> None:
        if not self.stopping:
            self.failed_at = self.failed_at or time.monotonic()
            self.failures.append(_Failure(rank, when, facts))

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
            with contextlib.suppress(queue.Empty):
                self._take(*self.events.get(timeout=TICK))
        if left := sorted(self.started - self.ended):
            logger.warning("ranks %s did not confirm within %.0f s that they have ended", left, GRACE)

    def _raise_not_started(self) -> None:
        waiting = [slot for slot in self.slots if slot.rank not in self.started]
        where = ", ".join(sorted({slot.address for slot in waiting}))
        raise NotEnoughSlots(
            f"{len(waiting)} of {self.ranks} ranks did not start within {self.timeout:g} s: their workers "
            f"({where}) are busy with other tasks",
            self.ranks,
            len(self.started),
            len(waiting),
        )

    def _raise_failure(self) -> None:
        if not self.failures:
            return
        first = min(self.failures, key=lambda failure: (failure.is_consequence(), failure.time))
        slot, facts = self.slots[first.rank], first.facts
        if facts.get("missing"):
            raise HorovodMissing(MISSING.format(host=slot.host, reason=facts["reason"]))
        cause = None
        # An error of TensorFlow would load TensorFlow here: it is left as text where that is not loaded anyway.
        if facts.get("exception") and facts["package"] in sys.modules:
            with contextlib.suppress(Exception):  # its class may be unknown here
                cause = cloudpickle.loads(facts["exception"])
        raise RankFailed(
            slot.rank,
            self.ranks,
            slot.host,
            slot.address,
            facts["reason"],
            facts.get("exit_status"),
            facts.get("signal"),
            facts.get("traceback") or "",
            tuple(facts.get("last_lines", ())),
        ) from cause


def _ignore(rank: int, line: str) -> None:
    """Take a line that is only for the log."""
