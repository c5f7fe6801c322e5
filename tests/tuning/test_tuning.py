"""Searches: settings against Keras, folds, what is refused, a planted optimum, and kills that lose nothing."""

import contextlib
import csv
import json
import os
import subprocess
import sys
import uuid

import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from helpers.ranks import Clock, marked
from helpers.requirements import require
from helpers.stores import change_manifest, rewrite
from helpers.waiting import until

from hepdask import open_store, prepare, train, tune
from hepdask.analysis.scaling import Moments
from hepdask.config import HLF, Config, Inclusive, Tuning
from hepdask.errors import ConfigError, HepdaskError, TrainingError
from hepdask.kernels.build import compiler
from hepdask.kernels.dense import records
from hepdask.pipeline.evaluate import _require as require_trained
from hepdask.training.loop import train_rank
from hepdask.tuning import kernel_trial, search_space, study
from hepdask.tuning.kernel_trial import initialised
from hepdask.tuning.study import open_study

RATES = {"low": 1e-8, "high": 10.0, "log": True}


def has_optuna():
    try:
        import optuna  # noqa: F401
    except ImportError:
        return False
    return True


def needed():
    require(has_optuna(), "Optuna is not installed (pip install 'hepdask[tune]')")
    require(compiler(), "there is no C++ compiler")


@pytest.fixture
def planted(make_config, client):
    """Make a store in which the classes differ by as much as they can be told apart; give its configuration."""
    needed()

    def make(**tuning):
        config = make_config(
            models={"hlf": {"epochs": 10, "batch_size": 8, "hidden": [8]}}, training={"models": ["hlf"]},
            tuning={"folds": 3, **tuning},
        )  # fmt: skip
        prepare(config, client)
        store = open_store(config.store_path)
        rng, everything = np.random.default_rng(1), []
        for part in store.parts:
            shape = (part["events"], len(store.features["hlf"]))
            rows = (rng.normal(size=shape) + 0.7 * part["label"]).astype(np.float32)
            rewrite(store.path, part["name"], {"high_level": rows})
            everything.append(rows)
        moments = Moments.of(np.concatenate(everything)).to_json()
        change_manifest(store.path, lambda manifest: manifest["moments"].update(high_level=moments))
        return config

    return make


def changed(config, **tuning):
    return config.model_copy(update={"tuning": config.tuning.model_copy(update=tuning)})


@pytest.mark.parametrize(
    ("activation", "optimizer", "rate"),
    [("relu", "adam", 0.01), ("tanh", "sgd", 0.1), ("elu", "rmsprop", 0.01)],
)
def test_a_setting_is_trained_as_keras_trains(activation, optimizer, rate):
    needed()
    import keras

    settings = HLF(
        epochs=3, batch_size=41, learning_rate=rate, hidden=(9, 5), activation=activation, optimizer=optimizer
    )
    rng = np.random.default_rng(2)
    label = rng.integers(0, 3, 300)
    rows = (rng.normal(size=(300, 7)) + 0.5 * label[:, None]).astype(np.float32)
    weights = np.array([2.0, 1.0, 0.5], np.float32)
    inside = rng.permutation(300)[:290]
    model = keras.Sequential(
        [keras.Input((7,))]
        + [keras.layers.Dense(units, activation=activation) for units in settings.hidden]
        + [keras.layers.Dense(3, activation="softmax")]
    )

    def of(stack):
        """Give weights as Keras keeps them."""
        ends = np.cumsum([array.size for array in model.get_weights()])
        parts = zip(np.split(stack.weights, ends[:-1]), model.get_weights(), strict=True)
        return [mine.reshape(theirs.shape) for mine, theirs in parts]

    model.set_weights(of(initialised((7, 9, 5, 3), settings, seed=3)))
    theirs = {
        "adam": keras.optimizers.Adam(0.01),
        "sgd": keras.optimizers.SGD(0.1, momentum=0.9),
        "rmsprop": keras.optimizers.RMSprop(0.01),
    }
    model.compile(theirs[optimizer], "sparse_categorical_crossentropy")
    stack = kernel_trial.train(records(rows, label), inside, weights, settings, 7, seed=3)
    for epoch in range(3):
        order = np.random.default_rng((3, epoch)).permutation(inside)
        for some in np.split(order, np.arange(41, 290, 41)):
            model.train_on_batch(rows[some], label[some], sample_weight=weights[label[some]])
    for mine, theirs in zip(of(stack), model.get_weights(), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-3, abs=2e-5)
    found = stack.scores(records(rows, label), np.arange(300))
    assert found == pytest.approx(model.predict(rows, verbose=0), abs=1e-4)


