"""Jets: anti-kT clustering of energy-flow objects, flavour, b-tagging, and leptons taken out."""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np

from hepdask.errors import MissingDependency
from hepdask.simulation.detector import jagged
from hepdask.simulation.particles import Bools, Floats, HeavyHadrons, Ints, delta_phi

# FastJetFinder of Delphes' CMS cards: anti-kT, R = 0.4; 20 GeV as in the Run-2 card.
RADIUS = 0.4
MIN_PT = 20.0

# A jet nearer than this to an isolated lepton is that lepton: our choice, half of the jet's radius.
# Delphes' UniqueObjectFinder does the same by shared constituents.
LEPTON_DISTANCE = 0.2
# Isolation: pT of everything above 0.5 GeV around the lepton over its own, limits as in the Run-2 card,
# the cone that of the selection (0.5 in the card).
ISOLATION_CONE = 0.3
ISOLATION_MIN_PT = 0.5
MAX_ISOLATION = {"Electron": 0.12, "MuonTight": 0.25}

# A jet is of the heaviest b or c hadron this near to its axis: the jet's own radius.
FLAVOUR_DISTANCE = 0.4

# Loose working point of the CMS Phase-II card (btagLoose): rows are the upper edges in pT (GeV),
# columns those in |eta|; beyond 3.4 nothing is tagged. Neighbouring bins of the card within 0.02 of
# each other are merged.
TAG_PT_EDGES = (30.0, 40.0, 50.0, 70.0, 140.0, 250.0, 400.0)
TAG_ETA_EDGES = (1.8, 2.4, 3.0, 3.4)
TAG_EFFICIENCY_B = np.array(
    [
        [0.712, 0.543, 0.407, 0.20],
        [0.788, 0.627, 0.479, 0.235],
        [0.837, 0.701, 0.529, 0.26],
        [0.865, 0.748, 0.595, 0.295],
        [0.883, 0.787, 0.653, 0.32],
        [0.867, 0.743, 0.595, 0.29],
        [0.814, 0.628, 0.532, 0.27],
        [0.60, 0.52, 0.503, 0.25],
    ]
)
TAG_EFFICIENCY_C = np.array(
    [
        [0.341, 0.236, 0.179, 0.09],
        [0.389, 0.276, 0.198, 0.10],
        [0.416, 0.302, 0.219, 0.11],
        [0.440, 0.334, 0.229, 0.115],
        [0.448, 0.350, 0.252, 0.125],
        [0.420, 0.310, 0.232, 0.115],
        [0.367, 0.240, 0.194, 0.10],
        [0.25, 0.20, 0.187, 0.09],
    ]
)
TAG_EFFICIENCY_LIGHT = np.full_like(TAG_EFFICIENCY_B, 0.10)


def find_jets(detected: dict[str, ak.Array], heavy: HeavyHadrons, rng: np.random.Generator) -> ak.Array:
    """Cluster the energy flow into jets, label and tag them.

    Parameters
    ----------
    detected : dict of ak.Array
        From `hepdask.simulation.detector.reconstruct`.
    heavy : HeavyHadrons
        For the flavour.
    rng : numpy.random.Generator
        One uniform number a jet.

    Returns
    -------
    ak.Array
        Jagged records ``PT Eta Phi Mass`` (float32, GeV) and ``Flavor BTag`` (uint32), highest pT first.
        ``Flavor`` is 5, 4 or 0, ``BTag`` 1 or 0.

    Raises
    ------
    MissingDependency
        If fastjet is not installed.
    """
    jets = _cluster(energy_flow(detected))
    jets = jets[ak.argsort(jets.pt, axis=1, ascending=False)]
    events = len(jets)
    event = np.repeat(np.arange(events), ak.to_numpy(ak.num(jets)))
    flat = {name: ak.to_numpy(ak.flatten(jets[name])) for name in ("pt", "eta", "phi", "mass")}
    kept = ~_is_lepton(event, flat["eta"], flat["phi"], detected)
    event, flat = event[kept], {name: column[kept] for name, column in flat.items()}
    flavour = _flavour(event, flat["eta"], flat["phi"], heavy)
    tagged = rng.random(len(event)) < tag_efficiency(flavour, flat["pt"], flat["eta"])
    columns = {
        "PT": flat["pt"],
        "Eta": flat["eta"],
        "Phi": flat["phi"],
        "Mass": flat["mass"],
        "Flavor": flavour.astype(np.uint32),
        "BTag": tagged.astype(np.uint32),
    }
    return jagged(event, events, columns)


def energy_flow(detected: dict[str, ak.Array]) -> ak.Array:
    """All energy-flow objects of each event as ``pt eta phi mass``, float64, towers without mass."""
    tracks = detected["EFlowTrack"]
    parts = [ak.zip({"pt": tracks.PT, "eta": tracks.Eta, "phi": tracks.Phi, "mass": tracks.Mass})]
    for name in ("EFlowPhoton", "EFlowNeutralHadron"):
        towers = detected[name]
        parts.append(
            ak.zip({"pt": towers.ET, "eta": towers.Eta, "phi": towers.Phi, "mass": ak.zeros_like(towers.ET)})
        )
    return ak.values_astype(ak.concatenate(parts, axis=1), np.float64)


