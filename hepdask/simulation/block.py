"""A block of events, from the process's name to the collections of a Delphes file."""

from __future__ import annotations

import zlib

import awkward as ak
import numpy as np
from numpy.random import SeedSequence

from hepdask.simulation import detector, enrichment
from hepdask.simulation.jets import find_jets
from hepdask.simulation.particles import Generated, Ints, Particles
from hepdask.simulation.pileup import library_size, overlay, spread_vertices
from hepdask.simulation.pythia import MAX_SEED, PROCESSES, generate, make_generator


def simulate_block(
    process: str, events: int, *, seed: int, block: int, pileup: float = 0.0, enrich: bool = True
) -> ak.Array:
    """Simulate a block of events.

    The result depends on the arguments alone. The hard collisions do not depend on ``pileup``: the same
    block with and without it holds the same ones.

    Parameters
    ----------
    process : str
        A key of `PROCESSES`.
    events : int
        How many, at least 1.
    seed : int
        Not negative; of the whole sample.
    block : int
        Not negative and below 2**31; blocks of one sample differ by it.
    pileup : float
        Mean number of further collisions in a bunch crossing.
    enrich : bool
        Make only QCD events with a loosely isolated electron or muon above 22 GeV (see
        `hepdask.simulation.enrichment`); nothing to the other processes.

    Returns
    -------
    ak.Array
        ``events`` records with the collections ``EFlowTrack``, ``EFlowPhoton``, ``EFlowNeutralHadron``,
        ``Electron``, ``MuonTight``, ``Jet``, ``MissingET`` and ``GenInfo``; GeV and mm. ``GenInfo.Number``
        is the place in the block, ``GenInfo.Parent`` names the parton-level event: unique over the
        blocks of a sample, shared by events that were hadronised from the same one.

    Raises
    ------
    ValueError
        For an unknown process, less than one event, or a negative seed, block or pile-up.
    MissingDependency
        If pythia8mc or fastjet is not installed.
    """
    _check(process, events, seed, block, pileup)
    enrich = enrich and process == "qcd"
    # The name's checksum, not its place in a list: adding a process must not change the others.
    root = SeedSequence((seed, block, zlib.crc32(process.encode()), enrich))
    for_generator, for_minimum_bias, for_overlay, for_vertices, for_detector = root.spawn(5)

    generated = _generate(process, events, enrich, for_generator)
    particles = spread_vertices(generated.particles, events, np.random.default_rng(for_vertices))
    collisions = np.zeros(events, dtype=np.int64)
    if pileup > 0:
        crowd, collisions = _pile_up(events, pileup, for_minimum_bias, for_overlay)
        particles = Particles.concatenate([particles, crowd])
    rng = np.random.default_rng(for_detector)
    collections = detector.reconstruct(particles, events, rng)
    collections["Jet"] = find_jets(collections, generated.heavy, rng)
    collections["MissingET"] = detector.missing_et(collections)
    collections["GenInfo"] = detector.jagged(
        np.arange(events),
        events,
        {
            "Number": np.arange(events, dtype=np.int32),
            "Parent": (block << 32) + generated.parent,
            "NPU": collisions.astype(np.int32),
        },
    )
    return ak.zip(collections, depth_limit=1)


def _check(process: str, events: int, seed: int, block: int, pileup: float) -> None:
    if process not in PROCESSES:
        raise ValueError(f"unknown process {process!r}; known are {', '.join(PROCESSES)}")
    if events < 1:
        raise ValueError(f"a block needs at least one event, not {events}")
    if seed < 0 or not 0 <= block < 2**31 or not pileup >= 0:
        raise ValueError(
            f"seed, block and pileup must not be negative, and block be below 2**31: "
            f"seed={seed}, block={block}, pileup={pileup}"
        )


def _generate(process: str, events: int, enrich: bool, seeds: SeedSequence) -> Generated:
    if enrich:
        generator = make_generator(process, _pythia_seed(seeds), *enrichment.SETTINGS)
        return enrichment.generate_enriched(generator, events)
    return generate(make_generator(process, _pythia_seed(seeds)), events)


def _pile_up(
    events: int, mean: float, for_library: SeedSequence, for_overlay: SeedSequence
) -> tuple[Particles, Ints]:
    size = library_size(events, mean)
    library = generate(make_generator("minimum bias", _pythia_seed(for_library)), size).particles
    return overlay(library, size, events, mean, np.random.default_rng(for_overlay))


def _pythia_seed(seeds: SeedSequence) -> int:
    return int(seeds.generate_state(1, np.uint64)[0] % MAX_SEED) + 1