def test_folds_follow_from_the_events_and_spread_each_class(make_config, client, tmp_path):
    found = []
    for number, chunk in enumerate((25, 7)):
        config = make_config(output=str(tmp_path / str(number)), input={"chunk_events": chunk})
        store = prepare(config, client).store
        events, fold = store.events("train", particles=False), store.folds(4)
        for label in range(3):
            sizes = np.bincount(fold[events.label == label], minlength=4)
            assert sizes.max() - sizes.min() <= 1
        identity = [
            (store.parts[part]["file"], entry) for part, entry in zip(events.part, events.entry, strict=True)
        ]
        found.append(dict(zip(identity, fold.tolist(), strict=True)))
        one = open_store(store.path, fold=(2, 4))
        assert (one.labels("validation") == events.label[fold == 2]).all()
        assert (one.events("fit", particles=False).entry == events.entry[fold != 2]).all()
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("tuning", "expected"),
    [
        ({}, "tuning.parameters is empty: give keys of the model"),
        ({"parameters": {"learningrate": [1]}}, "models.hlf has no such key; did you mean learning_rate?"),
        ({"parameters": {"epochs": []}}, "tuning.parameters.epochs: the list of choices is empty"),
        (
            {"parameters": {"dropout": [0.1, 2]}},
            "tuning.parameters.dropout: 2 cannot be tried: models.hlf: dropout",
        ),
        (
            {"parameters": {"learning_rate": {"low": 0.1, "high": 1.0}}, "sampler": "grid"},
            "a range with a step",
        ),
        ({"parameters": {"epochs": [1]}, "folds": 3, "prune_after": 3}, "there are only 3 folds"),
    ],
)
def test_what_cannot_be_searched_is_refused(tuning, expected):
    with pytest.raises(ConfigError) as raised:
        search_space.check(Config.model_validate({"tuning": tuning}))
    assert expected in str(raised.value)


def test_a_grid_is_all_combinations():
    tuning = Tuning.model_validate(
        {
            "parameters": {
                "hidden": [[5], [9, 3]],
                "epochs": {"low": 2, "high": 6, "step": 2},
                "dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
            }
        }
    )  # fmt: skip
    found = search_space.grid(tuning.parameters)
    assert len(found) == 2 * 3 * 4
    assert found[0] == {"hidden": [5], "epochs": 2, "dropout": 0.0}
    assert found[-1] == {"hidden": [9, 3], "epochs": 6, "dropout": 0.3}


def test_a_study_remembers_prunes_and_is_one_drivers(tmp_path):
    needed()
    tuning = Tuning.model_validate(
        {"parameters": {"epochs": {"low": 1, "high": 50}}, "trials": 9, "folds": 4}
    )
    path = tmp_path / "study.journal"
    with open_study(path, "s", tuning, 1) as study:
        for value in range(6):
            number, _ = study.ask()
            assert study.promising(number, [float(value)] * 2) == (value < 5), "the sixth is the worst of six"
            if value < 5:
                study.finish(number, [float(value)] * 4, 1.0)
            else:
                study.finish(number, [5.0, 5.0], 1.0, pruned=True)
        number, _ = study.ask()
        study.fail(number, "no reason")
        number, parameters = study.ask()  # and then the driver is killed, in the middle of a line
        with (
            pytest.raises(HepdaskError, match=f"process {os.getpid()} .* is working on this study"),
            open_study(path, "s", tuning, 1),
        ):
            pass
    with path.open("a") as journal:
        journal.write('{"op_code": 4, "wor')
    with open_study(path, "s", tuning, 1) as study:
        assert [trial.state for trial in study.trials()] == ["complete"] * 5 + ["pruned", "failed"]
        assert study.trials()[6].reason == "no reason"
        assert study.ranked()[0].value == 0
        assert study.ask()[1] == parameters, "what was under way is tried again"
        assert study.ask() is not None
        assert study.ask() is None, "nine in all"


