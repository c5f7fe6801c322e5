"""Training and evaluation: real ranks, batches that hold every event once, and clear refusals."""

import csv
import json
import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from helpers import events as made
from helpers.ranks import marked
from helpers.requirements import has_horovod, require
from helpers.stores import rewrite
from helpers.waiting import until

from hepdask import evaluate, open_store, prepare, train
from hepdask.batches import batch_order
from hepdask.batches.batch import Batches
from hepdask.batches.padding import padded
from hepdask.batches.reading import Reading
from hepdask.config.feature_names import PARTICLE
from hepdask.distributed import Checkpoint, NotEnoughSlots
from hepdask.errors import ConfigError, StoreError, TrainingError
from hepdask.training.loop import train_rank

SMALL = {
    "models": {
        "hlf": {"epochs": 3, "batch_size": 16},
        "inclusive": {"epochs": 1, "batch_size": 16, "units": 4},
    },
    "cluster": {"kind": "local", "workers": 2, "dashboard_port": 0},
}


@pytest.fixture
def config(make_config, client):
    """A configuration whose store is there."""
    made_config = make_config(**SMALL)
    prepare(made_config, client)
    return made_config


def with_training(config, **training):
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def with_models(config, **settings):
    changed = {
        name: getattr(config.models, name).model_copy(update=values) for name, values in settings.items()
    }
    return config.model_copy(update={"models": config.models.model_copy(update=changed)})


def batches_of(store, sample="fit", batch_size=16, memory=2**30, **more):
    return Batches(
        Reading(store, sample, memory), store.high_level_scaler, list(range(14)), batch_size, **more
    )


def identities(batch):
    return list(zip(batch.source.part[batch.events], batch.source.entry[batch.events], strict=True))


@pytest.mark.parametrize("memory", [2**30, 100_000], ids=["in memory", "streamed"])
@pytest.mark.parametrize("size", [1, 2, 3, 16])
def test_every_event_is_in_one_batch_whatever_the_number_of_ranks(config, memory, size):
    store = open_store(config.store_path)
    alone = list(batches_of(store, memory=memory).shuffled(1, 0))
    ranks = [list(batches_of(store, memory=memory, rank=r, size=size).shuffled(1, 0)) for r in range(size)]
    assert len({len(rank) for rank in ranks}) == 1, "a rank with fewer steps would hang the others"
    assert Reading(store, "fit", memory).fits == (memory == 2**30)
    seen = []
    for one, step in zip(alone, zip(*ranks, strict=True), strict=True):
        mine = [event for batch in step if batch.weight.all() for event in identities(batch)]
        assert sorted(mine) == sorted(identities(one)), "the global batches are the same"
        assert sum(batch.weight.sum() for batch in step) == pytest.approx(1)
        seen += mine
    fit = store.events("fit")
    assert sorted(seen) == sorted(zip(fit.part, fit.entry, strict=True))


@pytest.mark.parametrize("memory", [2**30, 100_000], ids=["in memory", "streamed"])
def test_padded_batches_are_the_scaled_sequences_of_the_store(config, memory):
    store = open_store(config.store_path)
    assert sum(batch.size for batch in batches_of(store, "test", 8, memory).in_order()) == len(
        store.labels("test")
    )
    at = 0
    for batch in batches_of(store, None, 8, memory).in_order():
        rows = padded(batch, store.particle_scaler, list(range(19)), 801)
        assert rows.shape == (len(batch.events), batch.length.max(), len(PARTICLE))
        for row in rows:
            assert row == pytest.approx(store.sequence(at)[: len(row)], rel=1e-6, abs=1e-6)
            at += 1
    assert at == len(store)


def test_the_order_depends_on_seed_and_epoch_alone(config):
    batches = batches_of(open_store(config.store_path))

    def found(seed, epoch):
        return [event for batch in batches.shuffled(seed, epoch) for event in identities(batch)]

    assert found(1, 0) == found(1, 0)
    assert found(1, 0) != found(1, 1)
    assert found(1, 0) != found(2, 0)


