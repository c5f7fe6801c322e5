"""Slurm: what squeue and sacct say of jobs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from hepdask.clusters.security import log_folder
from hepdask.clusters.settings import Slurm
from hepdask.clusters.truth import NoAnswer, Sighting, State, ask

_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "SPECIAL_EXIT"}
# reasons that no amount of waiting mends; those of single limits end in PerJob or PerJobLimit
_NEVER = {
    "BadConstraints", "PartitionNodeLimit", "PartitionTimeLimit", "PartitionInactive", "InvalidAccount", "InvalidQOS",
    "AccountNotAllowed", "QOSNotAllowed", "DependencyNeverSatisfied",
}  # fmt: skip


class SlurmTruth:
    """Asks Slurm for the truth about jobs."""

    def __init__(self, settings: Slurm) -> None:
        self._settings = settings

    async def look(self, jobs: Sequence[str]) -> dict[str, Sighting]:
        """Say where jobs are: squeue knows the living and the lately ended, sacct those before, if it is there."""
        timeout = self._settings.query_timeout
        words = ["squeue", f"--user={os.getuid()}", "--states=all", "--noheader", "--format=%A|%T|%r"]
        wanted = set(jobs)
        rows = [line.split("|", 2) for line in (await ask(words, timeout)).splitlines()]
        seen = {job: _sighting(state, reason) for job, state, reason in rows if job in wanted}
        if missing := sorted(wanted - set(seen)):
            words = ["sacct", "-X", "-n", "-P", "-o", "JobIDRaw,State,ExitCode", "-j", ",".join(missing)]
            try:
                rows = [line.split("|", 2) for line in (await ask(words, timeout)).splitlines()]
            except NoAnswer:  # many sites keep no accounts
                rows = []
            seen |= {job: _sighting(state.split()[0], f"exit code {code}") for job, state, code in rows}
        return seen

    def logs(self, job: str) -> list[str]:
        """Name the files a job writes to."""
        folder = log_folder(self._settings.log_directory)
        return [str(folder / f"{self._settings.name}-{job}.{kind}") for kind in ("out", "err")]


def _sighting(state: str, reason: str) -> Sighting:
    reason = "" if reason == "None" else reason
    if state in _PENDING:
        if "held" in reason.lower() or reason == "JobHoldMaxRequeue":
            return Sighting(State.LOST, f"held: {reason}")
        never = reason in _NEVER or reason.endswith(("PerJob", "PerJobLimit"))
        return Sighting(State.PENDING, reason, never)
    if state in _RUNNING:
        return Sighting(State.RUNNING, reason)
    if state == "COMPLETED":
        return Sighting(State.FINISHED, reason)
    return Sighting(State.LOST, f"{state}: {reason}" if reason else state)


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
