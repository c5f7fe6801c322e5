"""Slurm: what squeue and sacct say of jobs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from hepdask.clusters.batch_system import BatchSystemError, JobStatus, State, ask
from hepdask.clusters.settings import Slurm
from hepdask.clusters.tls import log_folder

_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "SPECIAL_EXIT"}
# reasons that no amount of waiting mends; those of single limits end in PerJob or PerJobLimit
_NEVER = {
    "BadConstraints", "PartitionNodeLimit", "PartitionTimeLimit", "PartitionInactive", "InvalidAccount", "InvalidQOS",
    "AccountNotAllowed", "QOSNotAllowed", "DependencyNeverSatisfied",
}  # fmt: skip


class SlurmSystem:
    """Asks Slurm for the truth about jobs."""

    def __init__(self, settings: Slurm) -> None:
        self._settings = settings

    async def query(self, jobs: Sequence[str]) -> dict[str, JobStatus]:
        """Say where jobs are: squeue knows the living and the lately ended, sacct those before, if it is there."""
        timeout = self._settings.query_timeout
        words = ["squeue", f"--user={os.getuid()}", "--states=all", "--noheader", "--format=%A|%T|%r"]
        wanted = set(jobs)
        rows = [line.split("|", 2) for line in (await ask(words, timeout)).splitlines()]
        seen = {job: _status(state, reason) for job, state, reason in rows if job in wanted}
        if missing := sorted(wanted - set(seen)):
            words = ["sacct", "-X", "-n", "-P", "-o", "JobIDRaw,State,ExitCode", "-j", ",".join(missing)]
            try:
                rows = [line.split("|", 2) for line in (await ask(words, timeout)).splitlines()]
            except BatchSystemError:  # many sites keep no accounts
                rows = []
            seen |= {job: _status(state.split()[0], f"exit code {code}") for job, state, code in rows}
        return seen

    def logs(self, job: str) -> list[str]:
        """Name the files a job writes to."""
        folder = log_folder(self._settings.log_directory)
        return [str(folder / f"{self._settings.name}-{job}.{kind}") for kind in ("out", "err")]


def _status(state: str, reason: str) -> JobStatus:
    reason = "" if reason == "None" else reason
    if state in _PENDING:
        if "held" in reason.lower() or reason == "JobHoldMaxRequeue":
            return JobStatus(State.LOST, f"held: {reason}")
        never = reason in _NEVER or reason.endswith(("PerJob", "PerJobLimit"))
        return JobStatus(State.PENDING, reason, never)
    if state in _RUNNING:
        return JobStatus(State.RUNNING, reason)
    if state == "COMPLETED":
        return JobStatus(State.FINISHED, reason)
    return JobStatus(State.LOST, f"{state}: {reason}" if reason else state)


def job_options(settings: Slurm) -> dict[str, Any]:
    """Give what dask-jobqueue needs to know for Slurm alone."""
    own = settings.job_extra_directives
    asked = any(words in line for line in own for words in ("--gres", "--gpus"))  # in the site's own way
    gpus = [f"--gres=gpu:{settings.gpus}"] if settings.gpus and not asked else []
    return {
        "queue": settings.queue,
        "account": settings.account,
        "job_cpu": settings.job_cpu,
        "job_mem": settings.job_mem,
        "walltime": settings.walltime,
        "job_extra_directives": [*gpus, *own],
    }