def test_importances_find_what_matters_among_many_choices(tmp_path):
    """Also of forty choices, for which Optuna's own way would go through two to the forty combinations."""
    needed()
    rates, units = np.geomspace(1e-4, 1e-1, 40).tolist(), [[10], [20, 10], [50, 20, 10]]
    tuning = Tuning.model_validate(
        {
            "parameters": {"learning_rate": rates, "units": units, "dropout": {"low": 0.0, "high": 0.5}},
            "trials": 80, "sampler": "random",
        }
    )  # fmt: skip
    with open_study(tmp_path / "study.journal", "s", tuning, 1) as study:
        assert study.importances() == {}
        while asked := study.ask():
            number, parameters = asked
            place = rates.index(parameters["learning_rate"])
            study.finish(number, [abs(place - 20) + 2.0 * units.index(parameters["units"])], 1.0)
        found = study.importances()
    assert list(found) == ["learning_rate", "units", "dropout"]
    assert found["learning_rate"] > 0.7 > 0.1 > found["dropout"]
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.slow
def test_tune_finds_what_was_planted_and_train_uses_it(planted, client):
    """Rates range over nine powers of ten, and few of them learn anything in ten epochs."""
    config = planted(parameters={"learning_rate": RATES, "batch_size": [8, 64]}, trials=24, prune_after=1)
    found = tune(config, client)
    assert 1e-3 < found.best.parameters["learning_rate"] < 0.5
    assert found.best.value < 1.0 < np.log(3)
    assert len(found.trials) == 24
    assert {trial.state for trial in found.trials} == {"complete", "pruned"}
    table = list(csv.DictReader((found.folder / "trials.csv").open()))
    assert [row["state"] for row in table] == [trial.state for trial in found.trials]
    assert tune(config, client).best == found.best
    more = tune(changed(config, trials=26), client)
    assert [trial.number for trial in more.trials[:24]] == [trial.number for trial in found.trials]
    assert len(more.trials) == 26

    winner = config.model_copy(update={"training": config.training.model_copy(update={"from_study": True})})
    (trained,) = train(winner, client=client)
    assert trained.record.settings["learning_rate"] == more.best.parameters["learning_rate"]
    assert trained.record.study == more.best.parameters
    assert require_trained(config, open_store(config.store_path), "hlf").record == trained.record, (
        "evaluate takes it"
    )
    assert train(config, client=client)[0].fresh, "without the study, the configuration's own settings"
    with pytest.raises(ConfigError, match="no study of xgboost is complete; run: hepdask tune"):
        train(winner, "xgboost", client)


def test_trees_and_grids_are_tuned_and_failures_are_recorded(planted, client):
    config = planted(
        model="forest", sampler="grid", metric="accuracy",
        parameters={"trees": [1, 20], "max_depth": {"low": 1, "high": 2}},
    )  # fmt: skip
    found = tune(config, client)
    assert len(found.trials) == 4
    assert found.best.parameters["trees"] == 20
    assert found.best.value == pytest.approx(np.mean(found.best.folds))
    half = changed(config, model="hlf", parameters={"learning_rate": [0.001, 1e30]})
    one, other = tune(half, client).trials
    assert (one.state, other.state) == ("complete", "failed")
    assert other.reason == "the loss became nan in epoch 1"
    hopeless = changed(config, model="xgboost", parameters={"device": ["cuda"]})
    with pytest.raises(TrainingError, match=r"no setting was completed; the last: .*cuda"):
        tune(hopeless, client)


