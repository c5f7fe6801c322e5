"""Two runs side by side, from their ``metrics.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hepdask.errors import InputError
from hepdask.files.atomic import read_json
from hepdask.report import number_format


def compare(first: str | Path, second: str | Path) -> list[dict[str, Any]]:
    """Compare the models that two runs have in common.

    Parameters
    ----------
    first, second : str or Path
        Folders of runs that were evaluated, or their ``metrics.json``.

    Returns
    -------
    list of dict
        A row for each ``model`` and ``metric`` (``accuracy``, ``log_loss``, ``auc CLASS``): ``first``, ``second``,
        ``difference`` (second less first) and ``sigmas`` (the difference over its standard error, as if the runs had
        different test events; of areas alone). None where something is not defined or one run has no such model.

    Raises
    ------
    InputError
        There are no metrics, or those of other classes.
    """
    one, other = _metrics(first), _metrics(second)
    if one["classes"] != other["classes"]:
        raise InputError(
            f"{first} and {second} have different classes ({', '.join(one['classes'])}; {', '.join(other['classes'])})"
        )
    rows = []
    for model in {**one["models"], **other["models"]}:
        left, right = one["models"].get(model), other["models"].get(model)
        rows += [
            _row(model, metric, _value(left, metric), _value(right, metric))
            for metric in ("accuracy", "log_loss")
        ]
        for name in one["classes"]:
            areas = [found and found["classes"][name] for found in (left, right)]
            before, after = (_value(area, "auc") for area in areas)
            errors = [_value(area, "auc_error") for area in areas]
            rows.append(_row(model, f"auc {name}", before, after, errors))
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Write the rows of `compare` as lines of text in columns."""
    cells = [["model", "metric", "first", "second", "difference", "sigmas"]]
    for row in rows:
        sign = "+" if (row["difference"] or 0) >= 0 else ""
        difference = number_format.MISSING if row["difference"] is None else f"{sign}{row['difference']:.4f}"
        numbers = [number_format.decimal(row[key]) for key in ("first", "second")]
        cells.append(
            [row["model"], row["metric"], *numbers, difference, number_format.decimal(row["sigmas"], 1)]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _metrics(run: str | Path) -> dict[str, Any]:
    path = Path(run)
    found = read_json(path / "metrics.json" if path.is_dir() else path)
    if not found or "models" not in found:
        raise InputError(f"{run}: has no metrics; create them with: hepdask evaluate CONFIG")
    return found


def _value(entry: Mapping[str, Any] | None, key: str) -> float | None:
    return None if entry is None else entry[key]


def _row(
    model: str,
    metric: str,
    first: float | None,
    second: float | None,
    errors: list[float | None] | None = None,
) -> dict[str, Any]:
    difference = None if first is None or second is None else second - first
    error = math.hypot(*(error for error in errors if error is not None)) if errors else 0.0
    known = errors is not None and None not in errors and error > 0
    sigmas = difference / error if difference is not None and known else None
    return {
        "model": model, "metric": metric, "first": first, "second": second, "difference": difference, "sigmas": sigmas,
    }  # fmt: skip
