"""One chunk of input on its way into the store: read, select, compute, write."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask import source
from hepdask.config import Config
from hepdask.errors import InputError
from hepdask.features import BadEvent, Extracted, branches, expand_columns, extract
from hepdask.names import PARTICLE
from hepdask.scaling import Moments
from hepdask.split import is_test
from hepdask.store import writer

T = TypeVar("T")

_BLOCK = 1 << 16


@dataclass(frozen=True)
class Lost:
    """Input that could not be read.

    Attributes
    ----------
    path : str
        The file.
    start, stop : int
        The entries it cost; both -1 where the file could not even be opened.
    reason : str
        What was wrong, and after how many attempts.
    """

    path: str
    start: int
    stop: int
    reason: str


def describe(file: source.InputFile, config: Config) -> source.FileContent | Lost:
    """Say what a file holds, trying again where the storage fails."""
    try:
        return _retry(lambda: source.inspect_file(file, config.store.xrootd.environment()), config)
    except (InputError, OSError) as error:
        return Lost(file.path, -1, -1, _reason(error, file.path, config))


def prepare_chunk(chunk: source.Chunk, config: Config, store: Path) -> dict[str, Any] | Lost:
    """Bring a chunk into the store.

    Parameters
    ----------
    chunk : Chunk
        Which entries of which file.
    config : Config
        Physics, split and reading.
    store : Path
        A store that `writer.start_store` has made.

    Returns
    -------
    dict or Lost
        Attributes of the part, or what could not be read and why.
    """
    physics = config.physics
    collections, parent = branches(physics), {physics.collections.generator: ("Parent",)}
    try:
        events = _retry(
            lambda: source.read(
                chunk, collections, config.store.xrootd.environment(), parent, physics.branches
            ),
            config,
        )
        extracted = extract(events, physics)
        parents = _parents(events, physics.collections.generator)
    except BadEvent as error:
        return Lost(
            chunk.file.path, chunk.start, chunk.stop,
            f"{chunk.file.path}: entry {chunk.start + error.event}: {error.what}",
        )  # fmt: skip
    except (InputError, OSError) as error:
        return Lost(chunk.file.path, chunk.start, chunk.stop, _reason(error, chunk.file.path, config))

    entry = chunk.start + np.flatnonzero(extracted.selected)
    group = entry
    if parents is not None:
        group = parents[extracted.selected]
    arrays = {
        "offsets": extracted.particles.offsets,
        "entry": entry,
        "group": group,
        "high_level": extracted.high_level,
        **extracted.particles.values,
    }
    training = ~is_test(config.split, chunk.file.dataset, chunk.uuid, group)
    attributes = {
        "name": chunk.name,
        "dataset": chunk.file.dataset,
        "file": chunk.file.path,
        "tree": chunk.file.tree,
        "uuid": chunk.uuid,
        "start": chunk.start,
        "stop": chunk.stop,
        "events": len(entry),
        "particles": len(extracted.particles),
        "moments": _moments(extracted, training),
    }
    writer.write_part(store, chunk.name, arrays, attributes)
    return writer.part_attributes(store, chunk.name)


def _parents(events: ak.Array, collection: str) -> NDArray[np.int64] | None:
    """Take the generator parent of each event; None where the file does not say."""
    if collection not in events.fields:
        return None
    parents = events[collection].Parent
    counts = ak.to_numpy(ak.num(parents, axis=1))
    if (counts != 1).any():
        raise BadEvent(int(np.flatnonzero(counts != 1)[0]), f"{collection}.Parent does not hold one number")
    return ak.to_numpy(ak.flatten(parents)).astype(np.int64)


def _moments(extracted: Extracted, training: np.ndarray) -> dict[str, Any]:
    """Sum up the training events for the scalers, expanding the 19 features block by block.

    The published convention scales high-level features over all events.
    """
    sample = extracted.particles.of_events(training)
    particles = Moments.of(np.empty((0, len(PARTICLE))))
    for start in range(0, len(sample), _BLOCK):
        block = {name: column[start : start + _BLOCK] for name, column in sample.values.items()}
        particles = particles.merge(Moments.of(np.stack(list(expand_columns(block).values()), axis=1)))
    high_level = extracted.high_level.astype(np.float32)
    return {
        "particles": particles.to_json(),
        "high_level": Moments.of(high_level[training]).to_json(),
        "high_level_all": Moments.of(high_level).to_json(),
    }


def _retry(attempt: Callable[[], T], config: Config) -> T:
    """Try again where the storage fails; wrong content (`InputError`) will not mend itself."""
    wait = config.store.retry_wait
    for _ in range(config.store.read_retries):
        try:
            return attempt()
        except OSError:
            time.sleep(wait * random.uniform(0.5, 1.5))
            wait *= 2
    return attempt()


def _reason(error: Exception, path: str, config: Config) -> str:
    if isinstance(error, InputError):
        return str(error)
    said = " ".join(str(error).split())
    return (
        f"{path}: not readable after {config.store.read_retries + 1} attempts: {type(error).__name__}: {said}"
    )
