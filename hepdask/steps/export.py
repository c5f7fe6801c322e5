"""`export`: the events of a store as Parquet or TFRecord, for those who train elsewhere."""

from __future__ import annotations

from pathlib import Path

from hepdask.exchange.folder import FORMATS, Exported, Split, write_folder
from hepdask.progress import say, track
from hepdask.store import open_store


def export(store: str | Path, format: str, out: str | Path, split: Split | None = None) -> Exported:
    """Write the events of a store into a folder of files.

    Parameters
    ----------
    store : str or Path
        A complete store.
    format : {"parquet", "padded-parquet", "tfrecord"}
        Jagged Parquet of physical values, or the published layout of scaled, padded ones (docs/exchange.md).
    out : str or Path
        Folder on a local disk; must not be there, or be empty.
    split : {"train", "test"}, optional
        None for all events.

    Returns
    -------
    Exported
        The files and the number of events in them.

    Raises
    ------
    ValueError
        There is no such format or split.
    ConfigError
        The folder is not empty.
    StoreError
        There is no complete store, or it is damaged.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r}; there are: {', '.join(FORMATS)}")
    if split not in (None, "train", "test"):
        raise ValueError(f"split {split!r}; there are: train, test, None")
    opened = open_store(store)
    with track("export", len(opened.labels(split)), "events") as tracker:
        exported = write_folder(opened, format, Path(out), split, advance=tracker.advance)
    say(f"{out}: {exported.events:,} events in {len(exported.files)} files")
    return exported
