"""Metrics against scikit-learn and by hand; the report opened in a real browser."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.reports import CLASSES, Outline, check_page, small_report, toy_run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from scipy.stats import norm
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from hepdask.errors import InputError
from hepdask.evaluation import classification_metrics, roc
from hepdask.evaluation.calibration import calibration
from hepdask.evaluation.delong import auc_standard_error, midranks
from hepdask.evaluation.overtraining import overtraining
from hepdask.inference import importance
from hepdask.report import ModelResult, RunFacts, inline_svg, plots, style, write_report
from hepdask.report.compare_runs import compare, table
from hepdask.report.number_format import factor, percent, seconds, with_error
from hepdask.store import Events

CHROMIUM = Path("/usr/bin/chromium")


# --- synthetic but realistic input ---


def toy_scores(rng: np.random.Generator, labels: np.ndarray, strength: float) -> np.ndarray:
    """Draw softmax scores of a classifier of the given strength; W+jets lies between the other two."""
    centres = np.array([[1.0, -0.8, 0.1], [-0.7, 1.2, 0.0], [0.2, -0.1, 0.8]])
    logits = (
        strength * centres[labels]
        + rng.normal(0, 1.3, (len(labels), 3))
        + rng.gumbel(0, 0.5, (len(labels), 3))
    )
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def toy_history(rng: np.random.Generator, epochs: int, floor: float) -> list[dict[str, Any]]:
    """Make a learning curve that overtrains a little at the end."""
    history = []
    for epoch in range(1, epochs + 1):
        loss = floor + 0.6 * np.exp(-epoch / 4) - 0.0015 * epoch
        val_loss = floor + 0.03 + 0.6 * np.exp(-epoch / 4) + 0.0008 * epoch + rng.normal(0, 0.004)
        history.append(
            {
                "epoch": epoch,
                "loss": loss,
                "val_loss": val_loss,
                "accuracy": 1 - 0.32 * loss,
                "val_accuracy": 1 - 0.32 * val_loss,
                "events_per_second": 5200 + rng.normal(0, 90),
            }
        )
    return history


def toy_report() -> tuple[RunFacts, list[ModelResult]]:
    """Make a run with four models, the weakest first."""
    rng = np.random.default_rng(7)
    labels = rng.choice(3, 12_000, p=[0.2, 0.35, 0.45])
    table: list[tuple[str, float, list[dict[str, Any]], dict[str, Any]]] = [
        ("forest", 1.2, [], {"trees": 200, "seconds": 12.25}),
        ("hlf", 1.5, toy_history(rng, 30, 0.42), {"parameters": 1_953, "ranks": 2}),
        ("sequence-gru", 1.8, toy_history(rng, 12, 0.36), {"parameters": 13_303, "ranks": 2}),
        ("inclusive-gru", 2.4, toy_history(rng, 14, 0.27), {"parameters": 15_003, "ranks": 2, "cell": "gru"}),
    ]
    train_labels = rng.choice(3, 20_000)
    models = [
        ModelResult(
            name, labels, toy_scores(rng, labels, strength), history, facts,
            train_labels, toy_scores(rng, train_labels, strength),
            {"HT": 0.031, "MET": 0.12, "particles.Pt": -0.001} if history else {},
        )
        for name, strength, history, facts in table
    ]  # fmt: skip
    return toy_run(labels, rng), models


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    run, models = toy_report()
    return write_report(tmp_path_factory.mktemp("report"), run, models)


# --- metrics ---


@st.composite
def samples(draw, lowest_class: int = 0):
    """Labels and probabilities with many ties; a class may be missing or alone."""
    n = draw(st.integers(1, 40))
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(lowest_class, 2)))
    weights = draw(hnp.arrays(np.int64, (n, 3), elements=st.integers(1, 6)))
    return labels, weights / weights.sum(axis=1, keepdims=True)


def area_by_counting(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return the probability that a positive scores higher, ties counting half."""
    difference = positives[:, None] - negatives[None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


@pytest.mark.unit
@given(samples())
@settings(deadline=None, max_examples=150)
def test_metrics_agree_with_counting_and_with_scikit_learn(sample):
    labels, scores = sample
    result = classification_metrics(labels, scores, CLASSES)
    predicted = scores.argmax(axis=1)
    assert result["events"] == len(labels)
    assert list(result["events_by_class"].values()) == [int((labels == k).sum()) for k in range(3)]
    assert result["accuracy"] == pytest.approx(np.mean(predicted == labels))
    expected = [[int(((labels == t) & (predicted == p)).sum()) for p in range(3)] for t in range(3)]
    assert result["confusion_matrix"] == expected
    assert result["log_loss"] == pytest.approx(-np.mean(np.log(scores[np.arange(len(labels)), labels])))
    for k, name in enumerate(CLASSES):
        entry, of_class = result["classes"][name], labels == k
        if of_class.all() or not of_class.any():
            assert entry["auc"] is None
            assert entry["auc_error"] is None
            assert name in entry["reason"]
            assert entry["working_points"] == []
            continue
        counted = area_by_counting(scores[of_class, k], scores[~of_class, k])
        assert entry["auc"] == pytest.approx(counted)
        assert entry["auc"] == pytest.approx(sk.roc_auc_score(of_class, scores[:, k]))
    json.dumps(result, allow_nan=False)


@pytest.mark.unit
@given(samples())
@settings(deadline=None, max_examples=100)
def test_working_points_are_the_highest_thresholds_that_keep_enough(sample):
    labels, scores = sample
    result = classification_metrics(labels, scores, CLASSES)
    for k, name in enumerate(CLASSES):
        of_class, column = labels == k, scores[:, k]
        for point in result["classes"][name]["working_points"]:
            enough = [
                t for t in np.unique(column) if np.mean(column[of_class] >= t) >= point["true_positive_rate"]
            ]
            rate = float(np.mean(column[~of_class] >= max(enough)))
            assert point["threshold"] == max(enough)
            assert point["false_positive_rate"] == pytest.approx(rate)
            assert point["rate_reduction"] == (pytest.approx(1 / rate) if rate else None)


@pytest.mark.unit
def test_metrics_by_hand():
    labels = np.array([0, 0, 1, 1])
    scores = np.array([[0.8, 0.2], [0.5, 0.5], [0.6, 0.4], [0.1, 0.9]])
    result = classification_metrics(labels, scores, ["a", "b"])
    assert result["accuracy"] == 0.75  # the tie in the second event goes to the first class
    assert result["confusion_matrix"] == [[2, 0], [1, 1]]
    assert result["classes"]["a"]["auc"] == 0.75  # of the four pairs only (0.5, 0.6) is the wrong way round
    assert result["classes"]["b"]["auc"] == 0.75
    assert result["mean_auc"] == 0.75
    point = result["classes"]["a"]["working_points"][0]
    assert point == {
        "true_positive_rate": 0.9,
        "threshold": 0.5,
        "false_positive_rate": 0.5,
        "rate_reduction": 2.0,
    }


@pytest.mark.unit
def test_scores_that_are_no_probabilities_have_no_log_loss():
    labels = np.array([0, 1, 1])
    logits = np.array([[2.0, -1.0], [0.0, 3.0], [1.0, 0.5]])
    result = classification_metrics(labels, logits, ["a", "b"])
    assert result["log_loss"] is None
    assert "negative" in result["log_loss_reason"]
    result = classification_metrics(labels, np.abs(logits), ["a", "b"])
    assert "sum to 1" in result["log_loss_reason"]
    assert result["classes"]["a"]["auc"] is not None


@pytest.mark.unit
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [[0.5, 0.5]], "2 labels do not fit 1 rows"),
        ([[0], [1]], [[0.5, 0.5], [0.5, 0.5]], r"labels must have shape \(n,\)"),
        ([0, 1], [0.5, 0.5], r"scores must have shape \(n, classes\)"),
        ([0, 1], [[0.2, 0.3, 0.5]] * 2, "3 columns for 2 classes"),
        ([0, 2], [[0.5, 0.5]] * 2, r"0 to 1, got \[2\]"),
        ([0, -1], [[0.5, 0.5]] * 2, r"0 to 1, got \[-1\]"),
        ([0.0, 1.0], [[0.5, 0.5]] * 2, "must be integers"),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.5]], "NaN or infinite, the first in row 1"),
        ([0, 1], [[0.5, 0.5], [np.inf, 0.5]], "NaN or infinite"),
        ([0, 1], [["a", "b"]] * 2, "real numbers"),
        (np.empty(0, int), np.empty((0, 2)), "no event"),
    ],
)
def test_bad_input_is_refused(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(labels, scores, ["a", "b"])


@pytest.mark.unit
def test_class_names_must_differ_and_be_two():
    with pytest.raises(ValueError, match="must differ"):
        classification_metrics([0, 1], [[0.5, 0.5]] * 2, ["a", "a"])
    with pytest.raises(ValueError, match="at least two"):
        classification_metrics([0], [[1.0]], ["a"])


@pytest.mark.unit
@given(samples())
@settings(deadline=None, max_examples=60)
def test_roc_agrees_with_scikit_learn(sample):
    labels, scores = sample
    for k in range(3):
        if not 0 < (labels == k).sum() < len(labels):
            with pytest.raises(ValueError, match="no ROC curve"):
                roc(labels, scores, k)
            continue
        fpr, tpr = roc(labels, scores, k)
        assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
        assert sk.auc(fpr, tpr) == pytest.approx(sk.roc_auc_score(labels == k, scores[:, k]))


@pytest.mark.unit
def test_roc_refuses_a_class_that_is_none():
    with pytest.raises(ValueError, match="class 2 is not one"):
        roc([0, 1], [[0.5, 0.5]] * 2, 2)


@pytest.mark.unit
def test_delong_by_hand():
    # Pairs won by each positive: 1 and 1/2; by each negative: 1/2 and 1. Both variances are 1/8.
    assert auc_standard_error(np.array([3.0, 1.0]), np.array([2.0, 0.0])) == pytest.approx(np.sqrt(1 / 8))
    assert auc_standard_error(np.array([3.0, 2.0]), np.array([1.0, 0.0])) == 0
    assert auc_standard_error(np.array([3.0]), np.array([1.0, 0.0])) is None


@pytest.mark.unit
@given(
    hnp.arrays(np.float64, st.integers(2, 15), elements=st.integers(0, 5).map(float)),
    hnp.arrays(np.float64, st.integers(2, 15), elements=st.integers(0, 5).map(float)),
)
def test_delong_agrees_with_its_definition(positives, negatives):
    difference = positives[:, None] - negatives[None, :]
    wins = (difference > 0) + 0.5 * (difference == 0)
    variance = wins.mean(axis=1).var(ddof=1) / len(positives) + wins.mean(axis=0).var(ddof=1) / len(negatives)
    assert auc_standard_error(positives, negatives) == pytest.approx(np.sqrt(variance), abs=1e-9)


def test_delong_covers_the_spread_over_repeated_samples():
    rng = np.random.default_rng(3)
    areas, errors = [], []
    for _ in range(300):
        positives, negatives = rng.normal(1, 1, 150), rng.normal(0, 1, 200)
        areas.append(area_by_counting(positives, negatives))
        errors.append(auc_standard_error(positives, negatives))
    assert np.mean(errors) == pytest.approx(np.std(areas), rel=0.15)
    assert np.mean(areas) == pytest.approx(0.7602, abs=0.005)  # Φ(1 / √2)


def test_delong_and_the_bootstrap_agree_with_the_exact_variance():
    """Scores from two normal distributions one apart; the variance after Hanley and McNeil, Radiology 143 (1982) 29."""
    m, n = 300, 400
    area = norm.cdf(np.sqrt(0.5))
    both = norm.expect(
        lambda z: norm.cdf(1 - z) ** 2
    )  # a negative lies below two positives; by symmetry the other as well
    variance = area * (1 - area) + (m + n - 2) * (both - area**2)
    exact = np.sqrt(variance / (m * n))
    rng = np.random.default_rng(11)
    found = []
    for _ in range(25):
        positives, negatives = rng.normal(1, 1, m), rng.normal(0, 1, n)
        areas = [
            sk.roc_auc_score(
                np.repeat([1, 0], [m, n]),
                np.concatenate([rng.choice(positives, m), rng.choice(negatives, n)]),
            )
            for _ in range(100)
        ]
        found.append((auc_standard_error(positives, negatives), np.std(areas, ddof=1)))
    delong, bootstrap = np.mean(found, axis=0)
    assert delong == pytest.approx(exact, rel=0.02)
    assert bootstrap == pytest.approx(exact, rel=0.04)
    spread = np.std(found, axis=0)
    assert spread[0] < spread[1], "the bootstrap adds chance of its own"


@pytest.mark.unit
def test_midranks_share_ties():
    assert midranks(np.array([5.0, 1.0, 5.0, 7.0])).tolist() == [2.5, 1.0, 2.5, 4.0]


# --- beyond the test events ---


@pytest.mark.unit
@given(samples())
@settings(deadline=None, max_examples=60)
def test_calibration_agrees_with_scikit_learn(sample):
    labels, scores = sample
    for k in range(3):
        found = calibration(labels == k, scores[:, k], bins=5)
        assert found.count.sum() == len(labels)
        assert (found.error > 0).all()
        assert 0 <= found.expected_error <= 1
        assert found.fraction @ found.count == pytest.approx((labels == k).sum())
        assert found.score @ found.count == pytest.approx(scores[:, k].sum())
        inside = ~np.isclose(scores[:, k] * 5 % 1, [[0], [1]]).any(axis=0)  # edges belong to either side
        if inside.any():
            mine = calibration((labels == k)[inside], scores[inside, k], bins=5)
            truth, mean = calibration_curve((labels == k)[inside], scores[inside, k], n_bins=5)
            assert mine.fraction == pytest.approx(truth)
            assert mine.score == pytest.approx(mean)


@pytest.mark.unit
def test_a_model_that_learnt_its_events_by_heart_is_found():
    rng = np.random.default_rng(2)
    labels, train_labels = rng.integers(0, 2, 2000), rng.integers(0, 2, 3000)

    def scores(labels, strength):
        column = 1 / (1 + np.exp(-rng.normal(strength * (2 * labels - 1), 1)))
        return np.column_stack([1 - column, column])

    fair = overtraining(labels, scores(labels, 1.0), train_labels, scores(train_labels, 1.0), ["a", "b"])
    learnt = overtraining(labels, scores(labels, 1.0), train_labels, scores(train_labels, 1.5), ["a", "b"])
    assert all(entry["p_value"] > 1e-3 for entry in fair.values())
    assert all(entry["p_value"] < 1e-6 for entry in learnt.values())
    alone = overtraining(labels, scores(labels, 1.0), np.zeros(9, int), np.full((9, 2), 0.5), ["a", "b"])
    assert alone["b"] == {"statistic": None, "p_value": None}


@pytest.mark.unit
def test_importance_finds_the_feature_that_matters():
    """A model that looks at one column of events, or at the pT of particles alone."""
    rng = np.random.default_rng(4)
    label = rng.integers(0, 2, 400)
    high_level = np.column_stack([label + rng.normal(0, 0.3, 400), rng.normal(0, 1, 400)]).astype(np.float32)
    offsets = np.arange(401) * 3
    particles = {"Pt": np.repeat(label, 3) + rng.normal(0, 0.3, 1200), "Eta": rng.normal(0, 1, 1200)}
    none = np.zeros(400, np.int64)
    events = Events(offsets, particles, high_level, label, none, none)

    class Looks:
        def __init__(self, score):
            self.score = score

        def scores(self, events):
            column = 1 / (1 + np.exp(-self.score(events)))
            return np.column_stack([1 - column, column])

    names = importance.features({"high_level": [0, 1], "particles": [4]}, ["HT", "MET"], ["Pt", "Eta"])
    assert names == ["HT", "MET", "particles.Pt", "particles.Eta"]
    arguments = events, names, ["HT", "MET"], ["a", "b"]
    found = importance.importances(Looks(lambda e: e.high_level[:, 0] - 0.5), *arguments)
    assert found["HT"] == pytest.approx(0.49, abs=0.06)
    assert {found[name] for name in names[1:]} == {0.0}
    found = importance.importances(
        Looks(lambda e: e.particles["Pt"].reshape(-1, 3).mean(axis=1) - 0.5), *arguments
    )
    assert found["particles.Pt"] > 0.4
    assert found["HT"] == found["MET"] == found["particles.Eta"] == 0.0


def test_two_runs_side_by_side(report, tmp_path):
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 3, 500)
    models = [ModelResult(name, labels, toy_scores(rng, labels, 1.0), [], {}) for name in ("hlf", "new")]
    run = toy_run(labels, rng, features={})
    other = write_report(tmp_path, run, models)
    rows = {(row["model"], row["metric"]): row for row in compare(report.html.parent, other.metrics)}
    assert len(rows) == 5 * 5
    before, after = (json.loads(path.read_text())["models"] for path in (report.metrics, other.metrics))
    row = rows["hlf", "auc ttbar"]
    one, two = before["hlf"]["classes"]["ttbar"], after["hlf"]["classes"]["ttbar"]
    assert row["difference"] == pytest.approx(two["auc"] - one["auc"])
    assert row["sigmas"] == pytest.approx(row["difference"] / np.hypot(one["auc_error"], two["auc_error"]))
    assert rows["new", "accuracy"]["first"] is None
    done = subprocess.run(
        [sys.executable, "-m", "hepdask", "evaluate", "--compare", report.html.parent, tmp_path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == table(list(rows.values()))
    with pytest.raises(InputError, match="has no metrics"):
        compare(tmp_path / "figures", tmp_path)


@pytest.mark.unit
def test_runs_of_other_classes_are_not_compared(tmp_path):
    for name, classes in (("one", ["qcd", "ttbar"]), ("other", ["ttbar", "higgs"])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"classes": classes, "models": {"hlf": {}}}))
    with pytest.raises(InputError, match=r"have different classes \(qcd, ttbar; ttbar, higgs\)"):
        compare(tmp_path / "one.json", tmp_path / "other.json")


