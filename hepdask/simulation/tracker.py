"""Charged particles: helix to the calorimeter, tracking efficiency, momentum resolution, lepton identity.

Numbers are those of Delphes' CMS Phase-II card (``CMS_PhaseII_0PU``, 2016), in coarser bins of |eta| where
it has many; each table says which of its parameter sets it stands for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hepdask.simulation.particles import Bools, Floats, Ints, Particles

# m, m, T: radius and half-length of the tracking volume, and its field (ParticlePropagator).
RADIUS_M = 1.29
HALF_LENGTH_M = 3.0
FIELD_T = 3.8

# GeV of transverse momentum for a radius of curvature of 1 m in 1 T: the speed of light in 1e9 m/s.
GEV_PER_TESLA_METRE = 0.299792458

MAX_ETA = 4.0
# GeV; below it nothing is tracked, and up to 1 GeV the efficiency rises in proportion to pT.
MIN_PT = 0.2


class EtaTable(NamedTuple):
    """Values in bins of |eta|; ``edges`` are the upper ones, beyond the last the value is 0."""

    edges: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, eta: Floats) -> Floats:
        """Look up one value for each eta."""
        return np.array([*self.values, 0.0])[np.searchsorted(self.edges, np.abs(eta))]


# ChargedHadronTrackingEfficiency, ElectronTrackingEfficiency (above 10 GeV), MuonTrackingEfficiency.
HADRON_EFFICIENCY = EtaTable((1.2, 2.5, 4.0), (0.97, 0.87, 0.82))
ELECTRON_EFFICIENCY = EtaTable((1.2, 2.5, 4.0), (0.97, 0.90, 0.85))
MUON_EFFICIENCY = EtaTable((2.8, 4.0), (1.00, 0.95))

# ChargedHadronMomentumSmearing, relative sigma of pT = constant + slope * pT, pT in GeV, read at the
# middle of each bin; used for muons, too, which it describes within a factor of 1.3 below 2.4.
RESOLUTION_EDGES = (0.6, 1.0, 1.4, 2.0, 2.4, 2.8, 3.2, 4.0)
RESOLUTION_CONSTANT = EtaTable(RESOLUTION_EDGES, (0.0050, 0.0062, 0.0124, 0.0177, 0.018, 0.024, 0.039, 0.053))
RESOLUTION_SLOPE = EtaTable(
    RESOLUTION_EDGES, (6.3e-5, 6.3e-5, 9.2e-5, 1.0e-4, 2.3e-4, 4.2e-4, 1.9e-3, 5.5e-3)
)

# ElectronEnergySmearing, relative sigma; 2.8 % * (1 + 0.64 eta^2) in the barrel, here in three bins.
ELECTRON_RESOLUTION = EtaTable(
    (0.5, 1.0, 1.5, 1.75, 2.15, 3.0, 4.0), (0.030, 0.038, 0.056, 0.037, 0.038, 0.044, 0.10)
)

# ElectronEfficiency for 10 to 30 GeV, 30 to 50 GeV, above 50 GeV; the dip is the gap after the barrel.
_ELECTRON_ID_EDGES = (1.45, 1.55, 2.0, 2.5, 4.0)
ELECTRON_ID = (
    (30.0, EtaTable(_ELECTRON_ID_EDGES, (0.94, 0.40, 0.85, 0.75, 0.75))),
    (50.0, EtaTable(_ELECTRON_ID_EDGES, (0.97, 0.45, 0.95, 0.90, 0.90))),
    (np.inf, EtaTable(_ELECTRON_ID_EDGES, (0.98, 0.45, 0.95, 0.90, 0.90))),
)
# MuonTightIdEfficiency above 20 GeV, averaged over its bins of 0.2 in |eta|.
MUON_ID = EtaTable((1.2, 2.4, 2.6, 2.8), (0.969, 0.975, 0.84, 0.78))

# GeV; leptons below are of no use to any selection here (the card writes them from 4 and 5 GeV).
MIN_LEPTON_PT = 10.0


class Impact(NamedTuple):
    """Where particles meet the calorimeter, seen from the origin, and which of them do."""

    eta: Floats
    phi: Floats
    reaches: Bools


def propagate(particles: Particles) -> Impact:
    """Follow particles from where they were made to the surface of the tracking volume.

    Charged particles go along a helix around the beam; one that neither reaches the barrel nor was made
    inside the volume is dealt with as in Delphes: it leaves through an end, or is lost.

    Parameters
    ----------
    particles : Particles
        Positions in mm, momenta in GeV.

    Returns
    -------
    Impact
        Columns of the length of ``particles``; eta and phi are those of the position, not of the momentum.
    """
    x, y, z = (1e-3 * c for c in (particles.x, particles.y, particles.z))
    pt = np.maximum(particles.pt, 1e-9)
    inside = (np.hypot(x, y) < RADIUS_M) & (np.abs(z) < HALF_LENGTH_M)
    # A straight line is a helix of negligible curvature: 1e-6 per metre bends it by 1 micrometre.
    curvature = -particles.charge * GEV_PER_TESLA_METRE * FIELD_T / pt
    curvature = np.where(curvature == 0, 1e-6, curvature)
    phi0 = particles.phi
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        to_barrel = _path_to_barrel(x, y, phi0, curvature)
        to_end = (np.copysign(HALF_LENGTH_M, particles.pz) - z) * pt / particles.pz
    path = np.fmin(to_barrel, to_end)
    angle = phi0 + curvature * path
    x = x + (np.sin(angle) - np.sin(phi0)) / curvature
    y = y - (np.cos(angle) - np.cos(phi0)) / curvature
    z = z + particles.pz / pt * path
    eta = np.arcsinh(z / np.maximum(np.hypot(x, y), 1e-9))
    reaches = inside & np.isfinite(path) & np.isfinite(eta)
    return Impact(np.where(reaches, eta, 0.0), np.where(reaches, np.arctan2(y, x), 0.0), reaches)


def _path_to_barrel(x: Floats, y: Floats, phi0: Floats, curvature: Floats) -> Floats:
    """Transverse path length in m to the barrel's radius; NaN for a helix that never gets there.

    The centre of the circle is at distance ``d`` and azimuth ``psi``; a point at track angle ``phi`` has
    r^2 = d^2 + 1/k^2 + 2 d/k sin(phi - psi), which r = R fixes up to the two roots of the sine.
    """
    centre_x = x - np.sin(phi0) / curvature
    centre_y = y + np.cos(phi0) / curvature
    distance = np.hypot(centre_x, centre_y)
    psi = np.arctan2(centre_y, centre_x)
    sine = (RADIUS_M**2 - distance**2 - curvature**-2) * curvature / (2 * distance)
    first = np.arcsin(np.where(np.abs(sine) <= 1, sine, np.nan))
    turn = np.sign(curvature)
    paths = [
        ((psi + root - phi0) * turn) % (2 * np.pi) / np.abs(curvature) for root in (first, np.pi - first)
    ]
    return np.fmin(*paths)


def is_tracked(particles: Particles, inside: Bools, rng: np.random.Generator) -> Bools:
    """Draw which particles leave a track, by kind, pT and |eta|.

    Parameters
    ----------
    particles : Particles
        All kinds; neutral ones never have a track.
    inside : (n,) bool
        Produced inside the tracking volume and leaving it (`propagate`).
    rng : numpy.random.Generator
        One uniform number a particle.
    """
    kind, eta, pt = np.abs(particles.pid), particles.eta, particles.pt
    plateau = np.select(
        [kind == 11, kind == 13],
        [ELECTRON_EFFICIENCY(eta), MUON_EFFICIENCY(eta)],
        HADRON_EFFICIENCY(eta),
    )
    efficiency = plateau * np.minimum(pt, 1.0) * (pt > MIN_PT)
    return inside & (particles.charge != 0) & (rng.random(len(particles)) < efficiency)


def measured_pt(tracks: Particles, rng: np.random.Generator) -> Floats:
    """Smear the transverse momentum of tracks, log-normally so that it stays positive; GeV."""
    eta, pt = tracks.eta, tracks.pt
    relative = np.where(
        np.abs(tracks.pid) == 11,
        ELECTRON_RESOLUTION(eta),
        RESOLUTION_CONSTANT(eta) + RESOLUTION_SLOPE(eta) * pt,
    )
    return pt * lognormal(relative, rng)


def is_identified(pid: Ints, pt: Floats, eta: Floats, rng: np.random.Generator) -> Bools:
    """Draw which tracks of electrons and muons are identified as such.

    Parameters
    ----------
    pid, pt, eta : (n,) arrays
        PDG code, measured pT in GeV, and eta of tracks.
    rng : numpy.random.Generator
        One uniform number a track.
    """
    electron = np.select([pt <= edge for edge, _ in ELECTRON_ID], [table(eta) for _, table in ELECTRON_ID])
    efficiency = np.select([np.abs(pid) == 11, np.abs(pid) == 13], [electron, MUON_ID(eta)], 0.0)
    return (pt > MIN_LEPTON_PT) & (rng.random(len(pt)) < efficiency)


def lognormal(relative: Floats, rng: np.random.Generator) -> Floats:
    """Draw factors of mean 1 and the given standard deviations from log-normal distributions."""
    width = np.sqrt(np.log1p(relative**2))
    return np.exp(width * rng.standard_normal(len(relative)) - 0.5 * width**2)
