"""A driver as a batch job of its own: submitted, asked after, cancelled."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hepdask.clusters.batch_system import BatchSystemError, DriverJob, JobStatus, State
from hepdask.clusters.settings import BatchSettings
from hepdask.clusters.tls import make_folder
from hepdask.clusters.worker_imports import SAFE_PATH
from hepdask.errors import ClusterError

T = TypeVar("T")

# what the driver needs from here; the rest of the environment may hold secrets, and stays
_PASSED = ("PATH", "HOME", "PYTHONPATH", "SLURM_CONF", "CONDOR_CONFIG", "X509_USER_PROXY")


def driver_folder(folder: Path) -> Path:
    """Make a folder for a driver that nobody else can enter: the batch system opens its log as it pleases."""
    make_folder(folder)
    folder.chmod(0o700)
    return folder


def submit_driver(settings: BatchSettings, words: Sequence[str], folder: Path, log: Path) -> str:
    """Submit ``python -m hepdask`` with some words, to run in the present working directory.

    Returns
    -------
    str
        The batch system's number for it.

    Raises
    ------
    ClusterError
        The batch system rejects it.
    """
    variables = {name: os.environ[name] for name in _PASSED if name in os.environ}
    variables |= SAFE_PATH | settings.environment
    command = [settings.python or sys.executable, "-m", "hepdask", *words]
    commands = [
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        *settings.job_script_prologue,
        f"cd {shlex.quote(os.getcwd())}",
        f"exec {shlex.join(command)}",
    ]
    job = DriverJob(folder, log, commands)
    return _answer(settings.system().submit(job), "the batch system rejected the job")


def driver_status(settings: BatchSettings, number: str) -> JobStatus:
    """Ask where a driver is.

    Raises
    ------
    ClusterError
        The batch system does not answer.
    """
    seen = _answer(settings.system().query([number]), "the batch system does not answer")
    return seen.get(number, JobStatus(State.LOST, "the batch system no longer knows it"))


def cancel_driver(settings: BatchSettings, number: str) -> None:
    """End a driver, which cancels the jobs of its workers before it goes.

    Raises
    ------
    ClusterError
        The batch system does not answer.
    """
    _answer(settings.system().cancel(number), f"job {number} could not be cancelled")


def _answer(asked: Coroutine[Any, Any, T], failed: str) -> T:
    try:
        return asyncio.run(asked)
    except BatchSystemError as error:
        raise ClusterError(f"{failed}: {error}") from None
