"""The monitor of a cluster of batch jobs: knows where each job is, and replaces those that died."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from hepdask.clusters.batch_system import BatchSystem, BatchSystemError, JobStatus, State
from hepdask.clusters.settings import BatchSettings
from hepdask.errors import ClusterError

logger = logging.getLogger(__name__)

_LOG_LINES = 30
_UNNEEDED = "no longer needed"


@dataclass
class Job:
    """What is known about one job.

    Attributes
    ----------
    name : str
        Dask's name for it; its workers are called so, with a number behind where it has several.
    number : str or None
        The batch system's name for it; None where it was rejected.
    state : State
        Where it is.
    reason : str
        The batch system's word on it.
    since : float
        When it came into this state [s, `time.monotonic`].
    arrived : bool
        Whether a worker of it has ever connected.
    """

    name: str
    number: str | None = None
    state: State = State.PENDING
    reason: str = ""
    since: float = field(default_factory=time.monotonic)
    arrived: bool = False


@dataclass(frozen=True)
class Change:
    """A job came into another state."""

    time: float
    name: str
    number: str | None
    state: State
    reason: str


class MonitoredCluster(Protocol):
    """What the monitor needs to know of its cluster, and to do to it: `BatchCluster` is one."""

    workers: dict[str, Any]
    worker_spec: dict[str, Any]

    @property
    def running_scheduler(self) -> Scheduler:
        """Dask's scheduler."""

    def new_worker_spec(self) -> dict[str, Any]:
        """Describe one more job."""

    def workers_of(self, job: str) -> set[str]:
        """Name the workers that a job starts."""

    async def end(self) -> None:
        """Cancel all jobs and all tasks."""

    def __await__(self) -> Generator[Any, None, Any]:
        """Start and end jobs until they are those of `worker_spec`."""


