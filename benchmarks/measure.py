"""What all benchmarks share: timing in turns, rows of results, the command line, the JSON file."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

PACKAGES = ("hepdask", "awkward", "dask", "distributed", "numba", "numpy", "uproot", "zarr")


@dataclass(frozen=True)
class Task:
    """Something to time.

    Attributes
    ----------
    call : callable
        Does the work once; what it returns is thrown away.
    work : float
        Units of work (events, say) in one call.
    clock : "cpu" or "wall"
        CPU seconds, or seconds on the wall.
    families : sequence of Family
        Living child processes that work for the call; their CPU seconds count too. Children that start
        and end within the call count by themselves.
    """

    call: Callable[[], object]
    work: float = 1.0
    clock: Literal["cpu", "wall"] = "cpu"
    families: Sequence[Family] = ()

    def time(self) -> float:
        """Run once; the seconds that one unit of work took."""
        gc.collect()
        start = self._now()
        self.call()
        for family in self.families:
            family.settle()
        return (self._now() - start) / self.work

    def _now(self) -> float:
        return time.perf_counter() if self.clock == "wall" else cpu_seconds(self.families)


@dataclass(frozen=True)
class Row:
    """One line of results.

    Attributes
    ----------
    name : str
        What was measured.
    unit : str
        Unit of `ours` and `peer`.
    ours, peer : float
        Medians.
    peer_name : str
        What ours is compared with.
    ratio : float
        Above 1 where ours is better.
    runs : int
        Timed repetitions of each side.
    """

    name: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    runs: int

    @classmethod
    def of_rates(cls, name: str, unit: str, ours: float, peer: float, peer_name: str, runs: int) -> Row:
        """Compare two values of which the higher is better."""
        return cls(name, unit, ours, peer, peer_name, ours / peer, runs)

    @classmethod
    def of_costs(cls, name: str, unit: str, ours: float, peer: float, peer_name: str, runs: int) -> Row:
        """Compare two values of which the lower is better."""
        return cls(name, unit, ours, peer, peer_name, peer / ours, runs)


class Family:
    """CPU time of a living child process and of everything below it.

    A process counts what it used itself and the larger of two things: what it took over from children
    it waited for, and what its ended children were last seen to have used. So nothing counts twice, and
    nothing is lost with a parent that ignores the end of its children (as Spark's Python daemon does).

    Parameters
    ----------
    top : int
        Process id of a child of this process. It must live as long as it is read.
    """

    def __init__(self, top: int) -> None:
        self._top = psutil.Process(top)
        self._seen: dict[int, _Used] = {}

    def cpu_seconds(self) -> float:
        """User and system time so far, in ticks of (usually) 10 ms."""
        living = set()
        for process in (self._top, *self._top.children(recursive=True)):
            try:
                times, parent = process.cpu_times(), process.ppid()
            except psutil.NoSuchProcess:
                continue  # it ended just now
            own, taken_over = times.user + times.system, times.children_user + times.children_system
            self._seen[process.pid] = _Used(parent, own, taken_over)
            living.add(process.pid)
        ended: dict[int, list[int]] = {}
        for pid, used in self._seen.items():
            if pid not in living:
                ended.setdefault(used.parent, []).append(pid)

        def count(pid: int) -> float:
            used = self._seen[pid]
            return used.own + max(used.taken_over, sum(map(count, ended.get(pid, ()))))

        return sum(map(count, living))

    def settle(self, most: float = 10.0) -> None:
        """Wait until the processes are idle, so that what they clean up is theirs and disturbs nobody else."""
        give_up = time.monotonic() + most
        before = self.cpu_seconds()
        while time.monotonic() < give_up:
            time.sleep(0.2)
            now = self.cpu_seconds()
            if now - before < 0.02:
                return
            before = now


@dataclass(frozen=True)
class _Used:
    parent: int
    own: float
    taken_over: float


def cpu_seconds(families: Iterable[Family] = ()) -> float:
    """Sum the user and system time of this process, its ended children and some living ones.

    Parameters
    ----------
    families : iterable of Family
        The living ones.

    Returns
    -------
    float
        CPU seconds since some fixed moment; only differences mean something. This process and its
        ended children count in microseconds.
    """
    own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    total = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    return total + sum(family.cpu_seconds() for family in families)


def interleave(tasks: Mapping[str, Task], runs: int, warm_up: int = 1) -> dict[str, float]:
    """Time tasks in turns (a, b, a, b, ...), so that a change of the machine's mood meets all of them.

    Parameters
    ----------
    tasks : mapping
        By name, in the order in which they take turns.
    runs : int
        Timed repetitions of each.
    warm_up : int
        Untimed repetitions of each before.

    Returns
    -------
    dict
        Median seconds of one unit of work, by name.
    """
    for _ in range(warm_up):
        for task in tasks.values():
            task.call()
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(runs):
        for name, task in tasks.items():
            taken[name].append(task.time())
    return {name: statistics.median(values) for name, values in taken.items()}


def parser(description: str | None) -> argparse.ArgumentParser:
    """Make the command line that every benchmark has; add more to it where needed."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--json", type=Path, metavar="OUT", help="write the results to this file")
    arguments.add_argument(
        "--quick", action="store_true", help="less work and fewer repetitions: does it run, roughly how fast"
    )
    return arguments


def machine(packages: Sequence[str] = PACKAGES, **more: Any) -> dict[str, Any]:
    """Describe where the figures come from.

    Parameters
    ----------
    packages : sequence of str
        Distributions whose versions matter; absent ones are left out.
    **more
        Further entries.

    Returns
    -------
    dict
        Ready for JSON.
    """
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": versions,
        **more,
    }


def write(path: Path, rows: Sequence[Row], about: Mapping[str, Any] | None = None) -> None:
    """Write ``{"machine": ..., "rows": [...]}``, replacing the file when it is complete.

    Parameters
    ----------
    path : Path
        Of the JSON file; its folder is made.
    rows : sequence of Row
        The results.
    about : mapping, optional
        Default `machine()`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": dict(about or machine()), "rows": [asdict(row) for row in rows]}
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(document, indent=2) + "\n")
    partial.replace(path)


def table(rows: Sequence[Row]) -> str:
    """Lay rows out for a person."""
    head = ("measurement", "ours", "peer", "unit", "peer is", "ratio", "runs")
    lines = [
        (row.name, f"{row.ours:,.4g}" if row.ours < 1000 else f"{row.ours:,.0f}",
         f"{row.peer:,.4g}" if row.peer < 1000 else f"{row.peer:,.0f}",
         row.unit, row.peer_name, f"{row.ratio:.3g}", str(row.runs))
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    right = {1, 2, 5, 6}

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, lines)])


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
