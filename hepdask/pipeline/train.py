"""`train`: models on a store; networks data-parallel over Horovod ranks, trees by XGBoost or scikit-learn."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client

from hepdask import clusters, distributed, models
from hepdask.config import Config, Topology
from hepdask.config.user_functions import codes
from hepdask.errors import TrainingError
from hepdask.files import atomic
from hepdask.models.record import (
    CODE,
    KeptCode,
    ModelRecord,
    Scaling,
    Scalings,
    file_digest,
    read_model,
    read_record,
    write_model,
)
from hepdask.pipeline import train_trees
from hepdask.pipeline.history_table import write_table
from hepdask.pipeline.outcome import Outcome
from hepdask.pipeline.owned_output import owns_output
from hepdask.pipeline.prepare import open_prepared
from hepdask.pipeline.rank_options import rank_options
from hepdask.pipeline.required_extras import require_for_models
from hepdask.pipeline.training_key import training_key
from hepdask.pipeline.training_listener import TrainingListener
from hepdask.pipeline.tune import tuned
from hepdask.store import Store
from hepdask.training.loop import TrainedModel, environment, train_rank
from hepdask.tuning.search_space import applied

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A trained model on disk.

    Attributes
    ----------
    name : str
        Which model.
    folder : Path
        Holds the model (`file`) and ``training.json``.
    record : ModelRecord
        What ``training.json`` holds: history, scaling, settings, which of them a study chose, facts, key; for
        trees also importances.
    fresh : bool
        Trained now, not found up to date.
    """

    name: str
    folder: Path
    record: ModelRecord
    fresh: bool

    @property
    def file(self) -> Path:
        """The saved model: ``model.keras``, XGBoost's ``model.ubj``, or ``model.npz`` (a forest of scikit-learn)."""
        return self.folder / self.record.file


@owns_output("training")
def train(config: Config, model: str | None = None, client: Client | None = None) -> list[Trained]:
    """Train models on the store.

    Parameters
    ----------
    config : Config
        Uses `store`, `models`, `training` and `cluster`.
    model : str, optional
        Train only this one; by default all of `training.models`.
    client : distributed.Client, optional
        Where the ranks run; by default on `config.cluster`.

    Returns
    -------
    list of Trained
        In the order of `training.models`. Models that are up to date are not trained again.

    Raises
    ------
    MissingDependency
        The library of a model, or Horovod for more than one rank, is not installed.
    StoreError
        There is no complete store.
    TrainingError
        The training split has too few events, or none of some class, or the loss became NaN.
    hepdask.distributed.RankFailed
        A rank died, more often than `training.restarts` allows.

    Notes
    -----
    The state after each epoch is kept in ``models/NAME/checkpoint`` until the model is complete. After a failure,
    and when the same training is asked for again after a kill, it goes on from there.
    """
    names: Sequence[str] = (model,) if model else config.training.models
    require_for_models(config, names)
    store = open_prepared(config)
    studies = tuned(config, store, names) if config.training.from_study else {}
    for name, parameters in studies.items():
        config = applied(config, name, parameters)
    _check(store, config, names)
    for name in names:
        models.inputs(
            name, config.models, store.features["hlf"]
        )  # refuses unknown features before anything starts
    found = [load_trained(config, name) for name in names]
    wanted = [training_key(store, config, name) for name in names]
    if all(old and old.record.key == key for old, key in zip(found, wanted, strict=True)):
        logger.info(f"models: up to date, {', '.join(names)}")
        return [old for old in found if old]
    for name, key, old in zip(names, wanted, found, strict=True):
        logger.debug("%s: %s", name, _why(old, key, config))
    with clusters.connect(config.cluster, client) as client:
        return [
            old
            if old and old.record.key == key
            else _train_one(name, key, store, config, client, studies.get(name))
            for name, key, old in zip(names, wanted, found, strict=True)
        ]


def _why(old: Trained | None, key: str, config: Config) -> str:
    """Say why a model is trained now, or is not."""
    if old is None:
        return "not trained yet"
    if old.record.key == key:
        return "up to date"
    settings = models.settings(old.name, config.models).model_dump(mode="json")
    changed = [
        *_differing("models." + old.name, old.record.settings, settings),
        *_differing(
            "analysis", old.record.analysis.model_dump(mode="json"), config.analysis.model_dump(mode="json")
        ),
    ]
    unkept = (
        "the events, the split, the source of a function, a library, or a setting of training has changed"
    )
    return f"trained again: {', '.join(changed) + ' changed' if changed else unkept}"


def _differing(section: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{section}.{key}" for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)
    ]


def load_trained(config: Config, name: str) -> Trained | None:
    """Find a model that was trained before; None where there is none, a HepdaskError where it is damaged."""
    folder = config.folder / "models" / name
    record = read_record(folder)
    if record is None or not (folder / record.file).exists():
        return None
    read_model(folder, record)
    return Trained(name, folder, record, fresh=False)


