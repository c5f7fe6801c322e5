"""Nothing but physics tells the classes apart: who knows only where an event comes from scores no better than chance.

The classifier is a forest that sees the event's parent and file (as hashes), its entry, and its place in the order of
the store. A mistake in the split or the balance would make them useful.
"""

import uuid

import numpy as np
import pytest
from helpers import events as made
from sklearn.ensemble import RandomForestClassifier

from hepdask import open_store, prepare
from hepdask.evaluation.delong import auc_standard_error
from hepdask.evaluation.metrics import classification_metrics
from hepdask.store.split import event_hash, uniform

CLASSES = ("qcd", "ttbar", "wjets")
EVENTS = 400
SIGMAS = 4.0


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Two files a class of events with parents, of one to five events each; and the same without `GenInfo.Parent`."""
    folder = tmp_path_factory.mktemp("families")
    parents, files = {}, {True: {}, False: {}}
    for number, name in enumerate(CLASSES):
        for half in range(2):
            seed = 100 + 2 * number + half
            rng = np.random.default_rng(seed)
            sizes = rng.integers(1, 6, EVENTS)
            events = made.random_events(EVENTS, seed, candidates=4, leptons=4)
            parents[str(uuid.UUID(int=seed))] = parent = np.repeat(np.arange(EVENTS), sizes)[:EVENTS]
            for kept, known in files.items():
                path = made.write_root(
                    folder / f"{name}-{half}-{kept}.root", events, parent if kept else None,
                    identity=uuid.UUID(int=seed),
                )  # fmt: skip
                known.setdefault(name, []).append(path)
    return files, parents


def store_of(make_config, files, client):
    config = make_config(files, input={"chunk_events": 1000})
    prepare(config, client)
    return open_store(config.store_path)


def origins(store, sample, parents):
    """What is known of events beyond their analysis, (n, 6), and their parents' hashes (n,)."""
    events = store.events(sample, particles=False)
    columns = np.zeros((len(events), 6))
    hashes = np.zeros(len(events), np.uint64)
    for number in np.unique(events.part):
        mine = events.part == number
        identity = store.parts[number]["uuid"]
        parent = parents[identity][events.entry[mine]]
        hashes[mine] = event_hash(0, "leak", "", identity, parent)
        columns[mine, 0] = uniform(hashes[mine])
        columns[mine, 1] = uniform(event_hash(1, "leak", "", identity, parent))
        columns[mine, 2] = uniform(event_hash(0, "leak", "", identity, events.entry[mine]))
        columns[mine, 3] = parent
        columns[mine, 4] = events.entry[mine]
    for label in range(len(store.classes)):  # the order within a class; that of the classes is the fileset's
        mine = events.label == label
        columns[mine, 5] = np.arange(mine.sum()) / mine.sum()
    return columns, hashes, events.label


def advantages(store, parents):
    """Give the AUC of each class less one half, over its error.

    It may well be negative: where many entries of a class went into the test, few of it are left to learn from.
    """
    seen, _, labels = origins(store, "train", parents)
    forest = RandomForestClassifier(200, min_samples_leaf=1, random_state=1).fit(seen, labels)
    unseen, hashes, truth = origins(store, "test", parents)
    _, one = np.unique(hashes, return_index=True)  # events of one parent are not independent
    scores, truth = forest.predict_proba(unseen[one]), truth[one]
    areas = classification_metrics(truth, scores, store.classes)["classes"]
    errors = [
        auc_standard_error(scores[truth == k, k], scores[truth != k, k]) for k in range(len(store.classes))
    ]
    return [(areas[name]["auc"] - 0.5) / error for name, error in zip(store.classes, errors, strict=True)]


def test_origin_alone_does_not_beat_chance(families, make_config, client):
    files, parents = families
    store = store_of(make_config, files[True], client)
    assert max(advantages(store, parents)) < SIGMAS


def test_parents_on_both_sides_are_noticed(families, make_config, client):
    """Where files do not say which events share a parent, parents are divided, and the forest remembers them."""
    files, parents = families
    store = store_of(make_config, files[False], client)
    assert min(advantages(store, parents)) > 2 * SIGMAS
