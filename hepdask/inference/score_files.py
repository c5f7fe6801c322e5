"""Scores of one input file as a file of their own: a ROOT tree or a Parquet table, one row an input entry."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hepdask.files.atomic import written_whole

Format = Literal["root", "parquet"]

#: Name of the tree.
TREE = "scores"

#: Name of the object beside the tree, and key of the table's metadata, that says what the columns mean.
DESCRIPTION = "description"


def columns(
    scores: NDArray[np.float32], reason: NDArray[np.int16], classes: Sequence[str]
) -> dict[str, NDArray]:
    """Name what is written of each entry.

    Parameters
    ----------
    scores : float32 (n, n_classes)
        NaN where there are none.
    reason : int16 (n,)
        Why there are none.
    classes : sequence of str
        Names of the classes.

    Returns
    -------
    dict of (n,)
        ``entry`` (int64, of the input), ``score_CLASS`` (float32) for each class, ``predicted`` (int16, place of the
        highest score; -1 where there are none) and ``reason`` (int16).
    """
    without = np.isnan(scores).any(axis=1)
    predicted = np.where(without, -1, np.nan_to_num(scores).argmax(axis=1)).astype(np.int16)
    named = dict(zip(score_names(classes), scores.T, strict=True))
    return {
        "entry": np.arange(len(scores), dtype=np.int64),
        **named,
        "predicted": predicted,
        "reason": reason,
    }


def score_names(classes: Sequence[str]) -> list[str]:
    """Name the column of each class; what suits no branch is replaced, and names stay different."""
    names: list[str] = []
    for place, label in enumerate(classes):
        name = f"score_{re.sub(r'[^0-9A-Za-z_]', '_', label)}"
        names.append(f"{name}_{place}" if name in names else name)
    return names


def write_scores(
    path: Path, format: Format, table: Mapping[str, NDArray], description: Mapping[str, Any]
) -> None:
    """Write a file under a temporary name beside it, then rename it into place.

    Parameters
    ----------
    path : Path
        The file; one that is there is replaced, whole.
    format : {"root", "parquet"}
        How it is written.
    table : mapping
        From `columns`.
    description : mapping
        What they mean; JSON-ready.

    Raises
    ------
    OutputError
        The folder cannot be written; nothing is left behind then.
    """
    with written_whole(path) as temporary:
        (_write_root if format == "root" else _write_parquet)(temporary, table, json.dumps(description))


def _write_root(path: Path, table: Mapping[str, NDArray], description: str) -> None:
    import uproot

    with uproot.recreate(path) as file:
        tree = file.mktree(TREE, {name: column.dtype for name, column in table.items()})
        if len(table["entry"]):
            tree.extend(dict(table))
        file[DESCRIPTION] = description


def _write_parquet(path: Path, table: Mapping[str, NDArray], description: str) -> None:
    import pyarrow
    import pyarrow.parquet

    made = pyarrow.table(dict(table)).replace_schema_metadata({DESCRIPTION: description})
    pyarrow.parquet.write_table(made, path)
