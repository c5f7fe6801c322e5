"""What only a GPU can show: skipped, with the reason, where there is none. Was not yet run on one."""

from __future__ import annotations

import importlib.util
import os
import sys

import cloudpickle
import numpy as np
import pytest
from distributed import Client, LocalCluster

from hepdask.clusters import GPU
from hepdask.clusters.preflight import check
from hepdask.config import Forest, XGBoost
from hepdask.distributed import RankOptions, run
from hepdask.distributed.gpu_claims import NoDriver, host_devices, visible

pytestmark = pytest.mark.gpu

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True, scope="module")
def gpus():
    """Give what each GPU really is."""
    try:
        found = visible(host_devices(), os.environ)
    except NoDriver as missing:
        pytest.skip(f"no GPU: {missing}")
    if not found:
        pytest.skip(f"no GPU: CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES')!r}")
    return list(found.values())


@pytest.fixture
def tensorflow():
    """Give TensorFlow where it can use a GPU."""
    tf = pytest.importorskip("tensorflow")
    if not tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow sees no GPU: hepdask cluster check gpu says why")
    return tf


@pytest.mark.parametrize(("cell", "on_device"), [("gru", True), ("lstm", True), ("gru", False)])
def test_cudnn_computes_what_float64_does(tensorflow, cell, on_device):
    from helpers.padded_oracle import check

    tensorflow.config.experimental.enable_tensor_float_32_execution(False)
    engine, batch = check(cell, 50, of_scores=1e-5, of_gradients=1e-4, on_device=on_device)
    assert "GPU" in engine._inputs(batch)["particles"].device
    graph = engine._step.get_concrete_function(
        engine._inputs(batch), tensorflow.constant(batch.label), tensorflow.constant(batch.weight)
    ).graph
    functions = graph.as_graph_def().library.function
    assert "CudnnRNNV3" in {node.op for function in functions for node in function.node_def} | {
        node.type for node in graph.get_operations()
    }


def what_a_rank_has():
    import tensorflow as tf

    return list(visible(host_devices(), os.environ).values()), len(tf.config.list_physical_devices("GPU"))


def test_each_rank_has_a_gpu_of_its_own(tensorflow, gpus):
    """Two workers that see all GPUs, as on a machine without batch system."""
    ranks = min(2, len(gpus))
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "silence_logs": 40}
    with (
        LocalCluster(n_workers=ranks, threads_per_worker=1, resources={"GPU": 1}, **options) as cluster,
        Client(cluster) as client,
    ):
        backend = "horovod" if ranks == 1 else "tf.distribute"  # which needs no build
        found = run(what_a_rank_has, client=client, ranks=ranks, options=RankOptions(backend=backend))
    assert all(len(mine) == seen == 1 for mine, seen in found)
    assert len({mine[0] for mine, _ in found}) == ranks


@pytest.mark.skipif(importlib.util.find_spec("dask_cuda") is None, reason="dask-cuda is not installed")
def test_check_finds_driver_devices_cuda_and_cudnn(tensorflow):
    found = {one.name: one for one in check(GPU(dashboard_port=0))}
    for name in ("NVIDIA driver", "visible devices", "CUDA in TensorFlow", "cuDNN"):
        assert found[name].passed, found[name]


def test_trees_on_a_gpu_are_as_good_as_on_a_cpu():
    from hepdask.models.trees.boosted import boost
    from hepdask.models.trees.fitted import load_trees, xgboost
    from hepdask.models.trees.rows import Rows

    if not xgboost().build_info()["USE_CUDA"]:
        pytest.skip("XGBoost here is xgboost-cpu")
    rng = np.random.default_rng(3)
    features = rng.normal(size=(5000, 14)).astype(np.float32)
    label = (features[:, 0] + features[:, 1] ** 2 + rng.normal(size=5000) > 1).astype(np.int64)
    fit = Rows(features[:4000], label[:4000], np.ones(4000, np.float32))
    none = Rows(features[:0], label[:0], np.ones(0, np.float32))
    right = {}
    for device in ("cpu", "cuda"):
        settings = XGBoost(device=device, rounds=20, early_stopping=None)
        scores = load_trees(boost(fit, none, 2, settings, 1).file).scores(features[4000:])
        right[device] = (scores.argmax(axis=1) == label[4000:]).mean()
    assert right["cuda"] == pytest.approx(right["cpu"], abs=0.02)
    assert right["cuda"] > 0.7


def test_a_forest_on_a_gpu_is_as_good_as_on_a_cpu():
    pytest.importorskip("cuml", reason="cuML is not installed (pip install 'hepdask[cuml]')")
    from hepdask.models.trees import forest
    from hepdask.models.trees.fitted import load_trees
    from hepdask.models.trees.rows import Rows

    rng = np.random.default_rng(3)
    features = rng.normal(size=(5000, 14)).astype(np.float32)
    label = (features[:, 0] + features[:, 1] ** 2 + rng.normal(size=5000) > 1).astype(np.int64)
    weight = np.array([1.0, 2.0], np.float32)[label]
    fit = Rows(features[:4000], label[:4000], weight[:4000])
    scores, importances = {}, {}
    for device in ("cpu", "cuda"):
        fitted = forest.grow(fit, 3, Forest(device=device), 1, 1)
        assert ("cuML" in fitted.way) == (device == "cuda")
        scores[device], importances[device] = (
            load_trees(fitted.file).scores(features[4000:]),
            fitted.importances,
        )
        assert scores[device].sum(axis=1) == pytest.approx(1.0, abs=1e-5)
        assert (scores[device][:, 2] == 0).all(), "a class without events"
        assert set(np.argsort(-fitted.importances)[:2]) == {0, 1}
    right = {device: (found.argmax(axis=1) == label[4000:]).mean() for device, found in scores.items()}
    assert right["cuda"] == pytest.approx(right["cpu"], abs=0.02)
    assert scores["cuda"] == pytest.approx(scores["cpu"], abs=0.25), "weights of classes count"
    again = forest.grow(fit, 3, Forest(device="cuda"), 1, 1)
    assert (load_trees(again.file).scores(features[4000:]) == scores["cuda"]).all()


def test_half_precision_trains(tensorflow, make_config, client, tmp_path):
    from hepdask import prepare
    from hepdask.training.loop import train_rank

    small = {"inclusive": {"epochs": 2, "batch_size": 16}}
    config = make_config(models=small, training={"precision": "mixed_float16"})
    prepare(config, client)
    trained = train_rank("inclusive", config, config.store_path)
    assert "GPU" in trained.way
    assert np.isfinite([row["loss"] for row in trained.history]).all()
