"""Simulated events against physics and against the numbers that were put in: what a wrong formula would change."""

from __future__ import annotations

import awkward as ak
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("pythia8mc")
pytest.importorskip("fastjet")

from hepdask.analysis import cutflow, topology
from hepdask.config import Topology
from hepdask.simulation import detector, simulate_block
from hepdask.simulation import pythia as generators
from hepdask.simulation.jets import isolation, tag_efficiency
from hepdask.simulation.particles import NEUTRINOS, Generated, Particles, delta_phi

W_MASS, W_WIDTH = 80.4, 2.1  # GeV
SIGMAS = 4.0


@pytest.fixture(scope="session")
def top_pairs() -> ak.Array:
    return simulate_block("ttbar", 300, seed=21, block=0)


@pytest.fixture(scope="session")
def w_truth() -> Generated:
    return generators.generate(generators.make_generator("wjets", 22), 400)


@pytest.fixture(scope="session")
def crossings() -> dict[float, ak.Array]:
    """The same W events alone and under 20 further collisions."""
    return {pileup: simulate_block("wjets", 150, seed=23, block=0, pileup=pileup) for pileup in (0.0, 20.0)}


def flat(array: ak.Array) -> NDArray:
    return ak.to_numpy(ak.flatten(array))


def transverse_mass(first: NDArray, second: NDArray) -> NDArray:
    """Of two massless momenta, columns (px, py)."""
    lengths = np.hypot(*first) * np.hypot(*second)
    return np.sqrt(np.maximum(2 * (lengths - (first * second).sum(axis=0)), 0))


def gun(pid: int, pt: float, eta: float, shots: int) -> Particles:
    """Single particles from the origin, one an event."""
    rng = np.random.default_rng((abs(pid), int(pt), int(10 * abs(eta))))
    phi = rng.uniform(-np.pi, np.pi, shots)
    zero = np.zeros(shots)
    return Particles(
        event=np.arange(shots), pid=np.full(shots, pid), charge=np.full(shots, -np.sign(pid) * 1.0),
        px=pt * np.cos(phi), py=pt * np.sin(phi), pz=zero + pt * np.sinh(eta), e=zero + pt * np.cosh(eta),
        m=zero, x=zero, y=zero, z=zero,
    )  # fmt: skip


# --- what the generator hands over -------------------------------------------------------------------


def test_every_collision_has_the_energy_of_the_beams_and_no_momentum(w_truth: Generated) -> None:
    found = w_truth.particles
    for column, total in ((found.e, 13_000.0), (found.px, 0.0), (found.py, 0.0), (found.pz, 0.0)):
        assert np.bincount(found.event, weights=column) == pytest.approx(total, abs=1e-2)


def test_top_pairs_hold_two_b_hadrons_in_different_directions() -> None:
    """|Vtb| is near 1; hardly a b hadron of a top is softer than the 5 GeV from which on hadrons are kept."""
    events = 200
    truth = generators.generate(generators.make_generator("ttbar", 24), events)
    bottom = truth.heavy.take(truth.heavy.flavour == 5)
    apart = np.zeros(events)
    for event in range(events):
        mine = bottom.take(bottom.event == event)  # a b hadron and the one it turns into go the same way
        distances = np.hypot(mine.eta[:, None] - mine.eta, delta_phi(mine.phi[:, None], mine.phi))
        apart[event] = distances.max(initial=0.0)
    assert np.mean(apart > 0.4) > 0.93


def test_transverse_mass_ends_at_the_mass_of_the_w(w_truth: Generated) -> None:
    """Of the hardest muon and neutrino: the Jacobian peak lies just below 80 GeV; only the W's width is behind it."""
    found = w_truth.particles
    masses = []
    for event in np.unique(found.event[np.abs(found.pid) == 13]):
        mine = found.take(found.event == event)
        muons, neutrinos = mine.take(np.abs(mine.pid) == 13), mine.take(np.abs(mine.pid) == 14)
        if not len(neutrinos) or muons.pt.max() < 15:
            continue
        pair = (one.take(np.array([np.argmax(one.pt)])) for one in (muons, neutrinos))
        first, second = (np.array([one.px, one.py]) for one in pair)
        masses.append(transverse_mass(first, second)[0])
    edge = W_MASS + 2 * W_WIDTH
    counts, _ = np.histogram(masses, edge + 14.0 * np.arange(-2, 2))
    assert len(masses) > 80
    assert counts[1] > counts[0] > 0
    assert counts[1] > 5 * counts[2]


