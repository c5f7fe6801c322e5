"""`evaluate`: scores of the test split, metrics, figures and the report."""

from __future__ import annotations

import hashlib
import logging
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from hepdask import clusters, distributed
from hepdask._version import versions
from hepdask.analysis import histograms
from hepdask.config import Config
from hepdask.errors import TrainingError
from hepdask.files import atomic
from hepdask.models import TREES
from hepdask.models.record import read_model
from hepdask.monitoring.performance_report import Recording
from hepdask.pipeline import train_trees
from hepdask.pipeline.owned_output import owns_output
from hepdask.pipeline.prepare import identity, open_prepared
from hepdask.pipeline.rank_options import rank_options
from hepdask.pipeline.required_extras import require_for_models
from hepdask.pipeline.train import Trained, load_trained
from hepdask.pipeline.training_key import training_key
from hepdask.report import ModelResult, RunFacts, write_report
from hepdask.store import Store
from hepdask.training.loop import ENVIRONMENT, RankScores, score_rank
from hepdask.tuning.search_space import applied

logger = logging.getLogger(__name__)

_PACKAGES = (
    "hepdask", "awkward", "coffea", "dask", "distributed", "horovod", "keras", "numpy", "pythia8mc",
    "scikit-learn", "tensorflow-cpu", "uproot", "xgboost-cpu", "zarr",
)  # fmt: skip

#: Raised whenever the same scores make another report than before.
_REPORT = 4


@dataclass(frozen=True)
class Evaluated:
    """A report on disk.

    Attributes
    ----------
    report, metrics : Path
        ``report.html`` and ``metrics.json``.
    fresh : bool
        Made now, not found up to date.
    """

    report: Path
    metrics: Path
    fresh: bool


def evaluate(config: Config, client: Client | None = None) -> Evaluated:
    """Score the test split with every trained model and write the report.

    Parameters
    ----------
    config : Config
        Uses `output`, `store`, `training` and `cluster`.
    client : distributed.Client, optional
        Where events are scored; by default on `config.cluster`.

    Returns
    -------
    Evaluated

    Raises
    ------
    StoreError
        There is no complete store.
    TrainingError
        A model of `training.models` is not trained yet, or there is no event to test on.
    MissingDependency
        The library of a model, or Horovod for more than one rank, is not installed.
    """
    return evaluate_recorded(config, client, None)


@owns_output("evaluating")
def evaluate_recorded(config: Config, client: Client | None, recording: Recording | None) -> Evaluated:
    """Evaluate as `evaluate`; the performance report begins with a recording that was started before."""
    begin = time.monotonic()
    require_for_models(config, config.training.models)
    store = open_prepared(config)
    trained = [_require(config, store, name) for name in config.training.models]
    if not len(store.labels("test")):
        raise TrainingError(f"{store.path}: no event is in the test split; raise split.test_fraction")
    folder = config.folder
    result = Evaluated(folder / "report.html", folder / "metrics.json", fresh=False)
    steps = atomic.read_json(folder / "steps.json") or {}
    key = atomic.digest(
        [_REPORT, versions(_PACKAGES), store.fingerprint, identity(config),
         [model.record.identity for model in trained], config.to_yaml()]
    )  # fmt: skip
    before = atomic.read_sealed(folder / "evaluation.json")
    if before == {"key": key, "files": _digests(result)}:
        logger.info(f"{result.report}: up to date")
        return result
    if before is None:
        logger.debug("%s: not made yet", result.report)
    else:
        same = before.get("key") == key
        why = (
            "is not the file that was written" if same else "models, store, configuration or packages changed"
        )
        logger.debug("%s: made again: %s", result.report, why)

    with clusters.connect(config.cluster, client) as client:
        recording = recording or Recording(client)
        judged = {model.name: _score(model, store, config, client) for model in trained}
        performance = folder / "performance.html"
        has_performance = recording.save(performance, folder.name)
    labels, train_labels = store.labels("test"), store.labels("fit")
    models = [
        ModelResult(
            model.name, labels, judged[model.name].test, list(model.record.history), model.record.facts,
            train_labels, judged[model.name].fit, judged[model.name].importances,
        )
        for model in trained
    ]  # fmt: skip
    cpu = time.process_time() + sum(one.cpu_s for one in judged.values())
    steps["evaluate"] = {"wall_s": time.monotonic() - begin, "cpu_s": cpu}
    run_facts = _run_facts(config, store, steps, performance.name if has_performance else "")
    write_report(folder, run_facts, models)
    atomic.write_sealed(folder / "evaluation.json", {"key": key, "files": _digests(result)})
    for line in _headlines(atomic.read_json(result.metrics)):
        logger.info(line)
    logger.info(f"report: {result.report}")
    return Evaluated(result.report, result.metrics, fresh=True)


