"""Flat columns of generated particles: what the generator hands to the detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NEUTRINOS = (12, 14, 16)


@dataclass(frozen=True)
class _Columns:
    """Equally long columns, one row a particle."""

    event: Ints

    def __len__(self) -> int:
        return len(self.event)

    def take(self, rows: Bools | Ints) -> Self:
        """Return the rows of a mask or of an index array, in its order."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Put the rows of several sets one after the other."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


@dataclass(frozen=True)
class Particles(_Columns):
    """Final-state particles of a block of events.

    Attributes
    ----------
    event : (n,) int64
        Index of the event in the block.
    pid : (n,) int64
        PDG code.
    charge : (n,) float64
        In units of the positron's.
    px, py, pz, e, m : (n,) float64
        Four-momentum and mass, GeV.
    x, y, z : (n,) float64
        Production point, mm.
    """

    pid: Ints
    charge: Floats
    px: Floats
    py: Floats
    pz: Floats
    e: Floats
    m: Floats
    x: Floats
    y: Floats
    z: Floats

    @property
    def pt(self) -> Floats:
        """Transverse momentum, GeV."""
        return np.hypot(self.px, self.py)

    @property
    def eta(self) -> Floats:
        """Pseudorapidity; a particle along the beam gets a large finite value."""
        return np.arcsinh(self.pz / np.maximum(self.pt, 1e-9))

    @property
    def phi(self) -> Floats:
        """Azimuth in [-pi, pi]."""
        return np.arctan2(self.py, self.px)

    @property
    def visible(self) -> Bools:
        """Whether the particle interacts at all: everything but neutrinos."""
        return ~np.isin(np.abs(self.pid), NEUTRINOS)


@dataclass(frozen=True)
class HeavyHadrons(_Columns):
    """Hadrons with a b or c quark, for the flavour of jets.

    Attributes
    ----------
    event : (n,) int64
        Index of the event in the block.
    flavour : (n,) int64
        5 with a b quark, else 4.
    pt, eta, phi : (n,) float64
        Momentum; pt in GeV.
    """

    flavour: Ints
    pt: Floats
    eta: Floats
    phi: Floats


@dataclass(frozen=True)
class Generated:
    """A block as the generator made it.

    Attributes
    ----------
    particles : Particles
        Final state, grouped by event.
    heavy : HeavyHadrons
        Hadrons with b or c above `hepdask.simulation.pythia.HEAVY_MIN_PT`.
    parent : (events,) int64
        Number, inside the block, of the parton-level event each event was hadronised from.
    """

    particles: Particles
    heavy: HeavyHadrons
    parent: Ints


def hadron_flavour(pid: Ints) -> Ints:
    """Heaviest of b and c in a hadron.

    Parameters
    ----------
    pid : (n,) int64
        PDG codes; the quark content is read off the digits of the numbering scheme
        (Particle Data Group, "Monte Carlo Particle Numbering Scheme").

    Returns
    -------
    (n,) int64
        5, 4, or 0 for anything without b and c, quarks and diquarks included.
    """
    code = np.abs(pid) % 10_000
    thousands, hundreds, tens = code // 1000, code // 100 % 10, code // 10 % 10
    is_hadron = (code > 100) & (tens > 0)
    heaviest = np.maximum(thousands, hundreds)
    return np.where(is_hadron & np.isin(heaviest, (4, 5)), heaviest, 0)


def delta_phi(first: Floats, second: Floats) -> Floats:
    """Difference of azimuths, wrapped to [-pi, pi)."""
    return (first - second + np.pi) % (2 * np.pi) - np.pi
