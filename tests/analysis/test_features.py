"""Selection and features against a plain per-event implementation and against events done by hand."""

import math

import awkward as ak
import numpy as np
import pytest
from helpers import events as made
from helpers import naive
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hepdask.analysis import topology
from hepdask.analysis.columns import BadEvent, Columns
from hepdask.analysis.topology.candidates import Scratch
from hepdask.analysis.topology.isolation import cone_sum_of_one, cone_sums, fill_strips, make_strips
from hepdask.analysis.topology.particle_lists import nth_largest, sort_falling
from hepdask.analysis.topology.reference_sequences import published_sequences
from hepdask.config import Topology, feature_names
from hepdask.errors import ConfigError

pytestmark = pytest.mark.unit


def assert_like_naive(plain, analysis=None, caps=(450, 150, 200)):
    """Compare every number of every event with the plain implementation."""
    analysis = analysis or Topology()
    array = made.to_awkward(plain)
    truth = [naive.event_features(e, caps, published=analysis.convention == "reference") for e in plain]
    selected = topology.select(array, analysis)
    assert selected.tolist() == [t is not None for t in truth]
    extracted = topology.extract(array, analysis)
    assert extracted.selected.tolist() == selected.tolist()
    passing = [t for t in truth if t is not None]
    assert extracted.particles.counts.tolist() == [len(particles) for _, particles in passing]
    lists = topology.particles(array[selected], analysis)
    high = topology.high_level(array[selected], analysis)
    sequence = topology.expand_columns(extracted.particles.values)
    for i, (high_level, particles) in enumerate(passing):
        expected = [high_level[n] for n in feature_names.HIGH_LEVEL]
        assert [high[n][i] for n in feature_names.HIGH_LEVEL] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert extracted.high_level[i] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        rows = slice(extracted.particles.offsets[i], extracted.particles.offsets[i + 1])
        in_list = [p for p, _ in sorted(particles, key=lambda p: p[1])]
        for name in feature_names.PARTICLE:
            assert lists[i][name].tolist() == pytest.approx([p[name] for p in in_list], rel=1e-9, abs=1e-9), (
                name
            )
            stored = pytest.approx([p[name] for p, _ in particles], rel=1e-5, abs=1e-5)
            assert sequence[name][rows] == stored, name
    return selected


def test_random_events_match_the_plain_implementation():
    plain = made.random_events(60, seed=1)
    selected = assert_like_naive(plain)
    assert 10 < selected.sum() < 60, "the sample must hold accepted and rejected events"


def test_dense_events_match_the_plain_implementation():
    assert assert_like_naive(made.random_events(6, seed=5, candidates=400)).any()


def test_caps_keep_the_hardest():
    plain = made.random_events(20, seed=2, candidates=40)
    analysis = Topology(max_tracks=10, max_photons=4, max_neutrals=3)
    assert assert_like_naive(plain, analysis, caps=(10, 4, 3)).any()
    assert topology.extract(made.to_awkward(plain), analysis).particles.counts.max() == 18


