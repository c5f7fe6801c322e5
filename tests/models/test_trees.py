"""Boosted trees and forests: against the libraries alone, through the commands, and refused where they must be."""

import json
import os
import signal
import time
from contextlib import closing
from functools import partial
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
from distributed import Client, LocalCluster
from helpers.ranks import BOUND, held, marked
from helpers.requirements import require
from helpers.waiting import until

from hepdask import evaluate, open_store, prepare, train
from hepdask.config import Config, XGBoost
from hepdask.config.feature_names import HIGH_LEVEL
from hepdask.distributed import RankFailed, RankOptions
from hepdask.distributed.gpu_claims import NoDriver, host_devices
from hepdask.errors import ConfigError, TrainingError
from hepdask.models.trees import boosted, load_rows, load_trees
from hepdask.models.trees.boosted import boost_over
from hepdask.models.trees.devices import require_cuml, require_xgboost
from hepdask.models.trees.rows import Rows, shared_out

MODELS = {"xgboost": {"rounds": 30, "early_stopping": 5, "max_depth": 3}, "forest": {"trees": 20}}


def has_xgboost():
    try:
        import xgboost  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.fixture
def config(make_config, client):
    """A configuration whose store is there."""
    require(has_xgboost(), "XGBoost is not installed (pip install 'hepdask[trees]')")
    made = make_config(
        models=MODELS, training={"models": ["xgboost", "forest"], "class_weights": {"qcd": 2.0}},
        split={"validation_fraction": 0.2},
    )  # fmt: skip
    prepare(made, client)
    return made


def changed(config, **keys):
    """Change keys, given with __ for the dot."""
    document = json.loads(config.model_dump_json())
    for key, value in keys.items():
        section = document
        *above, last = key.split("__")
        for name in above:
            section = section[name]
        section[last] = value
    return Config.model_validate(document)


def scores_of(trained, rows):
    return load_trees(trained.file.read_bytes()).scores(rows.features)


def test_xgboost_on_two_workers_is_xgboost_alone(config, client):
    import xgboost

    (trained,) = train(config, "xgboost", client)
    assert "2 Dask workers" in trained.record.facts["computed by"]
    store = open_store(config.store_path)
    weights = np.array([2.0, 1.0, 1.0])
    fit, watched = load_rows(store, "fit", range(14), weights), load_rows(store, "validation", range(14))
    data = xgboost.DMatrix(fit.features, fit.label, weight=fit.weight)
    curves = {}
    alone = xgboost.train(
        {
            "objective": "multi:softprob", "num_class": 3, "tree_method": "hist", "max_depth": 3, "eta": 0.1,
            "eval_metric": "mlogloss",
        },
        data, 30, evals=[(data, "fit"), (xgboost.DMatrix(watched.features, watched.label), "watched")],
        evals_result=curves, early_stopping_rounds=5, verbose_eval=False,
    )  # fmt: skip
    test = load_rows(store, "test", range(14))
    expected = alone.predict(xgboost.DMatrix(test.features), iteration_range=(0, alone.best_iteration + 1))
    assert scores_of(trained, test) == pytest.approx(expected, abs=1e-5)
    for key, name in (("loss", "fit"), ("val_loss", "watched")):
        found = [row[key] for row in trained.record.history]
        assert found == pytest.approx(curves[name]["mlogloss"], abs=1e-5)
    gains = alone[: alone.best_iteration + 1].get_score(importance_type="total_gain")
    wanted = {HIGH_LEVEL[int(name[1:])]: gain / sum(gains.values()) for name, gain in gains.items()}
    importances = {name: share for name, share in trained.record.importances.items() if share}
    assert importances == pytest.approx(wanted, abs=1e-4)


