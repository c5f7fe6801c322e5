"""Training and evaluation: real ranks, batches that hold every event once, and clear refusals."""

import json

import events as made
import numpy as np
import pytest
from conftest import require

from hepdask import evaluate, models, open_store, order, prepare, train
from hepdask.batches import Batches, Reading, padded
from hepdask.config import Models
from hepdask.errors import ConfigError, StoreError, TrainingError
from hepdask.names import HIGH_LEVEL, PARTICLE
from hepdask.training import train_rank


def has_horovod():
    try:
        import horovod  # noqa: F401
    except ImportError:
        return False
    return True


SMALL = {
    "models": {
        "hlf": {"epochs": 3, "batch_size": 16},
        "inclusive": {"epochs": 1, "batch_size": 16, "units": 4},
    },
    "cluster": {"kind": "local", "workers": 2, "dashboard-port": 0},
}


@pytest.fixture
def config(make_config, client):
    """A configuration whose store is there."""
    made_config = make_config(**SMALL)
    prepare(made_config, client)
    return made_config


def with_training(config, **training):
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


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
    tiled = order.batches(rng.permutation(len(lengths)), lengths, 128, 8192, rng)[:-1]
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
        shares = order.shares(lengths, size)
        assert sorted(np.concatenate(shares)) == list(range(len(lengths)))
        work = np.array([lengths[share].sum() for share in shares])
        assert work.max() < 1.25 * work.mean()


def test_padding_does_not_change_scores():
    model = models.build("inclusive", Models(), models.inputs("inclusive", Models(), HIGH_LEVEL), 3)
    rng = np.random.default_rng(0)
    inputs = {
        "particles": rng.normal(size=(2, 7, 19)).astype("f4"),
        "high_level": rng.normal(size=(2, 14)).astype("f4"),
    }
    longer = {
        **inputs,
        "particles": np.concatenate([inputs["particles"], np.zeros((2, 50, 19), "f4")], axis=1),
    }
    assert model.predict(inputs, verbose=0) == pytest.approx(model.predict(longer, verbose=0), abs=1e-6)


def test_the_published_sizes():
    assert (
        models.build("hlf", Models(), models.inputs("hlf", Models(), HIGH_LEVEL), 3).count_params()
        == 14 * 50 + 50 + 50 * 20 + 20 + 20 * 10 + 10 + 10 * 3 + 3
    )
    gru = 3 * (19 * 50 + 50 * 50 + 2 * 50)
    assert models.build(
        "inclusive", Models(), models.inputs("inclusive", Models(), HIGH_LEVEL), 3
    ).count_params() == gru + (64 * 25 + 25) + (25 * 3 + 3)


def test_two_ranks_train_as_one_does(config, client):
    """The HLF network has no dropout: after three epochs of the same global batches the weights agree."""
    require(has_horovod(), "Horovod is not built (make horovod)")
    weights = []
    for ranks in (1, 2):
        alone = with_training(config, ranks=ranks).model_copy(update={"output": f"{config.output}-{ranks}"})
        alone = alone.model_copy(
            update={"store": config.store.model_copy(update={"path": str(config.store_path)})}
        )
        trained = train(alone, "hlf", client)[0]
        assert trained.fresh
        assert [row["epoch"] for row in trained.record["history"]] == [1, 2, 3]
        import keras

        weights.append(keras.models.load_model(trained.keras_file).get_weights())
    for one, two in zip(*weights, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_trained_models_are_up_to_date_until_something_changes(config, client):
    assert train(config, "hlf", client)[0].fresh
    assert not train(config, "hlf", client)[0].fresh
    longer = config.models.model_copy(update={"hlf": config.models.hlf.model_copy(update={"epochs": 4})})
    assert train(config.model_copy(update={"models": longer}), "hlf", client)[0].fresh


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
    assert not evaluate(both, client).fresh


def test_a_network_takes_the_features_it_is_told(config, client):
    few = config.models.hlf.model_copy(update={"features": ("MET", "HT")})
    chosen = config.model_copy(update={"models": config.models.model_copy(update={"hlf": few})})
    trained = train(with_training(chosen, models=("hlf",)), client=client)[0]
    assert trained.record["inputs"] == {"high_level": [1, 0]}
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
    config = make_config(physics={"convention": "reference"}, **SMALL)
    store = prepare(config, client).store
    assert train(config, "inclusive", client)[0].record["scaling"]["particles"] is None
    batch = next(batches_of(store, "test", 4).in_order())
    assert padded(batch, None, list(range(19)), 801).shape == (4, 801, 19)


def test_no_store(make_config, client):
    with pytest.raises(StoreError, match="there is no store; make it with: hepdask prepare"):
        train(make_config(**SMALL), client=client)


def test_a_single_class_cannot_be_trained(make_config, client, sample_files):
    config = make_config(files={"ttbar": [sample_files["ttbar"]]}, **SMALL)
    prepare(config, client)
    with pytest.raises(TrainingError, match="at least two classes; there are none of qcd, wjets"):
        train(config, client=client)


def test_two_of_three_classes_are_trained_and_the_third_is_said(
    make_config, client, sample_files, tmp_path, capsys
):
    none = made.write_root(tmp_path / "none.root", made.random_events(5, 1, leptons=0))
    files = {"ttbar": [sample_files["ttbar"]], "wjets": [sample_files["wjets"]], "qcd": [none]}
    config = with_training(make_config(files=files, **SMALL), models=("hlf",))
    prepare(config, client)
    train(config, client=client)
    assert "no training event of class qcd" in capsys.readouterr().err
    metrics = json.loads(evaluate(config, client).metrics.read_text())
    assert metrics["models"]["hlf"]["classes"]["qcd"]["auc"] is None
    assert metrics["models"]["hlf"]["classes"]["ttbar"]["auc"] is not None


def test_a_store_or_model_of_another_configuration_is_not_used(config, client):
    def changed(section, **update):
        return config.model_copy(update={section: getattr(config, section).model_copy(update=update)})

    for other in (changed("split", validation_fraction=0.2), config.model_copy(update={"fileset": {}})):
        with pytest.raises(StoreError, match="have changed since; run: hepdask prepare"):
            train(other, client=client)
    with pytest.raises(StoreError, match=r"physics\.lepton_min_pt: 23\.0 in the store, 60\.0 now"):
        train(changed("physics", lepton_min_pt=60.0), client=client)

    alone = with_training(config, models=("hlf",))
    trained = train(alone, client=client)[0]
    smaller = config.models.model_copy(update={"hlf": config.models.hlf.model_copy(update={"hidden": (3,)})})
    with pytest.raises(TrainingError, match="with other settings than the configuration says"):
        evaluate(alone.model_copy(update={"models": smaller}), client)
    trained.keras_file.unlink()
    with pytest.raises(TrainingError, match="model hlf is not trained"):
        evaluate(alone, client)
    assert train(alone, client=client)[0].fresh


def test_a_loss_that_is_no_number_names_the_events(config):
    wild = config.models.model_copy(
        update={"hlf": config.models.hlf.model_copy(update={"learning_rate": 1e30})}
    )
    with pytest.raises(TrainingError, match=r"hlf: the loss became nan on the batch of .*\.root entry \d+"):
        train_rank("hlf", config.model_copy(update={"models": wild}), config.store_path)
