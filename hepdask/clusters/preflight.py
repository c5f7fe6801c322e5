"""Preflight of a site: what can go wrong with a thousand jobs, tried with one; and of a machine's GPUs."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from cryptography import x509
from distributed import Client

from hepdask.clusters import local_gpu
from hepdask.clusters.batch_cluster import BatchCluster
from hepdask.clusters.connection import start, wait_for_workers
from hepdask.clusters.ports import free_port
from hepdask.clusters.settings import GPU, BatchSettings
from hepdask.clusters.tls import make_folder
from hepdask.clusters.version_check import differences
from hepdask.distributed import NotEnoughSlots, RankFailed, RankOptions, run
from hepdask.errors import ClusterError, HepdaskError
from hepdask.monitoring.answers import answer

PROXY_HOURS = 12.0
CLOCK_SECONDS = 2.0
DISK_GIB = 1.0
_RANK_SECONDS = 300.0
_OF_RANK = (
    (
        "cuda",
        "CUDA in TensorFlow",
        "pip install 'hepdask[gpu]' where the workers' Python is, without tensorflow-cpu",
    ),
    (
        "cudnn",
        "cuDNN",
        "install the cuDNN of TensorFlow's own list: pip install 'tensorflow[and-cuda]==2.18.1'",
    ),
    ("nccl", "NCCL in Horovod", "build Horovod with HOROVOD_GPU_OPERATIONS=NCCL (docs/howto.md, A GPU node)"),
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
        What.
    passed : bool
        Whether it is in order.
    found : str
        What was found.
    fix : str
        What to do where it is not.
    """

    name: str
    passed: bool
    found: str
    fix: str = ""


def check(settings: GPU | BatchSettings, read: str | None = None) -> Iterator[Check]:
    """Look at a site: first from here alone, then with one job, or on all GPUs of this machine.

    Parameters
    ----------
    settings : GPU or BatchSettings
        The site.
    read : str, optional
        A ROOT file, for example ``root://server//path.root``, that a worker should be able to open.

    Yields
    ------
    Check
        One after another, as they are done. The job is not submitted where something that it needs is missing.
    """
    if isinstance(settings, GPU):
        yield from _of_this_machine(settings, read)
        return
    passed = True
    for one in _from_here(settings):
        passed = passed and one.passed
        yield one
    if not passed:
        return
    begin = time.monotonic()
    single = settings.model_copy(update={"workers": 1, "maximum_workers": None})
    try:
        with BatchCluster(single) as farm, Client(farm) as client:
            wait_for_workers(farm, 1)
            wall = time.monotonic() - begin
            yield Check("a job starts and its worker connects", True, f"after {wall:.0f} s")
            yield from _from_a_worker(client, single, read)
    except HepdaskError as error:
        fix = "see the reason; if the job ran, let its node reach the scheduler: set interface, host, port_range"
        yield Check("a job starts and its worker connects", False, str(error), fix)


def _of_this_machine(settings: GPU, read: str | None) -> Iterator[Check]:
    needs = local_gpu.needs(settings)
    yield from (Check(need.name, not need.fix, need.found, need.fix) for need in needs)
    if any(need.fix for need in needs):
        return
    fix = "see the reason; nvidia-smi shows who else uses the GPUs"
    try:
        with start(settings) as cluster, Client(cluster) as client:
            workers = len(cluster.scheduler_info["workers"])
            yield Check("a worker for each GPU starts", True, f"{workers} worker(s)")
            yield _training(client)
            yield from _gpus(client, workers)
            if read:
                yield _readable(client, read)
    except Exception as error:  # whatever dask-cuda and the driver say
        yield Check("a worker for each GPU starts", False, f"{type(error).__name__}: {error}", fix)


def _from_here(settings: BatchSettings) -> Iterator[Check]:
    missing = [name for name in settings.system().commands if shutil.which(name) is None]
    yield Check(
        "commands of the batch system", not missing, f"missing: {', '.join(missing)}" if missing else "all there",
        "go to a machine that submits to the farm, or put them on the PATH",
    )  # fmt: skip
    if settings.interface:
        known = sorted(psutil.net_if_addrs())
        yield Check(
            f"interface {settings.interface}", settings.interface in known, f"here are: {', '.join(known)}",
            "set interface to one that this machine and the nodes have",
        )  # fmt: skip
    if settings.port_range:
        first, last = settings.port_range
        free = sum(bool(free_port(settings.host or "", port)) for port in range(first, last + 1))
        yield Check(
            f"ports {first} to {last}", free > 0, f"{free} of {last + 1 - first} are free here",
            "widen port_range, or stop what listens there",
        )  # fmt: skip
    yield _proxy()
    yield _writable(Path(settings.log_directory), "log_directory")