@pytest.fixture
def one_worker():
    """A cluster of one worker, as a laptop with `workers: 1` has it."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


@pytest.mark.slow
def test_one_worker_grows_what_two_do(config, client, one_worker):
    """Trees of both libraries; the first watches for early stopping, the second does not."""
    over_all = changed(config, models__forest__library="xgboost")
    test = load_rows(open_store(config.store_path), "test", range(14))
    for name in ("xgboost", "forest"):
        (two,) = train(over_all, name, client)
        expected = scores_of(two, test)
        (two.folder / "training.json").unlink()
        (one,) = train(over_all, name, one_worker)
        assert one.fresh
        assert "1 Dask worker" in one.record.facts["computed by"]
        if name == "xgboost":  # sampled by row for a forest, in which one worker has others than two have
            assert scores_of(one, test) == pytest.approx(expected, abs=1e-4)


def test_a_forest_is_that_of_scikit_learn(config, client):
    from sklearn.ensemble import RandomForestClassifier

    (trained,) = train(config, "forest", client)
    store = open_store(config.store_path)
    fit, test = (
        load_rows(store, "fit", range(14), np.array([2.0, 1.0, 1.0])),
        load_rows(store, "test", range(14)),
    )
    alone = RandomForestClassifier(20, max_depth=12, min_samples_leaf=5, random_state=1)
    alone.fit(fit.features, fit.label, fit.weight)
    assert scores_of(trained, test) == pytest.approx(alone.predict_proba(test.features), abs=1e-6)
    importances = [trained.record.importances[name] for name in HIGH_LEVEL]
    assert importances == pytest.approx(alone.feature_importances_)

    over_all = changed(config, models__forest__library="xgboost", training__class_weights={})
    (other,) = train(over_all, "forest", client)
    assert other.fresh
    assert "2 Dask workers" in other.record.facts["computed by"]
    assert other.record.facts["trees"] == 3 * 20
    train_rows = load_rows(store, "fit", range(14))
    right = (scores_of(other, train_rows).argmax(axis=1) == train_rows.label).mean()
    assert right > 0.4, "better than guessing one of three"


@pytest.mark.slow
def test_trees_are_evaluated_like_networks(config, client):
    first = train(config, client=client)
    assert not any(model.fresh for model in train(config, client=client))
    evaluated = evaluate(config, client)
    assert 'href="performance.html"' in evaluated.report.read_text()
    assert "Bokeh" in (config.folder / "performance.html").read_text()
    metrics = json.loads(evaluated.metrics.read_text())["models"]
    assert set(metrics) == {"xgboost", "forest"}
    test = load_rows(open_store(config.store_path), "test", range(14))
    for model in first:
        right = (scores_of(model, test).argmax(axis=1) == test.label).mean()
        assert metrics[model.name]["accuracy"] == pytest.approx(right)
    page = evaluated.report.read_text()
    best, share = next(iter(first[0].record.importances.items()))
    assert f"{best} {share:.3f}" in page
    assert not evaluate(config, client).fresh
    whole = evaluated.metrics.read_text()
    evaluated.metrics.write_text(whole[:100])
    assert evaluate(config, client).fresh
    assert json.loads(evaluated.metrics.read_text())["models"] == json.loads(whole)["models"]
    deeper = changed(config, models__xgboost__max_depth=4, training__ranks=2)
    assert [model.fresh for model in train(deeper, "forest", client) + train(deeper, "xgboost", client)] == [
        False,
        True,
    ]


def slow_rows(sample, parts, path, seconds, when):
    """Give rows of two classes, and say whose they are; while one of them is slow, it can be killed."""
    if when == sample:
        path.with_name(f"{os.getpid()}.pid").touch()
        time.sleep(seconds)
    rng = np.random.default_rng(parts[0])
    label = rng.integers(0, 2, 2000)
    return Rows(
        rng.normal(size=(2000, 3)).astype(np.float32) + label[:, None], label, np.ones(2000, np.float32)
    )


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(
    ("when", "victim"),
    [("fit", "worker"), ("training", "0"), ("training", "1"), ("training", "worker")],
)
def test_a_lost_rank_or_worker_ends_xgboost(tmp_path, when, victim):
    """Nothing is left, neither processes nor locks, and the next training on the same cluster succeeds."""
    require(has_xgboost(), "XGBoost is not installed (pip install 'hepdask[trees]')")
    runs = {"fit": [[1], [2]], "validation": [[3], [4]]}
    load = partial(slow_rows, path=tmp_path / "x", seconds=60, when=when)
    lines = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as cluster,
        Client(cluster) as client,
        closing(ThreadPool(1)) as pool,
    ):
        workers = set(client.run(os.getpid).values())
        options = RankOptions(
            env={"TEST_MARK": str(tmp_path)},
            silence_timeout=30.0,
            on_output=lambda rank, line: lines.append(line),
        )

        def boosted(load, rounds):
            settings = XGBoost(rounds=rounds, early_stopping=None)
            return boost_over(client, load, runs, 2, settings, 1, options)

        ended = pool.apply_async(boosted, (load, 1_000_000))
        if when == "training":
            until(lambda: lines, 60, "rounds that are told")
        else:
            until(lambda: len(list(tmp_path.glob("*.pid"))) == 2, 60, "events that are read")
        if victim == "worker":
            killed, signalled = min(workers), "left the cluster"
        else:
            (killed,) = (
                process.pid
                for process in marked(str(tmp_path))
                if not process.children() and process.environ()["HOROVOD_RANK"] == victim
            )
            signalled = f"rank {victim} of 2 .* was killed by SIGKILL"
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(RankFailed, match=signalled):
            ended.get(60)
        until(lambda: not marked(str(tmp_path)), BOUND, "no process is left")
        assert held(client) == (0, 0, 0)
        assert set(client.run(os.getpid).values()) >= workers - {killed}, "the other workers live on"
        client.wait_for_workers(2, timeout=60)
        assert boosted(partial(load.func, path=tmp_path / "x", seconds=0, when=None), 3).trees == 6


def rows_that_kill_once(sample, parts, flag):
    """Kill the second rank while it reads, unless that was done before."""
    if parts[0] == 2 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return slow_rows(sample, parts, flag, 0, None)


@pytest.mark.slow
@pytest.mark.faults
def test_xgboost_starts_again(client, tmp_path):
    require(has_xgboost(), "XGBoost is not installed (pip install 'hepdask[trees]')")
    settings, runs, said = XGBoost(rounds=3, early_stopping=None), {"fit": [[1], [2]], "validation": []}, []
    load = partial(rows_that_kill_once, flag=tmp_path / "killed")
    options = RankOptions(restarts=1, on_status=said.append)
    found, undisturbed = (boost_over(client, load, runs, 2, settings, 1, options) for _ in range(2))
    assert [line.partition("killed by SIGKILL; ")[2] for line in said] == [
        "starting again (1 restart(s) left)"
    ]
    assert found.file == undisturbed.file


def test_what_trees_refuse(config, client):
    with pytest.raises(
        ConfigError, match=r"models\.xgboost\.features: no feature is called METT; did you mean MET"
    ):
        train(changed(config, models__xgboost__features=["METT"]), "xgboost", client)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        changed(config, models__xgboost__subsample=1.5)
    unwatched = changed(config, split__validation_fraction=0.0)
    prepare(unwatched, client)
    with pytest.raises(TrainingError, match=r"early_stopping needs events to watch"):
        train(unwatched, "xgboost", client)
    assert train(changed(unwatched, models__xgboost__early_stopping=None), "xgboost", client)[0].fresh
    with pytest.raises(TrainingError, match="device is cuda, and XGBoost finds none on worker tcp"):
        train(
            changed(unwatched, models__xgboost__early_stopping=None, models__xgboost__device="cuda"),
            "xgboost",
            client,
        )


@pytest.mark.parametrize(
    ("library", "missing"),
    [("xgboost", "XGBoost finds none on worker tcp"), ("sklearn", "cuML cannot be used on worker tcp")],
)
def test_a_forest_on_a_gpu_says_what_is_missing(config, client, library, missing):
    try:
        if host_devices():
            pytest.skip("there is a GPU: tests/test_gpu.py grows forests on it")
    except NoDriver:
        pass
    on_gpu = changed(config, models__forest__library=library, models__forest__device="cuda")
    with pytest.raises(TrainingError, match=rf"models\.forest\.device is cuda, and {missing}"):
        train(on_gpu, "forest", client)


def test_parts_are_shared_out_evenly():
    counts = np.array([10, 0, 10, 10, 30, 0])
    assert shared_out(counts, 2) == [[0, 2, 3], [4]]
    assert shared_out(counts, 1) == [[0, 2, 3, 4]]
    assert [part for run in shared_out(counts, 9) for part in run] == [0, 2, 3, 4]
    assert shared_out(np.zeros(3, int), 2) == []


def test_two_workers_do_not_share_a_gpu():
    require_xgboost({"tcp://one": ("cuda:0", "GPU-a"), "tcp://two": ("cuda:0", "GPU-b")}, XGBoost())
    with pytest.raises(
        TrainingError, match="workers tcp://one and tcp://two would share GPU-a: start one worker"
    ):
        require_xgboost({"tcp://one": ("cuda:0", "GPU-a"), "tcp://two": ("cuda:0", "GPU-a")}, XGBoost())


def test_a_forest_on_a_gpu_goes_where_nothing_is_missing():
    assert require_cuml({"tcp://one": "no GPU", "tcp://two": "", "tcp://three": ""}) == "tcp://two"
    with pytest.raises(
        TrainingError, match=r"cuML cannot be used on worker tcp://one: no GPU; or set it to cpu"
    ):
        require_cuml({"tcp://one": "no GPU"})


def test_xgboost_tells_a_lost_rank_in_its_text_only():
    """Its errors have one class: where one came from is read from the text, here from real ones."""
    xgb = pytest.importorskip("xgboost")
    with pytest.raises(xgb.core.XGBoostError) as lost:
        xgb.collective.init(
            dmlc_tracker_uri="127.0.0.1", dmlc_tracker_port=1, dmlc_timeout=1, dmlc_retry=1, dmlc_task_id="0"
        )
    assert boosted._is_of_lost_rank(lost.value)
    data = xgb.DMatrix(np.zeros((4, 1)), label=[0, 1, 0, 1])
    with pytest.raises(xgb.core.XGBoostError) as wrong:
        xgb.train({"max_depth": -3}, data, 1)
    assert not boosted._is_of_lost_rank(wrong.value)
    with pytest.raises(TrainingError, match="XGBoost: "), boosted._said():
        xgb.train({"max_depth": -3}, data, 1)
    with pytest.raises(xgb.core.XGBoostError), boosted._said():
        raise lost.value
