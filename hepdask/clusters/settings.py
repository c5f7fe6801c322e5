"""What can be said of a cluster: one validated document, whose keys are dask-jobqueue's arguments.

Settings of single batch systems stand in the files of these.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import Annotated, Any, Literal

from dask.utils import parse_bytes
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hepdask.clusters.batch_system import BatchSystem
from hepdask.config.base import Count, LocalPath, Port, Positive
from hepdask.files.paths import resolved

# names of secrets; of what is put into them paths alone are harmless, and what the shell of the job finds out
_PATH = re.compile(r"[\"']?(/|~/|\.{1,2}/|\$)")
_SET = re.compile(r"""(?:^|[\s;])(\w+)=(\S*)""")  # as a shell sets a variable
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|PRIVATE|(^|_)KEY($|_)", re.IGNORECASE)


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Local(_Document):
    """Worker processes on this machine."""

    kind: Literal["local"] = Field("local", description="worker processes on this machine")
    workers: Count | None = Field(None, description="worker processes; default: one per core")
    threads: Count = Field(1, description="threads of each worker")
    memory_limit: str = Field("auto", description="memory of each worker, in Dask's notation")
    host: str = Field("127.0.0.1", description="address that scheduler, workers and dashboard listen on")
    dashboard_port: int = Field(
        8787, ge=0, description="port of the dashboard; if it is in use, another free one"
    )
    tls: bool = Field(
        True, description="encrypt, and admit only holders of the certificate made for this cluster"
    )
    start_timeout: Positive = Field(60.0, description="longest wait for the workers to start [s]")


def _is_share_or_bytes(size: float | str) -> float | str:
    if isinstance(size, str):
        try:
            size = float(size)
        except ValueError:
            parse_bytes(size)
            return size
    if not 0 < size <= 1:
        raise ValueError(
            f'{size:g} is not a fraction of a GPU\'s memory; write 0.8, or bytes with a unit: "8GB"'
        )
    return size


Memory = Annotated[float | str, AfterValidator(_is_share_or_bytes)]


class GPU(_Document):
    """Worker processes on this machine, one for each of its GPUs, in dask-cuda's words."""

    kind: Literal["gpu"] = Field("gpu", description="one worker process for each GPU of this machine")
    cuda_visible_devices: tuple[str, ...] | None = Field(
        None, min_length=1, description="GPUs to use, by number or UUID; default: all visible ones"
    )
    threads: Count = Field(1, description="threads of each worker; `prepare` reads with all of them")
    memory_limit: str = Field("auto", description="memory of each worker, in Dask's notation")
    device_memory_limit: Memory | None = Field(
        None, description="GPU memory at which a worker starts to spill; default: dask-cuda's"
    )
    rmm_pool_size: Memory | None = Field(
        None, description="GPU memory that a worker reserves for RMM; ranks cannot use it"
    )
    rmm_managed_memory: bool = Field(False, description="let RMM use memory shared by GPU and host")
    protocol: Literal["tcp", "ucx"] = Field("tcp", description="how workers communicate with each other")
    enable_nvlink: bool | None = Field(None, description="with ucx: use NVLink; default: if it is found")
    enable_infiniband: bool | None = Field(
        None, description="with ucx: use InfiniBand; default: if it is found"
    )
    local_directory: str | None = Field(None, description="where workers spill to disk; default: Dask's")
    host: str = Field("127.0.0.1", description="address that scheduler, workers and dashboard listen on")
    dashboard_port: int = Field(
        8787, ge=0, description="port of the dashboard; if it is in use, another free one"
    )
    tls: bool = Field(
        True, description="encrypt, and admit only holders of the certificate made for this cluster"
    )
    start_timeout: Positive = Field(60.0, description="longest wait for the workers to start [s]")

    @model_validator(mode="after")
    def _fits_together(self) -> GPU:
        if self.protocol == "tcp" and (self.enable_nvlink or self.enable_infiniband):
            raise ValueError("enable_nvlink and enable_infiniband need protocol: ucx")
        if self.protocol == "ucx" and self.tls:
            raise ValueError(
                "protocol: ucx cannot be encrypted; use tcp, or set tls: false on a machine that only you use"
            )
        return self

    @property
    def uses_rmm(self) -> bool:
        """Whether the workers' memory is RMM's."""
        return self.rmm_pool_size is not None or self.rmm_managed_memory


