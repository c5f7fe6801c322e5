"""`submit`: the whole run as a batch job of its own, with its driver; then its status, its log, and its end."""

from __future__ import annotations

import asyncio
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepdask.clusters.batch_system import BatchSystemError, JobStatus, State, ask
from hepdask.clusters.htcondor import HTCondorSystem, time_limit
from hepdask.clusters.settings import HTCondor, Slurm, load_cluster
from hepdask.clusters.slurm import SlurmSystem
from hepdask.clusters.tls import make_folder
from hepdask.clusters.worker_imports import SAFE_PATH
from hepdask.config import Config
from hepdask.errors import ClusterError, ConfigError
from hepdask.files import atomic
from hepdask.progress import say

# what the driver needs from here; the rest of the environment may hold secrets, and stays
_PASSED = ("PATH", "HOME", "PYTHONPATH", "SLURM_CONF", "CONDOR_CONFIG", "X509_USER_PROXY")
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
    """
    settings = _site(config)
    if (last := _read(config)) and not (seen := _look(settings, last.number)).state.is_over:
        raise ClusterError(
            f"job {last.number} of {config.output} is still {seen.state.value}: look at it with hepdask status, end "
            "it with hepdask cancel"
        )
    folder = config.folder.absolute() / "submit"
    make_folder(folder)
    folder.chmod(0o700)  # the batch system opens the log as it pleases
    atomic.write_bytes(folder / "config.yaml", config.to_yaml().encode())
    log = folder / "driver.log"
    script = folder / "driver.sh"
    if isinstance(settings, Slurm):
        atomic.write_bytes(script, _slurm_script(settings, folder, log).encode())
        words, pattern = ["sbatch", str(script)], r"Submitted batch job (\d+)"
    else:
        atomic.write_bytes(script, _shell(settings, folder, "").encode())
        description = folder / "driver.sub"
        atomic.write_bytes(description, _condor_description(settings, folder, log).encode())
        words = ["condor_submit", *settings.submit_command_extra, str(description)]
        pattern = r"submitted to cluster (\d+)"
    try:
        answer = asyncio.run(ask(words, settings.query_timeout))
    except BatchSystemError as error:
        raise ClusterError(f"the batch system rejected the job: {error}") from None
    match = re.search(pattern, answer)
    if match is None:
        raise ClusterError(f"the batch system did not name the job: {answer.strip()}")
    number = match[1] + (".0" if isinstance(settings, HTCondor) else "")
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
    return job, _look(_site(config), job.number)


def logs(config: Config, follow: bool = False) -> Iterator[str]:
    """Give what the driver said, piece by piece; with `follow` until its job is over.

    As long as it has not begun, a line on standard error says where its job is, and why.
    """
    job = _submitted(config)
    settings = _site(config)
    position, asked = 0, -math.inf
    waits: JobStatus | None = None
    over = not follow
    if over and not job.log.exists():
        say(f"job {job.number}: {_words(_look(settings, job.number))}; it has written nothing yet")
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
            seen = _look(settings, job.number)
            over = seen.state.is_over
            if not job.log.exists() and seen != waits:
                waits = seen
                say(f"job {job.number}: {_words(seen)}")
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
    if (seen := _look(settings, job.number)).state.is_over:
        raise ClusterError(f"job {job.number} of {config.output} is over already: {_words(seen)}")
    words = (
        ["scancel", "--full"]
        if isinstance(settings, Slurm)
        else ["condor_rm", *settings.cancel_command_extra]
    )
    try:
        asyncio.run(ask([*words, job.number], settings.query_timeout))
    except BatchSystemError as error:
        raise ClusterError(f"job {job.number} could not be cancelled: {error}") from None
    return job


def _site(config: Config) -> Slurm | HTCondor:
    settings = load_cluster(config.cluster)
    if isinstance(settings, Slurm | HTCondor):
        return settings
    raise ConfigError(
        f"cluster: kind {settings.kind} has no batch system to submit to; say --cluster slurm, htcondor, or a file of "
        "that kind"
    )


def _read(config: Config) -> Submitted | None:
    found: dict[str, Any] | None = atomic.read_json(config.folder / "submit" / "job.json")
    return Submitted(found["number"], found["kind"], Path(found["log"])) if found else None


def _submitted(config: Config) -> Submitted:
    job = _read(config)
    if job is None:
        raise ClusterError(f"{config.output}: nothing was submitted; hepdask submit CONFIG does")
    return job


def _look(settings: Slurm | HTCondor, number: str) -> JobStatus:
    system = SlurmSystem(settings) if isinstance(settings, Slurm) else HTCondorSystem(settings)
    try:
        seen = asyncio.run(system.query([number]))
    except BatchSystemError as error:
        raise ClusterError(f"the batch system does not answer: {error}") from None
    return seen.get(number, JobStatus(State.LOST, "the batch system knows nothing of it any more"))


def _words(seen: JobStatus) -> str:
    return f"{seen.state.value} ({seen.reason})" if seen.reason else seen.state.value


def _shell(settings: Slurm | HTCondor, folder: Path, header: str) -> str:
    variables = {name: os.environ[name] for name in _PASSED if name in os.environ}
    variables |= SAFE_PATH | settings.environment
    python = shlex.quote(settings.python or sys.executable)
    lines = [
        "#!/bin/bash",
        *header.splitlines(),
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        *settings.job_script_prologue,
        f"cd {shlex.quote(os.getcwd())}",
        f"exec {python} -m hepdask run {shlex.quote(str(folder / 'config.yaml'))}",
    ]
    return "\n".join(lines) + "\n"


def _slurm_script(settings: Slurm, folder: Path, log: Path) -> str:
    driver = settings.driver
    options = [
        f"--job-name={settings.name}-driver",
        f"--output={log}",
        "--open-mode=append",
        "--ntasks=1",
        f"--cpus-per-task={driver.cores}",
        f"--mem={_megabytes(driver.memory)}M",
        f"--time={driver.walltime or settings.walltime}",
        *([f"--partition={settings.queue}"] if settings.queue else []),
        *([f"--account={settings.account}"] if settings.account else []),
        *driver.job_extra_directives,
    ]
    return _shell(settings, folder, "\n".join(f"#SBATCH {option}" for option in options))


def _condor_description(settings: HTCondor, folder: Path, log: Path) -> str:
    driver = settings.driver
    lines = [
        "executable = /bin/bash",
        f"arguments = {folder / 'driver.sh'}",
        "transfer_executable = False",
        f"batch_name = {settings.name}-driver",
        f"output = {log}",
        f"error = {log}",
        f"log = {folder / 'driver.events'}",
        "stream_output = True",
        "stream_error = True",
        f"request_cpus = {driver.cores}",
        f"request_memory = {_megabytes(driver.memory)}",
        f"request_disk = {settings.disk}",
        *(f"{key} = {value}" for key, value in time_limit(driver.walltime or settings.walltime).items()),
        *driver.job_extra_directives,
        "queue",
    ]
    return "\n".join(lines) + "\n"


def _megabytes(memory: str) -> int:
    from dask.utils import parse_bytes

    return -(-parse_bytes(memory) // 2**20)