@given(
    seed=st.integers(0, 2**32),
    candidates=st.integers(0, 80),
    leptons=st.integers(0, 4),
    convention=st.sampled_from(["corrected", "reference"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_random_event_matches(seed, candidates, leptons, convention):
    plain = made.random_events(3, seed, candidates=candidates, leptons=leptons)
    assert_like_naive(plain, Topology(convention=convention))


class TestPublishedConvention:
    """Each difference from the corrected convention, by itself, in the smallest event that shows it."""

    published = Topology(convention="reference")
    filler = {  # noqa: RUF012
        "tracks": [made.track(1, -3, 0)], "photons": [made.thing(2, -3, 0)], "neutrals": [made.thing(2, -3, 0)],
    }  # fmt: skip

    def high_level(self, analysis=None, **collections):
        array = made.to_awkward([made.event(**{**self.filler, **collections})])
        return topology.high_level(array, analysis)[0]

    def test_random_events(self):
        plain = made.random_events(60, seed=6)
        assert assert_like_naive(plain, self.published).any()
        assert assert_like_naive(
            plain, Topology(convention="reference", max_tracks=5), caps=(5, 150, 200)
        ).any()

    def test_a_cone_across_pi_is_cut(self):
        both = {"muons": [made.lepton(40, 0, 3.1)], "photons": [made.thing(4, 0, -3.1)]}
        assert self.high_level(**both).LepIsoGamma == pytest.approx(0.1)
        assert self.high_level(self.published, **both).LepIsoGamma == 0

    def test_one_is_subtracted_from_every_charged_isolation(self):
        alone = {"muons": [made.lepton(40, 0, 0)]}
        assert self.high_level(**alone).LepIsoCh == 0
        assert self.high_level(self.published, **alone).LepIsoCh == -1
        array = made.to_awkward([made.event(**{**self.filler, **alone})])
        photon = topology.particles(array, self.published)[0][2]
        assert (photon.isGamma, photon.ChPFIso, photon.GammaPFIso) == (1, 1 / 2 - 1, 1)
        photon = topology.particles(array)[0][2]
        assert (photon.isGamma, photon.ChPFIso, photon.GammaPFIso) == (1, 1 / 2, 0)

    def test_the_larger_eta_leads(self):
        two = {"electrons": [made.lepton(40, 1, 0)], "muons": [made.lepton(30, 2, 1)]}
        assert self.high_level(**two).LepPt == 40
        assert self.high_level(self.published, **two).LepPt == 30

    def test_the_first_of_a_flavour_leads(self):
        two = {"electrons": [made.lepton(30, 1, 0), made.lepton(40, 2, 1)]}
        assert self.high_level(**two).LepPt == 40
        assert self.high_level(self.published, **two).LepPt == 30

    def test_mt_has_no_root(self):
        one = {"muons": [made.lepton(40, 0, 0)], "met": {"pt": 20.0, "phi": math.pi}}
        assert pytest.approx(math.sqrt(2 * 40 * 20 * 2)) == self.high_level(**one).MT
        assert pytest.approx(2 * 40 * 20 * 2) == self.high_level(self.published, **one).MT

    @pytest.mark.parametrize("kind", ["tracks", "photons", "neutrals"])
    def test_an_event_without_one_kind_is_dropped(self, kind):
        array = made.to_awkward([made.event(**{**self.filler, kind: []}, muons=[made.lepton(40, 0, 0)])])
        assert topology.select(array).tolist() == [True]
        assert topology.select(array, self.published).tolist() == [False]

    def test_the_first_stored_fill_up(self):
        tracks = [made.track(pt, -1, i) for i, pt in enumerate((1, 5, 3))]
        array = made.to_awkward(
            [made.event(**{**self.filler, "tracks": tracks}, muons=[made.lepton(40, 1, 0)])]
        )
        assert topology.particles(array, Topology(max_tracks=2))[0].Pt[1:3].tolist() == [5, 3]
        few = Topology(max_tracks=2, convention="reference")
        assert topology.particles(array, few)[0].Pt[1:3].tolist() == [1, 5]

    def test_the_sign_of_the_pid_is_the_charge(self):
        tracks = [made.track(2, -1, 0, charge=-1, pid=11)]
        array = made.to_awkward(
            [made.event(**{**self.filler, "tracks": tracks}, muons=[made.lepton(40, 1, 0)])]
        )
        assert topology.particles(array)[0].Charge[1] == -1
        assert topology.particles(array, self.published)[0].Charge[1] == 1


def test_event_done_by_hand():
    plain = made.event(
        muons=[made.lepton(40, 0.5, 3.1, charge=1)],
        # own track; one inside the cone across phi = pi; one just outside; one below threshold
        tracks=[
            made.track(40, 0.5, 3.1, x=1, y=2, z=3),
            made.track(4, 0.5, -3.1, charge=-1, x=4, y=5, z=6),
            made.track(2, 0.81, 3.1),
            made.track(0.5, 0.5, 3.0),
        ],
        photons=[made.thing(2, 0.6, 3.1), made.thing(1.0, 0.6, 3.1)],
        neutrals=[made.thing(6, -2, 0)],
        jets=[made.thing(50, 0, 0, btag=1), made.thing(35, 2.6, 1, btag=1), made.thing(30, 1, 1, btag=0)],
        met={"pt": 30.0, "phi": 3.1 - math.pi / 2},
    )
    array = made.to_awkward([plain])
    high = topology.high_level(array)[0].to_list()
    assert (high["HT"], high["nJets"], high["nBjets"]) == (50, 1, 1)
    assert high["MT"] == pytest.approx(math.sqrt(2 * 30 * 40))
    assert high["LepIsoCh"] == pytest.approx(4 / 40)
    assert high["LepIsoGamma"] == pytest.approx(2 / 40)
    assert high["LepIsoNeu"] == 0
    assert (high["LepCharge"], high["LepIsEle"]) == (1, 0)

    particles = topology.particles(array)[0]
    assert particles.Pt.tolist() == [40, 4, 2, 2, 6]
    assert particles.isMu.tolist() == [1, 0, 0, 0, 0]
    assert particles.isChHad.tolist() == [0, 1, 1, 0, 0]
    assert particles.vtxX.tolist() == [0, 4, 0, 0, 0]
    assert particles.Charge.tolist() == [1, -1, 1, 0, 0]
    assert particles.ChPFIso[1] == pytest.approx(40 / 4), "the lepton's track lies in this one's cone"
    assert particles.ChPFIso[2] == 0, "the lepton's track lies 0.31 away, and itself is left out"
    assert particles.GammaPFIso[2] == pytest.approx(2 / 2)
    assert particles.Energy[4] == pytest.approx(6 * math.cosh(-2))

    sequence = topology.extract(array, Topology()).particles
    assert sequence["Pt"].tolist() == [6, 2, 2, 4, 40]
    assert sequence["kind"][-1] == feature_names.MUON


@pytest.mark.parametrize(
    ("electrons", "muons", "chosen"),
    [
        ([30, 50], [], 50),
        ([30], [45], 45),
        ([45], [30], 45),
        ([23], [], None),
        ([], [23.5], 23.5),
    ],
)
def test_the_hardest_lepton_above_threshold_leads(electrons, muons, chosen):
    plain = made.event(
        electrons=[made.lepton(pt, i, 0) for i, pt in enumerate(electrons)],
        muons=[made.lepton(pt, -i - 1, 2) for i, pt in enumerate(muons)],
    )
    array = made.to_awkward([plain])
    if chosen is None:
        assert not topology.select(array)[0]
    else:
        assert topology.high_level(array).LepPt[0] == chosen


def test_a_harder_lepton_that_is_not_isolated_does_not_lead():
    plain = made.event(
        electrons=[made.lepton(60, 0, 0), made.lepton(30, 2, 2)], tracks=[made.track(40, 0.1, 0.1)]
    )
    assert topology.high_level(made.to_awkward([plain])).LepPt[0] == 30


def turn_event(plain, angle):
    def turn(thing):
        return {**thing, "phi": naive.wrapped(thing["phi"] + angle)}

    return {name: turn(found) if name == "met" else [turn(o) for o in found] for name, found in plain.items()}


def test_turning_an_event_leaves_the_rest_as_it_was():
    plain = made.random_events(20, seed=3)
    turned = [turn_event(e, 2.5) for e in plain]
    before, after = (topology.extract(made.to_awkward(e), Topology()) for e in (plain, turned))
    assert before.selected.tolist() == after.selected.tolist()
    fixed = [i for i, n in enumerate(feature_names.HIGH_LEVEL) if n not in ("phiMET", "LepPhi")]
    assert after.high_level[:, fixed] == pytest.approx(before.high_level[:, fixed], rel=1e-9, abs=1e-9)
    for name in ("Pt", "Eta", "ChPFIso", "GammaPFIso", "NeuPFIso", "kind", "Charge"):
        assert after.particles[name] == pytest.approx(before.particles[name], rel=1e-9, abs=1e-9)


def test_no_candidates_and_no_events():
    alone = made.to_awkward([made.event(muons=[made.lepton(30, 0, 0)])])
    assert len(topology.particles(alone)[0]) == 1
    nothing = alone[:0]
    assert len(topology.select(nothing)) == 0
    assert len(topology.extract(nothing, Topology()).particles) == 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pt", float("nan"), "event 1: EFlowTrack.PT is not a finite number"),
        ("phi", float("inf"), "event 1: EFlowTrack.Phi is not a finite number"),
        ("pt", -1.0, "event 1: EFlowTrack.PT is negative"),
    ],
)
def test_impossible_values_are_refused(field, value, message):
    good = made.event(tracks=[made.track(1, 0, 0)])
    bad = made.event(tracks=[made.track(1, 0, 0), {**made.track(1, 0, 0), field: value}])
    with pytest.raises(BadEvent, match=message):
        topology.select(made.to_awkward([good, bad]))


def test_a_missing_field_is_named():
    array = made.to_awkward([made.event()])
    del_eta = ak.with_field(array, array.EFlowTrack[["PT", "Phi"]], "EFlowTrack")
    with pytest.raises(KeyError, match="EFlowTrack"):
        topology.select(del_eta)


def test_rejected_events_have_no_features():
    array = made.to_awkward([made.event(muons=[made.lepton(30, 0, 0)]), made.event()])
    for function in (topology.particles, topology.high_level):
        with pytest.raises(ValueError, match=r"event 1 does not pass .* events\[select\(events\)\]"):
            function(array)
    assert len(topology.particles(array[topology.select(array)])) == 1


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 120),
    radius=st.sampled_from([0.05, 0.3, 1.0, 2.5, 3.0]),
    far=st.sampled_from([2.5, 30.0, 1e6]),
    wraps=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_cone_sums_against_all_pairs(seed, n, radius, far, wraps):
    rng = np.random.default_rng(seed)
    eta = rng.uniform(-3, 3, n)
    eta[0] = far
    turns = [-math.pi, math.pi, 0.0, 2.0, -3.0] + [3 * math.pi, 9.0] * wraps
    phi = rng.choice(turns, n) + rng.normal(0, 0.2, n)
    kind = rng.integers(0, 3, n).astype(np.int8)
    some = Scratch(rng.exponential(5, n), eta, phi, kind, np.arange(n))
    dphi = phi[:, None] - phi
    if wraps:
        dphi = np.remainder(dphi + math.pi, 2 * math.pi) - math.pi
    else:
        dphi = np.where(
            dphi > 2 * math.pi, dphi - 2 * math.pi, np.where(dphi < -2 * math.pi, dphi + 2 * math.pi, dphi)
        )
    distance = np.hypot(eta[:, None] - eta, dphi)
    truth = np.stack([((distance < radius) & (kind == k)) @ some.pt for k in range(3)], axis=1)
    many = np.empty((n, 3))
    strips = make_strips(n)
    fill_strips(strips, some, n, radius, wraps)
    cone_sums(many, strips, some, np.arange(n), n, radius, wraps)
    assert many == pytest.approx(truth, rel=1e-9, abs=1e-9)
    for i in range(n):
        for k in range(3):
            mine = [column[kind == k] for column in some[:3]]
            one = cone_sum_of_one(eta[i], phi[i], *mine, 0.0, radius, -1.0, wraps)
            assert one == pytest.approx(truth[i, k], rel=1e-9, abs=1e-9)