# --- what the detector makes of it -------------------------------------------------------------------


def test_missing_momentum_is_that_of_the_neutrinos() -> None:
    """Without pile-up: right on average in size and direction, for W bosons whose neutrino is hard."""
    truth = generators.generate(generators.make_generator("wjets", 25), 150)
    found = truth.particles
    invisible = found.take(np.isin(np.abs(found.pid), NEUTRINOS))
    x, y = (np.bincount(invisible.event, weights=p, minlength=150) for p in (invisible.px, invisible.py))
    met = detector.missing_et(detector.reconstruct(found, 150, np.random.default_rng(1)))
    size, phi = flat(met.MET), flat(met.Phi)
    hard = np.hypot(x, y) > 30
    assert hard.sum() > 40
    along = (size * (np.cos(phi) * x + np.sin(phi) * y) / np.hypot(x, y) - np.hypot(x, y))[hard]
    across = (size * (np.cos(phi) * y - np.sin(phi) * x) / np.hypot(x, y))[hard]
    for residual in (along, across):
        assert abs(np.median(residual)) < 8
        assert np.quantile(np.abs(residual), 0.68) < 25


@pytest.mark.parametrize(
    ("pid", "pt", "eta", "expected"),
    [
        # tracking times identification, as docs/simulation.md has them from Delphes' card
        (11, 25.0, 0.8, 0.97 * 0.94),
        (11, 40.0, 0.8, 0.97 * 0.97),
        (-11, 80.0, 1.8, 0.90 * 0.95),
        (11, 40.0, 1.5, 0.90 * 0.45),
        (13, 40.0, 0.5, 0.969),
        (-13, 40.0, 2.0, 0.975),
        (13, 40.0, 2.7, 0.78),
        (13, 40.0, 3.0, 0.0),
    ],
)
def test_leptons_are_found_with_the_efficiency_put_in(
    pid: int, pt: float, eta: float, expected: float
) -> None:
    shots = 8000
    seen = detector.reconstruct(gun(pid, pt, eta, shots), shots, np.random.default_rng(2))
    found = ak.num(seen["Electron" if abs(pid) == 11 else "MuonTight"])
    other = seen["MuonTight" if abs(pid) == 11 else "Electron"]
    error = np.sqrt(max(expected * (1 - expected), 1e-9) / shots)
    assert ak.mean(found) == pytest.approx(expected, abs=SIGMAS * error + 1e-9)
    assert ak.sum(ak.num(other)) == 0


def test_hadrons_are_never_leptons_and_tracked_as_often_as_put_in() -> None:
    shots = 8000
    for eta, expected in ((0.5, 0.97), (2.0, 0.87), (3.0, 0.82), (4.2, 0.0)):
        seen = detector.reconstruct(gun(-211, 20.0, eta, shots), shots, np.random.default_rng(3))
        error = np.sqrt(expected * (1 - expected) / shots)
        assert ak.mean(ak.num(seen["EFlowTrack"])) == pytest.approx(expected, abs=SIGMAS * error + 1e-9)
        assert not ak.sum(ak.num(seen["Electron"])) + ak.sum(ak.num(seen["MuonTight"]))


@pytest.mark.parametrize("flavour", [5, 4, 0])
def test_jets_are_tagged_with_the_efficiency_put_in(top_pairs: ak.Array, flavour: int) -> None:
    """Of some 450 b jets, 200 c jets and 1000 light ones, in four ranges of pT."""
    jets = ak.flatten(top_pairs.Jet)
    mine = jets[(jets.Flavor == flavour) & (abs(jets.Eta) < 3.4)]
    pt = ak.to_numpy(mine.PT)
    expected = tag_efficiency(np.full(len(mine), flavour), pt, ak.to_numpy(mine.Eta))
    tagged = ak.to_numpy(mine.BTag > 0)
    assert len(mine) > 150
    for low, high in ((20, 40), (40, 80), (80, 1e4), (20, 1e4)):
        inside = (pt > low) & (pt < high)
        error = np.sqrt((expected * (1 - expected))[inside].sum())
        assert abs(tagged[inside].sum() - expected[inside].sum()) < SIGMAS * error


