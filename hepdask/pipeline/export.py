"""`export`: the events of a store, or a trained model, for those who go on elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from hepdask import logs
from hepdask.errors import ConfigError
from hepdask.exchange.event_files import FORMATS, Exported, Split, write_folder
from hepdask.files.paths import local_path
from hepdask.progress import track
from hepdask.store import open_store

if TYPE_CHECKING:
    from hepdask.exchange.model_files import ExportedModel

logger = logging.getLogger(__name__)

#: Formats of trained models.
MODEL_FORMATS = ("onnx", "savedmodel")


def export(
    source: str | Path, format: str, out: str | Path, split: Split | None = None
) -> Exported | ExportedModel:
    """Write the events of a store into a folder of files, or a trained model into a file.

    Parameters
    ----------
    source : str or Path
        A complete store, or the folder ``models/NAME`` of a trained model.
    format : {"parquet", "padded-parquet", "tfrecord", "onnx", "savedmodel"}
        Of a store: jagged Parquet of physical values, or the published layout of scaled, padded ones
        (docs/exchange.md). Of a model: ONNX, or TensorFlow's SavedModel (docs/predict.md).
    out : str or Path
        On a local disk. Of a store a folder, not there or empty; of a model a file or folder that is not there.
    split : {"train", "test"}, optional
        Of a store; None for all events.

    Returns
    -------
    Exported or ExportedModel
        Of a store, the files and the number of events in them; of a model, where it is, and how well its scores agree
        with those of Keras.

    Raises
    ------
    ValueError
        There is no such format or split, or a model has no split.
    ConfigError
        There is something at `out`, or the model has a layer that the format does not know.
    StoreError
        There is no complete store, or it is damaged.
    InputError
        There is no trained model.
    HepdaskError
        The exported model does not give the scores of the trained one.
    """
    logs.show()
    if format not in (*FORMATS, *MODEL_FORMATS):
        raise ValueError(f"format {format!r}; there are: {', '.join((*FORMATS, *MODEL_FORMATS))}")
    if split not in (None, "train", "test"):
        raise ValueError(f"split {split!r}; there are: train, test, None")
    if format in MODEL_FORMATS:
        if split:
            raise ValueError(f"split {split!r}: a model has no events; leave it out")
        return _export_model(source, format, local_path(out))
    opened = open_store(source)
    if opened.imported and format == "parquet":
        raise ConfigError(
            f"{source}: the physical values of imported events are unknown; export them as padded-parquet"
        )
    with track("export", len(opened.labels(split)), "events") as tracker:
        exported = write_folder(opened, format, local_path(out), split, advance=tracker.advance)
    logger.info(f"{out}: {exported.events:,} events in {len(exported.files)} files")
    return exported


def _export_model(source: str | Path, format: str, out: Path) -> ExportedModel:
    from hepdask.exchange.model_files import write_network
    from hepdask.inference import classifier

    folder, record = classifier.find(source)
    exported = write_network(folder, record, format, out)
    logger.info(
        f"{out}: {record.model}, its scores agree with those of Keras to {exported.max_difference:.1g} "
        "on random events"
    )
    return exported
