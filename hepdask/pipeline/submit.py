"""`submit`: the whole run as a batch job of its own, with its driver; then its status, its log, and its end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepdask.clusters.batch_system import JobStatus
from hepdask.clusters.driver_job import cancel_driver, driver_folder, driver_status, submit_driver
from hepdask.clusters.kinds import BATCH_KINDS, load_cluster
from hepdask.clusters.settings import BatchSettings
from hepdask.config import Config
from hepdask.errors import ClusterError, ConfigError
from hepdask.files import atomic
from hepdask.logs import show
from hepdask.pipeline.required_extras import require_for_run

logger = logging.getLogger(__name__)

_TICK = 1.0


@dataclass(frozen=True)
class Submitted:
    """A run that was submitted.

    Attributes
    ----------
    number : str
        The batch system's name for the job.
    kind : str
        Which batch system.
    log : Path
        What the driver says.
    """

    number: str
    kind: str
    log: Path


def submit(config: Config) -> Submitted:
    """Submit `run` as a batch job: driver and scheduler in it, the workers as further jobs.

    Parameters
    ----------
    config : Config
        All of it; `config.cluster` is a Slurm or HTCondor site, from whose nodes jobs can be submitted. The job
        runs in the present working directory.

    Returns
    -------
    Submitted
        A run that was submitted before goes on where it stopped.

    Raises
    ------
    ClusterError
        The batch system rejects the job, or the last one is not over.
    ConfigError
        The cluster is not made of batch jobs.
    MissingDependency
        Something that the run needs is not installed.
    """
    settings = _site(config)
    if (last := _read(config)) and not (seen := driver_status(settings, last.number)).state.is_over:
        raise ClusterError(
            f"job {last.number} of {config.output} is still {seen.state.value}: look at it with hepdask status, end "
            "it with hepdask cancel"
        )
    if settings.python is None:  # else the driver has another environment than this one
        require_for_run(config)
    folder = driver_folder(config.folder.absolute() / "submit")
    document, log = folder / "config.yaml", folder / "driver.log"
    atomic.write_bytes(document, config.to_yaml().encode())
    number = submit_driver(settings, ["run", str(document)], folder, log)
    atomic.write_json(folder / "job.json", {"number": number, "kind": settings.kind, "log": str(log)})
    return Submitted(number, settings.kind, log)


def status(config: Config) -> tuple[Submitted, JobStatus]:
    """Ask the batch system where the submitted run is.

    Raises
    ------
    ClusterError
        Nothing was submitted, or the batch system does not answer.
    """
    job = _submitted(config)
    return job, driver_status(_site(config), job.number)


def logs(config: Config, follow: bool = False) -> Iterator[str]:
    """Give what the driver said, piece by piece; with `follow` until its job is over.

    As long as it has not begun, a line on standard error says where its job is, and why.
    """
    show()
    job = _submitted(config)
    settings = _site(config)
    position, asked = 0, -math.inf
    waits: JobStatus | None = None
    over = not follow
    if over and not job.log.exists():
        logger.info(f"job {job.number}: {driver_status(settings, job.number)}; it has written nothing yet")
    while True:
        if job.log.exists():
            with job.log.open(errors="replace") as log:
                log.seek(position)
                if text := log.read():
                    yield text
                position = log.tell()
        if over:
            return
        if time.monotonic() - asked > settings.poll_interval:
            asked = time.monotonic()
            seen = driver_status(settings, job.number)
            over = seen.state.is_over
            if not job.log.exists() and seen != waits:
                waits = seen
                logger.info(f"job {job.number}: {seen}")
        else:
            time.sleep(_TICK)


def cancel(config: Config) -> Submitted:
    """End the submitted run; its driver cancels the jobs of its workers before it goes.

    Raises
    ------
    ClusterError
        It is over already, nothing was submitted, or the batch system does not answer.
    """
    job = _submitted(config)
    settings = _site(config)
    if (seen := driver_status(settings, job.number)).state.is_over:
        raise ClusterError(f"job {job.number} of {config.output} is over already: {seen}")
    cancel_driver(settings, job.number)
    return job


def _site(config: Config) -> BatchSettings:
    settings = load_cluster(config.cluster)
    if isinstance(settings, BatchSettings):
        return settings
    raise ConfigError(
        f"cluster: kind {settings.kind} has no batch system to submit to; use --cluster with one of these kinds, or a "
        f"file of one: {', '.join(BATCH_KINDS)}"
    )


def _read(config: Config) -> Submitted | None:
    found: dict[str, Any] | None = atomic.read_json(config.folder / "submit" / "job.json")
    return Submitted(found["number"], found["kind"], Path(found["log"])) if found else None


def _submitted(config: Config) -> Submitted:
    job = _read(config)
    if job is None:
        raise ClusterError(f"{config.output}: nothing was submitted; hepdask submit CONFIG does")
    return job
