"""Simulated events: real Pythia, small blocks, analysis that a mistake would spoil."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from numpy.typing import NDArray

pytest.importorskip("pythia8mc")
pytest.importorskip("fastjet")

from hepdask.errors import MissingDependency
from hepdask.simulation import PROCESSES, read_provenance, simulate_block, write_events
from hepdask.simulation import pythia as generators
from hepdask.simulation.calorimeter import ECAL, Deposits, energy_flow
from hepdask.simulation.enrichment import MAX_LEPTON_ETA, MIN_LEPTON_PT
from hepdask.simulation.jets import tag_efficiency
from hepdask.simulation.particles import Particles, delta_phi, hadron_flavour
from hepdask.simulation.pileup import VERTEX_SPREAD_MM
from hepdask.simulation.tracker import FIELD_T, RADIUS_M, propagate

FIELDS = {
    "EFlowTrack": "PID Charge PT Eta Phi Mass X Y Z",
    "EFlowPhoton": "ET Eta Phi",
    "EFlowNeutralHadron": "ET Eta Phi",
    "Electron": "PT Eta Phi Charge",
    "MuonTight": "PT Eta Phi Charge",
    "Jet": "PT Eta Phi Mass Flavor BTag",
    "MissingET": "MET Phi Eta",
    "GenInfo": "Number Parent NPU",
}


@pytest.fixture(scope="module")
def ttbar() -> ak.Array:
    return simulate_block("ttbar", 300, seed=1, block=2)


@pytest.fixture(scope="module")
def wjets() -> ak.Array:
    return simulate_block("wjets", 300, seed=1, block=0)


@pytest.fixture(scope="module")
def qcd() -> ak.Array:
    return simulate_block("qcd", 20, seed=3, block=1)


def flat(array: ak.Array) -> NDArray:
    return ak.to_numpy(ak.flatten(array))


# --- the block ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "pileup"), [("ttbar", 0.0), ("wjets", 2.0)])
def test_same_arguments_same_events(process: str, pileup: float) -> None:
    first, second = (simulate_block(process, 6, seed=5, block=7, pileup=pileup) for _ in range(2))
    assert ak.array_equal(first, second)


def test_enriched_block_is_deterministic() -> None:
    first, second = (simulate_block("qcd", 2, seed=5, block=7) for _ in range(2))
    assert ak.array_equal(first, second)


def test_blocks_and_seeds_differ() -> None:
    pts = [
        tuple(flat(simulate_block("wjets", 2, seed=seed, block=block).EFlowTrack.PT)[:5])
        for seed, block in ((1, 0), (1, 1), (2, 0))
    ]
    assert len(set(pts)) == 3


@pytest.mark.parametrize("events", [1, 3])
@pytest.mark.parametrize("process", PROCESSES)
def test_exactly_as_many_events_as_asked_for(process: str, events: int) -> None:
    block = simulate_block(process, events, seed=0, block=0, enrich=False)
    assert len(block) == events
    assert flat(block.GenInfo.Number).tolist() == list(range(events))


def test_collections_fields_and_types(ttbar: ak.Array) -> None:
    assert set(ttbar.fields) == set(FIELDS)
    integers = {"PID": "int32", "Charge": "int32", "Flavor": "uint32", "BTag": "uint32"}
    integers |= {"Number": "int32", "Parent": "int64", "NPU": "int32"}
    for name, fields in FIELDS.items():
        assert ttbar[name].fields == fields.split()
        for field in ttbar[name].fields:
            assert flat(ttbar[name][field]).dtype == integers.get(field, "float32")
    assert ak.all(ak.num(ttbar.MissingET) == 1)
    assert ak.all(ak.num(ttbar.GenInfo) == 1)


def test_unknown_process_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'zjets'.*ttbar, wjets, qcd"):
        simulate_block("zjets", 1, seed=0, block=0)


@pytest.mark.parametrize(
    ("events", "wrong"), [(0, {}), (1, {"seed": -1}), (1, {"block": -1}), (1, {"pileup": -1.0})]
)
def test_impossible_arguments_are_refused(events: int, wrong: dict[str, float]) -> None:
    arguments = {"seed": 0, "block": 0} | wrong
    with pytest.raises(ValueError, match=r"at least one event|negative"):
        simulate_block("ttbar", events, **arguments)  # type: ignore[arg-type]


def test_missing_pythia_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pythia8mc", None)
    with pytest.raises(MissingDependency, match=r"hepdask\[simulate\]"):
        simulate_block("ttbar", 1, seed=0, block=0)


def test_banner_of_fastjet_stays_off_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    simulate_block("wjets", 1, seed=0, block=0)
    assert capfd.readouterr().out == ""


# --- physics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["ttbar", "wjets", "qcd"])
def test_everything_is_in_acceptance_and_finite(process: str, request: pytest.FixtureRequest) -> None:
    block = request.getfixturevalue(process)
    for name in block.fields:
        for field in block[name].fields:
            assert np.isfinite(flat(block[name][field])).all(), (name, field)
    assert np.abs(flat(block.EFlowTrack.Eta)).max() <= 4.0
    assert np.hypot(flat(block.EFlowTrack.X), flat(block.EFlowTrack.Y)).max() < 1e3 * RADIUS_M
    assert set(flat(abs(block.EFlowTrack.Charge))) == {1}
    for name in ("EFlowPhoton", "EFlowNeutralHadron"):
        assert np.abs(flat(block[name].Eta)).max() <= 5.0
        assert flat(block[name].ET).min() > 0
    assert flat(block.MuonTight.PT).min() > 10
    assert flat(block.Jet.PT).min() >= 20
    assert flat(block.Jet.PT).tolist() == flat(ak.sort(block.Jet.PT, ascending=False)).tolist()


@pytest.mark.parametrize("collection", ["EFlowTrack", "EFlowPhoton", "EFlowNeutralHadron"])
def test_phi_is_uniform(ttbar: ak.Array, collection: str) -> None:
    """Within one event directions go together, so compare the mean direction of events, not particles."""
    phi = ttbar[collection].Phi
    resultant = np.array([ak.mean(np.cos(phi)), ak.mean(np.sin(phi))])
    spread = np.std(ak.to_numpy(ak.mean(np.cos(phi), axis=1))) / np.sqrt(len(ttbar))
    assert np.abs(resultant).max() < 4.5 * spread
    counts, _ = np.histogram(flat(phi), bins=8, range=(-np.pi, np.pi))
    assert counts.max() / counts.min() < 1.25


def test_missing_momentum_balances_the_energy_flow(ttbar: ak.Array) -> None:
    x, y = np.zeros(len(ttbar)), np.zeros(len(ttbar))
    for name, pt in (("EFlowTrack", "PT"), ("EFlowPhoton", "ET"), ("EFlowNeutralHadron", "ET")):
        objects = ttbar[name]
        x -= ak.to_numpy(ak.sum(objects[pt] * np.cos(objects.Phi), axis=1))
        y -= ak.to_numpy(ak.sum(objects[pt] * np.sin(objects.Phi), axis=1))
    met, phi = flat(ttbar.MissingET.MET), flat(ttbar.MissingET.Phi)
    np.testing.assert_allclose(met * np.cos(phi), x, atol=2e-3)
    np.testing.assert_allclose(met * np.sin(phi), y, atol=2e-3)


def test_leptons_lie_on_their_own_tracks(ttbar: ak.Array) -> None:
    for name, code in (("Electron", 11), ("MuonTight", 13)):
        tracks = ttbar.EFlowTrack[abs(ttbar.EFlowTrack.PID) == code]
        pair = ak.cartesian({"lepton": ttbar[name], "track": tracks}, nested=True)
        same = (pair.lepton.Eta == pair.track.Eta) & (pair.lepton.Phi == pair.track.Phi)
        assert ak.all(ak.sum(same, axis=2) == 1)
        assert ak.all(pair.lepton.PT[same] == pair.track.PT[same])
        assert ak.all(pair.lepton.Charge[same] == pair.track.Charge[same])


def test_top_pairs_have_two_b_jets(ttbar: ak.Array) -> None:
    """Two b quarks an event, about 80 % of them in jets of the acceptance, tagged at 70 to 88 %."""
    jets = ttbar.Jet[(ttbar.Jet.PT > 30) & (abs(ttbar.Jet.Eta) < 2.6)]
    from_b = jets.Flavor == 5
    assert 1.3 < ak.mean(ak.sum(from_b, axis=1)) < 1.9
    assert 1.3 < ak.mean(ak.sum(jets.BTag > 0, axis=1)) < 2.0
    assert 0.75 < ak.mean(flat(jets.BTag[from_b] > 0)) < 0.92
    assert 0.04 < ak.mean(flat(jets.BTag[jets.Flavor == 0] > 0)) < 0.17
    assert 3.5 < ak.mean(ak.num(jets)) < 4.7


def test_transverse_mass_of_the_w_has_its_edge(wjets: ak.Array) -> None:
    muon = wjets.MuonTight[wjets.MuonTight.PT > 23]
    one = ak.to_numpy(ak.num(muon) == 1)
    muon, met = muon[one][:, 0], wjets.MissingET[one][:, 0]
    mt = ak.to_numpy(np.sqrt(2 * muon.PT * met.MET * (1 - np.cos(muon.Phi - met.Phi))))
    assert len(mt) > 20
    assert 55 < np.median(mt) < 85
    assert np.mean(mt > 110) < 0.15


def test_isolated_leptons_are_not_jets(wjets: ak.Array) -> None:
    muon = wjets.MuonTight[wjets.MuonTight.PT > 23]
    pair = ak.cartesian({"muon": muon, "jet": wjets.Jet})
    distance = np.hypot(pair.muon.Eta - pair.jet.Eta, delta_phi(pair.muon.Phi, pair.jet.Phi))
    assert ak.sum(distance < 0.2) <= 0.05 * ak.sum(ak.num(muon))


def test_enriched_qcd_has_a_hard_lepton(qcd: ak.Array) -> None:
    """The generator made one above 22 GeV; tracking, identification and resolution lose some."""
    hard = ak.concatenate([qcd.Electron, qcd.MuonTight], axis=1).PT > 0.93 * MIN_LEPTON_PT
    assert ak.mean(ak.any(hard, axis=1)) > 0.55


def test_enriched_generator_events_pass_their_own_filter() -> None:
    from hepdask.simulation import enrichment

    generator = generators.make_generator("qcd", 4, *enrichment.SETTINGS)
    made = enrichment.generate_enriched(generator, 4)
    leptons = made.particles.take(
        np.isin(np.abs(made.particles.pid), (11, 13))
        & (made.particles.pt > MIN_LEPTON_PT)
        & (np.abs(made.particles.eta) < MAX_LEPTON_ETA)
    )
    assert set(leptons.event) == set(range(4))
    # Colour and energy are conserved whatever was redone: 13 TeV in every event.
    energy = np.bincount(made.particles.event, weights=made.particles.e)
    np.testing.assert_allclose(energy, 13_000.0, rtol=1e-5)


def test_parents_are_repeated_in_enriched_qcd_only(qcd: ak.Array, ttbar: ak.Array) -> None:
    assert len(set(flat(qcd.GenInfo.Parent))) < len(qcd)
    assert np.all(np.diff(flat(qcd.GenInfo.Parent)) >= 0)
    assert len(set(flat(ttbar.GenInfo.Parent))) == len(ttbar)
    assert set(flat(qcd.GenInfo.Parent) >> 32) == {1}
    assert set(flat(ttbar.GenInfo.Parent) >> 32) == {2}


def test_plain_qcd_has_next_to_no_leptons() -> None:
    plain = simulate_block("qcd", 60, seed=3, block=0, enrich=False)
    leptons = ak.concatenate([plain.Electron, plain.MuonTight], axis=1)
    assert ak.mean(ak.any(leptons.PT > 23, axis=1)) < 0.1
    assert len(set(flat(plain.GenInfo.Parent))) == 60


def test_pile_up_adds_its_tracks_to_the_same_hard_collisions() -> None:
    clean = simulate_block("wjets", 40, seed=8, block=0)
    crowded = simulate_block("wjets", 40, seed=8, block=0, pileup=10.0)
    collisions = flat(crowded.GenInfo.NPU)
    assert flat(clean.GenInfo.NPU).tolist() == [0] * 40
    assert collisions.mean() == pytest.approx(10.0, abs=4 * np.sqrt(10 / 40))
    added = ak.sum(ak.num(crowded.EFlowTrack)) - ak.sum(ak.num(clean.EFlowTrack))
    # Minimum bias at 13 TeV: some 16 tracks a collision above 0.2 GeV in |eta| < 4 after efficiency.
    assert 11 < added / collisions.sum() < 22


def test_vertices_are_spread_along_the_beam(wjets: ak.Array) -> None:
    vertices = np.array([np.median(z) for z in wjets.EFlowTrack.Z if len(z)])
    assert vertices.std() == pytest.approx(VERTEX_SPREAD_MM, rel=0.15)
    assert abs(vertices.mean()) < 4 * VERTEX_SPREAD_MM / np.sqrt(len(vertices))


# --- parts with an answer known beforehand -----------------------------------------------------------


def particle(**columns: float) -> Particles:
    names = ("px", "py", "pz", "e", "m", "x", "y", "z", "charge")
    values = {name: np.array([columns.get(name, 0.0)]) for name in names}
    return Particles(event=np.array([0]), pid=np.array([211]), **values)


def test_straight_line_to_the_barrel() -> None:
    impact = propagate(particle(px=10.0, pz=5.0, e=12.0))
    assert impact.reaches[0]
    assert impact.phi[0] == pytest.approx(0.0, abs=1e-5)
    assert impact.eta[0] == pytest.approx(np.arcsinh(0.5), abs=1e-5)


@pytest.mark.parametrize("charge", [1.0, -1.0])
def test_helix_bends_by_the_sagitta_formula(charge: float) -> None:
    """Sin(dphi) = 0.3 B R / (2 pT), from the origin to radius R; positive charges turn clockwise."""
    impact = propagate(particle(px=3.0, pz=1.0, e=3.2, charge=charge))
    bend = np.arcsin(0.299792458 * FIELD_T * RADIUS_M / (2 * 3.0))
    assert impact.phi[0] == pytest.approx(-charge * bend, abs=1e-6)


def test_looper_leaves_through_the_end() -> None:
    impact = propagate(particle(px=0.2, pz=0.1, e=0.3, charge=1.0))
    assert impact.reaches[0]
    assert abs(np.sinh(impact.eta[0])) > 3.0 / RADIUS_M


def test_particles_made_outside_are_lost() -> None:
    assert not propagate(particle(px=5.0, pz=1.0, e=6.0, x=1400.0)).reaches[0]


def test_tower_sums_photons_and_takes_off_tracks() -> None:
    """Two photons of one tower become one object; a tower that its tracks account for becomes none."""
    copies = 400
    event = np.repeat(np.arange(copies), 3)
    deposits = Deposits(
        event=event,
        eta=np.tile([0.101, 0.102, -1.0], copies),
        phi=np.tile([0.501, 0.502, 2.0], copies),
        energy=np.tile([30.0, 20.0, 100.0], copies),
        tracked=np.tile([0.0, 0.0, 101.0], copies),
    )
    towers = energy_flow(deposits, ECAL, np.random.default_rng(0))
    together = towers.eta > 0
    assert together.sum() == copies
    assert np.mean(towers.et[together] * np.cosh(towers.eta[together])) == pytest.approx(50.0, rel=0.01)
    assert np.abs(towers.eta[together] - 0.1).max() < 0.02
    # One in six or so fluctuates upwards by more than one standard deviation.
    assert (~together).sum() < 0.2 * copies


def test_hadron_flavour_by_pdg_digits() -> None:
    codes = np.array([511, -521, 5122, 411, 4122, 443, 553, 211, 2212, 5, 5103, 10411, 22, 100553])
    assert hadron_flavour(codes).tolist() == [5, 5, 5, 4, 4, 4, 5, 0, 0, 0, 0, 4, 0, 5]


def test_tagging_knows_flavour_and_acceptance() -> None:
    flavour = np.array([5, 4, 0, 5])
    efficiency = tag_efficiency(flavour, np.full(4, 80.0), np.array([0.0, 0.0, 0.0, 3.5]))
    assert efficiency.tolist() == pytest.approx([0.883, 0.448, 0.10, 0.0])


# --- the file ----------------------------------------------------------------------------------------


def test_file_has_delphes_layout(tmp_path: Path, ttbar: ak.Array, wjets: ak.Array) -> None:
    path = tmp_path / "sample.root"
    provenance = {"process": "ttbar", "seed": 1}
    assert write_events(path, iter([ttbar, wjets]), provenance, "ttbar 1") == 600
    assert [p.name for p in tmp_path.iterdir()] == ["sample.root"]
    with uproot.open(path) as file:
        tree = file["Delphes"]
        assert tree.num_entries == 600
        expected = {f"{name}_size" for name in FIELDS}
        expected |= {f"{name}.{field}" for name, fields in FIELDS.items() for field in fields.split()}
        assert set(tree.keys()) == expected
        assert tree["EFlowTrack.PT"].num_baskets == 2
        for name in FIELDS:
            counts = tree[f"{name}_size"].array(library="np")
            assert counts[:300].tolist() == ak.num(ttbar[name]).tolist()
            for field in ttbar[name].fields:
                assert ak.array_equal(tree[f"{name}.{field}"].array()[300:], wjets[name][field])
        assert json.loads(str(file["hepdask"])) == provenance
    assert read_provenance(path) == provenance


def test_file_uuid_follows_from_its_seed(tmp_path: Path, qcd: ak.Array) -> None:
    def identity(name: str, uuid_seed: str) -> uuid.UUID:
        write_events(tmp_path / name, [qcd], {}, uuid_seed)
        with uproot.open(tmp_path / name) as file:
            return file.file.uuid

    assert identity("a.root", "x") == identity("b.root", "x") != identity("c.root", "y")


def test_failure_leaves_the_old_file_and_no_partial_one(tmp_path: Path, qcd: ak.Array) -> None:
    path = tmp_path / "sample.root"
    write_events(path, [qcd], {"run": 1}, "x")

    def broken() -> object:
        yield qcd
        raise RuntimeError("worker lost")

    with pytest.raises(RuntimeError, match="worker lost"):
        write_events(path, broken(), {"run": 2}, "x")  # type: ignore[arg-type]
    assert read_provenance(path) == {"run": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["sample.root"]


def test_no_blocks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no events"):
        write_events(tmp_path / "empty.root", [], {}, "x")
    assert list(tmp_path.iterdir()) == []


def test_foreign_file_has_no_provenance(tmp_path: Path) -> None:
    with uproot.recreate(tmp_path / "other.root") as file:
        file["Delphes"] = {"x": np.arange(3)}
    assert read_provenance(tmp_path / "other.root") is None