@given(st.lists(st.sampled_from([0.0, 0.1, 0.1 + 1e-12, 1.0, 2.5, 9.0]) | st.floats(0, 10), max_size=60))
def test_sorting_is_stable_and_falls(keys):
    keys = np.array(keys)
    order = np.full(len(keys), -1)
    sort_falling(keys, order, len(keys))
    assert order.tolist() == sorted(range(len(keys)), key=lambda i: -keys[i])


@given(
    st.lists(st.sampled_from([0.0, 0.5, 0.5 + 1e-12, 1.0]) | st.floats(0, 1e9), min_size=1, max_size=60),
    st.data(),
)
def test_nth_largest(values, data):
    n = data.draw(st.integers(1, len(values)))
    assert nth_largest(np.array(values), n) == sorted(values, reverse=True)[n - 1]


def test_published_sequences_are_those_of_a_plain_loop():
    """Fill up with zeros, sort by distance, standardise each column over all rows."""
    plain = made.random_events(8, seed=4, candidates=30)
    array = made.to_awkward(plain)
    array = array[topology.select(array)]
    lists = topology.particles(array)
    flat = np.stack([ak.to_numpy(ak.flatten(lists[name])) for name in feature_names.PARTICLE])
    counts = ak.num(lists).to_numpy()
    offsets = np.concatenate(([0], np.cumsum(counts)))
    found = published_sequences(flat, offsets, offsets[:-1], 120)
    for i in range(len(array)):
        rows = [[p[name] for name in feature_names.PARTICLE] for p in lists[i].to_list()] + [[0.0] * 19] * (
            120 - counts[i]
        )
        eta, phi = rows[0][5], rows[0][6]
        rows.sort(key=lambda row: -math.hypot(row[5] - eta, naive.wrapped(row[6] - phi)))
        for column in range(19):
            values = [row[column] for row in rows]
            mean = math.fsum(values) / 120
            deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / 120)
            expected = [(v - mean) / (deviation or 1.0) for v in values]
            assert found[i, :, column] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_columns_keep_events_together():
    columns = Columns(np.array([0, 2, 2, 5]), {"a": np.arange(5.0)})
    kept = columns.where(np.array([True, False, False, True, True]))
    assert kept.offsets.tolist() == [0, 1, 1, 3]
    assert kept["a"].tolist() == [0, 3, 4]
    chosen = columns.of_events(np.array([False, True, True]))
    assert chosen.offsets.tolist() == [0, 0, 3]
    assert chosen["a"].tolist() == [2, 3, 4]


