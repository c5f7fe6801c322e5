"""The manifest of a store: what is in it, what was selected and lost, and what its scalers are made from."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict
from functools import reduce
from typing import Any

from hepdask.analysis import histograms
from hepdask.analysis.scaling import Moments
from hepdask.config import Config
from hepdask.input.input_file import InputFile
from hepdask.input.lost import Lost
from hepdask.store.layout import SCHEMA

_PACKAGES = ("hepdask", "awkward", "numba", "numpy", "uproot", "zarr")


def manifest(
    config: Config, parts: list[dict[str, Any]], files: list[InputFile], lost: list[Lost]
) -> dict[str, Any]:
    """Sum up a finished store.

    Parameters
    ----------
    config : Config
        What it was made with.
    parts : list of dict
        Attributes of its parts.
    files : list of InputFile
        All files of the fileset.
    lost : list of Lost
        Input that is not in it.

    Returns
    -------
    dict
        JSON-ready; the same for the same store, whatever the order of its parts.
    """
    labels = {
        name: config.analysis.classes.index(dataset.metadata["label"])
        for name, dataset in config.fileset.items()
    }
    parts = sorted(parts, key=lambda part: (part["dataset"], part["file"], part["start"]))
    lost = sorted(lost, key=lambda item: (item.dataset, item.path, item.start, item.reason))
    selection = []
    for dataset, settings in config.fileset.items():
        mine = [part for part in parts if part["dataset"] == dataset]
        paths = {file.path for file in files if file.dataset == dataset}
        selection.append(
            {
                "dataset": dataset,
                "label": settings.metadata["label"],
                "files": len(paths),
                "events_read": sum(part["stop"] - part["start"] for part in mine),
                "events_selected": sum(part["events"] for part in mine),
                "files_lost": sum(item.start < 0 for item in lost if item.dataset == dataset),
                "events_lost": sum(item.events for item in lost if item.dataset == dataset),
            }
        )
    notes = [
        f"no event of {row['dataset']} ({row['label']}) passes the selection"
        for row in selection
        if not row["events_selected"]
    ] + [f"lost: {item.reason}" for item in lost]
    return {
        "schema": SCHEMA,
        "classes": list(config.analysis.classes),
        "high_level_features": list(config.analysis.high_level_features),
        "max_particles": config.analysis.max_particles,
        "split": config.split.model_dump(mode="json"),
        "analysis": config.analysis.model_dump(mode="json"),
        "moments": {
            kind: reduce(
                Moments.merge, (Moments.from_json(part["moments"][kind]) for part in parts)
            ).to_json()
            for kind in ("particles", "high_level", "high_level_all")
        },
        "histograms": {
            dataset: reduce(
                histograms.merge, (part["histograms"] for part in parts if part["dataset"] == dataset)
            )
            for dataset in {part["dataset"]: None for part in parts}
        },
        "selection": selection,
        "notes": notes,
        "lost": [asdict(item) for item in lost],
        "parts": [
            {key: value for key, value in part.items() if key != "moments"}
            | {"label": labels[part["dataset"]]}
            for part in parts
        ],
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in _PACKAGES},
        },
    }
