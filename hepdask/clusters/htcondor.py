"""HTCondor: condor_submit, condor_q, condor_history, condor_status and condor_rm."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hepdask.clusters.batch_system import BatchSystem, BatchSystemError, DriverJob, JobStatus, State, ask
from hepdask.clusters.settings import BatchSettings, megabytes, seconds
from hepdask.clusters.tls import log_folder
from hepdask.files import atomic

_IDLE, _RUNNING, _REMOVED, _COMPLETED, _HELD, _TRANSFERRING, _SUSPENDED = range(1, 8)
_ATTRIBUTES = (
    "ClusterId,ProcId,JobStatus,HoldReason,RemoveReason,LastRejMatchTime,LastRejMatchReason,ExitCode,ExitBySignal,"
    "ExitSignal,RemoteHost"
)
_ANALYSIS_KEPT = 300.0  # seconds for which a job that some slot could run is not analysed again
_UNMATCHED = re.compile(r"^\[\d+\]\s+0\s+(.+)$", re.MULTILINE)  # a condition that no slot meets
_OF_FREE_SLOTS = re.compile(r"Request(Cpus|Memory|Disk|GPUs)")  # ... but perhaps an emptier slot would


class HTCondor(BatchSettings):
    """Workers in HTCondor jobs."""

    kind: Literal["htcondor"] = Field("htcondor", description="workers in HTCondor jobs")
    disk: str = Field("2GB", description="disk of a job")
    job_extra_directives: dict[str, str] = Field(
        default_factory=dict, description="further lines of the submit file"
    )
    submit_command_extra: tuple[str, ...] = Field((), description="further arguments for condor_submit")
    cancel_command_extra: tuple[str, ...] = Field((), description="further arguments for condor_rm")

    def system(self) -> BatchSystem:
        """Return HTCondor."""
        return HTCondorSystem(self)


class HTCondorSystem(BatchSystem):
    """HTCondor by its commands; the queue knows the living, the history those that have left it."""

    dask_job = "dask_jobqueue.htcondor:HTCondorJob"
    commands = ("condor_submit", "condor_q", "condor_history", "condor_rm", "condor_status")

    def __init__(self, settings: HTCondor) -> None:
        self.settings = settings
        self._analysed: dict[str, float] = {}

    def worker_options(self) -> Mapping[str, Any]:
        """Give what `dask_job` takes."""
        return {
            "disk": self.settings.disk,
            "job_extra_directives": {
                **_time_limit(self.settings.walltime),
                **({"request_gpus": self.settings.gpus} if self.settings.gpus else {}),
                **self.settings.job_extra_directives,
            },
            "submit_command_extra": list(self.settings.submit_command_extra),
            "cancel_command_extra": list(self.settings.cancel_command_extra),
        }

    async def query(self, jobs: Sequence[str]) -> dict[str, JobStatus]:
        """Say where jobs are: the queue knows the living, the history those that have left it."""
        if not jobs:
            return {}
        rows = await self._rows("condor_q", jobs)
        seen = {job: _status(row) for job, row in rows.items()}
        if missing := [job for job in jobs if job not in seen]:
            left = await self._rows("condor_history", missing, "-limit", str(len(missing)))
            seen |= {job: _status(row) for job, row in left.items()}
        for job, row in rows.items():
            if row["JobStatus"] == _IDLE and "LastRejMatchTime" in row:
                if reason := await self._why_never(job):
                    seen[job] = JobStatus(State.PENDING, reason, never=True)
                break  # all jobs ask for the same, so one speaks for all
        return seen

    async def _rows(self, command: str, jobs: Sequence[str], *words: str) -> dict[str, dict[str, Any]]:
        query = [command, *jobs, "-json", "-attributes", _ATTRIBUTES, *words]
        out = await ask(query, self.settings.query_timeout)
        try:
            rows = json.loads(out or "[]")
        except ValueError:
            raise BatchSystemError(f"{command} answered: {out.strip()[:500]}") from None
        return {f"{row['ClusterId']}.{row['ProcId']}": row for row in rows}

    async def _why_never(self, job: str) -> str | None:
        """Say why no slot of the pool could run a job even if it were empty; None where one could."""
        if time.monotonic() - self._analysed.get(job, -_ANALYSIS_KEPT) < _ANALYSIS_KEPT:
            return None
        timeout = self.settings.query_timeout
        whole = ["condor_status", "-constraint", 'SlotType =!= "Dynamic"', "-af"]
        slots = _numbers(await ask([*whole, "TotalSlotCpus", "TotalSlotMemory", "TotalSlotDisk"], timeout))
        asked = _numbers(
            await ask(["condor_q", job, "-af", "RequestCpus", "RequestMemory", "RequestDisk"], timeout)
        )
        if not slots or not asked:
            return None
        largest = [max(column) for column in zip(*slots, strict=True)]
        names = ("cores", "MB of memory", "kB of disk")
        for wanted, most, name in zip(asked[0], largest, names, strict=True):
            if wanted > most:
                return f"it requests {wanted:.0f} {name}, and the largest slot of the pool has {most:.0f}"
        analysis = await ask(["condor_q", "-better-analyze", job], timeout)
        unmet = [text for text in _UNMATCHED.findall(analysis) if not _OF_FREE_SLOTS.search(text)]
        if unmet:
            return f"no slot of the pool meets its requirement {unmet[0].strip()}"
        self._analysed[job] = time.monotonic()
        return None

    async def submit(self, job: DriverJob) -> str:
        """Submit a driver with condor_submit."""
        driver = self.settings.driver
        script, description = job.folder / "driver.sh", job.folder / "driver.sub"
        lines = [
            "executable = /bin/bash",
            f"arguments = {script}",
            "transfer_executable = False",
            f"batch_name = {self.settings.name}-driver",
            f"output = {job.log}",
            f"error = {job.log}",
            f"log = {job.folder / 'driver.events'}",
            "stream_output = True",
            "stream_error = True",
            f"request_cpus = {driver.cores}",
            f"request_memory = {megabytes(driver.memory)}",
            f"request_disk = {self.settings.disk}",
            *(
                f"{key} = {value}"
                for key, value in _time_limit(driver.walltime or self.settings.walltime).items()
            ),
            *driver.job_extra_directives,
            "queue",
        ]
        atomic.write_bytes(script, job.script().encode())
        atomic.write_bytes(description, ("\n".join(lines) + "\n").encode())
        words = ["condor_submit", *self.settings.submit_command_extra, str(description)]
        answer = await ask(words, self.settings.query_timeout)
        match = re.search(r"submitted to cluster (\d+)", answer)
        if match is None:
            raise BatchSystemError(f"condor_submit did not name the job: {answer.strip()}")
        return f"{match[1]}.0"

    async def cancel(self, job: str) -> None:
        """End a driver: a signal to its script, and time to answer it."""
        await ask(["condor_rm", *self.settings.cancel_command_extra, job], self.settings.query_timeout)

    def log_files(self, job: str) -> list[Path]:
        """Name the files that a worker's job writes to."""
        folder = log_folder(self.settings.log_directory)
        return [folder / f"worker-{job}.{kind}" for kind in ("out", "err")]