def test_lengths_in_a_batch_are_spread_as_in_random_batches():
    """Tiles of like length must not make batches unlike each other: no more than chance does."""
    rng = np.random.default_rng(3)
    lengths = np.minimum(801, rng.gamma(2.0, 100.0, 20_000).astype(int) + 1)
    tiled = batch_order.batches(rng.permutation(len(lengths)), lengths, 128, 8192, rng)[:-1]
    chance = [rng.choice(len(lengths), 128, replace=False) for _ in tiled]

    def distance(batch):
        """Kolmogorov and Smirnov's, from the lengths of all events."""
        grid = np.sort(lengths[batch])
        return np.abs(
            np.searchsorted(np.sort(lengths), grid) / len(lengths) - (np.arange(128) + 0.5) / 128
        ).max()

    def spread(batches):
        return np.std([lengths[batch].mean() for batch in batches])

    assert spread(tiled) < spread(chance)
    assert np.mean([lengths[batch].mean() for batch in tiled]) == pytest.approx(lengths.mean(), rel=0.01)
    assert max(map(distance, tiled)) < 1.63 / np.sqrt(128), "the test tells a batch from a random one, at 1 %"


def test_ranks_get_equal_work():
    rng = np.random.default_rng(4)
    for size in (2, 4, 8):
        lengths = np.minimum(801, rng.gamma(2.0, 100.0, 64 * size).astype(int) + 1)
        shares = batch_order.shares(lengths, size)
        assert sorted(np.concatenate(shares)) == list(range(len(lengths)))
        work = np.array([lengths[share].sum() for share in shares])
        assert work.max() < 1.25 * work.mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("hlf", "sgd"), ("inclusive", "adam")],
)
def test_two_ranks_train_as_one_does(config, client, name, optimizer):
    """Dropout and all: after the same global batches the weights agree."""
    require(has_horovod(), "Horovod is not built (make horovod)")
    dropping = with_models(with_models(config, hlf={"dropout": 0.2}), **{name: {"optimizer": optimizer}})
    assert dropping.models.inclusive.dropout > 0
    weights = []
    for ranks in (1, 2):
        alone = with_training(dropping, ranks=ranks).model_copy(update={"output": f"{config.output}-{ranks}"})
        alone = alone.model_copy(
            update={"store": config.store.model_copy(update={"path": str(config.store_path)})}
        )
        trained = train(alone, name, client)[0]
        assert trained.fresh
        assert len(trained.record.history) == getattr(dropping.models, name).epochs
        weights.append(weights_of(trained.file))
    for one, two in zip(*weights, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)


def weights_of(keras_file):
    import keras

    return keras.models.load_model(keras_file).get_weights()


def trained_here(name, config, tmp_path, **more):
    """Train in this process; the weights and the history."""
    result = train_rank(name, config, config.store_path, **more)
    file = tmp_path / "model.keras"
    file.write_bytes(result.keras_file)
    return weights_of(file), result


