"""Flat files as NanoEvents: the same features as from plain arrays, and no branch read that is not needed."""

import awkward as ak
import numpy as np
import pytest
from coffea.nanoevents import NanoEventsFactory
from helpers import events as made

from hepdask import DelphesSchema
from hepdask.analysis import topology
from hepdask.config import Topology, feature_names

EVENTS = made.random_events(40, seed=21)


@pytest.fixture(scope="module")
def flat_file(tmp_path_factory):
    return made.write_root(tmp_path_factory.mktemp("flat") / "events.root", EVENTS)


def nano_events(path, mode="virtual", **options):
    return NanoEventsFactory.from_root(
        {path: "Delphes"}, schemaclass=DelphesSchema, mode=mode, **options
    ).events()


@pytest.mark.parametrize("mode", ["eager", "virtual"])
@pytest.mark.parametrize("convention", ["corrected", "reference"])
def test_features_are_those_of_plain_arrays(flat_file, mode, convention):
    analysis = Topology(convention=convention)
    plain, nano = made.to_awkward(EVENTS, np.float32), nano_events(flat_file, mode)
    selected = topology.select(plain, analysis)
    assert 5 < selected.sum() < 40
    assert topology.select(nano, analysis).tolist() == selected.tolist()
    for function in (topology.particles, topology.high_level):
        ours, theirs = function(nano[selected], analysis), function(plain[selected], analysis)
        assert ours.fields == theirs.fields
        assert ak.almost_equal(ours, theirs, rtol=0, atol=0)


def test_virtual_arrays_touch_only_the_branches_that_are_needed(flat_file):
    touched = []
    events = nano_events(flat_file, access_log=touched)
    chosen = events[topology.select(events)]
    read = {access.branch for access in touched}
    assert not {branch for branch in read if branch.startswith(("Jet", "MissingET"))}, (
        "selecting needs leptons and candidates"
    )
    topology.particles(chosen)
    topology.high_level(chosen)
    wanted = {f"{name}.{field}" for name, fields in topology.branches(Topology()).items() for field in fields}
    sizes = {f"{name}_size" for name in topology.branches(Topology())}
    assert {access.branch for access in touched} <= wanted | sizes


def test_what_a_flat_file_lacks_is_zero_and_the_behaviours_are_coffeas(flat_file):
    events = nano_events(flat_file)
    jets = events.Jet[ak.num(events.Jet) > 1]
    assert ak.all(jets.mass == 0)
    pair = jets[:, 0] + jets[:, 1]
    pt = np.hypot(
        jets.PT[:, 0] * np.cos(jets.Phi[:, 0]) + jets.PT[:, 1] * np.cos(jets.Phi[:, 1]),
        jets.PT[:, 0] * np.sin(jets.Phi[:, 0]) + jets.PT[:, 1] * np.sin(jets.Phi[:, 1]),
    )
    assert ak.to_numpy(pair.pt) == pytest.approx(ak.to_numpy(pt), rel=1e-4)
    assert ak.to_numpy(events.MissingET.pt) == pytest.approx([e["met"]["pt"] for e in EVENTS], rel=1e-6)


def test_all_names_of_the_features_are_there(flat_file):
    events = nano_events(flat_file)
    chosen = events[topology.select(events)]
    assert topology.particles(chosen).fields == list(feature_names.PARTICLE)
    assert topology.high_level(chosen).fields == list(feature_names.HIGH_LEVEL)
