"""The table ``history.csv`` of a training: one line per epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hepdask.files import atomic


def read_table(path: Path) -> dict[int, dict[str, Any]]:
    """Return the lines of a table by their epochs; none if there is no table yet."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {int(row["epoch"]): row for row in csv.DictReader(file)}


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table, the whole of it at once, so that whoever looks never sees half a line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    atomic.write_bytes(path, text.getvalue().encode())