def _proxy() -> Check:
    path = os.environ.get("X509_USER_PROXY") or f"/tmp/x509up_u{os.getuid()}"
    fix = "voms-proxy-init --voms VO --valid 96:00, with X509_USER_PROXY in a folder that the nodes see"
    if not os.path.exists(path):
        asked = bool(os.environ.get("X509_USER_PROXY"))
        found = f"{path}: there is none" + ("" if asked else ", and none is needed")
        return Check("grid proxy", not asked, found, fix)
    try:
        ends = x509.load_pem_x509_certificate(Path(path).read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        return Check("grid proxy", False, f"{path}: {error}", fix)
    left = (ends - datetime.datetime.now(datetime.UTC)).total_seconds() / 3600
    found = f"{path}: {'good for' if left > PROXY_HOURS else 'ends within'} {PROXY_HOURS:g} h"
    return Check("grid proxy", left > PROXY_HOURS, found, fix)


def _writable(folder: Path, key: str) -> Check:
    try:
        with _note(folder):
            return Check(key, True, f"{folder} can be written")
    except OSError as error:
        return Check(key, False, f"{folder}: {error.strerror}", f"set {key} to a folder that can be written")


@contextmanager
def _note(folder: Path) -> Iterator[Path]:
    make_folder(folder)
    path = folder.absolute() / f"check-{uuid.uuid4().hex}"
    path.write_text(path.name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _from_a_worker(client: Client, settings: BatchSettings, read: str | None) -> Iterator[Check]:
    with _note(Path(settings.log_directory)) as note:
        same = _on_worker(client, _reads, str(note)) == note.name
    yield Check(
        "shared file system", same, f"{settings.log_directory} is {'' if same else 'not '}the same on the node",
        "set log_directory, and the output and store of the configuration, to folders that all nodes see",
    )  # fmt: skip
    yield _versions(client)
    before = time.time()
    there = _on_worker(client, time.time)
    off = max(before - there, there - time.time(), 0.0)
    yield Check(
        "clock",
        off <= CLOCK_SECONDS,
        f"off by {off:.1f} s",
        "report it to the site; log times will not agree",
    )
    free = _on_worker(client, _free_disk, settings.local_directory)
    yield Check(
        "disk for spilling",
        free >= DISK_GIB,
        f"{free:.1f} GiB free on the node",
        "set local_directory, or request more",
    )
    yield _training(client)
    if settings.gpus:
        yield from _gpus(client, settings.gpus)
    if read:
        yield _readable(client, read)


def _training(client: Client) -> Check:
    host = _on_worker(client, socket.gethostname)
    missing = _on_worker(client, _can_train)
    found = missing or f"TensorFlow and Horovod are there, on {host}"
    return Check("training", missing is None, found, "make horovod, for this Python")


def _readable(client: Client, read: str) -> Check:
    problem = _on_worker(client, _open, read)
    fix = "check the path, X509_USER_PROXY in `environment`, and that the nodes may reach the storage"
    return Check(f"{read} from a worker", problem is None, problem or "it opens", fix)


def _gpus(client: Client, wanted: int) -> Iterator[Check]:
    """Look at the GPUs of all workers together, ``wanted`` in number, and from one rank with one of them."""
    workers: dict[str, tuple[list[str], list[str], str]] = answer(
        client, lambda: client.run(local_gpu.seen_by_worker)
    )
    problems = {problem for _, _, problem in workers.values() if problem}
    yield Check(
        "NVIDIA driver", not problems, "; ".join(sorted(problems)) or "it answers on all workers",
        "run the jobs on nodes with GPUs; in a container, with NVIDIA's runtime (apptainer exec --nv)",
    )  # fmt: skip
    shown = "; ".join(
        f"{worker} sees {', '.join(names) or 'none'}" for worker, (names, _, _) in workers.items()
    )
    different = {identity for _, identities, _ in workers.values() for identity in identities}
    each = all(names for names, _, _ in workers.values())
    yield Check(
        "visible devices", each and len(different) >= wanted, f"{shown}: {len(different)} GPU(s) for {wanted}",
        "set gpus to what the job really gets; the batch system sets the worker's CUDA_VISIBLE_DEVICES",
    )  # fmt: skip
    fix = "see the reason; workers have to offer the resource GPU (gpus in the cluster's file does this)"
    try:
        (wrong,) = run(
            local_gpu.seen_by_rank, client=client, ranks=1,
            options=RankOptions(
                gpus_per_rank=1, timeout=_RANK_SECONDS, silence_timeout=_RANK_SECONDS,
                on_output=lambda rank, line: None, on_status=lambda line: None,
            ),
        )  # fmt: skip
    except (NotEnoughSlots, RankFailed) as error:
        yield Check("a rank with its own GPU", False, str(error), fix)
        return
    for key, name, fix in _OF_RANK:
        yield Check(name, key not in wrong, wrong.get(key, "works in a rank"), fix)


def _on_worker(client: Client, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return client.submit(function, *arguments, pure=False).result(timeout=120)
    except TimeoutError:
        raise ClusterError("the worker did not answer within 120 s") from None


def _versions(client: Client) -> Check:
    other = differences(client)
    return Check(
        "Python and packages", not other, "; ".join(other) or f"equal, Python {platform.python_version()}",
        "set `python` of the cluster to this environment: on a shared path, packed, or in a container",
    )  # fmt: skip


def _reads(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None


def _free_disk(folder: str | None) -> float:
    return shutil.disk_usage(folder or os.getcwd()).free / 2**30


def _can_train() -> str | None:
    import importlib.util

    missing = [name for name in ("tensorflow", "horovod") if importlib.util.find_spec(name) is None]
    return f"missing: {', '.join(missing)}" if missing else None


def _open(path: str) -> str | None:
    import uproot

    try:
        with uproot.open(path):
            return None
    except Exception as error:  # whatever the storage says
        return f"{type(error).__name__}: {error}"