@pytest.mark.parametrize(
    ("cell", "convention", "optimizer"),
    [
        ("gru", "corrected", {"optimizer": "adam"}),
        ("lstm", "corrected", {"optimizer": "sgd", "learning_rate": 0.05}),
        ("gru", "reference", {"optimizer": "rmsprop"}),
        ("lstm", "reference", {"optimizer": "adam"}),
    ],
)
def test_the_kernel_trains_as_padded_keras_does(make_config, client, tmp_path, cell, convention, optimizer):
    """For more than 20 steps of the optimizer; without dropout, whose masks are the kernel's own."""
    config = make_config(analysis={"convention": convention}, **SMALL)
    prepare(config, client)
    alike = {"cell": cell, "epochs": 3, "batch_size": 8, "dropout": 0.0, **optimizer}
    config = with_models(config, inclusive=alike)
    found, fast = trained_here("inclusive", config, tmp_path)
    wanted, plain = trained_here("inclusive", with_training(config, kernel=False), tmp_path)
    assert "kernel" in fast.engine_name
    assert "training.kernel is off" in plain.engine_name
    for mine, theirs in zip(found, wanted, strict=True):
        assert np.abs(mine - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_half_precision_is_refused_without_a_gpu(config, tmp_path):
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU: tests/test_gpu.py trains with it")
    half = with_training(config, precision="mixed_float16")
    with pytest.raises(
        TrainingError, match=r"training\.precision is mixed_float16, and TensorFlow sees no GPU"
    ):
        trained_here("inclusive", half, tmp_path)
    trained_here("hlf", half, tmp_path)  # of networks on particles alone


class Kept(Checkpoint):
    """A checkpoint that remembers all it was given."""

    def __init__(self, folder):
        folder.mkdir()
        super().__init__(folder)
        self.states = []

    def save(self, shared, per_rank=None):
        super().save(shared, per_rank)
        self.states.append(pickle.loads(pickle.dumps(shared)))


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_training_goes_on_from_a_checkpoint(config, tmp_path, optimizer):
    small = {"epochs": 3, "batch_size": 16, "units": 4, "optimizer": optimizer}
    config = with_models(config, inclusive=small)
    kept = Kept(tmp_path / "whole")
    wanted, whole = trained_here("inclusive", config, tmp_path, checkpoint=kept)
    assert [len(state["history"]) for state in kept.states] == [1, 2, 3]
    first = Kept(tmp_path / "first")
    first.save(kept.states[0])
    found, resumed = trained_here("inclusive", config, tmp_path, checkpoint=first)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine == theirs).all()
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


def test_rates_fall_and_training_stops_early_at_the_best_weights(config, tmp_path):
    falling = {"epochs": 40, "learning_rate": 0.05, "learning_rate_drops": {3: 0.5, 5: 0.1}}
    config = with_training(with_models(config, hlf=falling), early_stopping=3, class_weights={"qcd": 2.0})
    kept = Kept(tmp_path / "kept")
    found, result = trained_here(
        "hlf", config, tmp_path, checkpoint=kept, log_folder=tmp_path / "tensorboard"
    )
    rates = [row["learning_rate"] for row in result.history]
    assert rates[:6] == pytest.approx([0.05, 0.05, 0.025, 0.025, 0.005, 0.005][: len(rates)])
    losses = [row["val_loss"] for row in result.history]
    assert len(losses) < 40
    assert len(losses) == np.argmin(losses) + 4
    best = kept.states[int(np.argmin(losses))]["state"]
    for mine, theirs in zip(found, best, strict=False):
        assert (mine == theirs).all()
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_what_cannot_be_trained_on_is_named(config):
    store = open_store(config.store_path)
    many = with_models(config, hlf={"batch_size": 100_000})
    with pytest.raises(
        TrainingError, match=r"do not fill one batch of 100000 .* lower models\.hlf\.batch_size"
    ):
        train(many, "hlf")
    part = next(part for part in store.parts if part["events"])
    for array, what in (("Pt", "Pt of a particle"), ("high_level", "a high-level feature")):
        shape = (part["particles"],) if array == "Pt" else (part["events"], len(store.features["hlf"]))
        rewrite(store.path, part["name"], {array: np.full(shape, np.inf, np.float32)})
        with pytest.raises(TrainingError, match=rf"\.root entry \d+: {what} is not a finite number"):
            next(batches_of(open_store(store.path), None).in_order())


def test_trained_models_are_up_to_date_until_something_changes(config, client):
    assert train(config, "hlf", client)[0].fresh
    assert not train(config, "hlf", client)[0].fresh
    longer = config.models.model_copy(update={"hlf": config.models.hlf.model_copy(update={"epochs": 4})})
    assert train(config.model_copy(update={"models": longer}), "hlf", client)[0].fresh