# --- figures ---


@pytest.mark.unit
def test_numbers_are_written_for_people():
    assert percent(0.00123) == "0.123\u202f%"
    assert percent(None) == "–"
    assert with_error(0.98123, 0.00123) == "0.9812 ± 0.0012"
    assert factor(1234.4) == "1\u202f234\u202f×"
    assert seconds(3725) == "1\u202fh 02\u202fmin"
    assert seconds(0.0123) == "12\u202fms"


def test_a_figure_is_the_same_every_time_and_its_ids_are_its_own():
    def draw(name):
        with style.applied():
            return inline_svg.inline(plots.confusion([[3, 1], [0, 4]], ["a", "b"]), name, "A <label>")

    assert draw("one") == draw("one")
    ids = {name: set(re.findall(r'\bid="([^"]+)"', draw(name))) for name in ("one", "two")}
    assert ids["one"]
    assert not ids["one"] & ids["two"]
    assert "A &lt;label&gt;" in draw("one")
    assert "http" not in draw("one")


LONG = (
    "a_very_long_class_name_of_events",
    "ttbar semileptonic, boosted topology",
    "WithMissingTransverseEnergy",
)


@pytest.mark.parametrize("classes", [CLASSES, LONG], ids=["short", "long"])
def test_names_of_classes_do_not_run_into_one_another(classes):
    labels, rise = np.arange(60) % 3, np.linspace(0, 1, 9)
    curves = {name: {"hlf": plots.RocCurve(rise, rise, 0.5, None)} for name in classes}
    for figure in (
        plots.roc(curves, dict.fromkeys(classes, "black"), ["hlf"]),
        plots.roc_log(curves, dict.fromkeys(classes, "black"), ["hlf"]),
        plots.confusion([[3, 1, 2], [0, 4, 1], [1, 1, 5]], classes),
        plots.scores(labels, np.eye(3)[labels], classes, classes),
        plots.feature("HT", {name: np.arange(20.0) for name in classes}, classes),
    ):
        FigureCanvasAgg(figure).draw()
        texts = [text for axes in figure.axes for text in axes.findobj(Text) if text.get_visible()]
        named = [text for text in texts if any(bare(name) in bare(text.get_text()) for name in classes)]
        assert all(any(bare(name) in bare(text.get_text()) for text in named) for name in classes)
        boxes = [text.get_window_extent() for text in named]
        for text, box in zip(named, boxes, strict=True):
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
        for (one, box), (other, beside) in itertools.combinations(zip(named, boxes, strict=True), 2):
            assert not box.overlaps(beside), (one, other)


