"""Vertices and pile-up: where the collisions of a bunch crossing happen, and the other ones in it.

Minimum-bias events come from a small library made for each block. An event drawn from it is turned by a
random angle about the beam and, in half of the cases, mirrored along it; both are symmetries of proton
collisions. So an event that is drawn twice does not deposit twice in the same place.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from hepdask.simulation.particles import Floats, Ints, Particles

# mm; longitudinal spread of the LHC's luminous region as in Delphes' CMS cards (0.053 m).
VERTEX_SPREAD_MM = 53.0

# Distinct minimum-bias events in a block's library; at 2 ms each they cost a block 0.6 s.
LIBRARY_SIZE = 300


def spread_vertices(particles: Particles, events: int, rng: np.random.Generator) -> Particles:
    """Move each event along the beam to a vertex of its own.

    Parameters
    ----------
    particles : Particles
        Produced around the origin.
    events : int
        Number of events.
    rng : numpy.random.Generator
        Draws one normal number an event.
    """
    vertex = rng.normal(0.0, VERTEX_SPREAD_MM, events)
    return dataclasses.replace(particles, z=particles.z + vertex[particles.event])


def library_size(events: int, mean: float) -> int:
    """Minimum-bias events a block makes: no more than it is expected to draw."""
    return max(1, min(LIBRARY_SIZE, int(np.ceil(events * mean))))


def overlay(
    library: Particles, size: int, events: int, mean: float, rng: np.random.Generator
) -> tuple[Particles, Ints]:
    """Draw the pile-up of a block.

    Parameters
    ----------
    library : Particles
        Minimum-bias events around the origin, grouped by event.
    size : int
        Events in the library.
    events : int
        Events of the block.
    mean : float
        Mean number of pile-up collisions an event (Poisson).
    rng : numpy.random.Generator
        For numbers, choices, angles and vertices.

    Returns
    -------
    particles : Particles
        With ``event`` counting the block's events.
    counts : (events,) int64
        Pile-up collisions of each event.
    """
    counts = rng.poisson(mean, events)
    chosen = rng.integers(0, size, counts.sum())
    lengths = np.bincount(library.event, minlength=size)
    starts = np.cumsum(lengths) - lengths
    rows = _ranges(starts[chosen], lengths[chosen])
    drawn = np.repeat(np.arange(len(chosen)), lengths[chosen])
    particles = library.take(rows)
    turned = _turn_and_mirror(
        particles,
        angle=rng.uniform(-np.pi, np.pi, len(chosen))[drawn],
        sign=rng.choice((-1.0, 1.0), len(chosen))[drawn],
    )
    placed = spread_vertices(dataclasses.replace(turned, event=drawn), len(chosen), rng)
    of_block = np.repeat(np.arange(events), counts)
    return dataclasses.replace(placed, event=of_block[placed.event]), counts


def _turn_and_mirror(particles: Particles, angle: Floats, sign: Floats) -> Particles:
    cos, sin = np.cos(angle), np.sin(angle)
    return dataclasses.replace(
        particles,
        px=cos * particles.px - sin * particles.py,
        py=sin * particles.px + cos * particles.py,
        pz=sign * particles.pz,
        x=cos * particles.x - sin * particles.y,
        y=sin * particles.x + cos * particles.y,
        z=sign * particles.z,
    )


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """Concatenate ``range(start, start + length)`` of every pair."""
    shift = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return np.arange(lengths.sum()) + shift
