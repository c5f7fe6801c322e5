"""Which GPUs a worker sees, and how a rank takes some that no other rank of its host has.

What hides GPUs from a job differs: Slurm may show each job one GPU that is always called 0, HTCondor names its GPUs by
their UUIDs, dask-cuda shows each worker all GPUs with its own in front, and workers of one job see the same ones. So a
rank takes a GPU by what it really is, its UUID as the driver knows it, and not by its number or the rank's.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

#: How GPUs are numbered in a rank: as nvidia-smi and batch systems do, and not by their speed as CUDA would.
ORDER = "PCI_BUS_ID"

ANSWER = 30.0  # seconds in which the driver must answer
_LOOK = 0.1  # seconds between two looks at GPUs that others have
_UUID = re.compile(r"^(\s*)\w+ .*\(UUID: ((?:GPU|MIG)-[^)\s]+)\)", re.MULTILINE)
_NAME = re.compile(r"\d+|(GPU|MIG)-\S+")


class NoDriver(OSError):
    """There is no NVIDIA driver here, or it does not answer."""


def host_devices() -> list[list[str]]:
    """Ask the driver for the GPUs of this host, or of this job where it hides others.

    Returns
    -------
    list of list of str
        For each GPU, in the order of their numbers, its UUID and those of its MIG instances.

    Raises
    ------
    NoDriver
        nvidia-smi is not there or fails; the message says how.
    """
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=ANSWER)
    except FileNotFoundError:
        raise NoDriver("nvidia-smi, which comes with NVIDIA's driver, is not found") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoDriver(f"nvidia-smi cannot be run: {error}") from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip().replace("\n", " ")
        raise NoDriver(f"nvidia-smi fails with status {done.returncode}: {said[:300]}")
    found: list[list[str]] = []
    for indent, uuid in _UUID.findall(done.stdout):
        if indent and found:
            found[-1].append(uuid)
        else:
            found.append([uuid])
    return found


def visible(host: Sequence[Sequence[str]], environment: Mapping[str, str]) -> dict[str, str]:
    """Say which GPUs a process with this environment sees.

    Parameters
    ----------
    host : sequence of sequence of str
        As `host_devices` returns them; empty where the driver cannot be asked.
    environment : mapping of str
        Of the process; ``CUDA_VISIBLE_DEVICES`` is read as CUDA does, up to the first name that is no GPU here.

    Returns
    -------
    dict of str
        Each GPU as ``CUDA_VISIBLE_DEVICES`` calls it, to what it really is: its UUID, or its number in its batch job
        where the UUID is not known.
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(len(host))] if named is None else named.split(",")
    found: dict[str, str] = {}
    for name in (name.strip() for name in names):
        identity = _identity(name, host, environment)
        if identity is None:
            break
        found[name] = identity
    return found


def _identity(name: str, host: Sequence[Sequence[str]], environment: Mapping[str, str]) -> str | None:
    """Say what a name stands for; None where CUDA would know no such GPU."""
    if not _NAME.fullmatch(name):
        return None
    if name.isdigit():
        if host:
            return host[int(name)][0] if int(name) < len(host) else None
        return f"{environment.get('SLURM_JOB_ID', 'host')}/{int(name)}"
    known = [uuid for device in host for uuid in device if uuid.startswith(name)]  # HTCondor shortens them
    if known:
        return known[0]
    return None if host and name.startswith("GPU-") else name


@contextmanager
def taken(count: int | None, turn: int = 0, wait: float = 0.0) -> Iterator[list[str] | None]:
    """Take GPUs of those that this process sees, for as long as the block lasts.

    Whoever takes GPUs in this way, whatever its cluster, gets others: the kernel knows who has which, and forgets it
    when the process that took them is gone.

    Parameters
    ----------
    count : int or None
        How many; with None, none is taken.
    turn : int
        How many others of this process take as many: they start to look where these end.
    wait : float
        How long to wait for those that others have [s]: a rank that is being ended frees its own in a moment.

    Yields
    ------
    list of str or None
        Their names, for ``CUDA_VISIBLE_DEVICES``; None where none were asked for by number.

    Raises
    ------
    ValueError
        So many are not visible, or not free in time.
    """
    if not count:
        yield None if count is None else []
        return
    try:
        host, driver = host_devices(), ""
    except NoDriver as error:
        host, driver = [], f" ({error})"
    environment = dict(os.environ)
    if not host and "CUDA_VISIBLE_DEVICES" not in environment:  # then its resource GPU is all that is known
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range((turn + 1) * count)))
    seen = list(visible(host, environment).items())
    first = turn * count % max(len(seen), 1)
    with ExitStack() as stack:
        mine: list[str] = []
        give_up = time.monotonic() + wait
        while True:
            for name, identity in (*seen[first:], *seen[:first]):
                if len(mine) < count and name not in mine and _take(identity, stack):
                    mine.append(name)
            if len(mine) == count or len(seen) < count or time.monotonic() > give_up:
                break
            time.sleep(_LOOK)
        if len(mine) < count:
            raise ValueError(
                f"a rank takes {count} GPU(s), and of those that its worker sees "
                f"({', '.join(name for name, _ in seen) or 'none'}{driver}) {len(mine)} are free: start workers with "
                "the resource GPU set to the GPUs that only they use"
            )
        yield mine


def _take(identity: str, stack: ExitStack) -> bool:
    """Hold a name that only one socket of a host can have, and that goes with its process."""
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(f"\0hepdask-{identity}")
    except OSError:
        holder.close()
        return False
    stack.callback(holder.close)
    return True