def _is_pem_or_path(certificate: str) -> str:
    return certificate if certificate.startswith("-----BEGIN ") else resolved(certificate)


class Attached(_Document):
    """A scheduler that runs already."""

    kind: Literal["attached"] = Field("attached", description="a scheduler that is already running")
    address: str = Field(description="tcp://… or tls://…")
    certificate: Annotated[str, AfterValidator(_is_pem_or_path)] | None = Field(
        None, description="certificate and key for tls://: a file, or the text itself"
    )
    start_timeout: Positive = Field(20.0, description="longest wait for an answer [s]")


def seconds(walltime: str) -> int:
    """Read a wall time as batch systems write it: ``[days-]hours:minutes:seconds`` and shorter forms.

    Raises
    ------
    ValueError
        It is none.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", walltime)
    if match is None or walltime.isdigit():
        raise ValueError(
            f"{walltime!r} is not a wall time; write HH:MM:SS or DAYS-HH:MM:SS, in quotation marks"
        )
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] is None and match[4] is None:  # Slurm reads two fields as minutes and seconds
        return 60 * first + second
    return 86400 * days + 3600 * first + 60 * second + third


def megabytes(memory: str) -> int:
    """Read a memory as Dask writes it, in MiB, rounded up."""
    return -(-parse_bytes(memory) // 2**20)


def _is_walltime(text: str) -> str:
    seconds(text)
    return text


class Driver(_Document):
    """The job of ``hepdask submit``: driver and scheduler, no worker."""

    cores: Count = Field(1, description="cores of the driver's job")
    memory: str = Field("4GB", description="memory of the driver's job")
    walltime: Annotated[str, AfterValidator(_is_walltime)] | None = Field(
        None, description="wall time of the driver's job; default: that of the workers"
    )
    job_extra_directives: tuple[str, ...] = Field(
        (), description="further lines of its job script: `--qos=long` for Slurm, `key = value` for HTCondor"
    )


class BatchSettings(_Document):
    """What clusters of batch jobs have in common: each job starts Dask workers."""

    kind: str = Field(description="the batch system")

    # of a job, in dask-jobqueue's words
    cores: Count = Field(1, description="cores of a job, shared by its worker processes")
    memory: str = Field("2GB", description="memory of a job, shared by its worker processes")
    processes: Count = Field(1, description="worker processes per job")
    gpus: int = Field(0, ge=0, description="GPUs of a job, shared by its worker processes")
    walltime: Annotated[str, AfterValidator(_is_walltime)] = Field(
        "02:00:00", description="wall time of a job, HH:MM:SS"
    )
    name: str = Field("hepdask", description="name of the jobs in the queue")
    python: str | None = Field(None, description="Python of the workers; default: the one that runs hepdask")
    interface: str | None = Field(None, description="network interface of scheduler and workers")
    nanny: bool = Field(
        True, description="run a process beside each worker that restarts it if it runs out of memory"
    )
    death_timeout: Positive = Field(
        60.0, description="time without a scheduler after which a worker exits [s]"
    )
    local_directory: str | None = Field(
        None, description="where workers spill to disk; default: the job's folder"
    )
    shared_temp_directory: LocalPath | None = Field(
        None, description="folder that all nodes see, for the TLS certificates; default: log_directory"
    )
    log_directory: LocalPath = Field(
        "runs/jobs",
        description="folder that all nodes see, for the output of the jobs",
        validate_default=True,
    )
    worker_extra_args: tuple[str, ...] = Field((), description="further arguments for `dask worker`")
    job_script_prologue: tuple[str, ...] = Field(
        (), description="shell lines to run before the worker starts"
    )
    job_directives_skip: tuple[str, ...] = Field((), description="lines to leave out of the job's header")
    scheduler_options: dict[str, Any] = Field(
        default_factory=dict, description="further arguments for Dask's scheduler"
    )

    # how many, and for how long
    workers: Count = Field(2, description="number of workers kept at all times")
    maximum_workers: Count | None = Field(
        None,
        description="largest number of workers while there is more to do; default: no more than `workers`",
    )
    lifetime: Positive | None = Field(
        None, description="time after which a worker hands over its work [s]; default: 90 % of the wall time"
    )
    lifetime_stagger: Positive | None = Field(
        None, description="spread of the lifetimes [s]; default: 5 % of the wall time"
    )

    # where they listen
    host: str | None = Field(
        None, description="address the scheduler listens on; default: that of the interface"
    )
    port_range: tuple[Port, Port] | None = Field(
        None, description="first and last port for scheduler and workers; default: any"
    )
    dashboard_host: str = Field(
        "127.0.0.1", description="address the dashboard listens on; it asks for no password"
    )
    dashboard_port: int = Field(
        8787, ge=0, description="port of the dashboard; if it is in use, another free one"
    )
    tls: bool = Field(
        True, description="encrypt, and admit only holders of the certificate made for this cluster"
    )

    # what the workers find
    environment: dict[str, str] = Field(
        default_factory=dict, description="environment variables of the workers, written into the job script"
    )
    allowed_failures: int = Field(
        10, ge=0, description="number of workers that may die on one task before the task is given up"
    )
    memory_spill: tuple[float, float, float, float] = Field(
        (0.6, 0.7, 0.85, 0.95),
        description="fractions of the memory at which a worker spills (twice), pauses, is restarted",
    )

    # truth about the jobs
    poll_interval: Positive = Field(10.0, description="time between two queries of the batch system [s]")
    query_timeout: Positive = Field(60.0, description="longest wait for an answer [s]")
    start_timeout: Positive = Field(86400.0, description="longest wait for the workers to connect [s]")
    connect_timeout: Positive = Field(
        600.0, description="time without a connected worker after which a running job is replaced [s]"
    )
    lost_after: Positive = Field(
        30.0, description="time after losing its worker at which a running job is replaced [s]"
    )
    max_failures: Count = Field(
        3,
        description="number of jobs in a row that may fail before a worker connects; then the cluster is given up",
    )
    driver: Driver = Field(default_factory=Driver, description="the job of `hepdask submit`")

    @model_validator(mode="after")
    def _fits_together(self) -> BatchSettings:
        said = [(f"environment.{name}", name, value) for name, value in self.environment.items()]
        for line in self.job_script_prologue:
            said += [(f"job_script_prologue: {name}", name, value) for name, value in _SET.findall(line)]
        for where, name, value in said:
            if _SECRET.search(name) and not _PATH.match(value):
                raise ValueError(
                    f"{where} looks like a secret, and job scripts can be read by others: "
                    "put it into a file that only you can read, and give the file's path"
                )
        if self.processes > self.cores:
            raise ValueError(f"processes: {self.processes} workers cannot share {self.cores} cores")
        if self.gpus % self.processes:
            raise ValueError(
                f"gpus: {self.processes} worker processes cannot have the same share of {self.gpus}"
            )
        if self.gpus and "--resources" in " ".join(self.worker_extra_args):
            raise ValueError("worker_extra_args: with gpus, --resources is already set")
        if self.lifetime and self.lifetime >= seconds(self.walltime):
            raise ValueError(f"lifetime: {self.lifetime:g} s is not below the wall time, {self.walltime}")
        if self.maximum_workers and self.maximum_workers < self.workers:
            raise ValueError(f"maximum_workers: {self.maximum_workers} is less than workers, {self.workers}")
        if self.port_range and self.port_range[1] - self.port_range[0] < 2 * self.processes:
            raise ValueError(
                f"port_range: {self.port_range[0]} to {self.port_range[1]} is too narrow: scheduler, each worker and "
                "its nanny need one port each"
            )
        return self

    @abstractmethod
    def system(self) -> BatchSystem:
        """Return the batch system that runs the jobs."""

    @property
    def threads(self) -> int:
        """Threads of one worker."""
        return self.cores // self.processes

    @property
    def gpus_of_worker(self) -> int:
        """GPUs that one worker offers."""
        return self.gpus // self.processes
