"""A chunk of a new file on its way to scores: read, select, compute features, score."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask import logs
from hepdask.analysis.topology import branches
from hepdask.config import Config, Topology
from hepdask.errors import InputError
from hepdask.input.input_file import Chunk
from hepdask.input.lost import Lost
from hepdask.input.read_chunk import read
from hepdask.input.routes import read_with_retries

_loading = threading.Lock()


@dataclass(frozen=True)
class Scored:
    """What came out of a chunk, one row an entry.

    Attributes
    ----------
    scores : float32 (n_entries, n_classes)
        NaN where there are none.
    reason : int16 (n_entries,)
        Why there are none, as in `Classifier.judge`.
    """

    scores: NDArray[np.float32]
    reason: NDArray[np.int16]


def score_chunk(chunk: Chunk, folder: Path, identity: str, config: Config) -> Scored | Lost:
    """Score the entries of a chunk.

    Parameters
    ----------
    chunk : Chunk
        Which entries of which file.
    folder : Path
        Of the model, readable from every worker.
    identity : str
        Which training of the model is meant: `ModelRecord.identity`.
    config : Config
        Topology and reading.

    Returns
    -------
    Scored or Lost
        Lost where the entries cannot be read.
    """
    logs.show()
    analysis, reading = config.analysis, config.input

    def attempt(address: str) -> ak.Array:
        return read(chunk, branches(analysis), None, analysis.branches, address, reading.xrootd)

    try:
        events = read_with_retries(attempt, chunk.file.path, reading)
    except InputError as error:
        return Lost.chunk(chunk, str(error))
    with _loading:
        classifier = _load(folder, identity, analysis)
    return Scored(*classifier.judge(events))


#: The last model that was loaded here, and what it was loaded for.
_last: tuple[tuple[Path, str, Topology], Any] | None = None


def _load(folder: Path, identity: str, analysis: Topology) -> Any:
    """Load a model once in a worker; TensorFlow shares its processor with other workers there."""
    global _last
    if _last and _last[0] == (folder, identity, analysis):
        return _last[1]
    for name, value in (
        ("TF_CPP_MIN_LOG_LEVEL", "3"),
        ("TF_NUM_INTRAOP_THREADS", "1"),
        ("TF_NUM_INTEROP_THREADS", "1"),
        ("TF_FORCE_GPU_ALLOW_GROWTH", "true"),
    ):
        os.environ.setdefault(name, value)
    from hepdask.inference.classifier import Classifier
    from hepdask.models.record import read_record

    record = read_record(folder)
    if record is None or record.identity != identity:
        raise InputError(f"{folder}: the model was replaced while it was used; start again")
    found = Classifier(folder, record, analysis)
    _last = (folder, identity, analysis), found
    return found
