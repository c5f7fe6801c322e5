"""A folder of files that hold the events of a store: of bounded size, and there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from hepdask.config.feature_names import PARTICLE
from hepdask.errors import ConfigError, StoreError
from hepdask.exchange import parquet, tfrecord
from hepdask.exchange.published_layout import published_columns
from hepdask.files.atomic import write_json
from hepdask.files.outputs import require_folder, writing
from hepdask.store import Events, Store

Split = Literal["train", "test"]

#: Says what the files hold; readers of Parquet folders pass over names that begin with an underscore.
DESCRIPTION = "_hepdask.json"

_TEMPORARY = ".writing"
_BLOCK_BYTES = 32 << 20
_BLOCK_EVENTS = 1024


class File(Protocol):
    """A file that is being written."""

    def write(self, rows: Any) -> int:
        """Append rows; return how many bytes they take."""

    def close(self) -> None:
        """Finish the file."""


@dataclass(frozen=True)
class Format:
    """How events are written: the ending of the files, what events become, and who writes and counts them."""

    suffix: str
    rows: Callable[[Store, Events], Any]
    open: Callable[[Path], File]
    count: Callable[[Path], int]


FORMATS = {
    "parquet": Format(parquet.SUFFIX, parquet.jagged_table, parquet.ParquetFile, parquet.count_rows),
    "padded-parquet": Format(parquet.SUFFIX, parquet.padded_table, parquet.ParquetFile, parquet.count_rows),
    "tfrecord": Format(tfrecord.SUFFIX, published_columns, tfrecord.TFRecordFile, tfrecord.count_rows),
}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    files : list of Path
        The files in the order of the store.
    events : int
        Rows in all of them.
    """

    files: list[Path]
    events: int


def write_folder(
    store: Store,
    format: str,
    folder: Path,
    split: Split | None = None,
    file_bytes: int = 256 << 20,
    advance: Callable[[int], None] = lambda events: None,
) -> Exported:
    """Write the events of a store, in its order, into a new folder.

    Parameters
    ----------
    store : Store
        The events; they are read part by part.
    format : str
        One of `FORMATS`.
    folder : Path
        On a local disk; must not be there, or be empty. Files are written in a hidden folder within it and
        renamed when all are complete and counted, the description last.
    split : {"train", "test"}, optional
        None for all events.
    file_bytes : int
        A new file is begun where one holds this much before compression.
    advance : callable
        Told of each number of events that are written.

    Returns
    -------
    Exported

    Raises
    ------
    ConfigError
        The folder is not empty.
    OutputError
        The folder cannot be written.
    StoreError
        There is no event, the store is damaged, or the files do not hold as many events as it. Nothing is left
        behind then.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder}: is not empty, perhaps after an interrupted export; remove it or give another folder"
        )
    expected = len(store.labels(split))
    if not expected:
        raise StoreError(
            f"{store.path}: there is no event to export" + (f" in the split {split}" if split else "")
        )
    temporary = folder / _TEMPORARY
    require_folder(folder)
    try:
        temporary.mkdir()
    except FileExistsError:
        raise ConfigError(f"{folder}: another export is writing here; give another folder") from None
    try:
        paths = _write_files(store, FORMATS[format], temporary, split, file_bytes, advance)
        rows = {path.name: FORMATS[format].count(path) for path in paths}
        if sum(rows.values()) != expected:
            raise StoreError(f"{folder}: {sum(rows.values())} events written of {expected}; export again")
        for path in paths:
            os.replace(path, folder / path.name)
        temporary.rmdir()
        write_json(folder / DESCRIPTION, _description(store, format, split, rows))
    except BaseException:
        for leftover in folder.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        raise
    return Exported([folder / name for name in rows], expected)


def _write_files(
    store: Store,
    format: Format,
    folder: Path,
    split: Split | None,
    file_bytes: int,
    advance: Callable[[int], None],
) -> list[Path]:
    paths: list[Path] = []
    file: File | None = None
    room = 0
    try:
        for events in _blocks(store, split):
            if file is None or room <= 0:
                if file is not None:
                    file.close()
                paths.append(folder / f"part-{len(paths):05d}{format.suffix}")
                file, room = format.open(paths[-1]), file_bytes
            rows = format.rows(store, events)
            with writing(paths[-1]):
                room -= file.write(rows)
            advance(len(events))
    finally:
        if file is not None:
            file.close()
    return paths


def _blocks(store: Store, split: Split | None) -> Iterator[Events]:
    """Cut the parts into pieces that stay small when padded."""
    padded = store.max_particles * len(PARTICLE) * 4
    size = min(_BLOCK_EVENTS, max(1, _BLOCK_BYTES // padded))
    for events in store.pieces(split):
        for start in range(0, len(events), size):
            yield _cut(events, start, min(start + size, len(events)))


def _cut(events: Events, start: int, stop: int) -> Events:
    first, last = int(events.offsets[start]), int(events.offsets[stop])
    return Events(
        events.offsets[start : stop + 1] - first,
        {name: column[first:last] for name, column in events.particles.items()},
        events.high_level[start:stop],
        events.label[start:stop],
        events.part[start:stop],
        events.entry[start:stop],
    )


def _description(store: Store, format: str, split: Split | None, rows: dict[str, int]) -> dict[str, Any]:
    particles = store.particle_scaler
    return {
        "format": format,
        "split": split,
        "events": sum(rows.values()),
        "files": rows,
        "classes": store.classes,
        "features": {kind: list(names) for kind, names in store.features.items()},
        "scalers": {
            "hlf": store.high_level_scaler.to_json(),
            "particles": particles.to_json() if particles else None,
        },
        "analysis": store.manifest["analysis"],
        "store": store.fingerprint,
    }
