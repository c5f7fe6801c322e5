"""Dask clusters whose workers are batch jobs: dask-jobqueue underneath, with jobs that remember what went wrong."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shlex
from pathlib import Path
from typing import Any

import dask
from dask_jobqueue.core import Job, JobQueueCluster
from distributed import Scheduler
from distributed.core import Status
from distributed.deploy.cluster import Cluster

from hepdask import logs
from hepdask.clusters.batch_system import BatchSystem, BatchSystemError, ask
from hepdask.clusters.job_monitor import JobMonitor
from hepdask.clusters.ports import free_port
from hepdask.clusters.settings import BatchSettings, seconds
from hepdask.clusters.tls import log_folder, make_folder, remove_certificate, security_of, write_certificate
from hepdask.clusters.worker_imports import SAFE_PATH
from hepdask.errors import ClusterError
from hepdask.monitoring.dashboard_link import READ_ONLY

_SUBMIT_TIMEOUT = 120.0


class _Job:
    """A job that keeps what the batch system said when it was rejected, instead of losing it."""

    rejection: str | None = None
    status: Status

    async def start(self) -> None:
        try:
            await super().start()  # type: ignore[misc]
        except (BatchSystemError, ValueError) as error:
            self.rejection = str(error)
            self.status = (
                Status.running
            )  # what SpecCluster wants of one it has started; the monitor knows better

    async def _submit_job(self, script: str) -> str:
        words = [*shlex.split(self.submit_command), script]  # type: ignore[attr-defined]
        return await ask(words, _SUBMIT_TIMEOUT)

    @classmethod
    async def _close_job(cls, job_id: str | None, cancel_command: str) -> None:
        if job_id:
            with contextlib.suppress(
                BatchSystemError
            ):  # the job is gone already; or it ends itself, after death_timeout
                await ask([*shlex.split(cancel_command), job_id], _SUBMIT_TIMEOUT)

    async def close(self) -> None:
        await super().close()  # type: ignore[misc]
        self.status = Status.closed


class BatchCluster(JobQueueCluster):
    """A Dask cluster of batch jobs that keeps itself at strength.

    Attributes
    ----------
    settings : BatchSettings
        What was asked for.
    job_monitor : JobMonitor
        Knows where the jobs are.
    certificate : Path or None
        What lets clients in, with `tls`.
    """

    def __init__(self, settings: BatchSettings) -> None:
        self.settings = settings
        system = settings.system()
        shared = Path(settings.shared_temp_directory or log_folder(settings.log_directory))
        self.certificate = write_certificate(shared) if settings.tls else None
        with dask.config.set(
            {**READ_ONLY, "distributed.scheduler.allowed-failures": settings.allowed_failures}
        ):
            super().__init__(
                job_cls=_job_class(system),  # type: ignore[arg-type]  # a class is what it wants
                name=f"{settings.name}-{os.getpid()}",
                scheduler_options=_scheduler_options(settings),
                security=security_of(self.certificate) if self.certificate else None,
                silence_logs=logging.INFO if logs.wants_whole_story() else logging.CRITICAL,
                **_job_options(settings, system),
            )
        self.job_monitor = JobMonitor(self, system, settings)
        self.sync(self.job_monitor.start)
        self._hold(settings.workers)

    @property
    def running_scheduler(self) -> Scheduler:
        """Dask's scheduler, which runs in this process."""
        assert isinstance(self.scheduler, Scheduler)
        return self.scheduler

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # SpecCluster forgets a job some time after its workers have gone; here the monitor decides
        Cluster._update_worker_status(self, op, msg)

    def hold(self, workers: int | None = None) -> None:
        """Keep this many workers at all times; None for as many as the settings say."""
        self._hold(max(workers or 0, self.settings.workers))

    def _hold(self, workers: int) -> None:
        async def scale() -> None:
            most = self.settings.maximum_workers
            if most:
                pace = self.settings.poll_interval
                self.adapt(minimum=workers, maximum=max(most, workers), interval=f"{pace}s", wait_count=3)
            else:
                self.scale(workers)

        self.sync(scale)

    def workers_of(self, job: str) -> set[str]:
        """Name the workers that a job starts."""
        processes = self.settings.processes
        return {job} if processes == 1 else {f"{job}-{i}" for i in range(processes)}

    async def end(self) -> None:
        """Cancel all jobs and all tasks, so that whoever waits for a task wakes up; calling it again is harmless."""
        if self._adaptive is not None:
            self._adaptive.stop()
        self.worker_spec.clear()
        await self
        scheduler = self.running_scheduler
        for name, client in list(scheduler.clients.items()):
            keys = [task.key for task in client.wants_what]
            scheduler.stimulus_cancel(
                keys, name, force=True, reason="cluster", msg="the cluster was given up"
            )

    async def _close(self) -> None:
        if monitor := getattr(self, "job_monitor", None):
            await monitor.stop()
        await super()._close()
        if self.certificate is not None:
            remove_certificate(self.certificate)


