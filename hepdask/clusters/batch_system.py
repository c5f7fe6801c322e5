"""What a batch system says of a job, in words that Slurm and HTCondor share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


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


class BatchSystemError(Exception):
    """The batch system does not answer; nothing is known about the jobs."""


class BatchSystem(Protocol):
    """A batch system that can be asked for the truth."""

    async def query(self, jobs: Sequence[str]) -> dict[str, JobStatus]:
        """Say where jobs are; those it knows nothing of are left out.

        Raises
        ------
        BatchSystemError
            It could not be asked.
        """

    def logs(self, job: str) -> list[str]:
        """Name the files a job writes to, those with errors last; they need not exist."""


async def ask(words: Sequence[str], timeout: float) -> str:
    """Run a command of a batch system and give what it prints.

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