def two_jets(events):
    return ak.num(events.Jet) >= 2


def leading_jet(events):
    return ak.fill_none(ak.max(events.Jet.PT, axis=1), 0.0)


def not_a_number(events):
    return np.full(len(events), np.nan)


def too_short(events):
    return np.ones(len(events) - 1)


class TestCustom:
    array = made.to_awkward(made.random_events(30, seed=8))

    def test_own_selections_and_features(self):
        analysis = Topology(
            selections={"two_jets": f"{__file__}:two_jets"}, features={"leading": f"{__file__}:leading_jet"}
        )
        selected = topology.select(self.array, analysis)
        assert (
            selected.tolist()
            == (topology.select(self.array) & (ak.num(self.array.Jet).to_numpy() >= 2)).tolist()
        )
        assert 0 < selected.sum() < topology.select(self.array).sum()
        high = topology.high_level(self.array[selected], analysis)
        assert high.leading.tolist() == [max(jets) for jets in self.array.Jet.PT[selected].to_list()]
        extracted = topology.extract(self.array, analysis)
        assert extracted.high_level.shape == (selected.sum(), 15)
        assert len(extracted.particles.counts) == selected.sum()

    @pytest.mark.parametrize(
        ("reference", "message"),
        [
            (f"{__file__}:too_short", "must return one number per event"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, reference, message):
        with pytest.raises(ConfigError, match=message):
            topology.extract(self.array, Topology(features={"mine": reference}))

    def test_a_feature_that_is_no_number_is_a_bad_event(self):
        with pytest.raises(BadEvent, match=r"analysis\.features\.mine is not a finite number"):
            topology.extract(self.array, Topology(features={"mine": f"{__file__}:not_a_number"}))

    def test_one_flavour_alone(self):
        muons = Topology(leptons=("muon",))
        without_electrons = self.array[[name for name in self.array.fields if name != "Electron"]]
        high = topology.high_level(without_electrons[topology.select(without_electrons, muons)], muons)
        assert len(high)
        assert not ak.any(high.LepIsEle)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_the_order_of_candidates_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    plain = made.random_events(2, seed, candidates=30)
    mixed = [
        {
            n: found if n == "met" else [found[i] for i in rng.permutation(len(found))]
            for n, found in e.items()
        }
        for e in plain
    ]
    one, other = (topology.extract(made.to_awkward(events), Topology()) for events in (plain, mixed))
    assert one.selected.tolist() == other.selected.tolist()
    assert other.high_level == pytest.approx(one.high_level, rel=1e-9, abs=1e-9)
    for name in feature_names.STORED:
        assert other.particles[name] == pytest.approx(one.particles[name], rel=1e-5, abs=1e-5)


def test_two_thousand_candidates_with_ties():
    rng = np.random.default_rng(1)
    event = made.random_event(rng, candidates=1200)
    for name in ("tracks", "photons", "neutrals"):
        for thing in event[name][::3]:
            thing["pt"] = 2.0
    event["muons"].append(made.lepton(1e4, 0, 0))
    assert len(event["tracks"]) + len(event["photons"]) + len(event["neutrals"]) > 1800
    assert assert_like_naive([event]).all()
    assert assert_like_naive([event], Topology(convention="reference")).all()


def test_extreme_directions():
    event = made.event(
        electrons=[made.lepton(40, 0, math.pi)],
        tracks=[made.track(1, 300, 1), made.track(2, -300, -1), made.track(3, 0.1, -math.pi)],
        photons=[made.thing(5, 0, 3 * math.pi)],
        neutrals=[made.thing(7, 0, -math.pi + 0.1)],
    )
    high = topology.high_level(made.to_awkward([event]))[0]
    assert high.LepIsoCh == pytest.approx(3 / 40)
    assert high.LepIsoGamma == pytest.approx(5 / 40)
    assert high.LepIsoNeu == pytest.approx(7 / 40)
    assert topology.particles(made.to_awkward([event]))[0].NeuPFIso.tolist()[3] == pytest.approx(7 / 3)
