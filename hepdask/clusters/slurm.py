"""Slurm: sbatch, squeue, sacct and scancel."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hepdask.clusters.batch_system import BatchSystem, BatchSystemError, DriverJob, JobStatus, State, ask
from hepdask.clusters.settings import BatchSettings, megabytes
from hepdask.clusters.tls import log_folder
from hepdask.config.base import Count
from hepdask.files import atomic

_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "SPECIAL_EXIT"}
# reasons that waiting does not change; those of single limits end in PerJob or PerJobLimit
_NEVER = {
    "BadConstraints", "PartitionNodeLimit", "PartitionTimeLimit", "PartitionInactive", "InvalidAccount", "InvalidQOS",
    "AccountNotAllowed", "QOSNotAllowed", "DependencyNeverSatisfied",
}  # fmt: skip


class Slurm(BatchSettings):
    """Workers in Slurm jobs."""

    kind: Literal["slurm"] = Field("slurm", description="workers in Slurm jobs")
    queue: str | None = Field(None, description="partition")
    account: str | None = Field(None, description="account to charge")
    job_cpu: Count | None = Field(None, description="cores to request, if not `cores`")
    job_mem: str | None = Field(None, description="memory to request, if not `memory`")
    job_extra_directives: tuple[str, ...] = Field((), description="further #SBATCH options")

    def system(self) -> BatchSystem:
        """Return Slurm."""
        return SlurmSystem(self)


class SlurmSystem(BatchSystem):
    """Slurm by its commands; squeue knows the living and the lately ended, sacct those before, if it is there."""

    dask_job = "dask_jobqueue.slurm:SLURMJob"
    commands = ("sbatch", "squeue", "scancel")

    def __init__(self, settings: Slurm) -> None:
        self.settings = settings

    def worker_options(self) -> Mapping[str, Any]:
        """Give what `dask_job` takes."""
        own = self.settings.job_extra_directives
        asked = any(words in line for line in own for words in ("--gres", "--gpus"))  # in the site's own way
        gpus = [f"--gres=gpu:{self.settings.gpus}"] if self.settings.gpus and not asked else []
        return {
            "queue": self.settings.queue,
            "account": self.settings.account,
            "job_cpu": self.settings.job_cpu,
            "job_mem": self.settings.job_mem,
            "walltime": self.settings.walltime,
            "job_extra_directives": [*gpus, *own],
        }

    async def query(self, jobs: Sequence[str]) -> dict[str, JobStatus]:
        """Say where jobs are: squeue knows the living and the lately ended, sacct those before, if it is there."""
        timeout = self.settings.query_timeout
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

    async def submit(self, job: DriverJob) -> str:
        """Submit a driver with sbatch."""
        driver = self.settings.driver
        options = [
            f"--job-name={self.settings.name}-driver",
            f"--output={job.log}",
            "--open-mode=append",
            "--ntasks=1",
            f"--cpus-per-task={driver.cores}",
            f"--mem={megabytes(driver.memory)}M",
            f"--time={driver.walltime or self.settings.walltime}",
            *([f"--partition={self.settings.queue}"] if self.settings.queue else []),
            *([f"--account={self.settings.account}"] if self.settings.account else []),
            *driver.job_extra_directives,
        ]
        script = job.folder / "driver.sh"
        atomic.write_bytes(script, job.script([f"#SBATCH {option}" for option in options]).encode())
        answer = await ask(["sbatch", str(script)], self.settings.query_timeout)
        match = re.search(r"Submitted batch job (\d+)", answer)
        if match is None:
            raise BatchSystemError(f"sbatch did not name the job: {answer.strip()}")
        return match[1]

    async def cancel(self, job: str) -> None:
        """End a driver: a signal to its script and to all that this has started."""
        await ask(["scancel", "--full", job], self.settings.query_timeout)

    def log_files(self, job: str) -> list[Path]:
        """Name the files that a worker's job writes to."""
        folder = log_folder(self.settings.log_directory)
        return [folder / f"{self.settings.name}-{job}.{kind}" for kind in ("out", "err")]


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