@pytest.mark.slow
def test_evaluate_reports_what_was_trained(config, client):
    both = with_training(config, models=("hlf", "inclusive"))
    with pytest.raises(TrainingError, match="model hlf is not trained"):
        evaluate(both, client)
    train(both, client=client)
    evaluated = evaluate(both, client)
    assert evaluated.fresh
    metrics = json.loads(evaluated.metrics.read_text())
    assert set(metrics["models"]) == {"hlf", "inclusive"}
    test = open_store(both.store_path).labels("test")
    for model in metrics["models"].values():
        matrix = np.array(model["confusion_matrix"])
        assert matrix.sum(axis=1).tolist() == np.bincount(test, minlength=3).tolist()
        assert model["accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum())
    assert "inclusive" in evaluated.report.read_text()
    table = (both.folder / "models" / "hlf" / "history.csv").read_text().splitlines()
    assert table[0].startswith("epoch,loss,accuracy,val_loss")
    assert len(table) == 1 + both.models.hlf.epochs
    assert not evaluate(both, client).fresh


def test_ranks_that_train_or_score_have_the_bounds_of_the_configuration(config, client):
    hlf = with_training(config, models=("hlf",))
    wide = with_training(hlf, cores_per_rank=1000, start_timeout=0.5)
    with pytest.raises(NotEnoughSlots, match=r"not enough slots after 0\.5 s: 1 of 1000 core"):
        train(wide, client=client)
    train(hlf, client=client)
    with pytest.raises(NotEnoughSlots, match=r"not enough slots after 0\.5 s: 1 of 1000 core"):
        evaluate(wide, client)


@pytest.mark.slow
def test_a_network_takes_the_features_it_is_told(config, client):
    few = config.models.hlf.model_copy(update={"features": ("MET", "HT")})
    chosen = config.model_copy(update={"models": config.models.model_copy(update={"hlf": few})})
    trained = train(with_training(chosen, models=("hlf",)), client=client)[0]
    assert trained.record.inputs == {"high_level": (1, 0)}
    assert evaluate(with_training(chosen, models=("hlf",)), client).fresh
    wrong = few.model_copy(update={"features": ("METT",)})
    with pytest.raises(
        ConfigError, match=r"models\.hlf\.features: no feature is called METT; did you mean MET\?"
    ):
        train(
            config.model_copy(update={"models": config.models.model_copy(update={"hlf": wrong})}),
            "hlf",
            client,
        )


def test_the_published_form_is_trained_on_all_rows(make_config, client):
    config = make_config(analysis={"convention": "reference"}, **SMALL)
    store = prepare(config, client).store
    assert train(config, "inclusive", client)[0].record.scaling.particles is None
    batch = next(batches_of(store, "test", 4).in_order())
    assert padded(batch, None, list(range(19)), 801).shape == (4, 801, 19)


def test_no_store(make_config, client):
    with pytest.raises(StoreError, match="there is no store; make it with: hepdask prepare"):
        train(make_config(**SMALL), client=client)


def test_a_single_class_cannot_be_trained(make_config, client, sample_files):
    config = make_config(files={"ttbar": [sample_files["ttbar"]]}, **SMALL)
    prepare(config, client)
    missing = r"no training events of class qcd \(no dataset\), class wjets \(no dataset\)"
    with pytest.raises(TrainingError, match=missing):
        train(config, client=client)


def test_a_class_without_events_is_refused(make_config, client, sample_files, tmp_path):
    none = made.write_root(tmp_path / "none.root", made.random_events(5, 1, leptons=0))
    files = {"ttbar": [sample_files["ttbar"]], "wjets": [sample_files["wjets"]], "qcd_leptons": [none]}
    config = with_training(make_config(files=files, **SMALL), models=("hlf",))
    prepare(config, client)
    with pytest.raises(TrainingError, match=r"no training events of class qcd \(dataset qcd_leptons\)\. Add"):
        train(config, client=client)


def test_a_store_or_model_of_another_configuration_is_not_used(config, client):
    def changed(section, **update):
        return config.model_copy(update={section: getattr(config, section).model_copy(update=update)})

    for other in (changed("split", validation_fraction=0.2), config.model_copy(update={"fileset": {}})):
        with pytest.raises(StoreError, match="have changed since; run: hepdask prepare"):
            train(other, client=client)
    with pytest.raises(StoreError, match=r"analysis\.lepton_min_pt: 23\.0 in the store, 60\.0 now"):
        train(changed("analysis", lepton_min_pt=60.0), client=client)

    alone = with_training(config, models=("hlf",))
    trained = train(alone, client=client)[0]
    smaller = config.models.model_copy(update={"hlf": config.models.hlf.model_copy(update={"hidden": (3,)})})
    with pytest.raises(TrainingError, match="with other settings than the configuration says"):
        evaluate(alone.model_copy(update={"models": smaller}), client)
    trained.file.unlink()
    with pytest.raises(TrainingError, match="model hlf is not trained"):
        evaluate(alone, client)
    assert train(alone, client=client)[0].fresh


def test_a_loss_that_is_no_number_names_the_events(config):
    wild = config.models.model_copy(
        update={"hlf": config.models.hlf.model_copy(update={"learning_rate": 1e30})}
    )
    with pytest.raises(TrainingError, match=r"hlf: the loss became nan on the batch of .*\.root entry \d+"):
        train_rank("hlf", config.model_copy(update={"models": wild}), config.store_path)


@pytest.mark.slow
def test_a_training_that_lost_a_rank_joins_up(config, client, tmp_path):
    """Kill a rank, then the driver, of a real `hepdask train`: the curve is that of an undisturbed run."""
    require(has_horovod(), "Horovod is not built (make horovod)")
    slow = config.models.model_copy(update={"hlf": config.models.hlf.model_copy(update={"epochs": 160})})
    config = with_training(config, ranks=2).model_copy(update={"models": slow})
    expected = train_rank("hlf", config, config.store_path).history

    document = tmp_path / "config.yaml"
    document.write_text(config.to_yaml())
    checkpoints = config.folder / "models" / "hlf" / "checkpoint"

    def start():
        return subprocess.Popen(
            [sys.executable, "-m", "hepdask", "train", str(document), "--model", "hlf"],
            stderr=subprocess.PIPE, cwd=Path(__file__).parents[2], env=os.environ | {"TEST_MARK": mark},
        )  # fmt: skip

    def epochs():
        return max((int(path.name[-8:]) for path in checkpoints.glob("*/checkpoint-*")), default=0)

    mark = uuid.uuid4().hex
    driver = start()
    until(lambda: epochs() >= 4, 120)
    ranks = [p for p in marked(mark) if p.environ().get("HOROVOD_RANK") == "1"]
    before = epochs()
    ranks[-1].kill()
    until(lambda: epochs() >= before + 10, 120)
    driver.kill()
    assert b"killed by SIGKILL; starting again (2 restart(s) left)" in driver.communicate()[1]
    until(lambda: not marked(mark), 30)
    assert epochs() < 160

    again = start()
    said = again.communicate(timeout=200)[1]
    assert (again.returncode, b"hlf epoch 160/160" in said, b"hlf epoch 4/160" in said) == (0, True, False)
    found = json.loads((config.folder / "models" / "hlf" / "training.json").read_text())["history"]
    assert [row["epoch"] for row in found] == list(range(1, 161))
    with (config.folder / "models" / "hlf" / "history.csv").open() as table:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(table)]
    assert rows == found, "every epoch once, those before the kills and those done again"
    for name in ("loss", "val_loss"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], rel=1e-4)
    assert not checkpoints.exists()