def score_test_split(config: Config, name: str, client: Client) -> tuple[Store, NDArray[np.float32]]:
    """Score the test split with one trained model, on ranks; return the store and the scores in its order."""
    store = open_prepared(config)
    return store, _score(_require(config, store, name), store, config, client).test


def _require(config: Config, store: Store, name: str) -> Trained:
    trained = load_trained(config, name)
    if trained is None:
        raise TrainingError(
            f"{config.folder}: model {name} is not trained; run: hepdask train CONFIG --model {name}"
        )
    if trained.record.study:
        config = applied(config, name, trained.record.study)
    if trained.record.key != training_key(store, config, name):
        raise TrainingError(
            f"{trained.folder}: trained on other events or with other settings than the configuration says; run: "
            f"hepdask train CONFIG --model {name}"
        )
    return trained


def _score(model: Trained, store: Store, config: Config, client: Client) -> RankScores:
    """Score all events: ranks with a network, tasks with trees."""
    content = read_model(model.folder, model.record)
    if model.name in TREES:
        return train_trees.score(content, model.record, store, config, client)
    options = replace(
        rank_options(config.training), env=ENVIRONMENT, restarts=0,
        on_output=lambda rank, line: logger.info(f"[{model.name} rank {rank}] {line}"),
    )  # fmt: skip
    shares: list[RankScores] = distributed.run(
        score_rank, content, model.record, store.path.absolute(),
        client=client, ranks=config.training.ranks, options=options,
    )  # fmt: skip
    importances: dict[str, float] = {}
    for share in shares:
        importances |= share.importances
    return RankScores(
        _interleaved([share.test for share in shares]),
        _interleaved([share.fit for share in shares]),
        importances,
        sum(share.cpu_s for share in shares),
    )


def _interleaved(shares: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Put events back in order; ranks took turns at them."""
    scores = np.empty((sum(map(len, shares)), shares[0].shape[1]), np.float32)
    for rank, share in enumerate(shares):
        scores[rank :: len(shares)] = share
    return scores


def _run_facts(config: Config, store: Store, steps: dict[str, Any], performance: str) -> RunFacts:
    test = store.events("test")
    return RunFacts(
        title=config.folder.name,
        classes=store.classes,
        features={
            name: {
                label: test.high_level[test.label == index, column]
                for index, label in enumerate(store.classes)
            }
            for column, name in enumerate(store.features["hlf"])
        },
        selection=store.manifest["selection"],
        notes=store.manifest["notes"],
        configuration=config.to_yaml(),
        versions={"python": platform.python_version()} | versions(_PACKAGES),
        steps=[{"step": step, **facts} for step, facts in steps.items()],
        histograms=_histograms(store),
        performance=performance,
    )


def _histograms(store: Store) -> dict[str, histograms.Document]:
    """Add up the histograms of all datasets of a class."""
    by_class: dict[str, histograms.Document] = {}
    labels = {part["dataset"]: store.classes[part["label"]] for part in store.parts}
    for dataset, document in store.manifest.get("histograms", {}).items():
        name = labels.get(dataset)
        if name is not None:  # else nothing of it was selected
            by_class[name] = histograms.merge(by_class[name], document) if name in by_class else document
    return by_class


def _digests(result: Evaluated) -> dict[str, str | None]:
    """Digest the files of a report; None for one that is not there."""
    return {
        file.name: hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest() if file.exists() else None
        for file in (result.report, result.metrics)
    }


def _headlines(metrics: Any) -> list[str]:
    lines = []
    for name, model in metrics["models"].items():
        areas = ", ".join(
            f"{label} {facts['auc']:.4f}" if facts["auc"] is not None else f"{label} undefined"
            for label, facts in model["classes"].items()
        )
        lines.append(f"{name}: accuracy {model['accuracy']:.4f}, AUC {areas}")
    return lines