def _numbers(table: str) -> list[list[float]]:
    rows = [line.split() for line in table.splitlines()]
    return [[float(cell) for cell in row] for row in rows if row and "undefined" not in row]


def _status(row: dict[str, Any]) -> JobStatus:
    status = row["JobStatus"]
    if status == _IDLE:
        return JobStatus(State.PENDING, row.get("LastRejMatchReason", "").strip())
    if status in (_RUNNING, _TRANSFERRING, _SUSPENDED):
        return JobStatus(State.RUNNING)
    if status == _HELD:
        return JobStatus(State.LOST, f"held: {row.get('HoldReason', '')}")
    if status == _REMOVED:
        return JobStatus(State.LOST, f"removed {row.get('RemoveReason', '')}".strip())
    if row.get("ExitBySignal"):
        return JobStatus(State.LOST, f"ended by signal {row.get('ExitSignal')}")
    code = row.get("ExitCode", 0)
    return JobStatus(State.LOST, f"exit code {code}") if code else JobStatus(State.FINISHED)


def _time_limit(walltime: str) -> dict[str, Any]:
    """Give the lines of a submit file that end a job after its wall time."""
    limit = seconds(walltime)
    return {
        "periodic_remove": f"JobStatus == 2 && time() - EnteredCurrentStatus > {limit}",
        "MY.MaxRuntime": limit,
    }