def tag_efficiency(flavour: Ints, pt: Floats, eta: Floats) -> Floats:
    """Probability that a jet gets a b-tag, by flavour, pT (GeV) and |eta|."""
    row = np.searchsorted(TAG_PT_EDGES, pt)
    column = np.searchsorted(TAG_ETA_EDGES, np.abs(eta))
    table = np.stack([TAG_EFFICIENCY_LIGHT, TAG_EFFICIENCY_C, TAG_EFFICIENCY_B])
    inside = column < len(TAG_ETA_EDGES)
    return np.where(inside, table[np.clip(flavour - 3, 0, 2), row, np.where(inside, column, 0)], 0.0)


def _cluster(objects: ak.Array) -> ak.Array:
    """Run anti-kT on every event; records ``pt eta phi mass`` of jets above `MIN_PT`."""
    fastjet = _fastjet()
    pz = objects.pt * np.sinh(objects.eta)
    momenta = ak.zip(
        {
            "px": objects.pt * np.cos(objects.phi),
            "py": objects.pt * np.sin(objects.phi),
            "pz": pz,
            "E": np.sqrt(objects.pt**2 + pz**2 + objects.mass**2),
        }
    )
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, RADIUS)
    found: Any = fastjet.ClusterSequence(momenta, definition).inclusive_jets(min_pt=MIN_PT)
    pt = np.hypot(found.px, found.py)
    mass_squared = found.E**2 - pt**2 - found.pz**2
    return ak.zip(
        {
            "pt": pt,
            "eta": np.arcsinh(found.pz / pt),
            "phi": np.arctan2(found.py, found.px),
            "mass": np.sqrt(np.maximum(mass_squared, 0.0)),
        }
    )


def _fastjet() -> Any:
    """Import fastjet and keep its banner off standard output, where commands print their answers."""
    try:
        import fastjet
        from fastjet._swig import ClusterSequence
    except ImportError as error:
        raise MissingDependency("finding jets needs fastjet: pip install 'hepdask[simulate]'") from error
    ClusterSequence.set_fastjet_banner_stream(None)
    return fastjet


def _is_lepton(event: Ints, eta: Floats, phi: Floats, detected: dict[str, ak.Array]) -> Bools:
    """Which jets lie on an isolated electron or muon."""
    near = np.zeros(len(event), dtype=np.bool_)
    for name, limit in MAX_ISOLATION.items():
        leptons = detected[name]
        isolated = ak.flatten(isolation(leptons, detected) < limit)
        of_event = np.repeat(np.arange(len(leptons)), ak.to_numpy(ak.num(leptons)))
        rows = ak.to_numpy(isolated)
        lepton_eta, lepton_phi = (ak.to_numpy(ak.flatten(leptons[f]))[rows] for f in ("Eta", "Phi"))
        jet, _ = _pairs(event, eta, phi, of_event[rows], lepton_eta, lepton_phi, LEPTON_DISTANCE)
        near[jet] = True
    return near


def isolation(leptons: ak.Array, detected: dict[str, ak.Array]) -> ak.Array:
    """Sum of the energy flow around leptons over their pT, own track left out.

    Parameters
    ----------
    leptons : ak.Array
        Jagged records with ``PT Eta Phi``.
    detected : dict of ak.Array
        The energy flow of the same events.

    Returns
    -------
    ak.Array
        Jagged like ``leptons``, float64.
    """
    objects = energy_flow(detected)
    objects = objects[objects.pt > ISOLATION_MIN_PT]
    pair = ak.cartesian({"lepton": leptons, "object": objects}, axis=1, nested=True)
    distance = np.hypot(
        pair.lepton.Eta - pair.object.eta,
        delta_phi(pair.lepton.Phi, pair.object.phi),
    )
    around = ak.sum(ak.where(distance < ISOLATION_CONE, pair.object.pt, 0.0), axis=2)
    return around / leptons.PT - 1.0


def _flavour(event: Ints, eta: Floats, phi: Floats, heavy: HeavyHadrons) -> Ints:
    """5, 4 or 0 for each jet: the heaviest hadron within `FLAVOUR_DISTANCE`."""
    flavour = np.zeros(len(event), dtype=np.int64)
    jet, hadron = _pairs(event, eta, phi, heavy.event, heavy.eta, heavy.phi, FLAVOUR_DISTANCE)
    np.maximum.at(flavour, jet, heavy.flavour[hadron])
    return flavour


def _pairs(
    event: Ints,
    eta: Floats,
    phi: Floats,
    other_event: Ints,
    other_eta: Floats,
    other_phi: Floats,
    reach: float,
) -> tuple[Ints, Ints]:
    """Rows of all pairs of one event that are nearer than ``reach`` in (eta, phi).

    Parameters
    ----------
    event, eta, phi : (n,) arrays
        The first set; ``event`` not decreasing.
    other_event, other_eta, other_phi : (m,) arrays
        The second set, in any order.
    reach : float
        Distance in (eta, phi).

    Returns
    -------
    (k,) int64, (k,) int64
        Rows of the first and of the second set.
    """
    start = np.searchsorted(event, other_event, side="left")
    length = np.searchsorted(event, other_event, side="right") - start
    second = np.repeat(np.arange(len(other_event)), length)
    offset = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    first = start[second] + offset
    near = np.hypot(eta[first] - other_eta[second], delta_phi(phi[first], other_phi[second])) < reach
    return first[near], second[near]
