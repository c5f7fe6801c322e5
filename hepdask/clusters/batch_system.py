"""What hepdask asks of a batch system, and what is said of a job, in words that all of them share.

A batch system is one file beside this one, with its settings and a `BatchSystem`; `KINDS` in `kinds` names its
settings. Nothing else branches on the kind of a cluster.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar


class State(Enum):
    """Where a job is."""

    PENDING = "pending"
    RUNNING = "running"
    CONNECTED = "connected"
    LOST = "lost"
    FINISHED = "finished"
    REJECTED = "rejected"

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of the job."""
        return self in (State.LOST, State.FINISHED, State.REJECTED)


@dataclass(frozen=True)
class JobStatus:
    """A job as the batch system sees it.

    Attributes
    ----------
    state : State
        ``PENDING``, ``RUNNING``, ``FINISHED`` (by itself, without error) or ``LOST`` (killed, held, failed).
    reason : str
        The batch system's own word on it; may be empty.
    never : bool
        Pending, and nothing in the batch system as it is now could run it.
    """

    state: State
    reason: str = ""
    never: bool = False

    def __str__(self) -> str:
        return f"{self.state.value} ({self.reason})" if self.reason else self.state.value


class BatchSystemError(Exception):
    """The batch system does not answer, or refuses; nothing is known about the jobs."""


@dataclass(frozen=True)
class DriverJob:
    """A job of a single process that starts a cluster itself.

    Attributes
    ----------
    folder : Path
        Seen by all nodes; scripts and the like are put there.
    log : Path
        What the job writes.
    commands : sequence of str
        Lines of bash.
    """

    folder: Path
    log: Path
    commands: Sequence[str]

    def script(self, header: Sequence[str] = ()) -> str:
        """Write the job as a script of bash, with lines for the batch system at its head."""
        return "\n".join(["#!/bin/bash", *header, *self.commands]) + "\n"


class BatchSystem(ABC):
    """A batch system: how jobs are described to it, submitted, asked after, and cancelled.

    Attributes
    ----------
    dask_job : type
        The class of dask-jobqueue for its jobs, loaded by name: ``module:class``.
    commands : tuple of str
        The programs of the batch system that hepdask calls.
    """

    dask_job: ClassVar[str]
    commands: ClassVar[tuple[str, ...]]

    @abstractmethod
    def worker_options(self) -> Mapping[str, Any]:
        """Give what `dask_job` takes beyond what all batch systems have in common; None for its own default."""

    @abstractmethod
    async def query(self, jobs: Sequence[str]) -> dict[str, JobStatus]:
        """Say where jobs are; those it knows nothing of are left out.

        Raises
        ------
        BatchSystemError
            It could not be asked.
        """

    @abstractmethod
    async def submit(self, job: DriverJob) -> str:
        """Submit a driver and return its number.

        Raises
        ------
        BatchSystemError
            It is rejected, or there is no answer.
        """

    @abstractmethod
    async def cancel(self, job: str) -> None:
        """End a driver; it has time to cancel the jobs of its workers.

        Raises
        ------
        BatchSystemError
            There is no answer.
        """

    @abstractmethod
    def log_files(self, job: str) -> list[Path]:
        """Name the files that a worker's job writes to, those with errors last; they need not exist."""


async def ask(words: Sequence[str], timeout: float) -> str:
    """Run a command of a batch system and return what it prints.

    Raises
    ------
    BatchSystemError
        It is missing, fails, or takes longer than `timeout` seconds.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise BatchSystemError(
            f"{words[0]}: {error.strerror}; is this a machine that submits to the farm?"
        ) from None
    try:
        out, err = await asyncio.wait_for(process.communicate(), timeout)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise BatchSystemError(f"{words[0]} did not answer within {timeout:g} s") from None
    if process.returncode != 0:
        raise BatchSystemError((err or out).decode(errors="replace").strip() or f"{words[0]} failed")
    return out.decode(errors="replace")
