"""Histograms of the features: against numpy and hist, in pieces, and at the edges."""

import functools
import json
from html import escape
from pathlib import Path

import awkward as ak
import hist
import numpy as np
import pytest
from helpers import events as made
from helpers import reports
from hypothesis import given, settings
from hypothesis import strategies as st

from hepdask.analysis import histograms
from hepdask.analysis.topology import expand_columns, extract
from hepdask.config import Topology, feature_names
from hepdask.pipeline.evaluate import _histograms
from hepdask.report import alt_text, plots
from hepdask.report.gallery import Gallery
from hepdask.store import Store

pytestmark = pytest.mark.unit

PHYSICS = Topology()


@pytest.fixture(scope="module")
def events():
    return made.to_awkward(made.random_events(60, 5), np.float32)


@pytest.fixture(scope="module")
def whole(events):
    return histograms.fill(extract(events, PHYSICS), PHYSICS)


def refilled(axis, values):
    """Count with boost-histogram."""
    other = hist.Hist(hist.axis.Variable(axis.edges()))
    other.fill(np.asarray(values, np.float64))
    return other.values(flow=True).tolist()


def test_every_high_level_value_is_counted(events, whole):
    extracted = extract(events, PHYSICS)
    assert {name for name in whole if name.startswith("hlf.")} == {
        f"hlf.{name}" for name in feature_names.HIGH_LEVEL
    }
    for column, name in enumerate(feature_names.HIGH_LEVEL):
        values = extracted.high_level[:, column].astype(np.float32)
        assert whole[f"hlf.{name}"]["counts"] == refilled(histograms.AXES[f"hlf.{name}"], values)
        assert sum(whole[f"hlf.{name}"]["counts"]) == extracted.selected.sum() > 20


def test_particles_are_a_fair_sample(whole):
    particles = extract(made.to_awkward(made.random_events(300, 6), np.float32), PHYSICS).particles
    chosen = histograms._sampled(particles["Pt"], particles["Phi"])
    assert len(chosen) == pytest.approx(len(particles) / 16, rel=0.1)
    leptons = np.isin(particles.offsets[1:] - 1, chosen).sum()
    assert leptons == pytest.approx((len(particles.offsets) - 1) / 16, rel=0.7)
    for name, column in expand_columns(particles.values).items():
        expected, error = column.mean(), column.std() / np.sqrt(len(chosen))
        assert column[chosen].mean() == pytest.approx(expected, abs=4 * error + 1e-6), name
    sizes = {sum(found["counts"]) for name, found in whole.items() if name.startswith("particles.")}
    assert len(sizes) == 1
    assert sizes.pop() > 50


def test_pieces_add_up_to_the_whole(events, whole):
    pieces = [
        histograms.fill(extract(events[start:stop], PHYSICS), PHYSICS)
        for start, stop in ((40, 60), (0, 7), (7, 8), (8, 40), (3, 3))
    ]
    assert functools.reduce(histograms.merge, pieces) == whole
    assert json.loads(json.dumps(whole)) == whole


def test_a_document_becomes_hist(whole):
    converted = histograms.to_hist(whole, "particles.Eta")
    assert converted.axes[0].name == "Eta"
    assert converted.values(flow=True).tolist() == whole["particles.Eta"]["counts"]
    assert converted.sum(flow=True) == sum(whole["particles.Eta"]["counts"])
    with pytest.raises(KeyError):
        histograms.to_hist(whole, "Eta")