def bare(name):
    return re.sub(r"\s", "", name)


@pytest.mark.unit
def test_thinning_keeps_the_curve():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 30_000)
    fpr, tpr = roc(labels, toy_scores(rng, labels, 2.0), 1)
    thin_fpr, thin_tpr = plots._thinned(plots.RocCurve(fpr, tpr, 0.9, None))
    assert len(thin_fpr) < 1_000
    assert set(zip(thin_fpr, thin_tpr, strict=True)) <= set(zip(fpr, tpr, strict=True))
    assert np.diff(thin_fpr + thin_tpr).max() < 0.01
    assert thin_fpr[thin_fpr > 0].min() < 10 / len(labels)


@pytest.mark.unit
def test_a_class_keeps_its_colour_and_its_line_in_every_figure():
    values = {"wjets": np.arange(5.0), "ttbar": np.arange(5.0)}
    with style.applied():
        figure = plots.feature("HT", values, CLASSES)
        labels = np.array([1, 2, 2])
        scores = plots.scores(labels, np.eye(3)[labels], CLASSES, ["qcd"])
    for drawn in (figure, scores):
        colours = {patch.get_label(): patch.get_edgecolor() for patch in drawn.axes[0].patches}
        assert colours["wjets"][:3] == pytest.approx(
            [int(style.PALETTE[2][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        )


# --- the report ---


def test_report_holds_everything(report):
    outline = check_page(report.html)
    # ROC 2 × 3, confusion 4, training 3 × 2, scores 4 × 3, calibration 4, importance 3, features 14.
    assert len(outline.all("svg")) == 6 + 4 + 6 + 12 + 4 + 3 + 14
    assert len(report.figures) == 2 + 4 + 6 + 4 + 4 + 3 + 14
    assert all(path.read_bytes().startswith(b"%PDF") for path in report.figures)
    numbers = json.loads(report.metrics.read_text())
    assert numbers["classes"] == CLASSES
    assert list(numbers["models"]) == ["inclusive-gru", "sequence-gru", "hlf", "forest"]
    best = numbers["models"]["inclusive-gru"]
    assert best["importances"]["MET"] == 0.12
    assert all(entry["p_value"] > 1e-4 for entry in best["overtraining"].values()), (
        "drawn from one distribution"
    )
    assert set(best["calibration_error"]) == set(CLASSES)
    html = report.html.read_text()
    assert "512 events are missing" in html
    assert "# &lt;fraction&gt;" in html
    assert "No epochs, and therefore no curves: forest" in html
    assert f"{numbers['models']['inclusive-gru']['classes']['ttbar']['auc']:.4f}" in html
    assert not [path for path in report.html.parent.rglob("*") if path.name.endswith(".tmp")]


def test_report_is_the_same_for_the_same_input(tmp_path):
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 200)
    scores = toy_scores(rng, labels, 2.0)
    first, second = (small_report(tmp_path / name, labels, scores) for name in "ab")
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.metrics.read_bytes() == second.metrics.read_bytes()
    for one, other in zip(first.figures, second.figures, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_report_with_a_class_missing(tmp_path):
    rng = np.random.default_rng(5)
    labels = rng.integers(1, 3, 300)
    report = small_report(
        tmp_path, labels, toy_scores(rng, labels, 2.0), notes=["No event of class qcd passed."]
    )
    check_page(report.html)
    html = report.html.read_text()
    assert "No event of class qcd passed." in html
    assert "the sample holds no event of class qcd" in html
    assert json.loads(report.metrics.read_text())["models"]["only one"]["classes"]["qcd"]["auc"] is None


def test_report_with_one_class_alone_and_bare_facts(tmp_path):
    labels = np.full(20, 2)
    report = small_report(
        tmp_path, labels, np.full((20, 3), 1 / 3), features={}, selection=[], notes=[], versions={}, steps=[]
    )
    check_page(report.html)
    assert "no curve to draw" in report.html.read_text()


def test_report_of_a_perfect_model_with_gaps_in_its_history(tmp_path):
    labels = np.arange(60) % 3
    history = [
        {"epoch": 1, "loss": 1.0},
        {"epoch": 2, "loss": float("nan"), "val_loss": None},
        {"epoch": 3, "loss": 0.5},
    ]
    report = small_report(tmp_path, labels, np.eye(3)[labels], history)
    check_page(report.html)
    assert [path.name for path in report.figures if path.name.startswith("loss")] == ["loss_only-one.pdf"]


def test_names_are_text_not_markup(tmp_path):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 50)
    classes = ["<b>$x_1$</b>", "a & b"]
    scores = rng.dirichlet([1, 1], 50)
    run = toy_run(labels, rng, classes=classes, features={}, selection=[])
    models = [ModelResult(name, labels, scores, [], {}) for name in ("m/1", "m 1")]
    report = write_report(tmp_path, run, models)
    check_page(report.html)
    assert "<b>" not in report.html.read_text()
    assert len({path.name for path in report.figures}) == len(report.figures)


def test_report_refuses_what_it_cannot_show(tmp_path):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 30)
    run = toy_run(labels, rng, features={})
    model = ModelResult("m", labels, toy_scores(rng, labels, 1.0), [], {})
    with pytest.raises(ValueError, match="at least one model"):
        write_report(tmp_path, run, [])
    with pytest.raises(ValueError, match="two models are called 'm'"):
        write_report(tmp_path, run, [model, model])
    broken = ModelResult("broken", labels, model.scores * np.nan, [], {})
    with pytest.raises(ValueError, match="model 'broken': scores of 30 events are NaN"):
        write_report(tmp_path, run, [broken])
    assert not list(tmp_path.iterdir())


# --- the report in a browser ---


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Open a page in headless Chromium, cut off from every network; return standard output and its log."""
    if not CHROMIUM.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{CHROMIUM} is missing")
        pytest.skip(f"{CHROMIUM} is missing")
    profile = tmp_path_factory.mktemp("profile")

    def open_page(page: Path, *options: str) -> tuple[str, str]:
        done = subprocess.run(
            [
                str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}",
                "--enable-logging=stderr", "--hide-scrollbars", *options, page.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.stdout, done.stderr

    return open_page


def test_browser_shows_the_page_without_a_complaint(report, browse):
    dom, log = browse(report.html, "--dump-dom")
    assert "CONSOLE" not in log
    assert Outline(dom).all("svg") == Outline(report.html.read_text()).all("svg")


def test_a_request_would_be_noticed(report, browse, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(report.html.read_text().replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>'))
    _, log = browse(page, "--dump-dom")
    assert "CONSOLE" in log
    assert "Content Security Policy" in log


@pytest.mark.parametrize("width", [390, 1200])
def test_page_fits_the_screen(report, browse, tmp_path, width):
    # In a frame, as a window of the browser itself cannot be made as narrow as a phone.
    html = escape(report.html.read_text())
    probe = f"""<!DOCTYPE html><title></title>
    <iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{html}"></iframe>
    <script>onload = () => {{
      const page = document.querySelector("iframe").contentDocument;
      const boxes = [...page.querySelectorAll("svg")].map((s) => s.getBoundingClientRect());
      document.title = [page.documentElement.clientWidth, page.documentElement.scrollWidth,
        Math.min(...boxes.map((b) => b.width)), Math.max(...boxes.map((b) => b.right))].join(" ");
    }};</script>"""
    page = tmp_path / "page.html"
    page.write_text(probe)
    dom, _ = browse(page, "--window-size=1300,1000", "--dump-dom")
    found = re.search(r"<title>([^<]+)</title>", dom)
    assert found
    window, content, narrowest, rightmost = map(float, found.group(1).split())
    assert window <= width
    assert content == window, "the page scrolls sideways"
    assert narrowest > 250
    assert rightmost <= window


def test_words_stay_within_their_frames(report, browse, tmp_path):
    """Whatever font the browser takes: what begins within a legend or a panel ends there."""
    probe = """<script>onload = () => {
      const out = [], texts = [...document.querySelectorAll("svg text")];
      let within = 0;
      for (const text of texts) {
        const word = text.getBoundingClientRect(), drawing = text.closest("svg").getBoundingClientRect();
        if (word.right > drawing.right + 1 || word.left < drawing.left - 1) out.push(text.textContent);
        for (let group = text.closest("g"); group; group = group.parentElement.closest("g")) {
          const path = group.querySelector(":scope > g:first-child > path:only-child");
          if (!path) continue;
          const frame = path.getBoundingClientRect(), middle = (word.top + word.bottom) / 2;
          const begins = word.left > frame.left && word.left < frame.right;
          if (!begins || middle < frame.top || middle > frame.bottom) continue;
          within += 1;
          if (word.right > frame.right + 1) out.push(text.textContent);
        }
      }
      document.title = JSON.stringify([texts.length, within, out]);
    }</script>"""
    page = tmp_path / "page.html"
    html = re.sub(r"<meta[^>]*Content-Security-Policy[^>]*>", "", report.html.read_text())
    page.write_text(html.replace("</main>", f"</main>{probe}"))
    dom, _ = browse(page, "--window-size=1300,1000", "--dump-dom")
    found = re.search(r"<title>([^<]+)</title>", dom)
    assert found
    texts, within, out = json.loads(unescape(found.group(1)))
    assert texts > 100
    assert within > 20
    assert out == []


def test_screenshot_and_print(report, browse, tmp_path):
    browse(report.html, "--window-size=390,2000", f"--screenshot={tmp_path / 'phone.png'}")
    assert (tmp_path / "phone.png").stat().st_size > 50_000
    browse(report.html, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
