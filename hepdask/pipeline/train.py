"""`train`: models on a store; networks data-parallel over Horovod ranks, trees by XGBoost or scikit-learn."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client

from hepdask import clusters, distributed, models
from hepdask._version import versions
from hepdask.config import Config, Topology
from hepdask.config.user_functions import codes
from hepdask.errors import HepdaskError, TrainingError
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
from hepdask.monitoring import metrics
from hepdask.pipeline import train_trees
from hepdask.pipeline.outcome import Outcome
from hepdask.pipeline.owned_output import owns_output
from hepdask.pipeline.prepare import identity, open_prepared
from hepdask.pipeline.required_extras import require_for_models
from hepdask.pipeline.tune import tuned
from hepdask.progress import Tracker, say, track
from hepdask.store import Store
from hepdask.training.loop import TrainedModel, environment, train_rank
from hepdask.tuning.search_space import applied

#: Settings of training on which the weights depend.
_DECISIVE = {
    "ranks", "seed", "memory_gib", "window", "class_weights", "early_stopping", "rate_per_rank", "precision",
}  # fmt: skip

#: ... those of trees; settings of the model say the rest.
_DECISIVE_OF_TREES = {"seed", "class_weights"}

#: Raised whenever the same events and settings give another model than before, or checkpoints hold something else.
_TRAINING = 1

#: What trains, and what a checkpoint of it is made for.
_LIBRARIES = {
    "networks": ("keras", "tensorflow-cpu", "tensorflow"), "trees": ("xgboost-cpu", "xgboost", "scikit-learn"),
}  # fmt: skip


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
        Train this one alone; by default all of `training.models`.
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
        say(f"models: up to date, {', '.join(names)}")
        return [old for old in found if old]
    with clusters.connect(config.cluster, client) as client:
        return [
            old
            if old and old.record.key == key
            else _train_one(name, key, store, config, client, studies.get(name))
            for name, key, old in zip(names, wanted, found, strict=True)
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
        Listener(name, table, client) as listener,
    ):
        results: list[TrainedModel | None] = distributed.run(
            train_rank, name, config, store.path.absolute(), folder.absolute() / "logs" / "tensorboard",
            client=client, ranks=training.ranks, cores_per_rank=training.cores_per_rank,
            gpus_per_rank=training.gpus_per_rank, interface=training.interface,
            timeout=training.start_timeout, port_range=training.port_range, env=environment(name, config),
            restarts=training.restarts, min_ranks=training.min_ranks,
            regroup_timeout=training.regroup_timeout, silence_timeout=training.silence_timeout,
            give_up_on=HepdaskError, checkpoint=checkpoint.absolute(),
            on_output=listener, on_status=lambda line: say(f"{name}: {line}"), log_dir=folder / "logs",
        )  # fmt: skip
    trained = results[0]
    assert trained is not None, "rank 0 always returns the model"
    _write_table(table, trained.history)  # a driver may have been killed between a checkpoint and its line
    facts = {
        "parameters": trained.parameters,
        "ranks": training.ranks,
        "ranks at the end": len(results),
        "cores per rank": training.cores_per_rank,
        "cpu_s": trained.cpu_s,
        "computed by": trained.engine_name,
    }
    return Outcome("model.keras", trained.keras_file, trained.history, facts)


def training_key(store: Store, config: Config, name: str) -> str:
    """Digest of everything a trained model depends on."""
    trees_alone = name in models.TREES
    return atomic.digest(
        [
            _TRAINING,
            versions(_LIBRARIES["trees" if trees_alone else "networks"]),
            store.fingerprint,
            identity(config),  # the split, and the user's functions by their source
            config.split.model_dump(mode="json"),
            list(store.features["hlf"]),
            store.classes,
            models.settings(name, config.models).model_dump(mode="json"),
            config.training.model_dump(mode="json", include=_DECISIVE_OF_TREES if trees_alone else _DECISIVE),
        ]
    )


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


class Listener(AbstractContextManager["Listener"]):
    """Shows what rank 0 tells of itself, writes its epochs into a table, and passes other output on.

    Parameters
    ----------
    name : str
        The model.
    table : Path
        A CSV file, one line an epoch as it ends. Epochs that are in it stay, unless they are done again.
    client : distributed.Client
        Whose scheduler is told of the epochs.
    """

    def __init__(self, name: str, table: Path, client: Client) -> None:
        self._name = name
        self._client = client
        metrics.serve(client)
        metrics.tell(client, [("hepdask_training_epoch", 0, {"model": name})])
        self._table = table
        self._rows = {int(row["epoch"]): row for row in _read_table(table)}
        self._tracker: Tracker | None = None
        self._shown: AbstractContextManager[Tracker] | None = None
        self._done = 0

    def __call__(self, rank: int, line: str) -> None:
        """Take one line of a rank's output."""
        message = _message(line)
        if message is None:
            say(f"[{self._name} rank {rank}] {line}")
            return
        if "rank" in message:
            rate, labels = message["events_per_second"], {"model": self._name, "rank": str(message["rank"])}
            metrics.tell(self._client, [("hepdask_training_events_per_second", rate, labels)])
            return
        if self._shown is None:
            self._shown = track(f"train {self._name}", message["total"], "events")
            self._tracker = self._shown.__enter__()
        assert self._tracker is not None
        self._tracker.advance(message["done"] - self._done)
        self._done = message["done"]
        if "epoch" in message:
            self._rows[message["epoch"]] = {
                key: value
                for key, value in message.items()
                if key not in ("model", "done", "total", "epochs")
            }
            _write_table(self._table, list(self._rows.values()))
            metrics.tell(self._client, self._changes(message))
            watched = f", val_loss {message['val_loss']:.4f}, val_accuracy {message['val_accuracy']:.4f}"
            say(
                f"{self._name} epoch {message['epoch']}/{message['epochs']}: loss {message['loss']:.4f}, "
                f"accuracy {message['accuracy']:.4f}{watched if 'val_loss' in message else ''}, "
                f"{message['events_per_second']:,.0f} events/s"
            )

    def _changes(self, message: dict[str, Any]) -> Iterator[tuple[str, float, dict[str, str]]]:
        yield "hepdask_training_epoch", message["epoch"], {"model": self._name}
        for sample, key in (("fit", "loss"), ("validation", "val_loss")):
            if key in message:
                yield "hepdask_training_loss", message[key], {"model": self._name, "sample": sample}

    def __exit__(self, *error: object) -> None:
        if self._shown is not None:
            self._shown.__exit__(None, None, None)


def _read_table(table: Path) -> list[dict[str, str]]:
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def _write_table(table: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table of epochs, the whole of it at once, so that whoever looks never sees half a line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    atomic.write_bytes(table, text.getvalue().encode())


def _message(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"hepdask"'):
        return None
    try:
        return json.loads(line)["hepdask"]
    except (ValueError, KeyError):
        return None
