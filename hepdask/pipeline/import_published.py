"""`import`: events in the published Parquet layout into a store, to train on and to evaluate with."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hepdask import logs
from hepdask.analysis.fingerprint import fingerprints
from hepdask.analysis.scaling import Moments
from hepdask.analysis.topology.conventions import CONVENTIONS
from hepdask.config import Config, Dataset
from hepdask.config.feature_names import HIGH_LEVEL, PARTICLE
from hepdask.errors import ConfigError, InputError, InputNotFound, StoreError
from hepdask.exchange import published_reader
from hepdask.files.lock import locked
from hepdask.files.paths import local_path
from hepdask.input.input_file import InputFile
from hepdask.pipeline.prepare import Prepared, identity, summary
from hepdask.progress import track
from hepdask.store import open_store
from hepdask.store.layout import MANIFEST
from hepdask.store.manifest import manifest
from hepdask.store.split import is_test
from hepdask.store.writer import StoreWriter, refuse_strangers

logger = logging.getLogger(__name__)


def import_published(config: Config, files: Sequence[str | Path]) -> Prepared:
    """Make a store of Parquet files with the columns `HLF_input`, `GRU_input` and `encoded_label`.

    It takes the place of `prepare`: models are trained on it and evaluated with it as on any other. Killed, it goes on
    where it stopped when it is called again.

    Parameters
    ----------
    config : Config
        Uses `store`, `split` and `analysis`, whose convention must be ``reference``; its `fileset` is empty. The order
        of ``analysis.classes`` is that of the one-hot labels.
    files : sequence of str or Path
        Parquet files on a local disk, or globs.

    Returns
    -------
    Prepared

    Raises
    ------
    ConfigError
        The configuration does not fit imported events.
    InputError
        There is no such file, two files are the same, or one holds something else than it should.
    StoreError
        There is a store of other events, or another driver is writing it.
    """
    logs.show()
    begin, cpu = time.monotonic(), time.process_time()
    _check(config)
    paths = _found(files)
    path = config.store_path
    refuse_strangers(path)
    writer = StoreWriter(path, config.store.codec)  # what is imported is not rounded
    with locked(path, "writing this store", StoreError):
        if (path / MANIFEST).exists():
            raise StoreError(f"{path}: there is a complete store; remove it, or give another store.path")
        writer.start(identity(config))
        parts, made = _import(paths, config, writer)
        labels = {name: Dataset(files=[], metadata={"label": name}) for name in config.analysis.classes}
        inputs = [
            InputFile(name, place, str(file), "") for place, name in enumerate(labels) for file in paths
        ]
        summed = manifest(config.model_copy(update={"fileset": labels}), parts, inputs, [])
        written = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        wall, cpu = time.monotonic() - begin, time.process_time() - cpu
        writer.finish(summed | {"imported": True, "written": written, "wall_s": wall, "cpu_s": cpu})
    store = open_store(path)
    for line in summary(store):
        logger.info(line)
    return Prepared(store, made, wall, cpu)


def _check(config: Config) -> None:
    if config.fileset:
        raise ConfigError("fileset: events are either prepared from a fileset or imported; leave it out")
    if not CONVENTIONS[config.analysis.convention].scales_by_event:
        raise ConfigError(
            "analysis.convention: imported sequences are scaled event by event, as the published ones are; set it to "
            "reference"
        )
    if tuple(config.analysis.high_level_features) != tuple(HIGH_LEVEL):
        raise ConfigError("analysis.features: imported events have the 14 published features and no others")


def _found(files: Sequence[str | Path]) -> dict[Path, str]:
    """Find the files, and the digest that each is known by."""
    paths: dict[Path, str] = {}
    for wanted in (str(local_path(file)) for file in files):
        matching = sorted(glob(wanted)) or [wanted]
        for path in map(Path, matching):
            if not path.is_file():
                raise InputNotFound(f"{path}: there is no such file")
            paths[path] = published_reader.identity(path)
    if not paths:
        raise InputError("no file to import is given")
    owners: dict[str, Path] = {}
    for path, digest in paths.items():
        if digest in owners:
            raise InputError(f"{path} and {owners[digest]} are the same file; import one of them")
        owners[digest] = path
    return paths


def _import(paths: dict[Path, str], config: Config, writer: StoreWriter) -> tuple[list[dict[str, Any]], int]:
    """Write all blocks of all files, and give the attributes of the parts and how many are new."""
    there = writer.parts()
    parts: list[dict[str, Any]] = []
    made = 0
    total = sum(pq.read_metadata(path).num_rows for path in paths)
    if not total:
        raise InputError(f"{', '.join(map(str, paths))}: there are no events")
    analysis = config.analysis
    with track("import", total, "events") as tracker:
        for path, digest in paths.items():
            blocks = published_reader.blocks(
                path, len(HIGH_LEVEL), analysis.max_particles, len(analysis.classes)
            )
            for block in blocks:
                for attributes, fresh in _write(block, path, digest, config, there, writer):
                    parts.append(attributes)
                    made += fresh
                tracker.advance(len(block.label))
    return parts, made


def _write(
    block: published_reader.Block,
    path: Path,
    digest: str,
    config: Config,
    there: dict[str, dict[str, Any]],
    writer: StoreWriter,
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Write the events of each class of a block as a part, where it is not there yet."""
    for label, dataset in enumerate(config.analysis.classes):
        chosen = np.flatnonzero(block.label == label)
        if not len(chosen):
            continue
        name = f"{digest}-{block.start:012d}-{label}"
        if name in there:
            yield there[name], False
            continue
        entry, high_level = block.start + chosen, block.high_level[chosen]
        rows = block.sequences[chosen].reshape(-1, len(PARTICLE))
        offsets = np.arange(len(chosen) + 1) * block.sequences.shape[1]
        arrays = {
            "offsets": offsets,
            "entry": entry,
            "group": entry,
            "fingerprint": fingerprints(offsets, rows.T, high_level),
            "high_level": high_level,
            **dict(zip(PARTICLE, rows.T, strict=True)),
        }
        training = ~is_test(config.split, dataset, digest, entry)
        attributes = {
            "name": name, "dataset": dataset, "file": str(path), "tree": "", "uuid": digest, "origin": digest,
            "start": block.start, "stop": block.start + len(chosen),
            "events": len(chosen), "particles": len(rows), "version": digest, "bad": [],
            "moments": {
                "particles": Moments.of(np.empty((0, len(PARTICLE)))).to_json(),
                "high_level": Moments.of(high_level[training]).to_json(),
                "high_level_all": Moments.of(high_level).to_json(),
            },
            "histograms": {},
        }  # fmt: skip
        yield writer.write_part(name, arrays, attributes), True