def test_phi_of_leptons_jets_and_missing_momentum_is_uniform(top_pairs: ak.Array) -> None:
    """One direction an event for each, so the first harmonics of 300 events are within their errors."""
    leptons = ak.concatenate([top_pairs.Electron.Phi, top_pairs.MuonTight.Phi], axis=1)
    for phi in (leptons, top_pairs.Jet.Phi, top_pairs.MissingET.Phi):
        first = ak.to_numpy(ak.firsts(phi)).compressed() if ak.any(ak.num(phi) == 0) else flat(phi[:, :1])
        for harmonic in (1, 2):
            for wave in (np.cos, np.sin):
                assert abs(np.mean(wave(harmonic * first))) < SIGMAS * np.sqrt(0.5 / len(first))


def test_transverse_mass_of_reconstructed_events_falls_behind_the_edge(w_truth: Generated) -> None:
    collections = detector.reconstruct(w_truth.particles, 400, np.random.default_rng(4))
    met = detector.missing_et(collections)
    leptons = ak.concatenate([collections["Electron"], collections["MuonTight"]], axis=1)
    leptons = leptons[leptons.PT > 23]
    one = ak.to_numpy(ak.num(leptons) == 1)
    pt, phi = flat(leptons.PT[one]), flat(leptons.Phi[one])
    size, direction = flat(met.MET[one]), flat(met.Phi[one])
    mass = np.sqrt(2 * pt * size * (1 - np.cos(phi - direction)))
    before, behind = np.sum((mass > 60) & (mass < 80)), np.sum((mass > 100) & (mass < 120))
    assert len(mass) > 120
    assert before > 3 * behind


# --- isolation under pile-up -------------------------------------------------------------------------


def around_leptons(block: ak.Array) -> NDArray:
    """Give the pT summed around each hard central lepton [GeV], its own left out."""
    found = ak.concatenate([block.Electron, block.MuonTight], axis=1)
    found = found[(found.PT > 23) & (abs(found.Eta) < 2.0)]
    relative = isolation(found, {name: block[name] for name in block.fields if name.startswith("EFlow")})
    return flat(relative * found.PT)


def test_pile_up_adds_its_density_to_the_isolation(crossings: dict[float, ak.Array]) -> None:
    """Nothing is subtracted: the sum in the cone grows by its area times the pT density of the added collisions."""
    alone, crowded = crossings[0.0], crossings[20.0]
    density = 0.0
    for name, pt in (("EFlowTrack", "PT"), ("EFlowPhoton", "ET"), ("EFlowNeutralHadron", "ET")):
        sums = []
        for block in (alone, crowded):
            objects = block[name]
            objects = objects[(abs(objects.Eta) < 2.0) & (objects[pt] > 0.5)]
            sums.append(ak.sum(objects[pt]))
        density += (sums[1] - sums[0]) / (150 * 4.0 * 2 * np.pi)
    before, after = around_leptons(alone), around_leptons(crowded)
    added = after.mean() - before.mean()
    error = np.hypot(after.std() / np.sqrt(len(after)), before.std() / np.sqrt(len(before)))
    assert density > 5
    assert added == pytest.approx(density * np.pi * 0.3**2, abs=SIGMAS * error)
    assert len(after) > 25


def test_pile_up_costs_isolated_leptons(crossings: dict[float, ak.Array]) -> None:
    """As docs/simulation.md says: nearly all leptons of W bosons are isolated, under 20 collisions some less."""
    shares = []
    for block in crossings.values():
        reason = topology.extract(block, Topology()).reason
        with_lepton = reason != cutflow.NO_LEPTON
        shares.append(np.mean(reason[with_lepton] == cutflow.SELECTED))
    assert shares[0] > 0.95
    assert 0.8 < shares[1] < shares[0]