def _train_one(
    name: str, key: str, store: Store, config: Config, client: Client, study: dict[str, Any] | None
) -> Trained:
    train_it = train_trees.train if name in models.TREES else _train_network
    begin = time.monotonic()
    outcome = train_it(name, key, store, config, client)
    folder = config.folder / "models" / name
    particles = store.particle_scaler
    record = ModelRecord(
        key=key,
        model=name,
        file=outcome.file_name,
        file_digest=file_digest(outcome.file),
        classes=tuple(store.classes),
        inputs=models.inputs(name, config.models, store.features["hlf"]),
        settings=models.settings(name, config.models).model_dump(mode="json"),
        study=study,
        analysis=config.analysis.model_dump(mode="json"),
        code=keep_code(config.analysis, folder / CODE),
        imported=store.imported,
        mantissa_bits=config.store.mantissa_bits,
        scaling=Scalings(
            high_level=Scaling.of(store.high_level_scaler),
            particles=Scaling.of(particles) if particles else None,
        ),
        history=outcome.history,
        importances=outcome.importances,
        facts={
            "training events": len(store.labels("fit")),
            "wall_s": time.monotonic() - begin,
            **outcome.facts,
        },
    )
    write_model(folder, record, outcome.file)
    shutil.rmtree(folder / "checkpoint" / key, ignore_errors=True)
    with suppress(OSError):  # there are those of other settings
        (folder / "checkpoint").rmdir()
    return Trained(name, folder, record, fresh=True)


def keep_code(analysis: Topology, folder: Path) -> list[KeptCode]:
    """Keep the source of the user's functions with the model: that of one file in the folder, of others below it."""
    shutil.rmtree(folder, ignore_errors=True)
    kept: dict[str, KeptCode] = {}
    for reference, code in codes((*analysis.selections.values(), *analysis.features.values())).items():
        number = sum(one.kept is not None for one in kept.values())
        below = Path(str(number + 1) if number else "")
        for path, text in code.files:
            atomic.write_bytes(folder / below / path, text.encode())
        kept[reference] = KeptCode(
            reference=reference, name=code.name, digest=code.digest,
            kept=str(Path(CODE, below, code.name)) if code.is_file else None,
        )  # fmt: skip
    return list(kept.values())


def _train_network(name: str, key: str, store: Store, config: Config, client: Client) -> Outcome:
    folder = config.folder / "models" / name
    training = config.training
    checkpoint, table = folder / "checkpoint" / key, folder / "history.csv"
    if not checkpoint.exists():  # else this training goes on from there, and so do its table and its curves
        table.unlink(missing_ok=True)
        shutil.rmtree(folder / "logs" / "tensorboard", ignore_errors=True)
    with (
        clusters.reserved(client, training.ranks, training.cores_per_rank, training.gpus_per_rank),
        TrainingListener(name, table, client) as listener,
    ):
        options = replace(
            rank_options(training), env=environment(name, config), min_ranks=training.min_ranks,
            checkpoint=checkpoint.absolute(), log_dir=folder / "logs",
            on_output=listener, on_status=lambda line: logger.info(f"{name}: {line}"),
        )  # fmt: skip
        results: list[TrainedModel | None] = distributed.run(
            train_rank, name, config, store.path.absolute(), folder.absolute() / "logs" / "tensorboard",
            client=client, ranks=training.ranks, options=options,
        )  # fmt: skip
    trained = results[0]
    assert trained is not None, "rank 0 always returns the model"
    write_table(table, trained.history)  # a driver may have been killed between a checkpoint and its line
    facts = {
        "parameters": trained.parameters,
        "ranks": training.ranks,
        "ranks at the end": len(results),
        "cores per rank": training.cores_per_rank,
        "cpu_s": trained.cpu_s,
        "computed by": trained.engine_name,
    }
    return Outcome("model.keras", trained.keras_file, trained.history, facts)


def _check(store: Store, config: Config, names: Sequence[str]) -> None:
    if len(store.classes) < 2:
        raise TrainingError("a classifier needs at least two classes; name them in analysis.classes")
    counts = np.bincount(store.labels("fit"), minlength=len(store.classes))
    missing = [name for name, count in zip(store.classes, counts, strict=True) if not count]
    if missing:
        raise TrainingError(
            f"{store.path}: there are no training events of {', '.join(_with_datasets(missing, config))}. Add files, "
            f"leave the class out of analysis.classes, or look at the selection: hepdask inspect {store.path}"
        )
    for name in (name for name in names if name in models.NETWORKS):
        wanted = models.settings(name, config.models).batch_size
        if counts.sum() < max(wanted, config.training.ranks):
            raise TrainingError(
                f"{counts.sum()} training events do not fill one batch of {wanted} over {config.training.ranks} ranks; "
                f"prepare more events, or lower models.{name}.batch_size or training.ranks"
            )


def _with_datasets(classes: Sequence[str], config: Config) -> list[str]:
    """Name each class with the datasets that were to hold its events."""
    found = []
    for name in classes:
        datasets = [key for key, dataset in config.fileset.items() if dataset.metadata["label"] == name]
        found.append(f"class {name} ({'dataset ' + ', '.join(datasets) if datasets else 'no dataset'})")
    return found
