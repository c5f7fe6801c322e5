"""Energy-flow towers: what two calorimeters measure beyond the energy of the tracks.

Every particle deposits all its energy in one tower of the ECAL (photons, electrons) or of the HCAL
(hadrons). A tower's summed energy is smeared once; the energies of the tracks that point at it are taken
off, and what is left over significantly is a photon or a neutral hadron. Numbers are those of Delphes' CMS
Phase-II card (``CMS_PhaseII_0PU``, 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hepdask.simulation.particles import Bools, Floats, Ints
from hepdask.simulation.tracker import lognormal


class Ring(NamedTuple):
    """A range of |eta| with towers of one size and one resolution.

    Attributes
    ----------
    eta : float
        Upper edge in |eta|.
    eta_step : float
        Size of a tower in eta.
    phi_bins : int
        Towers around the beam.
    constant, stochastic, noise : float
        sigma^2 = (constant E)^2 + stochastic^2 E + noise^2, energies in GeV.
    """

    eta: float
    eta_step: float
    phi_bins: int
    constant: float
    stochastic: float
    noise: float


@dataclass(frozen=True)
class Calorimeter:
    """One of the two calorimeters.

    Attributes
    ----------
    rings : tuple of Ring
        From the centre outwards; nothing is seen beyond the last.
    min_energy : float
        GeV; a tower, and an excess over tracks, below it is not read out.
    min_significance : float
        The same in units of the tower's resolution.
    """

    rings: tuple[Ring, ...]
    min_energy: float
    min_significance: float


# ECal: 0.0174 x 1 degree in the barrel and endcap, 0.175 x 10 degrees in the forward calorimeter. The
# card's barrel resolution also grows as 1 + 0.64 eta^2: here its mean over each of three rings.
ECAL = Calorimeter(
    rings=(
        Ring(0.522, 0.0174, 360, 1.06 * 0.009, 1.06 * 0.12, 1.06 * 0.45),
        Ring(1.044, 0.0174, 360, 1.40 * 0.009, 1.40 * 0.12, 1.40 * 0.45),
        Ring(1.4964, 0.0174, 360, 2.04 * 0.009, 2.04 * 0.12, 2.04 * 0.45),
        Ring(1.75, 0.0174, 360, 0.006, 0.20, 0.0),
        Ring(2.15, 0.0174, 360, 0.007, 0.21, 0.0),
        Ring(2.958, 0.0174, 360, 0.008, 0.24, 0.0),
        Ring(5.0, 0.175, 36, 0.08, 1.98, 0.0),
    ),
    min_energy=0.5,
    min_significance=1.0,
)

# HCal: 0.087 x 5 degrees in the barrel, 0.0174 x 1 degree in the endcap, forward as the ECAL.
HCAL = Calorimeter(
    rings=(
        Ring(1.566, 0.087, 72, 0.05, 1.00, 0.0),
        Ring(2.958, 0.0174, 360, 0.05, 1.00, 0.0),
        Ring(5.0, 0.175, 36, 0.11, 2.80, 0.0),
    ),
    min_energy=1.0,
    min_significance=1.0,
)


class Towers(NamedTuple):
    """Energy-flow objects of one calorimeter, grouped by event; ET in GeV."""

    event: Ints
    et: Floats
    eta: Floats
    phi: Floats


class Deposits(NamedTuple):
    """Particles that end in a calorimeter.

    Attributes
    ----------
    event : (n,) int64
        Event index.
    eta, phi : (n,) float64
        Position on the surface.
    energy : (n,) float64
        True energy, GeV.
    tracked : (n,) float64
        Energy as the particle's track measures it, GeV; 0 without a track.
    """

    event: Ints
    eta: Floats
    phi: Floats
    energy: Floats
    tracked: Floats


def energy_flow(deposits: Deposits, calorimeter: Calorimeter, rng: np.random.Generator) -> Towers:
    """Sum deposits in towers, smear, and take off the tracks.

    Parameters
    ----------
    deposits : Deposits
        All particles that end in this calorimeter.
    calorimeter : Calorimeter
        Segmentation, resolution and thresholds.
    rng : numpy.random.Generator
        Three numbers a tower.

    Returns
    -------
    Towers
        At positions drawn uniformly inside their towers, as Delphes does it.
    """
    ring, eta_bin, phi_bin, inside = _locate(deposits, calorimeter)
    event = deposits.event[inside]
    # One integer a tower; 1024 exceeds every number of bins on either axis.
    key = ((event * len(calorimeter.rings) + ring) * 1024 + eta_bin) * 1024 + phi_bin
    _, first, tower = np.unique(key, return_index=True, return_inverse=True)
    energy = _sum_by(tower, deposits.energy[inside], len(first))
    tracks = _sum_by(tower, deposits.tracked[inside], len(first))
    ring, eta_bin, phi_bin, event = (c[first] for c in (ring, eta_bin, phi_bin, event))

    sigma = _resolution(energy, ring, calorimeter)
    measured = energy * lognormal(sigma / energy, rng)
    excess = measured - tracks
    kept = excess > np.maximum(calorimeter.min_energy, calorimeter.min_significance * sigma)
    eta, phi = _position(ring[kept], eta_bin[kept], phi_bin[kept], calorimeter, rng)
    return Towers(event[kept], excess[kept] / np.cosh(eta), eta, phi)


def _sum_by(group: Ints, values: Floats, groups: int) -> Floats:
    """Sum the values of each group."""
    return np.bincount(group, weights=values, minlength=groups).astype(np.float64, copy=False)


def _edges(calorimeter: Calorimeter) -> Floats:
    """Edges of the rings in |eta|, 0 first."""
    return np.array([0.0, *(ring.eta for ring in calorimeter.rings)])


def _locate(deposits: Deposits, calorimeter: Calorimeter) -> tuple[Ints, Ints, Ints, Bools]:
    """Ring, bins in eta (doubled, odd for negative eta) and phi of deposits, and which are inside."""
    edges = _edges(calorimeter)
    inside = np.abs(deposits.eta) < edges[-1]
    eta, phi = deposits.eta[inside], deposits.phi[inside]
    ring = np.searchsorted(edges, np.abs(eta), side="right") - 1
    step = np.array([r.eta_step for r in calorimeter.rings])[ring]
    bins = np.array([r.phi_bins for r in calorimeter.rings])[ring]
    eta_bin = 2 * ((np.abs(eta) - edges[ring]) / step).astype(np.int64) + (eta < 0)
    phi_bin = ((phi + np.pi) / (2 * np.pi) * bins).astype(np.int64) % bins
    return ring, eta_bin, phi_bin, inside


def _position(
    ring: Ints, eta_bin: Ints, phi_bin: Ints, calorimeter: Calorimeter, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Draw a point in each tower."""
    edges = _edges(calorimeter)
    step = np.array([r.eta_step for r in calorimeter.rings])[ring]
    bins = np.array([r.phi_bins for r in calorimeter.rings])[ring]
    low = edges[ring] + (eta_bin // 2) * step
    # The last tower of a ring may be cut short by the ring's edge.
    size = np.minimum(step, edges[ring + 1] - low)
    eta = np.where(eta_bin % 2, -1.0, 1.0) * (low + size * rng.random(len(ring)))
    phi = (phi_bin + rng.random(len(ring))) / bins * 2 * np.pi - np.pi
    return eta, phi


def _resolution(energy: Floats, ring: Ints, calorimeter: Calorimeter) -> Floats:
    """Compute the standard deviation of towers' energies, GeV."""
    constant, stochastic, noise = (
        np.array([getattr(r, name) for r in calorimeter.rings])[ring]
        for name in ("constant", "stochastic", "noise")
    )
    return np.sqrt((constant * energy) ** 2 + stochastic**2 * energy + noise**2)