def _job_class(system: BatchSystem) -> type[Job]:
    """Make dask-jobqueue's class for the jobs of a batch system one that remembers what went wrong."""
    module, _, name = system.dask_job.partition(":")
    return type(name, (_Job, getattr(importlib.import_module(module), name)), {})


def job_script(settings: BatchSettings) -> str:
    """Give the job script of the workers, without starting anything; the scheduler's address is left open."""
    system = settings.system()
    options = {key: value for key, value in _job_options(settings, system).items() if value is not None}
    return _job_class(system)("tcp://SCHEDULER:PORT", name=settings.name, **options).job_script()


def _scheduler_options(settings: BatchSettings) -> dict[str, Any]:
    dashboard = free_port(settings.dashboard_host, settings.dashboard_port)
    options: dict[str, Any] = {"dashboard_address": f"{settings.dashboard_host}:{dashboard}"}
    if settings.host:
        options["host"] = settings.host
    if settings.port_range:
        host = settings.host or ""
        ports = range(settings.port_range[0], settings.port_range[1] + 1)
        free = next((port for port in ports if free_port(host, port)), None)
        if free is None:
            raise ClusterError(
                f"no port from {ports[0]} to {ports[-1]} is free for the scheduler: widen port_range"
            )
        options["port"] = free
    return options | settings.scheduler_options


def _job_options(settings: BatchSettings, system: BatchSystem) -> dict[str, Any]:
    """Give what dask-jobqueue takes; None where it decides itself, and nothing of the batch system's own then."""
    job_logs = log_folder(settings.log_directory)
    make_folder(job_logs)
    return {
        "cores": settings.cores,
        "memory": settings.memory,
        "processes": settings.processes,
        "job_name": settings.name,
        "python": settings.python,
        "interface": settings.interface,
        "nanny": settings.nanny,
        "death_timeout": settings.death_timeout,
        "local_directory": settings.local_directory,
        "log_directory": str(job_logs),
        "worker_extra_args": [*_worker_words(settings), *settings.worker_extra_args],
        "job_script_prologue": [*_exports(settings), *settings.job_script_prologue],
        "job_directives_skip": list(settings.job_directives_skip),
        **{key: value for key, value in system.worker_options().items() if value is not None},
    }


def _worker_words(settings: BatchSettings) -> list[str]:
    walltime = seconds(settings.walltime)
    lifetime = settings.lifetime or 0.9 * walltime
    stagger = settings.lifetime_stagger or 0.05 * walltime
    words = ["--lifetime", f"{lifetime:.0f}s", "--lifetime-stagger", f"{stagger:.0f}s"]
    words += ["--dashboard-address", "127.0.0.1:0"]  # nobody asks a worker for web pages
    if settings.gpus:
        words += ["--resources", f"GPU={settings.gpus_of_worker}"]
    if settings.port_range:
        first, last = settings.port_range
        middle = (first + 1 + last) // 2
        words += ["--nanny-port", f"{first + 1}:{middle}", "--worker-port", f"{middle + 1}:{last}"]
    return words


def _exports(settings: BatchSettings) -> list[str]:
    spill = zip(("TARGET", "SPILL", "PAUSE", "TERMINATE"), settings.memory_spill, strict=True)
    variables = {
        "MALLOC_TRIM_THRESHOLD_": "0",
        "XRD_RUNFORKHANDLER": "1",
        **SAFE_PATH,
        **{f"DASK_DISTRIBUTED__WORKER__MEMORY__{key}": str(share) for key, share in spill},
        **({"X509_USER_PROXY": proxy} if (proxy := os.environ.get("X509_USER_PROXY")) else {}),
        **settings.environment,
    }
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
