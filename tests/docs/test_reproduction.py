"""The statistics behind docs/results.md: areas, errors over parents, and what is called a difference."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[2] / "reproduction"))

import bootstrap
import folds
import page
import published

from hepdask import open_store, prepare
from hepdask.config.feature_names import HIGH_LEVEL

LABELS = np.repeat([0, 1, 2], 200)


def scores(rng, labels, strength):
    """Give scores of three classes that know the class more or less well."""
    raw = rng.normal(size=(len(labels), 3)) + strength * np.eye(3)[labels]
    return (np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)).astype(np.float32)


def test_areas_are_those_of_scikit_learn_with_weights_and_ties():
    rng = np.random.default_rng(1)
    values = np.round(rng.normal(size=400) + (np.arange(400) % 2), 1)
    positive = np.arange(400) % 2 == 1
    weights = rng.integers(0, 4, (5, 400)).astype(float)
    wanted = [roc_auc_score(positive, values, sample_weight=row) for row in weights]
    assert bootstrap.area(values, positive, weights) == pytest.approx(wanted, abs=1e-12)


def test_errors_are_those_of_independent_samples():
    """Against the spread over samples that are drawn anew."""
    rng = np.random.default_rng(2)
    zeros = LABELS * 0

    def measured(values, weights):
        return bootstrap.measure([values], LABELS, zeros, weights)

    one = np.ones((1, len(LABELS)))
    fresh = np.array([measured(scores(rng, LABELS, 1.5), one).mean for _ in range(200)])
    weights = bootstrap.draw(np.arange(len(LABELS)), LABELS, 300)
    estimated = np.mean([measured(scores(rng, LABELS, 1.5), weights).error for _ in range(5)], axis=0)
    assert estimated == pytest.approx(fresh.std(axis=0), rel=0.2)


def test_copies_of_an_event_do_not_make_errors_smaller():
    rng = np.random.default_rng(3)
    values, parents = scores(rng, LABELS, 1.5), np.arange(len(LABELS))
    four, labels, family = np.tile(values, (4, 1)), np.tile(LABELS, 4), np.tile(parents, 4)

    def error(values, parents, labels):
        weights = bootstrap.draw(parents, labels, 300)
        return bootstrap.measure([values], labels, labels * 0, weights).error

    single = error(values, parents, LABELS)
    assert error(four, family, labels) == pytest.approx(single, rel=0.15)
    assert error(four, np.arange(len(labels)), labels) == pytest.approx(single / 2, rel=0.15)
    assert bootstrap.effective_events(family) == pytest.approx(len(LABELS))


@pytest.mark.parametrize(("gain", "words"), [(0.0, "not resolved"), (0.5, "better in accuracy")])
def test_only_differences_beyond_their_errors_are_called_so(gain, words):
    """Two models that share most of their randomness, as models on the same events do."""
    rng = np.random.default_rng(4)
    raw = rng.normal(size=(len(LABELS), 3)) + 1.5 * np.eye(3)[LABELS]
    weights = bootstrap.draw(np.arange(len(LABELS)), LABELS, 300)
    first, second = (
        bootstrap.measure([raw + more * np.eye(3)[LABELS]], LABELS, LABELS * 0, weights)
        for more in (0.0, gain)
    )
    other = bootstrap.measure([raw + 0.01 * rng.normal(size=raw.shape)], LABELS, LABELS * 0, weights)
    assert words in page.verdict("A", "B", (second if gain else other) - first)
    assert np.all(second.error + first.error >= (second - first).error)


@pytest.mark.parametrize("seeds", [3, 5])
def test_few_seeds_do_not_make_differences_of_nothing(seeds):
    """Two models that differ by the luck of their seeds alone: Student's t of the sum of both variances."""
    rng = np.random.default_rng(5)
    beyond = 0
    for _ in range(2000):
        first, second = (
            bootstrap.Measured(np.repeat(rng.normal(0.9, 0.003, (seeds, 1, 1)), 3, axis=1)) for _ in range(2)
        )
        change = second - first
        beyond += abs(change.mean[0]) > 3 * change.error[0]
    expected = 2 * stats.t.sf(3, 2 * (seeds - 1))
    assert beyond / 2000 == pytest.approx(expected, abs=4 * np.sqrt(expected / 2000))
    assert first.error == pytest.approx(first.values[:, 0].std(ddof=1) / np.sqrt(seeds))


def test_trainings_that_went_wrong_are_told():
    def ended(*losses):
        return [[{"val_loss": 1.0}, {"val_loss": loss}] for loss in losses]

    (told,) = page.stragglers({"GRU": ended(0.30, 0.31, 0.33), "LSTM": ended(0.30, 0.55, 0.31, 0.30)})
    assert told.startswith("1 of the 4 trainings of LSTM went wrong: a loss of 0.550 on left-out events")


def test_every_event_is_scored_once_and_kept(make_config, client, tmp_path):
    """By a forest that did not see it: one that is as deep as it can be knows all it saw by heart."""
    forest = {"trees": 20, "max_depth": 40, "min_leaf": 1}
    config = make_config(
        models={"forest": forest}, split={"test_fraction": 0.0}, input={"chunk_events": 1000}
    )
    prepare(config, client)
    store = open_store(config.store_path)
    found, again = (folds.cross_validate([config], "forest", 2, tmp_path / "scores", 1)[0] for _ in range(2))
    assert found.scores.shape == (len(store.labels("train")), 3)
    assert found.scores.sum(axis=1) == pytest.approx(1)
    assert np.array_equal(found.scores, again.scores)
    assert len(list((tmp_path / "scores").iterdir())) == 2
    assert np.mean(found.scores.argmax(axis=1) == store.labels("train")) < 0.7


def test_networks_score_events_that_they_did_not_see(make_config, client, tmp_path):
    """One that learns nothing scores as before training: its first weights follow from the seed."""
    settings = {"epochs": 1, "batch_size": 16, "units": 4, "learning_rate": 1e-30}
    config = make_config(models={"inclusive": settings}, split={"test_fraction": 0.0})
    prepare(config, client)
    store = open_store(config.store_path)
    found = folds.cross_validate([config], "inclusive", 2, tmp_path / "scores", 1)[0]
    assert found.scores.shape == (len(store.labels("train")), 3)
    assert found.scores.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert [len(history) for history in found.histories] == [1, 1]
    whole = folds._network(folds.Task(config, "inclusive", (0, 2)))[0]
    assert np.array_equal(whole, found.scores[store.folds(2) == 0])


def test_ranges_of_the_published_networks_are_those_of_features():
    assert published.TAILS.keys() < set(HIGH_LEVEL)


def test_every_row_has_published_numbers():
    assert {len(numbers) for numbers in published.NUMBERS.values()} == {4}


def test_the_order_is_told_for_each_quantity():
    def measured(*numbers):
        return bootstrap.Measured(np.array([[numbers, np.add(numbers, 0.001), np.subtract(numbers, 0.001)]]))

    told = page.order(
        {
            "HLF": measured(0.90, 0.90, 0.90, 0.9),
            "particle sequence": measured(0.90, 0.80, 0.95, 0.9),
            "inclusive, GRU": measured(0.95, 0.99, 0.97, 0.9),
        }
    )
    assert told.endswith("is **seen in AUC tt̄, contradicted in AUC QCD, not resolved in accuracy, AUC W**.")