@pytest.fixture
def lone(monkeypatch):
    """A cluster with room for one rank, and what gives the processes of the ranks that are there."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("TEST_MARK", mark)

    def ranks():
        found = []
        for process in marked(mark):
            with contextlib.suppress(psutil.Error):  # it has just ended
                found += [process] if "rank_process.py" in " ".join(process.cmdline()) else []
        return found

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client, ranks


def recurrent(config, epochs, **tuning):
    small = {"epochs": epochs, "batch_size": 8, "units": 4, "dropout": 0.0, "optimizer": "rmsprop"}
    models = config.models.model_copy(update={"inclusive": Inclusive(**small)})
    return changed(config.model_copy(update={"models": models}), model="inclusive", folds=2, **tuning)


@pytest.mark.slow
def test_recurrent_networks_are_tuned(planted, lone, monkeypatch):
    """One setting learns, one does not and is given up after a fold, one fails; each fold is a run of ranks."""
    monkeypatch.setattr(study, "_BEFORE_PRUNING", 1)
    rates = {"learning_rate": [0.005, 1e-9, 1e30]}
    config = recurrent(planted(), 4, parameters=rates, sampler="grid", prune_after=1)
    found = tune(config, lone[0])
    assert [trial.state for trial in found.trials] == ["complete", "pruned", "failed"]
    best, poor, failed = found.trials
    assert found.best == best
    assert [len(trial.folds) for trial in found.trials] == [2, 1, 0]
    assert best.folds[0] < poor.folds[0]
    assert "inclusive: the loss became" in failed.reason
    alone = train_rank(
        "inclusive",
        search_space.applied(config, "inclusive", {"learning_rate": 0.005}),
        config.store_path,
        fold=(1, 2),
    )
    assert best.folds[1] == pytest.approx(alone.history[-1]["val_loss"], rel=1e-6)


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_a_late_setting_is_ended(planted, lone):
    client, ranks = lone
    config = recurrent(planted(), 1, parameters={"units": [3]}, sampler="grid")
    driver = Clock(lambda: tune(config, client))
    until(ranks, 120)
    ranks()[0].kill()
    driver.thread.join(300)
    assert driver.error is None
    assert [trial.state for trial in driver.result.trials] == ["complete"]

    endless = recurrent(planted(), 10**6, parameters={"units": [3]}, sampler="grid", trial_timeout=20.0)
    driver = Clock(lambda: tune(endless, client))
    until(ranks, 120)
    driver.thread.join(120)
    with pytest.raises(TrainingError, match=r"the last: took longer than tuning\.trial_timeout \(20 s\)"):
        raise driver.error
    assert ranks() == []


@pytest.mark.slow
def test_killing_a_worker_and_the_driver_loses_nothing_that_was_finished(planted, tmp_path):
    """Kill a worker of a real `hepdask tune`, then the driver; the next one goes on."""
    config = planted(parameters={"learning_rate": RATES}, sampler="random", trials=16)
    slow = config.models.model_copy(update={"hlf": config.models.hlf.model_copy(update={"epochs": 1000})})
    journal = config.folder / "tuning" / "hlf" / "study.journal"

    def finished():
        """Numbers and values that the journal says were told, by its own lines."""
        if not journal.exists():
            return {}
        lines = [json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1]]
        return {
            line["trial_id"]: line["values"] for line in lines if line["op_code"] == 6 and line["state"] == 1
        }

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        config = config.model_copy(update={"models": slow, "cluster": cluster.scheduler_address})
        document = tmp_path / "config.json"
        document.write_text(config.model_dump_json(exclude_unset=True))

        def start():
            return subprocess.Popen(
                [sys.executable, "-m", "hepdask", "tune", str(document)], stderr=subprocess.PIPE, text=True
            )

        driver = start()
        try:
            until(lambda: len(finished()) >= 2, 300)
            os.kill(next(iter(client.run(os.getpid).values())), 9)
            before = len(finished())
            until(lambda: len(finished()) >= before + 3, 300)
            assert driver.poll() is None
        finally:
            driver.kill()
            driver.communicate(timeout=60)
        kept = finished()
        assert 5 <= len(kept) < 16
        again = start()
        said = again.communicate(timeout=300)[1]
    assert again.returncode == 0, said
    assert "16 settings: 16 complete" in said
    after = finished()
    assert len(after) == 16
    assert {number: after[number] for number in kept} == kept
