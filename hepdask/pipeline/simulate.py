"""`simulate`: Pythia events through the parametrised detector into a ROOT file, block by block over Dask."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
from distributed import Client

from hepdask import clusters, logs, simulation
from hepdask.clusters.task_pool import completed
from hepdask.config import Config, Sample
from hepdask.errors import ConfigError, InputError
from hepdask.extras import require
from hepdask.files.atomic import digest
from hepdask.files.outputs import require_folder
from hepdask.files.paths import local_path
from hepdask.progress import track

logger = logging.getLogger(__name__)

_BLOCK_EVENTS = {"ttbar": 200, "wjets": 200, "qcd": 100}
_WORKER_TIMEOUT = 300.0

#: Raised whenever the same settings give other events than before.
_GENERATION = 1


@dataclass(frozen=True)
class Simulated:
    """A simulated file.

    Attributes
    ----------
    path : Path
        The ROOT file.
    events : int
        Events in it.
    fresh : bool
        Made now, not found up to date.
    wall_s, cpu_s : float
        Time, and CPU time of the workers [s].
    """

    path: Path
    events: int
    fresh: bool
    wall_s: float
    cpu_s: float


def simulate(
    process: str,
    events: int,
    out: str | Path,
    seed: int = 1,
    pileup: float = 0.0,
    enrich: bool = True,
    client: Client | None = None,
    cluster: str = "local",
) -> Simulated:
    """Simulate one ROOT file in Delphes' layout.

    Parameters
    ----------
    process : str
        ``"ttbar"``, ``"wjets"`` or ``"qcd"``.
    events : int
        Events to write.
    out : str or Path
        The ROOT file; one that the same settings made is left as it is.
    seed : int
        Seed of everything random. The same settings give the same events on any cluster.
    pileup : float
        Mean number of overlaid minimum-bias collisions.
    enrich : bool
        For ``"qcd"``: make events that contain a hard, loosely isolated lepton (`docs/simulation.md`).
    client : distributed.Client, optional
        Where blocks are made; by default on `cluster`.
    cluster : str
        Name, file or address of a cluster.

    Returns
    -------
    Simulated

    Raises
    ------
    ConfigError
        A setting is out of range.
    InputError
        `out` exists and is not a file of this program.
    OutputError
        `out` cannot be written.
    MissingDependency
        Pythia or FastJet is not installed.
    """
    logs.show()
    begin = time.monotonic()
    out = local_path(out)
    if process not in simulation.PROCESSES:
        raise ConfigError(f"process: {process!r} is not one of {', '.join(simulation.PROCESSES)}")
    if events < 1 or seed < 0 or not 0 <= pileup < float("inf"):
        raise ConfigError("events must be at least 1, seed and pileup not negative")
    settings = {
        "process": process, "events": events, "seed": seed, "pileup": pileup, "enrich": enrich,
        "block_events": _BLOCK_EVENTS[process], "generation": _GENERATION,
    }  # fmt: skip
    if _is_up_to_date(out, settings):
        logger.info(f"{out}: up to date, {events:,} {process} events")
        return Simulated(out, events, False, time.monotonic() - begin, 0.0)
    require("simulate", "simulation")
    require_folder(out.parent)
    with clusters.connect(cluster, client) as client:
        cpu_before = clusters.cpu_seconds(client)
        with track(f"simulate {process}", events, "events") as tracker:
            blocks = _blocks(settings, client, tracker)
            written = simulation.write_events(out, blocks, settings, digest(settings))
        cpu = clusters.cpu_seconds(client) - cpu_before
    logger.info(f"{out}: {written:,} {process} events, {1000 * cpu / written:,.0f} CPU ms each")
    return Simulated(out, written, True, time.monotonic() - begin, cpu)


def simulate_samples(config: Config, client: Client | None = None) -> list[Simulated]:
    """Simulate all files that the configuration lists under `simulation`.

    Parameters
    ----------
    config : Config
        Uses `simulation` and `cluster`.
    client : distributed.Client, optional
        Where blocks are made; by default on `config.cluster`.

    Returns
    -------
    list of Simulated
        In the order of the configuration.
    """
    if not config.simulation:
        return []
    with clusters.connect(config.cluster, client) as client:
        return [_simulate_sample(path, sample, client) for path, sample in config.simulation.items()]


def _simulate_sample(path: str, sample: Sample, client: Client) -> Simulated:
    return simulate(
        sample.process, sample.events, path, sample.seed, sample.pileup, sample.enrich, client=client
    )


def make_block(block: tuple[int, int], settings: dict[str, Any]) -> ak.Array:
    """Make one block, given its number and size; what a task does."""
    number, events = block
    return simulation.simulate_block(
        settings["process"], events,
        seed=settings["seed"], block=number, pileup=settings["pileup"], enrich=settings["enrich"],
    )  # fmt: skip


def _blocks(settings: dict[str, Any], client: Client, tracker: Any) -> Iterator[ak.Array]:
    """Yield the blocks in order; those that come early wait."""
    most, events = settings["block_events"], settings["events"]
    blocks = [(number, min(most, events - first)) for number, first in enumerate(range(0, events, most))]
    early: dict[int, ak.Array] = {}
    awaited = 0
    name = f"simulate-{settings['process']}"
    tasks = completed(client, make_block, blocks, settings, name=name, worker_timeout=_WORKER_TIMEOUT)
    with closing(tasks):
        for (number, size), made in tasks:
            tracker.advance(size)
            early[number] = made
            while awaited in early:
                yield early.pop(awaited)
                awaited += 1


def _is_up_to_date(out: Path, settings: dict[str, Any]) -> bool:
    if not out.exists():
        return False
    try:
        provenance = simulation.read_provenance(out)
    except Exception as error:
        raise InputError(
            f"{out}: exists and is not a readable ROOT file ({error}); remove it first"
        ) from None
    if provenance is None:
        raise InputError(
            f"{out}: exists and was not made by hepdask simulate; remove it or give another name"
        )
    if provenance != settings:
        logger.info(f"{out}: was made with other settings, and is made again")
    return provenance == settings