class JobMonitor:
    """Asks the batch system where the jobs are, and keeps the cluster at strength.

    Jobs that are over while they are still wanted are replaced, under a new name. When `max_failures` of them
    in a row ended before any worker had connected, no more are started; and when then none is left, or when
    the jobs can never start, the cluster is given up.

    Attributes
    ----------
    jobs : dict of str to Job
        The jobs of the cluster, by Dask's name.
    history : list of Change
        What happened, in order; the last thousand.
    error : ClusterError or None
        Why the cluster was given up.
    """

    def __init__(self, cluster: MonitoredCluster, system: BatchSystem, settings: BatchSettings) -> None:
        self.jobs: dict[str, Job] = {}
        self.history: deque[Change] = deque(maxlen=1000)
        self.error: ClusterError | None = None
        self._cluster = cluster
        self._system = system
        self._settings = settings
        self._arrivals = _Arrivals()
        self._failures = 0
        self._last_failed: Job | None = None
        self._silent_since: float | None = None
        self._hopeless = 0  # looks in a row at which a job could never start
        self._said = ""
        self._watch: asyncio.Task[None] | None = None
        self._acting = asyncio.Lock()  # held while jobs are submitted and cancelled: nothing cuts that short

    async def start(self) -> None:
        """Begin to watch; runs on the cluster's event loop."""
        self._cluster.running_scheduler.add_plugin(self._arrivals, name="hepdask-arrivals")
        self._watch = asyncio.create_task(self._look_forever())

    async def stop(self) -> None:
        """Stop watching; jobs that are just being submitted are first made known to the cluster, which cancels them."""
        if self._watch is not None:
            async with self._acting:
                self._watch.cancel()

    def verdict(self) -> ClusterError | None:
        """Say why no more workers will come; None where they may."""
        if self.error is None and self._has_stopped and self._last_failed is not None:
            return ClusterError(self._why_given_up(self._last_failed))
        return self.error

    @property
    def _has_stopped(self) -> bool:
        return self._failures >= self._settings.max_failures

    def summary(self) -> str:
        """Say in a line how many jobs are where, and why they wait."""
        living = [job for job in list(self.jobs.values()) if job.name in self._cluster.workers]
        counts = Counter(
            (job.state.value, job.reason if job.state is State.PENDING else "") for job in living
        )
        return ", ".join(
            f"{count} {state}{f' ({why})' if why else ''}" for (state, why), count in counts.items()
        )

    async def _look_forever(self) -> None:
        while self.error is None:
            await asyncio.sleep(self._settings.poll_interval)
            try:
                await self.query()
            except Exception as error:  # jobs that nobody watches are worse than an end that is explained
                self.error = ClusterError(f"watching the jobs failed: {type(error).__name__}: {error}")
        while True:  # tasks may still come in, from who has not noticed yet
            async with self._acting:
                await self._cluster.end()
            await asyncio.sleep(self._settings.poll_interval)

    async def query(self) -> None:
        """Look at all jobs once, and replace those that are over."""
        wanted = {
            name: job for name, job in self._cluster.workers.items() if name in self._cluster.worker_spec
        }
        numbers = [job.job_id for job in wanted.values() if job.job_id]
        try:
            seen = await self._system.query(numbers)
        except BatchSystemError as error:
            self._is_silent(error)
            return
        if self._silent_since is not None:
            logger.info(
                f"the batch system answers again, after {time.monotonic() - self._silent_since:.0f} s"
            )
            self._silent_since = None
        over = []
        for name, dask_job in wanted.items():
            job = self.jobs.setdefault(name, Job(name))
            job.number = dask_job.job_id
            self._judge(job, dask_job.rejection, seen.get(job.number or ""))
            if job.state.is_over:
                over.append(job)
        self._count(over)
        unfit = [job for job in self.jobs.values() if job.number in seen and seen[job.number].never]
        self._hopeless = self._hopeless + 1 if unfit else 0
        async with self._acting:
            await self._replace(over)
        self._forget()
        if (summary := self.summary()) != self._said:
            self._said = summary
            logger.info(f"jobs: {summary}")
        await self._give_up_if_hopeless(unfit)

    def _is_silent(self, error: BatchSystemError) -> None:
        if self._silent_since is None:
            self._silent_since = time.monotonic()
            logger.warning(
                f"the batch system does not answer: {error}; work continues with the connected workers"
            )

    def _judge(self, job: Job, rejection: str | None, sight: JobStatus | None) -> None:
        """Bring what is known about a job up to date."""
        now = time.monotonic()
        connected = self._arrivals.has(self._cluster, job.name)
        if self._arrivals.ever(self._cluster, job.name) and not job.arrived:
            job.arrived = True
            self._failures = 0
        if rejection is not None:
            self._note(job, State.REJECTED, rejection)
        elif sight is None:
            self._note(job, State.LOST, "the batch system does not know it")
        elif sight.state is not State.RUNNING:
            self._note(job, sight.state, sight.reason)
        elif connected:
            self._note(job, State.CONNECTED, "")
        elif job.state is not State.RUNNING:
            self._note(job, State.RUNNING, "its worker is gone" if job.state is State.CONNECTED else "")
        elif job.reason and now - job.since > self._settings.lost_after:
            self._note(job, State.LOST, f"its worker has been gone for {self._settings.lost_after:g} s")
        elif now - job.since > self._settings.connect_timeout:
            self._note(job, State.LOST, f"no worker connected in {self._settings.connect_timeout:g} s")

    def _note(self, job: Job, state: State, reason: str) -> None:
        if state is not job.state:
            job.since = time.monotonic()
            self.history.append(Change(job.since, job.name, job.number, state, reason))
            if state.is_over and reason != _UNNEEDED:
                logger.info(f"job {job.number or job.name}: {state.value}{f': {reason}' if reason else ''}")
        job.state, job.reason = state, reason

    def _count(self, over: list[Job]) -> None:
        """Count failures in a row; those that were rejected together count once."""
        failed = [job for job in over if not job.arrived]
        rejected = [job for job in failed if job.state is State.REJECTED]
        self._failures += len(failed) - len(rejected) + bool(rejected)
        if failed:
            self._last_failed = failed[-1]

    async def _replace(self, over: list[Job]) -> None:
        """Start a new job for each that is over, under a name that no worker of the old one can have."""
        cluster = self._cluster
        for job in over:
            dask_job = cluster.workers.pop(job.name, None)
            if not self._has_stopped and job.name in cluster.worker_spec:
                cluster.worker_spec.update(cluster.new_worker_spec())
                del cluster.worker_spec[job.name]
            if dask_job is not None:
                await dask_job.close()  # cancels whatever is left of it
        if not self._has_stopped and set(cluster.worker_spec) != set(cluster.workers):
            await cluster  # starts what is missing

    def _forget(self) -> None:
        """Keep no jobs but those that the cluster has; those that Dask closed itself are finished."""
        for name in set(self.jobs) - set(self._cluster.workers):
            job = self.jobs.pop(name)
            if not job.state.is_over:
                self._note(job, State.FINISHED, _UNNEEDED)

    async def _give_up_if_hopeless(self, unfit: list[Job]) -> None:
        if any(job.state is State.CONNECTED for job in self.jobs.values()):
            return
        if self._has_stopped and self._last_failed is not None:
            self.error = ClusterError(self._why_given_up(self._last_failed))
        elif self._hopeless > 1:
            self.error = ClusterError(
                f"job {unfit[0].number} can never start: {unfit[0].reason}; request less in the cluster's settings, "
                "or for what the farm has"
            )

    def _why_given_up(self, job: Job) -> str:
        if job.state is State.REJECTED:
            return f"the batch system rejected the job, {self._failures} times in a row: {job.reason}"
        return (
            f"{self._failures} jobs in a row ended before a worker connected; the last, {job.number}, was "
            f"{job.state.value}{f' ({job.reason})' if job.reason else ''}. The end of its log:\n{self.log_of(job)}"
        )

    def log_of(self, job: Job) -> str:
        """Give the last lines a job wrote."""
        tails = []
        for name in self._system.log_files(job.number or ""):
            with contextlib.suppress(OSError):
                lines = name.read_text(errors="replace").splitlines()[-_LOG_LINES:]
                if lines:
                    tails.append("\n".join(f"  {line}" for line in [f"{name}:", *lines]))
        return "\n".join(tails) or "  (it wrote none)"


class _Arrivals(SchedulerPlugin):
    """Remembers which workers ever connected, also those that left between two looks."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def add_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Note a worker's name."""
        self._names.add(str(scheduler.workers[worker].name))

    def ever(self, cluster: MonitoredCluster, job: str) -> bool:
        """Tell whether a worker of a job has ever connected."""
        return not self._names.isdisjoint(cluster.workers_of(job))

    @staticmethod
    def has(cluster: MonitoredCluster, job: str) -> bool:
        """Tell whether a worker of a job is connected now."""
        names = cluster.workers_of(job)
        return any(str(worker.name) in names for worker in cluster.running_scheduler.workers.values())