@pytest.mark.parametrize("axis", [*dict.fromkeys(histograms.AXES.values()), histograms.OWN])
def test_edges_belong_to_the_bin_above(axis):
    edges = axis.edges()
    assert len(edges) == axis.bins + 1
    assert (np.diff(edges) > 0).all()
    assert (edges[0], edges[-1]) == (axis.low, axis.high)
    near = edges.astype(np.float32)
    values = np.concatenate(
        (near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, -np.float32(np.inf)))
    )
    assert axis.count(values).tolist() == refilled(axis, values)
    above = np.nextafter(np.float32(axis.high), np.float32(np.inf))
    beyond = axis.count(np.array([above, np.inf, np.nan, -np.inf], np.float32))
    assert (beyond[0], beyond[-1], beyond.sum()) == (1, 3, 4)


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=40))
@settings(deadline=None, max_examples=50)
def test_any_value_is_counted_once(values):
    for axis in (histograms.AXES["particles.Pt"], histograms.AXES["particles.Pz"], histograms.OWN):
        assert axis.count(np.array(values, np.float32)).tolist() == refilled(axis, values)


def test_own_features_and_the_published_convention_have_axes(tmp_path, events):
    (tmp_path / "mine.py").write_text(
        "def tracks(events):\n    import awkward as ak\n    return ak.num(events.EFlowTrack)\n"
    )
    analysis = Topology(features={"tracks": f"{tmp_path}/mine.py:tracks"}, convention="reference")
    extracted = extract(events, analysis)
    found = histograms.fill(extracted, analysis)
    assert sum(found["hlf.tracks"]["counts"]) == extracted.selected.sum()
    own = histograms.to_hist(found, "hlf.tracks")
    mean = np.average(own.axes[0].centers, weights=own.values())
    assert mean == pytest.approx(ak.mean(ak.num(events.EFlowTrack[extracted.selected])), rel=0.1)
    assert histograms.axis_of(found["hlf.MT"]) == histograms.SQUARED_MT
    with pytest.raises(ValueError, match=r"hlf\.(MT|tracks)"):
        histograms.merge(found, histograms.fill(extract(events, PHYSICS), PHYSICS))


def test_no_event_gives_empty_histograms(events, whole):
    nothing = histograms.fill(extract(events[:0], PHYSICS), PHYSICS)
    assert nothing.keys() == whole.keys()
    assert not any(sum(found["counts"]) for found in nothing.values())


def test_the_report_shows_every_histogram(whole, tmp_path):
    labels = np.arange(60) % 3
    nothing = histograms.fill(extract(made.to_awkward([]), PHYSICS), PHYSICS)
    written = reports.small_report(
        tmp_path, labels, np.eye(3)[labels], features={}, histograms={"ttbar": whole, "qcd": nothing}
    )
    reports.check_page(written.html)
    html = written.html.read_text()
    assert '<section id="inputs"' in html
    for name in histograms.AXES:
        label = escape(plots.input_label(name))
        assert f'aria-label="Distribution of {label} by class. ttbar: median' in html, name
    assert "mathdefault" not in html
    assert {"inputs_hlf.pdf", "inputs_particles.pdf"} <= {path.name for path in written.figures}


def test_without_histograms_the_report_has_no_such_section():
    run = reports.toy_run(np.arange(6) % 3, np.random.default_rng(1))
    assert Gallery(Path("unused"), run, [], {})._inputs() == []


def test_a_histogram_is_told_in_words():
    axis = histograms.AXES["hlf.nJets"]
    counts = axis.count(np.array([1, 2, 2, 30], np.float32)).tolist()
    document = {name: getattr(axis, name) for name in ("bins", "low", "high", "scale", "unit")} | {
        "counts": counts
    }
    told = alt_text.histogram("hlf.nJets", {"ttbar": document})
    assert told == (
        "Distribution of number of jets by class. ttbar: median from 1.5 to 2.5, 25.0\u202f% beyond the axis."
    )


def test_datasets_of_one_class_are_added(whole):
    parts = [{"dataset": name, "label": label} for name, label in (("a", 1), ("b", 1), ("c", 0))]
    manifest = {"parts": parts, "classes": ["qcd", "ttbar"]}
    assert _histograms(Store(Path("unused"), manifest)) == {}
    manifest["histograms"] = dict.fromkeys("abc", whole)
    assert _histograms(Store(Path("unused"), manifest)) == {
        "ttbar": histograms.merge(whole, whole),
        "qcd": whole,
    }
